/* Weights -> the layouts that the kernels read, padded with zeros to whole vectors. */
#include <stdlib.h>

#include "ck_impl.h"

/* Room for `count` elements of one packed array, zeroed. */
static ck_status alloc_elements(int64_t a, int64_t b, int element, void **out) {
  int64_t bytes;
  if (!ck_mul(a, b, &bytes) || !ck_mul(bytes, element, &bytes)) return CK_E_OVERFLOW;
  *out = ck_alloc((size_t)bytes);
  return *out ? CK_OK : CK_E_NOMEM;
}

static ck_status pack_bias(const struct ck_kernels *k, const void *bias, int64_t columns,
                           int64_t padded, void **out) {
  ck_status status = alloc_elements(padded, 1, k->element, out);
  if (status == CK_OK && bias) memcpy(*out, bias, (size_t)(columns * k->element));
  return status;
}

/* Copy n elements that lie `stride` apart. */
static void gather(void *to, const void *from, int64_t stride, int64_t n, int element) {
  if (stride == 1) {
    memcpy(to, from, (size_t)(n * element));
    return;
  }
  if (element == 4) {
    for (int64_t i = 0; i < n; ++i)
      memcpy((char *)to + 4 * i, (const char *)from + 4 * i * stride, 4);
  } else {
    for (int64_t i = 0; i < n; ++i)
      memcpy((char *)to + 8 * i, (const char *)from + 8 * i * stride, 8);
  }
}

/* The time that so many columns take in panels of `panel`, where a tile may have half a vector: as
 * many units as it has halves, but two at least. */
static int64_t panels_time(const struct ck_kernels *k, int64_t columns, int64_t panel) {
  const int64_t rest = columns % panel;
  const int64_t last = rest ? ck_max(2, ck_ceil_div(2 * rest, k->lanes)) : 0;
  return columns / panel * (2 * panel / k->lanes) + last;
}

double ck_columns_time(const struct ck_kernels *k, int64_t columns) {
  const int64_t panel = (int64_t)k->gemm_vectors * k->lanes;
  if (!k->gemm_halves) return (double)ck_ceil_div(columns, k->lanes);
  return (double)panels_time(k, columns, panel) / 2;
}

/* Two vectors; or one and a half, as for 40 columns, which are 24 and 16. */
static int64_t panel_columns(const struct ck_kernels *k, ck_layout layout, int64_t terms,
                             int64_t columns) {
  const int64_t two = (int64_t)k->gemm_vectors * k->lanes, less = two - k->lanes / 2;
  if (layout == CK_NCHW || !k->gemm_halves || ck_parts_pay(k, terms, columns)) return two;
  return panels_time(k, columns, less) < panels_time(k, columns, two) ? less : two;
}

/* A register takes so many terms, and two of them so many columns; with fewer they idle, and
 * conversions and ends of sums take longer than is gained (measured on Granite Rapids). */
enum { LEAST_PART_TERMS = 32, LEAST_PART_COLUMNS = 48 };

bool ck_parts_pay(const struct ck_kernels *k, int64_t terms, int64_t columns) {
  return k->gemm_parts && terms >= LEAST_PART_TERMS && columns >= LEAST_PART_COLUMNS;
}

int64_t ck_parts_bytes(const struct ck_kernels *k, int64_t terms) {
  return ck_round_up(terms, k->part_terms) * k->part_bytes;
}

int64_t ck_parts_at(const struct ck_kernels *k, const struct ck_gemm_weights *w, int64_t column) {
  return column * ck_parts_bytes(k, w->terms); /* of whole vectors */
}

/* The panels once more. Gives whether some number was too small for three parts. */
static bool split_panels(const struct ck_kernels *k, struct ck_gemm_weights *packed) {
  bool underflow = false;
  for (int64_t first = 0; first < packed->columns; first += packed->panel_columns) {
    const int64_t n = ck_min(packed->panel_columns, packed->columns - first);
    struct ck_split_args split = {
        .to = (char *)packed->parts + ck_parts_at(k, packed, first),
        .from = ck_at(packed->data, ck_panel_at(k, packed, first), k->element),
        .terms = packed->terms,
        .vectors = (int)ck_ceil_div(n, k->lanes)};
    k->split_columns(&split);
    underflow |= split.underflow;
  }
  return underflow;
}

/* The same of NCHW's tiles. */
static bool split_tiles(const struct ck_kernels *k, struct ck_gemm_weights *packed) {
  struct ck_parts_args split = {.a = packed->data,
                                .offset = packed->places,
                                .a_next = (int64_t)k->gemm_rows * k->lanes,
                                .a_parts = packed->parts,
                                .rows = packed->columns,
                                .terms = packed->terms};
  k->split_rows(&split);
  return split.underflow;
}

/* Whether a column has no larger weights than 2^-80: it may be that of a channel that died in
 * training. */
static bool has_small_column(const ck_window *window, int64_t in_channels, int64_t columns,
                             const ck_weights *w) {
  for (int64_t n = 0; n < columns; ++n) {
    float largest = 0;
    for (int64_t ky = 0; ky < window->kernel_h; ++ky)
      for (int64_t kx = 0; kx < window->kernel_w; ++kx)
        for (int64_t c = 0; c < in_channels; ++c) {
          const float *at = w->data;
          at += ky * w->stride[0] + kx * w->stride[1] + c * w->stride[2] + n * w->stride[3];
          largest = fmaxf(largest, fabsf(*at));
        }
    if (largest > 0 && largest < 0x1p-80f) return true;
  }
  return false;
}

/* Weights once more, in parts; or not, where a column's are too small for that. */
static ck_status pack_parts(const struct ck_kernels *k, const ck_window *window,
                            int64_t in_channels, const ck_weights *w,
                            struct ck_gemm_weights *packed) {
  const bool planar = packed->layout == CK_NCHW;
  const int64_t rows = ck_round_up(packed->columns, k->part_rows);
  const ck_status status = alloc_elements(planar ? rows : ck_panels_width(k, packed),
                                          ck_parts_bytes(k, packed->terms), 1, &packed->parts);
  if (status != CK_OK) return status;
  const uint64_t saved = ck_fp_enter();
  const bool underflow = planar ? split_tiles(k, packed) : split_panels(k, packed);
  ck_fp_leave(saved);
  if (underflow && has_small_column(window, in_channels, packed->columns, w)) {
    ck_free(packed->parts);
    packed->parts = NULL;
  }
  return CK_OK;
}

int64_t ck_panels_width(const struct ck_kernels *k, const struct ck_gemm_weights *w) {
  const int64_t last = (w->columns - 1) % w->panel_columns + 1;
  const int64_t others = (w->columns - last) / w->panel_columns;
  return others * ck_round_up(w->panel_columns, k->lanes) + ck_round_up(last, k->lanes);
}

int64_t ck_panel_at(const struct ck_kernels *k, const struct ck_gemm_weights *w, int64_t column) {
  return column / w->panel_columns * ck_round_up(w->panel_columns, k->lanes) * w->terms;
}

/* Panels of columns, each [terms][columns]. */
static void pack_panels(const struct ck_kernels *k, const ck_window *window, int64_t in_channels,
                        const ck_weights *w, struct ck_gemm_weights *packed) {
  for (int64_t first = 0; first < packed->columns; first += packed->panel_columns) {
    const int64_t n = ck_min(packed->panel_columns, packed->columns - first);
    const int64_t width = ck_round_up(n, k->lanes);
    char *to = ck_at_mut(packed->data, ck_panel_at(k, packed, first), k->element);
    for (int64_t ky = 0; ky < window->kernel_h; ++ky)
      for (int64_t kx = 0; kx < window->kernel_w; ++kx)
        for (int64_t c = 0; c < in_channels; ++c) {
          const int64_t at = ky * w->stride[0] + kx * w->stride[1] + c * w->stride[2];
          gather(to, ck_at(w->data, at + first * w->stride[3], k->element), w->stride[3], n,
                 k->element);
          to += width * k->element;
        }
  }
}

/* Where each channel begins in tiles. */
static ck_status place_channels(const struct ck_kernels *k, struct ck_gemm_weights *packed) {
  const struct ck_deal deal = ck_deal_of(packed->columns, k);
  const int64_t tile_step = ck_round_up(packed->terms, k->lanes) * k->gemm_rows;
  void *places;
  const ck_status status = alloc_elements(packed->columns, (int64_t)sizeof(int64_t), 1, &places);
  if (status != CK_OK) return status;
  int64_t *at = packed->places = places;
  for (int64_t t = 0; t < deal.tiles; ++t)
    for (int64_t r = 0; r < ck_deal_rows(&deal, t); ++r) *at++ = t * tile_step + r * k->lanes;
  return CK_OK;
}

/* One column of a tile, whose terms lie L in a row, then MR * L further on. */
static void pack_row(const struct ck_kernels *k, const ck_window *window, int64_t in_channels,
                     const ck_weights *w, const void *from, void *to) {
  int64_t term = 0;
  for (int64_t ky = 0; ky < window->kernel_h; ++ky)
    for (int64_t kx = 0; kx < window->kernel_w; ++kx)
      for (int64_t c = 0, n; c < in_channels; c += n, term += n) {
        const int64_t lane = term % k->lanes;
        n = ck_min(in_channels - c, k->lanes - lane);
        gather(ck_at_mut(to, (term - lane) * k->gemm_rows + lane, k->element),
               ck_at(from, ky * w->stride[0] + kx * w->stride[1] + c * w->stride[2], k->element),
               w->stride[2], n, k->element);
      }
}

/* NCHW: tiles of output channels, each [terms / L][MR][L]. */
static void pack_tiles(const struct ck_kernels *k, const ck_window *window, int64_t in_channels,
                       const ck_weights *w, struct ck_gemm_weights *packed) {
  const struct ck_deal deal = ck_deal_of(packed->columns, k);
  const int64_t tile_step = ck_round_up(packed->terms, k->lanes) * k->gemm_rows;
  int64_t column = 0;
  for (int64_t t = 0; t < deal.tiles; ++t)
    for (int64_t r = 0; r < ck_deal_rows(&deal, t); ++r, ++column)
      pack_row(k, window, in_channels, w, ck_at(w->data, column * w->stride[3], k->element),
               ck_at_mut(packed->data, t * tile_step + r * k->lanes, k->element));
}

ck_status ck_pack_gemm(const struct ck_kernels *k, ck_layout layout, const ck_window *window,
                       int64_t in_channels, int64_t columns, const ck_weights *w, const void *bias,
                       struct ck_gemm_weights *packed) {
  int64_t terms;
  if (!ck_mul(window->kernel_h, window->kernel_w, &terms) || !ck_mul(terms, in_channels, &terms))
    return CK_E_OVERFLOW;
  if (columns > INT64_MAX / 2 || terms > INT64_MAX - k->lanes) return CK_E_OVERFLOW;
  packed->terms = terms;
  packed->columns = columns;
  packed->panel_columns = panel_columns(k, layout, terms, columns);
  packed->layout = layout;
  const int64_t padded = ck_round_up(columns, k->lanes);
  const bool planar = layout == CK_NCHW;
  ck_status status =
      planar ? alloc_elements(ck_round_up(terms, k->lanes), ck_round_up(columns, k->gemm_rows),
                              k->element, &packed->data)
             : alloc_elements(terms, ck_panels_width(k, packed), k->element, &packed->data);
  if (status == CK_OK) status = pack_bias(k, bias, columns, padded, &packed->bias);
  if (status != CK_OK) return status;
  if (planar)
    pack_tiles(k, window, in_channels, w, packed);
  else
    pack_panels(k, window, in_channels, w, packed);
  if (!ck_parts_pay(k, terms, columns)) return CK_OK;
  if (planar) status = place_channels(k, packed);
  return status == CK_OK ? pack_parts(k, window, in_channels, w, packed) : status;
}

struct ck_gemm_weights ck_gemm_columns(const struct ck_kernels *k, const struct ck_gemm_weights *w,
                                       struct ck_span columns) {
  struct ck_gemm_weights some = *w;
  some.columns = columns.end - columns.begin;
  some.data = ck_at_mut(w->data, ck_panel_at(k, w, columns.begin), k->element);
  some.bias = ck_at_mut(w->bias, columns.begin, k->element);
  if (w->parts) some.parts = (char *)w->parts + ck_parts_at(k, w, columns.begin);
  return some;
}

/* Neither infinite nor NaN: an exponent that is not all ones. */
static bool is_finite(const void *x, int element) {
  uint64_t bits = 0;
  memcpy(&bits, x, (size_t)element); /* little-endian */
  const uint64_t exponent = element == 4 ? (uint64_t)0xFF << 23 : (uint64_t)0x7FF << 52;
  return (bits & exponent) != exponent;
}

ck_status ck_pack_dw(const struct ck_kernels *k, const ck_window *window, int64_t groups,
                     int64_t group_in, int64_t group_out, const struct ck_group_weights *w,
                     const void *bias, struct ck_dw_weights *packed) {
  int64_t channels, taps;
  if (!ck_mul(groups, group_out, &channels) || channels > INT64_MAX - k->lanes ||
      !ck_mul(window->kernel_h, window->kernel_w, &taps) || !ck_mul(taps, group_in, &taps))
    return CK_E_OVERFLOW;
  const int64_t padded = ck_round_up(channels, k->lanes);
  packed->channels = channels;
  packed->finite = true;
  ck_status status = alloc_elements(taps, padded, k->element, &packed->data);
  if (status == CK_OK) status = pack_bias(k, bias, channels, padded, &packed->bias);
  if (status != CK_OK) return status;

  for (int64_t o = 0; o < channels; ++o) {
    char *to = ck_at_mut(packed->data, o / k->lanes * taps * k->lanes + o % k->lanes, k->element);
    const int64_t at = o / group_out * w->group + o % group_out * w->out;
    for (int64_t ky = 0; ky < window->kernel_h; ++ky)
      for (int64_t c = 0; c < group_in; ++c)
        for (int64_t kx = 0; kx < window->kernel_w; ++kx) {
          const int64_t tap = at + ky * w->ky + c * w->in + kx * w->kx;
          memcpy(to, ck_at(w->data, tap, k->element), (size_t)k->element);
          packed->finite &= is_finite(to, k->element);
          to += k->lanes * k->element;
        }
  }
  return CK_OK;
}
