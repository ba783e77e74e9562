/* Rows become columns: planes become pixels, and pixels planes. A tile of L x L is transposed in
 * registers by perfect shuffles: each of log2(L) rounds moves the highest bit of a row's number to
 * the lowest of its column's. */
CK_INLINE void transpose_tile(vf *t) {
  CK_UNROLL
  for (int round = 1; round < VF_LANES; round *= 2) {
    vf from[VF_LANES];
    CK_UNROLL
    for (int i = 0; i < VF_LANES; ++i) from[i] = t[i];
    CK_UNROLL
    for (int i = 0; i < VF_LANES / 2; ++i) {
      t[2 * i] = vf_zip_low(from[i], from[i + VF_LANES / 2]);
      t[2 * i + 1] = vf_zip_high(from[i], from[i + VF_LANES / 2]);
    }
  }
}

CK_INLINE void transpose_part(real *to, const real *from, const struct ck_transpose_args *a,
                              const bool full, int64_t rows, int64_t columns) {
  const vf_tail in = vf_first(columns), out = vf_first(rows);
  vf t[VF_LANES];
  CK_UNROLL
  for (int i = 0; i < VF_LANES; ++i, from += a->from_step)
    t[i] = full || i < rows ? vf_load_either(from, full, in) : vf_zero();
  transpose_tile(t);
  CK_UNROLL
  for (int i = 0; i < VF_LANES; ++i, to += a->to_step)
    if (full || i < columns) vf_store_either(to, full, out, t[i]);
}

static void CK_FN(transpose)(const struct ck_transpose_args *a) {
  for (int64_t r = 0; r < a->rows; r += VF_LANES)
    for (int64_t c = 0; c < a->columns; c += VF_LANES) {
      const real *from = (const real *)a->from + r * a->from_step + c;
      real *to = (real *)a->to + c * a->to_step + r;
      const int64_t rows = ck_min(VF_LANES, a->rows - r),
                    columns = ck_min(VF_LANES, a->columns - c);
      if (rows == VF_LANES && columns == VF_LANES)
        transpose_part(to, from, a, true, VF_LANES, VF_LANES);
      else
        transpose_part(to, from, a, false, rows, columns);
    }
}
