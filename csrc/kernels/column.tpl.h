/* Depthwise kernel_h x 1 over neighbouring pixels of NHWC rows: the first step of a spatially
 * separable convolution. The rows are read where they are: a weight is loaded for COLUMN_PIXELS
 * pixels, and their channels follow one another in memory.
 *
 * Taps are summed top down, from zero on.
 */
enum { COLUMN_PIXELS = 8 };

/* L channels from c on of `pixels` pixels. */
CK_INLINE void column_pixels(const struct ck_column_args *d, int64_t x, int64_t c, const int pixels,
                             const bool full) {
  const vf_tail tail = vf_first(d->channels - c);
  const real *weights = (const real *)d->weights + c / VF_LANES * d->weights_step;
  vf sum[COLUMN_PIXELS];
  CK_UNROLL
  for (int p = 0; p < pixels; ++p) sum[p] = vf_zero();
  for (int64_t ky = 0; ky < d->kernel_h; ++ky, weights += VF_LANES) {
    const real *in = d->rows[ky];
    const int64_t step = in ? d->pixel_step : 0;
    in = in ? in + x * step + c : ck_padding;
    const vf w = vf_load(weights);
    CK_UNROLL
    for (int p = 0; p < pixels; ++p)
      sum[p] = vf_fma(vf_load_either(in + p * step, full, tail), w, sum[p]);
  }
  real *out = (real *)d->out + x * d->out_step + c;
  CK_UNROLL
  for (int p = 0; p < pixels; ++p) vf_store(out + p * d->out_step, sum[p]);
}

CK_INLINE void column_channels(const struct ck_column_args *d, int64_t x, const int pixels) {
  int64_t c = 0;
  for (; c + VF_LANES <= d->channels; c += VF_LANES) column_pixels(d, x, c, pixels, true);
  if (c < d->channels) column_pixels(d, x, c, pixels, false);
}

static void CK_FN(column)(const struct ck_column_args *d) {
  int64_t x = 0;
  for (; x + COLUMN_PIXELS <= d->pixels; x += COLUMN_PIXELS) column_channels(d, x, COLUMN_PIXELS);
  for (; x < d->pixels; ++x) column_channels(d, x, 1);
}
