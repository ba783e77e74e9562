/* Standard and grouped convolution: the panel is the im2col of the block, never of the image. Terms
 * run over (ky, kx, channel), as the packed weights do. */
#include "ck_impl.h"

struct ck_span ck_span_inside(int64_t shift, int64_t stride, int64_t width, struct ck_span within) {
  const int64_t begin = shift < 0 ? ck_ceil_div(-shift, stride) : 0;
  const int64_t end = shift < width ? (width - 1 - shift) / stride + 1 : 0;
  struct ck_span s = {ck_min(ck_max(begin, within.begin), within.end), ck_min(end, within.end)};
  s.end = ck_max(s.begin, s.end);
  return s;
}

/* One input row under one row of the block. */
struct fill_row {
  const struct ck_conv_fill *conv;
  const struct ck_panel *panel;
  const int64_t *offset; /* of output column x: offset[x - first_x] */
  int64_t first_x;
  const void *row; /* null: a row of padding */
  int64_t term_begin, term_end;
};

/* Copy `taps` taps from kx on, which lie side by side in memory, for the output columns of a span;
 * of the terms (counted in the whole kernel, `term` being the first) only those in range. */
static void copy_taps(const struct fill_row *f, struct ck_span columns, int64_t kx, int64_t taps,
                      int64_t term, bool padding) {
  const struct ck_run *run = f->conv->run;
  const struct ck_kernels *k = run->op->kernels;
  const ck_window *w = &run->op->conv.window;
  const int64_t channels = run->op->conv.in_channels;
  const int64_t begin = ck_max(term, f->term_begin);
  const int64_t end = ck_min(term + taps * f->conv->channels, f->term_end);
  if (begin >= end || columns.begin >= columns.end) return;
  const void *src = NULL;
  if (!padding) {
    const int64_t column = columns.begin * w->stride_w + kx * w->dilation_w - run->image.pad_left;
    src = ck_at(f->row, column * channels + f->conv->first_channel + (begin - term), k->element);
  }
  k->fill(&(struct ck_fill_args){
      .panel = f->panel->data,
      .offset = f->offset + (columns.begin - f->first_x),
      .src = src,
      .src_step = w->stride_w * channels,
      .pixels = columns.end - columns.begin,
      .term = begin - f->term_begin,
      .n = end - begin,
  });
}

/* One tap for the output columns of a span: padding, image, padding. */
static void fill_tap(const struct fill_row *f, struct ck_span columns, int64_t kx, int64_t term) {
  const struct ck_run *run = f->conv->run;
  const ck_window *w = &run->op->conv.window;
  const int64_t shift = kx * w->dilation_w - run->image.pad_left;
  const struct ck_span inside = ck_span_inside(shift, w->stride_w, run->image.width, columns);
  copy_taps(f, (struct ck_span){columns.begin, inside.begin}, kx, 1, term, true);
  copy_taps(f, inside, kx, 1, term, false);
  copy_taps(f, (struct ck_span){inside.end, columns.end}, kx, 1, term, true);
}

/* The taps of one kernel row for one row of the block. Without dilation and groups they are one run
 * of memory wherever all of them are inside the image. */
static void fill_kernel_row(const struct fill_row *f, struct ck_span columns, int64_t term) {
  const struct ck_run *run = f->conv->run;
  const ck_window *w = &run->op->conv.window;
  const int64_t channels = f->conv->channels;
  if (!f->row) {
    copy_taps(f, columns, 0, w->kernel_w, term, true);
    return;
  }
  struct ck_span whole = {columns.end, columns.end};
  if (w->dilation_w == 1 && channels == run->op->conv.in_channels) {
    const int64_t left = -run->image.pad_left;
    const struct ck_span first = ck_span_inside(left, w->stride_w, run->image.width, columns);
    const struct ck_span last =
        ck_span_inside(left + w->kernel_w - 1, w->stride_w, run->image.width, columns);
    if (ck_max(first.begin, last.begin) < ck_min(first.end, last.end))
      whole = (struct ck_span){ck_max(first.begin, last.begin), ck_min(first.end, last.end)};
  }
  copy_taps(f, whole, 0, w->kernel_w, term, false);
  for (int64_t kx = 0; kx < w->kernel_w; ++kx) {
    fill_tap(f, (struct ck_span){columns.begin, whole.begin}, kx, term + kx * channels);
    fill_tap(f, (struct ck_span){whole.end, columns.end}, kx, term + kx * channels);
  }
}

static void fill_im2col(const void *context, const struct ck_block *block, int64_t begin,
                        int64_t end, const struct ck_panel *panel) {
  const struct ck_conv_fill *conv = context;
  const struct ck_run *run = conv->run;
  const ck_window *w = &run->op->conv.window;
  const int64_t row_terms = w->kernel_w * conv->channels;
  const struct ck_span columns = {block->x, block->x + block->cols};
  for (int64_t r = 0; r < block->rows; ++r) {
    for (int64_t ky = begin / row_terms; ky * row_terms < end; ++ky) {
      const int64_t y = (block->y + r) * w->stride_h + ky * w->dilation_h - run->image.pad_top;
      const bool inside = y >= 0 && y < run->image.height;
      const int64_t pixel = (block->image * run->image.height + y) * run->image.width;
      const struct fill_row row = {
          .conv = conv,
          .panel = panel,
          .offset = panel->offset + r * block->cols,
          .first_x = block->x,
          .row = inside
                     ? ck_at(run->x, pixel * run->op->conv.in_channels, run->op->kernels->element)
                     : NULL,
          .term_begin = begin,
          .term_end = end,
      };
      fill_kernel_row(&row, columns, ky * row_terms);
    }
  }
}

static bool is_pointwise(const struct ck_run *run) {
  const ck_window *w = &run->op->conv.window;
  const ck_image *i = &run->image;
  return w->kernel_h == 1 && w->kernel_w == 1 && i->pad_top == 0 && i->pad_bottom == 0 &&
         i->pad_left == 0 && i->pad_right == 0;
}

static ck_fill_fn *fill_of(const struct ck_run *run) {
  if (run->op->kind == CK_OP_DEFORM) return ck_fill_deformed;
  if (run->op->conv.layout == CK_NCHW) return ck_fill_planar;
  return is_pointwise(run) ? ck_fill_pointwise : fill_im2col;
}

/* A pointwise convolution's output pixels are the image's, which can be multiplied where they are,
 * unless the rows of a tile would all fall into one set of L1: a way of it is 4 KiB. */
static bool reads_in_place(const struct ck_run *run) {
  const ck_window *w = &run->op->conv.window;
  const int64_t pixel = run->op->conv.in_channels * run->op->kernels->element;
  return w->stride_h == 1 && w->stride_w == 1 && pixel % 4096 != 0;
}

/* The GEMM of one group. */
static struct ck_gemm gemm_of(const struct ck_run *run, int64_t group,
                              const struct ck_conv_fill *fill) {
  const struct ck_op *op = run->op;
  const bool planar = op->conv.layout == CK_NCHW;
  const int64_t plane = run->out_h * run->out_w;
  const int64_t first = group * op->gemm[group].columns * (planar ? plane : 1);
  struct ck_gemm g = {
      .kernels = op->kernels,
      .weights = &op->gemm[group],
      .fill = fill_of(run),
      .context = fill,
      .run = run,
      .residual = run->residual ? ck_at(run->residual, first, op->kernels->element) : NULL,
      .y = ck_at_mut(run->y, first, op->kernels->element),
      .y_step = planar ? plane : op->conv.out_channels,
      .activation = op->conv.activation,
  };
  if (g.fill == ck_fill_pointwise && reads_in_place(run)) {
    g.pixels = ck_at(run->x, fill ? fill->first_channel : 0, op->kernels->element);
    g.pixel_step = op->conv.in_channels;
  }
  return g;
}

ck_status ck_conv2d_workspace(const struct ck_run *run, size_t *bytes) {
  const struct ck_gemm g = gemm_of(run, 0, NULL);
  size_t gemm, scratch;
  ck_status status = ck_gemm_workspace(&g, &gemm);
  if (status == CK_OK) status = ck_deform_scratch(run, &scratch);
  if (status == CK_OK) *bytes = gemm + scratch;
  return status;
}

void ck_conv2d_run(const struct ck_run *run, void *workspace) {
  const ck_conv *conv = &run->op->conv;
  const int64_t channels = conv->in_channels / conv->groups;
  size_t scratch = 0;
  ck_deform_scratch(run, &scratch);
  for (int64_t group = 0; group < conv->groups; ++group) {
    const struct ck_conv_fill fill = {run, group * channels, channels, workspace};
    const struct ck_gemm g = gemm_of(run, group, &fill);
    ck_deform_start(&fill);
    ck_gemm_run(&g, (char *)workspace + scratch);
  }
}
