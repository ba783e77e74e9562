/* Deformable convolution: one tap of some pixels of an output row, sampled into the panel.
 *
 * A tap lies at an integral place, which its offset moves. There the image is interpolated between
 * the four pixels around, pixels outside being zeros, and multiplied by the mask. A sample at -1 or
 * before, or at the image's size or beyond, is zero. That is torchvision's and ONNX's definition,
 * term by term: a neighbour of weight 0 is multiplied too, NaN and infinity included.
 *
 * An offset is split into its floor and its fraction before the place is added: in float the sum
 * would lose as many bits of the fraction as the place has.
 */
enum { DEFORM_CHUNK = 32 }; /* samples that are planned at once: they stay in L1 */

/* Offsets of so many pixels, and NaN, end outside of any image that is planned. */
#define DEFORM_FAR (1 << 29)

/* What is known of a chunk of samples before the first pixel is read. */
struct deform_plan {
  uintptr_t at[4][DEFORM_CHUNK]; /* neighbours: top left, top right, bottom left and right */
  real weight[4][DEFORM_CHUNK];
  real mask[DEFORM_CHUNK];
};

/* As the address of the first neighbour: the sample is a case of its own. */
#define DEFORM_ALONE ((uintptr_t)0)

CK_INLINE void deform_read(const real *from, int64_t count, real *to) {
  for (int64_t i = 0; i < count; i += VF_LANES)
    vf_store(to + i, vf_load_either(from + i, i + VF_LANES <= count, vf_first(count - i)));
}

/* Whole pixels to move, and how much farther: NaN where the offset is. Compilers make vectors of
 * the last loop, which has no branch: no ISA needs a verb for floor. */
CK_INLINE void deform_split(const real *offset, int64_t count, int32_t *floor, real *beyond) {
  const vf low = vf_set1(-DEFORM_FAR), high = vf_set1(DEFORM_FAR);
  real near[DEFORM_CHUNK] = {0};
  deform_read(offset, count, near);
  for (int i = 0; i < DEFORM_CHUNK; i += VF_LANES) { /* in this order of operands ... */
    const vf x = vf_load(near + i);
    vf_store(near + i, vf_min(vf_max(x, low), high));   /* ... NaN becomes low, */
    vf_store(beyond + i, vf_min(high, vf_max(low, x))); /* ... and stays NaN */
  }
  for (int i = 0; i < DEFORM_CHUNK; ++i) {
    const int32_t whole = (int32_t)near[i]; /* toward zero: one too many below it */
    floor[i] = whole - ((real)whole > near[i]);
    beyond[i] -= (real)floor[i];
  }
}

/* Whether 32 bits hold every place and every element, and no far offset leads into the image. */
CK_INLINE bool deform_fits(const struct ck_deform_args *d) {
  const int64_t most = DEFORM_FAR / 4;
  int64_t columns; /* whole chunks of them */
  if (!ck_mul(d->pixels + DEFORM_CHUNK, d->stride_w, &columns) || columns > most) return false;
  if (d->height > most || d->width > most) return false;
  return -most < d->tap_y && d->tap_y < most && -most < d->tap_x && d->tap_x < most - columns &&
         (d->row_end - d->row_begin) * d->width * d->pixel_step <= INT32_MAX;
}

/* One axis of a place: whether its pixel is in the image, and the next one. At -1 exactly there is
 * nothing: that next pixel would be multiplied by 0, and might be infinite. */
CK_INLINE uint32_t deform_has(uint32_t at, uint32_t size) { return at < size; }
CK_INLINE uint32_t deform_has_next(uint32_t at, uint32_t size, real beyond) {
  return (at + 1 < size) & ((at < size) | (beyond > 0));
}

/* Where the neighbours of a chunk's samples lie: those outside the image are zeros. Unsigned places
 * below 0 are beyond any size. There is no branch, for the compiler's sake and the CPU's. */
CK_INLINE void deform_locate(const struct ck_deform_args *d, int64_t first, const int32_t *down,
                             const int32_t *right, const real *v, const real *u,
                             uintptr_t (*at)[DEFORM_CHUNK]) {
  const uintptr_t pixels = (uintptr_t)d->x, zeros = (uintptr_t)d->zeros;
  const uint32_t height = (uint32_t)d->height, width = (uint32_t)d->width;
  const uint32_t begin = (uint32_t)d->row_begin, rows = (uint32_t)d->row_end - begin;
  const uint32_t step = (uint32_t)d->pixel_step, row = width * step, stride = (uint32_t)d->stride_w;
  const uint32_t tap_y = (uint32_t)d->tap_y, tap_x = (uint32_t)d->tap_x + (uint32_t)first * stride;
  for (uint32_t i = 0; i < DEFORM_CHUNK; ++i) {
    const uint32_t y = tap_y + (uint32_t)down[i], x = tap_x + i * stride + (uint32_t)right[i];
    const uint32_t top = deform_has(y, height), bottom = deform_has_next(y, height, v[i]);
    const uint32_t left = deform_has(x, width), right_too = deform_has_next(x, width, u[i]);
    const uint32_t away = (top & (y - begin >= rows)) | (bottom & (y + 1 - begin >= rows));
    const uint32_t low = (y - begin) * row + x * step;
    at[0][i] = top & left ? pixels + (uint64_t)low * sizeof(real) : zeros;
    at[1][i] = top & right_too ? pixels + (uint64_t)(low + step) * sizeof(real) : zeros;
    at[2][i] = bottom & left ? pixels + (uint64_t)(low + row) * sizeof(real) : zeros;
    at[3][i] = bottom & right_too ? pixels + (uint64_t)(low + row + step) * sizeof(real) : zeros;
    at[0][i] = away ? DEFORM_ALONE : at[0][i];
  }
}

CK_INLINE void deform_make_plan(const struct ck_deform_args *d, bool fits, int64_t first,
                                int64_t count, struct deform_plan *plan) {
  int32_t down[DEFORM_CHUNK], right[DEFORM_CHUNK];
  real y[DEFORM_CHUNK], x[DEFORM_CHUNK];
  deform_split((const real *)d->dy + first, count, down, y);
  deform_split((const real *)d->dx + first, count, right, x);
  deform_locate(d, first, down, right, y, x, plan->at);
  for (int i = 0; i < DEFORM_CHUNK && !fits; ++i) plan->at[0][i] = DEFORM_ALONE;
  for (int i = 0; i < DEFORM_CHUNK; ++i) {
    plan->weight[0][i] = (1 - y[i]) * (1 - x[i]);
    plan->weight[1][i] = (1 - y[i]) * x[i];
    plan->weight[2][i] = y[i] * (1 - x[i]);
    plan->weight[3][i] = y[i] * x[i];
  }
  if (d->mask)
    deform_read((const real *)d->mask + first, count, plan->mask);
  else
    for (int i = 0; i < DEFORM_CHUNK; ++i) plan->mask[i] = 1;
}

struct deform_weights {
  vf neighbour[4], mask;
};

CK_INLINE struct deform_weights deform_weights_of(const struct deform_plan *plan, int64_t i) {
  struct deform_weights w;
  CK_UNROLL
  for (int k = 0; k < 4; ++k) w.neighbour[k] = vf_set1(plan->weight[k][i]);
  w.mask = vf_set1(plan->mask[i]);
  return w;
}

CK_INLINE vf deform_value(const struct deform_weights *w, const vf *pixel) {
  vf sum = vf_mul(w->neighbour[0], pixel[0]);
  CK_UNROLL
  for (int k = 1; k < 4; ++k) sum = vf_fma(w->neighbour[k], pixel[k], sum);
  return vf_mul(w->mask, sum);
}

/* Where the channels of a sample go: a head up to the next whole vector of the panel, whole
 * vectors, and a tail, as in fill.tpl.h; what ends within its first vector is all head. */
struct deform_target {
  int64_t lane, head, whole, n; /* whole: where the whole vectors end */
  vf_tail first, last;
};

CK_INLINE struct deform_target deform_target_of(const struct ck_deform_args *d) {
  const int64_t lane = d->term % VF_LANES;
  const int64_t head = lane || d->n <= VF_LANES ? ck_min(VF_LANES - lane, d->n) : 0;
  const int64_t whole = head + (d->n - head) / VF_LANES * VF_LANES;
  return (struct deform_target){lane, head, whole, d->n, vf_first(head), vf_first(d->n - whole)};
}

enum { DEFORM_PANEL_STEP = VF_GEMM_ROWS * VF_LANES };

/* How much of a vector a sample's channels are, if they are not many. A half has instructions of
 * its own: under a mask a whole vector is read, and reaches into the cache's next line. Without
 * masks a part is slow anyway. */
enum deform_size { DEFORM_PART, DEFORM_HALF, DEFORM_WHOLE, DEFORM_MANY };

CK_INLINE enum deform_size deform_size_of(const struct deform_target *t) {
  if (t->head < t->n) return DEFORM_MANY;
  if (t->n == VF_LANES) return DEFORM_WHOLE;
  if (2 * t->n == VF_LANES) return DEFORM_HALF;
  return VF_HAS_MASK ? DEFORM_PART : DEFORM_MANY;
}

CK_INLINE void deform_store(const real *const *at, const struct deform_weights *w, int64_t channel,
                            const enum deform_size size, vf_tail part, real *to) {
  vf pixel[4];
  CK_UNROLL
  for (int k = 0; k < 4; ++k) {
    const real *from = at[k] + channel;
    pixel[k] =
        size == DEFORM_HALF ? vf_load_half(from) : vf_load_either(from, size == DEFORM_WHOLE, part);
  }
  const vf value = deform_value(w, pixel);
  if (size == DEFORM_HALF)
    vf_store_half(to, value);
  else
    vf_store_either(to, size == DEFORM_WHOLE, part, value);
}

/* Any number of channels, which lie side by side ... */
CK_INLINE void deform_store_many(const struct deform_target *t, const real *const *at,
                                 const struct deform_weights *w, real *to) {
  int64_t c = t->head;
  if (c) {
    deform_store(at, w, 0, DEFORM_PART, t->first, to + t->lane);
    to += DEFORM_PANEL_STEP;
  }
  for (; c < t->whole; c += VF_LANES, to += DEFORM_PANEL_STEP)
    deform_store(at, w, c, DEFORM_WHOLE, t->last, to);
  if (c < t->n) deform_store(at, w, c, DEFORM_PART, t->last, to);
}

/* ... or in planes, a `step` apart: n of them, picked one by one. */
CK_INLINE vf deform_pick(const real *const *at, const struct deform_weights *w, int64_t channel,
                         int64_t step, int64_t n) {
  real picked[4][VF_LANES] = {{0}};
  vf pixel[4];
  CK_UNROLL
  for (int k = 0; k < 4; ++k) {
    const real *from = at[k] ? at[k] + channel * step : NULL;
    for (int64_t lane = 0; from && lane < n; ++lane) picked[k][lane] = from[lane * step];
    pixel[k] = vf_load(picked[k]);
  }
  return deform_value(w, pixel);
}

/* A sample of rows that are not there: from the planes. */
static __attribute__((noinline)) void deform_store_picked(const struct ck_deform_args *d,
                                                          const real *const *at,
                                                          const struct deform_plan *plan, int64_t i,
                                                          real *to) {
  const struct deform_target t = deform_target_of(d);
  const struct deform_weights w = deform_weights_of(plan, i);
  int64_t c = t.head;
  if (c) {
    vf_store_n(to + t.lane, t.first, deform_pick(at, &w, 0, d->plane_step, c));
    to += DEFORM_PANEL_STEP;
  }
  for (; c < t.whole; c += VF_LANES, to += DEFORM_PANEL_STEP)
    vf_store(to, deform_pick(at, &w, c, d->plane_step, VF_LANES));
  if (c < t.n) vf_store_n(to, t.last, deform_pick(at, &w, c, d->plane_step, t.n - c));
}

/* The slow way to a coordinate: false unless it lies strictly between -1 and size. Beyond 2^61
 * pixels there is no image. */
CK_INLINE bool deform_move(int64_t tap, real offset, int64_t size, int64_t *low, real *beyond) {
  const real most = (real)((int64_t)1 << 61);
  if (!(-most < offset && offset < most)) return false; /* NaN too */
  int64_t floor = (int64_t)offset;
  floor -= (real)floor > offset;
  *beyond = offset - (real)floor;
  if (__builtin_add_overflow(tap, floor, low)) return false;
  return *low < size && (*low >= 0 || (*low == -1 && *beyond > 0));
}

/* The slow way to the neighbours of a sample, some of which do not exist, and to their weights.
 * Whether they are to be picked from the planes, where null is a pixel that does not exist. */
static __attribute__((noinline)) bool deform_find(const struct ck_deform_args *d, int64_t pixel,
                                                  struct deform_plan *plan, int64_t i,
                                                  const real **at) {
  const real dy = ((const real *)d->dy)[pixel];
  const real dx = ((const real *)d->dx)[pixel];
  int64_t y = 0, x = 0;
  real v = 0, u = 0;
  const bool inside = deform_move(d->tap_y, dy, d->height, &y, &v) &&
                      deform_move(d->tap_x + pixel * d->stride_w, dx, d->width, &x, &u);
  const real nothing = dy != dy ? dy : dx != dx ? dx : 0; /* NaN where an offset is NaN */
  const real weight[4] = {(1 - v) * (1 - u), (1 - v) * u, v * (1 - u), v * u};
  const bool top = inside && y >= 0, bottom = inside && y < d->height - 1;
  const bool left = x >= 0, right = x < d->width - 1;
  const bool exists[4] = {top && left, top && right, bottom && left, bottom && right};
  const bool picked = (top && (y < d->row_begin || y >= d->row_end)) ||
                      (bottom && (y + 1 < d->row_begin || y + 1 >= d->row_end));
  const int64_t step = picked ? 1 : d->pixel_step, row = d->width * step;
  const real *zeros = picked ? NULL : d->zeros;
  const real *from = picked ? d->planes : d->x;
  const int64_t low = inside ? (y - (picked ? 0 : d->row_begin)) * row + x * step : 0;
  for (int k = 0; k < 4; ++k) {
    plan->weight[k][i] = inside ? weight[k] : nothing;
    at[k] = exists[k] ? from + low + (k / 2) * row + (k % 2) * step : zeros;
  }
  return picked;
}

/* A chunk of samples, from pixel `first` on. What the loop reads stands in variables of its own: a
 * store could change what has an address. */
CK_INLINE void deform_samples(const struct ck_deform_args *d, int64_t first, int64_t count,
                              struct deform_plan *plan, const struct deform_target *target,
                              const enum deform_size size) {
  const struct deform_target t = *target;
  const int64_t *offset = d->offset + first;
  real *panel = (real *)d->panel + d->term / VF_LANES * DEFORM_PANEL_STEP;
  CK_HIDE(plan); /* a register for it, not the stack's and an offset */
  for (int64_t i = 0; i < count; ++i) {
    real *to = panel + offset[i];
    const real *at[4];
    CK_UNROLL
    for (int k = 0; k < 4; ++k) at[k] = (const real *)plan->at[k][i];
    if (plan->at[0][i] == DEFORM_ALONE) {
      const real *found[4];
      if (deform_find(d, first + i, plan, i, found)) {
        deform_store_picked(d, found, plan, i, to);
        continue;
      }
      for (int k = 0; k < 4; ++k) at[k] = found[k];
    }
    const struct deform_weights w = deform_weights_of(plan, i);
    if (size == DEFORM_MANY)
      deform_store_many(&t, at, &w, to);
    else
      deform_store(at, &w, 0, size, t.first, to + t.lane);
  }
}

void CK_FN(deform)(const struct ck_deform_args *d) {
  const struct deform_target t = deform_target_of(d);
  const enum deform_size size = deform_size_of(&t);
  const bool fits = deform_fits(d);
  struct deform_plan plan;
  for (int64_t first = 0; first < d->pixels; first += DEFORM_CHUNK) {
    const int64_t count = ck_min(DEFORM_CHUNK, d->pixels - first);
    deform_make_plan(d, fits, first, count, &plan);
    switch (size) {
      case DEFORM_PART: deform_samples(d, first, count, &plan, &t, DEFORM_PART); break;
      case DEFORM_HALF: deform_samples(d, first, count, &plan, &t, DEFORM_HALF); break;
      case DEFORM_WHOLE: deform_samples(d, first, count, &plan, &t, DEFORM_WHOLE); break;
      case DEFORM_MANY: deform_samples(d, first, count, &plan, &t, DEFORM_MANY); break;
    }
  }
}
