/* MobileNetV2's inverted residual (Sandler et al., arXiv 1801.04381, 2018): a pointwise convolution
 * that expands the channels, a depthwise 3x3 of them, and one that projects them. The first two are
 * a fill of the third's GEMM, a slice of channels and a strip of columns at a time: what is
 * expanded is read while it lies in L1, and never exists as a whole. The rows that the next block
 * reads again wait for it, slice by slice.
 *
 * Sums are those of the operations one by one, in the same order.
 */
#include "ck_impl.h"

/* So many rows of the output make a block: as many as the depthwise makes at once. At least two, so
 * that a block makes all rows that wait for the next. */
enum { BLOCK_ROWS = CK_DW_ROWS };

int64_t ck_inverted_pixels(const struct ck_run *run) {
  return ck_min(BLOCK_ROWS, run->out_h) * run->out_w;
}

/* Elements from one expanded pixel of a slice to the next. */
static int64_t pixel_step(const struct ck_run *run) {
  return (int64_t)run->op->kernels->gemm_vectors * run->op->kernels->lanes;
}

/* Rows that the windows of two neighbours share. */
static int64_t shared_rows(const struct ck_run *run) { return 3 - run->op->conv.window.stride_h; }

/* Columns of a strip: whole tiles, of which the rows under a block fill L1. Of those some wait
 * elsewhere, and narrower strips would be more calls. */
static int64_t strip_columns(const struct ck_run *run) {
  const struct ck_kernels *k = run->op->kernels;
  const int64_t column = ck_rows_under(run, BLOCK_ROWS) * pixel_step(run) * k->element;
  return ck_max(1, ck_cpu_l1d_bytes() / column / k->gemm_rows) * k->gemm_rows;
}

/* Elements of a strip's row, with the columns that the strip before has left it. */
static int64_t strip_row(const struct ck_run *run) {
  return (strip_columns(run) + 2) * pixel_step(run);
}

/* Elements of the rows that wait, of one slice and of all. */
static int64_t kept_of_slice(const struct ck_run *run) {
  return shared_rows(run) * run->image.width * pixel_step(run);
}

static int64_t kept_elements(const struct ck_run *run) {
  return ck_ceil_div(run->image.channels, run->expand->gemm->panel_columns) * kept_of_slice(run);
}

/* Kernels that sum in the same order, and limits that they apply. */
static bool sums_alike(const ck_op *op, const ck_op *expand) {
  return op->kind == CK_OP_SEPARABLE && expand->kind == CK_OP_CONV2D && expand->gemms == 1 &&
         op->kernels == expand->kernels && op->conv.layout == CK_NHWC &&
         expand->conv.layout == CK_NHWC && op->conv.dw_activation.kind == CK_ACT_CLAMP &&
         expand->conv.activation.kind == CK_ACT_CLAMP;
}

static bool is_pointwise(const struct ck_run *run) {
  const ck_window *w = &run->op->conv.window;
  return w->kernel_h == 1 && w->kernel_w == 1 && w->stride_h == 1 && w->stride_w == 1 &&
         run->out_h == run->image.height && run->out_w == run->image.width;
}

/* A slice begins with a whole vector, its weights stay in L1 beside its pixels, and one range of
 * terms is all. A part of a run that reads rows of padding only, which are zeros, would expand them
 * (see ck_see_rows). */
bool ck_may_expand(const struct ck_run *run, const struct ck_run *first) {
  const struct ck_op *op = run->op, *expand = first->op;
  if (!sums_alike(op, expand) || !is_pointwise(first) || !ck_dw_3x3(run)) return false;
  if (first->parts && expand->gemm->parts) return false; /* which are summed in another order */
  const struct ck_kernels *k = op->kernels;
  const int64_t panel = expand->gemm->panel_columns;
  return panel % k->lanes == 0 &&
         expand->gemm->terms <= ck_cpu_l1d_bytes() / 8 / k->element / panel &&
         op->gemm->terms <= ck_cpu_l2_bytes() / 8 / k->element / op->gemm->panel_columns &&
         run->image.pad_top < 3 && run->image.pad_bottom < 3;
}

/* What one block leaves for the next. */
struct ck_inverted {
  void *strip;         /* rows of a slice that do not wait */
  void *kept[2];       /* rows that waited for this block, and that wait for the next */
  struct ck_span rows; /* which waited, */
  int64_t image;       /* of which image */
};

ck_status ck_inverted_scratch(const struct ck_run *run, size_t *bytes) {
  const int64_t elements = ck_rows_under(run, BLOCK_ROWS) * strip_row(run) + 2 * kept_elements(run);
  *bytes =
      sizeof(struct ck_inverted) + (size_t)(elements * run->op->kernels->element) + 2 * CK_ALIGN;
  return CK_OK;
}

void ck_inverted_start(struct ck_dw_fill *f) {
  if (!f->run->expand) return;
  const int element = f->run->op->kernels->element;
  struct ck_inverted *inverted = ck_align(f->scratch);
  inverted->kept[0] = ck_align(inverted + 1);
  inverted->kept[1] = ck_at_mut(inverted->kept[0], kept_elements(f->run), element);
  inverted->strip = ck_at_mut(inverted->kept[1], kept_elements(f->run), element);
  inverted->rows = (struct ck_span){0, 0};
  inverted->image = -1;
  f->inverted = inverted;
}

/* One slice of a block, on its way. */
struct slice {
  const struct ck_run *run;
  struct ck_span read, fresh; /* rows under the block, of which those are to make */
  int64_t keep;               /* the first that will wait */
  void *row[CK_DW_IN_ROWS];   /* those of `read`, at column `origin` */
  int64_t origin;
  int64_t channel, channels;
  struct ck_gemm_args gemm; /* of the expansion, but for the pixels */
};

static const void *expanded_row(const void *context, int64_t y) {
  const struct slice *s = context;
  return y < s->read.begin || y >= s->read.end ? NULL : s->row[y - s->read.begin];
}

/* Some columns of one row, dealt out to tiles, from `column` on; `from` is that of x. */
static void expand(struct slice *s, int64_t y, int64_t column, const struct ck_deal *deal,
                   const void *from) {
  const struct ck_kernels *k = s->run->op->kernels;
  struct ck_gemm_args *g = &s->gemm;
  g->a = from;
  g->c = ck_at_mut(s->row[y - s->read.begin], (column - s->origin) * g->c_step, k->element);
  ck_gemm_rows(k, deal, 0, g);
}

/* The depthwise of a strip's outputs, into the panel. */
static void sum_windows(const struct slice *s, const struct ck_block *block, struct ck_span outputs,
                        const struct ck_panel *panel) {
  const struct ck_run *run = s->run;
  const struct ck_op *op = run->op;
  const struct ck_kernels *k = op->kernels;
  const int64_t out_step = (int64_t)k->gemm_rows * k->lanes;
  const struct ck_dw_args args = {
      .weights = ck_at(op->dw.data, s->channel * 9, k->element),
      .bias = ck_at(op->dw.bias, s->channel, k->element),
      .out = ck_at_mut(panel->data, s->channel / k->lanes * out_step, k->element),
      .offset = panel->offset + outputs.begin,
      .offset_row = block->cols,
      .out_step = out_step,
      .channel_end = s->channels,
      .pixel_step = pixel_step(run),
      .in_w = run->image.width - s->origin,
      .out_w = outputs.end - outputs.begin,
      .x0 = outputs.begin * op->conv.window.stride_w - run->image.pad_left - s->origin,
      .low = op->conv.dw_activation.low,
      .high = op->conv.dw_activation.high,
  };
  ck_dw_3x3_rows(run, block, &args, expanded_row, s);
}

/* Let rows begin with a column further right: in the strip, those up to `end` are carried to its
 * front. */
static void move_right(struct slice *s, int64_t origin, int64_t end) {
  const int element = s->run->op->kernels->element;
  const int64_t step = pixel_step(s->run);
  for (int64_t y = s->read.begin; y < s->read.end; ++y) {
    void **row = &s->row[y - s->read.begin],
         *from = ck_at_mut(*row, (origin - s->origin) * step, element);
    if (y >= s->fresh.begin && y < s->keep)
      memmove(*row, from, (size_t)((end - origin) * step * element));
    else
      *row = from;
  }
  s->origin = origin;
}

static void fill_slice(struct slice *s, const struct ck_block *block,
                       const struct ck_panel *panel) {
  const struct ck_run *run = s->run;
  const ck_image *image = &run->image;
  const int64_t stride = run->op->conv.window.stride_w, most = strip_columns(run);
  struct ck_span columns = {0, 0}, outputs = {0, 0};
  while (outputs.end < run->out_w) {
    columns = (struct ck_span){columns.end, ck_min(image->width, columns.end + most)};
    const struct ck_deal deal = ck_deal_of(columns.end - columns.begin, run->op->kernels);
    for (int64_t y = s->fresh.begin; y < s->fresh.end; ++y) {
      const int64_t pixel = (block->image * image->height + y) * image->width + columns.begin;
      expand(s, y, columns.begin, &deal,
             ck_at(run->x, pixel * s->gemm.a_step, run->op->kernels->element));
    }
    const int64_t last = columns.end + image->pad_left - 3; /* the window that ends there */
    outputs = (struct ck_span){outputs.end, run->out_w};
    if (columns.end < image->width)
      outputs.end = ck_max(outputs.begin, ck_min(run->out_w, last < 0 ? 0 : last / stride + 1));
    if (outputs.begin < outputs.end) sum_windows(s, block, outputs, panel);
    if (outputs.end < run->out_w)
      move_right(s, ck_max(s->origin, outputs.end * stride - image->pad_left), columns.end);
  }
}

/* The rows of slice n of what waited, of what will wait, and of the strip. */
static void place_rows(struct slice *s, const struct ck_inverted *inverted, int64_t n) {
  const struct ck_run *run = s->run;
  const int element = run->op->kernels->element;
  const int64_t row = run->image.width * pixel_step(run), slice = n * kept_of_slice(run);
  for (int64_t y = s->read.begin; y < s->read.end; ++y) {
    void **at = &s->row[y - s->read.begin];
    if (y < s->fresh.begin)
      *at = ck_at_mut(inverted->kept[0], slice + (y - inverted->rows.begin) * row, element);
    else if (y < s->keep)
      *at = ck_at_mut(inverted->strip, (y - s->fresh.begin) * strip_row(run), element);
    else
      *at = ck_at_mut(inverted->kept[1], slice + (y - s->keep) * row, element);
  }
  s->origin = 0;
}

static struct ck_gemm_args expansion(const struct slice *s) {
  const ck_op *op = s->run->expand;
  const struct ck_kernels *k = op->kernels;
  return (struct ck_gemm_args){
      .b = ck_at(op->gemm->data, ck_panel_at(k, op->gemm, s->channel), k->element),
      .bias = ck_at(op->gemm->bias, s->channel, k->element),
      .c_step = pixel_step(s->run),
      .a_step = op->conv.in_channels,
      .a_run = k->lanes,
      .a_next = k->lanes,
      .terms = op->conv.in_channels,
      .columns = s->channels,
      .vectors = (int)ck_ceil_div(s->channels, k->lanes),
      .low = op->conv.activation.low,
      .high = op->conv.activation.high,
  };
}

void ck_fill_inverted(const struct ck_dw_fill *f, const struct ck_block *block,
                      const struct ck_panel *panel) {
  const struct ck_run *run = f->run;
  const struct ck_gemm_weights *w = run->expand->gemm;
  struct ck_inverted *inverted = f->inverted;
  const struct ck_span made = {block->y, block->y + block->rows};
  const struct ck_span next = {made.end, made.end + 1};
  struct slice s = {.run = run, .read = ck_rows_of_image(run, made)};
  const bool more = inverted->image == block->image && inverted->rows.end > s.read.begin;
  s.fresh = (struct ck_span){more ? inverted->rows.end : s.read.begin, s.read.end};
  s.keep = ck_max(s.fresh.begin, ck_rows_of_image(run, next).begin);
  for (int64_t n = 0; n * w->panel_columns < w->columns; ++n) {
    s.channel = n * w->panel_columns;
    s.channels = ck_min(w->panel_columns, w->columns - s.channel);
    s.gemm = expansion(&s);
    place_rows(&s, inverted, n);
    fill_slice(&s, block, panel);
  }
  void *waited = inverted->kept[0];
  inverted->kept[0] = inverted->kept[1];
  inverted->kept[1] = waited;
  inverted->rows = (struct ck_span){s.keep, s.read.end};
  inverted->image = block->image;
}
