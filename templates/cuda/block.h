// Numbers as they lie in memory, and what the threads of a block do together.
struct bf16 {
  unsigned short bits;
};
struct fp16 {
  unsigned short bits;
};

FN float of_bf16(unsigned short x) { union { unsigned u; float f; } b; b.u = (unsigned)x << 16; return b.f; }

FN unsigned short to_bf16(float x) {
  union { unsigned u; float f; } b;
  b.f = x;
  return x != x ? 0x7fff : (unsigned short)((b.u + 0x7fff + (b.u >> 16 & 1)) >> 16);
}

FN real get(const float *p, long long i) { return (real)p[i]; }
FN real get(const double *p, long long i) { return (real)p[i]; }
FN real get(const bf16 *p, long long i) { return (real)of_bf16(p[i].bits); }
FN real get(const fp16 *p, long long i) { return (real)of_half(p[i].bits); }
FN cplx get(const cplx *p, long long i) { return p[i]; }
FN int get(const unsigned char *p, long long i) { return p[i]; }
FN void put(float *p, long long i, real x) { p[i] = (float)x; }
FN void put(double *p, long long i, real x) { p[i] = (double)x; }
FN void put(bf16 *p, long long i, real x) { p[i].bits = to_bf16((float)x); }
FN void put(fp16 *p, long long i, real x) { p[i].bits = to_half((float)x); }
FN void put(cplx *p, long long i, cplx x) { p[i] = x; }
FN void put(unsigned char *p, long long i, int x) { p[i] = (unsigned char)x; }

FN real fused(real a, real b, real c) {
#ifdef DOUBLE
  return fma(a, b, c);
#else
  return fmaf(a, b, c);
#endif
}
struct __align__(16) four {
  real x[4];
};
FN real fused(const four &a, const four &b, real c) {
  return fused(a.x[3], b.x[3], fused(a.x[2], b.x[2], fused(a.x[1], b.x[1], fused(a.x[0], b.x[0], c))));
}
FN void clear(real &x) { x = 0; }
FN void clear(cplx &x) { x.re = x.im = 0; }
FN real plus(real x, real y) { return x + y; }
FN cplx plus(cplx x, cplx y) { x.re += y.re, x.im += y.im; return x; }

// The sum, or another, over the lanes of a warp: the same in all of them.
FN real over_lanes(real x, int op) {
  for (int lanes = 16; lanes; lanes /= 2) {
    const real y = lane_other(x, lanes);
    x = op == 0 ? x + y : op == 1 ? (x > y || x != x ? x : y) : (x < y || x != x ? x : y);
  }
  return x;
}
FN cplx over_lanes(cplx x, int op) { x.re = over_lanes(x.re, op), x.im = over_lanes(x.im, op); return x; }

#if LOW
// Two neighbours of a row of a matrix, and two of a vector; zero beyond the end.
FN unsigned of_matrix(const ELEMENT *w, int u, int k, int n, int depth, int out, int in) {
  const unsigned a = u < n && k < depth ? w[(long long)u * out + k * in].bits : 0;
  const unsigned b = u < n && k + 1 < depth ? w[(long long)u * out + (k + 1) * in].bits : 0;
  return a | b << 16;
}
FN unsigned of_vector(const real *x, int k, int depth) {
  return low_pair(k < depth ? (float)x[k] : 0, k + 1 < depth ? (float)x[k + 1] : 0);
}
FN void of_copy(unsigned *a, const ELEMENT *w, int u, int k, int pitch) {
  const ELEMENT *const low = w + u * pitch + k, *const high = low + 8 * pitch;
  a[0] = *(const unsigned *)low, a[1] = *(const unsigned *)high;
  a[2] = *(const unsigned *)(low + 8), a[3] = *(const unsigned *)(high + 8);
}
FN void of_tile(unsigned *a, const ELEMENT *w, int u, int k, int n, int depth, int out, int in) {
  a[0] = of_matrix(w, u, k, n, depth, out, in), a[1] = of_matrix(w, u + 8, k, n, depth, out, in);
  a[2] = of_matrix(w, u, k + 8, n, depth, out, in), a[3] = of_matrix(w, u + 8, k + 8, n, depth, out, in);
}
#endif
