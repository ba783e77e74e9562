/* NEON (Advanced SIMD), what every AArch64 has: 32 registers of 128 bits, FMA, no masks.
 *
 *   instruction            latency  per cycle  pipes   (Cortex-A76 and Neoverse N1: Arm's software
 *   fmla q, by element too 4        2          V        optimization guide; L and V are 2 each)
 *   fadd q                 2        2          V
 *   fmul q                 3        2          V
 *   fmax, fcmgt, bsl q     2        2          V
 *   fdiv q                 10       1/7        V0
 *   tbl, 1 register; uzp   2        2          V
 *   ldr s, ldr q, L1       5        2          L
 *   ld1r, ld1 one lane     7        2          L + V
 *   st1 one lane           4        2          L + V
 */
#define VF_REGISTERS 32
#define VF_HAS_FMA 1
#define VF_HAS_MASK 0
#define VF_LOADS_MASK 0
#define VF_HAS_HALVES 0

/* 12 x 2 accumulators, 2 weight vectors and a pixel leave 5 registers of 32. A term is 24 fmla, 12
 * cycles of both V pipes, and 14 loads, 7 cycles of L: more rows would not be faster, and with 14
 * clang 14 spills. A pixel is `ldr s` and then an element of fmla, since ld1r would take up V. */
#define VF_GEMM_ROWS 12
#define VF_DW_ROWS 2

typedef int64_t vf_tail;
typedef uint8x16_t vf_index;
#if CK_REAL_BITS == 32
typedef float32x4_t vf;
#define VF_LANES 4
#define VF_OP(name) v##name##_f32
#define VF_BITS(x) vreinterpretq_u32_f32(x)
#define VF_FROM_BITS(x) vreinterpretq_f32_u32(x)
#define VF_BYTES(x) vreinterpretq_u8_f32(x)
#define VF_FROM_BYTES(x) vreinterpretq_f32_u8(x)
#define VF_SLL vshlq_n_u32
#else
typedef float64x2_t vf;
#define VF_LANES 2
#define VF_OP(name) v##name##_f64
#define VF_BITS(x) vreinterpretq_u64_f64(x)
#define VF_FROM_BITS(x) vreinterpretq_f64_u64(x)
#define VF_BYTES(x) vreinterpretq_u8_f64(x)
#define VF_FROM_BYTES(x) vreinterpretq_f64_u8(x)
#define VF_SLL vshlq_n_u64
#endif

typedef vf vf_span;

CK_INLINE vf vf_set1(real x) { return VF_OP(dupq_n)(x); }
CK_INLINE vf vf_zero(void) { return vf_set1(0); }
CK_INLINE vf vf_load(const real *p) { return VF_OP(ld1q)(p); }
CK_INLINE void vf_store(real *p, vf x) { VF_OP(st1q)(p, x); }
CK_INLINE vf vf_add(vf a, vf b) { return VF_OP(addq)(a, b); }
CK_INLINE vf vf_sub(vf a, vf b) { return VF_OP(subq)(a, b); }
CK_INLINE vf vf_mul(vf a, vf b) { return VF_OP(mulq)(a, b); }
CK_INLINE vf vf_div(vf a, vf b) { return VF_OP(divq)(a, b); }
CK_INLINE vf vf_fma(vf a, vf b, vf c) { return VF_OP(fmaq)(c, a, b); }
/* Where either is NaN the answer is b: clamp as vf_min(high, vf_max(low, x)). Not fmax and fmin,
 * which answer NaN to that. */
CK_INLINE vf vf_max(vf a, vf b) { return VF_OP(bslq)(VF_OP(cgtq)(a, b), a, b); }
CK_INLINE vf vf_min(vf a, vf b) { return VF_OP(bslq)(VF_OP(cltq)(a, b), a, b); }
/* The larger; NaN where either is NaN. */
CK_INLINE vf vf_maximum(vf a, vf b) { return VF_OP(maxq)(a, b); }

/* The first n lanes, for any n; one by one, so that nothing beyond them is touched. */
CK_INLINE vf_tail vf_first(int64_t n) { return n; }
CK_INLINE vf vf_load_n(const real *p, vf_tail n) {
  if (n >= VF_LANES) return vf_load(p);
  vf x = vf_zero();
  if (n > 0) x = VF_OP(ld1q_lane)(p, x, 0);
#if CK_REAL_BITS == 32
  if (n > 1) x = VF_OP(ld1q_lane)(p + 1, x, 1);
  if (n > 2) x = VF_OP(ld1q_lane)(p + 2, x, 2);
#endif
  return x;
}
CK_INLINE void vf_store_n(real *p, vf_tail n, vf x) {
  if (n >= VF_LANES) {
    vf_store(p, x);
    return;
  }
  if (n > 0) VF_OP(st1q_lane)(p, x, 0);
#if CK_REAL_BITS == 32
  if (n > 1) VF_OP(st1q_lane)(p + 1, x, 1);
  if (n > 2) VF_OP(st1q_lane)(p + 2, x, 2);
#endif
}

/* The first half of a vector; the other lanes are zero. */
CK_INLINE vf vf_load_half(const real *p) { return VF_OP(combine)(VF_OP(ld1)(p), VF_OP(dup_n)(0)); }
CK_INLINE void vf_store_half(real *p, vf x) { VF_OP(st1)(p, VF_OP(get_low)(x)); }

/* Lane i of a repeated span is its element index[i]; only n elements of p are read. The table
 * lookup counts in bytes. */
CK_INLINE vf_index vf_index_of(const real_bits *lanes) {
  uint8_t bytes[sizeof(vf)];
  for (unsigned i = 0; i < sizeof bytes; ++i)
    bytes[i] = (uint8_t)(lanes[i / sizeof(real)] * sizeof(real) + i % sizeof(real));
  return vld1q_u8(bytes);
}
CK_INLINE vf_span vf_span_of(const real *p, vf_tail n) { return vf_load_n(p, n); }
CK_INLINE vf vf_repeat(vf_span x, vf_index index) {
  return VF_FROM_BYTES(vqtbl1q_u8(VF_BYTES(x), index));
}
/* The same of two vectors, of whose elements these are read. */
CK_INLINE vf vf_repeat_two(const real *p, vf_tail first, vf_tail second, vf_index index) {
  const vf low = vf_load_n(p, first), high = vf_load_n(p + VF_LANES, second);
  const uint8x16x2_t both = {{VF_BYTES(low), VF_BYTES(high)}};
  return VF_FROM_BYTES(vqtbl2q_u8(both, index));
}

/* The even lanes of a, then those of b. */
CK_INLINE vf vf_even(vf a, vf b) { return VF_OP(uzp1q)(a, b); }

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
CK_INLINE vf vf_zip_low(vf a, vf b) { return VF_OP(zip1q)(a, b); }
CK_INLINE vf vf_zip_high(vf a, vf b) { return VF_OP(zip2q)(a, b); }

/* 2^t for integral t within the exponent's range. */
CK_INLINE vf vf_pow2(vf t) {
  vf biased = vf_add(t, vf_set1(CK_ROUND_MAGIC + CK_EXPONENT_BIAS));
  return VF_FROM_BITS(VF_SLL(VF_BITS(biased), CK_MANTISSA_BITS));
}
