// What a call is told, a record each, and the kernels that a step is made of. Python fills the records: library.py.
#pragma once

#include "team.hpp"

// What all attention layers of a step share.
struct Step {
    const int64_t* slots;    // [tokens]; -1: write nothing
    const int32_t* starts;   // [rows + 1]
    const int32_t* lengths;  // [rows]
    const int32_t* table;    // [rows, table_width]
    int64_t tokens, rows, table_width;
};

struct Attention {
    const Step* step;
    const float* query;  // [tokens, heads, head_dim], a stride between tokens, as key and value
    const float* key;    // nullptr: already written
    const float* value;
    float* out;          // [tokens, heads, head_dim]; nullptr: only write
    void* keys;          // [kv_heads, num_blocks, head_dim, block_size]
    void* values;        // [kv_heads, num_blocks, block_size, head_dim]
    const float* sinks;  // [heads] or nullptr
    int64_t query_stride, key_stride, value_stride, num_blocks;
    int32_t heads, kv_heads, head_dim, block_size;
    int32_t dtype;   // of the cache: 0 float32, 1 bfloat16, 2 float16
    int32_t window;  // 0: none
    float scale;
    float softcap;  // 0: none
};

struct Linear {
    const float* x;  // [tokens, inputs]
    const void* weights;
    const void* scales;  // int8: [panels, 32] float32; int4: [panels, inputs / group, 2, 32] float16, scales and then
                         // scales times zeros
    const float* bias;   // [outputs] or nullptr
    float* out;          // [tokens, outputs]
    int64_t tokens, inputs, outputs, group;
};

// Weights in GGUF's blocks, in panels as blocks.cpp says: a product, or with an `index` rows of the table.
struct Blocks {
    const float* x;        // [tokens, inputs]
    const int32_t* index;  // [tokens] or nullptr
    const void *codes, *high, *halves, *steps;
    const float* bias;  // [outputs] or nullptr
    float* out;         // [tokens, outputs]; rows: [tokens, inputs]
    int64_t tokens, inputs, outputs;
    int64_t form;  // its place in `run_blocks`
};

// normed = total / rms(total) * weight with total = x + residual; without a residual total is x and is not written.
struct Norm {
    const float *x, *residual, *weight;  // [rows, size], the same or nullptr, [size]
    float *normed, *total;
    int64_t rows, size;
    float epsilon;
};

// out[rows, size] = silu(first half of x) * second half of x, x [rows, 2 * size].
struct SiluMul {
    const float* x;
    float* out;
    int64_t rows, size;
};

// The heads of a token, one memory with a stride between tokens, rotated into out [tokens, heads, head_dim]. The table
// holds half cosines, half sines for each position.
struct Rope {
    const float* x;
    const int32_t* positions;
    const float* table;
    float* out;
    int64_t stride, tokens, heads, head_dim;
};

// Each is called by every thread of the team, and returns when the whole of it is done.
void run_attention(const Attention&, const Team&);
void run_linear_float(const Linear&, const Team&);
void run_linear_int8(const Linear&, const Team&);
void run_linear_int4(const Linear&, const Team&);
void run_blocks(const Blocks&, const Team&);
void run_norm(const Norm&, const Team&);
void run_silu_mul(const SiluMul&, const Team&);
void run_rope(const Rope&, const Team&);
