/* The GEMM microkernel: `rows` pixels x `vectors` vectors of output channels, held in registers
 * from the first term to the last. Both are literal constants in every instance.
 *
 * Terms are summed in order from the bias on, whatever the tile, so that tiles of different heights
 * give the same bits.
 */
enum { GEMM_MAX_VECTORS = 2, GEMM_BASES = (VF_GEMM_ROWS + 2) / 3 };

/* Where a tile lies. */
struct gemm_place {
  const real *a, *residual;
  real *c;
};

/* A tile's rows of a, term by term, and what is brought near meanwhile. Every third row has a
 * pointer: an address holds 0, 1 or 2 steps more. */
struct gemm_walk {
  const real *a[GEMM_BASES];
  int64_t a_step;
  int64_t runs;         /* that are left of a line */
  const char *near;     /* the next line to bring near, */
  const real *near_end; /* and the weights of the term where these lines end */
};

CK_INLINE struct gemm_walk gemm_walk_from(const struct ck_gemm_args *g, const real *a,
                                          const int rows) {
  struct gemm_walk walk = {.a_step = g->a_step, .runs = g->a_runs};
  CK_UNROLL
  for (int q = 0; 3 * q < rows; ++q) walk.a[q] = a + 3 * q * g->a_step;
  return walk;
}

CK_INLINE vf gemm_pixel(const struct gemm_walk *walk, int row) {
  return vf_set1(walk->a[row / 3][row % 3 * walk->a_step]);
}

/* Each of a tile's terms brings a line near, of the weights or, when there are no more of them, of
 * the input, until these end; but a single row is done before they would come. Terms after that do
 * without: to choose term by term, or to ask for a line that is near, takes as long as 3 % of the
 * FMAs of 14 rows. `step` is what one term has of weights. */
CK_INLINE void gemm_look_ahead(struct ck_gemm_args *g, struct gemm_walk *walk, const int step,
                               const int rows) {
  struct ck_ahead *ahead = &g->ahead[g->ahead[0].at >= g->ahead[0].end];
  walk->near = ahead->at;
  walk->near_end = g->b;
  if (rows == 1 || ahead->at >= ahead->end) return;
  const int64_t lines = (ahead->end - ahead->at + CK_ALIGN - 1) / CK_ALIGN;
  const int64_t terms = ck_min(lines, g->terms);
  ahead->at += terms * CK_ALIGN;
  walk->near_end += terms * step;
}

CK_INLINE void gemm_next_term(struct gemm_walk *walk, const bool ahead, const int rows) {
  CK_UNROLL
  for (int q = 0; 3 * q < rows; ++q) walk->a[q] = vf_hide(walk->a[q] + 1);
  if (!ahead) return;
  __builtin_prefetch(walk->near, 0, 2);
  walk->near += CK_ALIGN;
  CK_HIDE(walk->near);
}

/* From the end of a run of terms to the next run, `step` elements on, or to that of the next line.
 */
CK_INLINE void gemm_next_run(const struct ck_gemm_args *g, struct gemm_walk *walk, int64_t step,
                             const int rows) {
  CK_UNROLL
  for (int q = 0; 3 * q < rows; ++q) walk->a[q] += step;
  if (--walk->runs != 0) return;
  walk->runs = g->a_runs;
  CK_UNROLL
  for (int q = 0; 3 * q < rows; ++q) walk->a[q] += g->a_line - g->a_next;
}

CK_INLINE void gemm_term(const struct gemm_walk *walk, vf (*sum)[GEMM_MAX_VECTORS], const real *b,
                         const int rows, const int vectors) {
  vf w[GEMM_MAX_VECTORS];
  CK_UNROLL
  for (int j = 0; j < vectors; ++j) w[j] = vf_load(b + j * VF_LANES);
  CK_UNROLL
  for (int i = 0; i < rows; ++i) {
    const vf pixel = gemm_pixel(walk, i);
    CK_UNROLL
    for (int j = 0; j < vectors; ++j) sum[i][j] = vf_fma(pixel, w[j], sum[i][j]);
  }
}

/* Terms, until the weights end. */
CK_INLINE void gemm_terms(struct gemm_walk *walk, vf (*sum)[GEMM_MAX_VECTORS], const real *b,
                          const real *end, const bool ahead, const int rows, const int vectors) {
  CK_NO_UNROLL
  do {
    gemm_term(walk, sum, b, rows, vectors);
    b += vectors * VF_LANES;
    gemm_next_term(walk, ahead, rows);
  } while (b < end);
}

/* All terms, run by run. */
CK_INLINE void gemm_sum(const struct ck_gemm_args *g, struct gemm_walk *walk,
                        vf (*sum)[GEMM_MAX_VECTORS], const real *b, const int rows,
                        const int vectors) {
  const int64_t next = g->a_next - g->a_run;
  for (int64_t left = g->terms; left > 0; left -= g->a_run) {
    const real *b_end = b + ck_min(left, g->a_run) * vectors * VF_LANES;
    if (rows > 1 && b < walk->near_end) {
      const real *near_end = walk->near_end < b_end ? walk->near_end : b_end;
      gemm_terms(walk, sum, b, near_end, true, rows, vectors);
      b = near_end;
    }
    if (b < b_end) gemm_terms(walk, sum, b, b_end, false, rows, vectors);
    b = b_end;
    gemm_next_run(g, walk, next, rows);
  }
}

/* The same of planes, each of which has a place of its own. */
CK_INLINE void gemm_sum_planes(const struct ck_gemm_args *g, struct gemm_walk *walk,
                               vf (*sum)[GEMM_MAX_VECTORS], const real *b, const int rows,
                               const int vectors) {
  const int64_t next = g->a_next - g->a_run;
  const int64_t *at = g->b_at, *end = at + g->terms;
  while (at < end) {
    const int64_t *run_end = end - at < g->a_run ? end : at + g->a_run;
    CK_NO_UNROLL
    do {
      gemm_term(walk, sum, b + *at, rows, vectors);
      gemm_next_term(walk, false, rows);
    } while (++at < run_end);
    gemm_next_run(g, walk, next, rows);
  }
}

/* Look at sums of every step-th row, in as many chains, that do not wait for each other, as there
 * are registers for; without FMAs a product takes one. */
CK_INLINE void gemm_look_at(void *to, vf (*sum)[GEMM_MAX_VECTORS], const int rows,
                            const int vectors, const int step) {
  enum { CHAINS = VF_REGISTERS >= 32 ? 4 : VF_HAS_FMA ? 2 : 1 };
  vf zero[CHAINS] = {vf_load(to)};
  CK_UNROLL
  for (int i = 1; i < CHAINS; ++i) zero[i] = vf_zero();
  CK_UNROLL
  for (int i = 0; i < rows; i += step) {
    CK_UNROLL
    for (int j = 0; j < vectors; ++j) {
      const int chain = (i * vectors + j) % CHAINS;
      zero[chain] = vf_fma(sum[i][j], vf_zero(), zero[chain]);
    }
  }
  CK_UNROLL
  for (int i = 1; i < CHAINS; ++i) zero[0] = vf_add(zero[0], zero[i]);
  vf_store(to, zero[0]);
}

/* Where rows are channels a pixel that is not finite shows in all of its tile, but those of its own
 * group: in the first row or the last, or in another tile. */
CK_INLINE void gemm_look(const struct ck_gemm_args *g, vf (*sum)[GEMM_MAX_VECTORS], const int rows,
                         const int vectors) {
  if (g->row_bias)
    gemm_look_at(g->zero, sum, rows, vectors, rows > 1 ? rows - 1 : 1);
  else
    gemm_look_at(g->zero, sum, rows, vectors, 1);
}

CK_INLINE void gemm_tile(struct ck_gemm_args *g, struct gemm_place *at, const bool full,
                         const int rows, const int vectors) {
  const real *b = g->b;
  vf_tail tail[GEMM_MAX_VECTORS];
  vf sum[VF_GEMM_ROWS][GEMM_MAX_VECTORS];

  CK_UNROLL
  for (int j = 0; j < vectors; ++j) tail[j] = vf_first(g->columns - j * VF_LANES);

  if (g->bias) {
    const real *bias = g->bias;
    CK_UNROLL
    for (int i = 0; i < rows; ++i) {
      CK_UNROLL
      for (int j = 0; j < vectors; ++j) sum[i][j] = vf_load(bias + j * VF_LANES);
    }
  } else if (g->row_bias) {
    const real *row_bias = g->row_bias;
    CK_UNROLL
    for (int i = 0; i < rows; ++i) {
      CK_UNROLL
      for (int j = 0; j < vectors; ++j) sum[i][j] = vf_set1(row_bias[i]);
    }
  } else {
    const real *row = vf_hide(at->c);
    CK_UNROLL
    for (int i = 0; i < rows; ++i, row += g->c_step) {
      CK_UNROLL
      for (int j = 0; j < vectors; ++j)
        sum[i][j] = vf_load_either(row + j * VF_LANES, full, tail[j]);
    }
  }

  struct gemm_walk walk = gemm_walk_from(g, at->a, rows);
  gemm_look_ahead(g, &walk, vectors * VF_LANES, rows);
  if (g->b_at)
    gemm_sum_planes(g, &walk, sum, b, rows, vectors);
  else
    gemm_sum(g, &walk, sum, b, rows, vectors);

  if (g->zero) gemm_look(g, sum, rows, vectors);
  if (at->residual) {
    const real *residual = at->residual;
    CK_UNROLL
    for (int i = 0; i < rows; ++i, residual += g->c_step) {
      CK_UNROLL
      for (int j = 0; j < vectors; ++j)
        sum[i][j] = vf_add(sum[i][j], vf_load_either(residual + j * VF_LANES, full, tail[j]));
    }
    at->residual = residual;
  }
  /* Row by row: clamping all sums before the first is stored takes 4 ns more for a tile, the time
   * of one term. */
  const vf low = vf_set1((real)g->low), high = vf_set1((real)g->high);
  real *out = at->c;
  CK_UNROLL
  for (int i = 0; i < rows; ++i, out += g->c_step) {
    CK_UNROLL
    for (int j = 0; j < vectors; ++j)
      vf_store_either(out + j * VF_LANES, full, tail[j], vf_min(high, vf_max(low, sum[i][j])));
  }
  at->c = out;
}

CK_INLINE void gemm_some_tiles(struct ck_gemm_args *g, const bool full, const int rows,
                               const int vectors) {
  struct gemm_place at = {g->a, g->residual, g->c};
  CK_NO_UNROLL
  for (int64_t t = 0; t < g->tiles; ++t, at.a += g->a_tile) gemm_tile(g, &at, full, rows, vectors);
}

/* Where masks are not free, tiles that are full have code of their own. */
CK_INLINE void gemm_tiles(struct ck_gemm_args *g, const int rows, const int vectors) {
  const bool full = !VF_LOADS_MASK || g->columns == vectors * VF_LANES;
  if (!VF_HAS_MASK && full)
    gemm_some_tiles(g, true, rows, vectors);
  else
    gemm_some_tiles(g, full, rows, vectors);
}

/* The instances: 1 .. VF_GEMM_ROWS rows by 1 or 2 vectors, as ck_gemm14x2_f32_avx512. */
#define GEMM_1_TO_4(X, v) X(1, v) X(2, v) X(3, v) X(4, v)
#define GEMM_1_TO_6(X, v) GEMM_1_TO_4(X, v) X(5, v) X(6, v)
#define GEMM_1_TO_12(X, v) GEMM_1_TO_6(X, v) X(7, v) X(8, v) X(9, v) X(10, v) X(11, v) X(12, v)
#define GEMM_1_TO_14(X, v) GEMM_1_TO_12(X, v) X(13, v) X(14, v)
#define GEMM_JOIN_(a, b) a##b
#define GEMM_JOIN(a, b) GEMM_JOIN_(a, b)
#define GEMM_EACH_ROW GEMM_JOIN(GEMM_1_TO_, VF_GEMM_ROWS)

#define GEMM_INSTANCE(r, v) \
  static void CK_FN(gemm##r##x##v)(struct ck_gemm_args * g) { gemm_tiles(g, r, v); }
GEMM_EACH_ROW(GEMM_INSTANCE, 1)
GEMM_EACH_ROW(GEMM_INSTANCE, 2)

static void gemm_full(struct ck_gemm_args *g) {
#define GEMM_ENTRY(r, v) CK_FN(gemm##r##x##v),
  static void (*const tiles[GEMM_MAX_VECTORS][VF_GEMM_ROWS])(struct ck_gemm_args *) = {
      {GEMM_EACH_ROW(GEMM_ENTRY, 1)}, {GEMM_EACH_ROW(GEMM_ENTRY, 2)}};
  tiles[g->vectors - 1][g->rows - 1](g);
}

/* Without masks a tile that is narrower than its vectors is made in a buffer of its own. */
static void gemm_narrow(struct ck_gemm_args *g) {
  enum { STEP = GEMM_MAX_VECTORS * VF_LANES };
  real c[VF_GEMM_ROWS * STEP] = {0}, residual[VF_GEMM_ROWS * STEP] = {0};
  const size_t bytes = (size_t)g->columns * sizeof(real);
  struct ck_gemm_args tile = *g;
  tile.tiles = 1;
  tile.c_step = STEP;
  for (int64_t t = 0, row = 0; t < g->tiles; ++t, row += g->rows) {
    real *to = (real *)g->c + row * g->c_step;
    for (int i = 0; i < g->rows; ++i) {
      const int64_t at = (row + i) * g->c_step;
      if (!g->bias && !g->row_bias) memcpy(c + i * STEP, to + i * g->c_step, bytes);
      if (g->residual) memcpy(residual + i * STEP, (const real *)g->residual + at, bytes);
    }
    tile.a = (const real *)g->a + t * g->a_tile;
    tile.c = c;
    if (g->residual) tile.residual = residual;
    gemm_full(&tile);
    for (int i = 0; i < g->rows; ++i) memcpy(to + i * g->c_step, c + i * STEP, bytes);
  }
  memcpy(g->ahead, tile.ahead, sizeof g->ahead);
}

#if VF_HAS_HALVES
#include "kernels/gemm_halves.tpl.h"
#endif

void CK_FN(gemm)(struct ck_gemm_args *g) {
#if VF_HAS_HALVES
  if (g->vectors == 2 && g->columns <= VF_LANES + VF_LANES / 2 && !g->b_at) {
    gemm_halves(g);
    return;
  }
#endif
  if (VF_LOADS_MASK || g->columns == g->vectors * VF_LANES)
    gemm_full(g);
  else
    gemm_narrow(g);
}
