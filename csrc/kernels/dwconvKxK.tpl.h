/* Depthwise with any kernel size, stride, dilation and multiplier: some output rows of one vector
 * of channels, from rows of pixels, of the image itself or staged (ck_dwstage.c).
 *
 * Outputs x, x + q, x + 2q, ... with q = dilation / gcd(stride, dilation) read columns that are
 * whole dilations apart, so along them any convolution is one without dilation, of stride s =
 * stride / gcd. The row falls into q such phases. In a phase a column of the input goes to every
 * output of a group that needs it. With widths 3, 5, 7, 9 and s = 1, 2, 3 as literal constants the
 * weights of a kernel row and the sums stay in registers, a load feeds up to 7 FMAs, and columns
 * outside the row are left out; every other size loads a column once per tap.
 *
 * Taps are summed row by row, left to right, from the bias on.
 */
enum { DW_GROUP = 7, DW_LARGE_GROUP = CK_DW_GROUP, DW_SMALL_GROUP = 3, DW_MAX_WIDTH = 9 };

/* How many sums leave room for the weights of a kernel row and an input. Networks are 7, 14, 28 ..
 * pixels wide. Seven sums are too few to hide the latency of two FMA units; three are for what a
 * long stride leaves of a late layer. */
CK_INLINE int dw_group_size(int width, int wanted) {
  const int room = VF_REGISTERS - width - (VF_HAS_FMA ? 2 : 5);
  return room < wanted ? room : wanted;
}

/* At a longer stride a column feeds few sums, whose FMAs wait for one another: there the halves of
 * a large group go side by side. */
enum { DW_MAX_PARTS = 2 };

CK_INLINE int dw_parts(int stride, int size) {
  return stride > 1 && size == DW_LARGE_GROUP ? DW_MAX_PARTS : 1;
}

/* Columns under so many neighbouring outputs of a phase; at most 13 * 3 + 9. */
CK_INLINE int dw_columns(int outputs, int width, int stride) {
  return (outputs - 1) * stride + width;
}

/* Bit j: the j-th of some columns, the first of which is at an element of a row, lies in the row.
 */
CK_INLINE uint64_t dw_columns_there(const struct ck_dw_row_args *d, int64_t first, int columns) {
  uint64_t there = ~UINT64_C(0);
  if (first < 0) there <<= ck_min(63, ck_ceil_div(-first, d->tap_step));
  if (first + (columns - 1) * d->tap_step >= d->row_end)
    there &= ~(~UINT64_C(0) << ck_min(63, ck_ceil_div(ck_max(0, d->row_end - first), d->tap_step)));
  return there;
}

/* Add one kernel row to a group of sums, the first of whose columns is at an element of the row.
 * The compiler would keep the places of all columns for the next row, which are more than there are
 * registers; and where a column feeds few sums, load it for each. */
CK_INLINE void dw_add_row(const struct ck_dw_row_args *d, const real *weights, const real *row,
                          int64_t first, const uint64_t *there, vf *sum, const int width,
                          const int stride, const int size) {
  const int parts = dw_parts(stride, size), part = size / parts;
  int64_t at[DW_MAX_PARTS] = {first, first + part * d->group_step}, tap_step = d->tap_step;
  uint64_t here[DW_MAX_PARTS] = {there[0], there[1]};
  vf w[DW_MAX_WIDTH];
  CK_HIDE(tap_step);
  CK_UNROLL
  for (int i = 0; i < parts; ++i) {
    CK_HIDE(at[i]);
    CK_HIDE(here[i]);
  }
  CK_UNROLL
  for (int kx = 0; kx < width; ++kx) w[kx] = vf_load(weights + kx * VF_LANES);
  CK_UNROLL
  for (int j = 0; j < dw_columns(part, width, stride); ++j) {
    CK_UNROLL
    for (int i = 0; i < parts; ++i) {
      if (CK_LIKELY(here[i] >> j & 1)) {
        const vf x = vf_load(row + at[i]);
        vf *to = sum + i * part;
        if (stride > 1 || width == 3) CK_HIDE(at[i]);
        CK_UNROLL
        for (int p = 0; p < part; ++p)
          if (j >= p * stride && j < p * stride + width)
            to[p] = vf_fma(x, w[j - p * stride], to[p]);
      }
      at[i] += tap_step;
    }
  }
}

/* The same for any width and stride: all columns are there, and sums past `count` repeat the last.
 */
CK_INLINE void dw_add_any_row(const struct ck_dw_row_args *d, const real *weights, const real *in,
                              vf *sum, int64_t count, const int size) {
  for (int64_t kx = 0; kx < d->kernel_w; ++kx, in += d->tap_step) {
    const vf w = vf_load(weights + kx * VF_LANES);
    CK_UNROLL
    for (int p = 0; p < size; ++p)
      sum[p] = vf_fma(vf_load(in + ck_min(p, count - 1) * d->group_step), w, sum[p]);
  }
}

/* A group of outputs of one phase in one row, the first `count` of which exist; its first column
 * is at element `first`, and `there` says which columns are in the row. Width 0 stands for any, and
 * then the stride is any too. */
CK_INLINE void dw_group(const struct ck_dw_row_args *d, const void *const *rows,
                        const int64_t *offset, int64_t first, const uint64_t *there, int64_t count,
                        const int width, const int stride, const int size) {
  const real *weights = d->weights;
  const vf bias = vf_load(d->bias);
  vf sum[DW_LARGE_GROUP];
  CK_UNROLL
  for (int p = 0; p < size; ++p) sum[p] = bias;
  for (int64_t ky = 0; ky < d->kernel_h; ++ky, weights += d->kernel_w * VF_LANES) {
    const real *row = rows[ky];
    if (!row) continue;
    if (width == 0)
      dw_add_any_row(d, weights, row + first, sum, count, size);
    else
      dw_add_row(d, weights, row, first, there, sum, width, stride, size);
  }

  const vf low = vf_set1((real)d->low), high = vf_set1((real)d->high);
  const bool full = d->lanes == VF_LANES;
  const vf_tail tail = vf_first(d->lanes);
  CK_UNROLL
  for (int p = 0; p < size; ++p, offset += d->phases)
    if (p < count)
      vf_store_either((real *)d->out + *offset, full, tail, vf_min(high, vf_max(low, sum[p])));
}

/* The same in every row, from output x on. */
CK_INLINE void dw_group_rows(const struct ck_dw_row_args *d, int64_t x, int64_t count,
                             const int width, const int stride, const int size) {
  const int parts = dw_parts(stride, size), part = size / parts;
  const int64_t first = d->first + x * d->out_step;
  const void *const *rows = d->rows;
  const int64_t *offset = d->offset + x;
  uint64_t there[DW_MAX_PARTS] = {0};
  CK_UNROLL
  for (int i = 0; i < parts; ++i)
    there[i] =
        dw_columns_there(d, first + i * part * d->group_step, dw_columns(part, width, stride));
  for (int64_t r = 0; r < d->out_rows; ++r, rows += d->kernel_h, offset += d->out_w)
    dw_group(d, rows, offset, first, there, count, width, stride, size);
}

/* Groups of a size, as long as at least `least` outputs are left. The last of a phase overlaps the
 * one before it; only a phase shorter than a group has sums that do not exist. */
CK_INLINE int64_t dw_groups(const struct ck_dw_row_args *d, int64_t phase, int64_t p,
                            int64_t outputs, int64_t least, const int width, const int stride,
                            const int size) {
  for (; p < outputs && outputs - p >= least; p += size) {
    const int64_t first = ck_max(0, ck_min(p, outputs - size));
    dw_group_rows(d, phase + first * d->phases, outputs - first, width, stride, size);
  }
  return p;
}

CK_INLINE void dw_rows(const struct ck_dw_row_args *d, const int width, const int stride) {
  const int size = dw_group_size(width, DW_GROUP), large = dw_group_size(width, DW_LARGE_GROUP);
  for (int64_t phase = 0; phase < ck_min(d->phases, d->out_w); ++phase) {
    const int64_t outputs = ck_ceil_div(d->out_w - phase, d->phases);
    int64_t p = 0;
    if (large == DW_LARGE_GROUP && outputs >= large)
      p = dw_groups(d, phase, p, outputs, size + 1, width, stride, large);
    p = dw_groups(d, phase, p, outputs, DW_SMALL_GROUP + 1, width, stride, size);
    dw_groups(d, phase, p, outputs, 0, width, stride, DW_SMALL_GROUP);
  }
}

#define DW_INSTANCES(width)                                                 \
  static void CK_FN(dwconv##width##wide1)(const struct ck_dw_row_args *d) { \
    dw_rows(d, width, 1);                                                   \
  }                                                                         \
  static void CK_FN(dwconv##width##wide2)(const struct ck_dw_row_args *d) { \
    dw_rows(d, width, 2);                                                   \
  }                                                                         \
  static void CK_FN(dwconv##width##wide3)(const struct ck_dw_row_args *d) { dw_rows(d, width, 3); }
DW_INSTANCES(3)
DW_INSTANCES(5)
DW_INSTANCES(7)
DW_INSTANCES(9)

void CK_FN(dwconvKxK)(const struct ck_dw_row_args *d) {
#define DW_STRIDES(width) \
  { CK_FN(dwconv##width##wide1), CK_FN(dwconv##width##wide2), CK_FN(dwconv##width##wide3) }
  static void (*const instances[4][3])(const struct ck_dw_row_args *) = {
      DW_STRIDES(3), DW_STRIDES(5), DW_STRIDES(7), DW_STRIDES(9)};
  const int64_t stride = d->group_step / d->tap_step, width = d->kernel_w;
  if (ck_dw_is_literal(width, stride))
    instances[width / 2 - 1][stride - 1](d);
  else
    dw_rows(d, 0, 0);
}

enum { DW_STAGE_VECTORS = 4 };

/* Copy what output channels read of a row into a staged row. Where they are input channels,
 * neighbours are copied ... */
CK_INLINE void dw_stage_vectors(const struct ck_stage_args *s, real *to, const int vectors) {
  const int64_t to_step = s->to_step, from_step = s->src_step;
  const real *from = (const real *)s->src + s->channel;
  for (int64_t left = s->pixels; left > 0; --left, to += to_step, from += from_step) {
    vf x[DW_STAGE_VECTORS];
    CK_UNROLL
    for (int v = 0; v < vectors; ++v) x[v] = vf_load(from + v * VF_LANES);
    CK_UNROLL
    for (int v = 0; v < vectors; ++v) vf_store(to + v * VF_LANES, x[v]);
  }
}

CK_INLINE void dw_stage_plain(const struct ck_stage_args *s, real *to) {
  const real *from = (const real *)s->src + s->channel;
  const int64_t whole = s->lanes / VF_LANES * VF_LANES;
  const vf_tail tail = vf_first(s->lanes - whole);
  if (s->lanes == VF_LANES) {
    dw_stage_vectors(s, to, 1);
  } else if (s->lanes == 2 * VF_LANES) {
    dw_stage_vectors(s, to, 2);
  } else if (s->lanes == DW_STAGE_VECTORS * VF_LANES) {
    dw_stage_vectors(s, to, DW_STAGE_VECTORS);
  } else {
    for (int64_t i = 0; i < s->pixels; ++i, to += s->to_step, from += s->src_step) {
      for (int64_t c = 0; c < whole; c += VF_LANES) vf_store(to + c, vf_load(from + c));
      if (whole < s->lanes) vf_store(to + whole, vf_load_n(from + whole, tail));
    }
  }
}

/* Where, counted from the first one's, the groups of a vector's output channels begin that are
 * there; gives the last. */
CK_INLINE int64_t dw_groups_of(int64_t channel, int64_t lanes, int64_t group_in, int64_t group_out,
                               real_bits *lane) {
  int64_t begin = 0, left = group_out - channel % group_out;
  for (int64_t i = 0; i < VF_LANES; ++i, --left) {
    if (left == 0 && i < lanes) {
      left = group_out;
      begin += group_in;
    }
    lane[i] = (real_bits)begin;
  }
  return begin;
}

/* Lanes of one channel of each group, of a pixel from that channel of the first group on; the last
 * group begins `last` after it, `wide`: more than a vector. */
CK_INLINE vf dw_of_groups(const real *from, int64_t last, vf_index index, const bool wide) {
  const vf_tail some = vf_first(last + 1);
  if (wide) return vf_repeat_two(from, some, vf_first(last + 1 - VF_LANES), index);
  return vf_repeat(vf_span_of(from, some), index);
}

/* ... elsewhere a vector is permuted for each channel of a group ... */
CK_INLINE void dw_stage_groups(const struct ck_stage_args *s, const real_bits *lane,
                               const real *from, int64_t last, const bool wide) {
  const int64_t members = s->group_in, member_step = s->member_step;
  const vf_index index = vf_index_of(lane);
  real *to = s->to;
  for (int64_t i = 0; i < s->pixels; ++i, to += VF_LANES, from += s->src_step)
    for (int64_t m = 0; m < members; ++m)
      vf_store(to + m * member_step, dw_of_groups(from + m, last, index, wide));
}

/* ... unless the groups begin more than two vectors apart. */
CK_INLINE void dw_stage_spread(const struct ck_stage_args *s, const real_bits *lane,
                               const real *from, real *to) {
  for (int64_t i = 0; i < s->pixels; ++i, to += VF_LANES, from += s->src_step)
    for (int64_t m = 0; m < s->group_in; ++m)
      for (int j = 0; j < VF_LANES; ++j) to[m * s->member_step + j] = from[(int64_t)lane[j] + m];
}

void CK_FN(dw_stage)(const struct ck_stage_args *s) {
  if (s->group_in == 1 && s->group_out == 1) {
    dw_stage_plain(s, s->to);
    return;
  }
  const real *from = (const real *)s->src + s->channel / s->group_out * s->group_in;
  real_bits lane[VF_LANES];
  const int64_t last = dw_groups_of(s->channel, s->lanes, s->group_in, s->group_out, lane);
  if (last < VF_LANES)
    dw_stage_groups(s, lane, from, last, false);
  else if (last < 2 * VF_LANES)
    dw_stage_groups(s, lane, from, last, true);
  else
    dw_stage_spread(s, lane, from, s->to);
}
