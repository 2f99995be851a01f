// Paged attention over a cache whose keys lie transposed within a block, [head_dim, block_size], and whose values do
// not: both products are then sums of whole vectors, without one horizontal addition.
//
// A task is a kv head, a row and a tile of its queries: the query heads that share the kv head are that many more
// queries of one matrix. Keys come in chunks; the softmax is carried from chunk to chunk (Milakov & Gimelshein 2018).
//
// Nothing is read of a block past the tokens that the tile may see: what it held before may be no number. head_dim and
// block_size are multiples of 16.

#include <algorithm>
#include <vector>

#include "kernels.hpp"
#include "lanes.hpp"

namespace {

constexpr int64_t TILE = 16;    // queries of a prefill that share what they read of the cache
constexpr int64_t CHUNK = 256;  // tokens whose scores are held at a time; at least a block

struct Task {
    int64_t row, head, first, count;  // queries of the row
};

struct Brain {  // bfloat16
    uint16_t bits;
};

inline float wide(float x) { return x; }
inline float wide(_Float16 x) { return x; }
inline float wide(Brain x) {
    const uint32_t bits = uint32_t(x.bits) << 16;
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}

inline void narrow(float x, float& out) { out = x; }
inline void narrow(float x, _Float16& out) { out = static_cast<_Float16>(x); }
inline void narrow(float x, Brain& out) {
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    out.bits = x == x ? (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16 : 0x7FC0;
}

// scores[r][token] = query r times the key of each token of a block; `width` vectors of tokens at a time.
template <int R, int W>
void score(const float* query, const float* keys, int64_t head_dim, int64_t block_size, float* scores) {
    for (int64_t token = 0; token < block_size; token += W * LANES) {
        floats total[R][W] = {};
        for (int64_t dim = 0; dim < head_dim; dim++) {
            floats key[W];
            for (int w = 0; w < W; w++) key[w] = load(keys + dim * block_size + token + w * LANES);
            for (int r = 0; r < R; r++)
                for (int w = 0; w < W; w++) total[r][w] += query[r * head_dim + dim] * key[w];
        }
        for (int r = 0; r < R; r++)
            for (int w = 0; w < W; w++) store(scores + r * CHUNK + token + w * LANES, total[r][w]);
    }
}

// out[r] += the sum over tokens of weights[r][token] * values[token]; W vectors of the head's dimensions at a time.
template <int R, int W>
void mix(const float* weights, const float* values, int64_t head_dim, int64_t tokens, float* out) {
    for (int64_t dim = 0; dim < head_dim; dim += W * LANES) {
        floats total[R][W];
        for (int r = 0; r < R; r++)
            for (int w = 0; w < W; w++) total[r][w] = load(out + r * head_dim + dim + w * LANES);
        for (int64_t token = 0; token < tokens; token++) {
            floats value[W];
            for (int w = 0; w < W; w++) value[w] = load(values + token * head_dim + dim + w * LANES);
            for (int r = 0; r < R; r++)
                for (int w = 0; w < W; w++) total[r][w] += weights[r * CHUNK + token] * value[w];
        }
        for (int r = 0; r < R; r++)
            for (int w = 0; w < W; w++) store(out + r * head_dim + dim + w * LANES, total[r][w]);
    }
}

template <int R>
void score_rows(const float* query, const float* keys, int64_t head_dim, int64_t block_size, float* scores) {
    if (block_size % (2 * LANES) == 0)
        score<R, 2>(query, keys, head_dim, block_size, scores);
    else
        score<R, 1>(query, keys, head_dim, block_size, scores);
}

template <int R>
void mix_rows(const float* weights, const float* values, int64_t head_dim, int64_t tokens, float* out) {
    if (head_dim % (4 * LANES) == 0)
        mix<R, 4>(weights, values, head_dim, tokens, out);
    else
        mix<R, 1>(weights, values, head_dim, tokens, out);
}

// All queries of a task against one block, six at a time.
void score_block(const float* query, const float* keys, int64_t queries, const Attention& a, float* scores) {
    const int64_t dim = a.head_dim, size = a.block_size;
    int64_t at = 0;
    for (; at + 6 <= queries; at += 6) score_rows<6>(query + at * dim, keys, dim, size, scores + at * CHUNK);
    for (; at + 3 <= queries; at += 3) score_rows<3>(query + at * dim, keys, dim, size, scores + at * CHUNK);
    for (; at < queries; at++) score_rows<1>(query + at * dim, keys, dim, size, scores + at * CHUNK);
}

void mix_block(const float* weights, const float* values, int64_t queries, int64_t tokens, int64_t dim, float* out) {
    int64_t at = 0;
    for (; at + 6 <= queries; at += 6) mix_rows<6>(weights + at * CHUNK, values, dim, tokens, out + at * dim);
    for (; at + 3 <= queries; at += 3) mix_rows<3>(weights + at * CHUNK, values, dim, tokens, out + at * dim);
    for (; at < queries; at++) mix_rows<1>(weights + at * CHUNK, values, dim, tokens, out + at * dim);
}

// Scores [width] of one query become weights relative to the largest so far; returns the factor of what came before.
float soften(float* scores, int64_t width, float& largest_so_far, float& total) {
    floats most = all(largest_so_far);
    for (int64_t at = 0; at < width; at += LANES) most = larger(load(scores + at), most);
    const float now = largest(most);
    if (now == HIDDEN) {
        std::fill(scores, scores + width, 0.0f);
        return 1.0f;
    }
    floats sums{};
    for (int64_t at = 0; at < width; at += LANES) {
        const floats weights = exponential(load(scores + at) - now);
        store(scores + at, weights);
        sums += weights;
    }
    const float factor = largest_so_far == HIDDEN ? 0.0f : std::exp(largest_so_far - now);
    largest_so_far = now;
    total = total * factor + sum(sums);
    return factor;
}

void cap(float* scores, int64_t width, float softcap) {
    for (int64_t at = 0; at < width; at++) scores[at] = softcap * std::tanh(scores[at] / softcap);
}

// A thread's memory for one task.
struct Room {
    std::vector<float> query, scores, out, most, total, keys, values;

    void fit(int64_t queries, const Attention& a) {
        const int64_t block = int64_t(a.head_dim) * a.block_size;
        query.resize(queries * a.head_dim);
        scores.resize(queries * CHUNK);
        out.assign(queries * a.head_dim, 0.0f);
        most.assign(queries, HIDDEN);
        total.assign(queries, 0.0f);
        keys.resize(block);
        values.resize(block);
    }
};

const float* as_floats(const float* block, std::vector<float>&) { return block; }

template <typename T>
const float* as_floats(const T* block, std::vector<float>& room) {
    for (size_t at = 0; at < room.size(); at++) room[at] = wide(block[at]);
    return room.data();
}

template <typename T>
void attend(const Attention& a, const Task& task, Room& room) {
    const int64_t group = a.heads / a.kv_heads, queries = task.count * group, dim = a.head_dim, size = a.block_size;
    const int64_t length = a.step->lengths[task.row], start = a.step->starts[task.row];
    const int64_t before = length - (a.step->starts[task.row + 1] - start) + task.first;  // position of the first query
    const int64_t end = before + task.count;
    const int64_t begin = a.window ? std::max<int64_t>(0, before - a.window + 1) : 0;
    room.fit(queries, a);
    for (int64_t at = 0; at < queries; at++) {
        const int64_t token = start + task.first + at / group, head = task.head * group + at % group;
        const float* from = a.query + token * a.query_stride + head * dim;
        for (int64_t d = 0; d < dim; d++) room.query[at * dim + d] = from[d] * a.scale;
        if (a.sinks != nullptr) room.most[at] = a.sinks[head], room.total[at] = 1.0f;
    }
    const int64_t span = std::max<int64_t>(1, CHUNK / size);
    const T* keys = static_cast<const T*>(a.keys) + task.head * a.num_blocks * size * dim;
    const T* values = static_cast<const T*>(a.values) + task.head * a.num_blocks * size * dim;
    const int32_t* table = a.step->table + task.row * a.step->table_width;
    for (int64_t low = begin / size; low * size < end; low += span) {
        const int64_t high = std::min(low + span, (end + size - 1) / size), width = (high - low) * size;
        for (int64_t block = low; block < high; block++)
            score_block(room.query.data(), as_floats(keys + table[block] * size * dim, room.keys), queries, a,
                        room.scores.data() + (block - low) * size);
        for (int64_t at = 0; at < queries; at++) {
            float* scores = room.scores.data() + at * CHUNK;
            const int64_t position = before + at / group;
            const int64_t first = a.window ? std::max<int64_t>(0, position - a.window + 1) : 0;
            if (a.softcap > 0) cap(scores, width, a.softcap);
            for (int64_t hidden = 0; hidden < std::min(width, first - low * size); hidden++) scores[hidden] = HIDDEN;
            for (int64_t hidden = std::max<int64_t>(0, position + 1 - low * size); hidden < width; hidden++)
                scores[hidden] = HIDDEN;
            const float factor = soften(scores, width, room.most[at], room.total[at]);
            if (factor != 1.0f)
                for (int64_t d = 0; d < dim; d++) room.out[at * dim + d] *= factor;
        }
        for (int64_t block = low; block < high; block++) {
            const int64_t from = std::max<int64_t>(0, begin - block * size), to = std::min(size, end - block * size);
            mix_block(room.scores.data() + (block - low) * size + from,
                      as_floats(values + table[block] * size * dim, room.values) + from * dim, queries, to - from, dim,
                      room.out.data());
        }
    }
    for (int64_t at = 0; at < queries; at++) {
        const int64_t token = start + task.first + at / group, head = task.head * group + at % group;
        float* to = a.out + (token * a.heads + head) * dim;
        for (int64_t d = 0; d < dim; d++) to[d] = room.out[at * dim + d] / room.total[at];
    }
}

template <typename T>
void write(const Attention& a, int64_t token) {
    const int64_t slot = a.step->slots[token], size = a.block_size, dim = a.head_dim;
    if (slot < 0) return;
    for (int64_t head = 0; head < a.kv_heads; head++) {
        const int64_t block = (head * a.num_blocks + slot / size) * size * dim;
        T* keys = static_cast<T*>(a.keys) + block + slot % size;
        T* values = static_cast<T*>(a.values) + block + slot % size * dim;
        for (int64_t d = 0; d < dim; d++) {
            narrow(a.key[token * a.key_stride + head * dim + d], keys[d * size]);
            narrow(a.value[token * a.value_stride + head * dim + d], values[d]);
        }
    }
}

// Long tiles first, so that no thread is left with one at the end.
void list_tasks(const Attention& a, std::vector<Task>& tasks) {
    tasks.clear();
    for (int64_t row = 0; row < a.step->rows; row++) {
        const int64_t count = a.step->lengths[row] ? a.step->starts[row + 1] - a.step->starts[row] : 0;
        for (int64_t first = (count - 1) / TILE * TILE; count && first >= 0; first -= TILE)
            for (int64_t head = 0; head < a.kv_heads; head++)
                tasks.push_back({row, head, first, std::min(TILE, count - first)});
    }
}

template <typename T>
void run(const Attention& a, const Team& team) {
    static thread_local Room room;
    static thread_local std::vector<Task> tasks;
    if (a.key != nullptr) {
        for (int64_t token = team.first(a.step->tokens); token < team.last(a.step->tokens); token++) write<T>(a, token);
        team.meet();
    }
    if (a.out == nullptr) return;
    list_tasks(a, tasks);
    const int64_t count = tasks.size();
    for (int64_t at = team.take(1); at < count; at = team.take(1)) attend<T>(a, tasks[at], room);
    team.meet();
}

}  // namespace

// Writes keys and values where there are any, then attends where there is an `out`. Tokens of no row are left alone.
void run_attention(const Attention& a, const Team& team) {
    if (a.dtype == 0)
        run<float>(a, team);
    else if (a.dtype == 1)
        run<Brain>(a, team);
    else
        run<_Float16>(a, team);
}
