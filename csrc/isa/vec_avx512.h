/* AVX-512 F, BW, VL, DQ: 32 registers of 512 bits; masks make every tail free.
 *
 *   instruction            latency  per cycle   (Intel Sapphire Rapids | AMD Zen 5 server)
 *   vfmadd zmm             4 | 4    2 | 2
 *   vmaxps, vminps zmm     4 | 2    1 | 2
 *   load zmm, L1           7 | 7    2 | 2
 *   load with {z} mask     8 | 8    2 | 2       masked lanes do not fault
 *   store zmm              -        1 | 1       on Zen 5 up to two FMAs less in that cycle
 * (measured) store with mask        -        1 | 1       but a masked store is not forwarded to a
 * load vpermps zmm            3 | 4    1 | 2
 */
#define VF_REGISTERS 32
#define VF_HAS_FMA 1
#define VF_HAS_MASK 1
#define VF_LOADS_MASK 1
#define VF_HAS_HALVES 1

/* 14 x 2 accumulators, 2 weight vectors and a broadcast leave one register of 32. */
#define VF_GEMM_ROWS 14
#define VF_DW_ROWS 4

#if CK_REAL_BITS == 32
typedef __m512 vf;
typedef __m512i vf_index;
typedef __mmask16 vf_tail;
#define VF_LANES 16
#define VF_OP(name) _mm512_##name##_ps
#else
typedef __m512d vf;
typedef __m512i vf_index;
typedef __mmask8 vf_tail;
#define VF_LANES 8
#define VF_OP(name) _mm512_##name##_pd
#endif

typedef vf vf_span;

CK_INLINE vf vf_zero(void) { return VF_OP(setzero)(); }
CK_INLINE vf vf_set1(real x) { return VF_OP(set1)(x); }
CK_INLINE vf vf_load(const real *p) { return VF_OP(loadu)(p); }
CK_INLINE void vf_store(real *p, vf x) { VF_OP(storeu)(p, x); }
CK_INLINE vf vf_add(vf a, vf b) { return VF_OP(add)(a, b); }
CK_INLINE vf vf_sub(vf a, vf b) { return VF_OP(sub)(a, b); }
CK_INLINE vf vf_mul(vf a, vf b) { return VF_OP(mul)(a, b); }
CK_INLINE vf vf_div(vf a, vf b) { return VF_OP(div)(a, b); }
CK_INLINE vf vf_fma(vf a, vf b, vf c) { return VF_OP(fmadd)(a, b, c); }
/* Where either is NaN the answer is b: clamp as vf_min(high, vf_max(low, x)). */
CK_INLINE vf vf_max(vf a, vf b) { return VF_OP(max)(a, b); }
CK_INLINE vf vf_min(vf a, vf b) { return VF_OP(min)(a, b); }
/* The larger; NaN where either is NaN. */
CK_INLINE vf vf_maximum(vf a, vf b) {
#if CK_REAL_BITS == 32
  return _mm512_mask_max_ps(b, _mm512_cmp_ps_mask(b, b, _CMP_ORD_Q), b, a);
#else
  return _mm512_mask_max_pd(b, _mm512_cmp_pd_mask(b, b, _CMP_ORD_Q), b, a);
#endif
}

/* The first n lanes, for any n. */
CK_INLINE vf_tail vf_first(int64_t n) {
  return (vf_tail)(n >= VF_LANES ? (1u << VF_LANES) - 1 : n <= 0 ? 0 : (1u << n) - 1);
}
/* Those from begin on, before end. */
CK_INLINE vf_tail vf_between(int64_t begin, int64_t end) {
  return (vf_tail)(vf_first(end) & ~vf_first(begin));
}
CK_INLINE vf vf_load_n(const real *p, vf_tail n) { return VF_OP(maskz_loadu)(n, p); }
CK_INLINE void vf_store_n(real *p, vf_tail n, vf x) { VF_OP(mask_storeu)(p, n, x); }

/* Halves of vectors: the first half of a vector of memory, which zeros follow, and back, all of it
 * or its first lanes; twice, the lower half of one vector with the upper half of another, two lower
 * halves side by side, an upper half as the lower one. A masked store faults only where it writes;
 * gcc would make it a masked vextractf64x4, which faults anywhere. */
#define VF_HIDE(x) __asm__("" : "+v"(x))
#if CK_REAL_BITS == 32
CK_INLINE vf vf_load_half(const real *p) { return _mm512_zextps256_ps512(_mm256_loadu_ps(p)); }
CK_INLINE void vf_store_half(real *p, vf x) { _mm256_storeu_ps(p, _mm512_castps512_ps256(x)); }
CK_INLINE void vf_store_half_n(real *p, vf_tail n, vf x) {
  __m256 half = _mm512_castps512_ps256(x);
  VF_HIDE(half);
  _mm256_mask_storeu_ps(p, (__mmask8)n, half);
}
/* Two elements of memory, again and again. */
CK_INLINE vf vf_load_pair(const real *p) {
  double pair;
  memcpy(&pair, p, sizeof pair);
  return _mm512_castpd_ps(_mm512_set1_pd(pair));
}
CK_INLINE vf vf_load_twice(const real *p) { return _mm512_broadcast_f32x8(_mm256_loadu_ps(p)); }
CK_INLINE vf vf_halves(vf a, vf b) { return _mm512_mask_blend_ps(0xFF00, a, b); }
CK_INLINE vf vf_join(vf a, vf b) { return _mm512_shuffle_f32x4(a, b, 0x44); }
CK_INLINE vf vf_upper(vf a) { return _mm512_shuffle_f32x4(a, a, 0xEE); }
#else
CK_INLINE vf vf_load_half(const real *p) { return _mm512_zextpd256_pd512(_mm256_loadu_pd(p)); }
CK_INLINE void vf_store_half(real *p, vf x) { _mm256_storeu_pd(p, _mm512_castpd512_pd256(x)); }
CK_INLINE void vf_store_half_n(real *p, vf_tail n, vf x) {
  __m256d half = _mm512_castpd512_pd256(x);
  VF_HIDE(half);
  _mm256_mask_storeu_pd(p, n, half);
}
CK_INLINE vf vf_load_pair(const real *p) { return _mm512_broadcast_f64x2(_mm_loadu_pd(p)); }
CK_INLINE vf vf_load_twice(const real *p) { return _mm512_broadcast_f64x4(_mm256_loadu_pd(p)); }
CK_INLINE vf vf_halves(vf a, vf b) { return _mm512_mask_blend_pd(0xF0, a, b); }
CK_INLINE vf vf_join(vf a, vf b) { return _mm512_shuffle_f64x2(a, b, 0x44); }
CK_INLINE vf vf_upper(vf a) { return _mm512_shuffle_f64x2(a, a, 0xEE); }
#endif

/* Lane i of a repeated span is its element index[i]; only n elements of p are read. */
CK_INLINE vf_index vf_index_of(const real_bits *lanes) { return _mm512_loadu_si512(lanes); }
CK_INLINE vf_span vf_span_of(const real *p, vf_tail n) { return vf_load_n(p, n); }
CK_INLINE vf vf_repeat(vf_span x, vf_index index) { return VF_OP(permutexvar)(index, x); }
/* The same of two vectors, of whose elements these are read. */
CK_INLINE vf vf_repeat_two(const real *p, vf_tail first, vf_tail second, vf_index index) {
  return VF_OP(permutex2var)(vf_load_n(p, first), index, vf_load_n(p + VF_LANES, second));
}

/* Lane i is that of the two vectors, side by side, which index[i] says. */
CK_INLINE vf vf_pick(vf a, vf_index index, vf b) { return VF_OP(permutex2var)(a, index, b); }

/* The even lanes of a, then those of b; and the odd ones. */
#if CK_REAL_BITS == 32
#define VF_EVEN _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30)
#define VF_ONES _mm512_set1_epi32(1)
#else
#define VF_EVEN _mm512_setr_epi64(0, 2, 4, 6, 8, 10, 12, 14)
#define VF_ONES _mm512_set1_epi64(1)
#endif
CK_INLINE vf vf_even(vf a, vf b) { return VF_OP(permutex2var)(a, VF_EVEN, b); }
CK_INLINE vf vf_odd(vf a, vf b) {
  return VF_OP(permutex2var)(a, _mm512_or_si512(VF_EVEN, VF_ONES), b);
}

/* The vector n elements after p, where a vector begins, and every other element from there on; of
 * the next vector, and of the next two, all is readable. A load that crosses a line counts twice.
 */
#if CK_REAL_BITS == 32
#define VF_BITS(x) _mm512_castps_si512(x)
#define VF_AFTER(a, b, n) _mm512_castsi512_ps(_mm512_alignr_epi32(VF_BITS(b), VF_BITS(a), n))
#else
#define VF_BITS(x) _mm512_castpd_si512(x)
#define VF_AFTER(a, b, n) _mm512_castsi512_pd(_mm512_alignr_epi64(VF_BITS(b), VF_BITS(a), n))
#endif
CK_INLINE vf vf_load_after(const real *p, const int n) {
  const vf a = vf_load(p), b = vf_load(p + VF_LANES);
  switch (n) {
    case 1: return VF_AFTER(a, b, 1);
    case 2: return VF_AFTER(a, b, 2);
    case 4: return VF_AFTER(a, b, 4);
    default: return vf_load(p + n);
  }
}
CK_INLINE vf vf_load_even_after(const real *p, const int n) {
  const vf a = vf_load(p), b = vf_load(p + VF_LANES), c = vf_load(p + 2 * VF_LANES);
  switch (n) {
    case 0: return vf_even(a, b);
    case 1: return vf_odd(a, b);
    case 2: return VF_AFTER(vf_even(a, b), c, 1);
    default: return vf_even(vf_load(p + n), vf_load(p + n + VF_LANES));
  }
}

/* A vector is made of blocks of 128 bits, VF_BLOCK elements each; these come from places that lie
 * `step` elements apart. */
#define VF_BLOCK (VF_LANES / 4)
CK_INLINE vf vf_load_blocks(const real *p, int64_t step) {
#if CK_REAL_BITS == 32
  vf x = _mm512_castps128_ps512(_mm_loadu_ps(p));
  x = _mm512_insertf32x4(x, _mm_loadu_ps(p + step), 1);
  x = _mm512_insertf32x4(x, _mm_loadu_ps(p + 2 * step), 2);
  return _mm512_insertf32x4(x, _mm_loadu_ps(p + 3 * step), 3);
#else
  vf x = _mm512_castpd128_pd512(_mm_loadu_pd(p));
  x = _mm512_insertf64x2(x, _mm_loadu_pd(p + step), 1);
  x = _mm512_insertf64x2(x, _mm_loadu_pd(p + 2 * step), 2);
  return _mm512_insertf64x2(x, _mm_loadu_pd(p + 3 * step), 3);
#endif
}
/* Block by block, the lower halves of a and b, alternating, and the upper halves. */
CK_INLINE vf vf_zip_low(vf a, vf b) { return VF_OP(unpacklo)(a, b); }
CK_INLINE vf vf_zip_high(vf a, vf b) { return VF_OP(unpackhi)(a, b); }

/* 2^t for integral t within the exponent's range. */
CK_INLINE vf vf_pow2(vf t) { return VF_OP(scalef)(vf_set1(1), t); }
