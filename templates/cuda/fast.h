// Elementwise functions of float by the chip's own approximations, to about one part in 2**22; what numbers.h has is
// for double, and for hosts.

FN real r_exp(real x) {
  // What is rounded off the power of two comes back as a factor near 1.
  const float high = x * 1.44269504f, low = fmaf(x, 1.44269504f, -high) + x * 1.92596300e-8f;
  float y;
  asm("ex2.approx.f32 %0, %1;" : "=f"(y) : "f"(high));
  return fabsf(high) < 160.0f ? fmaf(y, low * 0.693147181f, y) : y;
}

FN real r_sigmoid(real x) { return __fdividef(1.0f, 1.0f + r_exp(-x)); }

FN real r_silu(real x) { return __fdividef(x, 1.0f + r_exp(-x)); }

FN real r_tanh(real x) {
  const float a = r_abs(x), z = x * x;
  const float tail = -0.0522118069f + z * 0.0156126331f;
  const float small = x + x * (z * (-0.333325975f + z * (0.133131167f + z * tail)));
  const float large = 1.0f - __fdividef(2.0f, 1.0f + r_exp(2.0f * a));
  return a < 0.6f ? small : x < 0 ? -large : large;
}
