/* Groups of few channels in bundles: one matrix of weights for several groups, each of which is a
 * block on its diagonal, and all else is zero. A GEMM that makes a group alone leaves lanes idle,
 * and goes through the pixels once for each group.
 *
 * A sum has the terms of its group in their order, and zeros between them, which change nothing
 * unless what they are multiplied by is infinite or NaN: see ck_conv2d_run.
 */
#include <stdlib.h>

#include "ck_impl.h"

/* The time of one pixel, in FMAs of a vector: what its sums take beside those, for each vector and
 * each GEMM, and where the last vector is not full and there are no masks (fitted to 202 problems,
 * 8 to 128 channels, 28x28, on a Xeon with AVX-512 and with AVX2; the choice is within a hundredth
 * of the best on average). */
enum { VECTOR_TIME = 4, GEMM_TIME = 10, RAGGED_TIME = 23 };

static double gemm_time(const struct ck_kernels *k, int64_t terms, int64_t columns) {
  const double vectors = (double)ck_ceil_div(columns, k->lanes);
  const double ragged = !k->masks && columns % k->lanes ? RAGGED_TIME : 0;
  return (double)terms * ck_columns_time(k, columns) + vectors * VECTOR_TIME + GEMM_TIME + ragged;
}

/* Of all groups, so many together. */
static double bundles_time(const ck_op *op, int64_t together) {
  const ck_conv *conv = &op->conv;
  const int64_t in = conv->in_channels / conv->groups, out = conv->out_channels / conv->groups;
  const int64_t rest = conv->groups % together;
  const double last = rest ? gemm_time(op->kernels, rest * in, rest * out) : 0;
  const double each = gemm_time(op->kernels, together * in, together * out);
  return (double)(conv->groups / together) * each + last;
}

/* So many groups as there are lanes fill vectors, whatever they make. */
static int64_t groups_together(const ck_op *op) {
  int64_t best = 1;
  for (int64_t n = 2; n <= ck_min(op->kernels->lanes, op->conv.groups); ++n)
    if (bundles_time(op, n) < bundles_time(op, best)) best = n;
  return best;
}

/* `w` and `bias` are those of the first of some groups. */
static ck_status pack_bundle(const ck_op *op, int64_t groups, const ck_weights *w, const void *bias,
                             struct ck_gemm_weights *packed) {
  const ck_conv *conv = &op->conv;
  const int element = op->kernels->element;
  const int64_t in = conv->in_channels / conv->groups, out = conv->out_channels / conv->groups;
  const int64_t terms = groups * in, columns = groups * out;
  const ck_weights seen = {calloc((size_t)(terms * columns), (size_t)element), {0, 0, columns, 1}};
  if (!seen.data) return CK_E_NOMEM;
  for (int64_t c = 0; c < terms; ++c)
    for (int64_t n = c / in * out; n < (c / in + 1) * out; ++n)
      memcpy((char *)seen.data + (c * columns + n) * element,
             ck_at(w->data, c % in * w->stride[2] + n * w->stride[3], element), (size_t)element);
  const ck_status status =
      ck_pack_gemm(op->kernels, CK_NHWC, &conv->window, terms, columns, &seen, bias, packed);
  free((void *)seen.data);
  return status;
}

ck_status ck_pack_bundles(ck_op *op, const ck_weights *w, const void *bias) {
  const ck_conv *conv = &op->conv;
  const int element = op->kernels->element;
  const int64_t together = groups_together(op), out = conv->out_channels / conv->groups;
  if (together == 1) return CK_OK;
  ck_status status = ck_alloc_gemms(ck_ceil_div(conv->groups, together), &op->bundle, &op->bundles);
  for (int64_t i = 0; status == CK_OK && i < op->bundles; ++i) {
    const int64_t first = i * together, column = first * out;
    ck_weights some = *w;
    some.data = ck_at(w->data, column * w->stride[3], element);
    status = pack_bundle(op, ck_min(together, conv->groups - first), &some,
                         bias ? ck_at(bias, column, element) : NULL, &op->bundle[i]);
  }
  return status;
}
