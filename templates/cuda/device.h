// What a chip does that C++ has no word for. No includes: NVRTC needs none.
#define FN static __device__ __forceinline__
#define DYNAMIC extern __shared__ __align__(16) char b_shared[]
#define INF __longlong_as_double(0x7ff0000000000000LL)

FN float of_half(unsigned short x) { float y; asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x)); return y; }

FN unsigned short to_half(float x) { unsigned short y; asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y) : "f"(x)); return y; }

// Two numbers as 16-bit ones, the first in the lower half.
FN unsigned low_pair(float a, float b) {
  unsigned y;
#ifdef HALF
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(b), "f"(a));
#else
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(b), "f"(a));
#endif
  return y;
}

FN real lane_other(real x, int lanes) { return __shfl_xor_sync(0xffffffffu, x, lanes); }

FN void soon(const void *p) { asm volatile("prefetch.global.L2 [%0];" ::"l"(p)); }

// c += a * b: a 16 by 16, b 16 by 8, as the lanes of a warp hold them.
#ifdef HALF
#define MMA "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
#else
#define MMA "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
#endif
FN void mma(float *c, const unsigned *a, unsigned b0, unsigned b1) {
  asm volatile(MMA "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
