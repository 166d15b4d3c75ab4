// Elementwise functions of `real`: double, by the C library, or float, by polynomials that compilers vectorise. A file
// that includes this, or that takes functions from it, defines `real`, `FN` (what stands before a function) and INF.

FN real r_of_bits(unsigned bits) { union { unsigned u; float f; } b; b.u = bits; return b.f; }

FN unsigned r_bits(float x) { union { unsigned u; float f; } b; b.f = x; return b.u; }

FN real r_square(real x) { return x * x; }

FN real r_cube(real x) { return x * x * x; }

FN real r_abs(real x) {
#ifdef DOUBLE
  return fabs(x);
#else
  return fabsf(x);
#endif
}

// 0 at NaN, as in PyTorch.
FN real r_sign(real x) { return (real)(x > 0) - (real)(x < 0); }

// NaN stays.
FN real r_relu(real x) { return x < 0 ? 0 : x; }

// NaN where either is.
FN real r_max(real x, real y) { return x > y || x != x ? x : y; }

FN real r_min(real x, real y) { return x < y || x != x ? x : y; }

FN real r_sqrt(real x) {
#ifdef DOUBLE
  return sqrt(x);
#else
  return sqrtf(x);
#endif
}

FN real r_rsqrt(real x) { return 1 / r_sqrt(x); }

// One operation where the chip has it. Only within functions: there it is the same wherever they are called.
FN real r_fused(real a, real b, real c) {
#if !defined(DOUBLE) && (defined(__FMA__) || defined(__ARM_FEATURE_FMA))
  return __builtin_fmaf(a, b, c);
#else
  return a * b + c;
#endif
}

FN real r_exp(real x) {
#ifdef DOUBLE
  return exp(x);
#else
  // The nearest whole number of powers of two, and the rest in two steps. Results below 2**-126 come out right by a
  // last factor of 2**-32.
  const int low = x < 0;
  const float at = x < -105.0f ? -105.0f : x, shift = low ? 12582944.0f : 12582912.0f;
  const float whole = r_fused(at, 1.44269504f, shift), n = (whole - shift);
  const float r = r_fused(n, 2.12194440e-4f, r_fused(n, -0.693359375f, at));
  float y = r_fused(r, 1.9875691500e-4f, 1.3981999507e-3f);
  y = r_fused(r, r_fused(r, y, 8.3334519073e-3f), 4.1665795894e-2f);
  y = r_fused(r, r_fused(r, y, 1.6666665459e-1f), 5.0000001201e-1f);
  y = 1.0f + r_fused(r * r, y, r);
  // The last bits of `whole` are those of the number.
  y = r_of_bits(r_bits(y) + (r_bits(whole) << 23)) * (low ? 2.3283064365386963e-10f : 1.0f);
  // At this one `y` may exceed 1, and its exponent the range: the true value rounds to infinity.
  return x >= 88.7228394f ? (float)INF : x == x ? y : x;
#endif
}

FN real r_log(real x) {
#ifdef DOUBLE
  return log(x);
#else
  const int tiny = x < 1.17549435e-38f;
  const unsigned bits = r_bits(tiny ? x * 16777216.0f : x) - 1060439283u;
  // The mantissa between sqrt(0.5) and sqrt(2), so that only x = 1 is close to a logarithm of 0.
  const int whole = (int)bits >> 23;
  const float a = r_of_bits(bits - ((unsigned)whole << 23) + 1060439283u) - 1.0f, z = a * a;
  const float n = (float)(tiny ? whole - 24 : whole);
  float y = -1.1514610310e-1f + a * 7.0376836292e-2f;
  y = -1.2420140846e-1f + a * (1.1676998740e-1f + a * y);
  y = -1.6668057665e-1f + a * (1.4249322787e-1f + a * y);
  y = -2.4999993993e-1f + a * (2.0000714765e-1f + a * y);
  y = a * z * (3.3333331174e-1f + a * y) - n * 2.12194440e-4f;
  y = (a + (y - 0.5f * z)) + n * 0.693359375f;
  y = x == 0 ? (float)-INF : x < 0 ? (float)(INF - INF) : y;
  return x == (float)INF || x != x ? x : y;
#endif
}

// log(1 + x) for -0.5 <= x <= 1: no logarithm, 2 atanh(x / (2 + x)).
FN real r_log1p_small(real x) {
#ifdef DOUBLE
  return log1p(x);
#else
  const float s = x / (2.0f + x), z = s * s;
  const float tail = 0.200108495f + z * (0.139995705f + z * 0.140122295f);
  return 2.0f * (s + s * (z * (0.333332066f + z * tail)));
#endif
}

FN real r_log1p(real x) {
#ifdef DOUBLE
  return log1p(x);
#else
  const float small = r_log1p_small(x), large = r_log(1.0f + x);
  return x >= -0.5f && x <= 1.0f ? small : large;
#endif
}

FN real r_expm1(real x) {
#ifdef DOUBLE
  return expm1(x);
#else
  float y = 0.00139961764f + x * 0.0001984981f;
  y = 0.0416653586f + x * (0.00833357903f + x * y);
  const float small = x + x * x * (0.500000039f + x * (0.16666664f + x * y)), large = r_exp(x) - 1.0f;
  return x > -0.5f && x < 0.5f ? small : large;
#endif
}

// e / (e + 2) with e = exp(2 |x|) - 1 = 2**n (exp(r) - 1) + 2**n - 1, which is good where it is small too.
FN real r_tanh(real x) {
#ifdef DOUBLE
  return tanh(x);
#else
  // From 9.02 on results round to 1.
  const float a = 2.0f * r_abs(x), at = a > 19.0f ? 19.0f : a;
  const float whole = r_fused(at, 1.44269504f, 12582912.0f), n = whole - 12582912.0f;
  const float r = r_fused(n, 2.12194440e-4f, r_fused(n, -0.693359375f, at));
  float y = r_fused(r, 1.9875691500e-4f, 1.3981999507e-3f);
  y = r_fused(r, r_fused(r, y, 8.3334519073e-3f), 4.1665795894e-2f);
  y = r_fused(r, r_fused(r, y, 1.6666665459e-1f), 5.0000001201e-1f);
  const float power = r_of_bits((r_bits(whole) << 23) + 0x3f800000u);
  const float e = r_fused(power, r_fused(r * r, y, r), power - 1.0f);
  return r_of_bits(r_bits(e / (e + 2.0f)) | (r_bits(x) & 0x80000000u));
#endif
}

FN real r_sin(real x) {
#ifdef DOUBLE
  return sin(x);
#else
  return sinf(x);
#endif
}

FN real r_cos(real x) {
#ifdef DOUBLE
  return cos(x);
#else
  return cosf(x);
#endif
}

FN real r_erf(real x) {
#ifdef DOUBLE
  return erf(x);
#else
  return erff(x);
#endif
}

FN real r_pow(real x, real y) {
#ifdef DOUBLE
  return pow(x, y);
#else
  return powf(x, y);
#endif
}

FN real r_power(real x, double y) { return (real)pow((double)x, y); }

FN real r_sigmoid(real x) { return 1 / (1 + r_exp(-x)); }

FN real r_silu(real x) { return x / (1 + r_exp(-x)); }

// The exact one.
FN real r_gelu(real x) { return (real)0.5 * x * (1 + r_erf(x * (real)0.7071067811865476)); }

FN real r_logsigmoid(real x) { return r_min(x, 0) - r_log1p_small(r_exp(-r_abs(x))); }

FN real r_softplus(real x) { return r_max(x, 0) + r_log1p_small(r_exp(-r_abs(x))); }

// Minus infinity where both are.
FN real r_logaddexp(real x, real y) {
  const real distance = x == y ? 0 : r_abs(x - y);
  return r_max(x, y) + r_log1p_small(r_exp(-distance));
}

FN double num_abs(double x) { return fabs(x); }

FN double num_sign(double x) { return (double)(x > 0) - (double)(x < 0); }

FN double num_max(double x, double y) { return x > y || x != x ? x : y; }

FN double num_min(double x, double y) { return x < y || x != x ? x : y; }

FN double num_square(double x) { return x * x; }

FN double num_sqrt(double x) { return sqrt(x); }

FN double num_rsqrt(double x) { return 1 / sqrt(x); }

FN double num_exp(double x) { return exp(x); }

FN double num_log(double x) { return log(x); }

FN double num_log1p(double x) { return log1p(x); }

FN double num_expm1(double x) { return expm1(x); }

FN double num_sin(double x) { return sin(x); }

FN double num_cos(double x) { return cos(x); }

FN double num_tanh(double x) { return tanh(x); }

FN double num_erf(double x) { return erf(x); }

FN double num_pow(double x, double y) { return pow(x, y); }

FN double num_relu(double x) { return x < 0 ? 0 : x; }

FN double num_sigmoid(double x) { return 1 / (1 + exp(-x)); }

FN double num_silu(double x) { return x / (1 + exp(-x)); }

FN double num_gelu(double x) { return 0.5 * x * (1 + erf(x * 0.7071067811865476)); }

FN double num_logsigmoid(double x) { return num_min(x, 0) - log1p(exp(-fabs(x))); }

FN double num_softplus(double x) { return num_max(x, 0) + log1p(exp(-fabs(x))); }

FN double num_logaddexp(double x, double y) { return num_max(x, y) + log1p(exp(-(x == y ? 0 : fabs(x - y)))); }
