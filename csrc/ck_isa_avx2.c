/* The AVX2 kernels, float32 (float64: ck_isa_avx2_f64.c). */
#include "ck_impl.h"
#include "isa/target.h"

#if CK_X86
#define CK_ISA avx2
#define CK_ISA_TOKEN CK_ISA_AVX2
#include "isa/real.h"

CK_TARGET_BEGIN("avx2,fma")
#include "isa/vec_avx2.h"
#include "isa/table.h"
CK_TARGET_END
#endif
