// The small ops of a decoder in float32: one pass over their input each. And the choice of the likeliest token.

#include "crew.hpp"
#include "lanes.hpp"

namespace {

constexpr int64_t ALONE = 16384;  // fewer elements than this are done before a second thread has begun

}  // namespace

extern "C" {

// normed = total / rms(total) * weight with total = x + residual; without a residual total is x and is not written.
void add_rms_norm(const float* x, const float* residual, const float* weight, float epsilon, float* normed,
                  float* total, int64_t rows, int64_t size, int threads) {
    each_range(threads, rows, rows * size < ALONE, [&](int64_t first, int64_t end) {
        for (int64_t row = first; row < end; row++) {
            const float* from = x + row * size;
            float* out = normed + row * size;
            floats squares{};
            int64_t at = 0;
            float rest = 0;
            if (residual != nullptr) {
                const float* other = residual + row * size;
                float* kept = total + row * size;
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
            const float factor = 1.0f / std::sqrt((sum(squares) + rest) / size + epsilon);
            for (at = 0; at + LANES <= size; at += LANES) store(out + at, load(from + at) * factor * load(weight + at));
            for (; at < size; at++) out[at] = from[at] * factor * weight[at];
        }
    });
}

// out[T, size] = silu(first half of x) * second half of x, x [T, 2 * size].
void silu_mul(const float* x, float* out, int64_t rows, int64_t size, int threads) {
    each_range(threads, rows, rows * size < ALONE, [&](int64_t first, int64_t end) {
        for (int64_t row = first; row < end; row++) {
            const float* gate = x + row * 2 * size;
            const float* up = gate + size;
            int64_t at = 0;
            for (; at + LANES <= size; at += LANES) {
                const floats lanes = load(gate + at);
                store(out + row * size + at, lanes / (1.0f + exponential(-lanes)) * load(up + at));
            }
            for (; at < size; at++) out[row * size + at] = gate[at] / (1.0f + std::exp(-gate[at])) * up[at];
        }
    });
}

// The heads of a token, one memory with a stride between tokens, rotated into out [T, heads, head_dim]. The table holds
// half cosines, half sines for each position.
void rope(const float* heads_in, int64_t stride, const int32_t* positions, const float* table, float* out,
          int64_t out_stride, int64_t tokens, int64_t heads, int64_t head_dim, int threads) {
    const int64_t half = head_dim / 2;
    each_range(threads, tokens, tokens * heads * head_dim < ALONE, [&](int64_t first, int64_t end) {
        for (int64_t token = first; token < end; token++) {
            const float* cosines = table + positions[token] * head_dim;
            const float* sines = cosines + half;
            for (int64_t head = 0; head < heads; head++) {
                const float* from = heads_in + token * stride + head * head_dim;
                float* to = out + token * out_stride + head * head_dim;
                for (int64_t at = 0; at < half; at++) {
                    to[at] = from[at] * cosines[at] - from[half + at] * sines[at];
                    to[half + at] = from[half + at] * cosines[at] + from[at] * sines[at];
                }
            }
        }
    });
}

// out[row] = the first place of the row's largest number; some place where there is no number.
void argmax(const float* x, int32_t* out, int64_t rows, int64_t size, int threads) {
    each_range(threads, rows, rows * size < ALONE, [&](int64_t first, int64_t end) {
        for (int64_t row = first; row < end; row++) {
            const float* from = x + row * size;
            floats most[4] = {all(HIDDEN), all(HIDDEN), all(HIDDEN), all(HIDDEN)};
            int64_t at = 0;
            for (; at + 4 * LANES <= size; at += 4 * LANES)
                for (int part = 0; part < 4; part++) most[part] = larger(load(from + at + part * LANES), most[part]);
            float found = largest(larger(larger(most[0], most[1]), larger(most[2], most[3])));
            for (; at < size; at++) found = from[at] > found ? from[at] : found;
            // Again, out of the cache now, for where it stands.
            int64_t place = 0;
            while (place < size && from[place] != found) place++;
            out[row] = int32_t(place < size ? place : 0);
        }
    });
}

}  // extern "C"
