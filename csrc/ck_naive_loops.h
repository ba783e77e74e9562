/* The textbook loops for one element type, REAL; included by ck_naive.c only. */

static void NAME(conv2d)(const struct ck_run *run, const ck_weights *weights, const REAL *bias) {
  const ck_conv *conv = &run->op->conv;
  const ck_window *win = &conv->window;
  const ck_image *in = &run->image;
  const int64_t *s = weights->stride;
  const int64_t group_in = in->channels / conv->groups;
  const int64_t group_out = conv->out_channels / conv->groups;
  const REAL *x = run->x, *w = weights->data;
  REAL *y = run->y;
  for (int64_t n = 0; n < in->batch; ++n)
    for (int64_t o = 0; o < conv->out_channels; ++o)
      for (int64_t oy = 0; oy < run->out_h; ++oy)
        for (int64_t ox = 0; ox < run->out_w; ++ox) {
          REAL sum = bias ? bias[o] : 0;
          for (int64_t ky = 0; ky < win->kernel_h; ++ky)
            for (int64_t kx = 0; kx < win->kernel_w; ++kx) {
              const int64_t iy = oy * win->stride_h + ky * win->dilation_h - in->pad_top;
              const int64_t ix = ox * win->stride_w + kx * win->dilation_w - in->pad_left;
              const bool inside = iy >= 0 && iy < in->height && ix >= 0 && ix < in->width;
              const int64_t at = ((n * in->height + iy) * in->width + ix) * in->channels;
              const int64_t first = at + o / group_out * group_in;
              const int64_t tap = ky * s[0] + kx * s[1] + o * s[3];
              for (int64_t c = 0; c < group_in; ++c)
                sum += (inside ? x[first + c] : 0) * w[tap + c * s[2]];
            }
          y[((n * run->out_h + oy) * run->out_w + ox) * conv->out_channels + o] = sum;
        }
}

static void NAME(pointwise)(const struct ck_run *run, const ck_weights *weights, const REAL *bias) {
  const ck_conv *conv = &run->op->conv;
  const ck_window *win = &conv->window;
  const ck_image *in = &run->image;
  const int64_t *s = weights->stride;
  const REAL *x = run->x, *w = weights->data;
  REAL *y = run->y;
  for (int64_t n = 0; n < in->batch; ++n)
    for (int64_t o = 0; o < conv->out_channels; ++o)
      for (int64_t oy = 0; oy < run->out_h; ++oy)
        for (int64_t ox = 0; ox < run->out_w; ++ox) {
          REAL sum = bias ? bias[o] : 0;
          const int64_t iy = oy * win->stride_h, ix = ox * win->stride_w;
          const int64_t at = ((n * in->height + iy) * in->width + ix) * in->channels;
          for (int64_t c = 0; c < in->channels; ++c) sum += x[at + c] * w[c * s[2] + o * s[3]];
          y[((n * run->out_h + oy) * run->out_w + ox) * conv->out_channels + o] = sum;
        }
}

static void NAME(depthwise)(const struct ck_run *run, const ck_weights *weights, const REAL *bias) {
  const ck_conv *conv = &run->op->conv;
  const ck_window *win = &conv->window;
  const ck_image *in = &run->image;
  const int64_t *s = weights->stride;
  const int64_t m = run->group_out, channels = in->channels * m;
  const REAL *x = run->x, *w = weights->data;
  REAL *y = run->y;
  for (int64_t n = 0; n < in->batch; ++n)
    for (int64_t o = 0; o < channels; ++o)
      for (int64_t oy = 0; oy < run->out_h; ++oy)
        for (int64_t ox = 0; ox < run->out_w; ++ox) {
          REAL sum = bias ? bias[o] : 0;
          for (int64_t ky = 0; ky < win->kernel_h; ++ky)
            for (int64_t kx = 0; kx < win->kernel_w; ++kx) {
              const int64_t iy = oy * win->stride_h + ky * win->dilation_h - in->pad_top;
              const int64_t ix = ox * win->stride_w + kx * win->dilation_w - in->pad_left;
              const bool inside = iy >= 0 && iy < in->height && ix >= 0 && ix < in->width;
              const int64_t at = ((n * in->height + iy) * in->width + ix) * in->channels;
              sum += (inside ? x[at + o / m] : 0) *
                     w[ky * s[0] + kx * s[1] + o / m * s[2] + o % m * s[3]];
            }
          y[((n * run->out_h + oy) * run->out_w + ox) * channels + o] = sum;
        }
}
