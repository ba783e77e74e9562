/* float32 by matrix units that multiply bf16: a number is the sum of three bf16 (the nearest to it,
 * the nearest to what is left, and what is left of that), and a product that of six of the nine
 * products of these. The three that are left out are together at most two roundings of float32, of
 * the K + 1 that sums of K terms may be off by. Henry, Tang, Heinecke, "Leveraging the bfloat16
 * Artificial Intelligence Datatype For Higher-Precision Computations", arXiv 1904.06376, 2019.
 *
 * The left operand, pixels or for planes weights, is [rows / L][terms / 2L][3][L][L], a panel of
 * the right one [terms / 2L][columns / L][3][L][L], of pairs of bf16: terms t and t + L, in 4
 * bytes. An [L][L] of them is what a register of matrices holds. Terms that do not exist are zero;
 * rows that do not are anything, for each row has sums of its own. Of a last L terms or fewer a
 * pair has two parts of one term, and three products of registers are all six.
 *
 * The six products of 2L terms are added to the sums one after the other, whatever is beside them,
 * so that tiles of any size give the same bits. Infinite numbers have no parts, and a sum with one
 * comes out as NaN; so do sums near the largest number. They are made again by FMAs, each for
 * itself. Numbers below 2^-102 have no third part, then no second: a pixel of nothing larger than
 * 2^-80 is given a NaN, so that its sums are made again too.
 */
enum { PARTS = 3, PARTS_TERMS = 2 * VF_LANES, PARTS_TILES = 2, PARTS_SUMS = VT_ROWS * VF_LANES };
enum { PART_BYTES = VT_ROWS * VT_BYTES };

CK_INLINE void split_pair(char *to, vf a, vf b) {
  CK_UNROLL
  for (int i = 0; i + 1 < PARTS; ++i, to += PART_BYTES) {
    const vf near_a = vt_round(a), near_b = vt_round(b);
    vt_store_pair(to, near_a, near_b);
    a = vf_sub(a, near_a);
    b = vf_sub(b, near_b);
  }
  vt_store_pair(to, a, b);
}

CK_INLINE const real *parts_row(const struct ck_parts_args *p, int64_t row) {
  return (const real *)p->a + (p->offset ? p->offset[row] : row * p->a_step);
}

/* The last terms, if they are no more than L; see parts_of_last. */
CK_INLINE void split_last(char *to, vf a, const bool left) {
  const vf first = vt_round(a), rest = vf_sub(a, first);
  const vf second = vt_round(rest), third = vf_sub(rest, second);
  vt_store_pair(to, first, second);
  if (left) {
    vt_store_pair(to + PART_BYTES, first, third);
  } else {
    vt_store_pair(to + PART_BYTES, second, first);
    vt_store_pair(to + 2 * PART_BYTES, third, first);
  }
}

/* Whether what is left of a number is too small for a float32, and so has become zero. */
static bool loses_parts(real x) {
  const vf whole = vf_set1(x), near = vt_round(whole), left = vf_sub(whole, near);
  const vf near_left = vt_round(left), rest = vf_sub(left, near_left);
  return vt_lost(whole, near, left) || vt_lost(left, near_left, rest);
}

/* Whether a pixel has lost parts, and has no number of 2^-80 beside which that is nothing. */
static bool is_small(const real *from, int64_t run_step, int64_t term_step, int64_t terms) {
  bool lost = false;
  for (int64_t t = 0; t < terms; ++t) {
    const real x = from[t / VF_LANES * run_step + t % VF_LANES * term_step];
    if (!(fabsf(x) < 0x1p-80f)) return false;
    lost |= loses_parts(x);
  }
  return lost;
}

enum { NOT_A_NUMBER = 0x7FC0 };

void CK_FN(split_rows)(struct ck_parts_args *p) {
  char *to = p->a_parts;
  vt_underflow();
  for (int64_t first = 0; first < p->rows; first += VT_ROWS) {
    const int64_t rows = ck_min(VT_ROWS, p->rows - first), next = p->a_next;
    int64_t from = 0;
    for (int64_t left = p->terms; left > 0; left -= PARTS_TERMS, from += 2 * next) {
      const vf_tail one = vf_first(left), two = vf_first(left - VF_LANES);
      for (int64_t r = 0; r < rows; ++r) {
        const real *at = parts_row(p, first + r) + from;
        if (left > VF_LANES)
          split_pair(to + r * VT_BYTES, vf_load_n(at, one), vf_load_n(at + next, two));
        else
          split_last(to + r * VT_BYTES, vf_load_n(at, one), true);
      }
      to += PARTS * PART_BYTES;
    }
  }
  p->underflow = vt_underflow();
  if (!p->underflow) return;
  const int64_t tile = ck_ceil_div(p->terms, PARTS_TERMS) * PARTS * PART_BYTES;
  for (int64_t r = 0; r < p->rows; ++r)
    if (is_small(parts_row(p, r), p->a_next, 1, p->terms))
      *(uint16_t *)((char *)p->a_parts + r / VT_ROWS * tile + r % VT_ROWS * VT_BYTES) =
          NOT_A_NUMBER;
}

/* A vector of columns at term t, of `terms`; zero where there are no more. */
CK_INLINE vf term_of_columns(const real *from, int64_t step, int64_t t, int64_t terms) {
  return t < terms ? vf_load(from + t * step) : vf_zero();
}

void CK_FN(split_columns)(struct ck_split_args *s) {
  const int64_t step = s->vectors * VF_LANES;
  char *to = s->to;
  vt_underflow();
  for (int64_t first = 0; first < s->terms; first += PARTS_TERMS)
    for (int v = 0; v < s->vectors; ++v, to += PARTS * PART_BYTES)
      for (int64_t t = first; t < first + VF_LANES; ++t) {
        const real *from = (const real *)s->from + v * VF_LANES;
        char *at = to + (t - first) * VT_BYTES;
        const vf a = term_of_columns(from, step, t, s->terms);
        if (s->terms - first > VF_LANES)
          split_pair(at, a, term_of_columns(from, step, t + VF_LANES, s->terms));
        else
          split_last(at, a, false);
      }
  s->underflow = vt_underflow();
  if (!s->underflow || !s->pixels) return;
  for (int64_t n = 0; n < step; ++n)
    if (is_small((const real *)s->from + n, VF_LANES * step, step, s->terms))
      *(uint16_t *)((char *)s->to + n / VF_LANES * PARTS * PART_BYTES + n % VF_LANES * 4) =
          NOT_A_NUMBER;
}

/* A panel of columns. */
struct parts_panel {
  const real *bias, *residual;
  real *c;
  int64_t columns, vectors;
  int64_t b;           /* where it begins in b, */
  const char *b_parts; /* and in parts, of which it has */
  int64_t bytes;
};

CK_INLINE struct parts_panel parts_panel_at(const struct ck_parts_args *p, int64_t column) {
  const int64_t columns = ck_min(p->panel_columns, p->columns - column);
  const int64_t width = ck_round_up(columns, VF_LANES),
                pairs = ck_round_up(p->b_terms, PARTS_TERMS);
  const int64_t part = PARTS * (int64_t)sizeof(uint16_t); /* bytes of a number */
  return (struct parts_panel){
      .bias = p->bias ? (const real *)p->bias + column : NULL,
      .residual = p->residual ? (const real *)p->residual + column : NULL,
      .c = (real *)p->c + column,
      .columns = columns,
      .vectors = width / VF_LANES,
      .b = column * p->b_terms + width * p->begin,
      .b_parts = (const char *)p->b_parts + (column * pairs + width * p->begin) * part,
      .bytes = width * ck_round_up(p->terms, PARTS_TERMS) * part,
  };
}

/* Sums that are done, [rows][vectors][L], and go to c while the next are made. */
struct parts_out {
  struct parts_panel panel;
  real *sums;
  int64_t row, rows; /* the first of c, and how many */
  int64_t done;
  vf zero; /* NaN where one of those that are done is infinite or NaN */
};

/* What a sum is added to: its column's bias, its row's, or what is in c. */
enum parts_before { COLUMN_BIAS, ROW_BIAS, SUMS_BEFORE };

CK_INLINE void parts_put(const struct ck_parts_args *p, struct parts_out *out, int64_t rows,
                         const int vectors, const enum parts_before kind) {
  const vf low = vf_set1((real)p->low), high = vf_set1((real)p->high);
  const int64_t n = ck_min(out->rows - out->done, rows), first = out->row + out->done;
  const int64_t step = p->c_step;
  const real *residual = out->panel.residual ? out->panel.residual + first * step : NULL;
  const real *row_bias = kind == ROW_BIAS ? (const real *)p->row_bias + first : NULL;
  const real *sums = out->sums + out->done * vectors * VF_LANES;
  real *c = out->panel.c + first * step;
  vf zero[PARTS_TILES], bias[PARTS_TILES];
  vf_tail tail[PARTS_TILES];
  CK_UNROLL
  for (int j = 0; j < vectors; ++j) {
    tail[j] = vf_first(out->panel.columns - j * VF_LANES);
    bias[j] = kind == COLUMN_BIAS ? vf_load(out->panel.bias + j * VF_LANES) : vf_zero();
    zero[j] = vf_zero();
  }
  for (int64_t r = 0; r < n; ++r, c += step) {
    CK_UNROLL
    for (int j = 0; j < vectors; ++j, sums += VF_LANES) {
      const vf before = kind == COLUMN_BIAS ? bias[j]
                        : kind == ROW_BIAS  ? vf_set1(row_bias[r])
                                            : vf_load_n(c + j * VF_LANES, tail[j]);
      vf sum = vf_load(sums);
      zero[j] = vf_fma(sum, vf_zero(), zero[j]);
      sum = vf_add(sum, before);
      if (residual) sum = vf_add(sum, vf_load_n(residual + j * VF_LANES, tail[j]));
      vf_store_n(c + j * VF_LANES, tail[j], vf_min(high, vf_max(low, sum)));
    }
    if (residual) residual += step;
  }
  out->done += n;
  CK_UNROLL
  for (int j = 0; j < vectors; ++j) out->zero = vf_add(out->zero, zero[j]);
}

CK_INLINE void parts_put_before(const struct ck_parts_args *p, struct parts_out *out, int64_t rows,
                                const int vectors) {
  if (out->panel.bias)
    parts_put(p, out, rows, vectors, COLUMN_BIAS);
  else if (p->row_bias)
    parts_put(p, out, rows, vectors, ROW_BIAS);
  else
    parts_put(p, out, rows, vectors, SUMS_BEFORE);
}

CK_INLINE void parts_put_rows(const struct ck_parts_args *p, struct parts_out *out, int64_t rows) {
  if (out->done >= out->rows) return;
  if (out->panel.vectors > 1)
    parts_put_before(p, out, rows, 2);
  else
    parts_put_before(p, out, rows, 1);
}

/* What goes on while matrices are multiplied: so many rows leave after each third product, and so
 * many lines of memory are brought near after each. (After each, leaving is 1.05 to 1.1 times as
 * slow. So is bringing all lines near in one burst, which keeps tiles waiting.) */
enum { AHEADS = 4, LEAVE_AFTER = 3 }; /* the next panel, and what the caller says */
struct parts_meanwhile {
  struct parts_out out;
  int64_t rows, lines;
  struct ck_ahead ahead[AHEADS];
  int64_t now; /* which of them */
};

CK_NO_INLINE static void parts_leave(const struct ck_parts_args *p, struct parts_meanwhile *m) {
  parts_put_rows(p, &m->out, m->rows);
}

CK_NO_INLINE static void parts_near(struct parts_meanwhile *m) {
  for (int64_t i = m->lines; i > 0 && m->now < AHEADS;) {
    struct ck_ahead *ahead = &m->ahead[m->now];
    if (ahead->at >= ahead->end) {
      ++m->now;
      continue;
    }
    __builtin_prefetch(ahead->at, 0, 2);
    ahead->at += CK_ALIGN;
    --i;
  }
}

/* Operands of one or two tiles of rows, and of one or two vectors of columns. */
struct parts_place {
  const char *a, *b;
  int64_t a_tile; /* bytes */
};

CK_INLINE void parts_load_rows(const struct parts_place *at, int part, const int tiles) {
  const char *a = at->a + part * PART_BYTES;
  VT_LOAD(4, a);
  if (tiles > 1) VT_LOAD(5, a + at->a_tile);
}

CK_INLINE void parts_load_columns(const struct parts_place *at, int part, const int vectors) {
  const char *b = at->b + part * PART_BYTES;
  VT_LOAD(6, b);
  if (vectors > 1) VT_LOAD(7, b + PARTS * PART_BYTES);
}

CK_INLINE void parts_dot(struct parts_meanwhile *m, const int tiles, const int vectors) {
  VT_DOT(0, 4, 6);
  if (vectors > 1) VT_DOT(1, 4, 7);
  if (tiles > 1) VT_DOT(2, 5, 6);
  if (tiles > 1 && vectors > 1) VT_DOT(3, 5, 7);
  parts_near(m);
}

/* Which parts of a pixel and a weight are multiplied, in this order; each product shares an operand
 * with the one before it. Fast, what is left out is up to 2^-16 of a product. */
struct parts_pair {
  int pixel, weight;
};
enum { PRODUCTS = 6, FAST_PRODUCTS = 3 };
static const struct parts_pair parts_full[PRODUCTS] = {{0, 2}, {0, 1}, {1, 1},
                                                       {1, 0}, {2, 0}, {0, 0}};
static const struct parts_pair parts_fast[FAST_PRODUCTS] = {{0, 1}, {0, 0}, {1, 0}};

/* The same of a last L terms, or fewer. Registers of the left operand are of parts 0 and 1, 0 and
 * 2, of the right one of 0 and 1, 1 and 0, 2 and 0; so these products are of parts 0 2 and 2 0; 0 1
 * and 1 0; 0 0 and 1 1. Fast they are the last two. */
enum { LAST_PRODUCTS = 3, FAST_LAST_PRODUCTS = 2 };
static const struct parts_pair parts_of_last[LAST_PRODUCTS] = {{1, 2}, {0, 1}, {0, 0}};

/* The products of some terms; those of pixels and weights are the same whichever side they are on.
 */
CK_INLINE void parts_add_terms(const struct ck_parts_args *p, struct parts_meanwhile *m,
                               const struct parts_place *at, const int tiles, const int vectors,
                               const struct parts_pair *pairs, const int products,
                               const bool planar) {
  int row = -1, column = -1; /* the parts that are loaded */
  CK_UNROLL
  for (int i = 0; i < products; ++i) {
    const int r = planar ? pairs[i].weight : pairs[i].pixel;
    const int c = planar ? pairs[i].pixel : pairs[i].weight;
    if (r != row) parts_load_rows(at, r, tiles);
    if (c != column) parts_load_columns(at, c, vectors);
    row = r;
    column = c;
    parts_dot(m, tiles, vectors);
    if (i % LEAVE_AFTER == LEAVE_AFTER - 1) parts_leave(p, m);
  }
}

/* All terms; gives how many are left, which are the last, and moves on to them. */
CK_INLINE int64_t parts_sum_pairs(const struct ck_parts_args *p, struct parts_meanwhile *m,
                                  struct parts_place *at, const int tiles, const int vectors,
                                  const struct parts_pair *pairs, const int products,
                                  const bool planar) {
  int64_t left = p->terms;
  for (; left > VF_LANES; left -= PARTS_TERMS) {
    parts_add_terms(p, m, at, tiles, vectors, pairs, products, planar);
    at->a += PARTS * PART_BYTES;
    at->b += vectors * PARTS * PART_BYTES;
  }
  return left;
}

CK_INLINE void parts_add_last(const struct ck_parts_args *p, struct parts_meanwhile *m,
                              const struct parts_place *at, const int tiles, const int vectors) {
  const struct parts_pair *fast = parts_of_last + LAST_PRODUCTS - FAST_LAST_PRODUCTS;
  if (p->fast)
    parts_add_terms(p, m, at, tiles, vectors, fast, FAST_LAST_PRODUCTS, false);
  else
    parts_add_terms(p, m, at, tiles, vectors, parts_of_last, LAST_PRODUCTS, false);
}

CK_INLINE void parts_sum(const struct ck_parts_args *p, struct parts_meanwhile *m,
                         struct parts_place at, real *sums, const int tiles, const int vectors) {
  VT_ZERO(0);
  if (vectors > 1) VT_ZERO(1);
  if (tiles > 1) VT_ZERO(2);
  if (tiles > 1 && vectors > 1) VT_ZERO(3);
  int64_t left;
  if (p->fast && p->planar)
    left = parts_sum_pairs(p, m, &at, tiles, vectors, parts_fast, FAST_PRODUCTS, true);
  else if (p->fast)
    left = parts_sum_pairs(p, m, &at, tiles, vectors, parts_fast, FAST_PRODUCTS, false);
  else if (p->planar)
    left = parts_sum_pairs(p, m, &at, tiles, vectors, parts_full, PRODUCTS, true);
  else
    left = parts_sum_pairs(p, m, &at, tiles, vectors, parts_full, PRODUCTS, false);
  if (left > 0) parts_add_last(p, m, &at, tiles, vectors);
  real *below = sums + vectors * PARTS_SUMS;
  VT_STORE(0, sums, vectors);
  if (vectors > 1) VT_STORE(1, sums + VF_LANES, vectors);
  if (tiles > 1) VT_STORE(2, below, vectors);
  if (tiles > 1 && vectors > 1) VT_STORE(3, below + VF_LANES, vectors);
}

/* Make those sums again that are infinite or NaN, row by row. */
static void parts_again(const struct ck_parts_args *p, const struct parts_out *out) {
  static const real no_bias[PARTS_TILES * VF_LANES] = {0};
  const int64_t vectors = out->panel.vectors;
  real again[PARTS_TILES * VF_LANES];
  struct ck_gemm_args g = {.b = (const real *)p->b + out->panel.b,
                           .bias = no_bias,
                           .c = again,
                           .a_run = VF_LANES,
                           .a_next = p->a_next,
                           .tiles = 1,
                           .terms = p->terms,
                           .columns = vectors * VF_LANES,
                           .rows = 1,
                           .vectors = (int)vectors,
                           .low = -INFINITY,
                           .high = INFINITY};
  for (int64_t r = 0; r < out->rows; ++r) {
    g.a = parts_row(p, out->row + r);
    CK_AVX512_FN(gemm)(&g);
    real *sums = out->sums + r * vectors * VF_LANES;
    for (int64_t j = 0; j < vectors * VF_LANES; ++j)
      if (!isfinite(sums[j])) sums[j] = again[j];
  }
}

CK_INLINE bool parts_continue(const struct ck_parts_args *p) { return !p->bias && !p->row_bias; }

/* All that has not left yet. Sums are looked at on the way; those that continue what was in c
 * before, since they cannot leave twice. */
static void parts_finish(const struct ck_parts_args *p, struct parts_out *out) {
  parts_put_rows(p, out, out->rows);
  if (vt_no_nan(out->zero)) return;
  if (p->zero) vf_store(p->zero, out->zero);
  if (parts_continue(p)) return;
  parts_again(p, out);
  out->done = 0;
  parts_put_rows(p, out, out->rows);
}

enum { PARTS_ROWS = PARTS_TILES * VT_ROWS };

CK_INLINE bool parts_are_finite(const struct parts_out *out) {
  vf zero = vf_zero();
  for (int64_t i = 0; i < out->rows * out->panel.vectors; ++i)
    zero = vf_fma(vf_load(out->sums + i * VF_LANES), vf_zero(), zero);
  return vt_no_nan(zero);
}

/* Sums of up to two tiles of rows, from `row` on. */
CK_INLINE void parts_tiles(const struct ck_parts_args *p, struct parts_meanwhile *m,
                           const struct parts_panel *panel, int64_t row, real *sums,
                           const int vectors) {
  enum { SUMS = PARTS_TILES * PARTS_TILES * PARTS_SUMS };
  const int64_t tile = ck_ceil_div(p->a_terms, PARTS_TERMS) * PARTS * PART_BYTES;
  const int64_t rows = ck_min(PARTS_ROWS, p->rows - row);
  const char *a = (const char *)p->a_parts + row / VT_ROWS * tile;
  const struct parts_place at = {a, panel->b_parts, tile};
  real *to = m->out.sums == sums ? sums + SUMS : sums;
  if (rows > VT_ROWS)
    parts_sum(p, m, at, to, PARTS_TILES, vectors);
  else
    parts_sum(p, m, at, to, 1, vectors);
  parts_finish(p, &m->out);
  m->out = (struct parts_out){*panel, to, row, rows, 0, vf_zero()};
  if (parts_continue(p) && !parts_are_finite(&m->out)) parts_again(p, &m->out);
}

/* A panel of columns, those rows of it. */
CK_INLINE void parts_panel_rows(const struct ck_parts_args *p, struct parts_meanwhile *m,
                                int64_t column, struct ck_span rows, real *sums) {
  const struct parts_panel panel = parts_panel_at(p, column);
  if (!p->planar && column + p->panel_columns < p->columns) {
    const struct parts_panel next = parts_panel_at(p, column + p->panel_columns);
    m->ahead[0] = (struct ck_ahead){next.b_parts, next.b_parts + next.bytes};
    m->now = 0;
  }
  for (int64_t row = rows.begin; row < rows.end; row += PARTS_ROWS) {
    if (panel.vectors > 1)
      parts_tiles(p, m, &panel, row, sums, 2);
    else
      parts_tiles(p, m, &panel, row, sums, 1);
  }
}

static struct parts_meanwhile parts_start(const struct ck_parts_args *p) {
  enum { MOST_LINES = 8 };
  const int64_t wholes = (p->terms + VF_LANES - 1) / PARTS_TERMS;
  const int64_t last = p->terms > wholes * PARTS_TERMS ? 1 : 0;
  const int64_t products = p->fast ? wholes * FAST_PRODUCTS + last * FAST_LAST_PRODUCTS
                                   : wholes * PRODUCTS + last * LAST_PRODUCTS;
  const int64_t panels = ck_ceil_div(p->columns, PARTS_TILES * VF_LANES);
  const int64_t all = products * ck_ceil_div(p->rows, PARTS_ROWS) * panels;
  struct parts_meanwhile m = {.rows = ck_ceil_div(PARTS_ROWS, ck_max(1, products / LEAVE_AFTER))};
  int64_t bytes = p->planar ? 0 : (panels - 1) * parts_panel_at(p, 0).bytes;
  for (int i = 1; i < AHEADS; ++i) {
    m.ahead[i] = p->ahead[i - 1];
    bytes += m.ahead[i].end - m.ahead[i].at;
  }
  m.lines = ck_min(MOST_LINES, ck_ceil_div(bytes, CK_ALIGN * all));
  return m;
}

/* Weights are read once; but planes are written row by row. */
void CK_FN(gemm_parts)(const struct ck_parts_args *p) {
  real sums[2 * PARTS_TILES * PARTS_TILES * PARTS_SUMS] __attribute__((aligned(CK_ALIGN)));
  struct parts_meanwhile m = parts_start(p);
  const int64_t together = p->planar ? PARTS_ROWS : p->rows;
  vt_start();
  for (int64_t row = 0; row < p->rows; row += together)
    for (int64_t column = 0; column < p->columns; column += p->panel_columns)
      parts_panel_rows(p, &m, column, (struct ck_span){row, ck_min(row + together, p->rows)}, sums);
  vt_end();
  parts_finish(p, &m.out);
}
