/* Depthwise: borders, the choice of kernel, rows of a block. */
#include <math.h>

#include "ck_impl.h"

/* How many output pixels one block of a plain depthwise has: its table of offsets is a fraction of
 * the L1, and its input rows stay in L2. */
enum { BLOCK_PIXELS = 1024 };

typedef void dw_kernel(const struct ck_dw_args *);

struct dw_choice {
  dw_kernel *kernel;
  int rows; /* output rows it makes at once */
};

static struct dw_choice choose(const struct ck_run *run) {
  const struct ck_kernels *k = run->op->kernels;
  const ck_window *w = &run->op->conv.window;
  if (run->multiplier == 1 && w->kernel_h == 3 && w->kernel_w == 3 && w->dilation_h == 1 &&
      w->dilation_w == 1 && w->stride_h == w->stride_w) {
    if (w->stride_h == 1) return (struct dw_choice){k->dwconv3x3s1, k->dw_rows};
    if (w->stride_h == 2) return (struct dw_choice){k->dwconv3x3s2, k->dw_rows};
  }
  return (struct dw_choice){k->dwconv_any, 1};
}

int64_t ck_dw_row_pointers(const struct ck_run *run) {
  const ck_window *w = &run->op->conv.window;
  return (choose(run).rows - 1) * w->stride_h + w->kernel_h;
}

/* The input rows under `out_rows` rows from out_y on. With several output rows there is no
 * dilation, and the rows of the second continue those of the first. */
static void find_rows(const struct ck_run *run, int64_t image, int64_t out_y, int out_rows,
                      const void **rows) {
  const ck_window *w = &run->op->conv.window;
  const int64_t count = (out_rows - 1) * w->stride_h + w->kernel_h;
  const int64_t row_elements = run->image.width * run->image.channels;
  for (int64_t r = 0; r < count; ++r) {
    const int64_t y = out_y * w->stride_h + r * w->dilation_h - run->image.pad_top;
    const bool inside = y >= 0 && y < run->image.height;
    rows[r] = inside ? ck_at(run->x, (image * run->image.height + y) * row_elements,
                             run->op->kernels->element)
                     : NULL;
  }
}

void ck_dw_block(const struct ck_run *run, const struct ck_block *block, int64_t channel_begin,
                 int64_t channel_end, void *out, const int64_t *offset, int64_t out_step,
                 const ck_activation *activation, const void **rows) {
  const struct ck_op *op = run->op;
  const ck_window *w = &op->conv.window;
  const struct dw_choice choice = choose(run);
  struct ck_dw_args args = {
      .rows = rows,
      .weights = op->dw.data,
      .bias = op->dw.bias,
      .out = out,
      .out_step = out_step,
      .channel_begin = channel_begin,
      .channel_end = channel_end,
      .pixel_step = run->image.channels,
      .multiplier = run->multiplier,
      .in_w = run->image.width,
      .out_w = block->cols,
      .x0 = block->x * w->stride_w - run->image.pad_left,
      .kernel_h = w->kernel_h,
      .kernel_w = w->kernel_w,
      .stride_w = w->stride_w,
      .dilation_w = w->dilation_w,
      .low = activation->low,
      .high = activation->high,
  };
  for (int64_t r = 0; r < block->rows; r += args.out_rows) {
    args.out_rows = (int)ck_min(choice.rows, block->rows - r);
    args.offset = offset + r * block->cols;
    find_rows(run, block->image, block->y + r, args.out_rows, rows);
    choice.kernel(&args);
  }
}

static struct ck_blocking blocking_of(const struct ck_run *run) {
  return ck_blocking_of(run->image.batch, run->out_h, run->out_w, BLOCK_PIXELS);
}

ck_status ck_dwconv_workspace(const struct ck_run *run, size_t *bytes) {
  const struct ck_blocking b = blocking_of(run);
  const int64_t words = b.rows * b.cols + ck_dw_row_pointers(run);
  *bytes = (size_t)words * sizeof(int64_t) + 2 * CK_ALIGN;
  return CK_OK;
}

/* What a depthwise has after its sums: a residual, and an activation that is no clamp. */
static void finish_block(const struct ck_run *run, int64_t at, int64_t pixels) {
  const struct ck_op *op = run->op;
  const struct ck_kernels *k = op->kernels;
  void *y = ck_at_mut(run->y, at * op->dw.channels, k->element);
  if (run->residual)
    k->add_clamp(&(struct ck_add_args){y, ck_at(run->residual, at * op->dw.channels, k->element),
                                       pixels * op->dw.channels, op->conv.activation.low,
                                       op->conv.activation.high});
  if (op->conv.activation.kind != CK_ACT_CLAMP)
    k->activate(&(struct ck_act_args){y, pixels, op->dw.channels, op->dw.channels,
                                      op->conv.activation.kind});
}

void ck_dwconv_run(const struct ck_run *run, void *workspace) {
  const struct ck_op *op = run->op;
  const struct ck_blocking blocking = blocking_of(run);
  const int64_t channels = op->dw.channels;
  int64_t *offset = ck_align(workspace);
  const void **rows = ck_align(offset + blocking.rows * blocking.cols);
  for (int64_t p = 0; p < blocking.rows * blocking.cols; ++p) offset[p] = p * channels;

  const ck_activation identity = {CK_ACT_CLAMP, -INFINITY, INFINITY};
  const ck_activation *activation = run->residual ? &identity : &op->conv.activation;
  for (int64_t i = 0; i < ck_block_count(&blocking); ++i) {
    const struct ck_block block = ck_block_at(&blocking, i);
    const int64_t at = (block.image * run->out_h + block.y) * run->out_w + block.x;
    ck_dw_block(run, &block, 0, channels, ck_at_mut(run->y, at * channels, op->kernels->element),
                offset, op->kernels->lanes, activation, rows);
    finish_block(run, at, block.pixels);
  }
}
