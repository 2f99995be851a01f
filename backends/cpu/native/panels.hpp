// What linear layers share whose weights lie in panels of 32 outputs: integer products, and who computes which panel.
#pragma once

#include <algorithm>

#include "kernels.hpp"
#include "lanes.hpp"

#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#endif

constexpr int64_t PANEL = 32;
constexpr int64_t SHARE = 2;  // panels that a thread takes at once

// total + four products in each of 16 lanes: unsigned bytes of `weights` times the four signed ones of `quad`.
inline ints dot(ints total, ints weights, const int8_t* quad) {
#if defined(__AVX512VNNI__) && defined(__AVX512BW__)
    int32_t four;
    std::memcpy(&four, quad, 4);
    return (ints)_mm512_dpbusd_epi32((__m512i)total, (__m512i)weights, _mm512_set1_epi32(four));
#else
    for (int byte = 0; byte < 4; byte++) total += ((weights >> (8 * byte)) & 0xFF) * int32_t(quad[byte]);
    return total;
#endif
}

inline ints load_bytes(const uint8_t* from) {
    ints lanes;
    std::memcpy(&lanes, from, sizeof lanes);
    return lanes;
}

inline floats load_halves(const uint16_t* from) {
#if defined(__AVX512F__)
    return (floats)_mm512_maskz_cvtph_ps(0xFFFF, _mm256_loadu_si256((const __m256i*)from));
#else
    floats lanes;
    for (int lane = 0; lane < LANES; lane++) {
        _Float16 half;
        std::memcpy(&half, from + lane, 2);
        lanes[lane] = half;
    }
    return lanes;
#endif
}

// A result of 32 outputs, of which the last panel has fewer.
template <typename Record>
void finish(const Record& a, int64_t token, int64_t panel, floats low, floats high) {
    const int64_t first = panel * PANEL;
    float* out = a.out + token * a.outputs + first;
    if (first + PANEL <= a.outputs) {
        if (a.bias != nullptr) low += load(a.bias + first), high += load(a.bias + first + LANES);
        store(out, low);
        store(out + LANES, high);
        return;
    }
    for (int64_t n = 0; n < a.outputs - first; n++)
        out[n] = (n < LANES ? low[n] : high[n - LANES]) + (a.bias != nullptr ? a.bias[first + n] : 0);
}

// Calls `rows(panel)` for every panel, on whichever thread comes first: one that lost its processor for a while holds
// nobody up.
template <typename Record, typename Rows>
void each_panel(const Record& a, const Team& team, Rows rows) {
    const int64_t panels = (a.outputs + PANEL - 1) / PANEL;
    for (int64_t first = team.take(SHARE); first < panels; first = team.take(SHARE))
        for (int64_t panel = first; panel < std::min(panels, first + SHARE); panel++) rows(panel);
    team.meet();
}

