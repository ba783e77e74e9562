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

ck_status ck_deform_scratch(const struct ck_run *run, size_t *bytes) {
  *bytes = 0;
  if (!is_planar(run)) return CK_OK;
  const int64_t row = row_bytes_of(run); /* at most the image's bytes, which are checked */
  *bytes = (size_t)(band_rows(run, row) * row) + sizeof(struct ck_band) + 2 * CK_ALIGN;
  return CK_OK;
}

static struct ck_band *band_of(const struct ck_conv_fill *f) { return ck_align(f->scratch); }

static void *band_data(const struct ck_conv_fill *f) { return ck_align(band_of(f) + 1); }

void ck_deform_start(const struct ck_conv_fill *f) {
  if (is_planar(f->run)) *band_of(f) = (struct ck_band){0};
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

/* An array of the output's size and some channels, seen from one of its pixels. */
struct view {
  const void *data;
  int64_t pixel, channel; /* steps, in elements */
};

static struct view view_at(const struct ck_run *run, const struct ck_block *block, int64_t row,
                           const void *data, int64_t channels, int64_t channel) {
  const int element = run->op->kernels->element;
  const int64_t size = ck_out_plane(run);
  const int64_t pixel = (block->y + row) * run->out_w + block->x;
  if (is_planar(run))
    return (struct view){ck_at(data, (block->image * channels + channel) * size + pixel, element),
                         1, size};
  return (struct view){ck_at(data, (block->image * size + pixel) * channels + channel, element),
                       channels, 1};
}

/* One tap of one row of the block, for channels [begin, end) of the group, which share an offset.
 */
static void fill_samples(const struct ck_conv_fill *f, const struct ck_block *block, int64_t row,
                         int64_t tap, int64_t begin, int64_t end, int64_t term,
                         const struct ck_panel *panel) {
  const struct ck_run *run = f->run;
  const ck_deform *deform = run->deform;
  const ck_window *w = &run->op->conv.window;
  const int64_t taps = w->kernel_h * w->kernel_w;
  const int64_t share = run->image.channels / deform->groups;
  const int64_t t = (f->first_channel + begin) / share * taps + tap;
  const struct view offset =
      view_at(run, block, row, deform->offset, 2 * taps * deform->groups, 2 * t);
  struct ck_deform_args args = {
      .panel = panel->data,
      .offset = panel->offset + row * block->cols,
      .pixels = block->cols,
      .term = term,
      .n = end - begin,
      .height = run->image.height,
      .width = run->image.width,
      .dy = offset.data,
      .dx = ck_at(offset.data, offset.channel, run->op->kernels->element),
      .offset_step = offset.pixel,
      .tap_y =
          (block->y + row) * w->stride_h + tap / w->kernel_w * w->dilation_h - run->image.pad_top,
      .tap_x = block->x * w->stride_w + tap % w->kernel_w * w->dilation_w - run->image.pad_left,
      .stride_w = w->stride_w,
      .zeros = run->op->zeros,
  };
  if (deform->mask) {
    const struct view mask = view_at(run, block, row, deform->mask, taps * deform->groups, t);
    args.mask = mask.data;
    args.mask_step = mask.pixel;
  }
  find_rows(f, block, begin, &args);
  run->op->kernels->deform(&args);
}

/* Those terms of one tap that are in range, offset group by offset group. */
static void fill_tap(const struct ck_conv_fill *f, const struct ck_block *block, int64_t tap,
                     int64_t term_begin, int64_t term_end, const struct ck_panel *panel) {
  const int64_t share = f->run->image.channels / f->run->deform->groups;
  const int64_t first = tap * f->channels; /* the tap's first term */
  const int64_t last = ck_min(term_end - first, f->channels);
  for (int64_t begin = ck_max(term_begin - first, 0), end; begin < last; begin = end) {
    end = ck_min(last, begin + share - (f->first_channel + begin) % share);
    for (int64_t row = 0; row < block->rows; ++row)
      fill_samples(f, block, row, tap, begin, end, first + begin - term_begin, panel);
  }
}

void ck_fill_deformed(const void *context, const struct ck_block *block, int64_t begin, int64_t end,
                      const struct ck_panel *panel) {
  const struct ck_conv_fill *f = context;
  if (is_planar(f->run)) slide_band(f, block);
  for (int64_t tap = begin / f->channels; tap * f->channels < end; ++tap)
    fill_tap(f, block, tap, begin, end, panel);
}
