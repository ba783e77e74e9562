/* Depthwise from rows of pixels, for any window. Where the rows under it stay in L1, an image is
 * read where it lies. Elsewhere its rows are staged: for some channels, those under the window are
 * brought once into a ring of contiguous, padded rows, which stays in L1. Pixels lie C channels
 * apart in the image, and where C is a power of two a window's worth of them falls into a few cache
 * sets; the copy costs less than the conflicts, and leaves the kernel no tails. Rows of NCHW planes
 * become rows of pixels on the way.
 *
 * A grouped convolution whose groups are at most half a vector is the same thing: with G input
 * channels a group, each kernel row is G rows, one for each channel of the group, staged so that
 * every lane has the input of its own output's group. Groups share the vector, and no lane idles.
 */
#include "ck_impl.h"

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
 * padding. A row has the columns under a row of outputs, with those of padding; or, where a kernel
 * does without these and planes have no more, those of the image alone: then rows of a plane, which
 * follow each other, are staged in one run. */
struct ring {
  int64_t slots, columns, vectors;
  int64_t under; /* columns under a row of outputs */
  bool bare;     /* without padding */
};

ck_status ck_dw_columns(const struct ck_run *run, int64_t cols, int64_t *columns) {
  const ck_window *w = &run->op->conv.window;
  int64_t last, reach;
  if (!ck_mul(cols - 1, w->stride_w, &last) ||
      !ck_mul(w->kernel_w - 1, ck_dw_walk_of(w).dilation, &reach))
    return CK_E_OVERFLOW;
  return ck_add(last, reach + 1, columns) ? CK_OK : CK_E_OVERFLOW;
}

/* Zeros may be left out of a sum unless they meet a weight that is no number. The 3x3 kernels leave
 * out nothing. */
static bool skips_padding(const struct ck_run *run) {
  const struct ck_dw_walk walk = ck_dw_walk_of(&run->op->conv.window);
  return run->op->dw.finite && !ck_dw_3x3(run) &&
         ck_dw_is_literal(run->op->conv.window.kernel_w, walk.group_columns / walk.dilation);
}

/* The elements of a row whose padding is not there, and of what a group of outputs reaches beyond
 * it, are counted in 63 bits. */
static bool counts_bare(const struct ck_run *run, int64_t pixel_step) {
  enum { MOST_COLUMNS = 64 }; /* under a group */
  const ck_image *i = &run->image;
  int64_t columns;
  return ck_mul(run->op->conv.window.dilation_w, MOST_COLUMNS, &columns) &&
         ck_add(columns, i->width, &columns) && ck_add(columns, i->pad_left, &columns) &&
         ck_add(columns, i->pad_right, &columns) && ck_mul(columns, pixel_step, &columns);
}

/* As many vectors of channels as a sixteenth of L2 holds rows of: so the image is read in longer
 * runs, in which hardware sees a pattern. Planes have no such runs. */
static int64_t vectors_of(const struct ck_run *run, int64_t vector_bytes) {
  if (run->group_in > 1 || run->group_out > 1 || run->op->conv.layout == CK_NCHW) return 1;
  const int64_t all = ck_ceil_div(run->out_channels, run->op->kernels->lanes);
  const int64_t fit = ck_min(all, ck_cpu_l2_bytes() / 16 / vector_bytes);
  return fit >= 4 ? 4 : fit >= 2 ? 2 : 1; /* which dw_stage has loops for */
}

/* Rows of output that a 3x3 kernel makes at once from staged rows. These lie in L1, so that at
 * stride 2, where every other one is read once only, more than two at once gain nothing. */
static int rows_at_once(const struct ck_run *run, int64_t rows) {
  const bool few = run->op->conv.window.stride_h > 1;
  return ck_dw_rows(run, run->op->kernels->lanes, few ? ck_min(2, rows) : rows);
}

/* Rows under one call of a kernel, beyond those under one row of outputs. */
static int64_t more_rows(const struct ck_run *run) {
  if (!ck_dw_3x3(run)) return 0;
  return run->op->conv.window.stride_h * (rows_at_once(run, run->out_h) - 1);
}

static ck_status ring_of(const struct ck_run *run, int64_t cols, struct ring *ring) {
  const struct ck_kernels *k = run->op->kernels;
  const ck_window *w = &run->op->conv.window;
  int64_t rows, bytes;
  const bool planes = run->op->conv.layout == CK_NCHW;
  const ck_status status = ck_dw_columns(run, cols, &ring->under);
  if (status != CK_OK) return status;
  ring->bare = planes && (skips_padding(run) || ck_dw_3x3(run)) && cols == run->out_w &&
               run->image.width <= ring->under && counts_bare(run, k->lanes);
  ring->columns = ring->bare ? run->image.width : ring->under;
  ring->slots = ck_min((w->kernel_h - 1) * w->dilation_h + 1 + more_rows(run), run->image.height);
  if (!ck_mul(ring->slots, run->group_in, &rows) || !ck_mul(rows + 1, ring->columns, &bytes) ||
      !ck_mul(bytes, (int64_t)k->lanes * k->element, &bytes))
    return CK_E_OVERFLOW;
  ring->vectors = vectors_of(run, bytes);
  if (!planes) return CK_OK;
  /* of planes as many rows as a third of L1 holds, to be staged together */
  const int64_t row = ring->columns * k->lanes * k->element; /* less than `bytes` */
  ring->slots = ck_min(run->image.height, ck_max(ring->slots, ck_cpu_l1d_bytes() / 3 / row));
  return CK_OK;
}

/* Elements of a staged row. */
static int64_t slot_elements(const struct ck_run *run, const struct ring *ring) {
  return ring->columns * ring->vectors * run->op->kernels->lanes;
}

/* Where an image is read in place, its lines of L1 that are in use again for the next row of output
 * must stay there: those under a group of outputs, which goes down all rows before the next group.
 * Columns a multiple of 128 bytes apart lie in half of the sets, and so on; a staged row takes no
 * more of L1 than one in half of them. Measured: up to a quarter of the sets in place is 0.97 to
 * 1.6 times as fast as staged; beyond that, where the lines fit, 0.9 to 1.4, where they take the
 * room up to twice 0.7 to 1.4, more 0.6 to 0.9. */
enum { LINE = 64, WAY = 4096, ALWAYS = 4 /* times a line */ };

static bool stays_in_l1(const struct ck_run *run) {
  const ck_window *w = &run->op->conv.window;
  const struct ck_dw_walk walk = ck_dw_walk_of(w);
  const int64_t pitch = walk.dilation * run->image.channels * run->op->kernels->element;
  const int64_t apart = ck_max(LINE, ck_gcd(pitch, WAY)) / LINE;
  const int64_t rows = ck_min(run->image.height, ck_max(0, ck_rows_under(run, 1) - w->stride_h));
  const int64_t columns = (CK_DW_GROUP - 1) * walk.group_columns / walk.dilation + w->kernel_w;
  const int64_t lines = rows * ck_min(run->image.width, columns);
  return apart <= ALWAYS || lines <= ck_cpu_l1d_bytes() / LINE / apart;
}

static bool reads_in_place(const struct ck_run *run) {
  return run->op->conv.layout == CK_NHWC && run->group_in == 1 && run->group_out == 1 &&
         skips_padding(run) && counts_bare(run, run->image.channels) && stays_in_l1(run);
}

/* Output rows that go through the kernel together, at most; but the table of the rows under them
 * stays small where a kernel is tall. */
enum { ROWS_TOGETHER = 32, TABLE_ROWS = 512 };

static int64_t most_together(const struct ck_run *run) {
  return ck_max(1, ck_min(ROWS_TOGETHER, TABLE_ROWS / run->op->conv.window.kernel_h));
}

/* So many go from a ring: as many as it holds all rows under. */
static int64_t rows_together(const struct ck_run *run, const struct ring *ring) {
  const ck_window *w = &run->op->conv.window;
  const int64_t under = (w->kernel_h - 1) * w->dilation_h + 1, most = most_together(run);
  if (ring->slots == run->image.height) return most;
  return ck_min(most, (ring->slots - under) / w->stride_h + 1);
}

/* Rows in a table: those under one call of a kernel, also of one for 3x3. */
static int64_t table_rows(const struct ck_run *run) {
  return most_together(run) * run->op->conv.window.kernel_h;
}

ck_status ck_dw_scratch(const struct ck_run *run, int64_t block_cols, size_t *bytes) {
  *bytes = 0;
  if (ck_dw_3x3(run) && run->op->conv.layout == CK_NHWC) return CK_OK;
  struct ring ring;
  int64_t rows, tables;
  const ck_status status = ring_of(run, block_cols, &ring);
  if (status != CK_OK) return status;
  const int64_t slots = ring.slots * run->group_in;
  if (!ck_mul(slots + 1, slot_elements(run, &ring), &rows) ||
      !ck_mul(rows, run->op->kernels->element, &rows) ||
      !ck_mul(table_rows(run), run->group_in, &tables) || !ck_add(slots, tables, &tables) ||
      !ck_mul(tables, (int64_t)sizeof(void *), &tables) || !ck_add(rows, tables, &rows) ||
      !ck_add(rows, 3 * CK_ALIGN, &rows))
    return CK_E_OVERFLOW;
  *bytes = (size_t)rows;
  return CK_OK;
}

/* What the staging of some channels needs to know. */
struct stage {
  const struct ck_run *run;
  struct ring ring;
  char *data;     /* the slots, then the row of padding */
  int64_t *holds; /* which input row each slot holds, or -1; a slot of a group has its members */
  int64_t slot_bytes;
  const void **rows;             /* a table: those under a call of a kernel */
  int64_t image, channel, lanes; /* the channels of the output that are staged */
  int64_t before, begin, end;    /* columns of padding in a row, and of the image */
  int64_t pixel_step;            /* elements from one pixel of a row to the next */
  struct ck_span pixels; /* of a staged row: where its first output begins, and where it ends */
};

static void stage_start(struct stage *s, const struct ck_run *run, int64_t cols, void *scratch) {
  *s = (struct stage){.run = run};
  ring_of(run, cols, &s->ring);
  const int64_t slots = s->ring.slots * run->group_in;
  const int64_t rows = table_rows(run) * run->group_in;
  s->slot_bytes = slot_elements(run, &s->ring) * run->op->kernels->element;
  s->holds = ck_align(scratch);
  s->rows = ck_align(s->holds + slots);
  s->data = ck_align(s->rows + rows);
  s->pixel_step = s->ring.vectors * run->op->kernels->lanes;
}

/* Columns of padding, which stay. */
static void clear_ring(struct stage *s) {
  const int64_t slots = s->ring.slots * s->run->group_in;
  memset(s->data, 0, (size_t)((slots + 1) * s->slot_bytes));
}

/* To find which of so few taps are on padding takes longer than to add zeros, if there are any. */
enum { FEW_TAPS = 3 };

/* The columns under a block, and `lanes` channels from `channel` on: the ring is empty. */
static void stage_channels(struct stage *s, const struct ck_block *block, int64_t channel,
                           int64_t lanes) {
  const ck_image *image = &s->run->image;
  const int64_t first = block->x * s->run->op->conv.window.stride_w - image->pad_left;
  s->image = block->image;
  s->channel = channel;
  s->lanes = lanes;
  s->begin = ck_max(0, ck_min(first, image->width));
  s->end = ck_max(s->begin, ck_min(first + s->ring.under, image->width));
  s->before = ck_min(s->begin - first, s->ring.under);
  if (s->ring.bare) {
    s->before = s->begin = 0;
    s->end = image->width;
    s->pixels = (struct ck_span){first, image->width};
  } else if (skips_padding(s->run) && s->run->op->conv.window.kernel_w > FEW_TAPS) {
    s->pixels = (struct ck_span){-s->before, s->end - s->begin};
  } else {
    s->pixels = (struct ck_span){0, s->ring.columns};
  }
  for (int64_t slot = 0; slot < s->ring.slots; ++slot) s->holds[slot] = -1;
}

/* `count` rows of planes, `step` apart from y on -> staged rows, between columns of padding that
 * are there. */
static void stage_planes(const struct stage *s, int64_t y, int64_t step, int64_t count, char *to) {
  const struct ck_kernels *k = s->run->op->kernels;
  const ck_image *image = &s->run->image;
  const void *from = ck_plane_row(s->run, s->image, s->channel, y);
  const bool run = s->ring.bare && step == 1;
  if (s->begin < s->end)
    k->transpose(&(struct ck_transpose_args){.to = to + s->before * k->lanes * k->element,
                                             .from = ck_at(from, s->begin, k->element),
                                             .to_step = k->lanes,
                                             .from_step = image->height * image->width,
                                             .rows = s->lanes,
                                             .columns = (s->end - s->begin) * (run ? count : 1),
                                             .more = run ? 0 : count - 1,
                                             .to_more = step * s->ring.columns * k->lanes,
                                             .from_more = step * image->width});
}

/* Pixels -> a staged row of each channel of an output's group. */
static void stage_pixels(const struct stage *s, int64_t y, char *to) {
  const struct ck_run *run = s->run;
  const struct ck_kernels *k = run->op->kernels;
  const ck_image *image = &run->image;
  k->dw_stage(&(struct ck_stage_args){
      .to = to + s->before * s->pixel_step * k->element,
      .src = ck_at(ck_image_row(run, s->image, y), s->begin * image->channels, k->element),
      .src_step = image->channels,
      .to_step = s->pixel_step,
      .pixels = s->end - s->begin,
      .channel = s->channel,
      .lanes = s->lanes,
      .group_in = run->group_in,
      .group_out = run->group_out,
      .member_step = slot_elements(run, &s->ring),
  });
}

/* Row y, into its slot, and those after it that the ring has room for behind row `oldest`. */
static void stage_more(struct stage *s, int64_t oldest, int64_t y, int64_t slot) {
  const int64_t members = s->run->group_in, slots = s->ring.slots;
  char *to = s->data + slot * members * s->slot_bytes;
  if (s->run->op->conv.layout == CK_NHWC) {
    stage_pixels(s, y, to);
    s->holds[slot] = y;
    return;
  }
  const ck_window *w = &s->run->op->conv.window;
  const int64_t step = ck_gcd(w->stride_h, w->dilation_h); /* rows between are never read */
  const int64_t room = ck_min(slots - slot, ck_max(oldest, 0) + slots - y);
  const int64_t count = ck_ceil_div(ck_min(room, s->run->image.height - y), step);
  stage_planes(s, y, step, count, to);
  for (int64_t i = 0; i < count; ++i) s->holds[slot + i * step] = y + i * step;
}

/* Rows of zeros change a sum only where a weight is no number; the 3x3 kernels take a row for each
 * row of theirs. */
static bool adds_padding(const struct ck_run *run) { return ck_dw_3x3(run) || !run->op->dw.finite; }

/* `count` rows of the image, `step` apart from row `first` on, each channel of a group on its own;
 * those that are not there yet are staged, and those from row `oldest` on stay. Row y goes to slot
 * y modulo the slots, which a division would take as long to find as a short row takes. */
static void stage_rows(struct stage *s, int64_t oldest, int64_t first, int64_t step, int64_t count,
                       const void **rows) {
  const int64_t members = s->run->group_in, slots = s->ring.slots, height = s->run->image.height;
  const int64_t slot_step = step % slots;
  const int64_t origin = s->pixels.begin < 0 ? s->before : 0; /* the column where a row begins */
  const char *data = ck_at(s->data, origin * s->pixel_step, s->run->op->kernels->element);
  const char *padding = adds_padding(s->run) ? data + slots * members * s->slot_bytes : NULL;
  int64_t slot = first % slots;
  if (slot < 0) slot += slots;
  for (int64_t i = 0, y = first; i < count; ++i, y += step) {
    const bool inside = y >= 0 && y < height;
    if (inside && s->holds[slot] != y) stage_more(s, oldest, y, slot);
    const char *row = data + slot * members * s->slot_bytes;
    for (int64_t c = 0; c < members; ++c) *rows++ = inside ? row + c * s->slot_bytes : padding;
    slot += slot_step;
    if (slot >= slots) slot -= slots;
  }
}

/* What calls of the kernel have in common, on rows whose pixels lie so far apart. */
static struct ck_dw_row_args row_args(const struct ck_run *run, const struct ck_block *block,
                                      const struct ck_dw_target *target, struct ck_span pixels,
                                      int64_t pixel) {
  const ck_window *w = &run->op->conv.window;
  const struct ck_dw_walk walk = ck_dw_walk_of(w);
  return (struct ck_dw_row_args){
      .first = pixels.begin * pixel,
      .row_end = pixels.end * pixel,
      .offset = target->offset,
      .kernel_h = w->kernel_h * run->group_in,
      .kernel_w = w->kernel_w,
      .out_w = block->cols,
      .tap_step = walk.dilation * pixel,
      .out_step = w->stride_w * pixel,
      .phases = walk.phases,
      .group_step = walk.group_columns * pixel,
      .low = target->activation->low,
      .high = target->activation->high,
  };
}

/* Rows of output, of `lanes` channels from `channel` on, a vector of them after the other; the
 * first is `args->first` elements into a row. */
static void some_channels(const struct ck_run *run, const struct ck_dw_target *target,
                          int64_t channel, int64_t lanes, const struct ck_dw_row_args *args) {
  const struct ck_op *op = run->op;
  const struct ck_kernels *k = op->kernels;
  const int64_t taps = args->kernel_h * args->kernel_w;
  char *out = ck_at_mut(
      target->out, (channel - target->channel_begin) / k->lanes * target->out_step, k->element);
  struct ck_dw_row_args vector = *args;
  for (int64_t c = channel; c < channel + lanes; c += k->lanes) {
    vector.lanes = ck_min(k->lanes, channel + lanes - c);
    vector.weights = ck_at(op->dw.data, c * taps, k->element);
    vector.bias = ck_at(op->dw.bias, c, k->element);
    vector.out = out;
    k->dwconvKxK(&vector);
    vector.first += k->lanes;
    out += target->out_step * k->element;
  }
}

/* The rows of a block, for the channels that are staged. */
static void staged_rows(struct stage *s, const struct ck_block *block,
                        const struct ck_dw_target *target) {
  const struct ck_run *run = s->run;
  const ck_window *w = &run->op->conv.window;
  struct ck_dw_row_args args = row_args(run, block, target, s->pixels, s->pixel_step);
  const int64_t most = rows_together(run, &s->ring), top = run->image.pad_top;
  args.rows = s->rows;
  for (int64_t r = 0; r < block->rows; r += args.out_rows) {
    const int64_t oldest = (block->y + r) * w->stride_h - top;
    args.out_rows = ck_min(most, block->rows - r);
    for (int64_t i = 0; i < args.out_rows; ++i)
      stage_rows(s, oldest, oldest + i * w->stride_h, w->dilation_h, w->kernel_h,
                 s->rows + i * args.kernel_h);
    some_channels(run, target, s->channel, s->lanes, &args);
    args.offset += args.out_rows * block->cols;
  }
}

/* The same where they lie, many rows at once: channels up to `end`, whole vectors. */
static void rows_in_place(const struct ck_run *run, const struct ck_block *block,
                          const struct ck_dw_target *target, int64_t end, const void **rows) {
  const ck_window *w = &run->op->conv.window;
  const ck_image *image = &run->image;
  const int64_t left = block->x * w->stride_w - image->pad_left, begin = target->channel_begin;
  struct ck_dw_row_args args =
      row_args(run, block, target, (struct ck_span){left, image->width}, image->channels);
  args.rows = rows;
  args.first += begin;
  for (int64_t r = 0; r < block->rows; r += args.out_rows) {
    args.out_rows = ck_min(most_together(run), block->rows - r);
    for (int64_t i = 0; i < args.out_rows; ++i) {
      const int64_t y = (block->y + r + i) * w->stride_h - image->pad_top;
      for (int64_t ky = 0; ky < w->kernel_h; ++ky)
        rows[i * w->kernel_h + ky] = ck_image_row(run, block->image, y + ky * w->dilation_h);
    }
    some_channels(run, target, begin, end - begin, &args);
    args.offset += args.out_rows * block->cols;
  }
}

/* The last channels, which are less than a vector, are staged: in place, they end where memory may.
 */
void ck_dw_block_rows(const struct ck_run *run, const struct ck_block *block,
                      const struct ck_dw_target *target, void *scratch) {
  struct stage s;
  stage_start(&s, run, block->cols, scratch);
  const int64_t step = s.pixel_step, end = target->channel_end;
  int64_t c = target->channel_begin;
  if (reads_in_place(run)) {
    c = end - end % run->op->kernels->lanes;
    rows_in_place(run, block, target, c, s.rows);
  }
  if (c < end) clear_ring(&s);
  for (; c < end; c += s.lanes) {
    stage_channels(&s, block, c, ck_min(step, end - c));
    staged_rows(&s, block, target);
  }
}

/* ------------------------------------------------------- planes: a vector of channels goes through
 * all blocks before the next, so that no row is staged twice */

/* The 3x3 kernels, on staged rows; rows of padding are there. */
static void staged_3x3(struct stage *s, const struct ck_block *block,
                       const struct ck_dw_target *target) {
  const struct ck_run *run = s->run;
  const struct ck_op *op = run->op;
  const int64_t stride = op->conv.window.stride_h;
  struct ck_dw_args args = {
      .rows = s->rows,
      .weights = ck_at(op->dw.data, s->channel * 9, op->kernels->element),
      .bias = ck_at(op->dw.bias, s->channel, op->kernels->element),
      .out = target->out,
      .offset_row = block->cols,
      .channel_end = s->lanes,
      .pixel_step = op->kernels->lanes,
      .in_w = s->pixels.end,
      .out_w = block->cols,
      .x0 = s->pixels.begin,
      .low = target->activation->low,
      .high = target->activation->high,
  };
  for (int64_t r = 0; r < block->rows; r += args.out_rows) {
    args.out_rows = rows_at_once(run, block->rows - r);
    args.offset = target->offset + r * block->cols;
    const int64_t first = (block->y + r) * stride - run->image.pad_top;
    stage_rows(s, first, first, 1, (args.out_rows - 1) * stride + 3, s->rows);
    ck_dw_3x3(run)(&args);
  }
}

/* A block's outputs take a third of L1. */
static struct ck_blocking plane_blocking(const struct ck_run *run) {
  const struct ck_kernels *k = run->op->kernels;
  return ck_blocking_of(run->image.batch, run->out_h, run->out_w,
                        ck_cpu_l1d_bytes() / 3 / (k->lanes * k->element));
}

ck_status ck_dw_planes_workspace(const struct ck_run *run, size_t *bytes) {
  const struct ck_kernels *k = run->op->kernels;
  const struct ck_blocking b = plane_blocking(run);
  const int64_t pixel = k->lanes * k->element + (int64_t)sizeof(int64_t);
  const ck_status status = ck_dw_scratch(run, b.cols, bytes);
  *bytes += (size_t)(b.rows * b.cols * pixel) + 3 * CK_ALIGN;
  return status;
}

/* A block of the channels that are staged, to their planes. */
static void plane_block(struct stage *s, const struct ck_block *block,
                        const struct ck_dw_target *target) {
  const struct ck_run *run = s->run;
  const struct ck_kernels *k = run->op->kernels;
  const int64_t plane = ck_out_plane(run);
  const int64_t at =
      (block->image * run->out_channels + s->channel) * plane + block->y * run->out_w + block->x;
  if (ck_dw_3x3(run))
    staged_3x3(s, block, target);
  else
    staged_rows(s, block, target);
  k->transpose(&(struct ck_transpose_args){.to = ck_at_mut(run->y, at, k->element),
                                           .from = target->out,
                                           .to_step = plane,
                                           .from_step = k->lanes,
                                           .rows = block->pixels,
                                           .columns = s->lanes});
  if (!run->residual && run->op->conv.activation.kind == CK_ACT_CLAMP) return;
  for (int64_t c = 0; c < s->lanes; ++c) ck_dw_finish(run, at + c * plane, block->pixels);
}

void ck_dw_planes_run(const struct ck_run *run, void *workspace) {
  const struct ck_op *op = run->op;
  const int64_t lanes = op->kernels->lanes;
  const struct ck_blocking b = plane_blocking(run);
  const int64_t pixels = b.rows * b.cols;
  int64_t *offset = ck_align(workspace);
  void *out = ck_align(offset + pixels);
  void *scratch = ck_at_mut(out, pixels * lanes, op->kernels->element);
  const struct ck_span channels = ck_channels(run);
  struct stage s;
  for (int64_t p = 0; p < pixels; ++p) offset[p] = p * lanes;

  struct ck_dw_target target = {
      .out = out,
      .offset = offset,
      .activation = run->residual ? &ck_identity : &op->conv.activation,
  };
  for (int64_t strip = 0; strip < b.batch * b.col_blocks; ++strip) {
    const int64_t first = strip / b.col_blocks * b.row_blocks * b.col_blocks + strip % b.col_blocks;
    stage_start(&s, run, b.cols, scratch);
    clear_ring(&s);
    for (int64_t c = channels.begin; c < channels.end; c += lanes) {
      target.channel_begin = c;
      for (int64_t row = 0; row < b.row_blocks; ++row) {
        const struct ck_block block = ck_block_at(&b, first + row * b.col_blocks);
        if (row == 0) stage_channels(&s, &block, c, ck_min(lanes, channels.end - c));
        plane_block(&s, &block, &target);
      }
    }
  }
}
