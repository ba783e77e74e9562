/* The SSE2 kernels, float32 (float64: ck_isa_sse2_f64.c). */
#include "ck_impl.h"
#include "isa/target.h"

#if CK_X86
#ifdef __AVX__
#error "build without -mavx or -march=native: this file must run on any x86-64"
#endif

#define CK_ISA sse2
#define CK_ISA_TOKEN CK_ISA_SSE2
#include "isa/real.h"

CK_TARGET_BEGIN("sse2")
#include "isa/vec_sse2.h"
#include "isa/table.h"
CK_TARGET_END
#endif
