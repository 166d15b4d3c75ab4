// A block of CUDA threads on a host: fibers that take turns, one until it waits. Order is the caller's choice, so that
// what a missing barrier allows does happen. `mma` goes by the fragments' layout in NVIDIA's PTX ISA, 9.7.14.5.8.
#define EMULATED
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

#define FN static inline
#define INF __builtin_inf()
#define DYNAMIC char *const b_shared = emulated_shared
#define __shared__ static
#define __global__
#define __align__(n) __attribute__((aligned(n)))
#define __launch_bounds__(...)

struct emulated_index {
  int x, y;
};
static emulated_index threadIdx, blockIdx, gridDim;
alignas(64) static char emulated_shared[1 << 18];

enum { RUNS, AT_BLOCK, AT_WARP, DONE };
static ucontext_t emulated_main, emulated_fibers[1024];
static int emulated_state[1024], emulated_count;
static char *emulated_stacks;
static const long emulated_stack = 1 << 17;
static void (*emulated_body)();
static unsigned emulated_lanes[32][32][8];

static void emulated_wait(int state) {
  const int me = threadIdx.x;
  emulated_state[me] = state;
  swapcontext(&emulated_fibers[me], &emulated_main);
}
static void __syncthreads() { emulated_wait(AT_BLOCK); }
static void emulated_warp() { emulated_wait(AT_WARP); }
static void emulated_enter() {
  emulated_body();
  emulated_state[threadIdx.x] = DONE;
  swapcontext(&emulated_fibers[threadIdx.x], &emulated_main);
}

// 1 where threads wait for each other in vain.
static int emulated_block(int threads, long order) {
  emulated_count = threads;
  for (int i = 0; i < threads; ++i) {
    getcontext(&emulated_fibers[i]);
    emulated_fibers[i].uc_stack.ss_sp = emulated_stacks + i * emulated_stack;
    emulated_fibers[i].uc_stack.ss_size = emulated_stack;
    emulated_fibers[i].uc_link = 0;
    makecontext(&emulated_fibers[i], emulated_enter, 0);
    emulated_state[i] = RUNS;
  }
  for (;;) {
    int moved = 0;
    for (int k = 0; k < threads; ++k) {
      const int i = order == 0 ? k : order == 1 ? threads - 1 - k : (int)((k * 7919L + order) % threads);
      if (emulated_state[i] != RUNS) continue;
      moved = 1;
      threadIdx.x = i;
      swapcontext(&emulated_main, &emulated_fibers[i]);
    }
    for (int w = 0; w < threads / 32; ++w) {
      int all = 1;
      for (int i = 32 * w; i < 32 * w + 32; ++i) all &= emulated_state[i] == AT_WARP;
      for (int i = 32 * w; all && i < 32 * w + 32; ++i) emulated_state[i] = RUNS, moved = 1;
    }
    int waiting = 0, done = 0;
    for (int i = 0; i < threads; ++i) waiting += emulated_state[i] == AT_BLOCK, done += emulated_state[i] == DONE;
    if (done == threads) return 0;
    if (waiting == threads)
      for (int i = 0; i < threads; ++i) emulated_state[i] = RUNS, moved = 1;
    if (!moved) return 1;
  }
}

static int emulated_grid(void (*body)(), int x, int y, int threads, int shared, long order) {
  emulated_body = body;
  emulated_stacks = (char *)malloc(threads * emulated_stack);
  gridDim.x = x, gridDim.y = y;
  int bad = shared > (int)sizeof emulated_shared;
  for (blockIdx.y = 0; blockIdx.y < y && !bad; ++blockIdx.y)
    for (blockIdx.x = 0; blockIdx.x < x && !bad; ++blockIdx.x) {
      memset(emulated_shared, 0xff, sizeof emulated_shared);
      bad = emulated_block(threads, order);
    }
  free(emulated_stacks);
  return bad;
}

// Numbers of 16 bits: 5 for the exponent in fp16, 8 in bf16. Rounded to the nearest, to even ones between two.
static float emulated_wide(unsigned short x, int bits) {
  const int kept = 15 - bits, exponent = x >> kept & ((1 << bits) - 1);
  const double part = x & ((1 << kept) - 1), sign = x >> 15 ? -1 : 1, scale = ldexp(1, -kept);
  if (exponent == (1 << bits) - 1) return part ? NAN : sign * INFINITY;
  const int least = 2 - (1 << (bits - 1));
  return sign * (exponent ? ldexp(1 + part * scale, exponent + least - 1) : ldexp(part * scale, least));
}
static unsigned short emulated_narrow(float x, int bits) {
  const int kept = 15 - bits, least = 2 - (1 << (bits - 1));
  const unsigned short sign = signbit(x) ? 0x8000 : 0, most = ((1 << bits) - 1) << kept;
  if (x != x) return 0x7fff;
  const double size = fabs((double)x);
  int exponent;
  frexp(size, &exponent);
  exponent = size == 0 || exponent - 1 < least ? least : exponent - 1;
  const double whole = nearbyint(ldexp(size, kept - exponent));
  const double code = whole + ldexp(exponent - least, kept);
  return sign | (code >= most ? most : (unsigned short)code);
}
static float of_half(unsigned short x) { return emulated_wide(x, 5); }
static unsigned short to_half(float x) { return emulated_narrow(x, 5); }
static float emulated_low(unsigned short x) { return emulated_wide(x, EMULATED_HALF ? 5 : 8); }
static unsigned short emulated_rounded(float x) { return emulated_narrow(x, EMULATED_HALF ? 5 : 8); }
static unsigned low_pair(float a, float b) { return emulated_rounded(a) | (unsigned)emulated_rounded(b) << 16; }

template <class T> static T lane_other(T x, int lanes) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  memcpy(emulated_lanes[warp][lane], &x, sizeof x);
  emulated_warp();
  T y;
  memcpy(&y, emulated_lanes[warp][lane ^ lanes], sizeof y);
  emulated_warp();
  return y;
}
static void soon(const void *) {}

static void mma(float *c, const unsigned *a, unsigned b0, unsigned b1) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  unsigned(*held)[8] = emulated_lanes[warp];
  memcpy(held[lane], a, 16);
  held[lane][4] = b0, held[lane][5] = b1;
  emulated_warp();
  for (int i = 0; i < 4; ++i) {
    const int row = lane / 4 + 8 * (i / 2), column = lane % 4 * 2 + i % 2;
    float sum = c[i];
    for (int k = 0; k < 16; ++k) {
      const int at = k % 8 / 2, shift = 16 * (k % 2);
      const unsigned x = held[row % 8 * 4 + at][row / 8 + 2 * (k / 8)], y = held[column * 4 + at][4 + k / 8];
      sum += emulated_low(x >> shift) * emulated_low(y >> shift);
    }
    c[i] = sum;
  }
  emulated_warp();
}
