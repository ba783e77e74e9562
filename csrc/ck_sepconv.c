/* Separable: the depthwise writes the panel, and its output exists nowhere else. */
#include "ck_impl.h"

static void fill_depthwise(const void *context, const struct ck_block *block, int64_t begin,
                           int64_t end, const struct ck_panel *panel) {
  const struct ck_dw_fill *f = context;
  const struct ck_op *op = f->run->op;
  const struct ck_kernels *k = op->kernels;
  if (f->inverted) {
    ck_fill_inverted(f, block, panel);
    return;
  }
  const struct ck_dw_target target = {
      .out = panel->data,
      .offset = panel->offset,
      .out_step = (int64_t)k->gemm_rows * k->lanes,
      .channel_begin = begin,
      .channel_end = end,
      .activation = &op->conv.dw_activation,
  };
  ck_dw_block(f->run, block, &target, f->scratch);
  if (op->conv.dw_activation.kind != CK_ACT_CLAMP)
    k->activate(&(struct ck_act_args){panel->data, 1, panel->elements, panel->elements,
                                      op->conv.dw_activation.kind});
}

/* Of the channels that the run makes, which are all on planes; `weights` are theirs. */
static struct ck_gemm gemm_of(const struct ck_run *run, const struct ck_dw_fill *fill,
                              struct ck_gemm_weights *weights) {
  const struct ck_op *op = run->op;
  const bool planar = op->conv.layout == CK_NCHW;
  const struct ck_span channels = ck_channels(run);
  const int element = op->kernels->element;
  *weights = ck_gemm_columns(op->kernels, planar ? op->planes : op->gemm, channels);
  struct ck_gemm g = {
      .kernels = op->kernels,
      .weights = weights,
      .fill = planar ? ck_fill_separable_planes : fill_depthwise,
      .context = fill,
      .run = run,
      .residual = run->residual ? ck_at(run->residual, channels.begin, element) : NULL,
      .y = run->y ? ck_at_mut(run->y, channels.begin, element) : NULL,
      .y_step = planar ? ck_out_plane(run) : ck_y_step(run),
      .activation = op->conv.activation,
  };
  return g;
}

ck_status ck_sepconv_workspace(const struct ck_run *run, size_t *bytes) {
  struct ck_gemm_weights weights;
  const struct ck_gemm g = gemm_of(run, NULL, &weights);
  size_t gemm, scratch;
  ck_status status = ck_gemm_workspace(&g, &gemm);
  const struct ck_blocking b = ck_gemm_blocking(&g);
  if (status == CK_OK && weights.layout == CK_NCHW)
    status = ck_dw_panel_scratch(run, &b, &scratch);
  else if (status == CK_OK)
    status =
        run->expand ? ck_inverted_scratch(run, &scratch) : ck_dw_scratch(run, b.cols, &scratch);
  if (status != CK_OK) return status;
  *bytes = gemm + scratch;
  return CK_OK;
}

void ck_sepconv_run(const struct ck_run *run, void *workspace) {
  struct ck_dw_fill fill = {.run = run};
  struct ck_gemm_weights weights;
  const struct ck_gemm g = gemm_of(run, &fill, &weights);
  size_t gemm = 0;
  ck_gemm_workspace(&g, &gemm);
  fill.scratch = (char *)workspace + gemm;
  ck_inverted_start(&fill);
  ck_gemm_run(&g, workspace);
}
