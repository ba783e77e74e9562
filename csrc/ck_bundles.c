/* Groups of few channels in bundles: one matrix of weights for several groups, each of which is a
 * block on its diagonal, and all else is zero. A GEMM that makes a group alone leaves lanes idle,
 * and goes through the pixels once for each group.
 *
 * A sum has the terms of its group in their order, and zeros between them, which change nothing but
 * -0, that becomes 0, unless what they are multiplied by is infinite or NaN: see ck_conv2d_run.
 */
#include <stdlib.h>

#include "ck_impl.h"

/* Times are in FMAs of a vector, fitted to measurements on a Xeon with AVX-512 and with AVX2: 202
 * pointwise problems of 8 to 128 channels, 28x28, of which the choice is within a hundredth of the
 * best on average.
 *
 * One pixel: what its sums take beside the terms, for each vector and each GEMM, and where the last
 * vector is not full and there are no masks. */
enum { VECTOR_TIME = 4, GEMM_TIME = 10, RAGGED_TIME = 23 };

static double time_of_pixel(const struct ck_kernels *k, int64_t terms, int64_t columns) {
  const double vectors = (double)ck_ceil_div(columns, k->lanes);
  const double ragged = !k->masks && columns % k->lanes ? RAGGED_TIME : 0;
  return (double)terms * ck_columns_time(k, columns) + vectors * VECTOR_TIME + GEMM_TIME + ragged;
}

/* NCHW: some vectors of pixels, for which the microkernel is called tile by tile. */
enum { CALL_TIME = 100 };

static double time_of_vectors(const struct ck_kernels *k, int64_t terms, int64_t columns) {
  const double tiles = (double)ck_ceil_div(columns, k->gemm_rows);
  return (double)terms * (double)columns * k->gemm_vectors + tiles * CALL_TIME;
}

static double gemm_time(const ck_op *op, ck_layout layout, int64_t groups) {
  const ck_conv *conv = &op->conv;
  const int64_t taps = conv->window.kernel_h * conv->window.kernel_w;
  const int64_t terms = groups * (conv->in_channels / conv->groups) * taps;
  const int64_t columns = groups * (conv->out_channels / conv->groups);
  return layout == CK_NCHW ? time_of_vectors(op->kernels, terms, columns)
                           : time_of_pixel(op->kernels, terms, columns);
}

/* Of all groups, so many together. */
static double bundles_time(const ck_op *op, ck_layout layout, int64_t together) {
  const int64_t groups = op->conv.groups, rest = groups % together;
  const double last = rest ? gemm_time(op, layout, rest) : 0;
  return (double)(groups / together) * gemm_time(op, layout, together) + last;
}

/* So many groups as there are lanes fill vectors, whatever they make. To gain less than this is
 * none: weights of larger bundles leave L1, and kernel rows become too long for a copy of rows. */
#define LEAST_GAIN 1.03

int64_t ck_groups_together(const ck_op *op, ck_layout layout) {
  int64_t best = 1;
  for (int64_t n = 2; n <= ck_min(op->kernels->lanes, op->conv.groups); ++n)
    if (bundles_time(op, layout, n) * LEAST_GAIN < bundles_time(op, layout, best)) best = n;
  return best;
}

/* The weights of several groups, `w` and `bias` being those of the first. */
static ck_status pack_bundle(const ck_op *op, ck_layout layout, int64_t groups, const ck_weights *w,
                             const void *bias, struct ck_gemm_weights *packed) {
  const ck_conv *conv = &op->conv;
  const int64_t kernel_h = conv->window.kernel_h, kernel_w = conv->window.kernel_w;
  const int64_t in = conv->in_channels / conv->groups, out = conv->out_channels / conv->groups;
  const int64_t channels = groups * in, columns = groups * out, tap = channels * columns;
  const int element = op->kernels->element;
  const ck_weights seen = {calloc((size_t)(kernel_h * kernel_w * tap), (size_t)element),
                           {kernel_w * tap, tap, columns, 1}};
  if (!seen.data) return CK_E_NOMEM;
  for (int64_t ky = 0; ky < kernel_h; ++ky)
    for (int64_t kx = 0; kx < kernel_w; ++kx)
      for (int64_t c = 0; c < channels; ++c)
        for (int64_t n = c / in * out; n < (c / in + 1) * out; ++n)
          memcpy((char *)seen.data + ((ky * kernel_w + kx) * tap + c * columns + n) * element,
                 ck_at(w->data,
                       ky * w->stride[0] + kx * w->stride[1] + c % in * w->stride[2] +
                           n * w->stride[3],
                       element),
                 (size_t)element);
  const ck_status status =
      ck_pack_gemm(op->kernels, layout, &conv->window, channels, columns, &seen, bias, packed);
  free((void *)seen.data);
  return status;
}

/* Of one group. Terms lie in the order of the NHWC kernels' sums, for the same bits: (ky, kx, c),
 * or (ky, c, kx) where groups share vectors. */
static ck_status pack_group(const ck_op *op, ck_layout layout, const ck_weights *w,
                            const void *bias, struct ck_gemm_weights *packed) {
  const ck_conv *conv = &op->conv;
  const int64_t in = conv->in_channels / conv->groups, out = conv->out_channels / conv->groups;
  if (op->kind != CK_OP_GROUPED)
    return ck_pack_gemm(op->kernels, layout, &conv->window, in, out, w, bias, packed);
  ck_window window = conv->window;
  window.kernel_w = in;
  const ck_weights seen = {w->data, {w->stride[0], w->stride[2], w->stride[1], w->stride[3]}};
  return ck_pack_gemm(op->kernels, layout, &window, conv->window.kernel_w, out, &seen, bias,
                      packed);
}

ck_status ck_pack_groups(const ck_op *op, ck_layout layout, int64_t together, const ck_weights *w,
                         const void *bias, struct ck_gemm_weights **packed, int64_t *count) {
  const ck_conv *conv = &op->conv;
  const int element = op->kernels->element;
  const int64_t out = conv->out_channels / conv->groups;
  ck_status status = ck_alloc_gemms(ck_ceil_div(conv->groups, together), packed, count);
  for (int64_t i = 0; status == CK_OK && i < *count; ++i) {
    const int64_t groups = ck_min(together, conv->groups - i * together);
    const int64_t column = i * together * out;
    const void *some_bias = bias ? ck_at(bias, column, element) : NULL;
    ck_weights some = *w;
    some.data = ck_at(w->data, column * w->stride[3], element);
    status = groups > 1 ? pack_bundle(op, layout, groups, &some, some_bias, *packed + i)
                        : pack_group(op, layout, &some, some_bias, *packed + i);
  }
  return status;
}
