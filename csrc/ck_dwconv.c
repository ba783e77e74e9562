/* Depthwise: the choice of kernel, blocks of an image. 3x3 at stride 1 and 2 has kernels that walk
 * over several rows of an image at once; every other window, and planes, are in ck_dwstage.c. */

#include "ck_impl.h"

/* The input of one block of a plain depthwise takes a quarter of L2, and at least so many pixels.
 */
enum { LEAST_BLOCK_PIXELS = 256 };

ck_dw_3x3_kernel *ck_dw_3x3(const struct ck_run *run) {
  const struct ck_kernels *k = run->op->kernels;
  const ck_window *w = &run->op->conv.window;
  if (run->group_in != 1 || run->group_out != 1 || w->kernel_h != 3 || w->kernel_w != 3 ||
      w->dilation_h != 1 || w->dilation_w != 1 || w->stride_h != w->stride_w)
    return NULL;
  return w->stride_h == 1 ? k->dwconv3x3s1 : w->stride_h == 2 ? k->dwconv3x3s2 : NULL;
}

/* Where pixels lie a multiple of so many bytes apart, columns share few sets of L1, and those of
 * six input rows evict each other (measured, 256 and 512 channels: 0.92 and 0.82 of the speed of
 * two rows at once; all other numbers: 1.08 to 1.22, at stride 2 1.04 to 1.08). */
enum { CONFLICT_BYTES = 1024 };

int ck_dw_rows(const struct ck_run *run, int64_t pixel_step, int64_t rows) {
  const struct ck_kernels *k = run->op->kernels;
  const bool conflict = pixel_step * k->element % CONFLICT_BYTES == 0;
  const int64_t most = ck_min(rows, conflict ? ck_min(2, k->dw_rows) : k->dw_rows);
  int at_once = 1;
  while (2 * at_once <= most) at_once *= 2;
  return at_once;
}

const void *ck_image_row(const struct ck_run *run, int64_t image, int64_t y) {
  const ck_image *i = &run->image;
  if (y < 0 || y >= i->height) return NULL;
  return ck_at(run->x, (image * i->height + y) * i->width * ck_x_step(run),
               run->op->kernels->element);
}

/* ------------------------------------------------------------------------------------ 3x3 kernels
 */

void ck_dw_3x3_rows(const struct ck_run *run, const struct ck_block *block,
                    const struct ck_dw_args *args,
                    const void *(*row_at)(const void *context, int64_t y), const void *context) {
  const int64_t stride = run->op->conv.window.stride_h;
  const void *rows[CK_DW_IN_ROWS];
  struct ck_dw_args some = *args;
  some.rows = rows;
  for (int64_t r = 0; r < block->rows; r += some.out_rows) {
    some.out_rows = ck_dw_rows(run, some.pixel_step, block->rows - r);
    some.offset = args->offset + r * some.offset_row;
    const int64_t first = (block->y + r) * stride - run->image.pad_top;
    for (int64_t i = 0; i < (some.out_rows - 1) * stride + 3; ++i)
      rows[i] = row_at(context, first + i);
    ck_dw_3x3(run)(&some);
  }
}

/* One image of a run. */
struct image {
  const struct ck_run *run;
  int64_t index;
};

static const void *row_of_image(const void *context, int64_t y) {
  const struct image *image = context;
  return ck_image_row(image->run, image->index, y);
}

static void block_3x3(const struct ck_run *run, const struct ck_block *block,
                      const struct ck_dw_target *target) {
  const struct ck_op *op = run->op;
  const struct image image = {run, block->image};
  const struct ck_dw_args args = {
      .weights = op->dw.data,
      .bias = op->dw.bias,
      .out = target->out,
      .offset = target->offset,
      .offset_row = block->cols,
      .out_step = target->out_step,
      .channel_begin = target->channel_begin,
      .channel_end = target->channel_end,
      .pixel_step = ck_x_step(run),
      .in_w = run->image.width,
      .out_w = block->cols,
      .x0 = block->x * op->conv.window.stride_w - run->image.pad_left,
      .low = target->activation->low,
      .high = target->activation->high,
  };
  ck_dw_3x3_rows(run, block, &args, row_of_image, &image);
}

/* Whether each output of a block is made of one pixel of the image, by a kernel for that. */
static bool reads_single_pixels(const struct ck_run *run, const struct ck_block *block) {
  const ck_window *w = &run->op->conv.window;
  const ck_image *image = &run->image;
  const int64_t top = block->y * w->stride_h - image->pad_top;
  const int64_t left = block->x * w->stride_w - image->pad_left;
  return w->kernel_h == 1 && w->kernel_w == 1 && top >= 0 && left >= 0 &&
         top + (block->rows - 1) * w->stride_h < image->height &&
         left + (block->cols - 1) * w->stride_w < image->width;
}

static void block_1x1(const struct ck_run *run, const struct ck_block *block,
                      const struct ck_dw_target *target) {
  const struct ck_op *op = run->op;
  const ck_window *w = &op->conv.window;
  const int64_t left = block->x * w->stride_w - run->image.pad_left;
  const bool joined = w->stride_h == 1 && w->stride_w == 1 && block->cols == run->image.width;
  const int64_t lines = joined ? 1 : block->rows; /* of pixels that follow each other */
  struct ck_dw_pixel_args args = {
      .src_step = w->stride_w * ck_x_step(run),
      .weights = op->dw.data,
      .bias = op->dw.bias,
      .out = target->out,
      .offset = target->offset,
      .out_step = target->out_step,
      .pixels = block->pixels / lines,
      .channel_begin = target->channel_begin,
      .channel_end = target->channel_end,
      .group_in = run->group_in,
      .group_out = run->group_out,
      .pairs = ck_makes_pairs(op->kernels, run->group_in, run->group_out),
      .low = target->activation->low,
      .high = target->activation->high};
  for (int64_t r = 0; r < lines; ++r, args.offset += block->cols) {
    const int64_t y = (block->y + r) * w->stride_h - run->image.pad_top;
    args.src =
        ck_at(ck_image_row(run, block->image, y), left * ck_x_step(run), op->kernels->element);
    op->kernels->dwconv1x1(&args);
  }
}

void ck_dw_block(const struct ck_run *run, const struct ck_block *block,
                 const struct ck_dw_target *target, void *scratch) {
  if (ck_dw_3x3(run))
    block_3x3(run, block, target);
  else if (reads_single_pixels(run, block))
    block_1x1(run, block, target);
  else
    ck_dw_block_rows(run, block, target, scratch);
}

/* --------------------------------------------------------------------- a depthwise on its own */

const ck_activation ck_identity = {CK_ACT_CLAMP, -INFINITY, INFINITY};

/* Outputs whose input is many times what a block shares with the next, which is staged again for
 * each; but their offsets take at most an eighth of L2. */
static int64_t staged_pixels(const struct ck_run *run) {
  const ck_window *w = &run->op->conv.window;
  const int64_t height = run->image.height, stride = ck_min(w->stride_h, height);
  const int64_t shared = ck_min(height, ck_max(0, (w->kernel_h - 1) * w->dilation_h + 1 - stride));
  const int64_t rows = ck_min(run->out_h, 8 * ck_ceil_div(shared, stride));
  return ck_min(rows * run->out_w, ck_cpu_l2_bytes() / 8 / (int64_t)sizeof(int64_t));
}

struct ck_blocking ck_dw_blocking(const struct ck_run *run) {
  const ck_window *w = &run->op->conv.window;
  const int64_t pixel = run->image.channels * run->op->kernels->element;
  const int64_t inputs =
      ck_cpu_l2_bytes() / 4 / pixel / ck_min(w->stride_h, 4) / ck_min(w->stride_w, 4);
  int64_t pixels = ck_max(LEAST_BLOCK_PIXELS, inputs);
  if (!ck_dw_3x3(run)) pixels = ck_max(pixels, staged_pixels(run));
  return ck_blocking_of(run->image.batch, run->out_h, run->out_w, pixels);
}

void ck_dw_finish(const struct ck_run *run, int64_t at, int64_t n) {
  const struct ck_kernels *k = run->op->kernels;
  const ck_activation *activation = &run->op->conv.activation;
  void *y = ck_at_mut(run->y, at, k->element);
  if (run->residual)
    k->add_clamp(&(struct ck_add_args){y, ck_at(run->residual, at, k->element), n, activation->low,
                                       activation->high});
  if (activation->kind != CK_ACT_CLAMP)
    k->activate(&(struct ck_act_args){y, 1, n, n, activation->kind});
}

void ck_dw_finish_pixels(const struct ck_run *run, int64_t pixel, int64_t pixels) {
  const struct ck_span channels = ck_channels(run);
  const int64_t n = channels.end - channels.begin;
  if (n == run->out_channels) { /* one run of memory */
    ck_dw_finish(run, pixel * n, pixels * n);
    return;
  }
  for (int64_t p = pixel; p < pixel + pixels; ++p)
    ck_dw_finish(run, p * run->out_channels + channels.begin, n);
}

ck_status ck_dwconv_workspace(const struct ck_run *run, size_t *bytes) {
  const struct ck_blocking b = ck_dw_blocking(run);
  const ck_status status = ck_dw_scratch(run, b.cols, bytes);
  *bytes += (size_t)(b.rows * b.cols) * sizeof(int64_t) + 2 * CK_ALIGN;
  return status;
}

void ck_dwconv_run(const struct ck_run *run, void *workspace) {
  const struct ck_op *op = run->op;
  const struct ck_blocking blocking = ck_dw_blocking(run);
  const struct ck_span channels = ck_channels(run);
  int64_t *offset = ck_align(workspace);
  void *scratch = offset + blocking.rows * blocking.cols;
  for (int64_t p = 0; p < blocking.rows * blocking.cols; ++p) offset[p] = p * run->out_channels;

  struct ck_dw_target target = {
      .offset = offset,
      .out_step = op->kernels->lanes,
      .channel_begin = channels.begin,
      .channel_end = channels.end,
      .activation = run->residual ? &ck_identity : &op->conv.activation,
  };
  for (int64_t i = 0; i < ck_block_count(&blocking); ++i) {
    const struct ck_block block = ck_block_at(&blocking, i);
    const int64_t at = (block.image * run->out_h + block.y) * run->out_w + block.x;
    target.out = ck_at_mut(run->y, at * run->out_channels + channels.begin, op->kernels->element);
    ck_dw_block(run, &block, &target, scratch);
    ck_dw_finish_pixels(run, at, block.pixels);
  }
}
