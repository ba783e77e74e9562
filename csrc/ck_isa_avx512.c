/* The AVX-512 kernels, float32 (float64: ck_isa_avx512_f64.c). */
#include "ck_impl.h"
#include "isa/target.h"

#if CK_X86
#define CK_ISA avx512
#define CK_ISA_TOKEN CK_ISA_AVX512
#include "isa/real.h"

CK_TARGET_BEGIN("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma")
#include "isa/vec_avx512.h"
#include "isa/table.h"
CK_TARGET_END
#endif
