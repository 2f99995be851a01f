// Products of at most eight rows with a weight of codes, read as `backends/triton/words.py` stores them: x[M, K] times
// weight[N, K] transposed, bound by reading the weight once.
//
// A block of threads makes sixteen output features. Its warps share K, a block of codes at a time, and add up what they
// have at the end, so that no block waits for another. A thread's sixteen bytes of words are what it gives to the matrix
// instruction (PTX ISA, "Matrix Fragments for mma.m16n8k16"); no code passes through memory that threads share. The first
// of them are on their way before the kernel in front has finished.
//
// Compiled with these macros:
//   KIND    0 int4, 1 int8, 2 float8_e4m3fn, 3 e2m1 (the kinds of `backends/triton/codes.py`)
//   GROUPS  scales to a block and row: 1, 2, 4; 0: one float32 a row, for all of K
//   BLOCKS_EACH  blocks that one such word serves
//   ZEROS   0 none, 1 whole numbers, 2 what is added to values instead (without groups: subtracted from codes)
//   BFLOAT  whether scales and zeros are bfloat16, not float16
//   TAKEN   what is subtracted from what a code is read as, a whole number
//   BIAS    whether there is one
//   WARPS, DEPTH  of a block, and blocks of codes that a warp has under way
//   AHEAD   whether the rest of a block's words is fetched to the second-level cache meanwhile
//   EVEN    whether K is a multiple of a block

typedef unsigned int u32;
typedef unsigned short u16;
typedef unsigned long long u64;

#define PLANES (KIND == 1 || KIND == 2 ? 2 : 4)
#define BLOCK (32 * PLANES)
#define FEATURES 16

#if GROUPS == 4
typedef u64 Shorts;
#else
typedef u32 Shorts;
#endif

// A weight is read once: it may leave the caches at once.
__device__ __forceinline__ uint4 load_words(const uint4* p) {
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate.L2::256B.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(p));
  return v;
}

// A step of sixteen rows: 512 bytes.
__device__ __forceinline__ void fetch(const uint4* p) {
  asm volatile("cp.async.bulk.prefetch.L2.global [%0], 512;" ::"l"(p) : "memory");
}

__device__ __forceinline__ Shorts load_shorts(const Shorts* p) {
  Shorts v;
#if GROUPS == 4
  asm volatile("ld.global.nc.u64 %0, [%1];" : "=l"(v) : "l"(p));
#else
  asm volatile("ld.global.nc.u32 %0, [%1];" : "=r"(v) : "l"(p));
#endif
  return v;
}

__device__ __forceinline__ float as_float(u16 bits) {
  float v;
#if BFLOAT
  v = __uint_as_float((u32)bits << 16);
#else
  asm("cvt.f32.f16 %0, %1;" : "=f"(v) : "h"(bits));
#endif
  return v;
}

__device__ __forceinline__ float number(Shorts word, int group) { return as_float((u16)(word >> (16 * group))); }

// The same bfloat16 in both halves.
__device__ __forceinline__ u32 twice(float v) {
  u32 pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %1;" : "=r"(pair) : "f"(v));
  return pair;
}

__device__ __forceinline__ u32 select_or(u32 a, u32 mask, u32 bits) {
  u32 v;
  asm("lop3.b32 %0, %1, %2, %3, 0xEA;" : "=r"(v) : "r"(a), "r"(mask), "r"(bits));
  return v;
}

__device__ __forceinline__ u32 subtract(u32 a, u32 b) {
  u32 v;
  asm("sub.rn.bf16x2 %0, %1, %2;" : "=r"(v) : "r"(a), "r"(b));
  return v;
}

__device__ __forceinline__ u32 multiply(u32 a, u32 b) {
  u32 v;
  asm("mul.rn.bf16x2 %0, %1, %2;" : "=r"(v) : "r"(a), "r"(b));
  return v;
}

__device__ __forceinline__ u32 multiply_add(u32 a, u32 b, u32 c) {
  u32 v;
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(v) : "r"(a), "r"(b), "r"(c));
  return v;
}

// Two codes of a plane as bfloat16, plus what `codes.offset` says.
template <int PLANE>
__device__ __forceinline__ u32 read(u32 word) {
#if KIND == 0
  return select_or(word >> (4 * PLANE), 0x000F000F, 0x43004300);
#elif KIND == 1
  u32 code = word >> (8 * PLANE);
  return subtract(select_or(code, 0x007F007F, 0x43004300), select_or(~code, 0x00800080, 0x43004300));
#elif KIND == 2
  u32 magnitude = (PLANE ? word >> 4 : word << 4) & 0x07F007F0;
  return multiply(select_or(PLANE ? word : word << 8, 0x80008000, magnitude), 0x7B807B80);
#else
  u32 magnitude = (PLANE < 2 ? word << (6 - 4 * PLANE) : word >> (4 * PLANE - 6)) & 0x01C001C0;
  return multiply(select_or(word << (12 - 4 * PLANE), 0x80008000, magnitude), 0x7E807E80);
#endif
}

__device__ __forceinline__ void add_product(float (&sum)[4], const u32 (&w)[4], u32 low, u32 high) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(w[0]), "r"(w[1]), "r"(w[2]), "r"(w[3]), "r"(low), "r"(high));
}

// What a thread holds of a block of codes: of two steps of sixteen features a plane, and of two rows.
struct Held {
  uint4 words[2];
#if GROUPS
  Shorts scale[2];
#endif
#if ZEROS
  Shorts zero[2];
#endif
};

struct Place {
  const uint4* words;
  const Shorts *scales, *zeros;
  int width;

  __device__ __forceinline__ void take(Held& held, int block) const {
    held.words[0] = load_words(words + (long long)block * 256);
    held.words[1] = load_words(words + (long long)block * 256 + 128);
    const long long group = (long long)(block / BLOCKS_EACH) * width;
#if GROUPS
    held.scale[0] = load_shorts(scales + group);
    held.scale[1] = load_shorts(scales + group + 8);
#endif
#if ZEROS
    held.zero[0] = load_shorts(zeros + group);
    held.zero[1] = load_shorts(zeros + group + 8);
#endif
  }
};

// A pair of x's features; past the last there are zeros. Not by way of the read-only cache: x may be younger than the
// kernel.
__device__ __forceinline__ u32 load_pair(const u16* x, int k, int K, bool row) {
  return row && (EVEN || k < K) ? *(const u32*)(x + k) : 0;
}

template <int PLANE>
__device__ __forceinline__ void plane(float (&sum)[4], const Held& held, const u16* x, bool inside, int first, int K) {
#pragma unroll
  for (int step = 0; step < 2; step++) {
    u32 w[4] = {held.words[step].x, held.words[step].y, held.words[step].z, held.words[step].w};
#pragma unroll
    for (int i = 0; i < 4; i++) {
      w[i] = read<PLANE>(w[i]);
#if ZEROS == 1
      const int of = GROUPS ? PLANE * GROUPS / PLANES : 0;
      w[i] = subtract(w[i], twice(number(held.zero[i & 1], of) + TAKEN));
#elif TAKEN != 0
      w[i] = subtract(w[i], twice(TAKEN));
#endif
#if ZEROS == 2 && GROUPS
      const int group = PLANE * GROUPS / PLANES;
      w[i] = multiply_add(w[i], twice(number(held.scale[i & 1], group)), twice(number(held.zero[i & 1], group)));
#elif ZEROS == 2
      w[i] = subtract(w[i], twice(number(held.zero[i & 1], 0)));
#endif
    }
    const int k = first + PLANE * 32 + step * 16;
    add_product(sum, w, load_pair(x, k, K, inside), load_pair(x, k + 8, K, inside));
  }
}

// Sums of codes times the scale of their group.
__device__ __forceinline__ void scaled(float (&sum)[4], float (&part)[4], const Held& held, int group) {
#if GROUPS && ZEROS != 2
  const float scale[2] = {number(held.scale[0], group), number(held.scale[1], group)};
#pragma unroll
  for (int i = 0; i < 4; i++) {
    sum[i] += scale[i >> 1] * part[i];
    part[i] = 0;
  }
#endif
}

// Two blocks to a processor: with the registers that the compiler takes when left alone one of sixteen warps fills it,
// and its first words and last sums, with nobody to hide them, are a third of the time.
extern "C" __global__ void __launch_bounds__(WARPS * 32, 2) few_rows(
    const u16* x, const uint4* words, const void* scales, const Shorts* zeros, const u16* bias, u16* out, int num_rows,
    int N, int K, int x_stride, int blocks, int width) {
  asm volatile("griddepcontrol.launch_dependents;");
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, part = blockIdx.x;
  const int row = lane >> 2, pair = lane & 3, n = part * FEATURES + row;
  const Place place = {
      words + (long long)(part >> 2) * blocks * 256 + (part & 3) * 32 + lane, (const Shorts*)scales + n, zeros + n,
      width};
  Held held[DEPTH];
#pragma unroll
  for (int i = 0; i < DEPTH; i++)
    if (warp + i * WARPS < blocks) place.take(held[i], warp + i * WARPS);
#if AHEAD
  for (int step = 2 * WARPS * DEPTH + threadIdx.x; step < 2 * blocks; step += WARPS * 32)
    fetch(place.words - lane + step * 128ll);
#endif
  asm volatile("griddepcontrol.wait;" ::: "memory");

  x += (long long)row * x_stride + pair * 2;
  const bool inside = row < num_rows;
  float sum[4] = {}, unscaled[4] = {};
#if GROUPS && ZEROS != 2
  float(&into)[4] = unscaled;
#else
  float(&into)[4] = sum;
#endif
  for (int first = warp; first < blocks; first += WARPS * DEPTH) {
#pragma unroll
    for (int i = 0; i < DEPTH; i++) {
      const int block = first + i * WARPS;
      if (block >= blocks) break;
      const Held& now = held[i];
      const int at = block * BLOCK, last = K - 2 * pair;
      plane<0>(into, now, x, inside, at, last);
      if (GROUPS == PLANES) scaled(sum, unscaled, now, 0);
      plane<1>(into, now, x, inside, at, last);
#if PLANES == 4
      if (GROUPS > 1) scaled(sum, unscaled, now, GROUPS == 4 ? 1 : 0);
      plane<2>(into, now, x, inside, at, last);
      if (GROUPS == 4) scaled(sum, unscaled, now, 2);
      plane<3>(into, now, x, inside, at, last);
#endif
      scaled(sum, unscaled, now, GROUPS - 1);
      if (block + WARPS * DEPTH < blocks) place.take(held[i], block + WARPS * DEPTH);
    }
  }

  // Added up in the order of warps. Lines of 20 keep what a warp stores at once in different banks.
  __shared__ float parts[WARPS][8][20];
#pragma unroll
  for (int i = 0; i < 4; i++) parts[warp][pair * 2 + (i & 1)][row + (i >> 1) * 8] = sum[i];
  __syncthreads();
  for (int i = threadIdx.x; i < num_rows * FEATURES; i += WARPS * 32) {
    const int m = i / FEATURES, f = i % FEATURES, where = part * FEATURES + f;
    if (where >= N) continue;
    float value = 0;
#pragma unroll
    for (int of = 0; of < WARPS; of++) value += parts[of][m][f];
#if GROUPS == 0
    value *= ((const float*)scales)[where];
#endif
#if BIAS
    value += __uint_as_float((u32)bias[where] << 16);
#endif
    u16 rounded;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(rounded) : "f"(value));
    out[(long long)m * N + where] = rounded;
  }
}
