/* Pointwise: the panel is a copy of the pixels. There is no padding, or less than none: a part of a
 * run begins further down. */
#include "ck_impl.h"

void ck_fill_pointwise(const void *context, const struct ck_block *block, int64_t begin,
                       int64_t end, const struct ck_panel *panel) {
  const struct ck_conv_fill *f = context;
  const struct ck_run *run = f->run;
  const struct ck_kernels *k = run->op->kernels;
  const ck_window *w = &run->op->conv.window;
  const int64_t channels = run->op->conv.in_channels;
  for (int64_t r = 0; r < block->rows; ++r) {
    const int64_t y = (block->y + r) * w->stride_h - run->image.pad_top;
    const int64_t row = block->image * run->image.height + y;
    const int64_t pixel = row * run->image.width + block->x * w->stride_w;
    k->fill(&(struct ck_fill_args){
        .panel = panel->data,
        .offset = panel->offset + r * block->cols,
        .src = ck_at(run->x, pixel * channels + f->first_channel + begin, k->element),
        .src_step = w->stride_w * channels,
        .pixels = block->cols,
        .term = 0,
        .n = end - begin,
    });
  }
}
