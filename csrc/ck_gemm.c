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
  struct ck_block block = {
      .image = index / b->col_blocks / b->row_blocks, .y = row * b->rows, .x = column * b->cols};
  block.rows = ck_min(b->rows, b->out_h - block.y);
  block.cols = ck_min(b->cols, b->out_w - block.x);
  block.pixels = block.rows * block.cols;
  return block;
}

static bool planar(const struct ck_gemm *g) { return g->weights->layout == CK_NCHW; }

/* Pixels are the rows of the sums, and planes those of the result: a block's residual and its sums
 * are pixels in the workspace. */
static bool crossed(const struct ck_gemm *g) {
  return g->run->op->conv.layout == CK_NCHW && !planar(g);
}

/* NCHW: the panel is made of staged planes. */
static bool staged(const struct ck_gemm *g) { return g->fill == ck_fill_staged_planes; }

/* NCHW: pixels of one group of the panel. */
static int64_t group_pixels(const struct ck_kernels *k) {
  return (int64_t)k->gemm_vectors * k->lanes;
}

bool ck_uses_parts(const struct ck_gemm *g) { return g->run->parts && g->weights->parts; }

/* How a GEMM is cut. */
struct cut {
  int64_t terms;  /* of one range, a multiple of the lanes */
  int64_t pixels; /* of one block */
};

/* A fill by a wide depthwise reads those rows again, and may stage them again, that a block shares
 * with the one before it. One of samples begins anew with each tap of each offset group, in a plane
 * of offsets of its own. */
static bool likes_large(const struct ck_run *run) {
  if (run->deform) return true;
  return run->op->kind == CK_OP_SEPARABLE && run->op->conv.window.kernel_h > 1 && !ck_dw_3x3(run);
}

/* Pixels that a fill likes to make at once: rows of a depthwise 3x3. */
static int64_t pixels_together(const struct ck_run *run) {
  if (run->op->kind != CK_OP_SEPARABLE || !ck_dw_3x3(run)) return 1;
  return ck_dw_rows(run, ck_x_step(run), run->out_h) * run->out_w;
}

/* A panel of weights that stays in L1 is read faster, but sums that wait in y for the next range
 * take as long as is won where ranges have fewer terms than this (measured on a Xeon: 768 terms of
 * AVX2, MobileNetV2 1.04 times as fast, EfficientNet-Lite0 1.02; 384 of AVX-512, 0.99 to 1.01). */
enum { LEAST_TERMS = 512 };

/* Terms of a range, at most: a panel of weights takes an eighth of L2, or L1 where the terms come
 * from a depthwise, of whose channels one range costs as much as another. In parts, where a range
 * has to end, it is short: then a block has more pixels, and weights are read less often (5x5 of
 * 256 channels: 1.2 times as fast). */
static int64_t most_terms(const struct ck_gemm *g) {
  const struct ck_run *run = g->run;
  const int64_t width = g->weights->panel_columns * g->kernels->element;
  const int64_t most = ck_max(g->kernels->lanes, ck_cpu_l2_bytes() / 8 / width);
  if (ck_uses_parts(g) && g->weights->terms > most) return most / 4;
  const int64_t near = ck_cpu_l1d_bytes() / width;
  const bool any = run->op->kind == CK_OP_SEPARABLE && !run->expand && !planar(g) &&
                   !ck_uses_parts(g); /* planes end their ranges there, too */
  return any && near >= LEAST_TERMS ? ck_min(most, near) : most;
}

/* Where all weights stay in L2, a small block is best, because its input is still near when it is
 * multiplied; where they do not, a large one, which reads them less often. So it is for the fills
 * that like it; and for planes, because the fewer ends of rows, the fewer idle lanes, unless parts
 * of their pixels have to stay near, which are more bytes. A depthwise on planes reads rows between
 * blocks twice, and is between the two (measured on a Xeon with AMX, MobileNetV1: 1.03 to 1.12
 * times as fast as a sixteenth of L2, but 0.93 of 112x112 at stride 2; 0.92 to 1.10 as a quarter).
 * An eighth of L2 is not too much for rows that are made together. */
static int64_t share_of_l2(const struct ck_gemm *g) {
  const struct ck_gemm_weights *w = g->weights;
  const bool resident = w->terms < ck_cpu_l2_bytes() / g->kernels->element / 2 / w->columns;
  if (!resident || likes_large(g->run)) return 4;
  if (planar(g) && g->run->op->kind == CK_OP_SEPARABLE) return 8;
  return planar(g) && !ck_uses_parts(g) ? 4 : 16;
}

/* Channels of the input that a convolution's terms are of. */
static int64_t channels_of(const struct ck_gemm *g) {
  const ck_window *w = &g->run->op->conv.window;
  return g->weights->terms / (w->kernel_h * w->kernel_w);
}

/* Planes that are multiplied where they lie: a piece of all of them stays in L2. */
static int64_t planes_at_once(const struct ck_gemm *g) {
  const int64_t planes = channels_of(g) * (staged(g) ? ck_planes_staged(g->run) : 1);
  const int64_t piece = ck_cpu_l2_bytes() / 8 / g->kernels->element / planes;
  return ck_max(group_pixels(g->kernels), piece - piece % group_pixels(g->kernels));
}

static struct cut cut_of(const struct ck_gemm *g) {
  const struct ck_kernels *k = g->kernels;
  const struct ck_gemm_weights *w = g->weights;
  const int64_t l2 = ck_cpu_l2_bytes() / k->element;
  const int64_t ranges = ck_ceil_div(w->terms, most_terms(g));
  const int64_t unit = ck_uses_parts(g) ? k->part_terms : k->lanes;
  const int64_t terms = ck_round_up(ck_ceil_div(w->terms, ranges), unit);
  if (g->run->expand) return (struct cut){terms, ck_inverted_pixels(g->run)};
  if (g->view.planes) return (struct cut){terms, planes_at_once(g)};
  const int64_t step = planar(g) ? group_pixels(k) : ck_uses_parts(g) ? k->part_rows : k->gemm_rows;
  const int64_t steps = ck_max(1, l2 / share_of_l2(g) / (terms * step));
  const int64_t together = ck_round_up(pixels_together(g->run), step);
  const bool fit = together <= l2 / 8 / terms;
  return (struct cut){terms, fit ? ck_max(together, steps * step) : steps * step};
}

/* NCHW: lanes that a block of some pixels takes. */
static int64_t lanes_of(const struct ck_kernels *k, int64_t pixels) {
  const int64_t rest = pixels % group_pixels(k);
  return pixels - rest +
         (rest ? ck_round_up(rest, rest <= k->lanes ? k->lanes : group_pixels(k)) : 0);
}

/* NCHW: blocks of so many rows that the fewest lanes idle; no blocks have fewer than one of all. */
static struct ck_blocking planar_blocking(const struct ck_gemm *g, int64_t pixels) {
  const struct ck_run *run = g->run;
  struct ck_blocking b = {.batch = run->image.batch,
                          .out_h = run->out_h,
                          .out_w = run->out_w,
                          .rows = 1,
                          .cols = ck_min(run->out_w, pixels)};
  const int64_t least = lanes_of(g->kernels, run->out_h * b.cols);
  int64_t fewest = INT64_MAX, rows = b.cols == b.out_w ? ck_min(run->out_h, pixels / b.cols) : 0;
  for (; rows > 0 && fewest > least; --rows) {
    const int64_t lanes = run->out_h / rows * lanes_of(g->kernels, rows * b.cols) +
                          lanes_of(g->kernels, run->out_h % rows * b.cols);
    if (lanes >= fewest) continue;
    fewest = lanes;
    b.rows = rows;
  }
  b.row_blocks = ck_ceil_div(b.out_h, b.rows);
  b.col_blocks = ck_ceil_div(b.out_w, b.cols);
  return b;
}

static struct ck_blocking blocking_of(const struct ck_gemm *g, const struct cut *cut) {
  if (planar(g) && !staged(g)) return planar_blocking(g, cut->pixels);
  return ck_blocking_of(g->run->image.batch, g->run->out_h, g->run->out_w, cut->pixels);
}

static int64_t tiles_of(int64_t pixels, const struct ck_kernels *k) {
  return ck_ceil_div(pixels, k->gemm_rows);
}

/* Bytes of a panel in parts. */
static int64_t parts_size(const struct ck_gemm *g, const struct cut *cut, int64_t pixels) {
  const struct ck_kernels *k = g->kernels;
  return ck_uses_parts(g) ? ck_round_up(pixels, k->part_rows) * ck_parts_bytes(k, cut->terms) : 0;
}

/* Of each pixel of a panel, or of each plane. */
static int64_t places_of(const struct ck_gemm *g, int64_t pixels) {
  return planar(g) ? g->weights->terms : pixels;
}

ck_status ck_gemm_workspace(const struct ck_gemm *g, size_t *bytes) {
  const struct ck_kernels *k = g->kernels;
  const struct cut cut = cut_of(g);
  const struct ck_blocking b = blocking_of(g, &cut);
  const int64_t pixels = b.rows * b.cols;
  const int64_t padded =
      planar(g) ? ck_round_up(pixels, group_pixels(k)) : tiles_of(pixels, k) * k->gemm_rows;
  const int64_t sums = crossed(g) ? 2 * pixels * g->weights->columns : 0;
  const int64_t tiles = g->view.planes ? 0 : padded * cut.terms;
  size_t planes = 0;
  *bytes = (size_t)((tiles + sums) * k->element + parts_size(g, &cut, pixels)) +
           (size_t)places_of(g, pixels) * sizeof(int64_t) + 5 * CK_ALIGN;
  ck_status status = CK_OK;
  if (staged(g)) status = ck_staged_planes_bytes(g->run, channels_of(g), &b, &planes);
  *bytes += planes;
  return status;
}

int64_t ck_gemm_range(const struct ck_gemm *g) { return cut_of(g).terms; }

struct ck_blocking ck_gemm_blocking(const struct ck_gemm *g) {
  const struct cut cut = cut_of(g);
  return blocking_of(g, &cut);
}

static struct ck_ahead ahead_of(const void *at, int64_t elements, int element) {
  return (struct ck_ahead){at, (const char *)at + ck_max(0, elements) * element};
}

/* The input rows [0, end) of its image that are read by the end of a block. */
static int64_t rows_read(const struct ck_run *run, const struct ck_block *block) {
  const struct ck_span made = {block->y, block->y + block->rows};
  const int64_t reach = run->deform ? CK_DEFORM_REACH : 0, height = run->image.height;
  return ck_max(0, ck_min(ck_min(ck_rows_read(run, made).end, height) + reach, height));
}

/* The input that `next` reads and `block` did not. */
static struct ck_ahead input_of_next(const struct ck_gemm *g, const struct ck_block *block,
                                     const struct ck_block *next) {
  const struct ck_run *run = g->run;
  const int64_t row = run->image.width * ck_x_step(run);
  const int64_t begin = next->image == block->image ? rows_read(run, block) : 0;
  const int64_t rows = rows_read(run, next) - begin;
  const int64_t at = (next->image * run->image.height + begin) * row;
  const int element = g->kernels->element;
  return ahead_of(ck_at(run->x, at, element), rows * row, element);
}

/* The first panel of weights that the operation after this one reads. */
static struct ck_ahead panel_of_next(const struct ck_run *run) {
  const ck_op *next = run->next;
  if (!next || !next->gemms) return (struct ck_ahead){0};
  const struct ck_gemm_weights *w = next->bundles ? next->bundle : next->gemm;
  const int64_t columns = ck_min(w->panel_columns, w->columns);
  if (w->parts) return ahead_of(w->parts, columns * ck_parts_bytes(next->kernels, w->terms), 1);
  return ahead_of(w->data, w->terms * columns, next->kernels->element);
}

/* The weights of its depthwise, which are read before. */
static struct ck_ahead taps_of_next(const struct ck_run *run) {
  const ck_op *next = run->next;
  if (!next || next->dw.channels == 0) return (struct ck_ahead){0};
  const ck_window *w = &next->conv.window;
  return ahead_of(next->dw.data, next->dw.channels * w->kernel_h * w->kernel_w,
                  next->kernels->element);
}

/* What is read next, to be brought near meanwhile: the weights and the input of the next block, or
 * of the operation after this one. */
static struct ck_ahead panel_after(const struct ck_gemm *g, const struct ck_block *next,
                                   const void *at, int64_t elements) {
  if (elements > 0 || next) return ahead_of(at, elements, g->kernels->element);
  return panel_of_next(g->run);
}

static struct ck_ahead input_after(const struct ck_gemm *g, const struct ck_block *block,
                                   const struct ck_block *next) {
  if (crossed(g)) return (struct ck_ahead){0};
  return next ? input_of_next(g, block, next) : taps_of_next(g->run);
}

void ck_gemm_rows(const struct ck_kernels *k, const struct ck_deal *deal, int64_t tile_step,
                  struct ck_gemm_args *args) {
  for (int low = 0; low < 2; ++low) { /* the tiles that are one row taller first */
    args->rows = (int)deal->low + !low;
    args->tiles = low ? deal->tiles - deal->high_tiles : deal->high_tiles;
    if (args->tiles == 0) continue;
    args->a_tile = tile_step ? tile_step : args->rows * args->a_step;
    k->gemm(args);
    const int64_t made = args->tiles * args->rows * args->c_step;
    args->a = ck_at(args->a, args->tiles * args->a_tile, k->element);
    args->c = ck_at_mut(args->c, made, k->element);
    if (args->residual) args->residual = ck_at(args->residual, made, k->element);
  }
}

/* The tiles of a block times one panel of weights, to element `at` of y and on. */
static void multiply_panel(const struct ck_gemm *g, const struct ck_panel *panel,
                           const struct ck_deal *deal, bool last, int64_t at,
                           struct ck_gemm_args *args) {
  const struct ck_kernels *k = g->kernels;
  const void *line = args->a;
  const int64_t line_rows = deal->tiles * deal->low + deal->high_tiles;
  for (int64_t i = 0; i < panel->lines; ++i) {
    void *c = ck_at_mut(g->y, at, k->element);
    args->a = ck_at(line, i * panel->line_step, k->element);
    args->c = c;
    args->residual = last && g->residual ? ck_at(g->residual, at, k->element) : NULL;
    ck_gemm_rows(k, deal, panel->tile_step, args);
    if (last && g->activation.kind != CK_ACT_CLAMP)
      k->activate(
          &(struct ck_act_args){c, line_rows, args->columns, g->y_step, g->activation.kind});
    at += line_rows * g->y_step;
  }
}

/* One block times one range of terms, to pixel `first` of y and on. Meanwhile the next panel of
 * weights and the next block's input come into L2: without that a network whose weights are in L3
 * runs at two thirds of its speed. */
static void multiply(const struct ck_gemm *g, const struct ck_block *block,
                     const struct ck_block *next, const struct ck_panel *panel, int64_t first,
                     int64_t begin, int64_t end) {
  const struct ck_kernels *k = g->kernels;
  const struct ck_gemm_weights *w = g->weights;
  const bool last = end == w->terms;
  const struct ck_deal deal = ck_deal_of(block->pixels / panel->lines, k);
  struct ck_gemm_args args = {
      .a_step = panel->row_step,
      .a_run = panel->run,
      .a_next = panel->next,
      .a_runs = panel->runs,
      .a_line = panel->run_line,
      .c_step = g->y_step,
      .terms = end - begin,
      .low = last ? g->activation.low : -INFINITY,
      .high = last ? g->activation.high : INFINITY,
      .zero = g->zero,
  };
  struct ck_ahead later = {0};
  if (last) args.ahead[1] = input_after(g, block, next);
  if (last && !next) later = g->run->later;

  for (int64_t column = 0; column < w->columns; column += w->panel_columns) {
    const int64_t rest = w->columns - column;
    args.columns = ck_min(w->panel_columns, rest);
    args.vectors = (int)ck_ceil_div(args.columns, k->lanes);
    const int64_t width = (int64_t)args.vectors * k->lanes;
    args.a = ck_at(panel->data, g->view.pixels ? begin : 0, k->element);
    args.b = ck_at(w->data, ck_panel_at(k, w, column) + begin * width, k->element);
    args.bias = begin == 0 ? ck_at(w->bias, column, k->element) : NULL;
    args.ahead[0] = panel_after(g, next, ck_at(args.b, w->terms * width, k->element),
                                (end - begin) * ck_min(rest - args.columns, w->panel_columns));
    if (args.ahead[1].at >= args.ahead[1].end) { /* the input is near: go on */
      args.ahead[1] = later;
      later.at = later.end;
    }
    multiply_panel(g, panel, &deal, last, first * g->y_step + column, &args);
  }
}

static bool is_fast(const struct ck_gemm *g) {
  return g->run->op->conv.precision == CK_PRECISION_FAST;
}

/* The same, in parts: the panel is converted, and one call goes through all panels of weights. */
static void multiply_parts(const struct ck_gemm *g, const struct ck_block *block,
                           const struct ck_block *next, const struct ck_panel *panel, int64_t first,
                           int64_t begin, int64_t end) {
  const struct ck_kernels *k = g->kernels;
  const struct ck_gemm_weights *w = g->weights;
  const bool last = end == w->terms;
  const int64_t at = first * g->y_step;
  void *y = ck_at_mut(g->y, at, k->element);
  struct ck_parts_args args = {
      .a = ck_at(panel->data, g->view.pixels ? begin : 0, k->element),
      .offset = panel->offset,
      .a_step = panel->row_step,
      .a_next = panel->next,
      .a_parts = panel->parts,
      .a_terms = end - begin,
      .b = w->data,
      .b_parts = w->parts,
      .b_terms = w->terms,
      .panel_columns = w->panel_columns,
      .bias = begin == 0 ? w->bias : NULL,
      .residual = last && g->residual ? ck_at(g->residual, at, k->element) : NULL,
      .c = y,
      .c_step = g->y_step,
      .rows = block->pixels,
      .columns = w->columns,
      .begin = begin,
      .terms = end - begin,
      .fast = is_fast(g),
      .low = last ? g->activation.low : -INFINITY,
      .high = last ? g->activation.high : INFINITY,
      .zero = g->zero,
  };
  k->split_rows(&args);
  if (last) args.ahead[0] = input_after(g, block, next);
  if (last && !next) args.ahead[1] = panel_of_next(g->run);
  if (last && !next) args.ahead[2] = g->run->later;
  k->gemm_parts(&args);
  if (last && g->activation.kind != CK_ACT_CLAMP)
    k->activate(&(struct ck_act_args){y, block->pixels, w->columns, g->y_step, g->activation.kind});
}

/* NCHW: where a block begins in y, counted from the first image's first of this GEMM's planes. */
static int64_t place_in_planes(const struct ck_gemm *g, const struct ck_block *block) {
  const struct ck_run *run = g->run;
  const int64_t image = block->image * run->out_channels * ck_out_plane(run);
  return image + block->y * run->out_w + block->x;
}

/* NCHW: a tile of channels of a line of pixels, to element `at` of y and on. In planes the last
 * vectors are full ones, too, that overlap those before, where sums may be made twice. */
static void multiply_line(const struct ck_gemm *g, const struct ck_panel *panel, const void *line,
                          int64_t pixels, bool all_terms, bool last, int64_t at,
                          struct ck_gemm_args *args) {
  const struct ck_kernels *k = g->kernels;
  const int64_t group = group_pixels(k);
  for (int64_t x = 0; x < pixels; x += group) {
    args->columns = ck_min(group, pixels - x);
    args->vectors = (int)ck_ceil_div(args->columns, k->lanes);
    const int64_t lacks = args->vectors * k->lanes - args->columns;
    const bool twice = panel->places && all_terms && lacks <= panel->before + x;
    const int64_t back = twice ? lacks : 0;
    args->columns += back;
    args->b = ck_at(line, panel->places ? x - back : 0, k->element);
    args->c = ck_at_mut(g->y, at + x - back, k->element);
    args->residual = last && g->residual ? ck_at(g->residual, at + x - back, k->element) : NULL;
    k->gemm(args);
    if (last && g->activation.kind != CK_ACT_CLAMP)
      k->activate(
          &(struct ck_act_args){args->c, args->rows, args->columns, g->y_step, g->activation.kind});
    if (!panel->places) line = ck_at(line, panel->group_step, k->element);
  }
}

/* The same for NCHW: the weights' tiles of channels are the rows, the panel's groups of pixels the
 * columns. */
static void multiply_planar(const struct ck_gemm *g, const struct ck_block *block,
                            const struct ck_panel *panel, int64_t begin, int64_t end) {
  const struct ck_kernels *k = g->kernels;
  const struct ck_gemm_weights *w = g->weights;
  const bool last = end == w->terms;
  const struct ck_deal deal = ck_deal_of(w->columns, k);
  const int64_t tile_step = ck_round_up(w->terms, k->lanes) * k->gemm_rows;
  const int64_t start = place_in_planes(g, block), pixels = block->pixels / panel->lines;
  struct ck_gemm_args args = {
      .b_at = panel->places,
      .a_step = k->lanes,
      .a_run = k->lanes,
      .a_next = (int64_t)k->gemm_rows * k->lanes,
      .c_step = g->y_step,
      .terms = end - begin,
      .tiles = 1,
      .low = last ? g->activation.low : -INFINITY,
      .high = last ? g->activation.high : INFINITY,
      .zero = g->zero,
  };

  for (int64_t t = 0, channel = 0; t < deal.tiles; channel += args.rows, ++t) {
    args.rows = (int)ck_deal_rows(&deal, t);
    args.a = ck_at(w->data, t * tile_step + begin * k->gemm_rows, k->element);
    args.row_bias = begin == 0 ? ck_at(w->bias, channel, k->element) : NULL;
    const bool more = t + 1 < deal.tiles;
    args.ahead[0] = ahead_of(ck_at(args.a, tile_step, k->element),
                             more ? (end - begin) * k->gemm_rows : 0, k->element);
    for (int64_t i = 0; i < panel->lines; ++i)
      multiply_line(g, panel, ck_at(panel->data, i * panel->line_step, k->element), pixels,
                    begin == 0 && last, last, start + channel * g->y_step + i * pixels, &args);
  }
}

/* The same, in parts: the pixels are converted, group by group. */
static void multiply_planar_parts(const struct ck_gemm *g, const struct ck_block *block,
                                  const struct ck_panel *panel, int64_t begin, int64_t end) {
  const struct ck_kernels *k = g->kernels;
  const struct ck_gemm_weights *w = g->weights;
  const bool last = end == w->terms;
  const int64_t group = group_pixels(k), terms = panel->group_step / group;
  const int64_t at = place_in_planes(g, block), column = ck_parts_bytes(k, terms);
  void *y = ck_at_mut(g->y, at, k->element);
  for (int64_t i = 0; i < block->pixels; i += group) {
    const int64_t pixels = ck_min(group, block->pixels - i);
    k->split_columns(&(struct ck_split_args){.to = (char *)panel->parts + i * column,
                                             .from = ck_at(panel->data, i * terms, k->element),
                                             .terms = end - begin,
                                             .vectors = (int)ck_ceil_div(pixels, k->lanes),
                                             .pixels = true});
  }
  k->gemm_parts(&(struct ck_parts_args){
      .a = ck_at(w->data, begin * k->gemm_rows, k->element),
      .offset = w->places,
      .a_next = (int64_t)k->gemm_rows * k->lanes,
      .a_parts = (char *)w->parts + ck_parts_bytes(k, begin) * k->part_rows,
      .a_terms = w->terms,
      .b = panel->data,
      .b_parts = panel->parts,
      .b_terms = terms,
      .panel_columns = group,
      .row_bias = begin == 0 ? w->bias : NULL,
      .residual = last && g->residual ? ck_at(g->residual, at, k->element) : NULL,
      .c = y,
      .c_step = g->y_step,
      .rows = w->columns,
      .columns = block->pixels,
      .terms = end - begin,
      .planar = true,
      .fast = is_fast(g),
      .low = last ? g->activation.low : -INFINITY,
      .high = last ? g->activation.high : INFINITY,
      .zero = g->zero});
  if (last && g->activation.kind != CK_ACT_CLAMP)
    k->activate(&(struct ck_act_args){y, w->columns, block->pixels, g->y_step, g->activation.kind});
}

/* NCHW: where a block that is read where it lies begins, counted from the first plane. */
static int64_t place_in_image(const struct ck_gemm *g, const struct ck_block *block) {
  const ck_image *image = &g->run->image;
  return (block->image * image->channels * image->height + block->y) * image->width + block->x;
}

/* The number of a block's first pixel, among all of the output's. */
static int64_t pixel_of(const struct ck_gemm *g, const struct ck_block *block) {
  return (block->image * g->run->out_h + block->y) * g->run->out_w + block->x;
}

/* Where each pixel of a block goes in the panel. */
static void place_pixels(int64_t *offset, const struct ck_deal *deal, int64_t tile_step,
                         int64_t lanes) {
  for (int64_t t = 0; t < deal->tiles; ++t)
    for (int64_t r = 0; r < ck_deal_rows(deal, t); ++r) *offset++ = t * tile_step + r * lanes;
}

/* The panel of a block, empty; `data` is where its elements go. */
static struct ck_panel panel_of(const struct ck_gemm *g, const struct ck_block *block,
                                const struct cut *cut, int64_t *offset, void *data, void *parts) {
  const struct ck_kernels *k = g->kernels;
  const struct ck_view *view = &g->view;
  const int64_t group = group_pixels(k), tile_step = k->gemm_rows * cut->terms;
  struct ck_panel panel = {.data = data, .lines = 1, .parts = parts};
  if (view->planes) {
    panel.places = offset;
    if (staged(g)) {
      panel.lines = block->rows;
      panel.line_step = ck_staged_planes_pitch(g->run, block->cols);
    } else {
      panel.data = (void *)ck_at(view->pixels, place_in_image(g, block), k->element);
      panel.before = block->y * g->run->out_w + block->x;
    }
  } else if (view->row_step) {
    if (view->pixels) /* nobody writes there */
      panel.data = (void *)ck_at(view->pixels, pixel_of(g, block) * view->row_step, k->element);
    panel.lines = view->line_step ? block->rows : 1;
    panel.line_step = view->line_step;
    panel.row_step = view->row_step;
    panel.run = view->run;
    panel.next = view->next;
    panel.runs = view->runs;
    panel.run_line = view->run_line;
  } else if (planar(g)) {
    const int64_t rest = block->pixels % group; /* few pixels make a group of one vector */
    panel.group_step = group * cut->terms;
    panel.narrow = rest && rest <= k->lanes ? block->pixels - rest : INT64_MAX;
    panel.elements = ck_ceil_div(block->pixels, group) * panel.group_step;
    if (rest && g->zero) /* sums of idle lanes are looked at, too */
      memset(ck_at_mut(data, panel.elements - panel.group_step, k->element), 0,
             (size_t)(panel.group_step * k->element));
  } else {
    const struct ck_deal deal = ck_deal_of(block->pixels, k);
    place_pixels(offset, &deal, tile_step, k->lanes);
    panel.offset = offset;
    panel.tile_step = tile_step;
    panel.row_step = panel.run = k->lanes;
    panel.next = (int64_t)k->gemm_rows * k->lanes;
    panel.elements = deal.tiles * tile_step;
  }
  return panel;
}

/* One block: every range of terms, to pixel `first` of g->y and on. */
static void run_block(const struct ck_gemm *g, const struct cut *cut, const struct ck_block *block,
                      const struct ck_block *next, const struct ck_panel *panel, int64_t first) {
  const int64_t terms = g->weights->terms;
  for (int64_t begin = 0; begin < terms; begin += cut->terms) {
    const int64_t end = ck_min(begin + cut->terms, terms);
    if (!g->view.pixels || g->view.planes) g->fill(g->context, block, begin, end, panel);
    if (planar(g) && panel->parts)
      multiply_planar_parts(g, block, panel, begin, end);
    else if (planar(g))
      multiply_planar(g, block, panel, begin, end);
    else if (panel->parts)
      multiply_parts(g, block, next, panel, first, begin, end);
    else
      multiply(g, block, next, panel, first, begin, end);
  }
}

/* The same where sums of pixels go into planes: by way of `rows`, a GEMM whose residual and y are
 * one block's pixels. */
static void cross_block(const struct ck_gemm *g, const struct ck_gemm *rows, const struct cut *cut,
                        const struct ck_block *block, const struct ck_block *next,
                        const struct ck_panel *panel) {
  const struct ck_kernels *k = g->kernels;
  const int64_t at = place_in_planes(g, block), columns = g->weights->columns;
  if (g->residual)
    ck_to_pixels(k, (void *)rows->residual, ck_at(g->residual, at, k->element), g->y_step, columns,
                 block->pixels);
  run_block(rows, cut, block, next, panel, 0);
  ck_to_planes(k, ck_at_mut(g->y, at, k->element), g->y_step, rows->y, columns, block->pixels);
}

void ck_gemm_run(const struct ck_gemm *g, void *workspace) {
  const struct cut cut = cut_of(g);
  const struct ck_blocking blocking = blocking_of(g, &cut);
  const int64_t blocks = ck_block_count(&blocking), pixels = blocking.rows * blocking.cols;
  int64_t *offset = ck_align(workspace);
  void *data = ck_align(offset + places_of(g, pixels));
  struct ck_gemm rows = *g;
  if (crossed(g)) {
    const int64_t bytes = pixels * g->weights->columns * g->kernels->element;
    rows.y = data;
    rows.y_step = g->weights->columns;
    data = ck_align((char *)data + bytes);
    if (g->residual) rows.residual = data;
    data = ck_align((char *)data + bytes);
  }
  void *parts = NULL;
  if (ck_uses_parts(g)) {
    parts = data;
    data = (char *)data + parts_size(g, &cut, pixels);
  }
  for (int64_t i = 0; i < blocks; ++i) {
    const struct ck_block block = ck_block_at(&blocking, i);
    const struct ck_block after = ck_block_at(&blocking, i + 1),
                          *next = i + 1 < blocks ? &after : NULL;
    const struct ck_panel panel = panel_of(g, &block, &cut, offset, data, parts);
    if (crossed(g))
      cross_block(g, &rows, &cut, &block, next, &panel);
    else
      run_block(g, &cut, &block, next, &panel, pixel_of(g, &block));
  }
}
