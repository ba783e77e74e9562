/* Kernels for NCHW, where the lanes are pixels: rows of planes go into panels, and a depthwise is a
 * sum of shifted planes.
 *
 * A planar panel is [groups of pixels][terms][vectors * L]: the GEMM reads it as it reads weights
 * in NHWC, and the weights are its broadcast side.
 */

/* to[i] = from[i * step] for i < n. Meanwhile, with step 1, what lies `ahead` elements behind is
 * brought near, if that is not 0. */
CK_INLINE void planar_copy_row(real *to, const real *from, int64_t n, int64_t step, int64_t ahead) {
  int64_t i = 0;
  if (step == 1) {
    for (; i + VF_LANES <= n; i += VF_LANES) {
      if (ahead) __builtin_prefetch(from + ahead + i);
      vf_store(to + i, vf_load(from + i));
    }
    if (!VF_HAS_MASK && i > 0 && i < n)
      vf_store(to + n - VF_LANES, vf_load(from + n - VF_LANES));
    else if (i < n)
      vf_store_n(to + i, vf_first(n - i), vf_load_n(from + i, vf_first(n - i)));
  } else if (step == 2 && VF_LANES > 1) {
    for (; i + VF_LANES < n; i += VF_LANES)
      vf_store(to + i, vf_even(vf_load(from + 2 * i), vf_load(from + 2 * i + VF_LANES)));
    if (i < n) {
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
void CK_FN(planar_fill)(const struct ck_planar_fill_args *f) {
  const int64_t group = (int64_t)GEMM_MAX_VECTORS * VF_LANES;
  for (int64_t r = 0; r < f->rows; ++r) {
    const real *from = f->src ? (const real *)f->src + r * f->src_row : NULL;
    int64_t at = f->pixel + r * f->row_pixels;
    for (int64_t left = f->pixels, n; left > 0; left -= n, at += n) {
      const int64_t lane = at % group, width = at >= f->narrow ? VF_LANES : group;
      n = ck_min(left, width - lane);
      real *to = (real *)f->panel + at / group * f->group_step + f->term * width + lane;
      if (from) {
        planar_copy_row(to, from, n, f->src_step, f->ahead);
        from += n * f->src_step;
      } else {
        memset(to, 0, (size_t)n * sizeof(real));
      }
    }
  }
}

/* Rectangles of a plane; with a step the columns of one residue modulo the stride, side by side: a
 * depthwise tap then reads neighbours, whatever the stride. Rows of at most a vector, which late
 * layers are made of, share their masks. */
void CK_FN(planar_copy)(const struct ck_planar_copy_args *c) {
  const int64_t src_row = c->src_row, to_row = c->to_row, step = c->step;
  for (const struct ck_move *m = c->move, *end = m + c->moves; m < end; ++m) {
    const real *from = (const real *)c->src + m->from;
    real *to = (real *)c->to + m->to;
    const int64_t n = m->n, reach = step * (n - 1) + 1;
    const vf_tail out = vf_first(n), low = vf_first(reach), high = vf_first(reach - VF_LANES);
    if (step == 1 && n <= VF_LANES) {
      for (int64_t r = m->rows; r > 0; --r, from += src_row, to += to_row)
        vf_store_n(to, out, vf_load_n(from, low));
    } else if (step == 2 && n <= VF_LANES && VF_LANES > 1) {
      for (int64_t r = m->rows; r > 0; --r, from += src_row, to += to_row)
        vf_store_n(to, out, vf_even(vf_load_n(from, low), vf_load_n(from + VF_LANES, high)));
    } else {
      for (int64_t r = m->rows; r > 0; --r, from += src_row, to += to_row)
        planar_copy_row(to, from, n, step, c->ahead);
    }
  }
}

/* What the outputs of a channel share. */
struct planar {
  const struct ck_dw_planar_args *args;
  int64_t pitch;
  vf bias, low, high;
  vf w[9]; /* of 3x3 taps, where there are registers for them */
};

/* A vector of outputs in each of some rows: all taps, in their order. */
CK_INLINE void planar_sums(const struct planar *c, const real *plane, vf *sum, const int rows) {
  const struct ck_tap *tap = c->args->tap, *end = tap + c->args->taps;
  const real *weights = c->args->weights, *row[CK_PLANAR_ROWS];
  CK_UNROLL
  for (int r = 0; r < rows; ++r) row[r] = vf_hide(plane + r * c->pitch);
  for (; tap < end; ++tap) {
    const vf w = vf_set1(weights[tap->weight]);
    CK_UNROLL
    for (int r = 0; r < rows; ++r) sum[r] = vf_fma(vf_load(row[r] + tap->plane), w, sum[r]);
  }
}

/* Column kx of 3x3 taps, and rows [begin, end) of the input: a vector is loaded once for all rows
 * of output that it is under. */
CK_INLINE void planar_add(const struct planar *c, const real *plane, vf *sum, const int rows,
                          const int stride, const int dilation, const int kx, const int begin,
                          const int end) {
  const int shift = kx * dilation;
  vf w[3];
  CK_UNROLL
  for (int ky = 0; ky < 3; ++ky)
    w[ky] = VF_REGISTERS < 32 ? vf_set1(((const real *)c->args->weights)[(3 * ky + kx) * VF_LANES])
                              : c->w[3 * ky + kx];
  CK_UNROLL
  for (int j = begin; j < end; ++j) {
    const real *row = plane + j * c->pitch;
    const vf in = stride == 1 ? vf_load_after(row, shift) : vf_load_even_after(row, shift);
    CK_LOADED();
    CK_UNROLL
    for (int ky = 0; ky < 3; ++ky) {
      const int down = j - ky * dilation; /* to the first input row of the output row */
      if (down >= 0 && down % stride == 0 && down / stride < rows)
        sum[down / stride] = vf_fma(in, w[ky], sum[down / stride]);
    }
  }
}

/* The same as planar_sums for 3x3 taps. */
CK_INLINE void planar_sums3x3(const struct planar *c, const real *plane, vf *sum, const int rows,
                              const int stride, const int dilation, const bool by_columns) {
  const int in_rows = stride * (rows - 1) + 2 * dilation + 1;
  const int passes = by_columns ? 1 : in_rows, each = by_columns ? in_rows : 1;
  CK_UNROLL
  for (int j = 0; j < passes; ++j) {
    CK_UNROLL
    for (int kx = 0; kx < 3; ++kx)
      planar_add(c, plane, sum, rows, stride, dilation, kx, j, j + each);
  }
}

/* Some rows of output; stride 0 stands for any window. Without masks the last vector of a row may
 * overlap the one before it. */
CK_INLINE void planar_rows(const struct planar *c, int64_t row, const int rows, const int stride,
                           const int dilation, const bool by_columns) {
  const struct ck_dw_planar_args *d = c->args;
  const int64_t step = stride ? stride : 1, cols = d->cols, out_row = d->out_row;
  const real *plane = (const real *)d->plane + row * step * c->pitch;
  real *out = (real *)d->out + row * out_row;
  for (int64_t x = 0; x < cols; x += VF_LANES) {
    const int64_t at = VF_HAS_MASK || cols < VF_LANES ? x : ck_min(x, cols - VF_LANES);
    const bool full = !VF_HAS_MASK && cols >= VF_LANES;
    const vf_tail tail = vf_first(cols - at);
    vf sum[CK_PLANAR_ROWS];
    CK_UNROLL
    for (int r = 0; r < rows; ++r) sum[r] = c->bias;
    if (stride == 0)
      planar_sums(c, plane + at, sum, rows);
    else
      planar_sums3x3(c, plane + at * step, sum, rows, stride, dilation, by_columns);
    CK_UNROLL
    for (int r = 0; r < rows; ++r)
      vf_store_either(out + r * out_row + at, full, tail, vf_min(c->high, vf_max(c->low, sum[r])));
  }
}

CK_INLINE void planar_channel(const struct ck_dw_planar_args *d, const int stride,
                              const int dilation, const bool by_columns) {
  struct planar c = {.args = d,
                     .pitch = d->pitch,
                     .bias = vf_set1(*(const real *)d->bias),
                     .low = vf_set1((real)d->low),
                     .high = vf_set1((real)d->high)};
  CK_UNROLL
  for (int t = 0; t < 9; ++t)
    c.w[t] = stride ? vf_set1(((const real *)d->weights)[t * VF_LANES]) : vf_zero();
  int64_t row = 0;
  if (d->rows >= CK_PLANAR_ROWS)
    for (; row < d->rows; row += CK_PLANAR_ROWS)
      planar_rows(&c, ck_min(row, d->rows - CK_PLANAR_ROWS), CK_PLANAR_ROWS, stride, dilation,
                  by_columns);
  for (; row < d->rows; ++row) planar_rows(&c, row, 1, stride, dilation, by_columns);
}

/* One channel: each output is the sum over the taps of its plane, shifted, times its weight. Row by
 * row, sharing input takes nine weights at hand. */
void CK_FN(dwconv_planar)(const struct ck_dw_planar_args *d) {
  if (d->window == CK_PLANAR_3X3)
    planar_channel(d, 1, 1, true);
  else if (d->window == CK_PLANAR_3X3_S2)
    planar_channel(d, 2, 1, true);
  else if (VF_REGISTERS >= 32 && d->window == CK_PLANAR_3X3_BY_ROWS)
    planar_channel(d, 1, 1, false);
  else if (VF_REGISTERS >= 32 && d->window == CK_PLANAR_3X3_D2)
    planar_channel(d, 1, 2, false);
  else
    planar_channel(d, 0, 0, false);
}
