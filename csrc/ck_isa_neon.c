/* The NEON kernels, float32 (float64: ck_isa_neon_f64.c). */
#include "ck_impl.h"
#include "isa/target.h"

#if CK_ARM64
#define CK_ISA neon
#define CK_ISA_TOKEN CK_ISA_NEON
#include "isa/real.h"

/* No target region: NEON is a part of AArch64. */
CK_REGISTERS_FIRST_BEGIN
#include "isa/vec_neon.h"
#include "isa/table.h"
CK_REGISTERS_FIRST_END
#endif
