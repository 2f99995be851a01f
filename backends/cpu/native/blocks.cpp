// Linear layers and tables whose weights keep GGUF's blocks: integer products within a group of inputs that share a
// scale, added up in float32. Activations become int8 with a scale for each 32 inputs, as ggml has it.
//
// A value is (code - offset) * scale * step - minimum * minimum_step. The offset is not subtracted from codes, whose
// product wants them unsigned: a group's sum of activations, times it, is where the group's integer sum begins.
//
// Within a panel of 32 outputs, in the order of inputs: low bits of codes by quads of four inputs [quad][16][4], outputs
// 0 to 15 in the low half of the bytes, or whole bytes [quad][32][4]; higher bits [quads that share bytes][2][16][4];
// float16 scales and minimums [block][1 or 2][32]; steps and minimum steps [group][1 or 2][32].

#include <vector>

#include "panels.hpp"

namespace {

template <int BITS_, int BLOCK_, int GROUP_, int OFFSET_, bool MINIMUMS_>
struct Form {
    static constexpr int BITS = BITS_, BLOCK = BLOCK_, GROUP = GROUP_, OFFSET = OFFSET_;
    static constexpr bool MINIMUMS = MINIMUMS_, STEPS = GROUP_ < BLOCK_;
    static constexpr int HIGH = BITS == 8 ? 0 : BITS - 4;      // bits of a code that lie apart
    static constexpr int SHARED = HIGH == 0 ? 1 : 8 / HIGH;    // quads whose high bits share bytes
    static constexpr int QUAD_BYTES = BITS == 8 ? 128 : 64;    // of a panel
    static constexpr int NUMBERS = (MINIMUMS ? 2 : 1) * PANEL; // of a block, or of a group
};

using Q4_0 = Form<4, 32, 32, 8, false>;
using Q4_1 = Form<4, 32, 32, 0, true>;
using Q8_0 = Form<8, 32, 32, 128, false>;
using Q4_K = Form<4, 256, 32, 0, true>;
using Q5_K = Form<5, 256, 32, 0, true>;
using Q6_K = Form<6, 256, 16, 32, false>;

constexpr int ROUNDED = 32;  // inputs whose activations share a scale

// A step's activations, rounded.
struct Rounded {
    std::vector<int8_t> values;   // [tokens, inputs]
    std::vector<float> scales;    // [tokens, inputs / 32]
    std::vector<int32_t> starts;  // [tokens, groups]: minus the offset times the group's sum
    std::vector<float> totals;    // [tokens, inputs / 32]: sums times scales
    int64_t inputs, parts, groups;

    template <typename F>
    void fit(const Blocks& a) {
        inputs = a.inputs, parts = a.inputs / ROUNDED, groups = a.inputs / F::GROUP;
        values.resize(a.tokens * inputs);
        scales.resize(a.tokens * parts);
        starts.resize(a.tokens * groups);
        totals.resize(a.tokens * parts);
    }

    template <typename F>
    void take(const float* x, int64_t token) {
        for (int64_t part = 0; part < parts; part++) {
            const floats first = load(x + part * ROUNDED), second = load(x + part * ROUNDED + LANES);
            const float peak = largest(larger(first < 0.0f ? -first : first, second < 0.0f ? -second : second));
            const float scale = std::max(peak / 127, 1e-12f);
            // What is no number stays none: its difference to itself is not 0.
            const float odd = sum(first - first) + sum(second - second);
            const int32_t low = round(first * (1 / scale), token * inputs + part * ROUNDED);
            const int32_t high = round(second * (1 / scale), token * inputs + part * ROUNDED + LANES);
            scales[token * parts + part] = scale + odd;
            totals[token * parts + part] = (scale + odd) * float(low + high);
            int32_t* start = starts.data() + token * groups + part * (ROUNDED / F::GROUP);
            if (F::GROUP == ROUNDED) {
                start[0] = -F::OFFSET * (low + high);
            } else {
                start[0] = -F::OFFSET * low;
                start[1] = -F::OFFSET * high;
            }
        }
    }

    // Sixteen values to their place; their sum.
    int32_t round(floats x, int64_t at) {
        const ints whole = __builtin_convertvector(x + 12582912.0f - 12582912.0f, ints);
        typedef int8_t bytes __attribute__((vector_size(16)));
        const bytes narrow = __builtin_convertvector(whole, bytes);
        std::memcpy(values.data() + at, &narrow, sizeof narrow);
        int32_t total = 0;
        for (int lane = 0; lane < LANES; lane++) total += narrow[lane];
        return total;
    }
};

// Where one panel's weights begin.
template <typename F>
struct Panel {
    const uint8_t *codes, *high, *steps;
    const uint16_t* halves;

    Panel(const Blocks& a, int64_t panel) {
        const int64_t quads = a.inputs / 4;
        codes = static_cast<const uint8_t*>(a.codes) + panel * quads * F::QUAD_BYTES;
        high = static_cast<const uint8_t*>(a.high) + panel * quads / F::SHARED * 128;
        halves = static_cast<const uint16_t*>(a.halves) + panel * (a.inputs / F::BLOCK) * F::NUMBERS;
        steps = static_cast<const uint8_t*>(a.steps) + panel * (a.inputs / F::GROUP) * F::NUMBERS;
    }

    // Codes of four inputs for outputs 0 to 15 and for the others.
    void read(int64_t quad, ints& first, ints& second) const {
        const uint8_t* low = codes + quad * F::QUAD_BYTES;
        if (F::BITS == 8) {
            first = load_bytes(low);
            second = load_bytes(low + 64);
            return;
        }
        const ints both = load_bytes(low);
        first = both & 0x0F0F0F0F;
        second = (both >> 4) & 0x0F0F0F0F;
        if (F::HIGH > 0) {
            const uint8_t* bits = high + quad / F::SHARED * 128;
            const int shift = F::HIGH * int(quad % F::SHARED);
            constexpr int32_t mask = F::HIGH == 1 ? 0x01010101 : 0x03030303;
            first |= ((load_bytes(bits) >> shift) & mask) << 4;
            second |= ((load_bytes(bits + 64) >> shift) & mask) << 4;
        }
    }

    // 16 of a group's scales, from output `lane` on; or minimums with `second` 1.
    floats scale(int64_t group, int second, int lane) const {
        const int place = second * PANEL + lane;
        const floats whole = load_halves(halves + group * F::GROUP / F::BLOCK * F::NUMBERS + place);
        if (!F::STEPS) return whole;
        const uint8_t* from = steps + group * F::NUMBERS + place;
        return whole * (F::MINIMUMS ? widened<uint8_t>(from) : widened<int8_t>(from));
    }

    template <typename Byte>
    static floats widened(const uint8_t* from) {
        typedef Byte bytes __attribute__((vector_size(16)));
        bytes lanes;
        std::memcpy(&lanes, from, sizeof lanes);
        return __builtin_convertvector(__builtin_convertvector(lanes, ints), floats);
    }
};

// R tokens times one panel.
template <typename F, int R>
void rows_of_panel(const Blocks& a, const Rounded& q, int64_t token, int64_t at) {
    const Panel<F> panel(a, at);
    const int8_t* x = q.values.data() + token * q.inputs;
    const float* scales = q.scales.data() + token * q.parts;
    const float* totals = q.totals.data() + token * q.parts;
    const int32_t* starts = q.starts.data() + token * q.groups;
    floats low[R] = {}, high[R] = {};
    for (int64_t group = 0; group < q.groups; group++) {
        const int64_t part = group * F::GROUP / ROUNDED;
        ints whole_low[R], whole_high[R];
        for (int r = 0; r < R; r++) whole_low[r] = whole_high[r] = ints{} + (F::OFFSET ? starts[r * q.groups + group] : 0);
#pragma GCC unroll 8
        for (int64_t step = 0; step < F::GROUP / 4; step++) {
            const int64_t quad = group * (F::GROUP / 4) + step;
            ints first, second;
            panel.read(quad, first, second);
            for (int r = 0; r < R; r++) {
                whole_low[r] = dot(whole_low[r], first, x + r * q.inputs + quad * 4);
                whole_high[r] = dot(whole_high[r], second, x + r * q.inputs + quad * 4);
            }
        }
        const floats scale_low = panel.scale(group, 0, 0), scale_high = panel.scale(group, 0, LANES);
        for (int r = 0; r < R; r++) {
            const float scale = scales[r * q.parts + part];
            low[r] += __builtin_convertvector(whole_low[r], floats) * (scale_low * scale);
            high[r] += __builtin_convertvector(whole_high[r], floats) * (scale_high * scale);
        }
        if (F::MINIMUMS) {
            const floats least_low = panel.scale(group, 1, 0), least_high = panel.scale(group, 1, LANES);
            for (int r = 0; r < R; r++) {
                low[r] -= least_low * totals[r * q.parts + part];
                high[r] -= least_high * totals[r * q.parts + part];
            }
        }
    }
    for (int r = 0; r < R; r++) finish(a, token + r, at, low[r], high[r]);
}

template <typename F>
void product(const Blocks& a, const Team& team) {
    static thread_local Rounded memory;
    if (team.thread == 0) {
        memory.fit<F>(a);
        team.meeting->shared = &memory;
    }
    team.meet();
    Rounded& shared = *static_cast<Rounded*>(team.meeting->shared);
    for (int64_t token = team.first(a.tokens); token < team.last(a.tokens); token++)
        shared.take<F>(a.x + token * a.inputs, token);
    team.meet();
    each_panel(a, team, [&](int64_t panel) {
        int64_t at = 0;
        for (; at + 6 <= a.tokens; at += 6) rows_of_panel<F, 6>(a, shared, at, panel);
        for (; at + 4 <= a.tokens; at += 4) rows_of_panel<F, 4>(a, shared, at, panel);
        for (; at + 2 <= a.tokens; at += 2) rows_of_panel<F, 2>(a, shared, at, panel);
        for (; at < a.tokens; at++) rows_of_panel<F, 1>(a, shared, at, panel);
    });
}

// One row of a table, as numbers.
template <typename F>
void read_row(const Blocks& a, int64_t row, float* out) {
    const Panel<F> panel(a, row / PANEL);
    const int lane = int(row % PANEL), half = lane / LANES, place = lane % LANES;
    for (int64_t group = 0; group < a.inputs / F::GROUP; group++) {
        const float scale = panel.scale(group, 0, half * LANES)[place];
        const float least = F::MINIMUMS ? panel.scale(group, F::MINIMUMS, half * LANES)[place] : 0;
        for (int64_t quad = group * (F::GROUP / 4); quad < (group + 1) * (F::GROUP / 4); quad++) {
            ints codes[2];
            panel.read(quad, codes[0], codes[1]);
            uint8_t four[4];
            const int32_t lanes = codes[half][place];
            std::memcpy(four, &lanes, 4);
            for (int byte = 0; byte < 4; byte++) out[quad * 4 + byte] = (four[byte] - F::OFFSET) * scale - least;
        }
    }
}

template <typename F>
void rows(const Blocks& a, const Team& team) {
    for (int64_t token = team.first(a.tokens); token < team.last(a.tokens); token++)
        read_row<F>(a, a.index[token], a.out + token * a.inputs);
    team.meet();
}

template <typename F>
void run(const Blocks& a, const Team& team) {
    if (a.index != nullptr)
        rows<F>(a, team);
    else
        product<F>(a, team);
}

}  // namespace

void run_blocks(const Blocks& a, const Team& team) {
    switch (a.form) {
        case 0: return run<Q4_0>(a, team);
        case 1: return run<Q4_1>(a, team);
        case 2: return run<Q8_0>(a, team);
        case 3: return run<Q4_K>(a, team);
        case 4: return run<Q5_K>(a, team);
        case 5: return run<Q6_K>(a, team);
    }
}
