/* The GEMM microkernel for one vector of columns and at most half a vector more, as the 24 channels
 * of MobileNetV2: two rows share a vector for what is more, the first of them in its lower half.
 * That takes three FMAs for two rows where gemm_tile takes four. The sums are the same.
 */
enum { GEMM_PAIRS = (VF_GEMM_ROWS + 1) / 2 };

struct gemm_halves {
  vf one[VF_GEMM_ROWS]; /* the first vector of each row */
  vf two[GEMM_PAIRS];   /* what is more, of two rows */
};

/* The second row of a pair; the last of an odd number of rows is its own. */
CK_INLINE int gemm_partner(int row, int rows) { return row + 1 < rows ? row + 1 : row; }

/* What is more than a vector, of two rows. */
CK_INLINE vf gemm_load_two(const real *row, int64_t step, vf_tail tail) {
  return vf_join(vf_load_n(row + VF_LANES, tail), vf_load_n(row + step + VF_LANES, tail));
}

CK_INLINE void gemm_halves_begin(const struct ck_gemm_args *g, const real *c, const int rows,
                                 vf_tail tail, struct gemm_halves *sum) {
  if (g->bias) {
    const real *bias = g->bias;
    CK_UNROLL
    for (int i = 0; i < rows; ++i) sum->one[i] = vf_load(bias);
    CK_UNROLL
    for (int i = 0; i < rows; i += 2) sum->two[i / 2] = vf_load_twice(bias + VF_LANES);
  } else if (g->row_bias) {
    const real *bias = g->row_bias;
    CK_UNROLL
    for (int i = 0; i < rows; ++i) sum->one[i] = vf_set1(bias[i]);
    CK_UNROLL
    for (int i = 0; i < rows; i += 2)
      sum->two[i / 2] = vf_halves(sum->one[i], sum->one[gemm_partner(i, rows)]);
  } else {
    CK_UNROLL
    for (int i = 0; i < rows; i += 2, c += 2 * g->c_step) {
      const int partner = gemm_partner(i, rows);
      const int64_t step = (partner - i) * g->c_step;
      sum->one[i] = vf_load(c);
      sum->one[partner] = vf_load(c + step);
      sum->two[i / 2] = gemm_load_two(c, step, tail);
    }
  }
}

CK_INLINE void gemm_halves_look(void *to, const struct gemm_halves *sum, const int rows) {
  vf one = vf_load(to), two = vf_zero();
  CK_UNROLL
  for (int i = 0; i < rows; ++i) one = vf_fma(sum->one[i], vf_zero(), one);
  CK_UNROLL
  for (int i = 0; i < rows; i += 2) two = vf_fma(sum->two[i / 2], vf_zero(), two);
  vf_store(to, vf_add(one, two));
}

CK_INLINE void gemm_halves_end(const struct ck_gemm_args *g, struct gemm_place *at, const int rows,
                               vf_tail tail, struct gemm_halves *sum) {
  if (g->zero) gemm_halves_look(g->zero, sum, rows);
  if (at->residual) {
    CK_UNROLL
    for (int i = 0; i < rows; i += 2) {
      const int partner = gemm_partner(i, rows);
      const real *residual = at->residual + i * g->c_step;
      const int64_t step = (partner - i) * g->c_step;
      sum->one[i] = vf_add(sum->one[i], vf_load(residual));
      if (partner > i) sum->one[partner] = vf_add(sum->one[partner], vf_load(residual + step));
      sum->two[i / 2] = vf_add(sum->two[i / 2], gemm_load_two(residual, step, tail));
    }
    at->residual += rows * g->c_step;
  }
  const vf low = vf_set1((real)g->low), high = vf_set1((real)g->high);
  real *c = at->c;
  CK_UNROLL
  for (int i = 0; i < rows; ++i, c += g->c_step) {
    const vf two = vf_min(high, vf_max(low, sum->two[i / 2]));
    vf_store(c, vf_min(high, vf_max(low, sum->one[i])));
    vf_store_n(c + VF_LANES, tail, i % 2 ? vf_upper(two) : two);
  }
  at->c = c;
}

/* Terms, until the weights end. */
CK_INLINE void gemm_halves_terms(struct gemm_walk *walk, struct gemm_halves *sum, const real *b,
                                 const real *end, const bool ahead, const int rows) {
  CK_NO_UNROLL
  do {
    const vf one = vf_load(b), two = vf_load_twice(b + VF_LANES);
    CK_UNROLL
    for (int i = 0; i < rows; i += 2) {
      const int j = gemm_partner(i, rows);
      const vf pixel = gemm_pixel(walk, i), partner = gemm_pixel(walk, j);
      sum->one[i] = vf_fma(pixel, one, sum->one[i]);
      if (j > i) sum->one[j] = vf_fma(partner, one, sum->one[j]);
      sum->two[i / 2] = vf_fma(vf_halves(pixel, partner), two, sum->two[i / 2]);
    }
    b += 2 * VF_LANES;
    gemm_next_term(walk, ahead, rows);
  } while (b < end);
}

CK_INLINE void gemm_halves_tile(struct ck_gemm_args *g, struct gemm_place *at, const int rows) {
  const vf_tail tail = vf_first(g->columns - VF_LANES);
  const real *b = g->b;
  struct gemm_halves sum;
  gemm_halves_begin(g, at->c, rows, tail, &sum);

  struct gemm_walk walk = gemm_walk_from(g, at->a, rows);
  gemm_look_ahead(g, &walk, 2 * VF_LANES, rows);
  const int64_t next = g->a_next - g->a_run;
  for (int64_t left = g->terms; left > 0; left -= g->a_run) {
    const real *b_end = b + ck_min(left, g->a_run) * 2 * VF_LANES;
    if (rows > 1 && b < walk.near_end) {
      const real *near_end = walk.near_end < b_end ? walk.near_end : b_end;
      gemm_halves_terms(&walk, &sum, b, near_end, true, rows);
      b = near_end;
    }
    if (b < b_end) gemm_halves_terms(&walk, &sum, b, b_end, false, rows);
    b = b_end;
    gemm_next_run(g, &walk, next, rows);
  }
  gemm_halves_end(g, at, rows, tail, &sum);
}

CK_INLINE void gemm_halves_tiles(struct ck_gemm_args *g, const int rows) {
  struct gemm_place at = {g->a, g->residual, g->c};
  CK_NO_UNROLL
  for (int64_t t = 0; t < g->tiles; ++t, at.a += g->a_tile) gemm_halves_tile(g, &at, rows);
}

/* The instances: 1 .. VF_GEMM_ROWS rows, as ck_gemm14x1h_f32_avx512. */
#define GEMM_HALVES_INSTANCE(r, v) \
  static void CK_FN(gemm##r##x##v##h)(struct ck_gemm_args * g) { gemm_halves_tiles(g, r); }
GEMM_EACH_ROW(GEMM_HALVES_INSTANCE, 1)

static void gemm_halves(struct ck_gemm_args *g) {
#define GEMM_HALVES_ENTRY(r, v) CK_FN(gemm##r##x##v##h),
  static void (*const tiles[VF_GEMM_ROWS])(struct ck_gemm_args *) = {
      GEMM_EACH_ROW(GEMM_HALVES_ENTRY, 1)};
  tiles[g->rows - 1](g);
}
