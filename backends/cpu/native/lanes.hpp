// Sixteen numbers at a time in the compiler's own vector types: it makes of them what the processor has, zmm registers
// or several narrower ones. What is not here: threads and kernels.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

constexpr int64_t LANES = 16;

typedef float floats __attribute__((vector_size(64)));
typedef int32_t ints __attribute__((vector_size(64)));

constexpr float HIDDEN = -std::numeric_limits<float>::infinity();

inline floats load(const float* from) {
    floats lanes;
    std::memcpy(&lanes, from, sizeof lanes);
    return lanes;
}

inline void store(float* to, floats lanes) { std::memcpy(to, &lanes, sizeof lanes); }

inline floats all(float value) { return floats{} + value; }

inline float sum(floats lanes) {
    float total = 0;
    for (int lane = 0; lane < LANES; lane++) total += lanes[lane];
    return total;
}

inline floats larger(floats a, floats b) { return a > b ? a : b; }

inline float largest(floats lanes) {
    float found = lanes[0];
    for (int lane = 1; lane < LANES; lane++) found = lanes[lane] > found ? lanes[lane] : found;
    return found;
}

// The largest of `size` numbers; -infinity where there is none.
inline float largest(const float* from, int64_t size) {
    floats most[4] = {all(HIDDEN), all(HIDDEN), all(HIDDEN), all(HIDDEN)};
    int64_t at = 0;
    for (; at + 4 * LANES <= size; at += 4 * LANES)
        for (int part = 0; part < 4; part++) most[part] = larger(load(from + at + part * LANES), most[part]);
    float found = largest(larger(larger(most[0], most[1]), larger(most[2], most[3])));
    for (; at < size; at++) found = from[at] > found ? from[at] : found;
    return found;
}

// e to the power of x, within two units in the last place; 0 below -87. Cody and Waite's reduction by ln 2 in two
// pieces, then the Taylor polynomial of degree 7 on |x| <= ln 2 / 2.
inline floats exponential(floats x) {
    const floats clamped = x < -87.0f ? all(-87.0f) : (x > 88.0f ? all(88.0f) : x);
    const floats shifter = all(12582912.0f);  // 1.5 * 2^23: adding it leaves the nearest whole number in the low bits
    const floats whole = (clamped * 1.44269504f + shifter) - shifter;
    const floats rest = (clamped - whole * 0.693359375f) + whole * 2.12194440e-4f;
    floats series = all(1.0f / 5040);
    series = series * rest + 1.0f / 720;
    series = series * rest + 1.0f / 120;
    series = series * rest + 1.0f / 24;
    series = series * rest + 1.0f / 6;
    series = series * rest + 0.5f;
    series = series * rest + 1.0f;
    series = series * rest + 1.0f;
    const ints exponent = (__builtin_convertvector(whole, ints) + 127) << 23;
    floats power;
    std::memcpy(&power, &exponent, sizeof power);
    return x < -87.0f ? floats{} : series * power;
}

// The sum of e to the power of x - peak.
inline double sum_of_powers(const float* x, int64_t size, float peak) {
    constexpr int64_t TOGETHER = 64 * LANES;  // before their sum is taken in double precision
    double total = 0;
    int64_t at = 0;
    while (at + LANES <= size) {
        floats partial = floats{};
        for (const int64_t past = at + TOGETHER; at < past && at + LANES <= size; at += LANES)
            partial += exponential(load(x + at) - peak);
        total += sum(partial);
    }
    for (; at < size; at++) total += std::exp(x[at] - peak);
    return total;
}
