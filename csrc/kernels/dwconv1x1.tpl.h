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

#if VF_HAS_HALVES
/* Two groups of half a vector of outputs. What their lanes are multiplied by are pairs of elements,
 * which a load repeats if they lie side by side; so pixels are zipped, term by term, and weights,
 * output by output. As permutes these elements took as long as the FMAs that a dense convolution
 * spends on zeros. */
enum { DW_PAIR_PIXELS = 8, DW_PAIR_TERMS = 2 * VF_LANES, DW_HALF = VF_LANES / 2 };

struct dw_pairs {
  int64_t members, second; /* terms of a group; elements from one group to the other */
  vf_index zip, lanes, unzip;
  vf bias, low, high;
  real weights[DW_PAIR_TERMS][VF_LANES] __attribute__((aligned(CK_ALIGN)));
  real pixels[DW_PAIR_PIXELS][2 * DW_PAIR_TERMS] __attribute__((aligned(CK_ALIGN)));
};

static void dw_pairs_start(struct dw_pairs *p, const struct ck_dw_pixel_args *d, int64_t channel,
                           int64_t lanes) {
  const real *weights = (const real *)d->weights + channel / VF_LANES * d->group_in * VF_LANES;
  real_bits zip[VF_LANES], lane[VF_LANES], unzip[VF_LANES];
  for (int i = 0; i < VF_LANES; ++i) {
    zip[i] = (real_bits)(i % 2 * VF_LANES + i / 2);
    lane[i] = (real_bits)(i % 2 * DW_HALF + i / 2);
    unzip[i] = (real_bits)(i % DW_HALF * 2 + i / DW_HALF);
  }
  p->members = d->group_in;
  p->second = lanes > DW_HALF ? d->group_in : 0; /* without another the same again */
  p->zip = vf_index_of(zip);
  p->lanes = vf_index_of(lane);
  p->unzip = vf_index_of(unzip);
  p->bias = vf_repeat(vf_load((const real *)d->bias + channel), p->lanes);
  p->low = vf_set1((real)d->low);
  p->high = vf_set1((real)d->high);
  for (int64_t m = 0; m < p->members; ++m)
    vf_store(p->weights[m], vf_repeat(vf_load(weights + m * VF_LANES), p->lanes));
}

CK_INLINE void dw_pairs_zip(struct dw_pairs *p, const real *from, int64_t step, int64_t pixels) {
  const vf_index zip = p->zip;
  const int64_t members = p->members, second = p->second, whole = members - members % DW_HALF;
  const vf_tail some = vf_first(members - whole);
  for (int64_t i = 0; i < pixels; ++i, from += step) {
    real *to = p->pixels[i];
    for (int64_t m = 0; m < whole; m += DW_HALF)
      vf_store(to + 2 * m, vf_pick(vf_load_half(from + m), zip, vf_load_half(from + second + m)));
    if (whole < members)
      vf_store(to + 2 * whole,
               vf_pick(vf_load_n(from + whole, some), zip, vf_load_n(from + second + whole, some)));
  }
}

CK_INLINE void dw_pairs_sum(const struct dw_pairs *p, vf *sum) {
  const int64_t members = p->members;
  CK_UNROLL
  for (int i = 0; i < DW_PAIR_PIXELS; ++i) sum[i] = p->bias;
  for (int64_t m = 0; m < members; ++m) {
    const vf w = vf_load(p->weights[m]);
    CK_UNROLL
    for (int i = 0; i < DW_PAIR_PIXELS; ++i)
      sum[i] = vf_fma(vf_load_pair(p->pixels[i] + 2 * m), w, sum[i]);
  }
  CK_UNROLL
  for (int i = 0; i < DW_PAIR_PIXELS; ++i)
    sum[i] = vf_repeat(vf_min(p->high, vf_max(p->low, sum[i])), p->unzip);
}

/* Behind the last pixel sums are made, too, of whatever is there, and left. */
CK_INLINE void dw1x1_pairs(const struct ck_dw_pixel_args *d, int64_t channel, int64_t lanes) {
  struct dw_pairs room, *p = &room;
  const real *from = (const real *)d->src + channel / d->group_out * d->group_in;
  real *out = (real *)d->out + (channel - d->channel_begin) / VF_LANES * d->out_step;
  const vf_tail tail = vf_first(lanes);
  CK_HIDE(p); /* or it counts as what the compiler spills */
  dw_pairs_start(p, d, channel, lanes);
  for (int64_t i = 0; i < d->pixels; i += DW_PAIR_PIXELS, from += DW_PAIR_PIXELS * d->src_step) {
    const int64_t n = ck_min(DW_PAIR_PIXELS, d->pixels - i);
    vf sum[DW_PAIR_PIXELS];
    dw_pairs_zip(p, from, d->src_step, n);
    dw_pairs_sum(p, sum);
    CK_UNROLL
    for (int j = 0; j < DW_PAIR_PIXELS; ++j)
      if (j < n) vf_store_n(out + d->offset[i + j], tail, sum[j]);
  }
}
#endif

void CK_FN(dwconv1x1)(const struct ck_dw_pixel_args *d) {
  const int64_t members = d->group_in;
  real_bits lane[VF_LANES];
  for (int64_t c = d->channel_begin; c < d->channel_end; c += VF_LANES) {
    const int64_t lanes = ck_min(VF_LANES, d->channel_end - c);
#if VF_HAS_HALVES
    if (d->pairs) {
      dw1x1_pairs(d, c, lanes);
      continue;
    }
#endif
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
