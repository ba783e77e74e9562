/* Spatially separable, NHWC: for each row of output the column kernels make one row of sums, in L1,
 * padded left and right, which the row kernels then read. What falls on the padding is multiplied
 * like any other pixel. NCHW is in ck_bands.c and ck_planar.c.
 */

#include "ck_impl.h"

/* The column sums: a line of columns x channels for each of one or two rows of output, with so many
 * channels at a time that they take half of L1. Two lines share most of the input rows under them,
 * where the second begins at a tap of the first, the `shift`th. */
struct lines {
  int64_t columns, channels;
  int64_t shift; /* or 0: there is one */
};

static ck_status lines_of(const struct ck_run *run, int64_t cols, struct lines *lines) {
  const struct ck_kernels *k = run->op->kernels;
  const ck_window *w = &run->op->conv.window;
  const ck_status status = ck_dw_columns(run, cols, &lines->columns);
  if (status != CK_OK) return status;
  const int64_t shift = w->stride_h / w->dilation_h;
  const bool share = w->stride_h % w->dilation_h == 0 && shift < w->kernel_h;
  lines->shift = share ? shift : 0;
  const int64_t room = ck_cpu_l1d_bytes() / (share ? 4 : 2) / k->element / lines->columns;
  const int64_t vectors = ck_ceil_div(run->out_channels, k->lanes);
  lines->channels = ck_min(ck_max(1, room / k->lanes), vectors) * k->lanes;
  return CK_OK;
}

ck_status ck_spatial_workspace(const struct ck_run *run, size_t *bytes) {
  const int element = run->op->kernels->element;
  const int64_t cols = ck_dw_blocking(run).cols, kernel_h = run->op->conv.window.kernel_h;
  struct lines lines;
  int64_t sums, tables;
  const ck_status status = lines_of(run, cols, &lines);
  if (status != CK_OK) return status;
  if (!ck_mul(lines.columns, 2 * lines.channels, &sums) || !ck_mul(sums, element, &sums) ||
      !ck_mul(2, kernel_h, &tables) || !ck_add(tables, cols, &tables) ||
      !ck_mul(tables, (int64_t)sizeof(int64_t), &tables) || !ck_add(sums, tables, &sums) ||
      !ck_add(sums, 3 * CK_ALIGN, &sums))
    return CK_E_OVERFLOW;
  *bytes = (size_t)sums;
  return CK_OK;
}

/* A block on its way, and those of its channels that have their turn. */
struct step {
  const struct ck_run *run;
  const struct ck_block *block;
  struct lines lines;
  const void **rows; /* of the input, under one or two rows of output */
  void *sums;
  int64_t *offset; /* of each output of a row */
  int64_t channel, channels;
};

/* Where an input row begins at one of the lines' columns; null is padding. */
static const void *input_row(const struct step *s, int64_t row, int64_t column) {
  const ck_image *image = &s->run->image;
  const void *pixels = ck_image_row(s->run, s->block->image, row);
  if (!pixels) return NULL;
  column += s->block->x * s->run->op->conv.window.stride_w - image->pad_left;
  return ck_at(pixels, column * image->channels + s->channel, s->run->op->kernels->element);
}

/* Column sums of the lines' columns [begin, end), under output row y and, with a shift, under the
 * next one; or of padding. */
static void column_step(const struct step *s, int64_t y, int64_t shift, struct ck_span columns,
                        bool padding) {
  const struct ck_run *run = s->run;
  const struct ck_op *op = run->op;
  const struct ck_kernels *k = op->kernels;
  const ck_window *w = &op->conv.window;
  for (int64_t j = 0; j < w->kernel_h + shift; ++j) {
    const int64_t row = y * w->stride_h - run->image.pad_top + j * w->dilation_h;
    s->rows[j] = padding ? NULL : input_row(s, row, columns.begin);
  }
  const bool alike = op->conv.in_channels == 0;
  k->dwconvKx1(&(struct ck_column_args){
      .rows = s->rows,
      .shift = shift,
      .weights = ck_at(op->column.data, alike ? 0 : s->channel * w->kernel_h, k->element),
      .weights_step = alike ? 0 : w->kernel_h * k->lanes,
      .out = ck_at_mut(s->sums, columns.begin * s->lines.channels, k->element),
      .out_step = s->lines.channels,
      .out_row = s->lines.columns * s->lines.channels,
      .kernel_h = w->kernel_h,
      .pixel_step = run->image.channels,
      .pixels = columns.end - columns.begin,
      .channels = s->channels,
  });
}

/* Output row y from one of the lines. */
static void row_step(const struct step *s, int64_t y, int64_t line) {
  const struct ck_run *run = s->run;
  const struct ck_op *op = run->op;
  const struct ck_kernels *k = op->kernels;
  const struct ck_dw_walk walk = ck_dw_walk_of(&op->conv.window);
  const ck_activation *activation = run->residual ? &ck_identity : &op->conv.activation;
  const int64_t pixel = (s->block->image * run->out_h + y) * run->out_w + s->block->x;
  for (int64_t c = 0; c < s->channels; c += k->lanes) {
    const int64_t at = line * s->lines.columns * s->lines.channels + c;
    const void *sums = ck_at(s->sums, at, k->element);
    const int64_t channel = (s->channel + c) % op->dw.channels;
    k->dwconvKxK(&(struct ck_dw_row_args){
        .rows = &sums,
        .row_end = s->lines.columns * s->lines.channels,
        .weights = ck_at(op->dw.data, channel * op->conv.window.kernel_w, k->element),
        .bias = ck_at(op->dw.bias, channel, k->element),
        .out = ck_at_mut(run->y, pixel * run->out_channels + s->channel + c, k->element),
        .offset = s->offset,
        .lanes = ck_min(k->lanes, s->channels - c),
        .kernel_h = 1,
        .kernel_w = op->conv.window.kernel_w,
        .out_rows = 1,
        .out_w = s->block->cols,
        .tap_step = walk.dilation * s->lines.channels,
        .out_step = op->conv.window.stride_w * s->lines.channels,
        .phases = walk.phases,
        .group_step = walk.group_columns * s->lines.channels,
        .low = activation->low,
        .high = activation->high,
    });
  }
}

static void run_block(struct step *s) {
  const struct ck_run *run = s->run;
  const struct ck_block *block = s->block;
  const struct ck_span whole = {0, s->lines.columns};
  const int64_t first = block->x * run->op->conv.window.stride_w - run->image.pad_left;
  const struct ck_span inside = ck_span_inside(first, 1, run->image.width, whole);
  const struct ck_span left = {0, inside.begin}, right = {inside.end, s->lines.columns};
  const struct ck_span channels = ck_channels(run);
  for (s->channel = channels.begin; s->channel < channels.end; s->channel += s->lines.channels) {
    s->channels = ck_min(s->lines.channels, channels.end - s->channel);
    column_step(s, 0, s->lines.shift, left, true);
    column_step(s, 0, s->lines.shift, right, true);
    for (int64_t r = 0; r < block->rows; r += 2) {
      const bool two = r + 1 < block->rows;
      const int64_t y = block->y + r, shift = two ? s->lines.shift : 0;
      column_step(s, y, shift, inside, false);
      row_step(s, y, 0);
      if (two && !shift) column_step(s, y + 1, 0, inside, false);
      if (two) row_step(s, y + 1, shift ? 1 : 0);
    }
  }
}

void ck_spatial_run(const struct ck_run *run, void *workspace) {
  const struct ck_blocking blocking = ck_dw_blocking(run);
  struct step s = {.run = run, .rows = ck_align(workspace)};
  s.offset = ck_align(s.rows + 2 * run->op->conv.window.kernel_h);
  s.sums = ck_align(s.offset + blocking.cols);
  for (int64_t x = 0; x < blocking.cols; ++x) s.offset[x] = x * run->out_channels;
  for (int64_t i = 0; i < ck_block_count(&blocking); ++i) {
    const struct ck_block block = ck_block_at(&blocking, i);
    s.block = &block;
    lines_of(run, block.cols, &s.lines);
    run_block(&s);
    const int64_t at = (block.image * run->out_h + block.y) * run->out_w + block.x;
    ck_dw_finish_pixels(run, at, block.pixels);
  }
}
