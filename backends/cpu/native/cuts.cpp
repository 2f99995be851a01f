// The score below which top_k, top_p and min_p leave no token, without sorting the vocabulary.
//
// Scores are at most 0. They are counted by sixteenths, with their mass; the sixteenth in which a bound falls is sorted,
// and nothing else is.

#include <algorithm>
#include <array>
#include <vector>

#include "lanes.hpp"
#include "team.hpp"

constexpr int64_t STEPS = 16;            // to a unit of score: to a factor e of a token's mass
constexpr int64_t BINS = 32 * STEPS;     // the last holds all that is lower, too
constexpr int64_t SUMMED_TOGETHER = 64;  // vectors, before their sum is taken in double precision

namespace {

// The scores of one row, by bins.
class Scores {
   public:
    // Scores are (logit - peak) / heat.
    void count(const float* x, int64_t size, float peak, float heat) {
        scores.resize(size);
        counts.fill(0), masses.fill(0), total = 0;
        int64_t at = 0;
        while (at + LANES <= size) {
            floats partial = floats{};
            for (int64_t i = 0; i < SUMMED_TOGETHER && at + LANES <= size; i++, at += LANES) {
                const floats score = (load(x + at) - peak) / heat, mass = exponential(score);
                store(scores.data() + at, score);
                partial += mass;
                for (int64_t lane = 0; lane < LANES; lane++) add(score[lane], mass[lane]);
            }
            total += sum(partial);
        }
        for (; at < size; at++) {
            const float score = (x[at] - peak) / heat, mass = power(score);
            scores[at] = score;
            total += mass;
            add(score, mass);
        }
    }

    double whole() const { return total; }

    // The mass of the `most` best.
    double mass_of(int64_t most) {
        int64_t above = 0, bin = 0;
        double mass = 0;
        for (; bin < BINS - 1 && above + counts[bin] < most; bin++) above += counts[bin], mass += masses[bin];
        sort(bin);
        for (int64_t i = 0; i < most - above && i < int64_t(sorted.size()); i++) mass += power(sorted[i]);
        return mass;
    }

    // The lowest score that stays: of the `most` best, those before which there is less mass than `wanted`.
    float lowest(int64_t most, float wanted) {
        int64_t above = 0, bin = 0;
        double mass = 0;
        while (bin < BINS - 1 && above + counts[bin] < most && float(mass + masses[bin]) < wanted)
            above += counts[bin], mass += masses[bin], bin++;
        sort(bin);
        float last = -float(bin) / STEPS;  // where nothing of the bin stays: below whatever is above
        for (int64_t i = 0; i < int64_t(sorted.size()) && above + i < most; i++) {
            const float own = power(sorted[i]);
            mass += own;
            if (above + i > 0 && !(float(mass) - own < wanted)) break;
            last = sorted[i];
        }
        return last;
    }

   private:
    static float power(float score) { return exponential(all(score))[0]; }

    static int64_t bin_of(float score) { return score > -float(BINS) / STEPS ? int64_t(-score * STEPS) : BINS - 1; }

    void add(float score, float mass) {
        const int64_t bin = bin_of(score);
        counts[bin]++, masses[bin] += mass;
    }

    void sort(int64_t bin) {
        sorted.clear();
        for (const float score : scores)
            if (bin_of(score) == bin && score == score) sorted.push_back(score);
        std::sort(sorted.begin(), sorted.end(), std::greater<float>());
    }

    std::vector<float> scores, sorted;
    std::array<int64_t, BINS> counts;
    std::array<double, BINS> masses;
    double total = 0;
};

}  // namespace

// out[row] = the lowest score that stays, as core/ops/sample.py says, a score being (logit - the row's largest) /
// temperature; -infinity where nothing is cut and for rows of temperature 0. x [rows, size]; the others [rows].
extern "C" void floors(const float* x, const float* temperature, const int32_t* top_k, const float* top_p,
                       const float* min_p, float* out, int64_t rows, int64_t size, int64_t threads) {
    gather(rows > 1 ? threads : 1, [=](const Team& team) {
        Scores scores;
        for (int64_t row = team.first(rows); row < team.last(rows); row++) {
            out[row] = HIDDEN;
            const float* from = x + row * size;
            const float peak = largest(from, size);
            if (!(temperature[row] > 0) || peak - peak != 0) continue;  // a difference of infinities is no number
            const bool unlimited = top_k[row] <= 0 || top_k[row] >= size;
            if (!unlimited || top_p[row] < 1) {
                const int64_t most = unlimited ? size : top_k[row];
                scores.count(from, size, peak, temperature[row]);
                const float wanted = top_p[row] * float(unlimited ? scores.whole() : scores.mass_of(most));
                out[row] = scores.lowest(most, top_p[row] < 1 ? wanted : -HIDDEN);
            }
            if (min_p[row] > 0) out[row] = std::max(out[row], std::log(min_p[row]));
        }
    });
}
