/* AVX2 and FMA: 16 registers of 256 bits; masked loads and stores do not fault, but the stores are
 * slow, so full vectors never use them.
 *
 *   instruction            latency  per cycle   (Intel Haswell .. Alder Lake | AMD Zen 2 .. 5)
 *   vfmadd ymm             4-5 | 4  2 | 2
 *   vmaxps, vminps ymm     4 | 1-2  1-2 | 2
 *   load ymm, L1           7 | 7    2 | 2
 *   vmaskmovps load        8 | 8    1-2 | 1
 *   vmaskmovps store       -        1 | 1/12..1/4
 *   vpermps ymm            3 | 4-8  1 | 1
 */
#define VF_REGISTERS 16
#define VF_HAS_FMA 1
#define VF_HAS_MASK 0
#define VF_LOADS_MASK 1
#define VF_HAS_HALVES 0

/* 6 x 2 accumulators, 2 weight vectors and a broadcast of 16 registers. */
#define VF_GEMM_ROWS 6
#define VF_DW_ROWS 1

typedef __m256i vf_tail;
typedef __m256i vf_index;
#if CK_REAL_BITS == 32
typedef __m256 vf;
#define VF_LANES 8
#define VF_OP(name) _mm256_##name##_ps
#define VF_BITS(x) _mm256_castps_si256(x)
#define VF_FROM_BITS(x) _mm256_castsi256_ps(x)
#define VF_SLL _mm256_slli_epi32
#else
typedef __m256d vf;
#define VF_LANES 4
#define VF_OP(name) _mm256_##name##_pd
#define VF_BITS(x) _mm256_castpd_si256(x)
#define VF_FROM_BITS(x) _mm256_castsi256_pd(x)
#define VF_SLL _mm256_slli_epi64
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
  return VF_OP(blendv)(VF_OP(max)(b, a), b, VF_OP(cmp)(b, b, _CMP_UNORD_Q));
}

/* The first n lanes, for any n: a window that slides over ones and zeros. */
CK_INLINE vf_tail vf_first(int64_t n) {
  static const int32_t ones_then_zeros[16] = {-1, -1, -1, -1, -1, -1, -1, -1};
  const int32_t *window = ones_then_zeros + 8 - ck_max(0, ck_min(n, VF_LANES)) * (8 / VF_LANES);
  return _mm256_loadu_si256((const __m256i *)window);
}
/* Those from begin on, before end. */
CK_INLINE vf_tail vf_between(int64_t begin, int64_t end) {
  return _mm256_andnot_si256(vf_first(begin), vf_first(end));
}
CK_INLINE vf vf_load_n(const real *p, vf_tail n) { return VF_OP(maskload)(p, n); }
CK_INLINE void vf_store_n(real *p, vf_tail n, vf x) { VF_OP(maskstore)(p, n, x); }

/* Halves of vectors: the upper one, put first; the first of a and the upper of b; those that memory
 * has, of which what is loaded leaves zeros in the other lanes. */
CK_INLINE vf vf_upper(vf a) { return VF_OP(permute2f128)(a, a, 1); }
#if CK_REAL_BITS == 32
CK_INLINE vf vf_halves(vf a, vf b) { return _mm256_blend_ps(a, b, 0xF0); }
CK_INLINE void vf_store_half_n(real *p, vf_tail n, vf x) {
  _mm_maskstore_ps(p, _mm256_castsi256_si128(n), _mm256_castps256_ps128(x));
}
CK_INLINE vf vf_load_half(const real *p) { return _mm256_zextps128_ps256(_mm_loadu_ps(p)); }
CK_INLINE void vf_store_half(real *p, vf x) { _mm_storeu_ps(p, _mm256_castps256_ps128(x)); }
#else
CK_INLINE vf vf_halves(vf a, vf b) { return _mm256_blend_pd(a, b, 0xC); }
CK_INLINE void vf_store_half_n(real *p, vf_tail n, vf x) {
  _mm_maskstore_pd(p, _mm256_castsi256_si128(n), _mm256_castpd256_pd128(x));
}
CK_INLINE vf vf_load_half(const real *p) { return _mm256_zextpd128_pd256(_mm_loadu_pd(p)); }
CK_INLINE void vf_store_half(real *p, vf x) { _mm_storeu_pd(p, _mm256_castpd256_pd128(x)); }
#endif

/* Lane i of a repeated span is its element index[i]; only n elements of p are read. */
CK_INLINE vf_index vf_index_of(const real_bits *lanes) {
  __m256i index = _mm256_loadu_si256((const __m256i *)lanes);
#if CK_REAL_BITS == 64 /* there is no vpermpd by register: move the two halves of each double */
  index = _mm256_slli_epi32(_mm256_shuffle_epi32(index, _MM_SHUFFLE(2, 2, 0, 0)), 1);
  index = _mm256_add_epi32(index, _mm256_set1_epi64x((int64_t)1 << 32));
#endif
  return index;
}
CK_INLINE vf_span vf_span_of(const real *p, vf_tail n) { return vf_load_n(p, n); }
CK_INLINE vf vf_repeat(vf_span x, vf_index index) {
  return VF_FROM_BITS(_mm256_permutevar8x32_epi32(VF_BITS(x), index));
}
/* The same of two vectors, of whose elements these are read. */
CK_INLINE vf vf_repeat_two(const real *p, vf_tail first, vf_tail second, vf_index index) {
  const __m256i low = VF_BITS(vf_repeat(vf_load_n(p, first), index));
  const __m256i high = VF_BITS(vf_repeat(vf_load_n(p + VF_LANES, second), index));
  const __m256i is_high = _mm256_srai_epi32(_mm256_slli_epi32(index, 28), 31); /* 8 and more */
  return VF_FROM_BITS(_mm256_blendv_epi8(low, high, is_high));
}

/* The even lanes of a and of b, and the odd ones, mixed as one instruction leaves them; for each
 * the one that was after it, for the last any; and all in order. */
#if CK_REAL_BITS == 32
CK_INLINE vf vf_mix_even(vf a, vf b) { return _mm256_shuffle_ps(a, b, _MM_SHUFFLE(2, 0, 2, 0)); }
CK_INLINE vf vf_mix_odd(vf a, vf b) { return _mm256_shuffle_ps(a, b, _MM_SHUFFLE(3, 1, 3, 1)); }
CK_INLINE vf vf_mix_next(vf x) { /* of lanes 0 1 4 5 2 3 6 7 */
  return _mm256_permutevar8x32_ps(x, _mm256_setr_epi32(1, 4, 3, 6, 5, 2, 7, 7));
}
CK_INLINE vf vf_unmix(vf x) {
  const __m256d pairs = _mm256_castps_pd(x);
  return _mm256_castpd_ps(_mm256_permute4x64_pd(pairs, _MM_SHUFFLE(3, 1, 2, 0)));
}
#else
CK_INLINE vf vf_mix_even(vf a, vf b) { return _mm256_unpacklo_pd(a, b); }
CK_INLINE vf vf_mix_odd(vf a, vf b) { return _mm256_unpackhi_pd(a, b); }
CK_INLINE vf vf_mix_next(vf x) { /* of lanes 0 2 1 3 */
  return _mm256_permute4x64_pd(x, _MM_SHUFFLE(3, 1, 3, 2));
}
CK_INLINE vf vf_unmix(vf x) { return _mm256_permute4x64_pd(x, _MM_SHUFFLE(3, 1, 2, 0)); }
#endif

/* The lanes after the first one or two, then zeros. */
CK_INLINE vf vf_drop(vf x, const int n) {
  const __m256i bits = VF_BITS(x), upper = _mm256_permute2x128_si256(bits, bits, 0x81);
  return VF_FROM_BITS(n == 1 ? _mm256_alignr_epi8(upper, bits, CK_REAL_BITS / 8)
                             : _mm256_alignr_epi8(upper, bits, CK_REAL_BITS / 4));
}

/* The even lanes of a, then those of b. */
CK_INLINE vf vf_even(vf a, vf b) { return vf_unmix(vf_mix_even(a, b)); }

/* The vector n elements after p, where a vector begins, and every other element from there on; of
 * the next vector, and of the next two, all is readable. */
CK_INLINE vf vf_load_after(const real *p, const int n) { return vf_load(p + n); }
CK_INLINE vf vf_load_even_after(const real *p, const int n) {
  return vf_even(vf_load(p + n), vf_load(p + n + VF_LANES));
}

/* A vector is made of blocks of 128 bits, VF_BLOCK elements each; these come from places that lie
 * `step` elements apart. */
#define VF_BLOCK (VF_LANES / 2)
CK_INLINE vf vf_load_blocks(const real *p, int64_t step) {
#if CK_REAL_BITS == 32
  return _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(p)), _mm_loadu_ps(p + step), 1);
#else
  return _mm256_insertf128_pd(_mm256_castpd128_pd256(_mm_loadu_pd(p)), _mm_loadu_pd(p + step), 1);
#endif
}
/* Block by block, the lower halves of a and b, alternating, and the upper halves. */
CK_INLINE vf vf_zip_low(vf a, vf b) { return VF_OP(unpacklo)(a, b); }
CK_INLINE vf vf_zip_high(vf a, vf b) { return VF_OP(unpackhi)(a, b); }

/* 2^t for integral t within the exponent's range. */
CK_INLINE vf vf_pow2(vf t) {
  vf biased = vf_add(t, vf_set1(CK_ROUND_MAGIC + CK_EXPONENT_BIAS));
  return VF_FROM_BITS(VF_SLL(VF_BITS(biased), CK_MANTISSA_BITS));
}
