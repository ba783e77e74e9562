/* NCHW: a depthwise 3x3 of planes of few columns, which are read where they lie. A vector has the
 * outputs of a row, or of a part of one, or of the same short row of two channels. What the taps
 * meet in three rows of the image is at hand when a row is made. Masks stand for padding beside the
 * image.
 */

enum { NARROW_HALF = VF_LANES / 2 };

/* A vector of columns of outputs, of one channel or of two. */
struct narrow_view {
  int64_t x, left;  /* the first column, and that of the image under its first tap */
  vf_tail in[3][2]; /* of what is under each column of taps, two vectors: lanes in the image */
  vf_tail out;      /* lanes of a channel's outputs; */
  bool full;        /* those are all */
};

struct narrow {
  const struct ck_narrow_args *args;
  const real *plane;
#if VF_HAS_MASK
  int64_t second; /* elements from a row's first vector to its second, or to the other channel's */
  vf_index pick[3]; /* for each column of taps: lanes of both */
#endif
  vf w[3][3], bias, low, high;
};

/* What the taps meet in a row of the image: picked from what is under the outputs, where a permute
 * does that. Elsewhere each column of taps loads its own, or, where one vector holds the row, has
 * that moved along. At stride 2 lanes are sorted, and stay in the order in which that leaves them;
 * narrow_rows puts the sums in order. */
CK_INLINE void narrow_under(const struct narrow *n, const struct narrow_view *v, const real *row,
                            const int stride, const int vectors, vf *tap) {
#if VF_HAS_MASK
  const vf a = vf_load_n(row, v->in[0][0]);
  const vf b = vectors > 1 ? vf_load_n(row + n->second, v->in[0][1]) : vf_zero();
  CK_UNROLL
  for (int kx = 0; kx < 3; ++kx) tap[kx] = vf_pick(a, n->pick[kx], b);
  (void)stride;
#else
  const vf a = vf_load_n(row, v->in[0][0]);
  if (stride == 2) {
    const vf b = vf_load_n(row + VF_LANES, v->in[0][1]);
    tap[0] = vf_mix_even(a, b);
    tap[1] = vf_mix_odd(a, b);
    tap[2] = vf_mix_next(tap[0]);
  } else {
    tap[0] = a;
    tap[1] = vectors > 1 ? vf_load_n(row + 1, v->in[1][0]) : vf_drop(a, 1);
    tap[2] = vectors > 1 ? vf_load_n(row + 2, v->in[2][0]) : vf_drop(a, 2);
  }
  (void)n;
#endif
}

CK_INLINE void narrow_load(const struct narrow *n, const struct narrow_view *v, int64_t y,
                           const int stride, const int vectors, vf *tap) {
  if ((uint64_t)y < (uint64_t)n->args->height)
    narrow_under(n, v, n->plane + y * n->args->width + v->left, stride, vectors, tap);
  else
    tap[0] = tap[1] = tap[2] = vf_zero();
}

/* Column by column, as the kernels for pixels sum. */
CK_INLINE vf narrow_sum(const struct narrow *n, vf rows[3][3], const int first) {
  vf sum = n->bias;
  CK_UNROLL
  for (int kx = 0; kx < 3; ++kx) {
    CK_UNROLL
    for (int ky = 0; ky < 3; ++ky) sum = vf_fma(rows[(first + ky) % 3][kx], n->w[ky][kx], sum);
  }
  return vf_min(n->high, vf_max(n->low, sum));
}

/* All rows; three of the image take turns. */
CK_INLINE void narrow_rows(const struct narrow *n, const struct narrow_view *v, real *const *out,
                           const int stride, const int vectors, const int channels) {
  const struct ck_narrow_args *a = n->args;
  vf in[3][3];
  CK_UNROLL
  for (int j = 0; j < 3 - stride; ++j) narrow_load(n, v, j - a->pad_top, stride, vectors, in[j]);
  for (int64_t y = 0; y < a->rows; y += 3) {
    CK_UNROLL
    for (int i = 0; i < 3; ++i) {
      if (y + i == a->rows) return;
      CK_UNROLL
      for (int j = 3 - stride; j < 3; ++j)
        narrow_load(n, v, (y + i) * stride + j - a->pad_top, stride, vectors,
                    in[(i * stride + j) % 3]);
      vf sum = narrow_sum(n, in, i * stride);
      const int64_t at = (y + i) * a->cols;
#if !VF_HAS_MASK
      if (stride == 2) sum = vf_unmix(sum);
#endif
      if (channels == 1) {
        vf_store_either(out[0] + at, !VF_HAS_MASK && v->full, v->out, sum);
      } else { /* in halves, which fewer lines share */
        vf_store_half_n(out[0] + at, v->out, sum);
        vf_store_half_n(out[1] + at, v->out, vf_upper(sum));
      }
    }
  }
}

CK_INLINE struct narrow_view narrow_see(const struct ck_narrow_args *a, int64_t x, int64_t cols,
                                        const int channels) {
  struct narrow_view v = {
      .x = x, .left = x * a->stride - a->pad_left, .out = vf_first(cols), .full = cols >= VF_LANES};
  for (int kx = 0; kx < 3; ++kx) {
    const int64_t begin = -v.left - kx, end = a->width - v.left - kx;
    v.in[kx][0] = vf_between(begin, end);
    v.in[kx][1] = channels > 1 ? v.in[kx][0] : vf_between(begin - VF_LANES, end - VF_LANES);
  }
  return v;
}

CK_INLINE struct narrow narrow_of(const struct ck_narrow_args *a, const int channels) {
  struct narrow n = {.args = a, .low = vf_set1((real)a->low), .high = vf_set1((real)a->high)};
#if VF_HAS_MASK
  for (int kx = 0; kx < 3; ++kx) {
    real_bits lanes[VF_LANES];
    for (int i = 0; i < VF_LANES; ++i) {
      const int c = channels > 1 ? i / NARROW_HALF : 0;
      lanes[i] = (real_bits)(c * VF_LANES + (i - c * NARROW_HALF) * a->stride + kx);
    }
    n.pick[kx] = vf_index_of(lanes);
  }
#else
  (void)channels;
#endif
  return n;
}

/* The same of one channel in all lanes, or of two in half of them each. */
CK_INLINE vf narrow_both(const real *p, const real *q, const int channels) {
  return channels > 1 ? vf_halves(vf_set1(*p), vf_set1(*q)) : vf_set1(*p);
}

/* A channel, and perhaps another. */
CK_INLINE void narrow_channel(struct narrow *n, const struct narrow_view *v, int64_t o,
                              int64_t other, const int stride, const int vectors,
                              const int channels) {
  const struct ck_narrow_args *a = n->args;
  const int64_t both[] = {o, other}, plane = a->height * a->width;
  const real *w[2], *bias[2], *x[2];
  real *out[2];
  CK_UNROLL
  for (int c = 0; c < 2; ++c) {
    const int64_t at = both[c];
    w[c] = (const real *)a->weights + at / VF_LANES * 9 * VF_LANES + at % VF_LANES;
    bias[c] = (const real *)a->bias + at;
    x[c] = (const real *)a->x + (at - a->first) * plane;
    out[c] = (real *)a->y + (at - a->first) * a->out_plane + v->x;
  }
  n->plane = x[0];
#if VF_HAS_MASK
  n->second = channels > 1 ? x[1] - x[0] : VF_LANES;
#endif
  n->bias = narrow_both(bias[0], bias[1], channels);
  CK_UNROLL
  for (int t = 0; t < 9; ++t)
    n->w[t / 3][t % 3] = narrow_both(w[0] + t * VF_LANES, w[1] + t * VF_LANES, channels);
  narrow_rows(n, v, out, stride, vectors, channels);
}

/* Of an odd number the last is made twice. */
CK_INLINE void narrow_pairs(const struct ck_narrow_args *a, const int stride) {
  struct narrow n = narrow_of(a, 2);
  const struct narrow_view v = narrow_see(a, 0, a->cols, 2);
  for (int64_t o = a->first; o < a->end; o += 2)
    narrow_channel(&n, &v, o, ck_min(o + 1, a->end - 1), stride, 2, 2);
}

CK_INLINE void narrow_singles(const struct ck_narrow_args *a, const int stride) {
  const int64_t views = ck_ceil_div(a->cols, ck_narrow_columns(VF_LANES, stride));
  const int64_t cols = ck_ceil_div(a->cols, views);
  struct narrow n = narrow_of(a, 1);
  struct narrow_view v[CK_NARROW_VECTORS];
  for (int64_t i = 0; i < views; ++i)
    v[i] = narrow_see(a, i * cols, ck_min(cols, a->cols - i * cols), 1);
  for (int64_t o = a->first; o < a->end; ++o)
    for (int64_t i = 0; i < views; ++i)
      if (a->width - v[i].left > VF_LANES)
        narrow_channel(&n, &v[i], o, o, stride, 2, 1);
      else
        narrow_channel(&n, &v[i], o, o, stride, 1, 1);
}

CK_INLINE void narrow_planes(const struct ck_narrow_args *a, const int stride) {
  if (VF_HAS_MASK && a->cols <= NARROW_HALF && (a->cols - 1) * stride + 3 <= VF_LANES)
    narrow_pairs(a, stride);
  else
    narrow_singles(a, stride);
}

void CK_FN(dwconv3x3_narrow)(const struct ck_narrow_args *a) {
  if (a->stride == 1)
    narrow_planes(a, 1);
  else
    narrow_planes(a, 2);
}
