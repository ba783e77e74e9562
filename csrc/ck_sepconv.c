/* Separable: the depthwise writes the panel, and its output exists nowhere else. */
#include "ck_impl.h"

struct sep_fill {
  const struct ck_run *run;
  const void **rows;
};

static void fill_depthwise(const void *context, const struct ck_block *block, int64_t begin,
                           int64_t end, const struct ck_panel *panel) {
  const struct sep_fill *f = context;
  const struct ck_op *op = f->run->op;
  const struct ck_kernels *k = op->kernels;
  const ck_activation *activation = &op->conv.dw_activation;
  ck_dw_block(f->run, block, begin, end, panel->data, panel->offset,
              (int64_t)k->gemm_rows * k->lanes, activation, f->rows);
  if (activation->kind != CK_ACT_CLAMP)
    k->activate(
        &(struct ck_act_args){panel->data, 1, panel->elements, panel->elements, activation->kind});
}

static struct ck_gemm gemm_of(const struct ck_run *run, const struct sep_fill *fill) {
  const struct ck_op *op = run->op;
  struct ck_gemm g = {
      .kernels = op->kernels,
      .weights = op->gemm,
      .fill = fill_depthwise,
      .context = fill,
      .run = run,
      .residual = run->residual,
      .y = run->y,
      .y_step = op->conv.out_channels,
      .activation = op->conv.activation,
  };
  return g;
}

static size_t rows_bytes(const struct ck_run *run) {
  return (size_t)ck_dw_row_pointers(run) * sizeof(void *);
}

ck_status ck_sepconv_workspace(const struct ck_run *run, size_t *bytes) {
  const struct ck_gemm g = gemm_of(run, NULL);
  const ck_status status = ck_gemm_workspace(&g, bytes);
  *bytes += rows_bytes(run) + CK_ALIGN;
  return status;
}

void ck_sepconv_run(const struct ck_run *run, void *workspace) {
  const struct sep_fill fill = {run, ck_align(workspace)};
  const struct ck_gemm g = gemm_of(run, &fill);
  ck_gemm_run(&g, (char *)fill.rows + rows_bytes(run));
}
