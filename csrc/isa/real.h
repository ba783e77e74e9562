/* The element type of this translation unit: float, or double where CK_REAL_BITS is 64. */
#ifndef CK_REAL_BITS
#define CK_REAL_BITS 32
#endif

#if CK_REAL_BITS == 32
typedef float real;
typedef uint32_t real_bits;
#define CK_REAL_DTYPE CK_F32
#define CK_REAL_NAME f32
#define CK_MANTISSA_BITS 23
#define CK_EXPONENT_BIAS 127
#else
typedef double real;
typedef uint64_t real_bits;
#define CK_REAL_DTYPE CK_F64
#define CK_REAL_NAME f64
#define CK_MANTISSA_BITS 52
#define CK_EXPONENT_BIAS 1023
#endif

/* Adding this to a small integral number leaves the integer in the low bits of the mantissa. */
#define CK_ROUND_MAGIC ((real)(1.5 * (double)((real_bits)1 << CK_MANTISSA_BITS)))

#define CK_PASTE4_(a, b, c, d) a##b##_##c##_##d
#define CK_PASTE4(a, b, c, d) CK_PASTE4_(a, b, c, d)
/* CK_FN(gemm) is ck_gemm_f32_avx512. */
#define CK_FN(name) CK_PASTE4(ck_, name, CK_REAL_NAME, CK_ISA)
