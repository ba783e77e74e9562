/* Deformable convolution: the panel is filled with samples of the image instead of its pixels.
 * Terms run over (ky, kx, channel), as the packed weights do.
 *
 * Samples are taken from rows of pixels whose channels lie side by side. Where the image is planar,
 * a band of rows around the block is converted for that, and slides down with the blocks; the few
 * samples beyond it are picked from the planes. So offsets of any size are right, and those of the
 * usual size are fast.
 */
#include "ck_impl.h"

static bool is_planar(const struct ck_run *run) {
  return run->deform && run->op->conv.layout == CK_NCHW;
}

/* How many rows of one group's channels fit: what a row of output reads, or more while half of L2
 * holds it. */
static int64_t band_rows(const struct ck_run *run, int64_t row_bytes) {
  const ck_window *w = &run->op->conv.window;
  const int64_t height = run->image.height;
  const int64_t reads = ck_min((w->kernel_h - 1) * w->dilation_h + 1, height);
  return ck_min(height, ck_max(reads + 2 * CK_DEFORM_REACH, ck_cpu_l2_bytes() / 2 / row_bytes));
}

static int64_t row_bytes_of(const struct ck_run *run) {
  const ck_conv *conv = &run->op->conv;
  return run->image.width * (conv->in_channels / conv->groups) * run->op->kernels->element;
}

static int64_t taps_of(const struct ck_run *run) {
  return run->op->conv.window.kernel_h * run->op->conv.window.kernel_w;
}

/* Planar: the band; else the offsets and masks of a block, of as many taps as a range may touch. */
ck_status ck_deform_scratch(const struct ck_gemm *g, size_t *bytes) {
  const struct ck_run *run = g->run;
  *bytes = 0;
  if (!run->deform) return CK_OK;
  if (is_planar(run)) {
    const int64_t row = row_bytes_of(run); /* at most the image's bytes, which are checked */
    *bytes = (size_t)(band_rows(run, row) * row) + sizeof(struct ck_band) + 2 * CK_ALIGN;
  } else {
    const int64_t channels = run->op->conv.in_channels / run->op->conv.groups;
    const int64_t taps = ck_min(taps_of(run), ck_gemm_range(g) / channels + 2);
    const struct ck_blocking b = ck_gemm_blocking(g);
    *bytes = (size_t)(3 * taps * b.rows * b.cols * run->op->kernels->element) + CK_ALIGN;
  }
  return CK_OK;
}

static struct ck_band *band_of(const struct ck_conv_fill *f) { return ck_align(f->scratch); }

static void *band_data(const struct ck_conv_fill *f) { return ck_align(band_of(f) + 1); }

void ck_deform_start(const struct ck_gemm *g, struct ck_conv_fill *f, void *workspace) {
  size_t bytes;
  if (!g->run->deform) return;
  ck_gemm_workspace(g, &bytes);
  f->scratch = (char *)workspace + bytes;
  if (is_planar(g->run)) *band_of(f) = (struct ck_band){0};
}

/* The rows of its image that a block is likely to read, or the first that fit in the band. */
static struct ck_span rows_near(const struct ck_run *run, const struct ck_block *block,
                                int64_t fit) {
  const ck_window *w = &run->op->conv.window;
  const int64_t height = run->image.height;
  const int64_t first = block->y * w->stride_h - run->image.pad_top;
  const int64_t last = first + (block->rows - 1) * w->stride_h + (w->kernel_h - 1) * w->dilation_h;
  const int64_t spare =
      ck_max(0, fit - (last + 1 - first));                  /* half of it lets the band lie still */
  const int64_t reach = ck_max(CK_DEFORM_REACH, spare / 4); /* rows above, and below */
  const int64_t begin = ck_min(ck_max(first - reach, 0), height);
  const int64_t end = ck_max(ck_min(last, height) + 1 + reach, begin);
  return (struct ck_span){begin, ck_min(ck_min(end, height), begin + fit)};
}

/* The band moves only when the rows near the block no longer lie in what it has room for. */
static void slide_band(const struct ck_conv_fill *f, const struct ck_block *block) {
  const struct ck_run *run = f->run;
  const ck_image *image = &run->image;
  const int64_t fit = band_rows(run, row_bytes_of(run));
  const struct ck_span near = rows_near(run, block, fit);
  const void *planes = ck_plane_row(run, block->image, f->first_channel, 0);
  struct ck_band *band = band_of(f);
  if (band->planes != planes)
    *band = (struct ck_band){.planes = planes,
                             .plane = image->height * image->width,
                             .channels = f->channels,
                             .width = image->width,
                             .data = band_data(f)};
  const bool beyond =
      near.begin < band->begin || near.begin > band->end || near.end > band->begin + fit;
  const int64_t begin = beyond ? near.begin : band->begin;
  if (beyond || near.end > band->end)
    ck_band_hold(run->op->kernels, band, begin, ck_min(image->height, begin + fit));
}

/* Where a sample's rows are. */
static void find_rows(const struct ck_conv_fill *f, const struct ck_block *block, int64_t channel,
                      struct ck_deform_args *args) {
  const struct ck_run *run = f->run;
  const int element = run->op->kernels->element;
  if (is_planar(run)) {
    args->x = ck_at(band_data(f), channel, element);
    args->row_begin = band_of(f)->begin;
    args->row_end = band_of(f)->end;
    args->pixel_step = f->channels;
    args->planes = ck_plane_row(run, block->image, f->first_channel + channel, 0);
    args->plane_step = run->image.height * run->image.width;
  } else {
    const int64_t image = block->image * run->image.height * run->image.width;
    args->x = ck_at(run->x, image * run->image.channels + f->first_channel + channel, element);
    args->row_end = run->image.height;
    args->pixel_step = run->image.channels;
  }
}

/* `count` channels, from `first` on, of an array of the output's size: planes, in which a block's
 * pixels lie side by side. Those of pixels are made in scratch. */
static const void *planes_of(const struct ck_run *run, const struct ck_block *block,
                             const void *array, int64_t channels, int64_t first, int64_t count,
                             void *scratch) {
  const struct ck_kernels *k = run->op->kernels;
  const int64_t size = ck_out_plane(run), pixel = block->y * run->out_w + block->x;
  const int64_t image = block->image * size * channels;
  if (!array) return NULL;
  if (is_planar(run)) return ck_at(array, image + first * size + pixel, k->element);
  k->transpose(&(struct ck_transpose_args){
      .to = scratch,
      .from = ck_at(array, image + pixel * channels + first, k->element),
      .to_step = block->pixels,
      .from_step = channels,
      .rows = block->pixels,
      .columns = count,
  });
  return scratch;
}

/* How the samples of an offset group move: planes of dy and dx, tap after tap, and of masks. */
struct moves {
  const void *offset, *mask; /* of no masks: null */
  int64_t step;              /* from one plane to the next */
  struct ck_span taps;
};

static struct moves moves_of(const struct ck_conv_fill *f, const struct ck_block *block,
                             int64_t group, struct ck_span taps) {
  const struct ck_run *run = f->run;
  const ck_deform *d = run->deform;
  const int64_t all = taps_of(run), channels = all * d->groups;
  const int64_t first = group * all + taps.begin, count = taps.end - taps.begin;
  void *offset = ck_align(f->scratch);
  void *mask = ck_at_mut(offset, 2 * count * block->pixels, run->op->kernels->element);
  return (struct moves){
      .offset = planes_of(run, block, d->offset, 2 * channels, 2 * first, 2 * count, offset),
      .mask = planes_of(run, block, d->mask, channels, first, count, mask),
      .step = is_planar(run) ? ck_out_plane(run) : block->pixels,
      .taps = taps,
  };
}

/* One tap of one row of the block, for channels of the group that share an offset. */
static void fill_samples(const struct ck_conv_fill *f, const struct ck_block *block, int64_t row,
                         int64_t tap, struct ck_span channels, int64_t term,
                         const struct moves *moves, const struct ck_panel *panel) {
  const struct ck_run *run = f->run;
  const ck_window *w = &run->op->conv.window;
  const int element = run->op->kernels->element;
  const int64_t pixel = row * block->cols, plane = (tap - moves->taps.begin) * moves->step;
  struct ck_deform_args args = {
      .panel = panel->data,
      .offset = panel->offset + pixel,
      .pixels = block->cols,
      .term = term,
      .n = channels.end - channels.begin,
      .height = run->image.height,
      .width = run->image.width,
      .dy = ck_at(moves->offset, 2 * plane + pixel, element),
      .dx = ck_at(moves->offset, 2 * plane + moves->step + pixel, element),
      .mask = moves->mask ? ck_at(moves->mask, plane + pixel, element) : NULL,
      .tap_y =
          (block->y + row) * w->stride_h + tap / w->kernel_w * w->dilation_h - run->image.pad_top,
      .tap_x = block->x * w->stride_w + tap % w->kernel_w * w->dilation_w - run->image.pad_left,
      .stride_w = w->stride_w,
      .zeros = run->op->zeros,
  };
  find_rows(f, block, channels.begin, &args);
  run->op->kernels->deform(&args);
}

/* Those terms in range that are samples of `channels`, which share an offset. */
static void fill_shared(const struct ck_conv_fill *f, const struct ck_block *block,
                        struct ck_span channels, struct ck_span terms,
                        const struct ck_panel *panel) {
  const int64_t share = f->run->image.channels / f->run->deform->groups;
  const struct ck_span taps = {terms.begin / f->channels, ck_ceil_div(terms.end, f->channels)};
  const struct moves moves = moves_of(f, block, (f->first_channel + channels.begin) / share, taps);
  for (int64_t tap = taps.begin; tap < taps.end; ++tap) {
    const int64_t first = tap * f->channels; /* the tap's first term */
    const struct ck_span some = {ck_max(channels.begin, terms.begin - first),
                                 ck_min(channels.end, terms.end - first)};
    const int64_t term = first + some.begin - terms.begin;
    for (int64_t row = 0; row < block->rows && some.begin < some.end; ++row)
      fill_samples(f, block, row, tap, some, term, &moves, panel);
  }
}

/* Offset group by offset group: what one of them reads of the image stays in L1. */
void ck_fill_deformed(const void *context, const struct ck_block *block, int64_t begin, int64_t end,
                      const struct ck_panel *panel) {
  const struct ck_conv_fill *f = context;
  const int64_t share = f->run->image.channels / f->run->deform->groups;
  if (is_planar(f->run)) slide_band(f, block);
  for (int64_t first = 0, next; first < f->channels; first = next) {
    next = ck_min(f->channels, first + share - (f->first_channel + first) % share);
    fill_shared(f, block, (struct ck_span){first, next}, (struct ck_span){begin, end}, panel);
  }
}
