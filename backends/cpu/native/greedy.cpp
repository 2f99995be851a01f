// The choice of the likeliest token, which stands behind a step's program and so is no call of a tape.

#include "lanes.hpp"
#include "team.hpp"

// out[row] = the first place of the row's largest number; some place where there is no number. x [rows, size].
extern "C" void argmax(const float* x, int32_t* out, int64_t rows, int64_t size, int64_t threads) {
    gather(rows > 1 ? threads : 1, [=](const Team& team) {
        for (int64_t row = team.first(rows); row < team.last(rows); row++) {
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
