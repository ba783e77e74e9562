/* AMX-BF16: matrix products of numbers in three parts. All else is AVX-512's, and float64 is too.
 */
#include "ck_impl.h"
#include "isa/target.h"

#if CK_AMX
#define CK_ISA amx
#include "isa/real.h"
#define CK_AVX512_FN(name) CK_PASTE4(ck_, name, CK_REAL_NAME, avx512)
#define CK_KERNEL(name, args) void CK_AVX512_FN(name)(args *);
#define CK_PARTS_KERNEL(name, args)
#include "ck_kernels.inc"
#undef CK_KERNEL
#undef CK_PARTS_KERNEL

CK_TARGET_BEGIN("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,amx-tile,amx-bf16")
#include "isa/vec_avx512.h"
#include "isa/vec_amx.h"
#include "kernels/gemm_parts.tpl.h"
CK_TARGET_END

const struct ck_kernels CK_FN(kernels) = {
    .isa = CK_ISA_AMX,
    .dtype = CK_REAL_DTYPE,
    .element = (int)sizeof(real),
    .lanes = VF_LANES,
    .gemm_rows = VF_GEMM_ROWS,
    .gemm_vectors = PARTS_TILES,
    .gemm_halves = VF_HAS_HALVES,
    .masks = VF_LOADS_MASK,
    .dw_rows = VF_DW_ROWS,
    .part_rows = VT_ROWS,
    .part_terms = PARTS_TERMS,
    .part_bytes = PARTS * (int)sizeof(uint16_t),
#define CK_KERNEL(name, args) .name = CK_AVX512_FN(name),
#define CK_PARTS_KERNEL(name, args) .name = CK_FN(name),
#include "ck_kernels.inc"
#undef CK_KERNEL
};
#endif
