/* Plain C: one lane. For CPUs without a vector file of their own, and for reading. */
#define VF_REGISTERS 16
#define VF_HAS_FMA 0
#define VF_HAS_MASK 0
#define VF_LOADS_MASK 0
#define VF_HAS_HALVES 0

#define VF_GEMM_ROWS 4
#define VF_DW_ROWS 1

typedef real vf;
typedef vf vf_span;
typedef int64_t vf_tail;
typedef int64_t vf_index;
#define VF_LANES 1

CK_INLINE vf vf_zero(void) { return 0; }
CK_INLINE vf vf_set1(real x) { return x; }
CK_INLINE vf vf_load(const real *p) { return *p; }
CK_INLINE void vf_store(real *p, vf x) { *p = x; }
CK_INLINE vf vf_add(vf a, vf b) { return a + b; }
CK_INLINE vf vf_sub(vf a, vf b) { return a - b; }
CK_INLINE vf vf_mul(vf a, vf b) { return a * b; }
CK_INLINE vf vf_div(vf a, vf b) { return a / b; }
CK_INLINE vf vf_fma(vf a, vf b, vf c) { return a * b + c; } /* rounds twice: -ffp-contract=off */
/* Where either is NaN the answer is b: clamp as vf_min(high, vf_max(low, x)). */
CK_INLINE vf vf_max(vf a, vf b) { return a > b ? a : b; }
CK_INLINE vf vf_min(vf a, vf b) { return a < b ? a : b; }
/* The larger; NaN where either is NaN. */
CK_INLINE vf vf_maximum(vf a, vf b) { return ((b > a) | (b != b)) ? b : a; }

/* The first n lanes, for any n. */
CK_INLINE vf_tail vf_first(int64_t n) { return n; }
CK_INLINE vf vf_load_n(const real *p, vf_tail n) { return n > 0 ? *p : 0; }
CK_INLINE void vf_store_n(real *p, vf_tail n, vf x) {
  if (n > 0) *p = x;
}

/* The first half of a vector; of one element there is none. */
CK_INLINE vf vf_load_half(const real *p) {
  (void)p;
  return 0;
}
CK_INLINE void vf_store_half(real *p, vf x) { (void)p, (void)x; }

/* Lane i of a repeated span is its element index[i]; only n elements of p are read. */
CK_INLINE vf_index vf_index_of(const real_bits *lanes) { return (vf_index)lanes[0]; }
CK_INLINE vf_span vf_span_of(const real *p, vf_tail n) { return vf_load_n(p, n); }
CK_INLINE vf vf_repeat(vf_span x, vf_index index) {
  (void)index; /* 0 */
  return x;
}
CK_INLINE vf vf_repeat_two(const real *p, vf_tail first, vf_tail second, vf_index index) {
  (void)second;
  return vf_repeat(vf_span_of(p, first), index);
}

/* The even lanes of a, then those of b. */
CK_INLINE vf vf_even(vf a, vf b) {
  (void)b;
  return a;
}

/* The vector n elements after p, where a vector begins, and every other element from there on; of
 * the next vector, and of the next two, all is readable. */
CK_INLINE vf vf_load_after(const real *p, const int n) { return vf_load(p + n); }
CK_INLINE vf vf_load_even_after(const real *p, const int n) {
  return vf_even(vf_load(p + n), vf_load(p + n + VF_LANES));
}

/* A vector is one block of one element, which has no halves. */
#define VF_BLOCK 1
CK_INLINE vf vf_load_blocks(const real *p, int64_t step) {
  (void)step; /* there is one */
  return vf_load(p);
}
CK_INLINE vf vf_zip_low(vf a, vf b) {
  (void)b;
  return a;
}
CK_INLINE vf vf_zip_high(vf a, vf b) {
  (void)a;
  return b;
}

/* 2^t for integral t within the exponent's range. */
CK_INLINE vf vf_pow2(vf t) {
  real x = t + (CK_ROUND_MAGIC + CK_EXPONENT_BIAS);
  real_bits bits;
  memcpy(&bits, &x, sizeof x);
  bits <<= CK_MANTISSA_BITS;
  memcpy(&x, &bits, sizeof x);
  return x;
}
