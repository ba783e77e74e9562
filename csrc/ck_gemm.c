/* The blocked GEMM: every convolution that sums over channels.
 *
 *   for each block of output pixels        (its panel stays in L2)
 *     for each range of terms              (a tile of the panel and of the weights stays in L1)
 *       fill the panel                     (the only part that differs between convolutions)
 *       for each panel of weights          (read once per block)
 *         for each tile of the block       (the microkernel: sums in registers)
 *
 * Sums that span several ranges of terms wait in y, so the bits do not depend on the ranges.
 */
#include <math.h>

#include "ck_impl.h"

struct ck_blocking ck_blocking_of(int64_t batch, int64_t out_h, int64_t out_w, int64_t pixels) {
  struct ck_blocking b = {.batch = batch, .out_h = out_h, .out_w = out_w};
  if (out_w <= pixels) {
    b.cols = out_w;
    b.rows = ck_min(out_h, pixels / out_w);
    b.rows = ck_ceil_div(out_h, ck_ceil_div(out_h, b.rows));
    if (b.rows < out_h && b.rows > 1) b.rows += b.rows & 1; /* depthwise kernels make pairs */
  } else {
    b.rows = 1;
    b.cols = ck_ceil_div(out_w, ck_ceil_div(out_w, pixels));
  }
  b.row_blocks = ck_ceil_div(out_h, b.rows);
  b.col_blocks = ck_ceil_div(out_w, b.cols);
  return b;
}

int64_t ck_block_count(const struct ck_blocking *b) {
  return b->batch * b->row_blocks * b->col_blocks;
}

struct ck_block ck_block_at(const struct ck_blocking *b, int64_t index) {
  const int64_t column = index % b->col_blocks, row = index / b->col_blocks % b->row_blocks;
  struct ck_block block = {.image = index / b->col_blocks / b->row_blocks,
                           .y = row * b->rows,
                           .x = column * b->cols};
  block.rows = ck_min(b->rows, b->out_h - block.y);
  block.cols = ck_min(b->cols, b->out_w - block.x);
  block.pixels = block.rows * block.cols;
  return block;
}

/* How a GEMM of this many terms is cut. */
struct cut {
  int64_t terms;  /* of one range, a multiple of the lanes */
  int64_t pixels; /* of one block */
};

static struct cut cut_of(const struct ck_gemm *g) {
  const struct ck_kernels *k = g->kernels;
  const int64_t row_bytes = (int64_t)k->gemm_rows * k->element;
  const int64_t most = ck_max(k->lanes, ck_cpu_l1d_bytes() / row_bytes);
  const int64_t ranges = ck_ceil_div(g->weights->terms, most);
  const int64_t terms = ck_round_up(ck_ceil_div(g->weights->terms, ranges), k->lanes);
  const int64_t tiles = ck_cpu_l2_bytes() / 4 / (terms * row_bytes);
  return (struct cut){terms, ck_max(1, tiles) * k->gemm_rows};
}

static struct ck_blocking blocking_of(const struct ck_gemm *g, const struct cut *cut) {
  return ck_blocking_of(g->batch, g->out_h, g->out_w, cut->pixels);
}

static int64_t tiles_of(int64_t pixels, const struct ck_kernels *k) {
  return ck_ceil_div(pixels, k->gemm_rows);
}

/* A block's pixels are dealt out to its tiles evenly: 49 rows are 13 + 12 + 12 + 12, not 14 x 3 + 7,
 * because a low tile cannot keep the FMA units busy. */
static int64_t first_pixel(int64_t tile, int64_t tiles, int64_t pixels) {
  return tile * pixels / tiles;
}

ck_status ck_gemm_workspace(const struct ck_gemm *g, size_t *bytes) {
  const struct cut cut = cut_of(g);
  const struct ck_blocking b = blocking_of(g, &cut);
  const int64_t pixels = b.rows * b.cols;
  const int64_t panel = tiles_of(pixels, g->kernels) * g->kernels->gemm_rows * cut.terms;
  *bytes = (size_t)(panel * g->kernels->element) + (size_t)pixels * sizeof(int64_t) + 2 * CK_ALIGN;
  return CK_OK;
}

/* One block times one range of terms. */
static void multiply(const struct ck_gemm *g, const struct ck_block *block,
                     const struct ck_panel *panel, int64_t begin, int64_t end, int64_t tile_step) {
  const struct ck_kernels *k = g->kernels;
  const struct ck_gemm_weights *w = g->weights;
  const bool last = end == w->terms;
  const int64_t tiles = tiles_of(block->pixels, k);
  const int64_t start = (block->image * g->out_h + block->y) * g->out_w + block->x;

  for (int64_t column = 0; column < w->columns; column += w->panel_columns) {
    const int64_t columns = ck_min(w->panel_columns, w->columns - column);
    const int64_t vectors = ck_ceil_div(columns, k->lanes);
    const int64_t b = column * w->terms + begin * vectors * k->lanes;
    struct ck_gemm_args args = {
        .b = ck_at(w->data, b, k->element),
        .bias = begin == 0 ? ck_at(w->bias, column, k->element) : NULL,
        .c_step = g->y_step,
        .terms = end - begin,
        .columns = columns,
        .vectors = (int)vectors,
        .low = last ? g->activation.low : -INFINITY,
        .high = last ? g->activation.high : INFINITY,
    };
    for (int64_t t = 0; t < tiles; ++t) {
      const int64_t pixel = first_pixel(t, tiles, block->pixels);
      const int64_t at = (start + pixel) * g->y_step + column;
      args.a = ck_at(panel->data, t * tile_step, k->element);
      args.c = ck_at_mut(g->y, at, k->element);
      args.residual = last && g->residual ? ck_at(g->residual, at, k->element) : NULL;
      args.rows = (int)(first_pixel(t + 1, tiles, block->pixels) - pixel);
      k->gemm(&args);
      if (last && g->activation.kind != CK_ACT_CLAMP)
        k->activate(&(struct ck_act_args){
            args.c, args.rows, columns, g->y_step, g->activation.kind});
    }
  }
}

void ck_gemm_run(const struct ck_gemm *g, void *workspace) {
  const struct ck_kernels *k = g->kernels;
  const struct cut cut = cut_of(g);
  const struct ck_blocking blocking = blocking_of(g, &cut);
  const int64_t tile_step = k->gemm_rows * cut.terms;
  int64_t *offset = ck_align(workspace);
  void *data = ck_align(offset + blocking.rows * blocking.cols);

  for (int64_t i = 0; i < ck_block_count(&blocking); ++i) {
    const struct ck_block block = ck_block_at(&blocking, i);
    const int64_t tiles = tiles_of(block.pixels, k);
    for (int64_t t = 0; t < tiles; ++t) {
      const int64_t first = first_pixel(t, tiles, block.pixels);
      for (int64_t p = first; p < first_pixel(t + 1, tiles, block.pixels); ++p)
        offset[p] = t * tile_step + (p - first) * k->lanes;
    }
    const struct ck_panel panel = {data, offset, tiles * tile_step};
    for (int64_t begin = 0; begin < g->weights->terms; begin += cut.terms) {
      const int64_t end = ck_min(begin + cut.terms, g->weights->terms);
      g->fill(g->context, &block, begin, end, &panel);
      multiply(g, &block, &panel, begin, end, tile_step);
    }
  }
}
