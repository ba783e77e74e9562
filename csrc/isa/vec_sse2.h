/* SSE2, what every x86-64 has: 16 registers of 128 bits, no FMA, no masks.
 *
 *   instruction            latency  per cycle   (any x86-64 of the last ten years)
 *   mulps, addps           3-4      1-2
 *   maxps, minps           1-4      1-2
 *   load xmm, L1           5-7      2
 */
#define VF_REGISTERS 16
#define VF_HAS_FMA 0
#define VF_HAS_MASK 0
#define VF_LOADS_MASK 0
#define VF_HAS_HALVES 0

/* 6 x 2 accumulators, 2 weight vectors, a broadcast and the product, which is a register of its
 * own without FMA: all 16. */
#define VF_GEMM_ROWS 6
#define VF_DW_ROWS 1

typedef int64_t vf_tail;
typedef const real_bits *vf_index;
typedef const real *vf_span; /* in memory: to permute by a variable takes SSSE3 */
#if CK_REAL_BITS == 32
typedef __m128 vf;
#define VF_LANES 4
#define VF_OP(name) _mm_##name##_ps
#define VF_BITS(x) _mm_castps_si128(x)
#define VF_FROM_BITS(x) _mm_castsi128_ps(x)
#define VF_SLL _mm_slli_epi32
#else
typedef __m128d vf;
#define VF_LANES 2
#define VF_OP(name) _mm_##name##_pd
#define VF_BITS(x) _mm_castpd_si128(x)
#define VF_FROM_BITS(x) _mm_castsi128_pd(x)
#define VF_SLL _mm_slli_epi64
#endif

CK_INLINE vf vf_zero(void) { return VF_OP(setzero)(); }
CK_INLINE vf vf_set1(real x) { return VF_OP(set1)(x); }
CK_INLINE vf vf_load(const real *p) { return VF_OP(loadu)(p); }
CK_INLINE void vf_store(real *p, vf x) { VF_OP(storeu)(p, x); }
CK_INLINE vf vf_add(vf a, vf b) { return VF_OP(add)(a, b); }
CK_INLINE vf vf_sub(vf a, vf b) { return VF_OP(sub)(a, b); }
CK_INLINE vf vf_mul(vf a, vf b) { return VF_OP(mul)(a, b); }
CK_INLINE vf vf_div(vf a, vf b) { return VF_OP(div)(a, b); }
CK_INLINE vf vf_fma(vf a, vf b, vf c) { return vf_add(vf_mul(a, b), c); } /* rounds twice */
/* Where either is NaN the answer is b: clamp as vf_min(high, vf_max(low, x)). */
CK_INLINE vf vf_max(vf a, vf b) { return VF_OP(max)(a, b); }
CK_INLINE vf vf_min(vf a, vf b) { return VF_OP(min)(a, b); }
/* The larger; NaN where either is NaN. */
CK_INLINE vf vf_maximum(vf a, vf b) {
  const vf nan = VF_OP(cmpunord)(b, b);
  return VF_OP(or)(VF_OP(and)(nan, b), VF_OP(andnot)(nan, VF_OP(max)(b, a)));
}

/* The first n lanes, for any n. */
CK_INLINE vf_tail vf_first(int64_t n) { return n; }

/* The first half of a vector; the other lanes are zero. */
#if CK_REAL_BITS == 32
CK_INLINE vf vf_load_half(const real *p) { return _mm_loadl_pi(vf_zero(), (const __m64 *)p); }
CK_INLINE void vf_store_half(real *p, vf x) { _mm_storel_pi((__m64 *)p, x); }
#else
CK_INLINE vf vf_load_half(const real *p) { return _mm_load_sd(p); }
CK_INLINE void vf_store_half(real *p, vf x) { _mm_store_sd(p, x); }
#endif

/* Partial vectors are functions, so that they do not fill up the loops; by halves and elements:
 * what is put together in memory is read again only after some 15 cycles. */
#if CK_REAL_BITS == 32
static __attribute__((noinline)) vf vf_load_n(const real *p, vf_tail n) {
  if (n >= 4) return vf_load(p);
  if (n == 3) return _mm_movelh_ps(vf_load_half(p), _mm_load_ss(p + 2));
  if (n == 2) return vf_load_half(p);
  return n == 1 ? _mm_load_ss(p) : vf_zero();
}
static __attribute__((noinline)) void vf_store_n(real *p, vf_tail n, vf x) {
  if (n >= 4) {
    vf_store(p, x);
    return;
  }
  if (n >= 2) vf_store_half(p, x);
  if (n == 3) _mm_store_ss(p + 2, _mm_movehl_ps(x, x));
  if (n == 1) _mm_store_ss(p, x);
}
#else
static __attribute__((noinline)) vf vf_load_n(const real *p, vf_tail n) {
  if (n >= 2) return vf_load(p);
  return n == 1 ? vf_load_half(p) : vf_zero();
}
static __attribute__((noinline)) void vf_store_n(real *p, vf_tail n, vf x) {
  if (n >= 2)
    vf_store(p, x);
  else if (n == 1)
    vf_store_half(p, x);
}
#endif

/* Lane i of a repeated span is its element index[i]; only n elements of p are read. */
CK_INLINE vf_index vf_index_of(const real_bits *lanes) { return lanes; }
CK_INLINE vf_span vf_span_of(const real *p, vf_tail n) {
  (void)n; /* index stays below it */
  return p;
}
CK_INLINE vf vf_repeat(vf_span p, vf_index index) {
#if CK_REAL_BITS == 32
  return _mm_setr_ps(p[index[0]], p[index[1]], p[index[2]], p[index[3]]);
#else
  return _mm_setr_pd(p[index[0]], p[index[1]]);
#endif
}
/* The same of two vectors, of whose elements these are read. */
CK_INLINE vf vf_repeat_two(const real *p, vf_tail first, vf_tail second, vf_index index) {
  (void)first, (void)second; /* index stays below them */
  return vf_repeat(p, index);
}

/* The even lanes of a, then those of b. */
CK_INLINE vf vf_even(vf a, vf b) {
#if CK_REAL_BITS == 32
  return _mm_shuffle_ps(a, b, _MM_SHUFFLE(2, 0, 2, 0));
#else
  return _mm_unpacklo_pd(a, b);
#endif
}

/* The vector n elements after p, where a vector begins, and every other element from there on; of
 * the next vector, and of the next two, all is readable. */
CK_INLINE vf vf_load_after(const real *p, const int n) { return vf_load(p + n); }
CK_INLINE vf vf_load_even_after(const real *p, const int n) {
  return vf_even(vf_load(p + n), vf_load(p + n + VF_LANES));
}

/* A vector is made of blocks of 128 bits, VF_BLOCK elements each; these come from places that lie
 * `step` elements apart. */
#define VF_BLOCK VF_LANES
CK_INLINE vf vf_load_blocks(const real *p, int64_t step) {
  (void)step; /* there is one */
  return vf_load(p);
}
/* Block by block, the lower halves of a and b, alternating, and the upper halves. */
CK_INLINE vf vf_zip_low(vf a, vf b) { return VF_OP(unpacklo)(a, b); }
CK_INLINE vf vf_zip_high(vf a, vf b) { return VF_OP(unpackhi)(a, b); }

/* 2^t for integral t within the exponent's range. */
CK_INLINE vf vf_pow2(vf t) {
  vf biased = vf_add(t, vf_set1(CK_ROUND_MAGIC + CK_EXPONENT_BIAS));
  return VF_FROM_BITS(VF_SLL(VF_BITS(biased), CK_MANTISSA_BITS));
}
