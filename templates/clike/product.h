// Sums and products are rounded apart everywhere but here, where each is one operation. GCC 12 must not conclude from
// the tiles' text what they write: for one row of one number it drops it.
#ifdef __clang__
#define FUSED
#define FUSE _Pragma("clang fp contract(fast)")
#else
#define FUSED __attribute__((noipa, optimize("fp-contract=fast")))
#define FUSE
#endif
typedef real vec __attribute__((vector_size(BYTES), aligned(sizeof(real)), may_alias));

// A matrix of n columns and a depth, with any strides, in panels of [depth][LANES]; what is beyond is zero.
static void panels(const real *w, real *out, long n, long depth, long column, long row) {
  for (long p = 0; p < n; p += LANES)
    for (long k = 0; k < depth; ++k)
      for (long v = 0; v < LANES; ++v) *out++ = p + v < n ? w[(p + v) * column + k * row] : 0;
}

// M rows of `a` by V panels of LANES columns, kept in registers.
#define TILE(M, V)                                                                                       \
  FUSED static void tile_##M##_##V(const real *const *a, const real *w, real *c, long ld, long depth) { \
    FUSE vec sum[M][V] = {{{0}}};                                                                        \
    for (long k = 0; k < depth; ++k) {                                                                   \
      vec x[V];                                                                                          \
      _Pragma("GCC unroll 8") for (int v = 0; v < V; ++v)                                                \
        x[v] = *(const vec *)(w + (v * depth + k) * LANES);                                              \
      _Pragma("GCC unroll 8") for (int m = 0; m < M; ++m)                                                \
        _Pragma("GCC unroll 8") for (int v = 0; v < V; ++v) sum[m][v] += x[v] * a[m][k];                 \
    }                                                                                                    \
    for (int m = 0; m < M; ++m)                                                                          \
      for (int v = 0; v < V; ++v) *(vec *)(c + m * ld + v * LANES) = sum[m][v];                          \
  }
#if BYTES == 64
#define ROWS 8
TILE(8, 2)
TILE(8, 1)
#else
#define ROWS 4
TILE(4, 2)
#endif
TILE(4, 1)
TILE(1, 4)
TILE(1, 1)

// c[m] = sum over k of a[m][k] * w[k]; `w` in panels of [depth][LANES], `c` with `ld` numbers a row.
static void product(long rows, const real *const *a, const real *w, real *c, long ld, long depth, long panels) {
  long p = 0, m = 0;
  const long step = depth * LANES;
#if BYTES == 64
  for (p = 0; p + 2 <= panels; p += 2)
    for (m = 0; m + 8 <= rows; m += 8) tile_8_2(a + m, w + p * step, c + m * ld + p * LANES, ld, depth);
  for (; p < panels; ++p)
    for (m = 0; m + 8 <= rows; m += 8) tile_8_1(a + m, w + p * step, c + m * ld + p * LANES, ld, depth);
#else
  for (p = 0; p + 2 <= panels; p += 2)
    for (m = 0; m + 4 <= rows; m += 4) tile_4_2(a + m, w + p * step, c + m * ld + p * LANES, ld, depth);
  for (; p < panels; ++p)
    for (m = 0; m + 4 <= rows; m += 4) tile_4_1(a + m, w + p * step, c + m * ld + p * LANES, ld, depth);
#endif
  for (long r = rows / ROWS * ROWS; r < rows; r += rows - r >= 4 ? 4 : 1) {
    const int four = rows - r >= 4;
    for (p = 0; !four && p + 4 <= panels; p += 4) tile_1_4(a + r, w + p * step, c + r * ld + p * LANES, ld, depth);
    for (; p < panels; ++p) (four ? tile_4_1 : tile_1_1)(a + r, w + p * step, c + r * ld + p * LANES, ld, depth);
  }
}
