/* Rows become columns: planes become pixels, and pixels planes.
 *
 * A vector is made of blocks of 128 bits, B elements each. One step takes B columns of L rows:
 * block q of vector i is loaded from row B q + i, and B x B transpositions within the blocks do the
 * rest. So most of the shuffling is done by the load ports. */
/* The B x B transpositions; of the rows of the result the first `rows` lanes are written. */
CK_INLINE void transpose_blocks(real *to, int64_t to_step, vf *t, const bool full, vf_tail rows) {
  CK_UNROLL
  for (int round = 1; round < VF_BLOCK; round *= 2) {
    vf u[VF_BLOCK];
    CK_UNROLL
    for (int i = 0; i < VF_BLOCK / 2; ++i) {
      u[2 * i] = vf_zip_low(t[i], t[i + VF_BLOCK / 2]);
      u[2 * i + 1] = vf_zip_high(t[i], t[i + VF_BLOCK / 2]);
    }
    CK_UNROLL
    for (int i = 0; i < VF_BLOCK; ++i) t[i] = u[i];
  }
  CK_UNROLL
  for (int i = 0; i < VF_BLOCK; ++i) vf_store_either(to + i * to_step, full, rows, t[i]);
}

/* L rows x B columns. */
CK_INLINE void transpose_step(real *to, int64_t to_step, const real *from, int64_t from_step,
                              const bool full, vf_tail rows) {
  vf t[VF_BLOCK];
  CK_UNROLL
  for (int i = 0; i < VF_BLOCK; ++i)
    t[i] = vf_load_blocks(from + i * from_step, VF_BLOCK * from_step);
  transpose_blocks(to, to_step, t, full, rows);
}

/* At most B rows, as the colours of an image, x B columns: one block of each vector. */
CK_INLINE void transpose_block(real *to, int64_t to_step, const real *from, int64_t from_step,
                               int64_t count, vf_tail rows) {
  const vf_tail columns = vf_first(VF_BLOCK);
  vf t[VF_BLOCK];
  CK_UNROLL
  for (int i = 0; i < VF_BLOCK; ++i)
    t[i] = i < count ? vf_load_n(from + i * from_step, columns) : vf_zero();
  transpose_blocks(to, to_step, t, false, rows);
}

/* Fewer rows than a vector has lanes. */
CK_INLINE void transpose_few(real *to, int64_t to_step, const real *from, int64_t from_step,
                             int64_t rows, int64_t columns) {
  const vf_tail some = vf_first(rows);
  real padded[VF_LANES * VF_BLOCK] = {0};
  for (int64_t j = 0; j < columns; j += VF_BLOCK) {
    const int64_t c = ck_min(j, columns - VF_BLOCK);
    if (rows <= VF_BLOCK) {
      transpose_block(to + c * to_step, to_step, from + c, from_step, rows, some);
      continue;
    }
    for (int64_t r = 0; r < rows; ++r)
      memcpy(padded + r * VF_BLOCK, from + r * from_step + c, VF_BLOCK * sizeof(real));
    transpose_step(to + c * to_step, to_step, padded, VF_BLOCK, false, some);
  }
}

/* L rows from `from` on: what is left over at the end is done by a step that overlaps the one
 * before it. */
CK_INLINE void transpose_rows(real *to, int64_t to_step, const real *from, int64_t from_step,
                              int64_t columns) {
  const vf_tail all = vf_first(VF_LANES);
  const real *end = from + columns - VF_BLOCK;
  for (; from <= end; from += VF_BLOCK, to += VF_BLOCK * to_step)
    transpose_step(to, to_step, from, from_step, true, all);
  if (columns % VF_BLOCK)
    transpose_step(to + (end - from) * to_step, to_step, end, from_step, true, all);
}

CK_INLINE void transpose_matrix(const struct ck_transpose_args *a, const real *from, real *to) {
  const int64_t to_step = a->to_step, from_step = a->from_step;
  const int64_t rows = a->rows, columns = a->columns;
  if (columns < VF_BLOCK) {
    for (int64_t c = 0; c < columns; ++c)
      for (int64_t r = 0; r < rows; ++r) to[c * to_step + r] = from[r * from_step + c];
  } else if (rows < VF_LANES) {
    transpose_few(to, to_step, from, from_step, rows, columns);
  } else {
    for (int64_t i = 0; i < rows; i += VF_LANES) {
      const int64_t r = ck_min(i, rows - VF_LANES);
      transpose_rows(to + r, to_step, from + r * from_step, from_step, columns);
    }
  }
}

void CK_FN(transpose)(const struct ck_transpose_args *a) {
  for (int64_t m = 0; m <= a->more; ++m)
    transpose_matrix(a, (const real *)a->from + m * a->from_more, (real *)a->to + m * a->to_more);
}
