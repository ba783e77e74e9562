/* Depthwise with any kernel size, stride, dilation and multiplier: one output row, channels in the
 * lanes, DW_PIXELS outputs at once so that a weight is loaded once for all of them.
 *
 * Output channel o reads input channel o / multiplier: where the multiplier is not 1 the vector of
 * inputs is spread over the lanes by a permutation, which is the same for every pixel.
 */
enum { DW_PIXELS = 4 };

struct dw_inputs { /* how a vector of output channels reads its input channels */
  int64_t channel; /* the first of them */
  bool full, repeat;
  vf_tail tail;
  vf_index index;
};

CK_INLINE vf dw_input(const real *pixel, const struct dw_inputs *s) {
  if (s->repeat) return vf_load_repeat(pixel, s->tail, s->index);
  return vf_load_either(pixel, s->full, s->tail);
}

/* Add every tap to `pixels` neighbouring sums, all of whose columns are inside the image. */
CK_INLINE void dw_any_interior(const struct ck_dw_args *d, const struct dw_inputs *inputs,
                               const real *weights, vf *sum, int64_t column, const int pixels) {
  for (int64_t ky = 0; ky < d->kernel_h; ++ky) {
    const real *row = d->rows[ky];
    const real *in = row ? row + column * d->pixel_step + inputs->channel : ck_padding;
    const int64_t tap_step = row ? d->dilation_w * d->pixel_step : 0;
    const int64_t out_step = row ? d->stride_w * d->pixel_step : 0;
    for (int64_t kx = 0; kx < d->kernel_w; ++kx) {
      const vf w = vf_load(weights);
      CK_UNROLL
      for (int p = 0; p < pixels; ++p)
        sum[p] = vf_fma(dw_input(in + p * out_step, inputs), w, sum[p]);
      in += tap_step;
      weights += VF_LANES;
    }
  }
}

/* The same for one sum whose columns may be padding. */
CK_INLINE vf dw_any_border(const struct ck_dw_args *d, const struct dw_inputs *inputs,
                           const real *weights, vf sum, int64_t first) {
  for (int64_t ky = 0; ky < d->kernel_h; ++ky) {
    const real *row = d->rows[ky];
    for (int64_t kx = 0; kx < d->kernel_w; ++kx) {
      const int64_t column = first + kx * d->dilation_w;
      const bool inside = row && (uint64_t)column < (uint64_t)d->in_w;
      const real *in = inside ? row + column * d->pixel_step + inputs->channel : ck_padding;
      sum = vf_fma(dw_input(in, inputs), vf_load(weights), sum);
      weights += VF_LANES;
    }
  }
  return sum;
}

CK_INLINE void dw_any_pass(const struct ck_dw_args *d, int64_t channel,
                           const struct dw_inputs *inputs, vf_tail tail) {
  const int64_t group = channel / VF_LANES;
  const real *weights = (const real *)d->weights + group * d->kernel_h * d->kernel_w * VF_LANES;
  const vf bias = vf_load((const real *)d->bias + channel);
  const vf low = vf_set1((real)d->low), high = vf_set1((real)d->high);
  real *out = (real *)d->out + (group - d->channel_begin / VF_LANES) * d->out_step;
  const bool full = channel + VF_LANES <= d->channel_end;
  const int64_t reach = (d->kernel_w - 1) * d->dilation_w; /* columns from first to last tap */

  for (int64_t x = 0, pixels; x < d->out_w; x += pixels) {
    const int64_t first = d->x0 + x * d->stride_w;
    const bool inside = first >= 0 && first + reach < d->in_w;
    const bool several = inside && x + DW_PIXELS <= d->out_w &&
                         first + (DW_PIXELS - 1) * d->stride_w + reach < d->in_w;
    vf sum[DW_PIXELS];
    CK_UNROLL
    for (int p = 0; p < DW_PIXELS; ++p) sum[p] = bias;
    if (several)
      dw_any_interior(d, inputs, weights, sum, first, DW_PIXELS);
    else if (inside)
      dw_any_interior(d, inputs, weights, sum, first, 1);
    else
      sum[0] = dw_any_border(d, inputs, weights, bias, first);
    pixels = several ? DW_PIXELS : 1;
    CK_UNROLL
    for (int p = 0; p < DW_PIXELS; ++p)
      if (p < pixels)
        vf_store_either(out + d->offset[x + p], full, tail, vf_min(high, vf_max(low, sum[p])));
  }
}

static void CK_FN(dwconv_any)(const struct ck_dw_args *d) {
  const int64_t m = d->multiplier;
  for (int64_t channel = d->channel_begin; channel < d->channel_end; channel += VF_LANES) {
    const int64_t lanes = ck_min(VF_LANES, d->channel_end - channel);
    const int64_t first = channel / m, last = (channel + lanes - 1) / m;
    real_bits lane[VF_LANES];
    for (int64_t i = 0; i < VF_LANES; ++i)
      lane[i] = (real_bits)((channel + ck_min(i, lanes - 1)) / m - first);
    const struct dw_inputs inputs = {
        .channel = first,
        .full = lanes == VF_LANES,
        .repeat = m > 1,
        .tail = vf_first(last - first + 1),
        .index = vf_index_of(lane),
    };
    const vf_tail tail = vf_first(lanes);
    if (m > 1)
      dw_any_pass(d, channel, &inputs, tail);
    else if (inputs.full)
      dw_any_pass(d, channel, &(struct dw_inputs){.channel = channel, .full = true}, tail);
    else
      dw_any_pass(d, channel, &inputs, tail);
  }
}
