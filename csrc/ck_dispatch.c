/* ISA and dtype -> table of kernels. Which tables exist is decided by the target, which one a
 * caller may use by ck_isa_available(). */
#include "ck_impl.h"

#define CK_TABLES(isa) \
  { &ck_kernels_f32_##isa, &ck_kernels_f64_##isa }
#define CK_DECLARE(isa) extern const struct ck_kernels ck_kernels_f32_##isa, ck_kernels_f64_##isa

CK_DECLARE(scalar);
#if CK_X86
CK_DECLARE(sse2);
CK_DECLARE(avx2);
CK_DECLARE(avx512);
#elif CK_ARM64
CK_DECLARE(neon);
#endif
#if CK_AMX
extern const struct ck_kernels ck_kernels_f32_amx;
#endif

static const struct ck_kernels *const tables[CK_ISA_COUNT][CK_DTYPE_COUNT] = {
    [CK_ISA_SCALAR] = CK_TABLES(scalar),
#if CK_X86
    [CK_ISA_SSE2] = CK_TABLES(sse2),
    [CK_ISA_AVX2] = CK_TABLES(avx2),
    [CK_ISA_AVX512] = CK_TABLES(avx512),
#elif CK_ARM64
    [CK_ISA_NEON] = CK_TABLES(neon),
#endif
#if CK_AMX
    [CK_ISA_AMX] = {&ck_kernels_f32_amx, &ck_kernels_f64_avx512},
#endif
};

const struct ck_kernels *ck_kernels_for(ck_isa isa, ck_dtype dtype) {
  if ((unsigned)isa >= CK_ISA_COUNT || (unsigned)dtype >= CK_DTYPE_COUNT) return NULL;
  return tables[isa][dtype];
}

ck_status ck_tile(ck_isa isa, ck_dtype dtype, int64_t *rows, int64_t *columns, int64_t *lanes) {
  const struct ck_kernels *k = ck_kernels_for(isa, dtype);
  if (!k) return CK_E_ISA;
  if (!rows || !columns || !lanes) return CK_E_NULL;
  *rows = k->gemm_rows;
  *columns = (int64_t)k->gemm_vectors * k->lanes;
  *lanes = k->lanes;
  return CK_OK;
}

const char *ck_kernel_name(int index) {
  static const char *const names[] = {
#define CK_KERNEL(name, args) #name,
#include "ck_kernels.inc"
#undef CK_KERNEL
  };
  const int count = (int)(sizeof names / sizeof *names);
  return index >= 0 && index < count ? names[index] : NULL;
}

int ck_kernel_present(ck_isa isa, ck_dtype dtype, int index) {
  const struct ck_kernels *k = ck_kernels_for(isa, dtype);
  if (!k) return 0;
  const int present[] = {
#define CK_KERNEL(name, args) k->name != NULL,
#include "ck_kernels.inc"
#undef CK_KERNEL
  };
  return ck_kernel_name(index) ? present[index] : 0;
}
