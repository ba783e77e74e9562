/* Depthwise: borders, the choice of kernel, rows of a block.
 *
 * 3x3 at stride 1 and 2 has kernels that walk over the image itself. Every other window reads rows
 * that were staged: for each vector of channels, the input rows under the window are copied once
 * into a ring of contiguous, padded rows, which stays in L1. Pixels lie C channels apart in the
 * image, and where C is a power of two a window's worth of them falls into a few cache sets; the
 * copy costs less than the conflicts, and leaves the kernel no borders and no tails.
 *
 * A grouped convolution whose groups are narrower than a vector is the same thing: with G input
 * channels a group, each kernel row is G rows, one for each channel of the group, staged so that
 * every lane has the input of its own output's group. Groups share the vector, and no lane idles.
 */
#include <math.h>

#include "ck_impl.h"

/* The input of one block of a plain depthwise takes a quarter of L2, and at least so many pixels.
 */
enum { LEAST_BLOCK_PIXELS = 256 };

typedef void dw3x3_kernel(const struct ck_dw_args *);

/* The 3x3 kernel for this window, or null. */
static dw3x3_kernel *kernel_3x3(const struct ck_run *run) {
  const struct ck_kernels *k = run->op->kernels;
  const ck_window *w = &run->op->conv.window;
  if (run->group_in != 1 || run->group_out != 1 || w->kernel_h != 3 || w->kernel_w != 3 ||
      w->dilation_h != 1 || w->dilation_w != 1 || w->stride_h != w->stride_w)
    return NULL;
  return w->stride_h == 1 ? k->dwconv3x3s1 : w->stride_h == 2 ? k->dwconv3x3s2 : NULL;
}

bool ck_dw_by_columns(const struct ck_run *run) { return kernel_3x3(run) != NULL; }

/* The input row y of an image, or null where that is padding. */
static const void *input_row(const struct ck_run *run, int64_t image, int64_t y) {
  const ck_image *i = &run->image;
  if (y < 0 || y >= i->height) return NULL;
  return ck_at(run->x, (image * i->height + y) * i->width * i->channels, run->op->kernels->element);
}

/* ------------------------------------------------------------------------------------ 3x3 kernels
 */

enum { MAX_ROWS_3X3 = 2 * 2 + 1 }; /* under two output rows at stride 2 */

static void block_3x3(const struct ck_run *run, const struct ck_block *block,
                      const struct ck_dw_target *target, dw3x3_kernel *kernel) {
  const struct ck_op *op = run->op;
  const int64_t stride = op->conv.window.stride_h;
  const void *rows[MAX_ROWS_3X3];
  struct ck_dw_args args = {
      .rows = rows,
      .weights = op->dw.data,
      .bias = op->dw.bias,
      .out = target->out,
      .out_step = target->out_step,
      .channel_begin = target->channel_begin,
      .channel_end = target->channel_end,
      .pixel_step = run->image.channels,
      .in_w = run->image.width,
      .out_w = block->cols,
      .x0 = block->x * stride - run->image.pad_left,
      .low = target->activation->low,
      .high = target->activation->high,
  };
  for (int64_t r = 0; r < block->rows; r += args.out_rows) {
    args.out_rows = (int)ck_min(op->kernels->dw_rows, block->rows - r);
    args.offset = target->offset + r * block->cols;
    const int64_t first = (block->y + r) * stride - run->image.pad_top;
    for (int64_t i = 0; i < (args.out_rows - 1) * stride + 3; ++i)
      rows[i] = input_row(run, block->image, first + i);
    kernel(&args);
  }
}

/* ------------------------------------------------------------------------------------ staged rows
 */

int64_t ck_gcd(int64_t a, int64_t b) {
  while (b) {
    const int64_t rest = a % b;
    a = b;
    b = rest;
  }
  return a;
}

struct ck_dw_walk ck_dw_walk_of(const ck_window *w) {
  struct ck_dw_walk walk = {.dilation = w->kernel_w == 1 ? 1 : w->dilation_w};
  const int64_t divisor = ck_gcd(w->stride_w, walk.dilation);
  walk.phases = walk.dilation / divisor;
  walk.group_columns = w->stride_w / divisor * walk.dilation;
  return walk;
}

/* The ring of staged rows: `slots` rows of `columns` pixels of some vectors of channels, and one of
 * padding. */
struct ring {
  int64_t slots, columns, vectors;
};

/* Kernels for strides up to 3 read the columns of outputs that are missing in a short phase, so a
 * row also holds those of a whole group of outputs of the last phase. */
ck_status ck_dw_columns(const struct ck_run *run, int64_t cols, int64_t *columns) {
  const ck_window *w = &run->op->conv.window;
  const struct ck_dw_walk walk = ck_dw_walk_of(w);
  const int64_t group = run->op->kernels->dw_group;
  const bool literal = walk.group_columns <= 3 * walk.dilation;
  int64_t last, short_phase = 0, reach;
  if (!ck_mul(cols - 1, w->stride_w, &last) || !ck_mul(w->kernel_w - 1, walk.dilation, &reach))
    return CK_E_OVERFLOW;
  if (literal) /* then no factor is much larger than a padded row */
    short_phase = (ck_min(walk.phases, cols) - 1) * w->stride_w + (group - 1) * walk.group_columns;
  return ck_add(ck_max(last, short_phase), reach + 1, columns) ? CK_OK : CK_E_OVERFLOW;
}

/* As many vectors of channels as a sixteenth of L2 holds rows of: so the image is read in longer
 * runs, in which hardware sees a pattern. */
static ck_status ring_of(const struct ck_run *run, int64_t cols, struct ring *ring) {
  const struct ck_kernels *k = run->op->kernels;
  const ck_window *w = &run->op->conv.window;
  const ck_status status = ck_dw_columns(run, cols, &ring->columns);
  if (status != CK_OK) return status;
  int64_t rows, bytes;
  ring->slots = ck_min((w->kernel_h - 1) * w->dilation_h + 1, run->image.height);
  if (!ck_mul(ring->slots, run->group_in, &rows) || !ck_mul(rows + 1, ring->columns, &bytes) ||
      !ck_mul(bytes, (int64_t)k->lanes * k->element, &bytes))
    return CK_E_OVERFLOW;
  const bool plain = run->group_in == 1 && run->group_out == 1;
  const int64_t all = ck_ceil_div(run->out_channels, k->lanes);
  ring->vectors = plain ? ck_max(1, ck_min(all, ck_cpu_l2_bytes() / 16 / bytes)) : 1;
  return CK_OK;
}

/* Elements of a staged row. */
static int64_t slot_elements(const struct ck_run *run, const struct ring *ring) {
  return ring->columns * ring->vectors * run->op->kernels->lanes;
}

ck_status ck_dw_scratch(const struct ck_run *run, int64_t block_cols, size_t *bytes) {
  *bytes = 0;
  if (kernel_3x3(run)) return CK_OK;
  struct ring ring;
  int64_t rows, tables;
  const ck_status status = ring_of(run, block_cols, &ring);
  if (status != CK_OK) return status;
  const int64_t slots = ring.slots * run->group_in;
  if (!ck_mul(slots + 1, slot_elements(run, &ring), &rows) ||
      !ck_mul(rows, run->op->kernels->element, &rows) ||
      !ck_mul(2 * run->op->conv.window.kernel_h, run->group_in, &tables) ||
      !ck_add(slots, tables, &tables) || !ck_mul(tables, (int64_t)sizeof(void *), &tables) ||
      !ck_add(rows, tables, &rows) || !ck_add(rows, 4 * CK_ALIGN, &rows))
    return CK_E_OVERFLOW;
  *bytes = (size_t)rows;
  return CK_OK;
}

/* What the staging of some channels needs to know. */
struct stage {
  const struct ck_run *run;
  const struct ck_block *block;
  struct ring ring;
  char *data;     /* the slots, then the row of padding */
  int64_t *holds; /* which input row each slot holds, or -1 */
  int64_t slot_bytes;
  const void **rows;      /* a table for the kernel */
  int64_t channel, lanes; /* output channels that are staged */
};

/* Input row y of the block's image, channel c of each output's group, staged now unless it is there
 * already. */
static const void *staged_row(struct stage *s, int64_t y, int64_t c) {
  const struct ck_run *run = s->run;
  const ck_image *image = &run->image;
  const char *source = input_row(run, s->block->image, y);
  if (!source) return s->data + s->ring.slots * run->group_in * s->slot_bytes;
  const int64_t slot = y % s->ring.slots * run->group_in + c;
  char *to = s->data + slot * s->slot_bytes;
  if (s->holds[slot] == y) return to;
  s->holds[slot] = y;
  const int64_t first = s->block->x * run->op->conv.window.stride_w - image->pad_left;
  const int64_t begin = ck_max(0, ck_min(first, image->width));
  const int64_t end = ck_max(begin, ck_min(first + s->ring.columns, image->width));
  const int64_t before = ck_min(begin - first, s->ring.columns);
  run->op->kernels->dw_stage(&(struct ck_stage_args){
      .to = to,
      .src = ck_at(source, begin * image->channels, run->op->kernels->element),
      .src_step = image->channels,
      .to_step = s->ring.vectors * run->op->kernels->lanes,
      .before = before,
      .pixels = end - begin,
      .after = s->ring.columns - before - (end - begin),
      .channel = s->channel,
      .lanes = s->lanes,
      .group_in = run->group_in,
      .group_out = run->group_out,
      .member = c,
  });
  return to;
}

/* One output row of the channels that are staged, from the rows under it. */
static void staged_outputs(const struct stage *s, const struct ck_dw_target *target,
                           const void *const *staged, struct ck_dw_row_args *args) {
  const struct ck_op *op = s->run->op;
  const struct ck_kernels *k = op->kernels;
  const int64_t taps = args->kernel_h * args->kernel_w;
  for (int64_t v = 0; v < s->lanes; v += k->lanes) {
    const int64_t c = s->channel + v, group = (c - target->channel_begin) / k->lanes;
    for (int64_t i = 0; i < args->kernel_h; ++i) s->rows[i] = ck_at(staged[i], v, k->element);
    args->rows = s->rows;
    args->lanes = ck_min(k->lanes, s->lanes - v);
    args->weights = ck_at(op->dw.data, c * taps, k->element);
    args->bias = ck_at(op->dw.bias, c, k->element);
    args->out = ck_at_mut(target->out, group * target->out_step, k->element);
    k->dwconvKxK(args);
  }
}

static void block_staged(const struct ck_run *run, const struct ck_block *block,
                         const struct ck_dw_target *target, void *scratch) {
  const struct ck_op *op = run->op;
  const struct ck_kernels *k = op->kernels;
  const ck_window *w = &op->conv.window;
  const struct ck_dw_walk walk = ck_dw_walk_of(w);
  const int64_t rows = w->kernel_h * run->group_in;
  struct stage s = {.run = run, .block = block};
  ring_of(run, block->cols, &s.ring);
  s.slot_bytes = slot_elements(run, &s.ring) * k->element;
  const int64_t slots = s.ring.slots * run->group_in, pixel = s.ring.vectors * k->lanes;
  s.holds = ck_align(scratch);
  const void **staged = ck_align(s.holds + slots);
  s.rows = staged + rows;
  s.data = ck_align(s.rows + rows);
  memset(s.data + slots * s.slot_bytes, 0, (size_t)s.slot_bytes);

  struct ck_dw_row_args args = {
      .kernel_h = rows,
      .kernel_w = w->kernel_w,
      .out_w = block->cols,
      .tap_step = walk.dilation * pixel,
      .out_step = w->stride_w * pixel,
      .phases = walk.phases,
      .group_step = walk.group_columns * pixel,
      .low = target->activation->low,
      .high = target->activation->high,
  };
  for (int64_t c = target->channel_begin; c < target->channel_end; c += pixel) {
    s.channel = c;
    s.lanes = ck_min(pixel, target->channel_end - c);
    for (int64_t slot = 0; slot < slots; ++slot) s.holds[slot] = -1;
    for (int64_t r = 0; r < block->rows; ++r) {
      args.offset = target->offset + r * block->cols;
      const int64_t first = (block->y + r) * w->stride_h - run->image.pad_top;
      for (int64_t i = 0; i < rows; ++i)
        staged[i] = staged_row(&s, first + i / run->group_in * w->dilation_h, i % run->group_in);
      staged_outputs(&s, target, staged, &args);
    }
  }
}

void ck_dw_block(const struct ck_run *run, const struct ck_block *block,
                 const struct ck_dw_target *target, void *scratch) {
  dw3x3_kernel *kernel = kernel_3x3(run);
  if (kernel)
    block_3x3(run, block, target, kernel);
  else
    block_staged(run, block, target, scratch);
}

/* --------------------------------------------------------------------- a depthwise on its own */

const ck_activation ck_identity = {CK_ACT_CLAMP, -INFINITY, INFINITY};

struct ck_blocking ck_dw_blocking(const struct ck_run *run) {
  const ck_window *w = &run->op->conv.window;
  const int64_t pixel = run->image.channels * run->op->kernels->element;
  const int64_t inputs =
      ck_cpu_l2_bytes() / 4 / pixel / ck_min(w->stride_h, 4) / ck_min(w->stride_w, 4);
  return ck_blocking_of(run->image.batch, run->out_h, run->out_w,
                        ck_max(LEAST_BLOCK_PIXELS, inputs));
}

ck_status ck_dwconv_workspace(const struct ck_run *run, size_t *bytes) {
  const struct ck_blocking b = ck_dw_blocking(run);
  const ck_status status = ck_dw_scratch(run, b.cols, bytes);
  *bytes += (size_t)(b.rows * b.cols) * sizeof(int64_t) + 2 * CK_ALIGN;
  return status;
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

void ck_dwconv_run(const struct ck_run *run, void *workspace) {
  const struct ck_op *op = run->op;
  const struct ck_blocking blocking = ck_dw_blocking(run);
  const int64_t channels = op->dw.channels;
  int64_t *offset = ck_align(workspace);
  void *scratch = offset + blocking.rows * blocking.cols;
  for (int64_t p = 0; p < blocking.rows * blocking.cols; ++p) offset[p] = p * channels;

  struct ck_dw_target target = {
      .offset = offset,
      .out_step = op->kernels->lanes,
      .channel_end = channels,
      .activation = run->residual ? &ck_identity : &op->conv.activation,
  };
  for (int64_t i = 0; i < ck_block_count(&blocking); ++i) {
    const struct ck_block block = ck_block_at(&blocking, i);
    const int64_t at = (block.image * run->out_h + block.y) * run->out_w + block.x;
    target.out = ck_at_mut(run->y, at * channels, op->kernels->element);
    ck_dw_block(run, &block, &target, scratch);
    ck_dw_finish(run, at * channels, block.pixels * channels);
  }
}
