/* What several bodies share. */

/* A full vector, or its first lanes; `full` is uniform over a call, and known at compile time in
 * the hot loops. */
CK_INLINE vf vf_load_either(const real *p, bool full, vf_tail tail) {
  return full ? vf_load(p) : vf_load_n(p, tail);
}
CK_INLINE void vf_store_either(real *p, bool full, vf_tail tail, vf x) {
  if (full)
    vf_store(p, x);
  else
    vf_store_n(p, tail, x);
}

/* A pointer or an integer stays the same, but the compiler does not know. Where it did, it kept the
 * addresses of a first pass over some rows for a second pass, and spilled them in between. */
#define CK_HIDE(x) __asm__("" : "+r"(x))

CK_INLINE const real *vf_hide(const real *p) {
  CK_HIDE(p);
  return p;
}

/* What was loaded for several FMAs stays in a register; gcc would make it an operand of each. */
#define CK_LOADED() __asm__ volatile("" ::: "memory")

/* One vector of padding, for every kernel that reads rows outside the image. */
static const real ck_padding[VF_LANES] __attribute__((aligned(CK_ALIGN))) = {0};
