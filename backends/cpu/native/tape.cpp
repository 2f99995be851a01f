// A step, or a part of one, as a list of kernels and their records: one team of threads plays it from end to end.

#include "kernels.hpp"

struct Call {
    int64_t kernel;      // its place in `play`
    const void* record;
};

namespace {

template <typename Record>
const Record& as(const void* record) {
    return *static_cast<const Record*>(record);
}

void play(const Call& call, const Team& team) {
    switch (call.kernel) {
        case 0: return run_attention(as<Attention>(call.record), team);
        case 1: return run_linear_float(as<Linear>(call.record), team);
        case 2: return run_linear_int8(as<Linear>(call.record), team);
        case 3: return run_linear_int4(as<Linear>(call.record), team);
        case 4: return run_norm(as<Norm>(call.record), team);
        case 5: return run_silu_mul(as<SiluMul>(call.record), team);
        case 6: return run_rope(as<Rope>(call.record), team);
        case 7: return run_blocks(as<Blocks>(call.record), team);
    }
}

}  // namespace

// Plays `count` calls in order on `threads` threads.
extern "C" void play(const Call* calls, int64_t count, int64_t threads) {
    gather(threads, [=](const Team& team) {
        for (int64_t at = 0; at < count; at++) play(calls[at], team);
    });
}
