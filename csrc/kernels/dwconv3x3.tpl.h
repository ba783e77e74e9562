/* Depthwise 3x3 at stride 1 and 2; one, two or four output rows at once.
 *
 * The kernel walks along the columns of the input: each vector of channels is loaded once and goes
 * into every output that needs it, up to 3 columns x 3 rows, whose sums slide along in registers.
 * The more rows at once, the fewer are read again: from L2 a vector takes as long as four FMAs.
 * Channels are the lanes. A row of padding is one zero vector that is read again and again; a
 * column of padding is a zero vector without a load. Padding is multiplied like any other value, so
 * that an infinite weight gives the NaN that arithmetic says.
 *
 * Taps are summed column by column, top down, from the bias on.
 */
struct dw_walk {
  const real *row[CK_DW_IN_ROWS];
  int64_t moves[CK_DW_IN_ROWS]; /* all ones where the row moves with the column, else 0 */
  int64_t x, at, pixel_step, in_w;
};

CK_INLINE struct dw_walk dw_walk_from(const struct ck_dw_args *d, int64_t channel, int in_rows) {
  struct dw_walk walk = {
      .x = d->x0, .at = d->x0 * d->pixel_step, .pixel_step = d->pixel_step, .in_w = d->in_w};
  CK_UNROLL
  for (int r = 0; r < in_rows; ++r) {
    const real *start = d->rows[r];
    walk.row[r] = start ? start + channel : ck_padding;
    walk.moves[r] = start ? -1 : 0;
  }
  return walk;
}

/* `inside`: the column is in the image, and so are all rows. With nothing to choose, the compiler
 * would load a vector anew for each sum that it goes into, and loads are what stride 2 has most of:
 * 2.0 ns an output so, 1.45 with each of them loaded once. */
CK_INLINE void dw_next_column(struct dw_walk *walk, vf *in, int in_rows, const bool inside,
                              bool full, vf_tail tail) {
  if (inside) {
    CK_UNROLL
    for (int r = 0; r < in_rows; ++r) in[r] = vf_load_either(walk->row[r] + walk->at, full, tail);
    if (VF_REGISTERS >= 32) CK_LOADED();
  } else if ((uint64_t)walk->x < (uint64_t)walk->in_w) {
    CK_UNROLL
    for (int r = 0; r < in_rows; ++r)
      in[r] = vf_load_either(walk->row[r] + (walk->at & walk->moves[r]), full, tail);
  } else {
    CK_UNROLL
    for (int r = 0; r < in_rows; ++r) in[r] = vf_zero();
  }
  if (!inside) walk->x += 1;
  walk->at += walk->pixel_step;
}

/* The sum with one column of three taps added. */
CK_INLINE vf dw_add_column(vf sum, const vf *in, const vf *w, int kx) {
  sum = vf_fma(in[0], w[kx], sum);
  sum = vf_fma(in[1], w[3 + kx], sum);
  return vf_fma(in[2], w[6 + kx], sum);
}

/* Nine weights, the sums and a column are more than 16 registers hold. There, the weights of the
 * first column of taps are read from memory where they are used, which costs nothing: an FMA takes
 * one operand from L1. Hiding the pointer keeps the compiler from hoisting these loads out of the
 * loop and then spilling what it hoisted. */
CK_INLINE const real *dw_first_weights(const real *weights, vf *w) {
  if (VF_REGISTERS >= 32) return weights;
  weights = vf_hide(weights);
  CK_UNROLL
  for (int ky = 0; ky < 3; ++ky) w[3 * ky] = vf_load(weights + 3 * ky * VF_LANES);
  return weights;
}

/* What a pass over the columns holds in registers. */
struct dw_pass {
  struct dw_walk walk;
  const real *weights;
  real *out;
  vf bias, low, high, w[9], sum[CK_DW_ROWS], next[CK_DW_ROWS];
};

/* Outputs [x, end) of each row. */
CK_INLINE void dw3x3_outputs(const struct ck_dw_args *d, struct dw_pass *p, int64_t x, int64_t end,
                             const int stride, const int rows, const bool inside, const bool full,
                             vf_tail tail) {
  const int in_rows = stride * (rows - 1) + 3;
  vf in[CK_DW_IN_ROWS];
  for (; x < end; ++x) {
    if (stride == 2) {
      dw_next_column(&p->walk, in, in_rows, inside, full, tail);
      CK_UNROLL
      for (int i = 0; i < rows; ++i) p->sum[i] = dw_add_column(p->next[i], in + 2 * i, p->w, 1);
    }
    dw_next_column(&p->walk, in, in_rows, inside, full, tail);
    p->weights = dw_first_weights(p->weights, p->w);
    CK_UNROLL
    for (int i = 0; i < rows; ++i) {
      const vf y = dw_add_column(p->sum[i], in + i * stride, p->w, 2);
      if (stride == 1) p->sum[i] = dw_add_column(p->next[i], in + i, p->w, 1);
      p->next[i] = dw_add_column(p->bias, in + i * stride, p->w, 0);
      vf_store_either(p->out + d->offset[i * d->offset_row + x], full, tail,
                      vf_min(p->high, vf_max(p->low, y)));
    }
  }
}

/* One pass over the columns for one vector of channels; stride, rows and full are constants. */
CK_INLINE void dw3x3_pass(const struct ck_dw_args *d, int64_t channel, const int stride,
                          const int rows, const bool full, vf_tail tail) {
  const int in_rows = stride * (rows - 1) + 3;
  const int64_t group = channel / VF_LANES;
  struct dw_pass p = {
      .walk = dw_walk_from(d, channel, in_rows),
      .weights = (const real *)d->weights + group * 9 * VF_LANES,
      .out = (real *)d->out + (group - d->channel_begin / VF_LANES) * d->out_step,
      .bias = vf_load((const real *)d->bias + channel),
      .low = vf_set1((real)d->low),
      .high = vf_set1((real)d->high),
  };
  vf in[CK_DW_IN_ROWS];

  CK_UNROLL
  for (int t = 0; t < 9; ++t) p.w[t] = vf_load(p.weights + t * VF_LANES);

  dw_next_column(&p.walk, in, in_rows, false, full, tail);
  CK_UNROLL
  for (int i = 0; i < rows; ++i) p.next[i] = dw_add_column(p.bias, in + i * stride, p.w, 0);
  if (stride == 1) {
    dw_next_column(&p.walk, in, in_rows, false, full, tail);
    CK_UNROLL
    for (int i = 0; i < rows; ++i) {
      p.sum[i] = dw_add_column(p.next[i], in + i, p.w, 1);
      p.next[i] = dw_add_column(p.bias, in + i, p.w, 0);
    }
  }

  int64_t inside = 0;
  if (stride == 2) {
    bool whole = p.walk.x >= 0;
    CK_UNROLL
    for (int r = 0; r < in_rows; ++r) whole = whole && d->rows[r];
    if (whole) inside = ck_max(0, ck_min(d->out_w, (d->in_w - p.walk.x) / 2));
    dw3x3_outputs(d, &p, 0, inside, stride, rows, true, full, tail);
    p.walk.x += 2 * inside;
  }
  dw3x3_outputs(d, &p, inside, d->out_w, stride, rows, false, full, tail);
}

CK_INLINE void dw3x3_rows(const struct ck_dw_args *d, const int stride, const int rows) {
  int64_t channel = d->channel_begin;
  for (; channel + VF_LANES <= d->channel_end; channel += VF_LANES)
    dw3x3_pass(d, channel, stride, rows, true, vf_first(VF_LANES));
  if (channel < d->channel_end)
    dw3x3_pass(d, channel, stride, rows, false, vf_first(d->channel_end - channel));
}

CK_INLINE void dw3x3(const struct ck_dw_args *d, const int stride) {
  if (VF_DW_ROWS >= 4 && d->out_rows == 4)
    dw3x3_rows(d, stride, 4);
  else if (VF_DW_ROWS >= 2 && d->out_rows == 2)
    dw3x3_rows(d, stride, 2);
  else
    dw3x3_rows(d, stride, 1);
}

void CK_FN(dwconv3x3s1)(const struct ck_dw_args *d) { dw3x3(d, 1); }
void CK_FN(dwconv3x3s2)(const struct ck_dw_args *d) { dw3x3(d, 2); }
