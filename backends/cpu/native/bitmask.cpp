// The masks of grammars, which stand behind a step's program and so are no calls of a tape.

#include <algorithm>
#include <cstring>

#include "lanes.hpp"
#include "team.hpp"

// out = x [rows, size], where a row has a mask (places[row] >= 0, of masks [..., words]) with -infinity for each bit of
// it that is 0. Bit t % 32 of word t / 32 belongs to place t; bits past the size mean nothing.
extern "C" void bitmask(const float* x, const int64_t* places, const int32_t* masks, float* out, int64_t rows,
                        int64_t size, int64_t words, int64_t threads) {
    constexpr int64_t BITS = 2 * LANES;
    ints low, high;  // the bit of each lane, of either half of a word
    for (int64_t lane = 0; lane < LANES; lane++) low[lane] = 1 << lane, high[lane] = int32_t(1u << (LANES + lane));
    gather(rows > 1 ? threads : 1, [=](const Team& team) {
        for (int64_t row = team.first(rows); row < team.last(rows); row++) {
            const float* from = x + row * size;
            float* to = out + row * size;
            if (places[row] < 0) {
                std::memcpy(to, from, size * sizeof(float));
                continue;
            }
            const int32_t* mask = masks + places[row] * words;
            for (int64_t at = 0; at < size; at += BITS) {
                const int64_t count = std::min(BITS, size - at);
                const int32_t word = mask[at / BITS];
                if (word == -1)
                    std::memcpy(to + at, from + at, count * sizeof(float));
                else if (word == 0)
                    std::fill(to + at, to + at + count, HIDDEN);
                else if (count == BITS) {
                    store(to + at, (low & word) != 0 ? load(from + at) : all(HIDDEN));
                    store(to + at + LANES, (high & word) != 0 ? load(from + at + LANES) : all(HIDDEN));
                } else
                    for (int64_t bit = 0; bit < count; bit++) to[at + bit] = word >> bit & 1 ? from[at + bit] : HIDDEN;
            }
        }
    });
}
