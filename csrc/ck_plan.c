/* A planned network: its steps in groups, its arrays in one arena, run in one call.
 *
 * A group of more than one step runs depth-first: a band of rows of its last array at a time, and
 * for that the rows of the arrays before it which the band's windows reach and which are not there
 * yet. Those arrays are never whole: each keeps only the rows that a later step still reads. So
 * what is larger than L2 goes by in pieces that are not, as the first layers of any network for
 * images. The expanded tensor of a MobileNetV2 block that is larger than L2 is no array at all: the
 * step that makes it runs inside the next, see ck_inverted.c.
 *
 * What to group is chosen by the bytes that move between L2 and what is behind it. Where arrays lie
 * follows from when they are made and last read: the larger are placed first, each at the lowest
 * place that no array in use at the same time takes (Pisarchyk and Lee, "Efficient Memory
 * Management for Deep Neural Net Inference", arXiv 2001.03288, 2020, the greedy of section 5.2).
 *
 * Where the caller has planes and the steps take pixels there are two steps more, which turn the
 * input and the output. They are in groups like all others: bands of rows are turned, in L2.
 *
 * Threads share the rows of a group's last array: each goes through bands of its own, and makes
 * again what its first bands share with its neighbour's. Elsewhere they share each step, see
 * ck_split.c.
 */
#include <stdlib.h>

#include "ck_impl.h"

enum {
  MOST_STEPS = 24,  /* of a group */
  LEAST_ROWS = 4,   /* of a thread's part of a group */
  NEARER = 3,       /* times as fast is L2 as what is behind it, of which a part is hidden */
  CALL_BYTES = 4096 /* from behind it are moved in the time that a call of a driver takes */
};

/* No array is larger, so that sums of their sizes need no checks. */
#define MOST_BYTES (INT64_MAX >> 20)

struct array {
  int64_t bytes;       /* of all of it */
  int64_t row_bytes;   /* of one image; of what a convolution makes in NHWC */
  int64_t first, last; /* the groups that make it, or are the first to need it, and last read it */
  int64_t rows;        /* that are kept; 0: all */
  int64_t at, size;    /* its place in the arena */
};

struct step {
  ck_step said;
  struct ck_run run;
  ck_deform deform;
  int64_t index;   /* among those that the caller said; -1 or their number: a turn */
  int64_t weights; /* bytes */
  bool by_rows;    /* may be one of several in a group */
};

struct group {
  int64_t first, end; /* steps */
  int64_t band;       /* rows of the last one's output */
  int64_t slice;      /* bytes of a thread's workspace */
};

static bool is_banded(const struct group *g) { return g->end - g->first > 1; }
static bool is_turn(const struct step *s) { return s->said.op && s->said.op->kind == CK_OP_TURN; }

struct ck_plan {
  int64_t said; /* steps, of which some are made inside others */
  int64_t steps, groups;
  int threads;                     /* at most so many */
  int64_t least_work;              /* that the workspace was found for */
  int64_t arena, zeros, workspace; /* bytes */
  ck_op *turn[2];                  /* of the input, and of the output */
  struct step *step;
  struct array *array; /* 0 is the input, i + 1 what step i makes */
  struct group *group;
};

/* ---------------------------------------------------------------------- what the steps are */

static int64_t gemm_bytes(const ck_op *op, int64_t group, bool parts) {
  const struct ck_gemm_weights *w = &op->gemm[group];
  const struct ck_kernels *k = op->kernels;
  const int64_t column = parts && w->parts ? ck_parts_bytes(k, w->terms) : w->terms * k->element;
  return column * ck_panels_width(k, w);
}

static int64_t weight_bytes(const struct ck_run *run) {
  const ck_op *op = run->op;
  const ck_window *w = &op->conv.window;
  const int element = op->kernels->element;
  const bool spatial = op->kind == CK_OP_SPATIAL;
  const int64_t taps = spatial ? w->kernel_h + w->kernel_w : w->kernel_h * w->kernel_w;
  int64_t bytes = op->dw.channels * (op->gemms ? 1 : run->group_in) * taps * element;
  for (int64_t g = 0; g < op->gemms; ++g) bytes += gemm_bytes(op, g, run->parts);
  return bytes;
}

/* Arrays that a step reads; -1 for none. */
enum { MOST_READ = 4 };

static void arrays_read(const ck_step *s, int64_t read[MOST_READ]) {
  read[0] = s->x;
  read[1] = s->residual;
  read[2] = s->offset;
  read[3] = s->mask;
}

/* Whether array `read`, if there is one, has so many bytes. */
static bool has_bytes(const struct ck_plan *p, int64_t read, int64_t bytes) {
  return read < 0 || p->array[read].bytes == bytes;
}

static ck_status see_conv(const struct ck_plan *p, struct step *s, struct array *out) {
  const ck_op *op = s->said.op;
  s->run = (struct ck_run){.op = op, .image = s->said.image};
  if (s->said.offset >= 0) {
    s->deform = (ck_deform){.groups = s->said.offset_groups};
    s->run.deform = &s->deform;
  }
  const ck_status status = ck_check_run(&s->run);
  if (status != CK_OK) return status;
  struct ck_run *r = &s->run;
  if (is_turn(s)) r->plane = r->out_h * r->out_w;
  out->row_bytes = r->out_w * r->out_channels * op->kernels->element;
  out->bytes = r->image.batch * r->out_h * out->row_bytes;
  s->weights = weight_bytes(r);
  s->by_rows = is_turn(s) || (op->conv.layout == CK_NHWC && op->kind != CK_OP_DEFORM);
  if (!has_bytes(p, s->said.residual, out->bytes)) return CK_E_SHAPE;
  if (!r->deform) return s->said.mask < 0 ? CK_OK : CK_E_SHAPE;
  const int64_t taps = op->conv.window.kernel_h * op->conv.window.kernel_w * s->deform.groups;
  const int64_t mask = taps * (out->bytes / r->out_channels);
  return has_bytes(p, s->said.offset, 2 * mask) && has_bytes(p, s->said.mask, mask) ? CK_OK
                                                                                    : CK_E_SHAPE;
}

static ck_status see_pool(struct step *s, struct array *out) {
  const ck_image *i = &s->said.image;
  const int element = s->said.pool.dtype == CK_F32 ? 4 : 8;
  int64_t out_h, out_w;
  const ck_status status = ck_pool_output_size(&s->said.pool, i, &out_h, &out_w);
  if (status != CK_OK) return status;
  if (s->said.residual >= 0 || s->said.offset >= 0 || s->said.mask >= 0) return CK_E_SHAPE;
  if (!ck_array_fits(i->batch, out_h, out_w, i->channels, element)) return CK_E_OVERFLOW;
  out->bytes = i->batch * out_h * out_w * i->channels * element;
  s->run =
      (struct ck_run){.image = *i, .out_h = out_h, .out_w = out_w, .out_channels = i->channels};
  return CK_OK;
}

/* Arrays that were made before, of the sizes that the step wants. */
static ck_status see_step(struct ck_plan *p, int64_t i) {
  struct step *s = &p->step[i];
  const ck_image *image = &s->said.image;
  int64_t read[MOST_READ];
  arrays_read(&s->said, read);
  for (int r = 0; r < MOST_READ; ++r)
    if (read[r] > i || read[r] < (r ? -1 : 0)) return CK_E_SHAPE;
  const ck_dtype dtype = s->said.op ? s->said.op->conv.dtype : s->said.pool.dtype;
  if ((unsigned)dtype >= CK_DTYPE_COUNT || image->batch < 1) return CK_E_SHAPE;
  const int element = dtype == CK_F32 ? 4 : 8;
  if (!ck_array_fits(image->batch, image->height, image->width, image->channels, element))
    return CK_E_OVERFLOW;
  const int64_t bytes = image->batch * image->height * image->width * image->channels * element;
  if (bytes > MOST_BYTES) return CK_E_NOMEM;
  if (i == 0) p->array[0].bytes = bytes;
  if (p->array[s->said.x].bytes != bytes) return CK_E_SHAPE;
  const ck_status status =
      s->said.op ? see_conv(p, s, &p->array[i + 1]) : see_pool(s, &p->array[i + 1]);
  return status == CK_OK && p->array[i + 1].bytes > MOST_BYTES ? CK_E_NOMEM : status;
}

/* ------------------------------------------- steps that are made inside others */

/* Who reads an array; -1 where it is not one step alone. */
static int64_t only_reader(const struct ck_plan *p, int64_t array) {
  int64_t reader = -1;
  for (int64_t i = array; i < p->steps; ++i) {
    int64_t read[MOST_READ];
    arrays_read(&p->step[i].said, read);
    for (int r = 0; r < MOST_READ; ++r) {
      if (read[r] != array) continue;
      if (reader >= 0) return -1;
      reader = i;
    }
  }
  return reader;
}

/* Whether step i is better made inside the next: what it makes is only read there, and is more than
 * L2 holds. Smaller arrays are as fast as they are, and fuller tiles. */
static bool goes_inside(const struct ck_plan *p, int64_t i) {
  const struct step *s = &p->step[i], *next = s + 1;
  const struct array *made = &p->array[i + 1];
  return i + 1 < p->steps && s->said.op && next->said.op && s->said.residual < 0 &&
         next->said.x == i + 1 && only_reader(p, i + 1) == i + 1 &&
         made->bytes / s->run.image.batch > ck_cpu_l2_bytes() && ck_may_expand(&next->run, &s->run);
}

/* Make step i inside the next: neither it nor its array are any more. */
static void put_inside(struct ck_plan *p, int64_t i) {
  struct step *next = &p->step[i + 1];
  next->run.expand = p->step[i].said.op;
  next->weights += p->step[i].weights;
  next->said.x = p->step[i].said.x;
  --p->steps;
  memmove(&p->step[i], next, (size_t)(p->steps - i) * sizeof *p->step);
  memmove(&p->array[i + 1], &p->array[i + 2], (size_t)(p->steps - i) * sizeof *p->array);
  for (struct step *s = &p->step[i]; s < p->step + p->steps; ++s) {
    int64_t *read[MOST_READ] = {&s->said.x, &s->said.residual, &s->said.offset, &s->said.mask};
    for (int r = 0; r < MOST_READ; ++r) *read[r] -= *read[r] > i;
  }
}

/* ------------------------------------------------------- arrays with room between pixels */

/* A depthwise 3x3 goes along pixels with one vector of channels. Where pixels lie a multiple of so
 * many bytes apart they share few sets of L1, and what comes near of the next vector meanwhile is
 * evicted before it is read (a Xeon, 128 to 512 channels: 1.2 to 1.7 times as long as with a line
 * of room between pixels; MobileNetV1 1.01 times as fast with it). */
enum { CONFLICT_BYTES = 512 };

static bool is_separable(const struct step *s) {
  return s->said.op && s->said.op->kind == CK_OP_SEPARABLE && s->said.op->conv.layout == CK_NHWC &&
         s->said.residual < 0;
}

/* Leave room between the pixels that step i makes, if a depthwise 3x3 is all that reads them. */
static void part_pixels(struct ck_plan *p, int64_t i) {
  struct step *s = &p->step[i], *reader;
  struct array *made = &p->array[i + 1];
  const int64_t at = only_reader(p, i + 1);
  if (at < 0 || !is_separable(s)) return;
  reader = &p->step[at];
  if (!is_separable(reader) || reader->run.expand || !ck_dw_3x3(&reader->run)) return;
  const struct ck_kernels *k = s->said.op->kernels;
  if (s->run.out_channels * k->element % CONFLICT_BYTES) return;
  s->run.y_step = reader->run.x_step = s->run.out_channels + CK_ALIGN / k->element;
  made->row_bytes = s->run.out_w * s->run.y_step * k->element;
  made->bytes = s->run.image.batch * s->run.out_h * made->row_bytes;
}

/* ------------------------------------------------------------------- bands of a group */

/* Nothing has been made yet; rows of padding, before those of the image, may be. */
static const struct ck_span NOTHING = {INT64_MIN / 4, INT64_MIN / 4};

/* Step i of a group reads rows of the arrays of steps before it, to make `rows` of its own: at
 * least from the first of them on, also where it makes none now. */
static void add_needs(const struct ck_plan *p, const struct group *g, int64_t i,
                      struct ck_span rows, bool all_image, struct ck_span *need) {
  const struct step *s = &p->step[g->first + i];
  const bool none = rows.begin == rows.end;
  if (!all_image && rows.begin >= s->run.out_h) return;
  if (none) ++rows.end;
  const int64_t read[] = {s->said.x, s->said.residual};
  const struct ck_span all[] = {
      all_image ? ck_rows_read(&s->run, rows) : ck_rows_of_image(&s->run, rows), rows};
  for (int r = 0; r < 2; ++r) {
    const int64_t from = read[r] - 1 - g->first; /* the step of the group that made it */
    if (from < 0) continue;
    need[from].begin = ck_min(need[from].begin, all[r].begin);
    if (!none) need[from].end = ck_max(need[from].end, all[r].end);
  }
}

/* The rows of each of a group's steps that are to be made for a band of the last, and those that
 * are kept then, from the first that a later step still reads for the rows that it makes itself:
 * what it made before, it does not need again. A step's image ends where its padding begins, unless
 * all is taken to be image. */
static void next_rows(const struct ck_plan *p, const struct group *g, struct ck_span band,
                      bool all_image, struct ck_span *make, struct ck_span *kept) {
  const int64_t count = g->end - g->first;
  struct ck_span need[MOST_STEPS];
  for (int64_t i = 0; i < count; ++i) need[i] = (struct ck_span){INT64_MAX, INT64_MIN};
  need[count - 1] = band;
  for (int64_t i = count - 1; i >= 0; --i) {
    const int64_t made = kept[i].end;
    if (need[i].begin == INT64_MAX) need[i].begin = made;
    const int64_t begin = ck_max(made, need[i].begin);
    make[i] = (struct ck_span){begin, ck_max(begin, need[i].end)};
    if (begin < make[i].end) kept[i] = (struct ck_span){ck_min(need[i].begin, begin), make[i].end};
    add_needs(p, g, i, make[i], all_image, need);
  }
}

/* How many threads go through bands of a group of their own; 1: they share each step of a band. */
static int64_t parts_of(const struct ck_plan *p, const struct group *g) {
  return ck_max(1, ck_min(p->threads, p->step[g->end - 1].run.out_h / LEAST_ROWS));
}

static struct ck_span rows_of_part(const struct ck_plan *p, const struct group *g, int64_t part) {
  return ck_deal_out(p->step[g->end - 1].run.out_h, parts_of(p, g), part);
}

/* How many rows a group keeps of each step's array, in the band of any part that keeps the most:
 * mostly the first, whose rows share none with a band before. */
static void rows_kept(const struct ck_plan *p, const struct group *g, int64_t *rows) {
  const int64_t count = g->end - g->first;
  for (int64_t i = 0; i < count; ++i) rows[i] = 1;
  for (int64_t n = 0; n < parts_of(p, g); ++n) {
    const struct ck_span part = rows_of_part(p, g, n);
    struct ck_span make[MOST_STEPS], kept[MOST_STEPS] = {{0, 0}};
    for (int64_t y = part.begin; y < part.end; y += g->band) {
      next_rows(p, g, (struct ck_span){y, ck_min(y + g->band, part.end)}, false, make, kept);
      for (int64_t i = 0; i < count; ++i) rows[i] = ck_max(rows[i], kept[i].end - kept[i].begin);
    }
  }
}

/* ------------------------------------------------------------------- which steps to group */

static int64_t input_row_bytes(const struct ck_run *run) {
  return run->image.width * ck_x_step(run) * run->op->kernels->element;
}

/* Steps first .. end - 1 are a chain, and what is between them is read by nobody else. */
static bool is_chain(const struct ck_plan *p, int64_t first, int64_t end) {
  if (end - first == 1) return true;
  if (end - first > MOST_STEPS) return false;
  for (int64_t i = first; i < end; ++i)
    if (!p->step[i].by_rows || (i > first && p->step[i].said.x != i)) return false;
  for (int64_t i = end; i < p->steps; ++i) {
    int64_t read[MOST_READ];
    arrays_read(&p->step[i].said, read);
    for (int r = 0; r < MOST_READ; ++r)
      if (read[r] > first && read[r] < end) return false;
  }
  return true;
}

/* The bytes that a band of a group has in use. */
static int64_t band_bytes(const struct ck_plan *p, const struct group *g) {
  const int64_t count = g->end - g->first;
  const struct step *first = &p->step[g->first], *last = &p->step[g->end - 1];
  struct ck_span make[MOST_STEPS], kept[MOST_STEPS];
  int64_t bytes = 0;
  for (int64_t i = 0; i < count; ++i) kept[i] = NOTHING;
  for (int64_t y = 0; y < 2; ++y) /* the second is as all that follow */
    next_rows(p, g, (struct ck_span){y * g->band, (y + 1) * g->band}, true, make, kept);
  for (int64_t i = 0; i < count; ++i) {
    const struct step *s = &p->step[g->first + i];
    const int64_t rows = ck_min(kept[i].end - kept[i].begin, s->run.out_h);
    bytes += rows * p->array[g->first + i + 1].row_bytes + s->weights;
  }
  const int64_t in = p->array[first->said.x].bytes / first->run.image.batch;
  return bytes + in / (ck_max(1, last->run.out_h / g->band));
}

/* What a step reads again of its array for each band, or moves. What it stages costs as much again
 * as a copy. */
static int64_t again_bytes(const struct step *s) {
  const ck_window *w = &s->run.op->conv.window;
  const int64_t shared = ck_max(0, ck_rows_under(&s->run, 1) - w->stride_h);
  const int64_t bytes = shared * input_row_bytes(&s->run) * (ck_dw_3x3(&s->run) ? 1 : 2);
  /* expanding a vector takes as many half cycles as it has terms, L2 moves 32 bytes a cycle */
  return s->run.expand ? bytes + bytes * s->run.image.channels / 4 : bytes;
}

static int64_t room(void) { return ck_cpu_l2_bytes() * 3 / 4; }

/* A last band of less than half the rows of the others takes more than its share: where somewhat
 * smaller bands come out even, they are better (MobileNetV1 in parts, 28 rows by 3 or 2: 1.02). */
static int64_t even_band(int64_t rows, int64_t band) {
  if (2 * (rows % band) >= band) return band;
  for (int64_t smaller = band; 3 * smaller >= 2 * band; --smaller)
    if (rows % smaller == 0) return smaller;
  return band;
}

/* The cost of a group, in bytes from behind L2; its band is chosen on the way. Less than 0: it does
 * not fit. What is turned is the caller's, and not thought to be in L2 even if it is small. */
static int64_t cost_of(const struct ck_plan *p, struct group *g) {
  const struct step *first = &p->step[g->first], *last = &p->step[g->end - 1];
  const int64_t in = p->array[first->said.x].bytes, out = p->array[g->end].bytes;
  int64_t bytes = in + out, weights = 0;
  for (int64_t i = g->first; i < g->end; ++i) weights += p->step[i].weights;
  g->band = last->run.out_h;
  if (!is_banded(g))
    return (bytes + weights <= room() && !is_turn(first) ? bytes / NEARER : bytes) + CALL_BYTES;
  if (weights > room()) return -1;
  while (band_bytes(p, g) > room()) {
    if (g->band == 1) return -1;
    const int64_t more = ck_ceil_div(last->run.out_h, g->band) + 1;
    g->band = ck_min(g->band - 1, ck_ceil_div(last->run.out_h, more));
  }
  g->band = even_band(last->run.out_h, g->band);
  const int64_t bands = ck_ceil_div(last->run.out_h, g->band);
  int64_t inside = 0; /* goes to L2 and back */
  for (int64_t i = g->first + 1; i < g->end; ++i)
    inside += 2 * p->array[i].bytes + bands * again_bytes(&p->step[i]);
  return bytes + (inside + bands * weights) / NEARER + bands * (g->end - g->first) * CALL_BYTES;
}

/* The cheapest way to cut the steps into groups: best[j] is that of the first j steps. */
static ck_status group_steps(struct ck_plan *p) {
  struct way {
    int64_t cost;
    struct group last;
  } *best = calloc((size_t)p->steps + 1, sizeof *best);
  if (!best) return CK_E_NOMEM;
  for (int64_t j = 1; j <= p->steps; ++j) {
    best[j].cost = INT64_MAX;
    for (int64_t i = j - 1; i >= ck_max(0, j - MOST_STEPS) && is_chain(p, i, j); --i) {
      struct group g = {.first = i, .end = j};
      const int64_t cost = cost_of(p, &g);
      if (cost >= 0 && best[i].cost + cost < best[j].cost)
        best[j] = (struct way){best[i].cost + cost, g};
    }
  }
  for (int64_t j = p->steps; j > 0; j = best[j].last.first) ++p->groups;
  int64_t at = p->groups;
  for (int64_t j = p->steps; j > 0; j = best[j].last.first) p->group[--at] = best[j].last;
  free(best);
  return CK_OK;
}

/* -------------------------------------------------------------------------- where arrays lie */

static void find_lives(struct ck_plan *p) {
  for (int64_t n = 0; n < p->groups; ++n) {
    const struct group *g = &p->group[n];
    int64_t rows[MOST_STEPS];
    const bool chain = is_banded(g);
    if (chain) rows_kept(p, g, rows);
    for (int64_t i = g->first; i < g->end; ++i) {
      struct array *made = &p->array[i + 1];
      int64_t read[MOST_READ];
      arrays_read(&p->step[i].said, read);
      for (int r = 0; r < MOST_READ; ++r)
        if (read[r] >= 0) p->array[read[r]].last = n;
      made->first = made->last = n;
      made->rows = chain && i + 1 < g->end ? rows[i - g->first] : 0;
      made->size = ck_round_up(made->rows ? made->rows * made->row_bytes : made->bytes, CK_ALIGN);
      if (made->rows) made->size *= parts_of(p, g); /* one after the other */
    }
  }
  p->array[0].size = p->array[p->steps].size = 0; /* the caller's */
}

static bool in_the_way(const struct array *a, const struct array *b, int64_t at) {
  return a != b && a->at >= 0 && a->size && a->first <= b->last && b->first <= a->last &&
         a->at < at + b->size && at < a->at + a->size;
}

/* The lowest place for an array beside those that have one. */
static int64_t lowest_place(const struct ck_plan *p, const struct array *a) {
  int64_t at = 0;
  for (int64_t i = 1; i < p->steps; ++i)
    if (in_the_way(&p->array[i], a, at)) {
      at = p->array[i].at + p->array[i].size;
      i = 0; /* begin again */
    }
  return at;
}

static ck_status place_arrays(struct ck_plan *p) {
  find_lives(p);
  for (int64_t i = 0; i <= p->steps; ++i) p->array[i].at = -1;
  for (int64_t left = p->steps - 1; left > 0; --left) {
    struct array *largest = NULL;
    for (int64_t i = 1; i < p->steps; ++i)
      if (p->array[i].at < 0 && (!largest || p->array[i].size > largest->size))
        largest = &p->array[i];
    largest->at = lowest_place(p, largest);
    int64_t end;
    if (!ck_add(largest->at, largest->size, &end)) return CK_E_OVERFLOW;
    p->arena = ck_max(p->arena, end);
  }
  return CK_OK;
}

/* ------------------------------------------------------------------------- one step of a band */

/* A step on one image, for some rows of what it makes; gives the row that it reads from, or the
 * image's height where there is none. */
static int64_t see_part(const struct step *s, struct ck_span rows, struct ck_run *part) {
  *part = s->run;
  part->image.batch = 1;
  return ck_see_rows(&s->run, rows.begin, rows.end - rows.begin, part);
}

/* The workspace of a step, or a part of it, on so many threads. */
static ck_status run_bytes(const struct ck_run *run, int threads, size_t *bytes) {
  struct ck_split split;
  const ck_status status = ck_split_of(run, threads, &split);
  *bytes = split.bytes;
  return status;
}

/* The largest workspace of any step, in all the bands of a thread's part. */
static ck_status part_workspace(struct ck_plan *p, const struct group *g, struct ck_span rows,
                                size_t *most) {
  const int64_t count = g->end - g->first;
  const int threads = parts_of(p, g) > 1 ? 1 : p->threads;
  struct ck_span make[MOST_STEPS], kept[MOST_STEPS] = {{0, 0}};
  for (int64_t y = rows.begin; y < rows.end; y += g->band) {
    next_rows(p, g, (struct ck_span){y, ck_min(y + g->band, rows.end)}, false, make, kept);
    for (int64_t i = 0; i < count; ++i) {
      const struct ck_span some = make[i];
      struct ck_run part;
      size_t bytes;
      if (some.begin == some.end) continue;
      const struct step *s = &p->step[g->first + i];
      if (see_part(s, some, &part) == s->run.image.height)
        p->zeros = ck_max(p->zeros, ck_round_up(input_row_bytes(&part), CK_ALIGN));
      const ck_status status = run_bytes(&part, threads, &bytes);
      if (status != CK_OK) return status;
      if (bytes > *most) *most = bytes;
    }
  }
  return CK_OK;
}

static ck_status chain_workspace(struct ck_plan *p, struct group *g, size_t *bytes) {
  const int64_t parts = parts_of(p, g);
  size_t most = 0;
  int64_t all;
  for (int64_t n = 0; n < parts; ++n) {
    const ck_status status = part_workspace(p, g, rows_of_part(p, g, n), &most);
    if (status != CK_OK) return status;
  }
  if (most > PTRDIFF_MAX - CK_ALIGN) return CK_E_OVERFLOW;
  g->slice = ck_round_up((int64_t)most, CK_ALIGN);
  if (!ck_mul(g->slice, parts, &all)) return CK_E_OVERFLOW;
  *bytes = (size_t)all;
  return CK_OK;
}

static ck_status find_workspace(struct ck_plan *p) {
  size_t most = 0, bytes = 0;
  int64_t zeros;
  for (int64_t n = 0; n < p->groups; ++n) {
    struct group *g = &p->group[n];
    const struct step *s = &p->step[g->first];
    const ck_status status =
        is_banded(g) ? chain_workspace(p, g, &bytes)
        : s->said.op ? run_bytes(&s->run, p->threads, &bytes)
                     : ck_pool_workspace_size(&s->said.pool, &s->said.image, p->threads, &bytes);
    if (status != CK_OK) return status;
    if (bytes > most) most = bytes;
  }
  if (most > PTRDIFF_MAX || !ck_mul(p->zeros, p->threads, &zeros) ||
      !ck_add(p->arena, zeros, &p->workspace) ||
      !ck_add(p->workspace, (int64_t)most, &p->workspace) ||
      !ck_add(p->workspace, 3 * CK_ALIGN, &p->workspace))
    return CK_E_OVERFLOW;
  return CK_OK;
}

/* -------------------------------------------------- weights that are brought near long before */

/* The weights of a dense layer are each used once or a few times, faster than memory behind L3
 * gives them. Steps before it, which compute longer than they read, bring them near meanwhile
 * (measured, 5 MB after a network of 4 ms: 0.14 to 0.15 ms instead of 0.17 to 0.18). */
static bool waits_for_weights(const struct ck_run *run) {
  const ck_op *op = run->op;
  return op && op->gemms == 1 && op->gemm->layout == CK_NHWC &&
         run->image.batch * run->out_h * run->out_w <= op->kernels->gemm_rows;
}

/* Each brings as many bytes as its own weights take, for which memory leaves time. */
static void bring_near(struct ck_plan *p, int64_t group, struct ck_ahead weights) {
  while (group-- > 0 && weights.at < weights.end) {
    struct step *s = &p->step[p->group[group].first];
    const ck_op *op = s->said.op;
    if (is_banded(&p->group[group]) || !op || op->gemms != 1 || waits_for_weights(&s->run) ||
        s->run.later.at)
      continue;
    s->run.later.end = weights.end;
    weights.end -= ck_min(s->weights, weights.end - weights.at);
    s->run.later.at = weights.end;
  }
}

static void look_further(struct ck_plan *p) {
  for (int64_t n = 0; n < p->groups; ++n) {
    const struct step *s = &p->step[p->group[n].first];
    if (is_banded(&p->group[n]) || !waits_for_weights(&s->run)) continue;
    const char *weights = s->said.op->gemm->data;
    bring_near(p, n, (struct ck_ahead){weights, weights + gemm_bytes(s->said.op, 0, false)});
  }
}

/* ------------------------------------------------------------------------------- the program */

/* One call of the program. */
struct call {
  const struct ck_plan *plan;
  const char *x;
  char *y, *arena, *zeros, *workspace;
  int threads;                     /* that share a step */
  int64_t part;                    /* of a group's rows */
  int64_t image;                   /* of the batch, which goes through a group one by one */
  struct ck_span kept[MOST_STEPS]; /* rows that are there of the arrays of a group's steps */
};

static char *data_of(const struct call *c, int64_t array) {
  if (array < 0) return NULL;
  if (array == 0) return (char *)c->x; /* which nobody writes to */
  if (array == c->plan->steps) return c->y;
  const struct array *a = &c->plan->array[array];
  return c->arena + a->at + c->part * ck_round_up(a->rows * a->row_bytes, CK_ALIGN);
}

/* Row y of the image, for a reader that sees images of so many rows of so many bytes; of the first
 * of so many planes. */
static char *row_of(const struct call *c, const struct group *g, int64_t array, int64_t y,
                    int64_t height, int64_t row_bytes, int64_t planes) {
  const bool some = c->plan->array[array].rows > 0;
  if (some) return data_of(c, array) + (y - c->kept[array - 1 - g->first].begin) * row_bytes;
  return data_of(c, array) + c->image * height * row_bytes + y * row_bytes / planes;
}

/* How many planes the array has that a step reads, if it turns to pixels, or makes, if to planes.
 */
static int64_t planes_of(const struct step *s, ck_layout to) {
  return is_turn(s) && s->said.op->conv.layout == to ? s->run.out_channels : 1;
}

static void run_parts(const struct call *c, const struct ck_run *run) {
  struct ck_split split;
  if (c->threads == 1) { /* a band has many short runs */
    ck_run_op(run, c->workspace);
    return;
  }
  ck_split_of(run, c->threads, &split);
  ck_split_run(&split, c->workspace);
}

/* Step i of a group makes rows of its array, behind those that are kept of it. */
static void make_rows(struct call *c, const struct group *g, int64_t i, struct ck_span rows,
                      struct ck_span keep) {
  const int64_t array = g->first + i + 1;
  const struct step *s = &c->plan->step[g->first + i];
  const int64_t out_row = c->plan->array[array].row_bytes, out_h = s->run.out_h;
  const struct ck_span before = c->kept[i];
  if (rows.begin == rows.end) return;
  c->kept[i] = keep;
  if (c->plan->array[array].rows && keep.begin > before.begin && keep.begin < before.end)
    memmove(data_of(c, array), data_of(c, array) + (keep.begin - before.begin) * out_row,
            (size_t)((before.end - keep.begin) * out_row));
  struct ck_run part;
  const int64_t from = see_part(s, rows, &part), in_row = input_row_bytes(&part);
  if (from < s->run.image.height) {
    part.x = row_of(c, g, s->said.x, from, s->run.image.height, in_row, planes_of(s, CK_NHWC));
  } else {
    part.x = memset(c->zeros, 0, (size_t)in_row);
  }
  if (s->said.residual >= 0)
    part.residual = row_of(c, g, s->said.residual, rows.begin, out_h, out_row, 1);
  part.y = row_of(c, g, array, rows.begin, out_h, out_row, planes_of(s, CK_NCHW));
  run_parts(c, &part);
}

/* A group, of what the call has given. */
struct chain {
  const struct call *call;
  const struct group *group;
};

static void run_part(void *context, int64_t index, int thread) {
  const struct chain *chain = context;
  const struct group *g = chain->group;
  struct call c = *chain->call;
  const struct ck_span rows = rows_of_part(c.plan, g, index);
  struct ck_span make[MOST_STEPS], kept[MOST_STEPS];
  (void)thread;
  c.part = index;
  c.zeros += index * c.plan->zeros;
  c.workspace += index * g->slice;
  if (parts_of(c.plan, g) > 1) c.threads = 1;
  for (c.image = 0; c.image < c.plan->step[g->first].run.image.batch; ++c.image) {
    memset(c.kept, 0, sizeof c.kept);
    for (int64_t y = rows.begin; y < rows.end; y += g->band) {
      memcpy(kept, c.kept, sizeof kept);
      next_rows(c.plan, g, (struct ck_span){y, ck_min(y + g->band, rows.end)}, false, make, kept);
      for (int64_t i = 0; i < g->end - g->first; ++i) make_rows(&c, g, i, make[i], kept[i]);
    }
  }
}

static void run_chain(const struct call *c, const struct group *g) {
  struct chain chain = {c, g};
  const int64_t parts = parts_of(c->plan, g);
  if (parts > 1)
    ck_parallel((int)parts, parts, run_part, &chain);
  else
    run_part(&chain, 0, 0);
}

static ck_status run_step(const struct call *c, int64_t i) {
  const struct step *s = &c->plan->step[i];
  const ck_step *said = &s->said;
  if (!said->op)
    return ck_pool_run(&said->pool, &said->image, data_of(c, said->x), data_of(c, i + 1),
                       c->plan->threads, c->workspace, (size_t)c->plan->workspace);
  struct ck_run run = s->run;
  const ck_deform deform = {data_of(c, said->offset), data_of(c, said->mask), s->deform.groups};
  if (run.deform) run.deform = &deform;
  run.x = data_of(c, said->x);
  run.residual = data_of(c, said->residual);
  run.y = data_of(c, i + 1);
  run_parts(c, &run);
  return CK_OK;
}

ck_status ck_plan_run(const ck_plan *p, const void *x, void *y, void *workspace, size_t bytes) {
  if (!p || !x || !y) return CK_E_NULL;
  if (!workspace || bytes < (size_t)p->workspace || ck_least_work() != p->least_work)
    return CK_E_WORKSPACE;
  struct call c = {.plan = p, .x = x, .y = y, .arena = ck_align(workspace)};
  c.zeros = ck_align(c.arena + p->arena);
  c.workspace = c.zeros + p->zeros * p->threads;
  c.threads = p->threads;
  ck_status status = CK_OK;
  const uint64_t saved = ck_fp_enter();
  for (int64_t n = 0; n < p->groups && status == CK_OK; ++n) {
    const struct group *g = &p->group[n];
    if (is_banded(g))
      run_chain(&c, g);
    else
      status = run_step(&c, g->first);
  }
  ck_fp_leave(saved);
  return status;
}

/* ---------------------------------------------------------------------------- create, destroy */

/* Room for the steps, and for two turns. */
static ck_status allocate(int64_t count, struct ck_plan *p) {
  if ((uint64_t)count > SIZE_MAX / 4 / sizeof(struct step)) return CK_E_OVERFLOW;
  p->said = count;
  p->step = calloc((size_t)count + 2, sizeof *p->step);
  p->array = calloc((size_t)count + 3, sizeof *p->array);
  p->group = calloc((size_t)count + 2, sizeof *p->group);
  return p->step && p->array && p->group ? CK_OK : CK_E_NOMEM;
}

static ck_status add_step(struct ck_plan *p, const ck_step *said, int64_t index) {
  p->step[p->steps] = (struct step){.said = *said, .index = index};
  return see_step(p, p->steps++);
}

/* Turn the array that was made last, unless it is the same in both layouts. */
static ck_status add_turn(struct ck_plan *p, const ck_step *like, ck_layout to,
                          const ck_image *image, int64_t index) {
  const ck_isa isa = like->op ? like->op->conv.isa : like->pool.isa;
  const ck_dtype dtype = like->op ? like->op->conv.dtype : like->pool.dtype;
  ck_op **turn = &p->turn[to == CK_NCHW];
  if (image->channels == 1 || (image->height == 1 && image->width == 1)) return CK_OK;
  const ck_status status = ck_turn_create(isa, dtype, to, image->channels, turn);
  if (status != CK_OK) return status;
  const ck_step said = {
      .op = *turn,
      .image = {image->batch, image->height, image->width, image->channels, 0, 0, 0, 0},
      .x = p->steps,
      .residual = -1,
      .offset = -1,
      .mask = -1};
  return add_step(p, &said, index);
}

/* The steps that the caller said, and the turns around them. */
static ck_status add_steps(struct ck_plan *p, const ck_step *steps, bool turn) {
  ck_status status = turn ? add_turn(p, steps, CK_NHWC, &steps->image, -1) : CK_OK;
  const int64_t before = p->steps; /* all arrays have a number more where the input is turned */
  for (int64_t i = 0; i < p->said && status == CK_OK; ++i) {
    ck_step said = steps[i];
    int64_t *read[MOST_READ] = {&said.x, &said.residual, &said.offset, &said.mask};
    for (int r = 0; r < MOST_READ; ++r)
      if (*read[r] >= 0) *read[r] = ck_min(*read[r], p->said) + before;
    status = add_step(p, &said, i);
  }
  if (status != CK_OK || !turn) return status;
  const struct ck_run *r = &p->step[p->steps - 1].run;
  const ck_image out = {r->image.batch, r->out_h, r->out_w, r->out_channels, 0, 0, 0, 0};
  return add_turn(p, steps, CK_NCHW, &out, p->said);
}

ck_status ck_plan_create(const ck_step *steps, int64_t count, int turn, int threads,
                         ck_plan **out) {
  if (out) *out = NULL;
  if (!steps || !out) return CK_E_NULL;
  if (count < 1) return CK_E_SHAPE;
  ck_plan *p = calloc(1, sizeof *p);
  if (!p) return CK_E_NOMEM;
  p->threads = (int)ck_max(1, ck_min(threads, CK_MAX_THREADS));
  p->least_work = ck_least_work();
  ck_status status = allocate(count, p);
  if (status == CK_OK) status = add_steps(p, steps, turn);
  for (int64_t i = 0; i < p->steps && status == CK_OK; ++i)
    if (goes_inside(p, i)) put_inside(p, i);
  for (int64_t i = 0; i + 1 < p->steps; ++i) p->step[i].run.next = p->step[i + 1].said.op;
  for (int64_t i = 0; i + 1 < p->steps && status == CK_OK; ++i) part_pixels(p, i);
  if (status == CK_OK) status = group_steps(p);
  if (status == CK_OK) status = place_arrays(p);
  if (status == CK_OK) status = find_workspace(p);
  if (status == CK_OK) look_further(p);
  if (status == CK_OK)
    *out = p;
  else
    ck_plan_destroy(p);
  return status;
}

void ck_plan_destroy(ck_plan *p) {
  if (!p) return;
  ck_op_destroy(p->turn[0]);
  ck_op_destroy(p->turn[1]);
  free(p->step);
  free(p->array);
  free(p->group);
  free(p);
}

size_t ck_plan_workspace_size(const ck_plan *p) { return (size_t)p->workspace; }

size_t ck_plan_arena_size(const ck_plan *p) { return (size_t)p->arena; }

ck_status ck_plan_place(const ck_plan *p, int64_t step, ck_place *place) {
  if (!p || !place) return CK_E_NULL;
  if (step < 0 || step >= p->said) return CK_E_SHAPE;
  int64_t i = 0, n = 0;
  while (p->step[i].index < step) ++i;
  while (p->group[n].end <= i) ++n;
  const struct array *a = &p->array[i + 1];
  *place = (ck_place){.group = n,
                      .band = is_banded(&p->group[n]) ? p->group[n].band : 0,
                      .inside = p->step[i].index > step};
  if (place->inside) return CK_OK;
  place->rows = a->rows;
  place->offset = a->size ? a->at : 0;
  place->bytes = a->size;
  return CK_OK;
}
