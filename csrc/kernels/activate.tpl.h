/* The activations that are not a clamp, over rows that are still in L1. NaN stays NaN.
 *
 *   hardsigmoid  clip(x + 3, 0, 6) / 6         hardswish  x * hardsigmoid(x)
 *   sigmoid      1 / (1 + exp(-x))             silu       x / (1 + exp(-x))
 */

/* exp(x) = 2^n exp(r), |r| <= ln 2 / 2, by the Taylor series of exp(r): the first term left out is
 * below half an ulp. 2^n is applied in two factors, so that results overflow to infinity and
 * underflow to zero as they should. Coefficients 1/n!; ln 2 is split so that n * CK_LN2_HIGH is
 * exact (Cody and Waite). */
#if CK_REAL_BITS == 32
enum { EXP_TERMS = 8 };
#define CK_EXP_LIMIT 104.0f
#define CK_LN2_HIGH 0.693359375f
#define CK_LN2_LOW -2.12194440e-4f
#else
enum { EXP_TERMS = 14 };
#define CK_EXP_LIMIT 746.0
#define CK_LN2_HIGH 6.93145751953125e-1
#define CK_LN2_LOW 1.42860682030941723212e-6
#endif

CK_INLINE vf vf_round(vf x) {
  const vf magic = vf_set1(CK_ROUND_MAGIC);
  return vf_sub(vf_add(x, magic), magic);
}

CK_INLINE vf vf_exp(vf x) {
  static const double inverse_factorial[] = {1.0,
                                             1.0,
                                             1.0 / 2,
                                             1.0 / 6,
                                             1.0 / 24,
                                             1.0 / 120,
                                             1.0 / 720,
                                             1.0 / 5040,
                                             1.0 / 40320,
                                             1.0 / 362880,
                                             1.0 / 3628800,
                                             1.0 / 39916800,
                                             1.0 / 479001600,
                                             1.0 / 6227020800};
  x = vf_min(vf_set1(CK_EXP_LIMIT), vf_max(vf_set1(-CK_EXP_LIMIT), x));
  const vf n = vf_round(vf_mul(x, vf_set1((real)1.44269504088896340736)));
  const vf r = vf_sub(vf_sub(x, vf_mul(n, vf_set1(CK_LN2_HIGH))), vf_mul(n, vf_set1(CK_LN2_LOW)));
  vf y = vf_set1((real)inverse_factorial[EXP_TERMS - 1]);
  CK_UNROLL
  for (int i = EXP_TERMS - 2; i >= 0; --i) y = vf_fma(y, r, vf_set1((real)inverse_factorial[i]));
  const vf half = vf_round(vf_mul(n, vf_set1((real)0.5)));
  return vf_mul(vf_mul(y, vf_pow2(half)), vf_pow2(vf_sub(n, half)));
}

CK_INLINE vf vf_activate(vf x, const ck_act_kind kind) {
  const vf one = vf_set1(1);
  switch (kind) {
    case CK_ACT_HARDSWISH:
    case CK_ACT_HARDSIGMOID: {
      const vf shifted = vf_min(vf_set1(6), vf_max(vf_zero(), vf_add(x, vf_set1(3))));
      const vf y = vf_div(shifted, vf_set1(6));
      return kind == CK_ACT_HARDSWISH ? vf_mul(x, y) : y;
    }
    case CK_ACT_SIGMOID:
    case CK_ACT_SILU: {
      const vf e = vf_exp(vf_sub(vf_zero(), x));
      return vf_div(kind == CK_ACT_SILU ? x : one, vf_add(one, e));
    }
    default: return x;
  }
}

CK_INLINE void activate_rows(const struct ck_act_args *a, const ck_act_kind kind) {
  for (int64_t r = 0; r < a->rows; ++r) {
    real *y = (real *)a->y + r * a->step;
    int64_t left = a->columns;
    for (; left >= VF_LANES; left -= VF_LANES, y += VF_LANES)
      vf_store(y, vf_activate(vf_load(y), kind));
    if (left) vf_store_n(y, vf_first(left), vf_activate(vf_load_n(y, vf_first(left)), kind));
  }
}

void CK_FN(activate)(const struct ck_act_args *a) {
  switch (a->kind) {
    case CK_ACT_HARDSWISH: activate_rows(a, CK_ACT_HARDSWISH); break;
    case CK_ACT_HARDSIGMOID: activate_rows(a, CK_ACT_HARDSIGMOID); break;
    case CK_ACT_SIGMOID: activate_rows(a, CK_ACT_SIGMOID); break;
    case CK_ACT_SILU: activate_rows(a, CK_ACT_SILU); break;
    case CK_ACT_CLAMP: break;
  }
}

/* A residual onto elements that are still in L1. */
void CK_FN(add_clamp)(const struct ck_add_args *a) {
  const vf low = vf_set1((real)a->low), high = vf_set1((real)a->high);
  real *y = a->y;
  const real *residual = a->residual;
  for (int64_t i = 0; i < a->n; i += VF_LANES) {
    const bool full = i + VF_LANES <= a->n;
    const vf_tail tail = vf_first(a->n - i);
    const vf sum =
        vf_add(vf_load_either(y + i, full, tail), vf_load_either(residual + i, full, tail));
    vf_store_either(y + i, full, tail, vf_min(high, vf_max(low, sum)));
  }
}
