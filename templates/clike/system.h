// The y with a y = b, in place of b: elimination with partial pivoting. A singular matrix gives infinities or NaN.
static void solve(real *a, real *b, long n) {
  for (long k = 0; k < n; ++k) {
    long best = k;
    for (long i = k + 1; i < n; ++i)
      if (r_abs(a[i * n + k]) > r_abs(a[best * n + k])) best = i;
    for (long j = k; best != k && j < n; ++j) {
      const real x = a[k * n + j];
      a[k * n + j] = a[best * n + j];
      a[best * n + j] = x;
    }
    const real x = b[k];
    b[k] = b[best];
    b[best] = x;
    for (long i = k + 1; i < n; ++i) {
      const real factor = a[i * n + k] / a[k * n + k];
      for (long j = k + 1; j < n; ++j) a[i * n + j] -= factor * a[k * n + j];
      b[i] -= factor * b[k];
    }
  }
  for (long i = n; i-- > 0;) {
    for (long j = i + 1; j < n; ++j) b[i] -= a[i * n + j] * b[j];
    b[i] /= a[i * n + i];
  }
}
