/* What this CPU has: features, caches, name, and how fast it does nothing. */
#include <time.h>

#include "ck_impl.h"

#if CK_X86
#include <cpuid.h>
#endif
#if CK_X86 && defined(__linux__)
#include <sys/syscall.h>
#endif
#if CK_ARM64 && defined(__linux__)
#include <sys/auxv.h>
#endif
#if defined(__unix__) || defined(__APPLE__)
#include <unistd.h>
#endif

struct feature {
  int bit;
  const char *name;
};

/* The names of the bits that are set. */
static const char *names_of(uint64_t has, const struct feature *table, size_t count) {
  static _Thread_local char text[160];
  text[0] = '\0';
  for (size_t i = 0; i < count; ++i) {
    if (!(has >> table[i].bit & 1)) continue;
    if (text[0]) strcat(text, " ");
    strcat(text, table[i].name);
  }
  return text;
}

#if CK_X86

/* Whether the CPU has AMX-BF16, and Linux lets this process use it: the 8 KiB of tile registers are
 * part of a thread's state, and their use is asked for once per process. */
static bool ask_for_amx(void) {
#if defined(__linux__) && defined(__x86_64__)
  enum { ARCH_REQ_XCOMP_PERM = 0x1023, TILE_DATA = 18 }; /* of asm/prctl.h */
  enum { AMX_BF16 = 1 << 22, AMX_TILE = 1 << 24 };       /* of leaf 7, edx */
  unsigned a, b, c, d;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
  if (!(d & AMX_BF16) || !(d & AMX_TILE)) return false;
  return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, TILE_DATA) == 0;
#else
  return false;
#endif
}

static bool has_amx(void) {
  enum { UNKNOWN, NO, YES };
  static _Atomic int known = UNKNOWN;
  if (known == UNKNOWN) known = ask_for_amx() ? YES : NO;
  return known == YES;
}

static bool cpu_has(ck_isa isa) {
  /* These builtins read cpuid, and xgetbv for what the operating system saves. */
  __builtin_cpu_init();
  switch (isa) {
    case CK_ISA_SCALAR: return true;
    case CK_ISA_SSE2: return __builtin_cpu_supports("sse2");
    case CK_ISA_AVX2: return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    case CK_ISA_AVX512:
      return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
             __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    case CK_ISA_AMX: return cpu_has(CK_ISA_AVX512) && has_amx();
    default: return false;
  }
}

const char *ck_cpu_features(void) {
  static const struct feature table[] = {{0, "sse2"},       {1, "sse4.2"},      {2, "avx"},
                                         {3, "avx2"},       {4, "fma"},         {5, "avx512f"},
                                         {6, "avx512bw"},   {7, "avx512vl"},    {8, "avx512dq"},
                                         {9, "avx512vnni"}, {10, "avx512bf16"}, {11, "amx"}};
  __builtin_cpu_init();
  unsigned has = 0;
  has |= !!__builtin_cpu_supports("sse2") << 0 | !!__builtin_cpu_supports("sse4.2") << 1;
  has |= !!__builtin_cpu_supports("avx") << 2 | !!__builtin_cpu_supports("avx2") << 3;
  has |= !!__builtin_cpu_supports("fma") << 4 | !!__builtin_cpu_supports("avx512f") << 5;
  has |= !!__builtin_cpu_supports("avx512bw") << 6 | !!__builtin_cpu_supports("avx512vl") << 7;
  has |= !!__builtin_cpu_supports("avx512dq") << 8 | !!__builtin_cpu_supports("avx512vnni") << 9;
  has |= !!__builtin_cpu_supports("avx512bf16") << 10 | has_amx() << 11;
  return names_of(has, table, sizeof table / sizeof *table);
}

const char *ck_cpu_name(void) {
  static _Thread_local char name[49];
  unsigned words[12];
  if ((unsigned)__get_cpuid_max(0x80000000u, NULL) < 0x80000004u) return "unknown x86";
  for (unsigned leaf = 0; leaf < 3; ++leaf) {
    unsigned *w = words + 4 * leaf;
    __get_cpuid(0x80000002u + leaf, w, w + 1, w + 2, w + 3);
  }
  memcpy(name, words, 48);
  name[48] = '\0';
  size_t length = strlen(name), start = strspn(name, " ");
  while (length > start && name[length - 1] == ' ') name[--length] = '\0';
  return name + start;
}

/* The size of the data or unified cache of a level, by the deterministic cache parameters: leaf 4
 * on Intel, 0x8000001D on AMD, in the same format. */
static int64_t cache_bytes(unsigned level) {
  unsigned a, b, c, d;
  const unsigned leaves[] = {4u, 0x8000001Du};
  for (int l = 0; l < 2; ++l) {
    if ((unsigned)__get_cpuid_max(leaves[l] & 0x80000000u, NULL) < leaves[l]) continue;
    for (unsigned i = 0; i < 8; ++i) {
      __cpuid_count(leaves[l], i, a, b, c, d);
      const unsigned type = a & 31, its_level = a >> 5 & 7;
      if (type == 0) break;
      if (type == 2 || its_level != level) continue; /* 2: instructions */
      const int64_t ways = (b >> 22) + 1, partitions = (b >> 12 & 1023) + 1, line = (b & 4095) + 1;
      return ways * partitions * line * ((int64_t)c + 1);
    }
  }
  return 0;
}

#else

enum { ASIMD_BIT = 1 }; /* of Linux's HWCAP, whose bits never change */

static uint64_t hwcap(void) {
#if CK_ARM64 && defined(__linux__)
  return getauxval(AT_HWCAP);
#else
  return (uint64_t)CK_ARM64 << ASIMD_BIT; /* every AArch64 that macOS runs on */
#endif
}

static bool cpu_has(ck_isa isa) {
  return isa == CK_ISA_SCALAR || (isa == CK_ISA_NEON && hwcap() >> ASIMD_BIT & 1);
}

const char *ck_cpu_features(void) {
  static const struct feature table[] = {
      {ASIMD_BIT, "neon"}, {10, "fp16"}, {20, "dotprod"}, {22, "sve"}};
  return names_of(hwcap(), table, sizeof table / sizeof *table);
}

const char *ck_cpu_name(void) { return CK_ARM64 ? "arm64" : "unknown"; }

static int64_t cache_bytes(unsigned level) {
#if defined(_SC_LEVEL1_DCACHE_SIZE)
  const long bytes = sysconf(level == 1 ? _SC_LEVEL1_DCACHE_SIZE : _SC_LEVEL2_CACHE_SIZE);
  return bytes > 0 ? bytes : 0;
#else
  (void)level;
  return 0;
#endif
}

#endif

/* Asked once: under a hypervisor a cpuid costs microseconds. Where the CPU does not say, what every
 * one of the last ten years has at least. */
static int64_t remember(_Atomic int64_t *known, unsigned level, int64_t at_least) {
  if (*known == 0) {
    const int64_t bytes = cache_bytes(level);
    *known = bytes > 0 ? bytes : at_least;
  }
  return *known;
}

int64_t ck_cpu_l1d_bytes(void) {
  static _Atomic int64_t known;
  return remember(&known, 1, 32 << 10);
}

int64_t ck_cpu_l2_bytes(void) {
  static _Atomic int64_t known;
  return remember(&known, 2, 256 << 10);
}

/* The one symbol that others see: threadpoolctl knows the library by it. */
__attribute__((visibility("default"))) const char *ck_compiler(void) {
#if defined(__clang__)
  return __VERSION__;
#else
  return "gcc " __VERSION__;
#endif
}

static const char *const isa_names[CK_ISA_COUNT] = {"scalar", "sse2", "avx2",
                                                    "avx512", "neon", "amx"};

const char *ck_isa_name(ck_isa isa) { return (unsigned)isa < CK_ISA_COUNT ? isa_names[isa] : NULL; }

int ck_isa_available(ck_isa isa) {
  return (unsigned)isa < CK_ISA_COUNT && cpu_has(isa) && ck_kernels_for(isa, CK_F32) != NULL;
}

ck_isa ck_isa_best(void) {
  for (int isa = CK_ISA_COUNT - 1; isa > 0; --isa)
    if (ck_isa_available((ck_isa)isa)) return (ck_isa)isa;
  return CK_ISA_SCALAR;
}

static double seconds(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

ck_status ck_probe_fma(ck_isa isa, ck_dtype dtype, double *flops_per_second) {
  if (!flops_per_second) return CK_E_NULL;
  if (!ck_isa_available(isa)) return CK_E_ISA;
  const struct ck_kernels *k = ck_kernels_for(isa, dtype);
  if (!k) return CK_E_ISA;
  struct ck_probe_args args = {.iterations = 1000};
  k->probe_fma(&args); /* wakes the vector units */
  args.iterations = 100000;
  const double start = seconds();
  k->probe_fma(&args);
  *flops_per_second = args.flops / (seconds() - start);
  return CK_OK;
}

double ck_probe_nop(void) {
  enum { NOPS = 64, ITERATIONS = 50000 };
  const double start = seconds();
  for (int i = 0; i < ITERATIONS; ++i) {
#if defined(__GNUC__)
    __asm__ volatile(".rept 64\n\tnop\n\t.endr");
#endif
  }
  return (double)NOPS * ITERATIONS / (seconds() - start);
}
