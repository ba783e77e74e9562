/* Pooling: max, average, and the average of a whole image.
 *
 * A window is joined first down its columns, then along its row, which takes kh + kw operations
 * instead of kh * kw. So each row of the output is made in two steps,
 *
 *   down    the rows of the image under it, element by element, into a buffer in L1
 *   along   the columns of the buffer under each pixel
 *
 * and both are the same kernel: neighbouring elements, joined with those some step further on. The
 * layout makes no difference to it: an NCHW image comes as batch * channels images of one channel.
 *
 * Where a pixel has channels enough for a vector, the row is made pixel by pixel, and padding is
 * never touched: a window at the border has fewer taps. Where it has not, the elements of a row are
 * the vector's, the buffer's rows have their padding, and several images share a call.
 *
 * Threads share the rows of the output, or the channels of a few averages of whole images. */
#include "ck_impl.h"

/* How many bytes of a row are brought near before they are joined: hardware notices too late that a
 * row of a block goes on in the next block. */
enum { AHEAD = 2048 };

/* One axis of the image and the window's walk along it. */
struct axis {
  int64_t in, out;
  int64_t kernel, stride, dilation;
  int64_t before, after; /* padding */
};

struct pool_run {
  const ck_pool *pool;
  const struct ck_kernels *kernels;
  void (*join)(const struct ck_pool_args *);
  struct axis down, along;
  int64_t batch, channels;
  bool global;    /* an average of whole images */
  int64_t pitch;  /* narrow images: elements of a padded row; else 0 */
  int64_t images; /* narrow images: how many are made together */
  struct ck_span
      inside;    /* wide images: outputs whose windows are inside the image, along the row */
  int64_t chunk; /* wide images: channels of one block */
  int64_t cols;  /* wide images: output columns of one block; global: rows of L pixels at once */
  int64_t buffer_elements;
  void *buffer;
  int64_t parts, units; /* rows of all images, dealt out to threads */
  bool by_channels;     /* or vectors of channels */
  struct ck_span some;  /* global: the channels that are averaged */
};

/* Nearly always by 1, and a division takes as long as a vector of the result. */
static int64_t divide(int64_t a, int64_t b) { return b == 1 ? a : a / b; }

static int64_t reach_of(const struct axis *a) { return (a->kernel - 1) * a->dilation + 1; }

/* The taps of a window that are inside the image. */
struct taps {
  int64_t first; /* the place of the first of them */
  int64_t count;
  int64_t divisor; /* what an average divides by, along this axis */
};

static struct taps taps_of(const struct pool_run *r, const struct axis *a, int64_t o) {
  const int64_t start = o * a->stride - a->before;
  const int64_t last = a->in - 1 - start; /* the last place that is inside, from the start on */
  const int64_t skipped = start < 0 ? divide(-start - 1, a->dilation) + 1 : 0;
  const int64_t end = last < 0 ? 0 : ck_min(a->kernel, divide(last, a->dilation) + 1);
  struct taps t = {.count = ck_max(0, end - skipped)};
  if (t.count) t.first = start + skipped * a->dilation;
  t.divisor = r->pool->count_include_pad
                  ? ck_min(a->kernel, divide(last + a->after, a->dilation) + 1)
                  : t.count;
  return t;
}

/* From one tap to the next; a dilation beyond the image might not fit in 64 bits. */
static int64_t tap_step(const struct axis *a, int64_t taps, int64_t elements) {
  return taps > 1 ? a->dilation * elements : 0;
}

/* ----------------------------------------------------------------- wide: channels fill vectors */

/* Outputs whose windows are all inside the image. */
static struct ck_span interior(const struct axis *a) {
  const int64_t reach = reach_of(a);
  const int64_t begin = a->before ? (a->before - 1) / a->stride + 1 : 0;
  const int64_t end = reach <= a->in ? (a->in - reach + a->before) / a->stride + 1 : 0;
  return (struct ck_span){begin, end};
}

/* Columns of the image that outputs from `from` to `to` read. */
static struct ck_span columns_under(const struct axis *a, int64_t from, int64_t to) {
  const int64_t reach = reach_of(a), start = (to - 1) * a->stride - a->before;
  struct ck_span s = {ck_min(ck_max(0, from * a->stride - a->before), a->in),
                      start < a->in - reach ? start + reach : a->in};
  s.end = ck_max(s.begin, s.end);
  return s;
}

/* The columns under a block, as the step along the row sees them. */
struct columns {
  const void *at; /* the first of them */
  int64_t step;
  int64_t first; /* its place in the image */
};

/* Rows that are one row only are read where they are. */
static struct columns wide_down(const struct pool_run *r, const struct taps *rows,
                                struct ck_span under, const void *image, int64_t channels) {
  const int64_t row = r->along.in * r->channels, count = under.end - under.begin;
  const void *in = ck_at(image, rows->first * row + under.begin * r->channels, r->kernels->element);
  if (rows->count == 1) return (struct columns){in, r->channels, under.begin};
  const bool whole = channels == r->channels; /* pixels without a gap are one long pixel */
  r->join(&(struct ck_pool_args){
      .in = in,
      .out = r->buffer,
      .taps = rows->count,
      .tap_step = tap_step(&r->down, rows->count, row),
      .pixels = whole ? 1 : count,
      .in_step = r->channels,
      .out_step = channels,
      .n = whole ? count * channels : channels,
      .ahead = AHEAD / r->kernels->element,
  });
  return (struct columns){r->buffer, channels, under.begin};
}

/* Outputs of a span, which all have as many taps; `taps` are the first one's. */
static void wide_along(const struct pool_run *r, const struct columns *c, struct taps taps,
                       int64_t row_divisor, void *y, int64_t channels, struct ck_span span) {
  const struct axis *a = &r->along;
  const int64_t first = taps.count ? taps.first : c->first, pixels = span.end - span.begin;
  const bool long_pixel = a->stride == 1 && c->step == channels && channels == r->channels;
  r->join(&(struct ck_pool_args){
      .in = ck_at(c->at, (first - c->first) * c->step, r->kernels->element),
      .out = ck_at_mut(y, span.begin * r->channels, r->kernels->element),
      .taps = taps.count,
      .tap_step = tap_step(a, taps.count, c->step),
      .pixels = long_pixel ? 1 : pixels,
      .in_step = a->stride * c->step,
      .out_step = r->channels,
      .n = long_pixel ? pixels * channels : channels,
      .mean = true,
      .divisor = (double)row_divisor * (double)taps.divisor,
  });
}

/* One output row of some channels, from column x0 to x1. */
static void wide_block(const struct pool_run *r, const struct taps *rows, const void *image,
                       void *y, int64_t channels, int64_t x0, int64_t x1) {
  const struct axis *a = &r->along;
  const struct columns columns = wide_down(r, rows, columns_under(a, x0, x1), image, channels);
  for (int64_t x = x0; x < x1;) {
    const bool inside = x >= r->inside.begin && x < r->inside.end;
    const struct ck_span span = {x, inside ? ck_min(r->inside.end, x1) : x + 1};
    wide_along(r, &columns, taps_of(r, a, x), rows->divisor, y, channels, span);
    x = span.end;
  }
}

/* One output row. */
static void wide_row(const struct pool_run *r, const struct taps *rows, const void *image,
                     void *y) {
  const int element = r->kernels->element;
  for (int64_t c = 0; c < r->channels; c += r->chunk)
    for (int64_t x = 0; x < r->along.out; x += r->cols)
      wide_block(r, rows, ck_at(image, c, element), ck_at_mut(y, c, element),
                 ck_min(r->chunk, r->channels - c), x, ck_min(x + r->cols, r->along.out));
}

static void wide_run(const struct pool_run *r, const void *x, void *y) {
  const int element = r->kernels->element;
  const int64_t image = r->down.in * r->along.in * r->channels;
  const int64_t out_row = r->along.out * r->channels;
  for (int64_t i = 0; i < r->batch; ++i)
    for (int64_t row = 0; row < r->down.out; ++row) {
      const struct taps rows = taps_of(r, &r->down, row);
      wide_row(r, &rows, ck_at(x, i * image, element),
               ck_at_mut(y, (i * r->down.out + row) * out_row, element));
    }
}

/* A block's buffer and the rows it is made of stay in L1, so the smaller the better; but neighbours
 * both join the columns under their common taps, so these must be few among a block's. */
static void wide_cut(struct pool_run *r) {
  enum { COMMON = 16 };
  const struct axis *a = &r->along;
  const int64_t reach = ck_min(reach_of(a), a->in), lanes = r->kernels->lanes;
  const int64_t l1 = ck_cpu_l1d_bytes() / r->kernels->element;
  const int64_t common = COMMON * ck_max(0, reach - a->stride);
  const int64_t room = common < l1 / 8 / r->channels ? l1 / 8 : l1 / 4;
  const int64_t columns = ck_min(a->in, ck_max(reach, common / 2));
  const int64_t chunks = ck_ceil_div(r->channels, ck_max(lanes, room / columns));
  r->chunk = ck_min(r->channels, ck_round_up(ck_ceil_div(r->channels, chunks), 4 * lanes));
  r->inside = interior(a);
  r->cols = ck_min(a->out, 1 + ck_max(0, room / r->chunk - reach) / a->stride);
  r->buffer_elements = ck_min(a->in, (r->cols - 1) * a->stride + reach) * r->chunk;
}

/* --------------------------------------------------- narrow: the elements of a row fill vectors */

/* The buffer: rows of `pitch` elements, one of each image, with their padding; as many again, for
 * rows joined at every pixel; and the divisors of an output row's elements. */
static void *narrow_part(const struct pool_run *r, int part) {
  const int64_t rows = r->images * r->pitch + 2 * r->kernels->lanes;
  return ck_at_mut(r->buffer, part * rows, r->kernels->element);
}

static void narrow_divisors(const struct pool_run *r) {
  if (r->pool->kind == CK_POOL_MAX) return;
  void *divisors = narrow_part(r, 2);
  for (int64_t i = 0; i < r->along.out * r->channels; ++i) {
    const double divisor = (double)taps_of(r, &r->along, i / r->channels).divisor;
    if (r->pool->dtype == CK_F32)
      ((float *)divisors)[i] = (float)divisor;
    else
      ((double *)divisors)[i] = divisor;
  }
}

static void narrow_down(const struct pool_run *r, const struct taps *rows, const void *x,
                        int64_t images) {
  const int64_t row = r->along.in * r->channels;
  r->join(&(struct ck_pool_args){
      .in = ck_at(x, rows->first * row, r->kernels->element),
      .out = ck_at_mut(r->buffer, r->along.before * r->channels, r->kernels->element),
      .taps = rows->count,
      .tap_step = tap_step(&r->down, rows->count, row),
      .pixels = images,
      .in_step = r->down.in * row,
      .out_step = r->pitch,
      .n = row,
      .ahead = r->down.stride * row,
  });
}

/* At strides that vectors cannot take: join at every pixel, then pick those that are wanted. */
static const void *narrow_pick(const struct pool_run *r, int64_t images) {
  const struct axis *a = &r->along;
  const int element = r->kernels->element;
  void *every = narrow_part(r, 1);
  r->join(&(struct ck_pool_args){
      .in = r->buffer,
      .out = every,
      .taps = a->kernel,
      .tap_step = tap_step(a, a->kernel, r->channels),
      .pixels = 1,
      .n = images * r->pitch - (reach_of(a) - 1) * r->channels,
  });
  for (int64_t i = 0; i < images; ++i)
    r->kernels->pool_pick(&(struct ck_pool_args){
        .in = ck_at(every, i * r->pitch, element),
        .out = ck_at_mut(every, i * r->pitch, element),
        .pixels = a->out,
        .in_step = a->stride * r->channels,
        .out_step = r->channels,
        .n = r->channels,
    });
  return every;
}

static void narrow_along(const struct pool_run *r, int64_t row_divisor, void *y, int64_t images) {
  const struct axis *a = &r->along;
  const bool pick = a->stride > 2 || (a->stride == 2 && r->channels > 1);
  r->join(&(struct ck_pool_args){
      .in = pick ? narrow_pick(r, images) : r->buffer,
      .out = y,
      .taps = pick ? 1 : a->kernel,
      .tap_step = tap_step(a, a->kernel, r->channels),
      .pixels = images,
      .in_step = r->pitch,
      .out_step = r->down.out * a->out * r->channels,
      .n = a->out * r->channels,
      .every_other = !pick && a->stride == 2,
      .mean = true,
      .divisor = (double)row_divisor,
      .divisors = narrow_part(r, 2),
  });
}

static void narrow_run(const struct pool_run *r, const void *x, void *y) {
  const int element = r->kernels->element;
  const int64_t image = r->down.in * r->along.in * r->channels;
  const int64_t out_row = r->along.out * r->channels;
  struct ck_pool_args padding = {.in = r->buffer, .out = r->buffer, .pixels = 1};
  padding.n = r->images * r->pitch + 2 * r->kernels->lanes;
  r->join(&padding);
  narrow_divisors(r);
  for (int64_t i = 0; i < r->batch; i += r->images) {
    const int64_t images = ck_min(r->images, r->batch - i);
    for (int64_t row = 0; row < r->down.out; ++row) {
      const struct taps rows = taps_of(r, &r->down, row);
      narrow_down(r, &rows, ck_at(x, i * image, element), images);
      narrow_along(r, rows.divisor, ck_at_mut(y, (i * r->down.out + row) * out_row, element),
                   images);
    }
  }
}

/* Whether the rows of the buffer may have their padding, which a caller may have asked for by the
 * gigabyte; and then, so many images that a call takes longer than it takes to make it. */
static bool narrow_cut(struct pool_run *r) {
  enum { ELEMENTS = 256 };
  const struct axis *a = &r->along;
  const int64_t row = a->in * r->channels, most = 4 * a->in + ELEMENTS;
  const int64_t start = (a->out - 1) * a->stride;
  if (r->channels >= r->kernels->lanes || reach_of(a) > most || a->before > most || start > most)
    return false;
  r->pitch = ck_max(a->before + a->in, start + reach_of(a)) * r->channels;
  r->images = ck_max(1, ck_min(r->batch, ELEMENTS / row));
  r->buffer_elements = 2 * (r->images * r->pitch + 2 * r->kernels->lanes) + a->out * r->channels;
  return true;
}

/* ------------------------------------------------------------------ the average of whole images */

static bool is_whole(const struct axis *a) {
  return a->kernel == a->in && a->before == 0 && a->after == 0 &&
         (a->dilation == 1 || a->kernel == 1);
}

/* A quarter of L1 is for the sums, a quarter for the pixels that are added to them. */
static void global_cut(struct pool_run *r) {
  const int64_t lanes = r->kernels->lanes, room = ck_cpu_l1d_bytes() / 4 / r->kernels->element;
  r->chunk = ck_min(r->channels, ck_max(lanes, room / lanes));
  r->cols = ck_max(2, room / (lanes * r->chunk));
  r->buffer_elements = lanes * r->chunk;
}

/* The pixels of an image are seen as rows of L, an incomplete one first, which are added up into L
 * columns, and these halved until one is left. So does the kernel for planes, hence both layouts
 * give the same bits. */
static void global_image(const struct pool_run *r, const void *x, void *y, int64_t channels) {
  const struct ck_kernels *k = r->kernels;
  const int64_t pixels = r->down.in * r->along.in, head = pixels % k->lanes;
  const bool whole = channels == r->channels; /* pixels without a gap are one long pixel */
  struct ck_pool_args args = {.in = x, .out = r->buffer, .pixels = 1, .n = k->lanes * channels};
  k->pool_sum(&args); /* of no taps: zeros */
  args.more = true;
  args.in_step = r->channels;
  args.out_step = channels;
  args.tap_step = k->lanes * r->channels;
  args.taps = 1;
  args.pixels = whole ? 1 : head;
  args.n = whole ? head * channels : channels;
  if (head) k->pool_sum(&args);
  args.pixels = whole ? 1 : k->lanes;
  args.n = whole ? k->lanes * channels : channels;
  for (int64_t p = head; p < pixels; p += args.taps * k->lanes) {
    args.in = ck_at(x, p * r->channels, k->element);
    args.taps = ck_min(r->cols, (pixels - p) / k->lanes);
    args.ahead = pixels - p < 2 * args.taps * k->lanes ? r->channels : args.taps * args.tap_step;
    k->pool_sum(&args);
  }
  args = (struct ck_pool_args){.in = r->buffer, .out = r->buffer, .taps = 2, .pixels = 1};
  for (int64_t half = k->lanes / 2; half > 0; half /= 2) {
    args.n = args.tap_step = half * channels;
    k->pool_sum(&args);
  }
  args = (struct ck_pool_args){.in = r->buffer, .out = y, .taps = 1, .pixels = 1, .n = channels};
  args.mean = true;
  args.divisor = (double)pixels;
  k->pool_sum(&args);
}

static void global_run(const struct pool_run *r, const void *x, void *y) {
  const struct ck_kernels *k = r->kernels;
  const int64_t pixels = r->down.in * r->along.in;
  if (r->channels == 1) {
    k->pool_planes(&(struct ck_pool_args){
        .in = x, .out = y, .pixels = r->batch, .n = pixels, .divisor = (double)pixels});
    return;
  }
  for (int64_t n = 0; n < r->batch; ++n)
    for (int64_t c = r->some.begin; c < r->some.end; c += r->chunk)
      global_image(r, ck_at(x, n * pixels * r->channels + c, k->element),
                   ck_at_mut(y, n * r->channels + c, k->element),
                   ck_min(r->chunk, r->some.end - c));
}

/* ------------------------------------------------------------------------------------- threads */

/* Few averages of whole images are dealt out by their channels. An element that is read or written
 * costs as much as so many additions of vectors. */
static void deal_out(struct pool_run *r, int threads) {
  enum { TRAFFIC = 8 };
  const double columns = (double)r->batch * (double)r->channels;
  const double in = columns * (double)r->down.in * (double)r->along.in;
  const double out = columns * (double)r->down.out * (double)r->along.out;
  const int64_t worth = ck_threads_worth(threads, TRAFFIC * (in + out) / r->kernels->lanes);
  const int64_t vectors = ck_ceil_div(r->channels, r->kernels->lanes);
  r->by_channels = r->global && r->batch < ck_min(worth, vectors);
  r->units = r->by_channels ? vectors : ck_max(1, r->batch * r->down.out);
  r->parts = ck_min(worth, r->units);
}

static void run_here(const struct pool_run *r, const void *x, void *y) {
  if (r->global)
    global_run(r, x, y);
  else if (r->pitch)
    narrow_run(r, x, y);
  else
    wide_run(r, x, y);
}

/* Rows [begin, end) of all images, in pieces that are images, or as good as images. */
static void run_rows(const struct pool_run *r, struct ck_span rows, const void *x, void *y) {
  const int element = r->kernels->element;
  const int64_t image = r->down.in * r->along.in * r->channels;
  const int64_t out_row = r->along.out * r->channels;
  struct ck_piece p;
  for (int64_t row = rows.begin; row < rows.end; row += p.images * p.rows) {
    struct pool_run piece = *r;
    p = ck_piece_at(row, rows.end, r->down.out);
    piece.batch = p.images;
    piece.down.out = p.rows;
    piece.down.before -= p.y * r->down.stride; /* negative: it begins further down */
    run_here(&piece, ck_at(x, p.image * image, element), ck_at_mut(y, row * out_row, element));
  }
}

static size_t bytes_of(const struct pool_run *r) {
  return (size_t)(r->buffer_elements * r->kernels->element) + CK_ALIGN;
}

struct call {
  const struct pool_run *run;
  const void *x;
  void *y;
  char *workspace;
};

/* A maximum is one of the image's own numbers: denormals stay as they are, and cost nothing. */
static void do_part(void *context, int64_t index, int thread) {
  const struct call *call = context;
  const uint64_t saved = ck_fp_set(call->run->pool->kind != CK_POOL_MAX);
  const struct ck_span units = ck_deal_out(call->run->units, call->run->parts, index);
  struct pool_run part = *call->run;
  part.buffer = ck_align(call->workspace + (size_t)thread * bytes_of(&part));
  if (part.by_channels) {
    const int64_t lanes = part.kernels->lanes;
    part.some = (struct ck_span){units.begin * lanes, ck_min(units.end * lanes, part.channels)};
    run_here(&part, call->x, call->y);
  } else {
    run_rows(&part, units, call->x, call->y);
  }
  ck_fp_leave(saved);
}

/* --------------------------------------------------------------------------- what callers call */

ck_status ck_pool_output_size(const ck_pool *pool, const ck_image *image, int64_t *out_h,
                              int64_t *out_w) {
  if (!pool || !image || !out_h || !out_w) return CK_E_NULL;
  const ck_window *w = &pool->window;
  const ck_status status =
      ck_output_length(image->height, image->pad_top, image->pad_bottom, w->kernel_h, w->stride_h,
                       w->dilation_h, pool->ceil_mode, out_h);
  if (status != CK_OK) return status;
  return ck_output_length(image->width, image->pad_left, image->pad_right, w->kernel_w, w->stride_w,
                          w->dilation_w, pool->ceil_mode, out_w);
}

/* Every check, and all of the run but its buffer. */
static ck_status plan(const ck_pool *pool, const ck_image *i, int threads, struct pool_run *r) {
  const ck_window *w = &pool->window;
  int64_t out_h, out_w;
  const ck_status status = ck_pool_output_size(pool, i, &out_h, &out_w);
  if (status != CK_OK) return status;
  if (i->batch < 0 || i->channels < 1 || (unsigned)pool->dtype >= CK_DTYPE_COUNT ||
      (unsigned)pool->kind > CK_POOL_AVERAGE)
    return CK_E_SHAPE;
  if (!ck_isa_available(pool->isa)) return CK_E_ISA;
  const struct ck_kernels *k = ck_kernels_for(pool->isa, pool->dtype);
  enum { BUFFER = 32 }; /* a buffer has at most so many times the elements of a row */
  const int64_t images = ck_max(1, i->batch);
  if (!ck_array_fits(images, i->height, i->width, i->channels, BUFFER * k->element) ||
      !ck_array_fits(images, out_h, out_w, i->channels, k->element))
    return CK_E_OVERFLOW;
  *r = (struct pool_run){
      .pool = pool,
      .kernels = k,
      .join = pool->kind == CK_POOL_MAX ? k->pool_max : k->pool_sum,
      .down = {i->height, out_h, w->kernel_h, w->stride_h, w->dilation_h, i->pad_top,
               i->pad_bottom},
      .along = {i->width, out_w, w->kernel_w, w->stride_w, w->dilation_w, i->pad_left,
                i->pad_right},
      .batch = i->batch,
      .channels = i->channels,
      .some = {0, i->channels},
  };
  r->global = pool->kind == CK_POOL_AVERAGE && is_whole(&r->down) && is_whole(&r->along);
  if (r->global)
    global_cut(r);
  else if (!narrow_cut(r))
    wide_cut(r);
  const uint64_t saved = ck_fp_enter(); /* estimates must not show in the caller's flags */
  deal_out(r, threads);
  ck_fp_leave(saved);
  return bytes_of(r) < (size_t)(PTRDIFF_MAX / CK_MAX_THREADS) ? CK_OK : CK_E_OVERFLOW;
}

ck_status ck_pool_workspace_size(const ck_pool *pool, const ck_image *image, int threads,
                                 size_t *bytes) {
  struct pool_run run;
  if (!pool || !image || !bytes) return CK_E_NULL;
  const ck_status status = plan(pool, image, threads, &run);
  if (status == CK_OK) *bytes = (size_t)run.parts * bytes_of(&run);
  return status;
}

ck_status ck_pool_run(const ck_pool *pool, const ck_image *image, const void *x, void *y,
                      int threads, void *workspace, size_t workspace_bytes) {
  struct pool_run run;
  if (!pool || !image) return CK_E_NULL;
  const ck_status status = plan(pool, image, threads, &run);
  if (status != CK_OK || image->batch == 0) return status;
  if (!x || !y) return CK_E_NULL;
  if (!workspace || workspace_bytes < (size_t)run.parts * bytes_of(&run)) return CK_E_WORKSPACE;
  struct call call = {&run, x, y, workspace};
  ck_parallel((int)run.parts, run.parts, do_part, &call);
  return CK_OK;
}
