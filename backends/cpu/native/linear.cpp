// Linear layers. Of float32, and with quantized weights: activations become int8 with a scale a token, products are
// summed in int32.
//
// The processor's instruction multiplies unsigned bytes by signed ones. Weights are the unsigned ones (int8 plus 128,
// int4 as it is), so that four activations of a token are broadcast from memory by the same instruction; what the
// offset adds is the offset times the sum of the token's activations.
//
// Weights lie in panels of 32 outputs and within a panel input by input, so that a product reads them in order: float32
// [panel][input][32]; where they are bytes by quads of four inputs, int8 [panel][quad][32][4], int4 [panel][quad][16][4]
// with outputs 0 to 15 in the low half of the bytes.

#include <algorithm>
#include <vector>

#include "panels.hpp"

namespace {

// The activations of a step as int8, [tokens, inputs padded to fours], with what undoes it.
struct Quantized {
    std::vector<int8_t> values;
    std::vector<float> scales;  // [tokens]
    std::vector<float> sums;    // [tokens, groups]
    int64_t width, group, groups;

    void fit(const Linear& a, int64_t group_size) {
        width = (a.inputs + 3) / 4 * 4;
        group = group_size;
        groups = (width + group - 1) / group;
        values.resize(a.tokens * width);
        scales.resize(a.tokens);
        sums.resize(a.tokens * groups);
    }

    void take(const float* x, int64_t token, int64_t inputs) {
        floats most{}, odd{};
        int64_t at = 0;
        for (; at + LANES <= inputs; at += LANES) {
            const floats lanes = load(x + at);
            most = larger(lanes < 0.0f ? -lanes : lanes, most);
            odd += lanes - lanes;
        }
        float peak = largest(most), none = sum(odd);
        for (; at < inputs; at++) peak = std::max(peak, std::fabs(x[at])), none += x[at] - x[at];
        const float scale = std::max(peak / 127, 1e-12f), factor = 1 / scale;
        // 0, but for a token that holds what is no number: its products must be none either.
        scales[token] = scale + none;
        int8_t* to = values.data() + token * width;
        for (at = 0; at < inputs; at++) to[at] = int8_t(int32_t(x[at] * factor + 12582912.0f - 12582912.0f));
        for (; at < width; at++) to[at] = 0;
        for (int64_t part = 0; part < groups; part++) {
            int32_t total = 0;
            for (int64_t k = part * group; k < std::min(width, (part + 1) * group); k++) total += to[k];
            sums[token * groups + part] = float(total);
        }
    }
};

// R tokens times one panel.
template <int R>
void panel_int8(const Linear& a, const Quantized& q, int64_t token, int64_t panel) {
    const uint8_t* weights = static_cast<const uint8_t*>(a.weights) + panel * q.width * PANEL;
    const int8_t* x = q.values.data() + token * q.width;
    ints low[R] = {}, high[R] = {};
    for (int64_t k = 0; k < q.width; k += 4) {
        const ints first = load_bytes(weights + k * PANEL), second = load_bytes(weights + k * PANEL + 64);
        for (int r = 0; r < R; r++) {
            low[r] = dot(low[r], first, x + r * q.width + k);
            high[r] = dot(high[r], second, x + r * q.width + k);
        }
    }
    const float* scales = static_cast<const float*>(a.scales) + panel * PANEL;
    const floats scale_low = load(scales), scale_high = load(scales + LANES);
    for (int r = 0; r < R; r++) {
        const float scale = q.scales[token + r];
        const int32_t offset = 128 * int32_t(q.sums[token + r]);
        finish(a, token + r, panel, __builtin_convertvector(low[r] - offset, floats) * scale_low * scale,
               __builtin_convertvector(high[r] - offset, floats) * scale_high * scale);
    }
}

template <int R>
void panel_int4(const Linear& a, const Quantized& q, int64_t token, int64_t panel) {
    const uint8_t* weights = static_cast<const uint8_t*>(a.weights) + panel * q.width * (PANEL / 2);
    const uint16_t* groups = static_cast<const uint16_t*>(a.scales) + panel * q.groups * 2 * PANEL;
    const int8_t* x = q.values.data() + token * q.width;
    floats low[R] = {}, high[R] = {};
    for (int64_t part = 0; part < q.groups; part++, groups += 2 * PANEL) {
        ints whole_low[R] = {}, whole_high[R] = {};
        for (int64_t k = part * q.group; k < (part + 1) * q.group; k += 4) {
            const ints both = load_bytes(weights + k * (PANEL / 2));
            const ints first = both & 0x0F0F0F0F, second = (both >> 4) & 0x0F0F0F0F;
            for (int r = 0; r < R; r++) {
                whole_low[r] = dot(whole_low[r], first, x + r * q.width + k);
                whole_high[r] = dot(whole_high[r], second, x + r * q.width + k);
            }
        }
        const floats scale_low = load_halves(groups), scale_high = load_halves(groups + LANES);
        const floats zero_low = load_halves(groups + PANEL), zero_high = load_halves(groups + PANEL + LANES);
        for (int r = 0; r < R; r++) {
            const float total = q.sums[(token + r) * q.groups + part];
            low[r] += __builtin_convertvector(whole_low[r], floats) * scale_low - zero_low * total;
            high[r] += __builtin_convertvector(whole_high[r], floats) * scale_high - zero_high * total;
        }
    }
    for (int r = 0; r < R; r++)
        finish(a, token + r, panel, low[r] * q.scales[token + r], high[r] * q.scales[token + r]);
}

template <int R>
void panel_float(const Linear& a, int64_t token, int64_t panel) {
    const float* weights = static_cast<const float*>(a.weights) + panel * a.inputs * PANEL;
    const float* x = a.x + token * a.inputs;
    floats low[R] = {}, high[R] = {};
    for (int64_t k = 0; k < a.inputs; k++) {
        const floats first = load(weights + k * PANEL), second = load(weights + k * PANEL + LANES);
        for (int r = 0; r < R; r++) {
            low[r] += x[r * a.inputs + k] * first;
            high[r] += x[r * a.inputs + k] * second;
        }
    }
    for (int r = 0; r < R; r++) finish(a, token + r, panel, low[r], high[r]);
}

// Most tokens at a time that leave registers for all sums.
void rows_int8(const Linear& a, const Quantized& q, int64_t panel) {
    int64_t at = 0;
    for (; at + 12 <= a.tokens; at += 12) panel_int8<12>(a, q, at, panel);
    for (; at + 8 <= a.tokens; at += 8) panel_int8<8>(a, q, at, panel);
    for (; at + 4 <= a.tokens; at += 4) panel_int8<4>(a, q, at, panel);
    for (; at + 2 <= a.tokens; at += 2) panel_int8<2>(a, q, at, panel);
    for (; at < a.tokens; at++) panel_int8<1>(a, q, at, panel);
}

void rows_int4(const Linear& a, const Quantized& q, int64_t panel) {
    int64_t at = 0;
    for (; at + 6 <= a.tokens; at += 6) panel_int4<6>(a, q, at, panel);
    for (; at + 4 <= a.tokens; at += 4) panel_int4<4>(a, q, at, panel);
    for (; at + 2 <= a.tokens; at += 2) panel_int4<2>(a, q, at, panel);
    for (; at < a.tokens; at++) panel_int4<1>(a, q, at, panel);
}

void rows_float(const Linear& a, int64_t panel) {
    int64_t at = 0;
    for (; at + 12 <= a.tokens; at += 12) panel_float<12>(a, at, panel);
    for (; at + 8 <= a.tokens; at += 8) panel_float<8>(a, at, panel);
    for (; at + 4 <= a.tokens; at += 4) panel_float<4>(a, at, panel);
    for (; at + 2 <= a.tokens; at += 2) panel_float<2>(a, at, panel);
    for (; at < a.tokens; at++) panel_float<1>(a, at, panel);
}

template <typename Rows>
void run(const Linear& a, int64_t group, const Team& team, Rows rows) {
    static thread_local Quantized memory;
    if (team.thread == 0) {
        memory.fit(a, group);
        team.meeting->shared = &memory;
    }
    team.meet();
    Quantized& shared = *static_cast<Quantized*>(team.meeting->shared);
    for (int64_t token = team.first(a.tokens); token < team.last(a.tokens); token++)
        shared.take(a.x + token * a.inputs, token, a.inputs);
    team.meet();
    each_panel(a, team, [&](int64_t panel) { rows(a, shared, panel); });
}

}  // namespace

void run_linear_float(const Linear& a, const Team& team) {
    each_panel(a, team, [&](int64_t panel) { rows_float(a, panel); });
}

void run_linear_int8(const Linear& a, const Team& team) { run(a, (a.inputs + 3) / 4 * 4, team, rows_int8); }

void run_linear_int4(const Linear& a, const Team& team) { run(a, a.group, team, rows_int4); }
