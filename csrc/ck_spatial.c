/* Spatially separable, NHWC: for each row of output the column kernels make one row of sums, in L1,
 * padded left and right, which the row kernels then read. What falls on the padding is multiplied
 * like any other pixel. NCHW is in ck_nchw.c.
 */
#include <math.h>

#include "ck_impl.h"

/* The row of sums: columns x channels, so many channels at a time that it takes half of L1. */
struct line {
  int64_t columns, channels;
};

static ck_status line_of(const struct ck_run *run, int64_t cols, struct line *line) {
  const struct ck_kernels *k = run->op->kernels;
  const ck_status status = ck_dw_columns(run, cols, &line->columns);
  if (status != CK_OK) return status;
  const int64_t room = ck_cpu_l1d_bytes() / 2 / k->element / line->columns;
  const int64_t vectors =
      ck_min(ck_max(1, room / k->lanes), ck_ceil_div(run->out_channels, k->lanes));
  line->channels = vectors * k->lanes;
  return CK_OK;
}

ck_status ck_spatial_workspace(const struct ck_run *run, size_t *bytes) {
  const struct ck_kernels *k = run->op->kernels;
  const int64_t cols = ck_dw_blocking(run).cols, kernel_h = run->op->conv.window.kernel_h;
  struct line line;
  int64_t sums, tables;
  const ck_status status = line_of(run, cols, &line);
  if (status != CK_OK) return status;
  if (!ck_mul(line.columns, line.channels, &sums) || !ck_mul(sums, k->element, &sums) ||
      !ck_add(kernel_h, cols, &tables) || !ck_mul(tables, (int64_t)sizeof(int64_t), &tables) ||
      !ck_add(sums, tables, &sums) || !ck_add(sums, 3 * CK_ALIGN, &sums))
    return CK_E_OVERFLOW;
  *bytes = (size_t)sums;
  return CK_OK;
}

/* A block on its way, and those of its channels that have their turn. */
struct step {
  const struct ck_run *run;
  const struct ck_block *block;
  struct line line;
  const void **rows; /* kernel_h of them */
  void *sums;
  int64_t *offset; /* of each output of a row */
  int64_t channel, channels;
};

/* Column sums of the line's columns [begin, end), under output row y; of padding for y < 0. */
static void column_step(const struct step *s, int64_t y, int64_t begin, int64_t end) {
  const struct ck_run *run = s->run;
  const struct ck_op *op = run->op;
  const struct ck_kernels *k = op->kernels;
  const ck_image *image = &run->image;
  const ck_window *w = &op->conv.window;
  const int64_t column = s->block->x * w->stride_w - image->pad_left + begin;
  for (int64_t ky = 0; ky < w->kernel_h; ++ky) {
    const int64_t row = y * w->stride_h - image->pad_top + ky * w->dilation_h;
    const int64_t pixel = (s->block->image * image->height + row) * image->width + column;
    const bool inside = y >= 0 && row >= 0 && row < image->height;
    s->rows[ky] = inside ? ck_at(run->x, pixel * image->channels + s->channel, k->element) : NULL;
  }
  const bool alike = op->conv.in_channels == 0;
  k->column(&(struct ck_column_args){
      .rows = s->rows,
      .weights = ck_at(op->column.data, alike ? 0 : s->channel * w->kernel_h, k->element),
      .weights_step = alike ? 0 : w->kernel_h * k->lanes,
      .out = ck_at_mut(s->sums, begin * s->line.channels, k->element),
      .out_step = s->line.channels,
      .kernel_h = w->kernel_h,
      .pixel_step = image->channels,
      .pixels = end - begin,
      .channels = s->channels,
  });
}

/* Output row y from the line. */
static void row_step(const struct step *s, int64_t y) {
  const struct ck_run *run = s->run;
  const struct ck_op *op = run->op;
  const struct ck_kernels *k = op->kernels;
  const struct ck_dw_walk walk = ck_dw_walk_of(&op->conv.window);
  const ck_activation *activation = run->residual ? &ck_identity : &op->conv.activation;
  const int64_t pixel = (s->block->image * run->out_h + y) * run->out_w + s->block->x;
  for (int64_t c = 0; c < s->channels; c += k->lanes) {
    const void *line = ck_at(s->sums, c, k->element);
    const int64_t channel = (s->channel + c) % op->dw.channels;
    k->dwconvKxK(&(struct ck_dw_row_args){
        .rows = &line,
        .weights = ck_at(op->dw.data, channel * op->conv.window.kernel_w, k->element),
        .bias = ck_at(op->dw.bias, channel, k->element),
        .out = ck_at_mut(run->y, pixel * run->out_channels + s->channel + c, k->element),
        .offset = s->offset,
        .lanes = ck_min(k->lanes, s->channels - c),
        .kernel_h = 1,
        .kernel_w = op->conv.window.kernel_w,
        .out_w = s->block->cols,
        .tap_step = walk.dilation * s->line.channels,
        .out_step = op->conv.window.stride_w * s->line.channels,
        .phases = walk.phases,
        .group_step = walk.group_columns * s->line.channels,
        .low = activation->low,
        .high = activation->high,
    });
  }
}

static void run_block(struct step *s) {
  const struct ck_run *run = s->run;
  const struct ck_span whole = {0, s->line.columns};
  const int64_t first = s->block->x * run->op->conv.window.stride_w - run->image.pad_left;
  const struct ck_span inside = ck_span_inside(first, 1, run->image.width, whole);
  for (s->channel = 0; s->channel < run->out_channels; s->channel += s->line.channels) {
    s->channels = ck_min(s->line.channels, run->out_channels - s->channel);
    column_step(s, -1, 0, inside.begin);
    column_step(s, -1, inside.end, s->line.columns);
    for (int64_t y = s->block->y; y < s->block->y + s->block->rows; ++y) {
      column_step(s, y, inside.begin, inside.end);
      row_step(s, y);
    }
  }
}

void ck_spatial_run(const struct ck_run *run, void *workspace) {
  const struct ck_blocking blocking = ck_dw_blocking(run);
  struct step s = {.run = run, .rows = ck_align(workspace)};
  s.offset = ck_align(s.rows + run->op->conv.window.kernel_h);
  s.sums = ck_align(s.offset + blocking.cols);
  for (int64_t x = 0; x < blocking.cols; ++x) s.offset[x] = x * run->out_channels;
  for (int64_t i = 0; i < ck_block_count(&blocking); ++i) {
    const struct ck_block block = ck_block_at(&blocking, i);
    s.block = &block;
    line_of(run, block.cols, &s.line);
    run_block(&s);
    const int64_t at = (block.image * run->out_h + block.y) * run->out_w + block.x;
    ck_dw_finish(run, at * run->out_channels, block.pixels * run->out_channels);
  }
}
