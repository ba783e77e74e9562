/* Included last by each ck_isa_<isa>.c: the kernels, written once over the verbs, and their table.
 */
#define CK_KERNEL(name, args) void CK_FN(name)(args *);
#define CK_PARTS_KERNEL(name, args)
#if !VF_LOADS_MASK
#define CK_MASK_KERNEL(name, args)
#endif
#include "ck_kernels.inc"
#undef CK_KERNEL
#include "kernels/common.tpl.h"
#include "kernels/gemm.tpl.h"
#include "kernels/fill.tpl.h"
#include "kernels/deform.tpl.h"
#include "kernels/dwconv3x3.tpl.h"
#include "kernels/dwconvKxK.tpl.h"
#include "kernels/dwconvKx1.tpl.h"
#include "kernels/dwconv1x1.tpl.h"
#include "kernels/planar.tpl.h"
#if VF_LOADS_MASK
#include "kernels/narrow.tpl.h"
#endif
#include "kernels/transpose.tpl.h"
#include "kernels/activate.tpl.h"
#include "kernels/pool.tpl.h"
#include "kernels/probe.tpl.h"

const struct ck_kernels CK_FN(kernels) = {
    .isa = CK_ISA_TOKEN,
    .dtype = CK_REAL_DTYPE,
    .element = (int)sizeof(real),
    .lanes = VF_LANES,
    .gemm_rows = VF_GEMM_ROWS,
    .gemm_vectors = GEMM_MAX_VECTORS,
    .gemm_halves = VF_HAS_HALVES,
    .masks = VF_LOADS_MASK,
    .dw_rows = VF_DW_ROWS,
#define CK_KERNEL(name, args) .name = CK_FN(name),
#define CK_PARTS_KERNEL(name, args) .name = NULL,
#if !VF_LOADS_MASK
#define CK_MASK_KERNEL(name, args) .name = NULL,
#endif
#include "ck_kernels.inc"
#undef CK_KERNEL
};
