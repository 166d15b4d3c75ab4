// Functions of complex numbers, for `cplx`, a struct of `real re, im`. Branches are PyTorch's. What would overflow on
// the way to a number that does not is scaled.

FN cplx c_make(real re, real im) { cplx z; z.re = re; z.im = im; return z; }

FN int c_eq(cplx x, cplx y) { return x.re == y.re && x.im == y.im; }

FN cplx c_add(cplx x, cplx y) { return c_make(x.re + y.re, x.im + y.im); }

FN cplx c_sub(cplx x, cplx y) { return c_make(x.re - y.re, x.im - y.im); }

FN cplx c_mul(cplx x, cplx y) { return c_make(x.re * y.re - x.im * y.im, x.re * y.im + x.im * y.re); }

FN cplx c_scale(cplx x, real y) { return c_make(x.re * y, x.im * y); }

FN cplx c_conj(cplx x) { return c_make(x.re, -x.im); }

FN cplx c_square(cplx x) { return c_mul(x, x); }

FN int c_is_negative(real x) { return x < 0 || (x == 0 && 1 / x < 0); }

// Smith's: both parts of the divisor over its larger one.
FN cplx c_div(cplx x, cplx y) {
  const int swap = r_abs(y.re) < r_abs(y.im);
  const real large = swap ? y.im : y.re, small = swap ? y.re : y.im;
  const real a = swap ? x.im : x.re, b = swap ? x.re : x.im;
  const real ratio = large == 0 ? 0 : small / large, by = large + small * ratio;
  const real im = (b - a * ratio) / by;
  return c_make((a + b * ratio) / by, swap ? -im : im);
}

// The smaller over the larger of two sizes: 0 at the origin, 1 where both are infinite.
FN real c_ratio(cplx z) {
  const real x = r_abs(z.re), y = r_abs(z.im), size = r_max(x, y), least = r_min(x, y);
  return size > 0 ? (least == size ? 1 : least / size) : size;
}

FN real c_size(cplx z) { return r_max(r_abs(z.re), r_abs(z.im)); }

FN real c_abs(cplx z) {
  const real ratio = c_ratio(z);
  return c_size(z) * r_sqrt(1 + ratio * ratio);
}

FN cplx c_exp(cplx z) {
  // Two factors where one could overflow beside a small cosine; else one, whose rounding does not count twice.
  const real half = z.re > 80 ? r_min(z.re * (real)0.5, 350) : 0;
  const real size = r_exp(z.re - half), rest = r_exp(half);
  return c_make(size * r_cos(z.im) * rest, z.im == 0 ? z.im : size * r_sin(z.im) * rest);
}

FN real c_angle(cplx z) {
#ifdef DOUBLE
  return atan2(z.im, z.re);
#else
  return atan2f(z.im, z.re);
#endif
}

FN cplx c_log(cplx z) {
  const real size = c_size(z), ratio = c_ratio(z), least = ratio * size;
  // Near the unit circle the two terms could cancel, and close to 1 the distance from it decides.
  const int near_one = size > (real)0.5 && size < 2;
  const real beyond = near_one ? (size - 1) * (size + 1) + least * least : ratio * ratio;
  return c_make((near_one ? 0 : r_log(size)) + (real)0.5 * r_log1p(beyond), c_angle(z));
}

// The root with a part that is not negative, on the side of the sign of `im`, be it of a zero.
FN cplx c_sqrt(cplx z) {
  const real size = c_size(z), ratio = c_ratio(z), along = r_abs(z.re) < r_abs(z.im) ? ratio : 1;
  const real large = r_sqrt(size * ((real)0.25 * (along + r_sqrt(1 + ratio * ratio)))) * (real)1.4142135623730951;
  const real height = r_abs(z.im);
  const real small = height == 0 || height == (real)INF ? height : (real)0.5 * height / large;
  const real im = z.re < 0 ? large : small;
  return c_make(z.re < 0 ? small : large, c_is_negative(z.im) ? -im : im);
}

FN cplx c_rsqrt(cplx z) { return c_div(c_make(1, 0), c_sqrt(z)); }

// Half of the exponential, which itself would overflow first.
FN real c_cosh(real x) {
  const real root = r_exp(r_abs(x) * (real)0.5), half = (real)0.5 * root * root;
  return half + (real)0.25 / half;
}

FN real c_sinh(real x) {
  const real a = r_abs(x), root = r_exp(a * (real)0.5), half = (real)0.5 * root * root, e = r_expm1(a);
  const real y = a < 1 ? (real)0.5 * (e + e / (e + 1)) : half - (real)0.25 / half;
  return x < 0 ? -y : y;
}

FN cplx c_sin(cplx z) {
  const real c = r_cos(z.re), s = r_sin(z.re);
  return c_make(s == 0 ? s : s * c_cosh(z.im), c * c_sinh(z.im));
}

FN cplx c_cos(cplx z) {
  const real c = r_cos(z.re), s = r_sin(z.re);
  return c_make(c * c_cosh(z.im), s == 0 ? s : -s * c_sinh(z.im));
}

// Its quotient of hyperbolic functions, over cosh(re)**2: none of them overflows.
FN cplx c_tanh(cplx z) {
  const real c = r_cos(z.im), s = r_sin(z.im), e = r_exp(r_abs(z.re) * -2);
  const real rest = 4 * e / ((1 + e) * (1 + e)), t = r_tanh(z.re), by = t * t + c * c * rest;
  return c_make(t / by, s * c * rest / by);
}

// exp(to * log(z)); of 0, 1 to the power 0 and 0 to one on the right of the imaginary axis.
FN cplx c_pow(cplx z, cplx to) {
  if (to.re == 0 && to.im == 0) return c_make(1, 0);
  if (z.re == 0 && z.im == 0 && to.re > 0) return c_make(0, 0);
  return c_exp(c_mul(to, c_log(z)));
}
