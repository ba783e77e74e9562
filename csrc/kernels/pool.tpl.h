/* Pooling: rows of elements joined one with the other, by addition or by the larger. Which elements
 * are neighbours (channels of a pixel, pixels of a row) makes no difference here.
 *
 * Four vectors of the result are made at once: of a long row, neighbours; of short ones, those of
 * four rows. What does not fill a vector at the end of a row is made by a vector that ends there
 * and overlaps its predecessor. */
enum { POOL_VECTORS = 4 };

CK_INLINE vf pool_join(vf a, vf b, const bool max) { return max ? vf_maximum(a, b) : vf_add(a, b); }

CK_INLINE vf pool_load(const real *p, const bool other, const bool full, vf_tail tail) {
  if (other) return vf_even(vf_load(p), vf_load(p + VF_LANES));
  return vf_load_either(p, full, tail);
}

/* Sums of nothing but negative zeros come out as zero, as if they had begun with it: so it makes no
 * difference which zeros of the padding are added and which are skipped. */
CK_INLINE vf pool_mean(const struct ck_pool_args *a, vf sum, int64_t i, const bool full,
                       vf_tail tail) {
  const vf divisor = vf_set1((real)a->divisor);
  const real *columns = a->divisors;
  return vf_div(vf_add(sum, vf_zero()),
                columns ? vf_mul(divisor, vf_load_either(columns + i, full, tail)) : divisor);
}

/* Vectors of the result: the first is of elements from i on, the next in_gap and out_gap further
 * on, and of elements i_gap further on. */
struct pool_place {
  const real *in;
  real *out;
  int64_t i, in_gap, out_gap, i_gap;
};

/* Bring the lines near that vectors at a tap will need. */
CK_INLINE void pool_look_ahead(struct pool_place at, const real *tap) {
  CK_UNROLL
  for (int v = 0; v < POOL_VECTORS; ++v)
    if (at.i_gap == 0 || v * sizeof(vf) % CK_ALIGN == 0)
      __builtin_prefetch(tap + v * at.in_gap, 0, 3);
}

CK_INLINE void pool_join_taps(const struct ck_pool_args *a, struct pool_place at, vf *y,
                              const bool max, const bool other, const int vectors, const bool full,
                              vf_tail tail) {
  int64_t taps = a->taps;
  const real *in = at.in + (other ? 2 : 1) * at.i;
  CK_UNROLL
  for (int v = 0; v < vectors; ++v) {
    if (a->more)
      y[v] = vf_load_either(at.out + at.i + v * at.out_gap, full, tail);
    else if (taps)
      y[v] = pool_load(in + v * at.in_gap, other, full, tail);
    else
      y[v] = max ? vf_set1(-(real)__builtin_inf()) : vf_zero();
  }
  if (!a->more) {
    in += a->tap_step;
    --taps;
  }
  CK_NO_UNROLL
  for (; taps > 0; --taps, in += a->tap_step) {
    CK_UNROLL
    for (int v = 0; v < vectors; ++v)
      y[v] = pool_join(y[v], pool_load(in + v * at.in_gap, other, full, tail), max);
  }
  if (vectors == POOL_VECTORS && a->ahead) {
    pool_look_ahead(at, in - a->tap_step + a->ahead);
    if (a->taps > 1) pool_look_ahead(at, in - 2 * a->tap_step + a->ahead);
  }
}

/* From sums to means, where they are wanted, and to their place. */
CK_INLINE void pool_finish(const struct ck_pool_args *a, struct pool_place at, vf *y,
                           const bool max, const int vectors, const bool full, vf_tail tail) {
  CK_UNROLL
  for (int v = 0; v < vectors; ++v) {
    if (!max && a->mean) y[v] = pool_mean(a, y[v], at.i + v * at.i_gap, full, tail);
    vf_store_either(at.out + at.i + v * at.out_gap, full, tail, y[v]);
  }
}

CK_INLINE void pool_make(const struct ck_pool_args *a, struct pool_place at, const bool max,
                         const bool other, const int vectors, const bool full, vf_tail tail) {
  vf y[POOL_VECTORS];
  pool_join_taps(a, at, y, max, other, vectors, full, tail);
  pool_finish(a, at, y, max, vectors, full, tail);
}

/* A row, some vectors at a time. Where these do not divide it, the last of them overlap others;
 * they are computed first and stored last, so that they see the elements as they were where the
 * result replaces them. */
CK_INLINE void pool_row(const struct ck_pool_args *a, const real *in, real *out, const bool max,
                        const bool other, const int vectors) {
  const vf_tail all = vf_first(VF_LANES);
  const int64_t step = vectors * VF_LANES, in_step = (other ? 2 : 1) * VF_LANES;
  struct pool_place at = {in, out, 0, in_step, VF_LANES, VF_LANES};
  struct pool_place end = {in, out, a->n - step, in_step, VF_LANES, VF_LANES};
  const bool rest = a->n % step;
  vf last[POOL_VECTORS] = {vf_zero()}; /* or gcc warns: it does not follow `rest` */
  if (rest) pool_join_taps(a, end, last, max, other, vectors, true, all);
  for (; at.i + step <= a->n; at.i += step) pool_make(a, at, max, other, vectors, true, all);
  if (rest) pool_finish(a, end, last, max, vectors, true, all);
}

/* A column of vectors, from element i of every row on. */
CK_INLINE void pool_column(const struct ck_pool_args *a, int64_t i, const bool max,
                           const bool other, const bool full, vf_tail tail) {
  struct pool_place at = {a->in, a->out, i, a->in_step, a->out_step, 0};
  int64_t p = 0;
  for (; p + POOL_VECTORS <= a->pixels; p += POOL_VECTORS) {
    pool_make(a, at, max, other, POOL_VECTORS, full, tail);
    at.in += POOL_VECTORS * a->in_step;
    at.out += POOL_VECTORS * a->out_step;
  }
  for (; p < a->pixels; ++p, at.in += a->in_step, at.out += a->out_step)
    pool_make(a, at, max, other, 1, full, tail);
}

CK_INLINE void pool_rows(const struct ck_pool_args *a, const bool max, const bool other) {
  const vf_tail all = vf_first(VF_LANES);
  const bool twice = a->n % VF_LANES == 0 || (!a->more && a->in != a->out); /* may be computed */
  const real *in = a->in;
  real *out = a->out;
  if (a->n < VF_LANES) {
    pool_column(a, 0, max, other, false, vf_first(a->n));
  } else if (a->n < POOL_VECTORS * VF_LANES && twice) {
    for (int64_t i = 0; i < a->n; i += VF_LANES)
      pool_column(a, ck_min(i, a->n - VF_LANES), max, other, true, all);
  } else {
    for (int64_t p = 0; p < a->pixels; ++p, in += a->in_step, out += a->out_step)
      if (a->n < POOL_VECTORS * VF_LANES)
        pool_row(a, in, out, max, other, 1);
      else
        pool_row(a, in, out, max, other, POOL_VECTORS);
  }
}

void CK_FN(pool_max)(const struct ck_pool_args *a) {
  if (a->every_other)
    pool_rows(a, true, true);
  else
    pool_rows(a, true, false);
}

void CK_FN(pool_sum)(const struct ck_pool_args *a) {
  if (a->every_other)
    pool_rows(a, false, true);
  else
    pool_rows(a, false, false);
}

/* Copy the first n elements of each pixel. */
void CK_FN(pool_pick)(const struct ck_pool_args *a) {
  const real *in = a->in;
  real *out = a->out;
  for (int64_t p = 0; p < a->pixels; ++p, in += a->in_step, out += a->out_step)
    for (int64_t i = 0; i < a->n; ++i) out[i] = in[i];
}

/* Means of `planes` planes at once, whose chains of additions hide one another's latency. A plane
 * is seen as rows of L pixels, an incomplete one first; lane i sums up column i from the top, and
 * in the end the two halves of the lanes are added until one is left. */
CK_INLINE void pool_few_planes(const real *in, real *out, int64_t n, real divisor,
                               const int planes) {
  const int64_t head = n % VF_LANES;
  vf sum[POOL_VECTORS];
  CK_UNROLL
  for (int p = 0; p < planes; ++p)
    sum[p] = head ? vf_load_n(in + p * n, vf_first(head)) : vf_zero();
  for (int64_t i = head; i < n; i += VF_LANES) {
    CK_UNROLL
    for (int p = 0; p < planes; ++p) sum[p] = vf_add(sum[p], vf_load(in + p * n + i));
  }
  CK_UNROLL
  for (int p = 0; p < planes; ++p) {
    real lane[VF_LANES];
    vf_store(lane, sum[p]);
    CK_UNROLL
    for (int half = VF_LANES / 2; half > 0; half /= 2) {
      CK_UNROLL
      for (int i = 0; i < half; ++i) lane[i] += lane[i + half];
    }
    out[p] = (lane[0] + 0) / divisor;
  }
}

void CK_FN(pool_planes)(const struct ck_pool_args *a) {
  const real *in = a->in;
  real *out = a->out;
  int64_t p = 0;
  for (; p + POOL_VECTORS <= a->pixels; p += POOL_VECTORS)
    pool_few_planes(in + p * a->n, out + p, a->n, (real)a->divisor, POOL_VECTORS);
  for (; p < a->pixels; ++p) pool_few_planes(in + p * a->n, out + p, a->n, (real)a->divisor, 1);
}
