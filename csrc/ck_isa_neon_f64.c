/* The NEON kernels once more, for float64. */
#define CK_REAL_BITS 64
#include "ck_isa_neon.c"
