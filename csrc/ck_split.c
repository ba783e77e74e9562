/* A run in parts, one for each thread: rows of the output, over all images, or ranges of its
 * channels where rows are few, as the 7x7 of a network's end. A part is a run of its own, with its
 * own slice of the workspace, which knows nothing of the others; since a kernel's sums do not
 * depend on how many pixels or columns are made with them, any number of parts gives the same bits.
 */
#include <stdatomic.h>

#include "ck_impl.h"

/* What a thread must have to do, in vectors of multiply-adds, before it is worth it: 15 us at 1.5 a
 * cycle and 3 GHz, as long as it takes to wake one that sleeps (measured: 15 to 35 us; 0.2 us
 * within some tens of microseconds of the call before). */
static _Atomic int64_t least_work = 1 << 16;

/* In multiply-adds, as measured: what an element costs that is read or written, beside its sums,
 * and a weight that comes from L3. */
enum { TRAFFIC = 20, FETCH = 4 };

int64_t ck_set_least_work(int64_t vectors) {
  return atomic_exchange(&least_work, ck_max(vectors, 1));
}

int64_t ck_least_work(void) { return atomic_load_explicit(&least_work, memory_order_relaxed); }

int ck_threads_worth(int threads, double vectors) {
  const double worth = vectors / (double)ck_least_work();
  const int most = threads < CK_MAX_THREADS ? threads : CK_MAX_THREADS;
  return worth < 2 || most < 2 ? 1 : worth < most ? (int)worth : most;
}

struct ck_piece ck_piece_at(int64_t row, int64_t end, int64_t out_h) {
  struct ck_piece p = {.image = row / out_h, .images = 1, .y = row % out_h};
  p.rows = ck_min(out_h - p.y, end - row);
  if (p.rows == out_h) p.images = (end - row) / out_h;
  return p;
}

/* In vectors of multiply-adds; the order of magnitude is enough. A pixel takes one of them for each
 * weight, in every operation. */
static double work_of(const struct ck_run *run) {
  const struct ck_op *op = run->op;
  const ck_window *w = &op->conv.window;
  const double pixels = (double)run->image.batch * (double)run->out_h * (double)run->out_w;
  const double taps = (double)w->kernel_h * (double)w->kernel_w;
  const double in = (double)run->image.channels, out = (double)run->out_channels;
  double weights = out * taps * (double)run->group_in;
  if (op->kind == CK_OP_SPATIAL) weights = out * (double)(w->kernel_h + w->kernel_w);
  if (op->kind == CK_OP_SEPARABLE) weights = (double)op->dw.channels * (taps + out);
  return (weights * (pixels + FETCH) + pixels * TRAFFIC * (in + out)) / op->kernels->lanes;
}

/* How much of the time of so many threads is used when n things are dealt out to them. */
static double busy(int64_t n, int64_t threads) {
  return (double)n / (double)(ck_ceil_div(n, threads) * threads);
}

/* Rows or ranges of channels. Parts of channels read all of the image, and fill the same panels, so
 * rows are better; but a depthwise on planes repeats nothing, while rows overlap. The other way is
 * better where a tenth of the time or more would be lost. */
static void deal_out(struct ck_split *s, int64_t threads) {
  const struct ck_run *run = s->run;
  const int64_t unit = ck_run_unit(run), rows = run->image.batch * run->out_h;
  const int64_t ranges = unit ? ck_ceil_div(run->out_channels, unit) : 1;
  const double by_rows = busy(rows, threads), by_ranges = busy(ranges, threads);
  const bool planes = unit && run->op->conv.layout == CK_NCHW && run->op->gemms == 0;
  const bool use_rows =
      planes ? by_ranges <= 0.9 && by_rows > by_ranges : by_rows > 0.9 || by_rows >= by_ranges;
  s->units = use_rows ? rows : ranges;
  s->channels = use_rows ? 0 : unit;
  s->parts = ck_ceil_div(s->units, ck_ceil_div(s->units, threads)); /* no more than help */
}

/* An array of the output's size and some channels, from row y of an image on. */
static void *array_from(const struct ck_run *run, const void *array, int64_t channels,
                        const struct ck_piece *p) {
  const bool planar = run->op->conv.layout == CK_NCHW;
  const int64_t image = p->image * run->out_h * run->out_w * channels;
  const int64_t row = p->y * run->out_w * (planar ? 1 : channels);
  return array ? ck_at_mut((void *)array, image + row, run->op->kernels->element) : NULL;
}

/* A part of a run, piece by piece. */
struct part {
  struct ck_span rows; /* those that are left */
  struct ck_run run;   /* on one piece */
  ck_deform deform;
};

/* What one of several brings near. */
static struct ck_ahead share_of(const struct ck_ahead *all, int64_t parts, int64_t index) {
  if (!all->at) return *all;
  const struct ck_span share = ck_deal_out(all->end - all->at, parts, index);
  return (struct ck_ahead){all->at + share.begin, all->at + share.end};
}

static struct part part_of(const struct ck_split *s, int64_t index) {
  const struct ck_run *run = s->run;
  const struct ck_span units = ck_deal_out(s->units, s->parts, index);
  struct part part = {.rows = units, .run = *run};
  part.run.plane = ck_out_plane(run);
  part.run.later = share_of(&run->later, s->parts, index);
  if (s->channels) {
    part.rows = (struct ck_span){0, run->image.batch * run->out_h};
    part.run.only = (struct ck_span){units.begin * s->channels,
                                     ck_min(units.end * s->channels, run->out_channels)};
  }
  return part;
}

/* Make part->run one of its next piece, if there is one. */
static bool next_piece(const struct ck_split *s, struct part *part) {
  const struct ck_run *run = s->run;
  const ck_image *image = &run->image;
  if (part->rows.begin == part->rows.end) return false;
  const struct ck_piece p = ck_piece_at(part->rows.begin, part->rows.end, run->out_h);
  part->rows.begin += p.images * p.rows;
  part->run.image.batch = p.images;
  part->run.image.pad_top = image->pad_top - p.y * run->op->conv.window.stride_h;
  part->run.out_h = p.rows;
  if (run->x)
    part->run.x = ck_at(run->x, p.image * image->height * image->width * ck_x_step(run),
                        run->op->kernels->element);
  part->run.y = array_from(run, run->y, ck_y_step(run), &p);
  part->run.residual = array_from(run, run->residual, run->out_channels, &p);
  if (run->deform) {
    const ck_window *w = &run->op->conv.window;
    const int64_t taps = w->kernel_h * w->kernel_w * run->deform->groups;
    part->deform = (ck_deform){array_from(run, run->deform->offset, 2 * taps, &p),
                               array_from(run, run->deform->mask, taps, &p), run->deform->groups};
    part->run.deform = &part->deform;
  }
  return true;
}

/* The slice of the workspace that any part can do with. */
static ck_status size_of(struct ck_split *s) {
  int64_t all;
  size_t most = 0, bytes;
  for (int64_t i = 0; i < s->parts; ++i) {
    struct part part = part_of(s, i);
    while (next_piece(s, &part)) {
      const ck_status status = ck_run_workspace(&part.run, &bytes);
      if (status != CK_OK) return status;
      most = bytes > most ? bytes : most;
    }
  }
  if (most > INT64_MAX - CK_ALIGN) return CK_E_OVERFLOW;
  s->slice = ck_round_up((int64_t)most, CK_ALIGN);
  if (!ck_mul(s->slice, s->parts, &all)) return CK_E_OVERFLOW;
  s->bytes = (size_t)all;
  return CK_OK;
}

ck_status ck_split_of(const struct ck_run *run, int threads, struct ck_split *split) {
  *split = (struct ck_split){.run = run, .parts = 1};
  const uint64_t saved = ck_fp_enter(); /* estimates must not show in the caller's flags */
  threads = ck_threads_worth(threads, work_of(run));
  if (threads > 1) deal_out(split, threads);
  const ck_status status = split->parts > 1 ? size_of(split) : ck_run_workspace(run, &split->bytes);
  ck_fp_leave(saved);
  return status;
}

/* A split, on its way. */
struct call {
  const struct ck_split *split;
  char *workspace;
};

static void do_part(void *context, int64_t index, int thread) {
  const struct call *call = context;
  struct part part = part_of(call->split, index);
  while (next_piece(call->split, &part))
    ck_run_op(&part.run, call->workspace + thread * call->split->slice);
}

void ck_split_run(const struct ck_split *split, void *workspace) {
  struct call call = {split, workspace};
  if (split->parts > 1)
    ck_parallel((int)split->parts, split->parts, do_part, &call);
  else
    ck_run_op(split->run, workspace);
}
