/* Operations as the caller sees them: checks, packing, workspace, one run. All arithmetic on sizes
 * that come from outside is done here, in checked 64 bits. */

#include "ck_impl.h"

/* padded >= reach, out = (padded - reach) / stride + 1 */
ck_status ck_output_length(int64_t in, int64_t pad_before, int64_t pad_after, int64_t kernel,
                           int64_t stride, int64_t dilation, bool ceil_mode, int64_t *out) {
  int64_t padded, reach;
  if (in < 1 || kernel < 1 || stride < 1 || dilation < 1 || pad_before < 0 || pad_after < 0)
    return CK_E_SHAPE;
  if (!ck_add(in, pad_before, &padded) || !ck_add(padded, pad_after, &padded) ||
      !ck_mul(kernel - 1, dilation, &reach) || !ck_add(reach, 1, &reach))
    return CK_E_OVERFLOW;
  const int64_t spare = padded - reach;
  *out = spare < 0 ? 0 : spare / stride + 1;
  if (ceil_mode && spare > -stride && spare % stride &&
      *out <= (in + pad_before - 1) / stride) /* its start, out * stride, is before the end */
    *out += 1;
  return *out > 0 ? CK_OK : CK_E_SHAPE;
}

ck_status ck_output_size(const ck_window *window, const ck_image *image, int64_t *out_h,
                         int64_t *out_w) {
  if (!window || !image || !out_h || !out_w) return CK_E_NULL;
  const ck_status status =
      ck_output_length(image->height, image->pad_top, image->pad_bottom, window->kernel_h,
                       window->stride_h, window->dilation_h, false, out_h);
  if (status != CK_OK) return status;
  return ck_output_length(image->width, image->pad_left, image->pad_right, window->kernel_w,
                          window->stride_w, window->dilation_w, false, out_w);
}

bool ck_array_fits(int64_t a, int64_t b, int64_t c, int64_t d, int64_t element) {
  int64_t bytes;
  return ck_mul(a, b, &bytes) && ck_mul(bytes, c, &bytes) && ck_mul(bytes, d, &bytes) &&
         ck_mul(bytes, element, &bytes) && bytes <= PTRDIFF_MAX;
}

static int64_t channels_out(enum ck_op_kind kind, const ck_conv *conv, const ck_image *image) {
  if (kind == CK_OP_SPATIAL) return image->channels;
  return kind == CK_OP_DEPTHWISE ? conv->in_channels * conv->multiplier : conv->out_channels;
}

/* Sums over the channels of a group, taps in a window. */
static bool is_grouped(enum ck_op_kind kind) {
  return kind == CK_OP_CONV2D || kind == CK_OP_GROUPED || kind == CK_OP_DEFORM;
}

ck_status ck_check_conv(enum ck_op_kind kind, const ck_conv *conv) {
  const ck_window *w = &conv->window;
  const bool spatial = kind == CK_OP_SPATIAL;
  int64_t product;
  if ((unsigned)conv->dtype >= CK_DTYPE_COUNT || (unsigned)conv->layout > CK_NCHW ||
      (unsigned)conv->precision >= CK_PRECISION_COUNT)
    return CK_E_SHAPE;
  if (w->kernel_h < 1 || w->kernel_w < 1 || w->stride_h < 1 || w->stride_w < 1 ||
      w->dilation_h < 1 || w->dilation_w < 1 || conv->in_channels < (spatial ? 0 : 1))
    return CK_E_SHAPE;
  if (spatial) return CK_OK;
  if (!is_grouped(kind)) {
    if (conv->multiplier < 1) return CK_E_SHAPE;
    if (!ck_mul(conv->in_channels, conv->multiplier, &product)) return CK_E_OVERFLOW;
  }
  if (kind != CK_OP_DEPTHWISE && conv->out_channels < 1) return CK_E_SHAPE;
  if (is_grouped(kind) &&
      (conv->groups < 1 || conv->in_channels % conv->groups || conv->out_channels % conv->groups))
    return CK_E_SHAPE;
  return CK_OK;
}

/* Offsets that are there exactly where they are needed, and fit. */
static ck_status check_deform(const struct ck_run *run) {
  const ck_conv *conv = &run->op->conv;
  const ck_deform *deform = run->deform;
  const int element = conv->dtype == CK_F32 ? 4 : 8;
  int64_t channels;
  if (run->op->kind != CK_OP_DEFORM) return deform ? CK_E_SHAPE : CK_OK;
  if (!deform) return CK_E_NULL;
  if (deform->groups < 1 || conv->in_channels % deform->groups) return CK_E_SHAPE;
  if (!ck_mul(conv->window.kernel_h, conv->window.kernel_w, &channels) ||
      !ck_mul(channels, deform->groups, &channels) || !ck_mul(channels, 2, &channels) ||
      !ck_array_fits(run->image.batch, run->out_h, run->out_w, channels, element))
    return CK_E_OVERFLOW;
  return CK_OK;
}

/* Of fewer pixels an image's sums wait for their weights, which in parts take half as much again.
 */
enum { PARTS_PIXELS = 16 };

ck_status ck_check_run(struct ck_run *run) {
  const ck_image *i = &run->image;
  const ck_conv *conv = &run->op->conv;
  const int element = conv->dtype == CK_F32 ? 4 : 8;
  if (i->batch < 0 || i->channels < 1) return CK_E_SHAPE;
  if (is_grouped(run->op->kind)) {
    if (i->channels != conv->in_channels) return CK_E_SHAPE;
    run->group_in = conv->in_channels / conv->groups;
    run->group_out = conv->out_channels / conv->groups;
  } else if (run->op->kind == CK_OP_SPATIAL) {
    if (conv->in_channels && i->channels != conv->in_channels) return CK_E_SHAPE;
    run->group_in = run->group_out = 1;
  } else {
    const int64_t channels = conv->in_channels * conv->multiplier;
    if (channels % i->channels) return CK_E_SHAPE;
    run->group_in = 1;
    run->group_out = channels / i->channels;
  }
  const ck_status status = ck_output_size(&conv->window, i, &run->out_h, &run->out_w);
  if (status != CK_OK) return status;
  run->out_channels = channels_out(run->op->kind, conv, i);
  run->parts = run->out_h >= PARTS_PIXELS || run->out_w >= ck_ceil_div(PARTS_PIXELS, run->out_h);
  if (!ck_array_fits(i->batch, i->height, i->width, i->channels, element) ||
      !ck_array_fits(i->batch, run->out_h, run->out_w, run->out_channels, element))
    return CK_E_OVERFLOW;
  return check_deform(run);
}

bool ck_has_arrays(const struct ck_run *run) {
  return run->image.batch == 0 || (run->x && run->y && (!run->deform || run->deform->offset));
}

static void limit(ck_activation *a) { /* what is not a clamp does not clamp */
  if (a->kind == CK_ACT_CLAMP) return;
  a->low = -INFINITY;
  a->high = INFINITY;
}

static ck_status op_new(enum ck_op_kind kind, const ck_conv *conv, ck_op **out) {
  const ck_status status = ck_check_conv(kind, conv);
  if (status != CK_OK) return status;
  if (!ck_isa_available(conv->isa)) return CK_E_ISA;
  ck_op *op = ck_alloc(sizeof *op);
  if (!op) return CK_E_NOMEM;
  op->kind = kind;
  op->conv = *conv;
  op->kernels = ck_kernels_for(conv->isa, conv->dtype);
  limit(&op->conv.activation);
  limit(&op->conv.dw_activation);
  *out = op;
  return CK_OK;
}

ck_status ck_alloc_gemms(int64_t count, struct ck_gemm_weights **gemms, int64_t *allocated) {
  int64_t bytes;
  if (!ck_mul(count, (int64_t)sizeof **gemms, &bytes)) return CK_E_OVERFLOW;
  *gemms = ck_alloc((size_t)bytes);
  *allocated = *gemms ? count : 0;
  return *gemms ? CK_OK : CK_E_NOMEM;
}

static void free_gemm(struct ck_gemm_weights *w) {
  ck_free(w->data);
  ck_free(w->parts);
  ck_free(w->places);
  ck_free(w->bias);
}

void ck_op_destroy(ck_op *op) {
  if (!op) return;
  for (int64_t g = 0; g < op->gemms; ++g) free_gemm(&op->gemm[g]);
  for (int64_t i = 0; i < op->bundles; ++i) free_gemm(&op->bundle[i]);
  for (int64_t i = 0; i < op->plane_groups; ++i) free_gemm(&op->planes[i]);
  ck_free(op->gemm);
  ck_free(op->bundle);
  ck_free(op->planes);
  ck_free(op->dw.data);
  ck_free(op->dw.bias);
  ck_free(op->zeros);
  ck_free(op->column.data);
  ck_free(op->column.bias);
  ck_free(op);
}

/* Hand the operation over, or nothing. */
static ck_status finish(ck_status status, ck_op *op, ck_op **out) {
  if (status != CK_OK) {
    ck_op_destroy(op);
    op = NULL;
  }
  *out = op;
  return status;
}

/* Depthwise weights (kh, kw, C, m) as groups of one channel. */
static struct ck_group_weights depthwise_weights(const ck_weights *w) {
  return (struct ck_group_weights){.data = w->data,
                                   .ky = w->stride[0],
                                   .kx = w->stride[1],
                                   .group = w->stride[2],
                                   .out = w->stride[3]};
}

static ck_status pack_depthwise(ck_op *op, const ck_weights *w, const void *bias) {
  const ck_conv *conv = &op->conv;
  const struct ck_group_weights seen = depthwise_weights(w);
  return ck_pack_dw(op->kernels, &conv->window, conv->in_channels, 1, conv->multiplier, &seen, bias,
                    &op->dw);
}

ck_status ck_dwconv_create(const ck_conv *conv, const ck_weights *w, const void *bias,
                           ck_op **out) {
  if (out) *out = NULL;
  if (!conv || !w || !w->data || !out) return CK_E_NULL;
  ck_op *op = NULL;
  ck_status status = op_new(CK_OP_DEPTHWISE, conv, &op);
  if (status == CK_OK) status = pack_depthwise(op, w, bias);
  return finish(status, op, out);
}

static bool is_pointwise(const ck_conv *conv) {
  return conv->window.kernel_h == 1 && conv->window.kernel_w == 1;
}

/* A pointwise convolution of few channels takes not much longer than a conversion of the image. */
static bool are_few(int64_t in, int64_t out) { return in * out < 256 * (in + out); }

static bool planes_pay(const ck_conv *conv) {
  return is_pointwise(conv) &&
         are_few(conv->in_channels / conv->groups, conv->out_channels / conv->groups);
}

/* Whether groups share vectors, of staged windows, of which a vector of output reads one for each
 * channel of a group. Those of at most half a vector do, and with dilation, where an im2col is made
 * of short pieces, those of up to a whole one, as long as staging these, from which it is
 * multiplied by so many weights, takes less than a GEMM of a bundle, whose FMAs are wider (measured
 * at stride 1 and 2, with vectors of 4, 8 and 16, of 2 to 32 channels); and one of a whole vector
 * that reads few channels. For a pointwise convolution there is nothing to stage, and bundles are
 * faster unless groups are many that have few terms, or make pairs; but not where lanes are pixels,
 * which never idle. */
enum { FEW_TERMS = 4, STAGED_TIME = 3, MULTIPLIED_TIME = 32 };

static bool staging_pays(const ck_op *op, int64_t in, int64_t out) {
  const ck_window *w = &op->conv.window;
  const int64_t lanes = op->kernels->lanes, groups = ck_min(op->conv.groups, lanes / out);
  const double staged = (double)in * (double)w->stride_h * (double)w->stride_w * (double)lanes;
  const double taps = (double)w->kernel_h * (double)w->kernel_w;
  return staged * STAGED_TIME <= taps * (double)groups * MULTIPLIED_TIME;
}

static bool groups_share(const ck_op *op) {
  const ck_conv *conv = &op->conv;
  const int64_t lanes = op->kernels->lanes;
  const int64_t in = conv->in_channels / conv->groups, out = conv->out_channels / conv->groups;
  if (conv->groups == 1) return false;
  if (is_pointwise(conv))
    return conv->layout == CK_NHWC &&
           ((2 * out < lanes && in <= ck_min(out, ck_min(conv->groups, FEW_TERMS))) ||
            ck_makes_pairs(op->kernels, in, out));
  if (out == lanes && in <= lanes / 4) return true;
  const int64_t most = conv->window.dilation_w > 1 ? lanes : lanes / 2;
  return out <= most && staging_pays(op, in, out);
}

static ck_status pack_shared_groups(ck_op *op, const ck_weights *w, const void *bias) {
  const ck_conv *conv = &op->conv;
  const int64_t group_out = conv->out_channels / conv->groups;
  const struct ck_group_weights seen = {.data = w->data,
                                        .ky = w->stride[0],
                                        .kx = w->stride[1],
                                        .in = w->stride[2],
                                        .group = group_out * w->stride[3],
                                        .out = w->stride[3]};
  op->kind = CK_OP_GROUPED;
  return ck_pack_dw(op->kernels, &conv->window, conv->groups, conv->in_channels / conv->groups,
                    group_out, &seen, bias, &op->dw);
}

static ck_status pack_groups(ck_op *op, ck_layout layout, const ck_weights *w, const void *bias) {
  const int64_t together = op->kind == CK_OP_CONV2D ? ck_groups_together(op, layout) : 1;
  ck_status status = ck_pack_groups(op, layout, 1, w, bias, &op->gemm, &op->gemms);
  if (status == CK_OK && together > 1)
    status = ck_pack_groups(op, layout, together, w, bias, &op->bundle, &op->bundles);
  return status;
}

ck_status ck_conv2d_create(const ck_conv *conv, const ck_weights *w, const void *bias,
                           ck_op **out) {
  if (out) *out = NULL;
  if (!conv || !w || !w->data || !out) return CK_E_NULL;
  ck_op *op = NULL;
  ck_status status = op_new(CK_OP_CONV2D, conv, &op);
  if (status == CK_OK && conv->groups == conv->in_channels && conv->groups > 1) {
    /* One input channel a group is a depthwise: (kh, kw, 1, C * m) seen as (kh, kw, C, m). */
    op->kind = CK_OP_DEPTHWISE;
    op->conv.multiplier = conv->out_channels / conv->groups;
    const ck_weights seen = {
        w->data, {w->stride[0], w->stride[1], op->conv.multiplier * w->stride[3], w->stride[3]}};
    status = pack_depthwise(op, &seen, bias);
  } else if (status == CK_OK) {
    status = groups_share(op) ? pack_shared_groups(op, w, bias)
                              : pack_groups(op, planes_pay(conv) ? conv->layout : CK_NHWC, w, bias);
    if (status == CK_OK && ck_staged_planes_may_pay(op))
      status = ck_pack_groups(op, CK_NCHW, 1, w, bias, &op->planes, &op->plane_groups);
  }
  return finish(status, op, out);
}

/* Samples are of pixels, in either layout: the panel is NHWC. */
ck_status ck_deform_create(const ck_conv *conv, const ck_weights *w, const void *bias,
                           ck_op **out) {
  if (out) *out = NULL;
  if (!conv || !w || !w->data || !out) return CK_E_NULL;
  ck_op *op = NULL;
  ck_status status = op_new(CK_OP_DEFORM, conv, &op);
  if (status == CK_OK) status = pack_groups(op, CK_NHWC, w, bias);
  if (status == CK_OK) {
    op->zeros = ck_alloc((size_t)(conv->in_channels / conv->groups * op->kernels->element));
    if (!op->zeros) status = CK_E_NOMEM;
  }
  return finish(status, op, out);
}

ck_status ck_sepconv_create(const ck_conv *conv, const ck_weights *dw, const void *dw_bias,
                            const ck_weights *pw, const void *bias, ck_op **out) {
  if (out) *out = NULL;
  if (!conv || !dw || !dw->data || !pw || !pw->data || !out) return CK_E_NULL;
  const ck_window one = {1, 1, 1, 1, 1, 1};
  ck_op *op = NULL;
  ck_status status = op_new(CK_OP_SEPARABLE, conv, &op);
  if (status == CK_OK) status = pack_depthwise(op, dw, dw_bias);
  if (status == CK_OK) status = ck_alloc_gemms(1, &op->gemm, &op->gemms);
  if (status == CK_OK)
    status = ck_pack_gemm(op->kernels, CK_NHWC, &one, op->dw.channels, conv->out_channels, pw, bias,
                          op->gemm);
  if (status == CK_OK && ck_separable_planes_may_pay(op) &&
      are_few(op->dw.channels, conv->out_channels))
    status = ck_alloc_gemms(1, &op->planes, &op->plane_groups);
  if (status == CK_OK && op->planes)
    status = ck_pack_gemm(op->kernels, CK_NCHW, &one, op->dw.channels, conv->out_channels, pw, bias,
                          op->planes);
  return finish(status, op, out);
}

/* One of the two depthwise steps; one kernel for all channels is packed as a vector of channels. */
static ck_status pack_axis(const ck_op *op, const ck_window *window, const ck_weights *w,
                           const void *bias, struct ck_dw_weights *packed) {
  const bool alike = op->conv.in_channels == 0;
  struct ck_group_weights seen = depthwise_weights(w);
  if (alike) seen.group = 0;
  return ck_pack_dw(op->kernels, window, alike ? op->kernels->lanes : op->conv.in_channels, 1, 1,
                    &seen, bias, packed);
}

ck_status ck_spatial_create(const ck_conv *conv, const ck_weights *column, const ck_weights *row,
                            const void *bias, ck_op **out) {
  if (out) *out = NULL;
  if (!conv || !column || !column->data || !row || !row->data || !out) return CK_E_NULL;
  if (bias && conv->in_channels == 0) return CK_E_SHAPE;
  const ck_window tall = {conv->window.kernel_h, 1, 1, 1, 1, 1};
  const ck_window wide = {1, conv->window.kernel_w, 1, 1, 1, 1};
  ck_op *op = NULL;
  ck_status status = op_new(CK_OP_SPATIAL, conv, &op);
  if (status == CK_OK) status = pack_axis(op, &tall, column, NULL, &op->column);
  if (status == CK_OK) status = pack_axis(op, &wide, row, bias, &op->dw);
  return finish(status, op, out);
}

ck_status ck_turn_create(ck_isa isa, ck_dtype dtype, ck_layout to, int64_t channels, ck_op **out) {
  const ck_conv conv = {.isa = isa,
                        .dtype = dtype,
                        .layout = to,
                        .window = {1, 1, 1, 1, 1, 1},
                        .in_channels = channels,
                        .out_channels = channels,
                        .groups = 1,
                        .multiplier = 1};
  return op_new(CK_OP_TURN, &conv, out);
}

/* How a run is driven. In NCHW most operations run in bands of NHWC, but
 *   a deformable convolution reads anywhere,
 *   convolutions of few channels multiply planes, of wide images those with windows, too,
 *   a depthwise works on planes, or turns their rows into pixels itself. */
struct driver {
  ck_status (*workspace)(const struct ck_run *, size_t *); /* or null: it needs none */
  void (*run)(const struct ck_run *, void *);
  int64_t unit; /* see ck_run_unit */
};

/* Whole bundles or groups, or panels of one; planes' tiles are of several heights. */
static int64_t columns_unit(const struct ck_op *op) {
  if (op->bundles) return op->bundle->columns;
  if (op->gemms > 1) return op->gemm->columns;
  return op->gemms == 1 && op->gemm->layout == CK_NHWC ? op->gemm->panel_columns : 0;
}

static struct driver driver_of(const struct ck_run *run) {
  const struct ck_op *op = run->op;
  const int64_t lanes = op->kernels->lanes;
  const struct driver bands = {ck_bands_workspace, ck_bands_run, 0};
  const struct driver planes = {ck_planar_workspace, ck_planar_run, run->group_out};
  const struct driver narrow = {NULL, ck_dw_narrow_run, 1};
  const struct driver conv2d = {ck_conv2d_workspace, ck_conv2d_run, columns_unit(op)};
  const struct driver depthwise = {ck_dwconv_workspace, ck_dwconv_run, lanes};
  const struct driver staged = {ck_dw_planes_workspace, ck_dw_planes_run, lanes};
  const struct driver separable = {ck_sepconv_workspace, ck_sepconv_run, columns_unit(op)};
  const struct driver fused = {ck_sepconv_workspace, ck_sepconv_run, 0};
  const struct driver windows = {ck_conv2d_workspace, ck_conv2d_run, 0};
  const struct driver spatial = {ck_spatial_workspace, ck_spatial_run, lanes};
  const struct driver turn = {NULL, ck_turn_run, 0};
  const bool planar = op->conv.layout == CK_NCHW;
  switch (op->kind) {
    case CK_OP_CONV2D:
      if (!planar || op->gemm->layout == CK_NCHW) return conv2d;
      return ck_staged_planes_pay(run) ? windows : bands;
    case CK_OP_DEFORM: return conv2d;
    case CK_OP_GROUPED:
      if (!planar) return depthwise;
      return ck_staged_planes_pay(run) ? windows : bands;
    case CK_OP_TURN: return turn;
    case CK_OP_SEPARABLE:
      if (!planar) return separable;
      return ck_separable_planes_pay(run) ? fused : bands;
    case CK_OP_SPATIAL:
      if (!planar) return spatial;
      return ck_dw_planes_pay(run) ? planes : bands;
    default:
      if (!planar) return depthwise;
      if (ck_dw_is_narrow(run)) return narrow;
      if (ck_dw_planes_pay(run)) return planes;
      return run->group_out > 1 ? bands : staged;
  }
}

ck_status ck_run_workspace(const struct ck_run *run, size_t *bytes) {
  const struct driver driver = driver_of(run);
  *bytes = 0;
  return driver.workspace ? driver.workspace(run, bytes) : CK_OK;
}

void ck_run_op(const struct ck_run *run, void *workspace) { driver_of(run).run(run, workspace); }

int64_t ck_run_unit(const struct ck_run *run) { return driver_of(run).unit; }

ck_status ck_deform_workspace_size(const ck_op *op, const ck_image *image, const ck_deform *deform,
                                   int threads, size_t *bytes) {
  if (!op || !image || !bytes) return CK_E_NULL;
  struct ck_split split;
  struct ck_run run = {.op = op, .image = *image, .deform = deform};
  if (image->batch == 0) run.image.batch = 1; /* products of 0 would hide an overflow */
  ck_status status = ck_check_run(&run);
  if (status == CK_OK) status = ck_split_of(&run, threads, &split);
  if (status == CK_OK) *bytes = split.bytes;
  return status;
}

ck_status ck_op_workspace_size(const ck_op *op, const ck_image *image, int threads, size_t *bytes) {
  return ck_deform_workspace_size(op, image, NULL, threads, bytes);
}

ck_status ck_deform_run(const ck_op *op, const ck_image *image, const ck_deform *deform,
                        const void *x, const void *residual, void *y, int threads, void *workspace,
                        size_t workspace_bytes) {
  if (!op || !image) return CK_E_NULL;
  struct ck_run run = {
      .op = op, .image = *image, .x = x, .residual = residual, .y = y, .deform = deform};
  struct ck_split split;
  ck_status status = ck_check_run(&run);
  if (status == CK_OK && !ck_has_arrays(&run)) status = CK_E_NULL;
  if (status != CK_OK || image->batch == 0) return status;
  status = ck_split_of(&run, threads, &split);
  if (status != CK_OK) return status;
  if (!workspace || workspace_bytes < split.bytes) return CK_E_WORKSPACE;
  const uint64_t saved = ck_fp_enter();
  ck_split_run(&split, workspace);
  ck_fp_leave(saved);
  return CK_OK;
}

ck_status ck_op_run(const ck_op *op, const ck_image *image, const void *x, const void *residual,
                    void *y, int threads, void *workspace, size_t workspace_bytes) {
  return ck_deform_run(op, image, NULL, x, residual, y, threads, workspace, workspace_bytes);
}
