/* Depthwise and grouped 1x1: each pixel is read once, so nothing is staged. For each channel of a
 * group, a vector of the pixel that begins there is permuted, so that each lane has that of the
 * group of its own output; see dw_stage.
 */
CK_INLINE void dw1x1_vector(const struct ck_dw_pixel_args *d, int64_t channel, int64_t lanes,
                            const real_bits *lane, int64_t last, const int64_t members,
                            const bool wide) {
  const int64_t pixels = d->pixels, src_step = d->src_step, *offset = d->offset;
  const int64_t vector = (channel - d->channel_begin) / VF_LANES;
  const real *from = (const real *)d->src + channel / d->group_out * members;
  const real *weights = (const real *)d->weights + channel / VF_LANES * members * VF_LANES;
  const vf bias = vf_load((const real *)d->bias + channel);
  const vf low = vf_set1((real)d->low), high = vf_set1((real)d->high);
  real *out = (real *)d->out + vector * d->out_step;
  const vf_tail tail = vf_first(lanes);
  const vf_index index = vf_index_of(lane);
  for (int64_t i = 0; i < pixels; ++i, from += src_step) {
    vf sum = bias;
    for (int64_t m = 0; m < members; ++m)
      sum = vf_fma(dw_of_groups(from + m, last, index, wide), vf_load(weights + m * VF_LANES), sum);
    vf_store_either(out + offset[i], lanes == VF_LANES, tail, vf_min(high, vf_max(low, sum)));
  }
}

void CK_FN(dwconv1x1)(const struct ck_dw_pixel_args *d) {
  const int64_t members = d->group_in;
  real_bits lane[VF_LANES];
  for (int64_t c = d->channel_begin; c < d->channel_end; c += VF_LANES) {
    const int64_t lanes = ck_min(VF_LANES, d->channel_end - c);
    const int64_t last = dw_groups_of(c, lanes, members, d->group_out, lane);
    if (last >= VF_LANES)
      dw1x1_vector(d, c, lanes, lane, last, members, true);
    else if (members == 1) /* constants, where they are common */
      dw1x1_vector(d, c, lanes, lane, last, 1, false);
    else if (members == 2)
      dw1x1_vector(d, c, lanes, lane, last, 2, false);
    else if (members == 4)
      dw1x1_vector(d, c, lanes, lane, last, 4, false);
    else
      dw1x1_vector(d, c, lanes, lane, last, members, false);
  }
}
