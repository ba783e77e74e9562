/* The FMA peak: as many independent chains as the registers hold, nothing else. A sum is its own
 * addend, because NEON's FMA overwrites that; it grows by about a hundredth. */
void CK_FN(probe_fma)(struct ck_probe_args *p) {
  enum { CHAINS = VF_REGISTERS == 32 ? 24 : 12 };
  const vf scale = vf_set1((real)1e-7);
  vf sum[CHAINS];
  CK_UNROLL
  for (int i = 0; i < CHAINS; ++i) sum[i] = vf_set1((real)(i + 1));
  CK_NO_UNROLL
  for (int64_t n = 0; n < p->iterations; ++n) {
    CK_UNROLL
    for (int i = 0; i < CHAINS; ++i) sum[i] = vf_fma(sum[i], scale, sum[i]);
  }
  CK_UNROLL
  for (int i = 1; i < CHAINS; ++i) sum[0] = vf_add(sum[0], sum[i]);
  real out[VF_LANES];
  vf_store(out, sum[0]);
  /* a fact about the sums that the compiler cannot know keeps the loop alive */
  p->flops = out[0] > 0 ? 2.0 * CHAINS * VF_LANES * (double)p->iterations : 0;
}
