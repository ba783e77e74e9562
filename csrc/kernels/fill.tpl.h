/* Copy terms [term, term + n) of each pixel into the panel, whose tiles are [terms / L][MR][L]: a
 * pixel's terms lie L in a row, then MR * L further on. A null source writes zeros (padding).
 *
 * A pixel is a head up to the next whole vector of the panel, whole vectors, and a tail. */
CK_INLINE void fill_pixels(const struct ck_fill_args *f, const bool zero) {
  const int64_t step = (int64_t)VF_GEMM_ROWS * VF_LANES;
  const int64_t lane = f->term % VF_LANES, src_step = zero ? 0 : f->src_step;
  const int64_t head = lane ? ck_min(VF_LANES - lane, f->n) : 0;
  const int64_t whole = (f->n - head) / VF_LANES, rest = (f->n - head) % VF_LANES;
  const vf_tail first = vf_first(head), last = vf_first(rest);
  const real *src = zero ? ck_padding : f->src;
  real *panel = (real *)f->panel + f->term / VF_LANES * step;
  const int64_t *offset = f->offset, *end = offset + f->pixels;

  for (; offset < end; ++offset, src += src_step) {
    real *to = panel + *offset;
    const real *from = src;
    if (head) {
      vf_store_n(to + lane, first, vf_load_n(from, first));
      from += zero ? 0 : head;
      to += step;
    }
    for (int64_t i = whole; i > 0; --i, to += step) {
      vf_store(to, vf_load(from));
      from += zero ? 0 : VF_LANES;
    }
    if (rest) vf_store_n(to, last, vf_load_n(from, last));
  }
}

void CK_FN(fill)(const struct ck_fill_args *f) {
  if (f->src)
    fill_pixels(f, false);
  else
    fill_pixels(f, true);
}
