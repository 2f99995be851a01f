// The small ops of a decoder in float32: one pass over their input each.

#include "kernels.hpp"
#include "lanes.hpp"

void run_norm(const Norm& a, const Team& team) {
    const int64_t size = a.size;
    for (int64_t row = team.first(a.rows); row < team.last(a.rows); row++) {
        const float* from = a.x + row * size;
        float* out = a.normed + row * size;
        floats squares{};
        int64_t at = 0;
        float rest = 0;
        if (a.residual != nullptr) {
            const float* other = a.residual + row * size;
            float* kept = a.total + row * size;
            for (; at + LANES <= size; at += LANES) {
                const floats both = load(from + at) + load(other + at);
                store(kept + at, both);
                squares += both * both;
            }
            for (; at < size; at++) {
                kept[at] = from[at] + other[at];
                rest += kept[at] * kept[at];
            }
            from = kept;
        } else {
            for (; at + LANES <= size; at += LANES) squares += load(from + at) * load(from + at);
            for (; at < size; at++) rest += from[at] * from[at];
        }
        const float factor = 1.0f / std::sqrt((sum(squares) + rest) / size + a.epsilon);
        for (at = 0; at + LANES <= size; at += LANES) store(out + at, load(from + at) * factor * load(a.weight + at));
        for (; at < size; at++) out[at] = from[at] * factor * a.weight[at];
    }
    team.meet();
}

void run_silu_mul(const SiluMul& a, const Team& team) {
    const int64_t size = a.size;
    for (int64_t row = team.first(a.rows); row < team.last(a.rows); row++) {
        const float* gate = a.x + row * 2 * size;
        const float* up = gate + size;
        int64_t at = 0;
        for (; at + LANES <= size; at += LANES) {
            const floats lanes = load(gate + at);
            store(a.out + row * size + at, lanes / (1.0f + exponential(-lanes)) * load(up + at));
        }
        for (; at < size; at++) a.out[row * size + at] = gate[at] / (1.0f + std::exp(-gate[at])) * up[at];
    }
    team.meet();
}

void run_rope(const Rope& a, const Team& team) {
    const int64_t half = a.head_dim / 2;
    for (int64_t token = team.first(a.tokens); token < team.last(a.tokens); token++) {
        const float* cosines = a.table + a.positions[token] * a.head_dim;
        const float* sines = cosines + half;
        for (int64_t head = 0; head < a.heads; head++) {
            const float* from = a.x + token * a.stride + head * a.head_dim;
            float* to = a.out + (token * a.heads + head) * a.head_dim;
            for (int64_t at = 0; at < half; at++) {
                to[at] = from[at] * cosines[at] - from[half + at] * sines[at];
                to[half + at] = from[half + at] * cosines[at] + from[at] * sines[at];
            }
        }
    }
    team.meet();
}
