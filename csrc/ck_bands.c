/* NCHW through the kernels for NHWC: bands of rows become pixels, in L2, and what comes out becomes
 * planes.
 *
 * A band is a run of its own, on an image of a few rows. Rows that two bands share are converted
 * once. It is worth it wherever an output takes much more than its conversion: in all but pointwise
 * and separable convolutions of few channels, which multiply planes, and most depthwise ones, which
 * bring rows of planes into L1 themselves. Networks turn their input and their output only, which
 * are steps of their plan.
 */
#include "ck_impl.h"

/* The channels of one pass over the planes, which are read or written one after the other. */
static int64_t pass_of(const struct ck_kernels *k, int64_t channels, int64_t c) {
  return ck_max(0, ck_min(c, channels - k->lanes)); /* the last one overlaps its predecessor */
}

void ck_to_pixels(const struct ck_kernels *k, void *to, const void *planes, int64_t plane,
                  int64_t channels, int64_t pixels) {
  for (int64_t i = 0; i < channels; i += k->lanes) {
    const int64_t c = pass_of(k, channels, i);
    k->transpose(&(struct ck_transpose_args){.to = ck_at_mut(to, c, k->element),
                                             .from = ck_at(planes, c * plane, k->element),
                                             .to_step = channels,
                                             .from_step = plane,
                                             .rows = ck_min(k->lanes, channels),
                                             .columns = pixels});
  }
}

void ck_to_planes(const struct ck_kernels *k, void *planes, int64_t plane, const void *from,
                  int64_t channels, int64_t pixels) {
  for (int64_t i = 0; i < channels; i += k->lanes) {
    const int64_t c = pass_of(k, channels, i);
    k->transpose(&(struct ck_transpose_args){.to = ck_at_mut(planes, c * plane, k->element),
                                             .from = ck_at(from, c, k->element),
                                             .to_step = plane,
                                             .from_step = channels,
                                             .rows = pixels,
                                             .columns = ck_min(k->lanes, channels)});
  }
}

void ck_band_hold(const struct ck_kernels *k, struct ck_band *band, int64_t begin, int64_t end) {
  const int64_t row = band->width * band->channels * k->element;
  char *data = band->data;
  if (begin < band->begin || begin > band->end) band->begin = band->end = begin;
  if (begin > band->begin)
    memmove(data, data + (begin - band->begin) * row, (size_t)((band->end - begin) * row));
  band->begin = begin;
  if (end <= band->end) return;
  ck_to_pixels(k, data + (band->end - begin) * row,
               ck_at(band->planes, band->end * band->width, k->element), band->plane,
               band->channels, (end - band->end) * band->width);
  band->end = end;
}

int64_t ck_rows_under(const struct ck_run *run, int64_t rows) {
  const ck_window *w = &run->op->conv.window;
  return (rows - 1) * w->stride_h + (w->kernel_h - 1) * w->dilation_h + 1;
}

struct ck_span ck_rows_read(const struct ck_run *run, struct ck_span made) {
  const int64_t first = made.begin * run->op->conv.window.stride_h - run->image.pad_top;
  return (struct ck_span){first, first + ck_rows_under(run, made.end - made.begin)};
}

struct ck_span ck_rows_of_image(const struct ck_run *run, struct ck_span made) {
  const struct ck_span read = ck_rows_read(run, made);
  const int64_t height = run->image.height;
  return (struct ck_span){ck_min(ck_max(read.begin, 0), height),
                          ck_min(ck_max(read.end, 0), height)};
}

int64_t ck_see_rows(const struct ck_run *run, int64_t y, int64_t rows, struct ck_run *part) {
  const ck_image *whole = &run->image;
  ck_image *image = &part->image;
  const struct ck_span read = ck_rows_read(run, (struct ck_span){y, y + rows});
  const int64_t begin = ck_max(read.begin, 0), end = ck_min(read.end, whole->height);
  image->height = ck_max(end - begin, 1);
  image->pad_top = end > begin ? begin - read.begin : read.end - read.begin - 1;
  image->pad_bottom = read.end - read.begin - image->pad_top - image->height;
  part->out_h = rows;
  return end > begin ? begin : whole->height;
}

/* One call, cut into bands. */
struct bands {
  const struct ck_run *planes;    /* the call */
  struct ck_op op;                /* the same operation in NHWC */
  struct ck_run pixels;           /* the call on one band */
  int64_t channels, out_channels; /* of one pass over the image */
  int64_t rows;                   /* of the output, in a band */
  struct ck_band x;
  void *residual, *y, *rest;
};

/* A depthwise is made a vector of channels at a time. */
static bool by_channels(const struct ck_op *op) {
  return op->kind == CK_OP_DEPTHWISE || op->kind == CK_OP_SPATIAL;
}

/* A depthwise reads its band once, soon after it was converted: it stays in L1, or not far away. */
static int64_t band_bytes(const struct bands *b) {
  return ck_cpu_l2_bytes() / (by_channels(&b->op) ? 8 : 2);
}

/* A band has at least so many rows that those it shares with the next, which move, are no more than
 * those it converts. */
static int64_t rows_of(const struct bands *b) {
  const struct ck_run *run = b->planes;
  const int64_t stride = ck_min(b->op.conv.window.stride_h, run->image.height);
  const int64_t in = run->image.width * b->channels * stride;
  const int64_t out = run->out_w * b->out_channels;
  const int64_t room = band_bytes(b) / b->op.kernels->element / (in + out);
  const int64_t shared = ck_min(ck_max(0, ck_rows_under(run, 1) - stride), run->image.height);
  const int64_t most = ck_min(run->out_h, ck_max(room, shared / stride + 1));
  const int64_t rows = ck_ceil_div(run->out_h, ck_ceil_div(run->out_h, most));
  return ck_min(run->out_h, rows + (rows & 1)); /* depthwise kernels make pairs */
}

/* Weights from output channel `first` on. */
static void shift(struct ck_dw_weights *w, const struct ck_dw_weights *all, int64_t first,
                  int64_t taps, int element) {
  w->data = ck_at_mut(all->data, first * taps, element);
  w->bias = ck_at_mut(all->bias, first, element);
}

/* The operation on the channels of the image from c on, as many as one pass takes. */
static void see_channels(struct bands *b, int64_t c) {
  const struct ck_run *run = b->planes;
  const ck_window *w = &run->op->conv.window;
  const int64_t channels = ck_min(b->channels, run->image.channels - c);
  const int64_t first = c * run->group_out;
  const int element = b->op.kernels->element;
  if (!by_channels(run->op)) return;
  b->pixels.image.channels = channels;
  b->pixels.out_channels = channels * run->group_out;
  b->op.dw.channels = b->pixels.out_channels;
  if (run->op->conv.in_channels == 0) return; /* spatial: the same for all channels */
  const bool spatial = run->op->kind == CK_OP_SPATIAL;
  shift(&b->op.dw, &run->op->dw, first, (spatial ? 1 : w->kernel_h) * w->kernel_w, element);
  if (spatial) shift(&b->op.column, &run->op->column, first, w->kernel_h, element);
}

static void plan(const struct ck_run *run, struct bands *b) {
  *b = (struct bands){.planes = run, .op = *run->op, .pixels = *run};
  b->op.conv.layout = CK_NHWC;
  b->pixels.op = &b->op;
  b->pixels.image.batch = 1;
  b->channels = run->image.channels;
  b->out_channels = run->out_channels;
  if (by_channels(run->op)) {
    b->channels = ck_min(b->channels, run->op->kernels->lanes);
    b->out_channels = b->channels * run->group_out;
  }
  b->rows = rows_of(b);
  see_channels(b, 0);
}

static int64_t row_bytes(const struct bands *b) {
  const ck_image *image = &b->planes->image;
  return image->width * b->channels * b->op.kernels->element;
}

static int64_t out_bytes(const struct bands *b) {
  return b->rows * b->planes->out_w * b->out_channels * b->op.kernels->element;
}

/* The bands' parts of the workspace, each on a cache line; the last is what a band needs itself. */
static ck_status size_of(struct bands *b, int64_t *bytes) {
  const int64_t rows = ck_min(b->planes->image.height, ck_rows_under(b->planes, b->rows));
  const int64_t last = b->planes->out_h - (b->planes->out_h - 1) / b->rows * b->rows;
  const int64_t heights[] = {b->rows, last};
  *bytes = 0;
  for (int i = 0; i < 2; ++i) {
    size_t needed;
    ck_see_rows(b->planes, 0, heights[i], &b->pixels);
    const ck_status status = ck_run_workspace(&b->pixels, &needed);
    if (status != CK_OK) return status;
    *bytes = ck_max(*bytes, (int64_t)needed);
  }
  if (!ck_add(*bytes, rows * row_bytes(b), bytes) || !ck_add(*bytes, 2 * out_bytes(b), bytes) ||
      !ck_add(*bytes, 4 * CK_ALIGN, bytes))
    return CK_E_OVERFLOW;
  return CK_OK;
}

ck_status ck_bands_workspace(const struct ck_run *run, size_t *bytes) {
  struct bands b;
  int64_t all;
  plan(run, &b);
  const ck_status status = size_of(&b, &all);
  if (status == CK_OK) *bytes = (size_t)all;
  return status;
}

static void share_out(struct bands *b, void *workspace) {
  const int64_t rows = ck_min(b->planes->image.height, ck_rows_under(b->planes, b->rows));
  b->x.data = ck_align(workspace);
  b->y = ck_align((char *)b->x.data + rows * row_bytes(b));
  b->residual = ck_align((char *)b->y + out_bytes(b));
  b->rest = ck_align((char *)b->residual + out_bytes(b));
}

/* Bring the rows of a band's image from `begin` on into b->x. */
static void hold_rows(struct bands *b, int64_t begin) {
  if (begin < b->planes->image.height) {
    ck_band_hold(b->op.kernels, &b->x, begin, begin + b->pixels.image.height);
  } else {
    memset(b->x.data, 0, (size_t)row_bytes(b));
    b->x.begin = b->x.end = 0;
  }
}

static void run_band(struct bands *b, int64_t n, int64_t c, int64_t y, int64_t rows) {
  const struct ck_run *run = b->planes;
  const struct ck_kernels *k = b->op.kernels;
  const int64_t plane = ck_out_plane(run), pixels = rows * run->out_w;
  const int64_t out = b->pixels.out_channels;
  const int64_t at = (n * run->out_channels + c * run->group_out) * plane + y * run->out_w;
  hold_rows(b, ck_see_rows(run, y, rows, &b->pixels));
  if (run->residual)
    ck_to_pixels(k, b->residual, ck_at(run->residual, at, k->element), plane, out, pixels);
  b->pixels.x = b->x.data;
  b->pixels.y = b->y;
  b->pixels.residual = run->residual ? b->residual : NULL;
  ck_run_op(&b->pixels, b->rest);
  ck_to_planes(k, ck_at_mut(run->y, at, k->element), plane, b->y, out, pixels);
}

void ck_bands_run(const struct ck_run *run, void *workspace) {
  struct bands b;
  plan(run, &b);
  share_out(&b, workspace);
  for (int64_t n = 0; n < run->image.batch; ++n)
    for (int64_t c = 0; c < run->image.channels; c += b.channels) {
      see_channels(&b, c);
      b.x = (struct ck_band){.planes = ck_plane_row(run, n, c, 0),
                             .plane = run->image.height * run->image.width,
                             .channels = b.pixels.image.channels,
                             .width = run->image.width,
                             .data = b.x.data};
      for (int64_t y = 0; y < run->out_h; y += b.rows)
        run_band(&b, n, c, y, ck_min(b.rows, run->out_h - y));
    }
}

/* A turn of some rows of all images, for a plan, see ck_plan.c. */

/* So many rows at once that pixels, which are gone through once for each vector of channels, stay
 * in L2 meanwhile. */
static int64_t rows_of_turn(const struct ck_run *run) {
  const int64_t row = run->out_w * run->out_channels * run->op->kernels->element;
  return ck_max(1, ck_cpu_l2_bytes() / 4 / row);
}

void ck_turn_run(const struct ck_run *run, void *workspace) {
  const struct ck_kernels *k = run->op->kernels;
  const bool to_planes = run->op->conv.layout == CK_NCHW;
  const int64_t channels = run->out_channels, plane = ck_out_plane(run);
  const int64_t first = -run->image.pad_top; /* row of what it reads, see struct ck_run */
  const int64_t in_image = run->image.height * run->image.width * channels;
  const int64_t most = rows_of_turn(run);
  (void)workspace;
  for (int64_t n = 0; n < run->image.batch; ++n)
    for (int64_t y = 0; y < run->out_h; y += most) {
      const int64_t pixels = ck_min(most, run->out_h - y) * run->out_w;
      const int64_t in = (first + y) * run->out_w, out = y * run->out_w;
      const void *x = ck_at(run->x, n * in_image + in * (to_planes ? channels : 1), k->element);
      void *to =
          ck_at_mut(run->y, n * plane * channels + out * (to_planes ? 1 : channels), k->element);
      if (to_planes)
        ck_to_planes(k, to, plane, x, channels, pixels);
      else
        ck_to_pixels(k, to, x, plane, channels, pixels);
    }
}
