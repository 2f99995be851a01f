// The choice of a token, the likeliest or one that is drawn, which stands behind a step's program and so is no call of a
// tape.

#include "lanes.hpp"
#include "team.hpp"

// The first place of the largest of `size` numbers, and that number; some place where there is no number.
struct Likeliest {
    int64_t place;
    float number;
};

static Likeliest likeliest(const float* from, int64_t size) {
    const float found = largest(from, size);
    int64_t place = 0;  // read again, out of the cache now
    while (place < size && from[place] != found) place++;
    return {place < size ? place : 0, found};
}

// out[row] = the first place of the row's largest number; some place where there is no number. x [rows, size].
extern "C" void argmax(const float* x, int32_t* out, int64_t rows, int64_t size, int64_t threads) {
    gather(rows > 1 ? threads : 1, [=](const Team& team) {
        for (int64_t row = team.first(rows); row < team.last(rows); row++) {
            out[row] = int32_t(likeliest(x + row * size, size).place);
        }
    });
}

// MurmurHash3_x86_32, word for word that of core/ops/sample.py, of one number or of a lane each.
template <typename Words>
static Words scramble(Words word) {
    word *= 0xCC9E2D51u;
    word = word << 15 | word >> 17;
    return word * 0x1B873593u;
}

template <typename Words>
static Words absorb(Words state, Words scrambled) {
    state ^= scrambled;
    state = state << 13 | state >> 19;
    return state * 5u + 0xE6546B64u;
}

// 31 bits of the hash of a row's state and a token.
template <typename Words>
static Words bits(Words state, Words token) {
    Words hash = absorb(state, scramble(token)) ^ 16u;
    hash = (hash ^ hash >> 16) * 0x85EBCA6Bu;
    hash = (hash ^ hash >> 13) * 0xC2B2AE35u;
    return (hash ^ hash >> 16) & 0x7FFFFFFFu;
}

// Of 31 bits: as the reference rounds, also where the compiler joins a product and a sum.
static float uniform(uint32_t hash) {
    constexpr double SCALE = 0x1p-31 * (1 - 0x1p-24);
    const float product = float(double(float(hash)) * double(float(SCALE)));
    return float(double(product) + 0x1p-32);
}

static float gumbel(uint32_t state, int64_t token) {
    return -std::log(-std::log1p(-uniform(bits<uint32_t>(state, uint32_t(token)))));
}

typedef uint32_t words __attribute__((vector_size(64)));

// out[row] = the token of the largest score with noise, a score being (logit - the row's largest) / temperature; where
// that is 0, the likeliest token. Scores below `floors`, where it is there, are out. x [rows, size]; key and position
// [rows] are those of core/ops/sample.py.
//
// A token with the score s beats the best so far, b, if its noise is above b - s: if its uniform number u is below
// 1 - exp(-exp(s - b)), which is less than exp(s - b). Nearly all tokens fail that; for the others it is worked out.
extern "C" void draw(const float* x, const float* temperature, const int32_t* key, const int32_t* position,
                     const float* floors, int32_t* out, int64_t rows, int64_t size, int64_t threads) {
    constexpr float SLACK = 1.0001f;          // far above the errors of the power, and of the sums of what is worked out
    constexpr float LEAST = 22.2f;            // no noise is larger: u is at least 2^-32
    constexpr float STEP = 1.0f / (1u << 31);  // u is this times the bits and a little
    gather(rows > 1 ? threads : 1, [=](const Team& team) {
        for (int64_t row = team.first(rows); row < team.last(rows); row++) {
            const float* from = x + row * size;
            const float heat = temperature[row], floor = floors ? floors[row] : HIDDEN;
            const Likeliest peak = likeliest(from, size);
            out[row] = int32_t(peak.place);
            if (!(heat > 0)) continue;
            const uint32_t state = absorb(uint32_t(key[row]), scramble(uint32_t(position[row])));
            int64_t place = peak.place;
            float best = (peak.number - peak.number) / heat + gumbel(state, place);
            const auto consider = [&](int64_t token) {
                const float plain = (from[token] - peak.number) / heat, score = plain + gumbel(state, token);
                if (plain < floor) return;
                if (score > best || (score == best && token < place)) best = score, place = token;
            };
            words lane;
            for (int64_t i = 0; i < LANES; i++) lane[i] = uint32_t(i);
            int64_t at = 0;
            for (; at + LANES <= size; at += LANES) {
                const floats scores = (load(from + at) - peak.number) / heat, below = scores - best;
                const ints near = (below > -LEAST) & (scores >= floor);
                bool any = false;
                for (int64_t i = 0; i < LANES; i++) any |= near[i] != 0;
                if (!any) continue;
                const floats most = exponential(below) * SLACK;
                const words hash = bits<words>(words{} + state, lane + uint32_t(at));
                const ints lower = __builtin_convertvector(__builtin_convertvector(hash, ints), floats) * STEP < most;
                any = false;
                for (int64_t i = 0; i < LANES; i++) any |= lower[i] != 0;
                if (!any) continue;
                for (int64_t i = 0; i < LANES; i++)
                    if (lower[i]) consider(at + i);
            }
            for (; at < size; at++) consider(at);
            out[row] = int32_t(place);
        }
    });
}

// chosen[row] = the log-probability of ids[row], total[row] = the logarithm of the sum of the powers of all. x [rows,
// size].
extern "C" void logprobs(const float* x, const int32_t* ids, float* chosen, float* total, int64_t rows, int64_t size,
                         int64_t threads) {
    gather(rows > 1 ? threads : 1, [=](const Team& team) {
        for (int64_t row = team.first(rows); row < team.last(rows); row++) {
            const float* from = x + row * size;
            const float peak = largest(from, size);
            total[row] = peak + float(std::log(sum_of_powers(from, size, peak)));
            chosen[row] = from[ids[row]] - total[row];
        }
    });
}
