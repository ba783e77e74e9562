/* Kernels for NCHW, where the lanes are pixels: rows of planes go into panels, and a depthwise is a
 * sum of shifted planes.
 *
 * A planar panel is [groups of pixels][terms][vectors * L]: the GEMM reads it as it reads weights
 * in NHWC, and the weights are its broadcast side.
 */

/* to[i] = from[i * step] for i < n. */
CK_INLINE void planar_copy_row(real *to, const real *from, int64_t n, int64_t step) {
  int64_t i = 0;
  if (step == 1) {
    for (; i + VF_LANES <= n; i += VF_LANES) vf_store(to + i, vf_load(from + i));
    if (i < n) vf_store_n(to + i, vf_first(n - i), vf_load_n(from + i, vf_first(n - i)));
  } else if (step == 2 && VF_LANES > 1) {
    for (; i < n; i += VF_LANES) {
      const int64_t reach = 2 * (n - i) - 1; /* elements from here to the last that is wanted */
      const vf a = vf_load_n(from + 2 * i, vf_first(reach));
      const vf b = vf_load_n(from + 2 * i + VF_LANES, vf_first(reach - VF_LANES));
      vf_store_n(to + i, vf_first(n - i), vf_even(a, b));
    }
  } else {
    for (; i < n; ++i) to[i] = from[i * step];
  }
}

/* One term of some rows of pixels into the panel; a null source writes zeros. */
static void CK_FN(planar_fill)(const struct ck_planar_fill_args *f) {
  const int64_t group = (int64_t)GEMM_MAX_VECTORS * VF_LANES;
  for (int64_t r = 0; r < f->rows; ++r) {
    const real *from = f->src ? (const real *)f->src + r * f->src_row : NULL;
    int64_t at = f->pixel + r * f->row_pixels;
    for (int64_t left = f->pixels, n; left > 0; left -= n, at += n) {
      const int64_t lane = at % group, width = at >= f->narrow ? VF_LANES : group;
      n = ck_min(left, width - lane);
      real *to = (real *)f->panel + at / group * f->group_step + f->term * width + lane;
      if (from) {
        planar_copy_row(to, from, n, f->src_step);
        from += n * f->src_step;
      } else {
        memset(to, 0, (size_t)n * sizeof(real));
      }
    }
  }
}

/* Rows of a plane; with a step the columns of one residue modulo the stride, side by side: a
 * depthwise tap then reads neighbours, whatever the stride. Rows of at most a vector, which late
 * layers are made of, share their masks. */
static void CK_FN(planar_copy)(const struct ck_planar_copy_args *c) {
  const real *from = c->src;
  real *to = c->to;
  const int64_t src_row = c->src_row, to_row = c->to_row, n = c->n, reach = c->step * (n - 1) + 1;
  const vf_tail out = vf_first(n), low = vf_first(reach), high = vf_first(reach - VF_LANES);
  if (c->step == 1 && n <= VF_LANES) {
    for (int64_t r = c->rows; r > 0; --r, from += src_row, to += to_row)
      vf_store_n(to, out, vf_load_n(from, low));
  } else if (c->step == 2 && n <= VF_LANES && VF_LANES > 1) {
    for (int64_t r = c->rows; r > 0; --r, from += src_row, to += to_row)
      vf_store_n(to, out, vf_even(vf_load_n(from, low), vf_load_n(from + VF_LANES, high)));
  } else {
    for (int64_t r = c->rows; r > 0; --r, from += src_row, to += to_row)
      planar_copy_row(to, from, n, c->step);
  }
}

/* Up to PLANAR_VECTORS vectors of neighbouring outputs. */
enum { PLANAR_VECTORS = 4 };

CK_INLINE void planar_outputs(const struct ck_dw_planar_args *d, int64_t at, const int vectors,
                              vf_tail tail) {
  const real *plane = (const real *)d->plane + at, *weights = d->weights;
  const struct ck_tap *tap = d->tap, *end = tap + d->taps;
  vf sum[PLANAR_VECTORS];
  CK_UNROLL
  for (int v = 0; v < vectors; ++v) sum[v] = vf_set1(*(const real *)d->bias);
  for (; tap < end; ++tap) {
    const vf w = vf_set1(weights[tap->weight]);
    const real *in = plane + tap->plane;
    CK_UNROLL
    for (int v = 0; v < vectors; ++v) sum[v] = vf_fma(vf_load(in + v * VF_LANES), w, sum[v]);
  }
  const vf low = vf_set1((real)d->low), high = vf_set1((real)d->high);
  real *out = (real *)d->out + at;
  CK_UNROLL
  for (int v = 0; v < vectors; ++v) {
    const vf y = vf_min(high, vf_max(low, sum[v]));
    if (v + 1 < vectors)
      vf_store(out + v * VF_LANES, y);
    else
      vf_store_n(out + v * VF_LANES, tail, y);
  }
}

/* One channel: n outputs, each the sum over the taps of its plane, shifted, times its weight. */
static void CK_FN(dwconv_planar)(const struct ck_dw_planar_args *d) {
  const vf_tail whole = vf_first(VF_LANES);
  int64_t i = 0;
  for (; i + PLANAR_VECTORS * VF_LANES <= d->n; i += PLANAR_VECTORS * VF_LANES)
    planar_outputs(d, i, PLANAR_VECTORS, whole);
  const int64_t left = d->n - i;
  if (left > 3 * VF_LANES)
    planar_outputs(d, i, 4, vf_first(left - 3 * VF_LANES));
  else if (left > 2 * VF_LANES)
    planar_outputs(d, i, 3, vf_first(left - 2 * VF_LANES));
  else if (left > VF_LANES)
    planar_outputs(d, i, 2, vf_first(left - VF_LANES));
  else if (left > 0)
    planar_outputs(d, i, 1, vf_first(left));
}
