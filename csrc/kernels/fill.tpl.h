/* Copy terms [term, term + n) of each pixel into the panel, whose tiles are [terms / L][MR][L]: a
 * pixel's terms lie L in a row, then MR * L further on. A null source writes zeros (padding). */
static void CK_FN(fill)(const struct ck_fill_args *f) {
  const int64_t step = (int64_t)VF_GEMM_ROWS * VF_LANES;
  const int64_t lane = f->term % VF_LANES;
  const int64_t head = lane ? ck_min(VF_LANES - lane, f->n) : 0;
  const vf_tail first = vf_first(head), last = vf_first((f->n - head) % VF_LANES);
  const bool zero = !f->src;

  for (int64_t p = 0; p < f->pixels; ++p) {
    real *to = (real *)f->panel + f->offset[p] + f->term / VF_LANES * step;
    const real *from = zero ? NULL : (const real *)f->src + p * f->src_step;
    int64_t left = f->n;
    if (head) {
      vf_store_n(to + lane, first, zero ? vf_zero() : vf_load_n(from, first));
      if (!zero) from += head;
      left -= head;
      to += step;
    }
    for (; left >= VF_LANES; left -= VF_LANES, to += step) {
      vf_store(to, zero ? vf_zero() : vf_load(from));
      if (!zero) from += VF_LANES;
    }
    if (left) vf_store_n(to, last, zero ? vf_zero() : vf_load_n(from, last));
  }
}
