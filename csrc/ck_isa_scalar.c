/* The plain C kernels, float32 (float64: ck_isa_scalar_f64.c). */
#include "ck_impl.h"
#include "isa/target.h"

#define CK_ISA scalar
#define CK_ISA_TOKEN CK_ISA_SCALAR
#include "isa/real.h"
#include "isa/vec_scalar.h"
#include "isa/table.h"
