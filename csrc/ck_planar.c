/* NCHW without a transposed image: the lanes are pixels.
 *
 * A GEMM's panel has the pixels of a block side by side for each term, so that filling it is
 * copying rows of planes. A depthwise stages the part of a plane under a block, padded, with the
 * columns (and rows) of each residue modulo the stride side by side; then every tap, whatever the
 * window, is the same plane shifted. Where masks come free, a 3x3 of few columns is made of planes
 * where they lie. A spatially separable one sums its column's taps into planes without the rows
 * between outputs, and its row's taps from those. A separable one fills the panel with what its
 * depthwise makes of a block, channel by channel. A convolution of few channels stages all of a
 * block in the same way, and its GEMM reads the planes, each term's where its tap is.
 */

#include "ck_impl.h"

/* ------------------------------------------------------------------------------- fills of the GEMM
 */

/* How far the same piece of the next plane lies behind one, if that should be brought near: a short
 * piece has been read before hardware notices that it is (separable of 56x56 with AVX-512 and AMX:
 * 0.94 of the time; but a depthwise of 112x112, of which a piece has 24 KB, 1.12). */
enum { SHORT_PIECE = 4096 }; /* bytes */

static int64_t next_plane(const struct ck_run *run, int64_t channel, int64_t pixels) {
  const ck_image *image = &run->image;
  const bool is_short = pixels * run->op->kernels->element <= SHORT_PIECE;
  return is_short && channel + 1 < image->channels ? image->width * image->height : 0;
}

static void put(const struct ck_kernels *k, const struct ck_panel *panel,
                struct ck_planar_fill_args args) {
  args.panel = panel->data;
  args.group_step = panel->group_step;
  args.narrow = panel->narrow;
  k->planar_fill(&args);
}

/* The outputs whose input lies in the image are a rectangle of the block; around it there is
 * padding. */
void ck_fill_planar(const void *context, const struct ck_block *block, int64_t begin, int64_t end,
                    const struct ck_panel *panel) {
  const struct ck_conv_fill *f = context;
  const struct ck_run *run = f->run;
  const ck_window *w = &run->op->conv.window;
  const ck_image *image = &run->image;
  const struct ck_span rows = {block->y, block->y + block->rows};
  const struct ck_span cols = {block->x, block->x + block->cols};
  const struct ck_span r = ck_span_inside(-image->pad_top, w->stride_h, image->height, rows);
  const struct ck_span x = ck_span_inside(-image->pad_left, w->stride_w, image->width, cols);
  const int64_t inside = (r.end - r.begin) * (x.end - x.begin);
  struct ck_planar_fill_args zeros = {.pixels = block->pixels, .rows = 1};
  struct ck_planar_fill_args pixels = {
      .pixel = (r.begin - block->y) * block->cols + (x.begin - block->x),
      .row_pixels = block->cols,
      .src_step = w->stride_w,
      .src_row = w->stride_h * image->width,
      .pixels = x.end - x.begin,
      .rows = r.end - r.begin};
  if (inside == block->pixels && w->stride_h == 1 && w->stride_w == 1) { /* one run of the plane */
    pixels.pixels = inside;
    pixels.rows = 1;
  }
  for (int64_t term = begin; term < end; ++term) {
    zeros.term = pixels.term = term - begin;
    pixels.ahead = next_plane(run, f->first_channel + term, inside);
    if (inside < block->pixels) put(run->op->kernels, panel, zeros);
    if (inside == 0) continue;
    const void *row = ck_plane_row(run, block->image, f->first_channel + term,
                                   r.begin * w->stride_h - image->pad_top);
    pixels.src = ck_at(row, x.begin * w->stride_w - image->pad_left, run->op->kernels->element);
    put(run->op->kernels, panel, pixels);
  }
}

/* --------------------------------------------------------------------------------- the depthwise
 */

/* One direction of a window: its taps have `residues` residues modulo the stride, and reach over
 * `extent` staged rows or columns beyond the first. */
struct axis {
  int64_t stride, dilation, residues, extent;
};

static struct axis axis_of(int64_t kernel, int64_t stride, int64_t dilation) {
  const int64_t step = kernel == 1 ? 1 : dilation; /* a single tap has no dilation */
  return (struct axis){stride, step, ck_min(kernel, stride / ck_gcd(stride, step)),
                       (kernel - 1) * step / stride};
}

/* Taps that are a whole number of strides apart have one residue. */
static enum ck_planar_window window_of(const struct ck_run *run) {
  const ck_window *w = &run->op->conv.window;
  const ck_op *op = run->op;
  const bool by_channels = op->kind == CK_OP_DEPTHWISE || op->kind == CK_OP_SEPARABLE;
  if (!by_channels || w->kernel_h != 3 || w->kernel_w != 3 || w->stride_h != w->stride_w ||
      w->dilation_h != w->dilation_w)
    return CK_PLANAR_ANY;
  if (ck_dw_3x3(run)) return w->stride_h == 1 ? CK_PLANAR_3X3 : CK_PLANAR_3X3_S2;
  if (w->dilation_h == w->stride_h) return CK_PLANAR_3X3_BY_ROWS;
  return w->dilation_h - w->stride_h == w->stride_h ? CK_PLANAR_3X3_D2 : CK_PLANAR_ANY;
}

/* The staged input of a block of rows x cols outputs: residues_h x residues_w planes. */
struct staging {
  enum ck_planar_window window;
  struct axis v, h;
  int64_t rows, pitch, plane; /* of one plane: its rows, elements of a row, elements */
  int64_t elements;           /* of all of it, with two vectors to spare */
  int64_t sums, made;         /* spatially separable: of one plane of column sums, of all; or 0 */
};

static ck_status staging_of(const struct ck_run *run, int64_t rows, int64_t cols,
                            struct staging *s) {
  const ck_window *w = &run->op->conv.window;
  const int64_t lanes = run->op->kernels->lanes;
  s->sums = 0;
  s->window = window_of(run);
  s->v = axis_of(w->kernel_h, w->stride_h, w->dilation_h);
  s->h = axis_of(w->kernel_w, w->stride_w, w->dilation_w);
  if (s->window == CK_PLANAR_3X3_S2) { /* every other output of stride 1 */
    s->v = s->h = axis_of(3, 1, 1);
    rows = 2 * rows - 1;
    cols = 2 * cols - 1;
  }
  if (!ck_add(rows, s->v.extent, &s->rows) || !ck_add(cols, s->h.extent, &s->pitch) ||
      !ck_add(s->pitch, lanes - 1, &s->pitch))
    return CK_E_OVERFLOW;
  s->pitch -= s->pitch % lanes;
  if (!ck_mul(s->rows, s->pitch, &s->plane) || !ck_mul(s->plane, s->v.residues, &s->elements) ||
      !ck_mul(s->elements, s->h.residues, &s->elements) ||
      !ck_add(s->elements, 2 * lanes, &s->elements))
    return CK_E_OVERFLOW;
  if (run->op->kind == CK_OP_SPATIAL) s->sums = rows * s->pitch; /* no more than a plane */
  s->made = s->sums * s->h.residues + 2 * lanes;
  return CK_OK;
}

static ck_status scratch_of(const struct ck_run *run, int64_t channels, int64_t rows, int64_t cols,
                            size_t *bytes) {
  const ck_window *w = &run->op->conv.window;
  struct staging s;
  int64_t all, taps;
  const ck_status status = staging_of(run, rows, cols, &s);
  if (status != CK_OK) return status;
  if (!ck_mul(s.elements, channels, &all) || !ck_add(all, s.made, &all) ||
      !ck_mul(all, run->op->kernels->element, &all) || !ck_mul(w->kernel_h, w->kernel_w, &taps) ||
      !ck_add(taps, w->kernel_h, &taps) ||
      !ck_mul(taps, (int64_t)(sizeof(struct ck_tap) + sizeof(struct ck_move)), &taps) ||
      !ck_add(all, taps, &all) || !ck_add(all, 5 * CK_ALIGN, &all))
    return CK_E_OVERFLOW;
  *bytes = (size_t)all;
  return CK_OK;
}

/* A block on its way: what its channels share. */
struct planar_dw {
  const struct ck_run *run;
  const struct ck_block *block;
  const ck_activation *activation;
  struct staging s;
  int64_t taps;
  struct ck_tap *tap, *column; /* column: the taps of the step before, if there is one */
  struct ck_move *moves;       /* one for each staged plane */
  void *staged, *made;
};

/* Tap (ky, kx) in planes of so many elements. */
static int64_t place_of(const struct planar_dw *d, int64_t ky, int64_t kx, int64_t plane) {
  const struct axis *v = &d->s.v, *h = &d->s.h;
  return (ky % v->residues * h->residues + kx % h->residues) * plane +
         ky * v->dilation / v->stride * d->s.pitch + kx * h->dilation / h->stride;
}

static void place_column_and_row(struct planar_dw *d) {
  const ck_window *w = &d->run->op->conv.window;
  const int64_t lanes = d->run->op->kernels->lanes;
  for (int64_t ky = 0; ky < w->kernel_h; ++ky)
    d->column[ky] = (struct ck_tap){place_of(d, ky, 0, d->s.plane), ky * lanes};
  for (int64_t kx = 0; kx < w->kernel_w; ++kx)
    d->tap[kx] = (struct ck_tap){place_of(d, 0, kx, d->s.sums), kx * lanes};
}

/* Where each tap is, in the order in which the NHWC kernels sum them, for the same bits. */
static void place_taps(struct planar_dw *d) {
  const struct ck_run *run = d->run;
  const ck_window *w = &run->op->conv.window;
  const bool by_columns = ck_dw_3x3(run) != NULL;
  for (int64_t t = 0; t < d->taps; ++t) {
    const int64_t ky = by_columns ? t % w->kernel_h : t / w->kernel_w;
    const int64_t kx = by_columns ? t / w->kernel_h : t % w->kernel_w;
    d->tap[t].plane = place_of(d, ky, kx, d->s.plane);
    d->tap[t].weight = (ky * w->kernel_w + kx) * run->op->kernels->lanes;
  }
}

/* What of a plane goes where: the rows and columns of each residue that lie in the image. */
static void place_moves(struct planar_dw *d) {
  const ck_image *image = &d->run->image;
  const ck_window *w = &d->run->op->conv.window;
  const struct axis *v = &d->s.v, *h = &d->s.h;
  const struct ck_span rows = {0, d->s.rows}, columns = {0, d->s.pitch};
  for (int64_t a = 0; a < v->residues; ++a)
    for (int64_t b = 0; b < h->residues; ++b) {
      const int64_t plane = a * h->residues + b;
      const int64_t down = d->block->y * w->stride_h + a * v->dilation % v->stride - image->pad_top;
      const int64_t right =
          d->block->x * w->stride_w + b * h->dilation % h->stride - image->pad_left;
      const struct ck_span r = ck_span_inside(down, v->stride, image->height, rows);
      const struct ck_span x = ck_span_inside(right, h->stride, image->width, columns);
      d->moves[plane] = (struct ck_move){
          .from = (r.begin * v->stride + down) * image->width + x.begin * h->stride + right,
          .to = plane * d->s.plane + r.begin * d->s.pitch + x.begin,
          .n = x.end - x.begin,
          .rows = x.begin < x.end ? r.end - r.begin : 0};
    }
}

/* What is padding stays zero. */
static void clear(const struct planar_dw *d, int64_t channels) {
  memset(d->staged, 0, (size_t)(channels * d->s.elements * d->run->op->kernels->element));
}

static void begin_block(struct planar_dw *d, const struct ck_run *run, const struct ck_block *block,
                        const ck_activation *activation, void *scratch) {
  const ck_window *w = &run->op->conv.window;
  const int element = run->op->kernels->element;
  const int64_t taps = w->kernel_h * w->kernel_w;
  const bool separable = run->op->kind == CK_OP_SPATIAL;
  *d = (struct planar_dw){.run = run, .block = block, .activation = activation};
  staging_of(run, block->rows, block->cols, &d->s);
  d->taps = separable ? w->kernel_w : taps;
  d->tap = ck_align(scratch);
  d->column = d->tap + d->taps;
  d->moves = ck_align(d->tap + taps + w->kernel_h);
  d->staged = ck_align(d->moves + taps);
  d->made = ck_align((char *)d->staged + d->s.elements * element);
  (separable ? place_column_and_row : place_taps)(d);
  place_moves(d);
}

static void stage_channel(const struct planar_dw *d, int64_t channel) {
  const struct ck_run *run = d->run;
  const struct axis *v = &d->s.v, *h = &d->s.h;
  const bool plain = v->stride == 1 && h->stride == 1; /* a piece is one run of memory */
  const int64_t pixels = d->s.rows * run->image.width;
  run->op->kernels->planar_copy(
      &(struct ck_planar_copy_args){.to = d->staged,
                                    .src = ck_plane_row(run, d->block->image, channel, 0),
                                    .move = d->moves,
                                    .moves = v->residues * h->residues,
                                    .to_row = d->s.pitch,
                                    .src_row = v->stride * run->image.width,
                                    .step = h->stride,
                                    .ahead = plain ? next_plane(run, channel, pixels) : 0});
}

/* The weights of output channel o. */
static const void *weights_of(const struct ck_kernels *k, const struct ck_dw_weights *w,
                              int64_t taps, int64_t o) {
  const int64_t channel = o % w->channels;
  return ck_at(w->data, channel / k->lanes * taps * k->lanes + channel % k->lanes, k->element);
}

/* Spatially separable: the column sums of the staged channel, one plane for each residue modulo the
 * horizontal stride. */
static void make_column_sums(const struct planar_dw *d, int64_t o) {
  const struct ck_op *op = d->run->op;
  const struct ck_kernels *k = op->kernels;
  const int64_t taps = op->conv.window.kernel_h;
  for (int64_t b = 0; b < d->s.h.residues; ++b)
    k->dwconv_planar(&(struct ck_dw_planar_args){
        .plane = ck_at(d->staged, b * d->s.plane, k->element),
        .tap = d->column,
        .weights = weights_of(k, &op->column, taps, o),
        .bias = op->column.bias,
        .taps = taps,
        .rows = d->block->rows,
        .cols = d->s.pitch,
        .pitch = d->s.pitch,
        .out_row = d->s.pitch,
        .out = ck_at_mut(d->made, b * d->s.sums, k->element),
        .low = -INFINITY,
        .high = INFINITY,
    });
}

/* Output channel o of the block, whose rows go to `out`, out_row elements apart. */
static void make_channel(const struct planar_dw *d, int64_t o, void *out, int64_t out_row) {
  const struct ck_op *op = d->run->op;
  const struct ck_kernels *k = op->kernels;
  const bool separable = op->kind == CK_OP_SPATIAL;
  const int64_t multiplier = d->run->group_out;
  if (o % multiplier == 0) stage_channel(d, o / multiplier);
  if (separable) make_column_sums(d, o);
  k->dwconv_planar(&(struct ck_dw_planar_args){
      .plane = separable ? d->made : d->staged,
      .tap = d->tap,
      .weights = weights_of(k, &op->dw, d->taps, o),
      .bias = ck_at(op->dw.bias, o % op->dw.channels, k->element),
      .taps = d->taps,
      .rows = d->block->rows,
      .cols = d->block->cols,
      .pitch = d->s.pitch,
      .out_row = out_row,
      .window = d->s.window,
      .out = out,
      .low = d->activation->low,
      .high = d->activation->high,
  });
}

/* Lanes are pixels here, and channels elsewhere: with few of those they would idle. Where rows are
 * wide and leave few lanes idle, and but for plain 3x3 also long, planes take 0.6 to 1.0 of the
 * time of turning them into pixels and back; elsewhere up to 1.7 (measured: 3x3, 7 to 112 columns,
 * all of x86). Two windows gain only with registers for all weights, where kernels for pixels make
 * several rows too. */
enum { LONG_ROW = 16 };

bool ck_dw_planes_pay(const struct ck_run *run) {
  const struct ck_kernels *k = run->op->kernels;
  if (2 * run->out_channels <= k->lanes) return true;
  const bool busy = 4 * run->out_w >= 3 * ck_round_up(run->out_w, k->lanes);
  const bool wide = busy && run->out_w > k->lanes, longer = busy && run->out_w > LONG_ROW;
  switch (window_of(run)) {
    case CK_PLANAR_3X3: return wide;
    case CK_PLANAR_3X3_BY_ROWS: return longer;
    case CK_PLANAR_3X3_S2:
    case CK_PLANAR_3X3_D2: return longer && k->dw_rows > 1;
    default: return false;
  }
}

/* The staged input of a block takes about half of L1, or with column sums a third. */
static struct ck_blocking blocking_of(const struct ck_run *run) {
  const ck_window *w = &run->op->conv.window;
  const int64_t share = run->op->kind == CK_OP_SPATIAL ? 3 : 2;
  const int64_t inputs = ck_cpu_l1d_bytes() / share / run->op->kernels->element;
  const int64_t pixels = inputs / ck_min(w->stride_h, 4) / ck_min(w->stride_w, 4);
  struct ck_blocking b = ck_blocking_of(run->image.batch, run->out_h, run->out_w, pixels);
  if (b.rows < CK_PLANAR_ROWS / 2) return b;
  b.rows = ck_min(run->out_h, ck_round_up(b.rows - CK_PLANAR_ROWS / 2 + 1, CK_PLANAR_ROWS));
  b.row_blocks = ck_ceil_div(run->out_h, b.rows);
  return b;
}

ck_status ck_planar_workspace(const struct ck_run *run, size_t *bytes) {
  const struct ck_blocking b = blocking_of(run);
  return scratch_of(run, 1, b.rows, b.cols, bytes);
}

void ck_planar_run(const struct ck_run *run, void *workspace) {
  const struct ck_op *op = run->op;
  const struct ck_blocking blocking = blocking_of(run);
  const ck_activation *activation = run->residual ? &ck_identity : &op->conv.activation;
  const struct ck_span channels = ck_channels(run);
  for (int64_t i = 0; i < ck_block_count(&blocking); ++i) {
    const struct ck_block block = ck_block_at(&blocking, i);
    struct planar_dw d;
    begin_block(&d, run, &block, activation, workspace);
    clear(&d, 1);
    for (int64_t o = channels.begin; o < channels.end; ++o) {
      const int64_t plane = (block.image * run->out_channels + o) * ck_out_plane(run);
      const int64_t at = plane + block.y * run->out_w + block.x;
      make_channel(&d, o, ck_at_mut(run->y, at, op->kernels->element), run->out_w);
      ck_dw_finish(run, at, block.pixels);
    }
  }
}

/* ---------------------------------------------------------- convolutions: staged planes in a GEMM
 */

ck_status ck_staged_planes_bytes(const struct ck_run *run, int64_t channels,
                                 const struct ck_blocking *b, size_t *bytes) {
  return scratch_of(run, channels, b->rows, b->cols, bytes);
}

int64_t ck_staged_planes_pitch(const struct ck_run *run, int64_t cols) {
  struct staging s = {0};
  staging_of(run, 1, cols, &s);
  return s.pitch;
}

int64_t ck_planes_staged(const struct ck_run *run) {
  const ck_window *w = &run->op->conv.window;
  return axis_of(w->kernel_h, w->stride_h, w->dilation_h).residues *
         axis_of(w->kernel_w, w->stride_w, w->dilation_w).residues;
}

/* Few channels idle in vectors of pixels; many are staged more slowly, and read from L2. */
enum { MOST_CHANNELS = 128, MOST_PAIRS = 2048, MOST_TAPS = 128 };

bool ck_staged_planes_may_pay(const struct ck_op *op) {
  const ck_conv *conv = &op->conv;
  const ck_window *w = &conv->window;
  const bool has_window = w->kernel_h > 1 || w->kernel_w > 1;
  const int64_t in = conv->in_channels / conv->groups, out = conv->out_channels / conv->groups;
  return (op->kind == CK_OP_CONV2D || op->kind == CK_OP_GROUPED) && conv->layout == CK_NCHW &&
         has_window && w->kernel_h <= MOST_TAPS && w->kernel_w <= MOST_TAPS &&
         in <= MOST_CHANNELS && out <= MOST_PAIRS / in &&
         !ck_parts_pay(op->kernels, w->kernel_h * w->kernel_w * in, out);
}

/* Times are in FMAs of a vector, fitted to 776 dense convolutions (windows of 1x3 to 7x7, strides 1
 * to 3, dilation 1 and 2, 1 to 256 channels, 7 to 112 columns) with vectors of 4, 8 and 16 on a
 * Xeon: the choice takes 1.02 of the time of the faster way on average; on an EPYC of Zen 4, 1.03
 * to 1.05 in 3600 dense ones, 1.04 to 1.10 in 4350 of 2 to 128 groups (windows' time is fitted
 * there). Vectors of planes lie across lines of the cache; a row is staged with a mask, or, at
 * strides that no instruction has, pixel by pixel; bands are converted vector by vector. */
enum { LOAD_TIME = 3, CALL_TIME = 28, ROW_TIME = 84, PIXEL_TIME = 2, TURN_TIME = 23 };
enum { WINDOW_TIME = 7, BANDS_TIME = 4250 };
#define BAND_FMA_TIME 1.7

static double time_of_planes(const struct ck_run *run) {
  const struct ck_kernels *k = run->op->kernels;
  const ck_window *w = &run->op->conv.window;
  const double terms = (double)run->op->planes->terms, rows = (double)run->out_h;
  const double vectors = (double)ck_ceil_div(run->out_w, k->lanes);
  const double calls = (double)ck_ceil_div(run->out_w, k->lanes * k->gemm_vectors);
  const double tiles =
      (double)(run->op->plane_groups * ck_ceil_div(run->op->planes->columns, k->gemm_rows));
  const double fmas = vectors * terms * ((double)run->out_channels + LOAD_TIME * tiles);
  const double staged = rows * (double)(ck_planes_staged(run) * run->image.channels);
  const double pixels = w->stride_w > 2 ? staged * (double)run->out_w * PIXEL_TIME : 0;
  return rows * (fmas + calls * tiles * CALL_TIME) + staged * ROW_TIME + pixels;
}

static double time_of_bands(const struct ck_run *run) {
  const ck_op *op = run->op;
  const int64_t lanes = op->kernels->lanes;
  const bool shared = op->kind == CK_OP_GROUPED; /* staged windows, of which groups read vectors */
  const struct ck_gemm_weights *w = op->bundles ? op->bundle : op->planes;
  const int64_t columns = shared ? run->out_channels : w->columns;
  const double matrices = shared ? 1 : (double)(op->bundles ? op->bundles : op->plane_groups);
  const double pixels = (double)run->out_h * (double)run->out_w;
  const double image = (double)run->image.height * (double)run->image.width;
  const double fmas = (double)w->terms * (double)ck_ceil_div(columns, lanes) * matrices * pixels;
  const double turns = image * (double)ck_ceil_div(run->image.channels, lanes);
  const double windows =
      shared ? image * (double)(run->group_in * ck_ceil_div(run->out_channels, lanes)) : 0;
  return fmas * BAND_FMA_TIME + turns * TURN_TIME + windows * WINDOW_TIME + BANDS_TIME;
}

bool ck_staged_planes_pay(const struct ck_run *run) {
  return run->op->planes && time_of_planes(run) < time_of_bands(run);
}

/* Whether the padding of the block before is that of this one, or what is read now. */
static bool has_padding(const struct ck_run *run, const struct ck_block *block) {
  const struct ck_span made = {block->y, block->y + block->rows};
  return block->y > 0 && made.end < run->out_h && block->cols == run->out_w &&
         ck_rows_read(run, made).end <= run->image.height;
}

void ck_fill_staged_planes(const void *context, const struct ck_block *block, int64_t begin,
                           int64_t end, const struct ck_panel *panel) {
  const struct ck_conv_fill *f = context;
  const struct ck_run *run = f->run;
  const int element = run->op->kernels->element;
  const int64_t kernel_w = run->op->conv.window.kernel_w;
  const bool by_rows = run->op->kind == CK_OP_GROUPED; /* see pack_group */
  struct planar_dw d;
  begin_block(&d, run, block, &ck_identity, panel->data);
  const int64_t first = ((char *)d.staged - (char *)panel->data) / element;
  for (int64_t term = begin; term < end; ++term) {
    const int64_t ky = term / (kernel_w * f->channels), rest = term % (kernel_w * f->channels);
    const int64_t kx = by_rows ? rest % kernel_w : rest / f->channels;
    const int64_t c = by_rows ? rest / kernel_w : rest % f->channels;
    panel->places[term - begin] = first + c * d.s.elements + place_of(&d, ky, kx, d.s.plane);
  }
  if (begin > 0) return;
  if (!has_padding(run, block)) clear(&d, f->channels);
  for (int64_t c = 0; c < f->channels; ++c) {
    stage_channel(&d, f->first_channel + c);
    d.staged = ck_at_mut(d.staged, d.s.elements, element);
  }
}

/* ----------------------------------------------------- planes of few columns, where they lie
 */

/* A 3x3 on rows of few vectors, measured on a Xeon against the other ways. With AVX-512 0.6 to 0.95
 * of their time, at stride 2, where staging sorts columns, on rows of any length that the kernel
 * takes; at stride 1 1.05 to 1.15 from 56 columns on. With AVX2 0.55 to 0.85 of up to 14 columns,
 * at stride 2 of up to 28 (of 56 1.15). */
enum { FEW_VECTORS = 2, MORE_VECTORS = 4 };

bool ck_dw_is_narrow(const struct ck_run *run) {
  const struct ck_kernels *k = run->op->kernels;
  if (!k->dwconv3x3_narrow || !ck_dw_3x3(run)) return false;
  const int64_t stride = run->op->conv.window.stride_h;
  const int64_t most = k->dw_rows > 1 ? CK_NARROW_VECTORS : MORE_VECTORS;
  return run->out_w <= (stride == 2 ? most : FEW_VECTORS) * ck_narrow_columns(k->lanes, stride);
}

/* Some channels of whole rows, into planes that lie so far apart. */
static void make_narrow(const struct ck_run *run, const struct ck_block *block,
                        struct ck_span channels, const ck_activation *activation, void *out,
                        int64_t out_plane) {
  const struct ck_op *op = run->op;
  const ck_image *image = &run->image;
  const int64_t stride = op->conv.window.stride_h;
  op->kernels->dwconv3x3_narrow(&(struct ck_narrow_args){
      .x = ck_plane_row(run, block->image, channels.begin, 0),
      .y = out,
      .weights = op->dw.data,
      .bias = op->dw.bias,
      .first = channels.begin,
      .end = channels.end,
      .height = image->height,
      .width = image->width,
      .pad_top = image->pad_top - block->y * stride,
      .pad_left = image->pad_left,
      .rows = block->rows,
      .cols = run->out_w,
      .out_plane = out_plane,
      .stride = stride,
      .low = activation->low,
      .high = activation->high,
  });
}

void ck_dw_narrow_run(const struct ck_run *run, void *workspace) {
  const struct ck_op *op = run->op;
  const struct ck_span channels = ck_channels(run);
  const ck_activation *activation = run->residual ? &ck_identity : &op->conv.activation;
  const int64_t plane = ck_out_plane(run), pixels = run->out_h * run->out_w;
  (void)workspace;
  for (int64_t image = 0; image < run->image.batch; ++image) {
    const struct ck_block all = {.image = image, .rows = run->out_h};
    const int64_t first = image * run->out_channels;
    void *out = ck_at_mut(run->y, (first + channels.begin) * plane, op->kernels->element);
    make_narrow(run, &all, channels, activation, out, plane);
    for (int64_t o = channels.begin; o < channels.end; ++o)
      ck_dw_finish(run, (first + o) * plane, pixels);
  }
}

/* ----------------------------------------------------- separable: the depthwise fills the panel
 */

/* A depthwise on planes is slower than one on pixels, but bands convert their input and output.
 * Small windows and strides make up for that where rows are wide (measured on a Xeon, of the time
 * in bands: 3x3 of 28 to 112 columns 0.60 to 1.03, 5x5 0.78, with AVX2 1.03 to 1.11; 7 and 14
 * columns 1.2 to 1.95, 7x7 windows 1.4 to 1.5, stride 3 1.6 to 2.2). */
enum { WIDE_ROW = 20, FEW_TAPS = 9, MORE_TAPS = 25, SHORT_STRIDE = 2 };

bool ck_separable_planes_may_pay(const struct ck_op *op) {
  const ck_window *w = &op->conv.window;
  const int64_t most = op->kernels->dw_rows > 1 ? MORE_TAPS : FEW_TAPS;
  return op->conv.layout == CK_NCHW && w->kernel_h <= most && w->kernel_w <= most / w->kernel_h &&
         w->stride_h <= SHORT_STRIDE && w->stride_w <= SHORT_STRIDE;
}

bool ck_separable_planes_pay(const struct ck_run *run) {
  return run->op->planes && run->image.width >= WIDE_ROW;
}

/* So many channels of a block are made before they go into the panel: of narrow planes as many as
 * half of L1 holds, for which the kernel prepares once. */
static int64_t made_at_once(const struct ck_run *run, int64_t pixels) {
  if (!ck_dw_is_narrow(run)) return 1;
  return ck_max(1, ck_cpu_l1d_bytes() / 2 / run->op->kernels->element / pixels);
}

ck_status ck_dw_panel_scratch(const struct ck_run *run, const struct ck_blocking *b,
                              size_t *bytes) {
  const int64_t pixels = b->rows * b->cols;
  const int64_t made = made_at_once(run, pixels) * pixels * run->op->kernels->element;
  const ck_status status = scratch_of(run, 1, b->rows, b->cols, bytes);
  *bytes += (size_t)made + 2 * CK_ALIGN;
  return status;
}

/* Channels of a block, from `term` on, into the panel. */
static void put_made(const struct ck_op *op, const struct ck_panel *panel, int64_t term,
                     int64_t channels, void *made, int64_t pixels) {
  const struct ck_kernels *k = op->kernels;
  const ck_act_kind kind = op->conv.dw_activation.kind;
  const int64_t all = channels * pixels;
  if (kind != CK_ACT_CLAMP) k->activate(&(struct ck_act_args){made, 1, all, all, kind});
  for (int64_t c = 0; c < channels; ++c)
    put(k, panel,
        (struct ck_planar_fill_args){.term = term + c,
                                     .src = ck_at(made, c * pixels, k->element),
                                     .src_step = 1,
                                     .pixels = pixels,
                                     .rows = 1});
}

void ck_fill_separable_planes(const void *context, const struct ck_block *block, int64_t begin,
                              int64_t end, const struct ck_panel *panel) {
  const struct ck_dw_fill *f = context;
  const struct ck_op *op = f->run->op;
  const ck_activation *activation = &op->conv.dw_activation;
  const bool narrow = ck_dw_is_narrow(f->run) && block->cols == f->run->out_w;
  const int64_t most = narrow ? made_at_once(f->run, block->pixels) : 1;
  void *made = ck_align(f->scratch);
  struct planar_dw d;
  if (!narrow) {
    begin_block(&d, f->run, block, activation,
                ck_at_mut(made, block->pixels, op->kernels->element));
    clear(&d, 1);
  }
  for (int64_t o = begin; o < end; o += most) {
    const struct ck_span some = {o, ck_min(o + most, end)};
    if (narrow)
      make_narrow(f->run, block, some, activation, made, block->pixels);
    else
      make_channel(&d, o, made, block->cols);
    put_made(op, panel, o - begin, some.end - o, made, block->pixels);
  }
}
