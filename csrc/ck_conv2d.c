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
      const struct fill_row row = {
          .conv = conv,
          .panel = panel,
          .offset = panel->offset + r * block->cols,
          .first_x = block->x,
          .row = ck_image_row(run, block->image, y),
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
  return w->kernel_h == 1 && w->kernel_w == 1 && i->pad_top <= 0 && i->pad_bottom == 0 &&
         i->pad_left == 0 && i->pad_right == 0;
}

static ck_fill_fn *fill_of(const struct ck_run *run) {
  if (run->op->kind == CK_OP_DEFORM) return ck_fill_deformed;
  const ck_window *w = &run->op->conv.window;
  if (run->op->conv.layout == CK_NCHW)
    return w->kernel_h == 1 && w->kernel_w == 1 ? ck_fill_planar : ck_fill_staged_planes;
  return is_pointwise(run) ? ck_fill_pointwise : fill_im2col;
}

/* A group's channels of a row of the image. */
static void copy_row(const struct ck_conv_fill *conv, void *to, const void *from) {
  const struct ck_run *run = conv->run;
  const struct ck_kernels *k = run->op->kernels;
  const int64_t width = run->image.width, channels = run->image.channels;
  if (conv->channels == channels)
    memcpy(to, from, (size_t)(width * channels * k->element));
  else
    k->dw_stage(&(struct ck_stage_args){.to = to,
                                        .src = from,
                                        .src_step = channels,
                                        .to_step = conv->channels,
                                        .pixels = width,
                                        .channel = conv->first_channel,
                                        .lanes = conv->channels,
                                        .group_in = 1,
                                        .group_out = 1});
}

/* The rows of the image under a block, with their padding: the windows of neighbours overlap in
 * them, and a kernel row is one run of terms. */
static void fill_rows(const void *context, const struct ck_block *block, int64_t begin, int64_t end,
                      const struct ck_panel *panel) {
  const struct ck_conv_fill *conv = context;
  const struct ck_run *run = conv->run;
  const ck_image *image = &run->image;
  const size_t pixel = (size_t)(conv->channels * run->op->kernels->element);
  const size_t left = (size_t)image->pad_left * pixel, right = (size_t)image->pad_right * pixel;
  const size_t row = (size_t)image->width * pixel;
  const struct ck_span read = ck_rows_read(run, (struct ck_span){block->y, block->y + block->rows});
  char *to = panel->data;
  (void)begin, (void)end; /* all terms */
  for (int64_t y = read.begin; y < read.end; ++y, to += left + row + right) {
    const void *from = ck_image_row(run, block->image, y);
    memset(to, 0, left);
    if (from)
      copy_row(conv, to + left, from);
    else
      memset(to + left, 0, row);
    memset(to + left + row, 0, right);
  }
}

/* Whether a window's pixels fall into one set of L1, of which a way is 4 KiB. */
static bool conflicts(const struct ck_run *run, int64_t row_step) {
  return row_step * run->op->kernels->element % 4096 == 0;
}

/* Of few channels the im2col is made of short pieces, and takes as long as the sums: kernel rows of
 * up to so many vectors are multiplied in rows of the image, where these are not short themselves.
 * With dilation a kernel row is a line of runs, one for each tap. */
enum { MOST_VECTORS = 8 };

static struct ck_view rows_of(const struct ck_gemm *g) {
  const struct ck_run *run = g->run;
  const ck_window *w = &run->op->conv.window;
  const int64_t line = g->weights->terms / w->kernel_h, channels = line / w->kernel_w;
  const int64_t columns = run->image.width + run->image.pad_left + run->image.pad_right;
  const struct ck_view none = {0};
  const bool dilated = w->dilation_w > 1 && w->kernel_w > 1;
  struct ck_view view = {.run = dilated ? channels : line, .runs = dilated ? w->kernel_w : 0};
  int64_t pitch, window;
  if (!ck_mul(columns, channels, &pitch) || !ck_mul(w->stride_w, channels, &view.row_step) ||
      !ck_mul(w->stride_h, pitch, &view.line_step) || !ck_mul(w->dilation_h, pitch, &window))
    return none;
  view.next = dilated ? w->dilation_w * channels : window;
  view.run_line = window - (w->kernel_w - 1) * view.next;
  const struct ck_blocking b = ck_gemm_blocking(g);
  const bool one_range = g->weights->terms <= ck_gemm_range(g);
  const bool fits = ck_rows_under(run, b.rows) <= b.rows * b.cols * g->weights->terms / pitch;
  const bool shorter = b.cols < b.out_w || 2 * b.cols < g->kernels->gemm_rows;
  const bool few = line <= MOST_VECTORS * run->op->kernels->lanes && !ck_uses_parts(g);
  return few && fits && one_range && !shorter && !conflicts(run, view.row_step) ? view : none;
}

/* A pointwise convolution's output pixels are the image's, from some row on. */
static struct ck_view image_of(const struct ck_gemm *g, const struct ck_conv_fill *fill) {
  const struct ck_run *run = g->run;
  const ck_window *w = &run->op->conv.window;
  const int64_t pixel = run->image.channels, lanes = run->op->kernels->lanes;
  if (w->stride_h > 1 || w->stride_w > 1 || conflicts(run, pixel)) return (struct ck_view){0};
  const int64_t skipped = -run->image.pad_top * run->image.width * pixel;
  const int64_t first = skipped + (fill ? fill->first_channel : 0);
  return (struct ck_view){.pixels = run->x ? ck_at(run->x, first, run->op->kernels->element) : NULL,
                          .row_step = pixel,
                          .run = lanes,
                          .next = lanes};
}

/* NCHW: a pointwise convolution of few channels multiplies the image's planes. Of more, copies are
 * read faster: their pieces lie in fewer pages, and none fall into the same set of L1, which takes
 * 8 at least. */
enum { FEW_PLANES = 32, MORE_PLANES = 192, FEW_CHANNELS = 48, WAYS = 8 };

static bool multiplies_image(const struct ck_gemm *g) {
  const struct ck_run *run = g->run;
  const struct ck_kernels *k = run->op->kernels;
  const ck_window *w = &run->op->conv.window;
  const int64_t terms = g->weights->terms, plane = run->image.height * run->image.width;
  const int64_t sets = 4096 / ck_gcd(plane * k->element, 4096);
  return w->stride_h == 1 && w->stride_w == 1 && is_pointwise(run) && !ck_uses_parts(g) &&
         terms <= (g->weights->columns > FEW_CHANNELS ? FEW_PLANES : MORE_PLANES) &&
         terms <= WAYS * sets && run->out_h * run->out_w >= k->gemm_vectors * k->lanes;
}

/* The first of its channels; NCHW. */
static struct ck_view planes_of(const struct ck_gemm *g, const struct ck_conv_fill *fill) {
  const struct ck_run *run = g->run;
  const int64_t channel = fill ? fill->first_channel : 0;
  return (struct ck_view){
      .planes = true, .pixels = run->x ? ck_plane_row(run, 0, channel, -run->image.pad_top) : NULL};
}

static void see_planes(const void *context, const struct ck_block *block, int64_t begin,
                       int64_t end, const struct ck_panel *panel) {
  const struct ck_conv_fill *conv = context;
  const ck_image *image = &conv->run->image;
  (void)block;
  for (int64_t c = begin; c < end; ++c) panel->places[c] = c * image->height * image->width;
}

/* The GEMM of those channels of one matrix of weights that the run makes; `weights` are theirs. */
static struct ck_gemm gemm_of(const struct ck_run *run, const struct ck_gemm_weights *matrix,
                              int64_t index, const struct ck_conv_fill *fill,
                              struct ck_gemm_weights *weights) {
  const struct ck_op *op = run->op;
  const bool planar = op->conv.layout == CK_NCHW;
  const int64_t plane = ck_out_plane(run), before = index * matrix->columns;
  const struct ck_span channels = ck_channels(run);
  const struct ck_span some = {ck_max(channels.begin - before, 0),
                               ck_min(channels.end - before, matrix[index].columns)};
  const int64_t first = (before + some.begin) * (planar ? plane : 1);
  *weights = ck_gemm_columns(op->kernels, &matrix[index], some);
  struct ck_gemm g = {
      .kernels = op->kernels,
      .weights = weights,
      .fill = fill_of(run),
      .context = fill,
      .run = run,
      .residual = run->residual ? ck_at(run->residual, first, op->kernels->element) : NULL,
      .y = run->y ? ck_at_mut(run->y, first, op->kernels->element) : NULL,
      .y_step = planar ? plane : op->conv.out_channels,
      .activation = op->conv.activation,
  };
  if (g.fill == ck_fill_pointwise) g.view = image_of(&g, fill);
  if (g.fill == fill_im2col) g.view = rows_of(&g);
  if (g.fill == ck_fill_staged_planes) g.view.planes = true;
  if (g.fill == ck_fill_planar && multiplies_image(&g)) {
    g.fill = see_planes;
    g.view = planes_of(&g, fill);
  }
  if (g.fill == fill_im2col && g.view.row_step) g.fill = fill_rows;
  return g;
}

static ck_status workspace_of(const struct ck_run *run, const struct ck_gemm_weights *matrix,
                              size_t *bytes) {
  struct ck_gemm_weights weights;
  const int64_t index = ck_channels(run).begin / matrix->columns;
  const struct ck_gemm g = gemm_of(run, matrix, index, NULL, &weights);
  size_t gemm, scratch;
  ck_status status = ck_gemm_workspace(&g, &gemm);
  if (status == CK_OK) status = ck_deform_scratch(&g, &scratch);
  if (status == CK_OK) *bytes = ck_max(*bytes, gemm + scratch);
  return status;
}

/* In bands the layout is NHWC. */
static bool stages_planes(const struct ck_op *op) {
  return op->planes && op->conv.layout == CK_NCHW;
}

ck_status ck_conv2d_workspace(const struct ck_run *run, size_t *bytes) {
  const struct ck_op *op = run->op;
  *bytes = 0;
  if (stages_planes(op)) return workspace_of(run, op->planes, bytes);
  ck_status status = workspace_of(run, op->gemm, bytes);
  if (status == CK_OK && op->bundles) status = workspace_of(run, op->bundle, bytes);
  return status;
}

/* The matrices whose channels the run makes: of several, whole ones. */
static void run_gemms(const struct ck_run *run, const struct ck_gemm_weights *matrix, void *zero,
                      void *workspace) {
  const ck_window *w = &run->op->conv.window;
  const struct ck_span some = ck_channels(run);
  const int64_t taps = w->kernel_h * w->kernel_w;
  for (int64_t i = some.begin / matrix->columns; i * matrix->columns < some.end; ++i) {
    const int64_t channels = matrix[i].terms / taps;
    struct ck_conv_fill fill = {run, i * (matrix->terms / taps), channels, NULL};
    struct ck_gemm_weights weights;
    struct ck_gemm g = gemm_of(run, matrix, i, &fill, &weights);
    g.zero = zero;
    ck_deform_start(&g, &fill, workspace);
    ck_gemm_run(&g, workspace);
  }
}

/* The groups of a bundle are multiplied by zeros where they meet channels of each other. If these
 * have made a NaN of a number that is not finite, all groups are made again, each for itself. */
void ck_conv2d_run(const struct ck_run *run, void *workspace) {
  static const char zeros[CK_ALIGN] = {0};
  char seen[CK_ALIGN] __attribute__((aligned(CK_ALIGN))) = {0};
  const struct ck_op *op = run->op;
  const bool staged = stages_planes(op), bundles = op->bundles && !staged;
  if (bundles) run_gemms(run, op->bundle, seen, workspace);
  if (!bundles || memcmp(seen, zeros, sizeof seen))
    run_gemms(run, staged ? op->planes : op->gemm, NULL, workspace);
}
