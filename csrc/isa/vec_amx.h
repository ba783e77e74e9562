/* AMX-BF16 beside the verbs of AVX-512: eight tile registers of 16 rows of 64 bytes.
 *
 *   instruction    latency  cycles each   (Intel Granite Rapids, measured)
 *   tdpbf16ps      52       16
 *   tileloadd      -        8, from L1
 *   ldtilecfg      -        180, for all eight
 *
 * tdpbf16ps multiplies pairs of bf16 and sums in float32: products are exact, denormal numbers are
 * zero, sums round to nearest. The even terms of a pair have a chain of their own, and so have the
 * odd ones; these two, and then the tile of sums, are added.
 */
#define VT_ROWS 16
#define VT_BYTES 64 /* of a row */

/* All eight are full. With fewer rows a product takes as long. */
struct vt_config {
  uint8_t palette, start_row, reserved[14];
  uint16_t row_bytes[16];
  uint8_t rows[16];
};

CK_INLINE void vt_start(void) {
  static const struct vt_config config = {
      .palette = 1,
      .row_bytes = {VT_BYTES, VT_BYTES, VT_BYTES, VT_BYTES, VT_BYTES, VT_BYTES, VT_BYTES, VT_BYTES},
      .rows = {VT_ROWS, VT_ROWS, VT_ROWS, VT_ROWS, VT_ROWS, VT_ROWS, VT_ROWS, VT_ROWS}};
  _tile_loadconfig(&config);
}
CK_INLINE void vt_end(void) { _tile_release(); }

/* The number of a register is a literal. */
#define VT_ZERO(t) _tile_zero(t)
#define VT_LOAD(t, p) _tile_loadd(t, p, VT_BYTES)
#define VT_STORE(t, p, step) _tile_stored(t, p, (step)*VT_BYTES) /* every step-th row */
#define VT_DOT(sum, a, b) _tile_dpbf16ps(sum, a, b)

/* The nearest bf16, as a float32; of two as near the larger. */
#define VT_UPPER _mm512_set1_epi32((int)0xFFFF0000)
CK_INLINE vf vt_round(vf x) {
  const __m512i up = _mm512_add_epi32(_mm512_castps_si512(x), _mm512_set1_epi32(0x8000));
  return _mm512_castsi512_ps(_mm512_and_si512(up, VT_UPPER));
}

/* The upper halves of two vectors' lanes, side by side: the first of a lane's pair is of a. */
CK_INLINE void vt_store_pair(void *p, vf a, vf b) {
  const __m512i low = _mm512_srli_epi32(_mm512_castps_si512(a), 16);
  const __m512i both = /* (upper & b) | low */
      _mm512_ternarylogic_epi32(VT_UPPER, _mm512_castps_si512(b), low, 0xEA);
  _mm512_storeu_si512(p, both);
}

CK_INLINE bool vt_no_nan(vf x) { return _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q) == 0; }

/* Whether a result was so small that it became zero, since the last time this was asked. */
CK_INLINE bool vt_underflow(void) {
  enum { FLAGS = 0x3F, UNDERFLOW = 0x10 };
  __asm__ volatile("" : : : "memory"); /* what was computed before is stored before */
  const unsigned control = _mm_getcsr();
  _mm_setcsr(control & ~(unsigned)FLAGS);
  __asm__ volatile("" : : : "memory");
  return control & UNDERFLOW;
}

/* Whether x - y, which are not the same, became zero. */
CK_INLINE bool vt_lost(vf x, vf y, vf difference) {
  const __mmask16 differ = _mm512_cmp_ps_mask(x, y, _CMP_NEQ_UQ);
  return differ & _mm512_cmp_ps_mask(difference, vf_zero(), _CMP_EQ_OQ);
}
