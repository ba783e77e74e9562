/* The textbook loops, one per operation, all in the same style: for each output value, the sum over
 * its window in one scalar accumulator. They are the baseline that the theory is measured on;
 * nobody tunes them. Padding is a zero that is multiplied like any other value. */
#include "ck_impl.h"

/* The element type is the only difference between the two instances of ck_naive_loops.h. */
#define REAL float
#define NAME(op) naive_##op##_f32
#include "ck_naive_loops.h"
#undef REAL
#undef NAME
#define REAL double
#define NAME(op) naive_##op##_f64
#include "ck_naive_loops.h"
#undef REAL
#undef NAME

typedef void naive_f32(const struct ck_run *, const ck_weights *, const float *);
typedef void naive_f64(const struct ck_run *, const ck_weights *, const double *);

/* The same checks as for a packed operation, then the loops. */
static ck_status run_naive(enum ck_op_kind kind, const ck_conv *conv, const ck_image *image,
                           const ck_weights *w, const void *bias, const void *x, void *y,
                           naive_f32 *loops_f32, naive_f64 *loops_f64) {
  if (!conv || !image || !w || !w->data) return CK_E_NULL;
  const struct ck_op op = {.kind = kind, .conv = *conv};
  struct ck_run run = {.op = &op, .image = *image, .x = x, .y = y};
  ck_status status = ck_check_conv(kind, conv);
  if (status == CK_OK) status = ck_check_run(&run);
  if (status == CK_OK && !ck_has_arrays(&run)) status = CK_E_NULL;
  if (status != CK_OK || image->batch == 0) return status;
  const uint64_t saved = ck_fp_enter();
  if (conv->dtype == CK_F32)
    loops_f32(&run, w, bias);
  else
    loops_f64(&run, w, bias);
  ck_fp_leave(saved);
  return CK_OK;
}

ck_status ck_naive_conv2d(const ck_conv *conv, const ck_image *image, const ck_weights *w,
                          const void *bias, const void *x, void *y) {
  return run_naive(CK_OP_CONV2D, conv, image, w, bias, x, y, naive_conv2d_f32, naive_conv2d_f64);
}

ck_status ck_naive_pointwise(const ck_conv *conv, const ck_image *image, const ck_weights *w,
                             const void *bias, const void *x, void *y) {
  return run_naive(CK_OP_CONV2D, conv, image, w, bias, x, y, naive_pointwise_f32,
                   naive_pointwise_f64);
}

ck_status ck_naive_depthwise(const ck_conv *conv, const ck_image *image, const ck_weights *w,
                             const void *bias, const void *x, void *y) {
  return run_naive(CK_OP_DEPTHWISE, conv, image, w, bias, x, y, naive_depthwise_f32,
                   naive_depthwise_f64);
}
