/* Depthwise kernel_h x 1 over neighbouring pixels of NHWC rows: the first step of a spatially
 * separable convolution. The rows are read where they are, mostly from L2, and that is what takes
 * the time: so two rows of sums are made at once, which share most of theirs.
 *
 * Taps are summed top down, from zero on.
 */
enum { COLUMN_PIXELS = VF_REGISTERS >= 32 ? 8 : 4 };

/* L channels of neighbouring pixels on their way. */
struct CK_FN(column_group) {
  const struct ck_column_args *args;
  int64_t x, c;
  const real *weights;
  vf sum[2][COLUMN_PIXELS];
};

/* Add input rows [begin, end) to the first, the second or both rows of sums. */
CK_INLINE void column_rows(struct CK_FN(column_group) * g, int64_t begin, int64_t end,
                           const bool first, const bool second, const int pixels, const bool full) {
  const struct ck_column_args *d = g->args;
  const vf_tail tail = vf_first(d->channels - g->c);
  const real *w0 = g->weights + begin * VF_LANES, *w1 = w0 - (second ? d->shift * VF_LANES : 0);
  for (int64_t j = begin; j < end; ++j, w0 += VF_LANES, w1 += VF_LANES) {
    const real *in = d->rows[j];
    const int64_t step = in ? d->pixel_step : 0;
    in = in ? in + g->x * step + g->c : ck_padding;
    const vf a = first ? vf_load(w0) : vf_zero(), b = second ? vf_load(w1) : vf_zero();
    CK_UNROLL
    for (int p = 0; p < pixels; ++p) {
      const vf x = vf_load_either(in + p * step, full, tail);
      if (first) g->sum[0][p] = vf_fma(x, a, g->sum[0][p]);
      if (second) g->sum[1][p] = vf_fma(x, b, g->sum[1][p]);
    }
  }
}

CK_INLINE void column_pixels(const struct ck_column_args *d, int64_t x, int64_t c, const int pixels,
                             const bool two, const bool full) {
  const real *weights = (const real *)d->weights + c / VF_LANES * d->weights_step;
  struct CK_FN(column_group) g = {.args = d, .x = x, .c = c, .weights = weights};
  CK_UNROLL
  for (int p = 0; p < pixels; ++p) g.sum[0][p] = g.sum[1][p] = vf_zero();
  column_rows(&g, 0, two ? d->shift : d->kernel_h, true, false, pixels, full);
  if (two) {
    column_rows(&g, d->shift, d->kernel_h, true, true, pixels, full);
    column_rows(&g, d->kernel_h, d->kernel_h + d->shift, false, true, pixels, full);
  }
  real *out = (real *)d->out + x * d->out_step + c;
  CK_UNROLL
  for (int p = 0; p < pixels; ++p) {
    vf_store(out + p * d->out_step, g.sum[0][p]);
    if (two) vf_store(out + d->out_row + p * d->out_step, g.sum[1][p]);
  }
}

CK_INLINE void column_channels(const struct ck_column_args *d, int64_t x, const int pixels,
                               const bool two) {
  int64_t c = 0;
  for (; c + VF_LANES <= d->channels; c += VF_LANES) column_pixels(d, x, c, pixels, two, true);
  if (c < d->channels) column_pixels(d, x, c, pixels, two, false);
}

CK_INLINE void column_line(const struct ck_column_args *d, const bool two) {
  int64_t x = 0;
  for (; x + COLUMN_PIXELS <= d->pixels; x += COLUMN_PIXELS)
    column_channels(d, x, COLUMN_PIXELS, two);
  for (; x < d->pixels; ++x) column_channels(d, x, 1, two);
}

void CK_FN(dwconvKx1)(const struct ck_column_args *d) {
  if (d->shift)
    column_line(d, true);
  else
    column_line(d, false);
}
