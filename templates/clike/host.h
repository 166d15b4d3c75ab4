#include <math.h>
#include <stdlib.h>
#include <string.h>

#ifdef DOUBLE
typedef double real;
#else
typedef float real;
#endif
#if defined(__AVX512F__)
#define BYTES 64
#elif defined(__AVX__)
#define BYTES 32
#else
#define BYTES 16
#endif
#define LANES ((long)(BYTES / sizeof(real)))
#define PAD(n) (((n) + LANES - 1) / LANES * LANES)
#define INF ((double)HUGE_VAL)
#define FN static inline
#define SHARED __attribute__((visibility("default")))
// Numbers that are wanted soon; none need be there.
#define SOON(p, lo, hi) \
  for (long i_ = lo; i_ < (hi); i_ += 64 / (long)sizeof *(p)) __builtin_prefetch((p) + i_, 0, 2)
