/* Private to csrc/: one ISA's table of kernels, the arguments its kernels take, and helpers.
 *
 * Drivers (ck_*.c) are ISA-free and dtype-free: they count in elements and let ck_at() turn that
 * into bytes. Kernels (kernels/<op>.tpl.h) see one dtype and one ISA; they never allocate, never
 * fail, and never touch rows they were not given.
 */
#ifndef CK_IMPL_H
#define CK_IMPL_H

#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#include "convkern.h"

#if defined(__x86_64__) || defined(__i386__)
#define CK_X86 1
#include <immintrin.h>
#else
#define CK_X86 0
#endif
#if defined(__aarch64__)
#define CK_ARM64 1
#include <arm_neon.h>
#else
#define CK_ARM64 0
#endif

/* Compilers know AMX since gcc 11 and clang 12, which call the header so and so. */
#if defined(__x86_64__) && defined(__has_include)
#if __has_include(<amxbf16intrin.h>) || __has_include(<amxintrin.h>)
#define CK_AMX 1
#endif
#endif
#ifndef CK_AMX
#define CK_AMX 0
#endif

#define CK_INLINE static inline __attribute__((always_inline))
#define CK_LIKELY(x) __builtin_expect((x), 1)

/* Vectors, and everything the workspace holds, start on a cache line. */
#define CK_ALIGN 64

/* ------------------------------------------------------------------ kernels and their arguments */

/* The panel: the GEMM's left operand, one tile of output pixels after the other. With L lanes and
 * MR rows a tile is [terms / L][MR][L], so that a depthwise kernel stores whole vectors of channels
 * into it and the GEMM broadcasts one term of each pixel from it. `offset` tables give the element
 * at which each pixel's first term lies; MR * L further on come its next L terms. Where pixels can
 * be multiplied in the image itself, that is the panel. */

/* Memory that a kernel brings into L2 while it computes. */
struct ck_ahead {
  const char *at, *end;
};

/* c[rows][columns] = clamp(bias + a x b + residual), for some tiles one below the other; without a
 * bias the sum continues from c. */
struct ck_gemm_args {
  const void *a;        /* the first tile of the panel */
  const void *b;        /* packed weights [terms][vectors * L]; NCHW: pixels, or planes: */
  const int64_t *b_at;  /* where each term's are, in elements from b; or null: as weights are */
  const void *bias;     /* one per column, vectors * L of them, or null */
  const void *row_bias; /* NCHW: one per row, or null */
  const void *residual; /* laid out as c, or null */
  void *c;
  int64_t c_step;        /* elements from one row of c to the next */
  int64_t a_step;        /* elements from one row of a to the next */
  int64_t a_run, a_next; /* terms that lie side by side; elements from there to the next such */
  int64_t a_runs;        /* so many runs are a line of a window; or 0: there are no lines */
  int64_t a_line;        /* elements from the last run of a line to the next line */
  int64_t a_tile;        /* elements from one tile of a to the next */
  int64_t tiles;
  int64_t terms;
  int64_t columns; /* of c; at most vectors * L */
  int rows;        /* 1 .. MR */
  int vectors;     /* 1 .. CK_GEMM_VECTORS */
  double low, high;
  void *zero; /* L elements, of which one becomes NaN if a sum is infinite or NaN; or null */
  struct ck_ahead ahead[2]; /* weights, input; the kernel moves on in them */
};

/* c[rows][columns] = clamp(bias + a x b + residual), of numbers in parts, for all panels of b; see
 * kernels/gemm_parts.tpl.h. */
struct ck_parts_args {
  const void *a;         /* a range of terms of some rows, as in ck_gemm_args: */
  const int64_t *offset; /* where each row begins, in elements; or null: they are */
  int64_t a_step;        /* so far apart; */
  int64_t a_next;        /* from L terms of a row to its next L */
  void *a_parts;         /* the same in parts, */
  int64_t a_terms;       /* of a row that has so many */
  const void *b;         /* the range of a panel's columns, and in parts; */
  const void *b_parts;
  int64_t b_terms, panel_columns; /* panels have so many terms, and columns */
  const void *bias;               /* one per column, */
  const void *row_bias;           /* or one per row; without either the sums continue from c */
  const void *residual;           /* laid out as c, or null */
  void *c;
  int64_t c_step;
  int64_t rows, columns;
  int64_t begin, terms; /* the range's first term in a panel, a multiple of part_terms; how many */
  bool planar;          /* a is the weights, b the pixels */
  bool fast;            /* three products of parts, not six */
  bool underflow;       /* the answer of split_rows: some number was too small for three parts */
  double low, high;
  void *zero;               /* as in ck_gemm_args */
  struct ck_ahead ahead[3]; /* what is brought near after b, in this order */
};

/* A panel of b into parts. */
struct ck_split_args {
  void *to;
  const void *from;
  int64_t terms;
  int vectors;
  bool pixels;    /* of an image, not weights: a small one is given a NaN */
  bool underflow; /* the answer, as above */
};

/* So many rows of output a depthwise 3x3 makes at once, at most; of so many of input at stride 2.
 */
enum { CK_DW_ROWS = 4, CK_DW_IN_ROWS = 2 * (CK_DW_ROWS - 1) + 3 };

/* Depthwise 3x3: one or more rows of output, channels [channel_begin, channel_end). */
struct ck_dw_args {
  const void *const *rows; /* the input rows the taps touch, top down; null is a row of padding */
  const void *weights;     /* packed [channels / L][9][L] */
  const void *bias;        /* one per channel, rounded up to L */
  void *out;
  const int64_t *offset;              /* where in out each pixel's channel_begin goes, */
  int64_t offset_row;                 /* so many pixels after that of the row above */
  int64_t out_step;                   /* elements from L channels of a pixel to its next L */
  int64_t channel_begin, channel_end; /* begin is a multiple of L */
  int64_t pixel_step;                 /* elements from one input pixel to the next */
  int64_t in_w, out_w;
  int64_t x0;   /* input column under the first tap of the first output; negative is padding */
  int out_rows; /* as ck_dw_rows says */
  double low, high;
};

/* Depthwise, any window: some rows of output, L channels. Steps are in elements of a row. */
struct ck_dw_row_args {
  const void *const *rows; /* [out_rows][kernel_h] rows, at their first pixel; null adds nothing */
  int64_t first;           /* from there to the first tap of the first output; may be negative */
  int64_t row_end;         /* pixels are at [0, row_end); see ck_dw_is_literal */
  const void *weights;     /* [kernel_h * kernel_w][L] */
  const void *bias;        /* [L] */
  void *out;
  const int64_t *offset; /* where in out each pixel goes: [out_rows][out_w] */
  int64_t lanes;         /* channels that exist */
  int64_t kernel_h, kernel_w, out_rows, out_w;
  int64_t tap_step;   /* from one tap to the next */
  int64_t out_step;   /* from one output to the next */
  int64_t phases;     /* outputs that are so far apart are whole taps apart ... */
  int64_t group_step; /* ... namely this far */
  double low, high;
};

/* Depthwise, kernel_h x 1: some pixels of one row of sums, or of two. */
struct ck_column_args {
  const void *const *rows;   /* the input rows under it, at the first pixel; null is padding */
  int64_t shift;             /* of two: the second begins with this row, 1 .. kernel_h - 1; or 0 */
  const void *weights;       /* [channels / L][kernel_h][L] */
  int64_t weights_step;      /* elements from L channels to the next L; 0: they are alike */
  void *out;                 /* whole vectors are written */
  int64_t out_step, out_row; /* elements from one pixel to the next, from one row of sums */
  int64_t kernel_h, pixel_step, pixels, channels;
};

/* Pixels of a row, what some output channels read of them, into scratch: [pixels][to_step]. */
struct ck_stage_args {
  void *to;
  const void *src;  /* the row's first pixel that is wanted */
  int64_t src_step; /* elements from one input pixel to the next */
  int64_t to_step;  /* whole vectors; more than one only where output channels are input channels */
  int64_t pixels;
  int64_t channel, lanes; /* output channels [channel, channel + lanes) */
  /* output channel o reads input channels o / group_out * group_in + [0, group_in), for each of
   * which there is a staged row */
  int64_t group_in, group_out;
  int64_t member_step; /* from one of these rows to the next */
};

/* Depthwise and grouped 1x1: some pixels, output channels [channel_begin, channel_end). */
struct ck_dw_pixel_args {
  const void *src;     /* the first pixel */
  int64_t src_step;    /* elements from one pixel to the next */
  const void *weights; /* packed [channels / L][group_in][L] */
  const void *bias;    /* one per channel, rounded up to L */
  void *out;
  const int64_t *offset; /* where in out each pixel's channel_begin goes, */
  int64_t out_step;      /* and elements from there to the next L */
  int64_t pixels;
  int64_t channel_begin, channel_end; /* the first a multiple of L */
  int64_t group_in, group_out;        /* as above */
  bool pairs;                         /* as ck_makes_pairs says */
  double low, high;
};

/* Copy n consecutive terms of each of several pixels into the panel. */
struct ck_fill_args {
  void *panel;
  const int64_t *offset;
  const void *src; /* null: zeros */
  int64_t src_step;
  int64_t pixels;
  int64_t term, n; /* the first term, counted in the panel, and how many */
};

/* One tap of some pixels of an output row: n channels that move together, sampled bilinearly, into
 * the panel. Steps are in elements. */
struct ck_deform_args {
  void *panel;
  const int64_t *offset;
  int64_t pixels;
  int64_t term, n;            /* as for a fill */
  int64_t height, width;      /* of the image */
  const void *x;              /* the first of the n channels, at the first pixel of row_begin */
  int64_t row_begin, row_end; /* the rows that are there, channels side by side */
  int64_t pixel_step;
  const void *planes;   /* where the others are: the first of the n channels; or null */
  int64_t plane_step;   /* from one channel to the next */
  const void *dy, *dx;  /* one per pixel */
  const void *mask;     /* the same, or null: ones */
  int64_t tap_y, tap_x; /* where the first pixel's tap lies before it is moved */
  int64_t stride_w;
  const void *zeros; /* n of them: a pixel outside the image */
};

/* to[c * to_step + r] = from[r * from_step + c], r < rows, c < columns; and as many more matrices
 * as `more` says, which lie to_more and from_more elements apart. */
struct ck_transpose_args {
  void *to;
  const void *from;
  int64_t to_step, from_step;
  int64_t rows, columns;
  int64_t more, to_more, from_more;
};

/* NCHW: one term of `rows` rows of neighbouring pixels into a planar panel: groups of vectors * L
 * pixels, from pixel `narrow` on of L. Row r begins at pixel + r * row_pixels. */
struct ck_planar_fill_args {
  void *panel;
  int64_t group_step, narrow;
  int64_t term, pixel, row_pixels;
  const void *src;           /* null: zeros */
  int64_t src_step, src_row; /* elements from one pixel, from one row to the next */
  int64_t pixels, rows;
  int64_t ahead; /* to what is brought near meanwhile, with src_step 1; or 0 */
};

/* NCHW: rectangles of a plane, each by its first element in src and in `to`:
 * to[r * to_row + i] = src[r * src_row + i * step], r < rows, i < n. Of a plane that lies `ahead`
 * elements behind the same is brought near, with step 1, if that is not 0. */
struct ck_move {
  int64_t from, to, n, rows;
};
struct ck_planar_copy_args {
  void *to;
  const void *src;
  const struct ck_move *move;
  int64_t moves, to_row, src_row, step, ahead;
};

/* NCHW: rows of outputs, out[i] = clamp(bias + sum over the taps of plane[tap.plane + i] *
 * weights[tap.weight]), i < cols. The plane is readable for two vectors past its end. */
struct ck_tap {
  int64_t plane, weight;
};
/* 3x3 windows whose rows share input, as they lie on a plane. */
enum ck_planar_window {
  CK_PLANAR_ANY,
  CK_PLANAR_3X3,         /* taps are neighbours, and summed column by column */
  CK_PLANAR_3X3_S2,      /* so they are here, of every other row and column */
  CK_PLANAR_3X3_BY_ROWS, /* neighbours, row by row */
  CK_PLANAR_3X3_D2,      /* two apart, row by row */
};
/* So many rows of output are made at once: they share weights, and input. The last may be made
 * twice. */
enum { CK_PLANAR_ROWS = 4 };
struct ck_dw_planar_args {
  const void *plane; /* vectors begin there and a multiple of L further on */
  enum ck_planar_window window;
  const struct ck_tap *tap;
  const void *weights, *bias;
  int64_t taps;
  int64_t rows, cols;
  int64_t pitch, out_row; /* from one row to the next in a plane, and in out */
  void *out;
  double low, high;
};

/* NCHW: a depthwise 3x3 of planes where they lie, for channels first .. end - 1; x is the plane of
 * the first. y begins with the first row that is made, and so does pad_top. A row of outputs has at
 * most so many vectors. */
enum { CK_NARROW_VECTORS = 8 };
/* Columns of such a vector: at stride 2 the last tap of a whole one would reach beyond two vectors
 * of the image. */
CK_INLINE int64_t ck_narrow_columns(int64_t lanes, int64_t stride) { return lanes + 1 - stride; }
struct ck_narrow_args {
  const void *x;
  void *y;
  const void *weights, *bias;
  int64_t first, end;
  int64_t height, width, pad_top, pad_left;
  int64_t rows, cols, out_plane;
  int64_t stride;
  double low, high;
};

/* Apply an activation other than a clamp to rows that were just written. */
struct ck_act_args {
  void *y;
  int64_t rows, columns, step;
  ck_act_kind kind;
};

/* y = clamp(y + residual), n elements. */
struct ck_add_args {
  void *y;
  const void *residual;
  int64_t n;
  double low, high;
};

/* out[p * out_step + i] = in[p * in_step + i], joined with the taps that lie tap_step, 2 tap_step
 * .. further on, for i < n and p < pixels. To join is to add or to take the larger. */
struct ck_pool_args {
  const void *in;
  void *out; /* may be in, of one pixel: elements are read before their places are written */
  int64_t taps, tap_step; /* of 0 taps come zeros, or -inf */
  int64_t pixels, in_step, out_step;
  int64_t n;
  int64_t ahead;        /* how far ahead of their use the last two taps are brought near; or 0 */
  bool every_other;     /* in[2 * i] for in[i]; `in` is readable for 2 L elements past its end */
  bool more;            /* join to what is in out */
  bool mean;            /* divide by divisor * divisors[i] */
  double divisor;       /* which may be 0 */
  const void *divisors; /* null: ones */
};

/* A register-only FMA loop; flops is the answer. */
struct ck_probe_args {
  int64_t iterations;
  double flops;
};

struct ck_kernels {
  ck_isa isa;
  ck_dtype dtype;
  int element;      /* bytes */
  int lanes;        /* elements of a vector, L */
  int gemm_rows;    /* MR */
  int gemm_vectors; /* a tile is MR x (vectors * L) */
  bool gemm_halves; /* or MR x 3/2 L, at three quarters of the time of one of 2 L */
  bool masks;       /* a vector of which few lanes are used takes little more than a full one */
  int dw_rows;      /* output rows that a 3x3 kernel makes at once; a power of two */
  int part_rows;    /* where numbers are multiplied in parts: rows that go together, */
  int part_terms;   /* and terms, */
  int part_bytes;   /* and bytes of a number */
#define CK_KERNEL(name, args) void (*name)(args *);
#include "ck_kernels.inc"
#undef CK_KERNEL
};

/* Null where the build or the CPU lacks it. */
const struct ck_kernels *ck_kernels_for(ck_isa isa, ck_dtype dtype);

/* [begin, end) of columns, channels or whatever else is counted. */
struct ck_span {
  int64_t begin, end;
};

/* ------------------------------------------------------------------------------ packed weights */

/* The GEMM's right operand: panels of `panel_columns`, each [terms][whole vectors of them], the
 * last one only as many vectors wide as it needs. Padding columns are zero. */
struct ck_gemm_weights {
  int64_t terms, columns;
  int64_t panel_columns;
  ck_layout layout; /* NCHW: the left operand instead, tiles of channels [terms / L][MR][L] */
  void *data;
  void *bias;      /* columns rounded up to a panel */
  void *parts;     /* the same panels in parts; or null */
  int64_t *places; /* NCHW, with parts: the element of data at which each channel begins */
};

struct ck_dw_weights {
  int64_t channels; /* of the output; o and o + channels have the same weights */
  void *data;       /* [channels / L][kernel_h][group_in][kernel_w][L] */
  void *bias;
  bool finite; /* no weight is infinite or NaN: rows of padding add nothing */
};

ck_status ck_pack_gemm(const struct ck_kernels *k, ck_layout layout, const ck_window *window,
                       int64_t in_channels, int64_t columns, const ck_weights *w, const void *bias,
                       struct ck_gemm_weights *packed);
/* Weights of groups: elements from one kernel row, kernel column, input channel of a group, group,
 * output channel of a group to the next. */
struct ck_group_weights {
  const void *data;
  int64_t ky, kx, in, group, out;
};
ck_status ck_pack_dw(const struct ck_kernels *k, const ck_window *window, int64_t groups,
                     int64_t group_in, int64_t group_out, const struct ck_group_weights *w,
                     const void *bias, struct ck_dw_weights *packed);
/* Whether sums over so many terms, for so many columns, are faster in parts. */
bool ck_parts_pay(const struct ck_kernels *k, int64_t terms, int64_t columns);
/* Bytes in parts: of one row or column, and where the panel begins whose first column this is. */
int64_t ck_parts_bytes(const struct ck_kernels *k, int64_t terms);
int64_t ck_parts_at(const struct ck_kernels *k, const struct ck_gemm_weights *w, int64_t column);
/* The time of one term of one pixel, in FMAs of a vector. */
double ck_columns_time(const struct ck_kernels *k, int64_t columns);
/* Columns of all panels, padding included. */
int64_t ck_panels_width(const struct ck_kernels *k, const struct ck_gemm_weights *w);
/* The element at which the panel begins whose first column this is. */
int64_t ck_panel_at(const struct ck_kernels *k, const struct ck_gemm_weights *w, int64_t column);
/* Some columns, from the first of a panel on. */
struct ck_gemm_weights ck_gemm_columns(const struct ck_kernels *k, const struct ck_gemm_weights *w,
                                       struct ck_span columns);
ck_status ck_alloc_gemms(int64_t count, struct ck_gemm_weights **gemms, int64_t *allocated);
void *ck_alloc(size_t bytes); /* aligned, zeroed; null on failure or 0 bytes */
void ck_free(void *p);
void *ck_alloc_pages(size_t bytes); /* for free(): of huge pages where it is large; not zeroed */

/* ------------------------------------------------------------------- an operation, and its parts
 */

/* Grouped: a conv2d whose groups are narrower than a vector. Turn: no sums, but planes become
 * pixels, or pixels planes; its layout is that of what it makes. */
enum ck_op_kind {
  CK_OP_CONV2D,
  CK_OP_GROUPED,
  CK_OP_DEPTHWISE,
  CK_OP_SEPARABLE,
  CK_OP_DEFORM,
  CK_OP_SPATIAL,
  CK_OP_TURN,
};

struct ck_op {
  enum ck_op_kind kind;
  const struct ck_kernels *kernels;
  ck_conv conv;
  struct ck_dw_weights dw;      /* depthwise, separable, grouped; spatial: the row */
  struct ck_dw_weights column;  /* spatial: kernel_h x 1, the step before dw */
  struct ck_gemm_weights *gemm; /* conv2d, deform: one per group; separable: one */
  int64_t gemms;
  struct ck_gemm_weights *bundle; /* conv2d: several groups each, see ck_bundles.c; or null */
  int64_t bundles;
  struct ck_gemm_weights *planes; /* in NCHW: one a group once more, for planes; or null */
  int64_t plane_groups;
  void *zeros; /* deform: a pixel of one group's channels */
};

/* One call, or a part of one: the operation, the image and the arrays. A part that makes rows from
 * y on of the output has an out_h, a y and a residual of its own, and y * stride_h less padding at
 * the top, which may be negative; the image is the same. */
struct ck_run {
  const struct ck_op *op;
  ck_image image;
  int64_t out_h, out_w;
  int64_t group_in, group_out; /* channels of a group; a depthwise has 1 and the multiplier */
  int64_t out_channels;
  const void *x, *residual;
  void *y;
  int64_t x_step, y_step;  /* elements from one pixel to the next; 0: as many as are in it */
  const ck_deform *deform; /* of a deformable convolution */
  int64_t plane;           /* a part in NCHW: from one plane of the output to the next; or 0.
                              A turn: of what it reads, too, which is as large */
  struct ck_span only;     /* a part: channels of the output that it makes; {0, 0}: all */
  const ck_op *next;       /* what will run after it, if that is known */
  struct ck_ahead later;   /* weights of something after that, to be brought near */
  bool parts;              /* large enough for weights in parts, where there are such */
  const ck_op *expand;     /* makes the channels of the image of those of x, see ck_inverted.c */
};

/* The output's length along one axis, in checked 64 bits; with ceil_mode one more where a last
 * window starts before the end of the image and hangs over that of the padding. */
ck_status ck_output_length(int64_t in, int64_t pad_before, int64_t pad_after, int64_t kernel,
                           int64_t stride, int64_t dilation, bool ceil_mode, int64_t *out);

/* The bytes of a 4-D array fit in a pointer difference. */
bool ck_array_fits(int64_t a, int64_t b, int64_t c, int64_t d, int64_t element);

/* Checks that every entry point makes: sizes at least 1, groups that divide, products in 64 bits.
 * ck_check_run also finds the output's size. */
ck_status ck_check_conv(enum ck_op_kind kind, const ck_conv *conv);
ck_status ck_check_run(struct ck_run *run);
bool ck_has_arrays(const struct ck_run *run); /* or an empty batch */

/* What a run needs, and the run, of any operation in any layout. */
ck_status ck_run_workspace(const struct ck_run *run, size_t *bytes);
void ck_run_op(const struct ck_run *run, void *workspace);
/* A run may be cut into ranges of so many channels of the output; 0: it may not. */
int64_t ck_run_unit(const struct ck_run *run);

void ck_dwconv_run(const struct ck_run *run, void *workspace);
void ck_sepconv_run(const struct ck_run *run, void *workspace);
void ck_spatial_run(const struct ck_run *run, void *workspace);
void ck_conv2d_run(const struct ck_run *run, void *workspace);
ck_status ck_dwconv_workspace(const struct ck_run *run, size_t *bytes);
ck_status ck_sepconv_workspace(const struct ck_run *run, size_t *bytes);
ck_status ck_spatial_workspace(const struct ck_run *run, size_t *bytes);
ck_status ck_conv2d_workspace(const struct ck_run *run, size_t *bytes);

/* Output pixels are worked on in blocks: some whole rows of one image, or a part of one row. Either
 * way a block is one contiguous run of pixels. */
struct ck_block {
  int64_t image, y, x;
  int64_t rows, cols; /* rows == 1 where cols < out_w */
  int64_t pixels;
};

struct ck_blocking {
  int64_t batch, out_h, out_w;
  int64_t rows, cols;             /* of one block */
  int64_t row_blocks, col_blocks; /* of one image */
};

struct ck_blocking ck_blocking_of(int64_t batch, int64_t out_h, int64_t out_w, int64_t pixels);
int64_t ck_block_count(const struct ck_blocking *b);
struct ck_block ck_block_at(const struct ck_blocking *b, int64_t index);

/* The blocked GEMM of ck_gemm.c: for each block and each range of terms, `fill` writes the panel
 * and the microkernel multiplies it with the packed weights. A new convolution is a new fill. */
struct ck_panel {
  void *data;
  int64_t lines, line_step; /* tiles do not go beyond a line; elements from one to the next */
  int64_t tile_step;        /* from one tile to the next; 0: its rows are those after the last's */
  int64_t row_step;         /* from one row of a tile to the next */
  int64_t run, next;        /* terms that lie side by side; elements from there to the next such */
  int64_t runs, run_line;   /* see ck_gemm_args */
  const int64_t *offset;    /* one entry per pixel of the block; not in NCHW */
  int64_t elements;         /* in use, from data on */
  int64_t group_step, narrow; /* NCHW, see ck_planar_fill_args */
  int64_t *places;            /* NCHW: where each term's plane is, for the fill to say; or null */
  int64_t before;             /* pixels of these planes that lie right before those of the block */
  void *parts;                /* room for the same in parts; or null */
};

/* A panel without tiles: the image where it lies, or padded rows of it that a fill has copied. Its
 * rows are windows, which may overlap; steps are in elements. */
struct ck_view {
  const void *pixels; /* the window of the first output pixel; null: there is a fill */
  int64_t row_step;   /* from the window of one output pixel to the next */
  int64_t line_step;  /* from one row of the output to the next; 0: all follow each other */
  int64_t run, next;  /* terms that lie side by side; from there to the next such */
  int64_t runs;       /* so many runs are a line of the window; or 0: there are no lines */
  int64_t run_line;   /* from the last run of a line to the next line */
  bool planes;        /* NCHW: terms are planes, of the image or staged, not copies of pixels */
};

typedef void ck_fill_fn(const void *context, const struct ck_block *block, int64_t term_begin,
                        int64_t term_end, const struct ck_panel *panel);

struct ck_gemm {
  const struct ck_kernels *kernels;
  const struct ck_gemm_weights *weights;
  ck_fill_fn *fill;
  const void *context;
  struct ck_view view;      /* row_step 0: none, the fill makes tiles */
  const struct ck_run *run; /* the image and the window that the blocks read */
  const void *residual;     /* null, or laid out as y */
  void *y;                  /* at this GEMM's first column */
  int64_t y_step; /* elements from one pixel to the next; NCHW: from one channel to the next */
  ck_activation activation;
  void *zero; /* see ck_gemm_args */
};

void ck_gemm_run(const struct ck_gemm *g, void *workspace);
ck_status ck_gemm_workspace(const struct ck_gemm *g, size_t *bytes);
struct ck_blocking ck_gemm_blocking(const struct ck_gemm *g);
int64_t ck_gemm_range(const struct ck_gemm *g); /* terms that are summed at once */
bool ck_uses_parts(const struct ck_gemm *g);    /* numbers are multiplied in parts */

/* The context of the fills of ck_pwconv.c, ck_conv2d.c and ck_deform.c: one group of channels. */
struct ck_conv_fill {
  const struct ck_run *run;
  int64_t first_channel, channels; /* of the input */
  void *scratch;                   /* of a deformable convolution */
};
ck_fill_fn ck_fill_pointwise, ck_fill_deformed;

/* What ck_fill_deformed needs beside the GEMM, behind whose workspace it lies. */
ck_status ck_deform_scratch(const struct ck_gemm *g, size_t *bytes);
void ck_deform_start(const struct ck_gemm *g, struct ck_conv_fill *fill, void *workspace);

/* Trained offsets mostly stay within so many rows: those are brought near beforehand. */
#define CK_DEFORM_REACH 4

/* Rows of the padded image under so many rows of the output. */
int64_t ck_rows_under(const struct ck_run *run, int64_t rows);
/* Which rows of the image, or of its padding, rows [begin, end) of the output are made from. */
struct ck_span ck_rows_read(const struct ck_run *run, struct ck_span made);
/* The same without padding. */
struct ck_span ck_rows_of_image(const struct ck_run *run, struct ck_span made);
/* Make `part`, a copy of the run, one of output rows [y, y + rows): its height and its padding.
 * Gives the row of the image that it begins with; where all of it lies in the padding it is of one
 * row, of zeros, which is the same, and the answer is the image's height. */
int64_t ck_see_rows(const struct ck_run *run, int64_t y, int64_t rows, struct ck_run *part);

/* Planes become pixels, or pixels planes: a step of a plan. */
ck_status ck_turn_create(ck_isa isa, ck_dtype dtype, ck_layout to, int64_t channels, ck_op **op);
void ck_turn_run(const struct ck_run *run, void *workspace);

/* ck_bands.c: a run in NCHW, band by band in NHWC. */
void ck_bands_run(const struct ck_run *run, void *workspace);
ck_status ck_bands_workspace(const struct ck_run *run, size_t *bytes);
/* `pixels` neighbours of `channels` planes, which lie `plane` elements apart, as pixels whose
 * channels are side by side, and back. */
void ck_to_pixels(const struct ck_kernels *k, void *to, const void *planes, int64_t plane,
                  int64_t channels, int64_t pixels);
void ck_to_planes(const struct ck_kernels *k, void *planes, int64_t plane, const void *from,
                  int64_t channels, int64_t pixels);

/* Rows [begin, end) of some planes of an image, as pixels, the first of them at `data`. */
struct ck_band {
  const void *planes;
  int64_t plane, channels, width; /* elements from one plane to the next; how many; of a row */
  void *data;
  int64_t begin, end;
};
/* Have rows [begin, end) there. Those that are there already are moved, not converted again. */
void ck_band_hold(const struct ck_kernels *k, struct ck_band *band, int64_t begin, int64_t end);

/* The context of the fills by a depthwise, and its scratch. */
struct ck_dw_fill {
  const struct ck_run *run;
  void *scratch;
  struct ck_inverted *inverted; /* of a run that expands its channels */
};

/* ck_inverted.c: a separable convolution of 3x3 whose channels a pointwise one makes meanwhile. */
bool ck_may_expand(const struct ck_run *run, const struct ck_run *first);
int64_t ck_inverted_pixels(const struct ck_run *run); /* of one block */
ck_status ck_inverted_scratch(const struct ck_run *run, size_t *bytes);
void ck_inverted_start(struct ck_dw_fill *f);
void ck_fill_inverted(const struct ck_dw_fill *f, const struct ck_block *block,
                      const struct ck_panel *panel);

/* ck_planar.c: pointwise, depthwise and separable on planes. */
ck_fill_fn ck_fill_planar, ck_fill_staged_planes, ck_fill_separable_planes;
/* What ck_fill_staged_planes writes for a block, and from one of its rows to the next. */
ck_status ck_staged_planes_bytes(const struct ck_run *run, int64_t channels,
                                 const struct ck_blocking *b, size_t *bytes);
int64_t ck_staged_planes_pitch(const struct ck_run *run, int64_t cols);
int64_t ck_planes_staged(const struct ck_run *run); /* of a channel: one for each residue */
/* Whether weights are packed for that, and whether it is faster than bands of pixels. */
bool ck_staged_planes_may_pay(const struct ck_op *op);
bool ck_staged_planes_pay(const struct ck_run *run);
/* Whether a separable is faster so than in bands; for images of any size, whether it may be. */
bool ck_separable_planes_pay(const struct ck_run *run);
bool ck_separable_planes_may_pay(const struct ck_op *op);
ck_status ck_dw_panel_scratch(const struct ck_run *run, const struct ck_blocking *b, size_t *bytes);
void ck_planar_run(const struct ck_run *run, void *workspace);
/* Whether its planes are read where they lie. */
bool ck_dw_is_narrow(const struct ck_run *run);
void ck_dw_narrow_run(const struct ck_run *run, void *workspace);
/* Whether a depthwise is faster on planes than in bands. */
bool ck_dw_planes_pay(const struct ck_run *run);
ck_status ck_planar_workspace(const struct ck_run *run, size_t *bytes);

/* How n rows are dealt out to tiles: 49 rows are 13 + 12 + 12 + 12, not 14 x 3 + 7, because a low
 * tile cannot keep the FMA units busy. The first high_tiles tiles have low + 1 rows. */
struct ck_deal {
  int64_t tiles, low, high_tiles;
};

CK_INLINE struct ck_deal ck_deal_of(int64_t n, const struct ck_kernels *k) {
  const int64_t tiles = (n + k->gemm_rows - 1) / k->gemm_rows;
  return (struct ck_deal){tiles, n / tiles, n % tiles};
}

CK_INLINE int64_t ck_deal_rows(const struct ck_deal *d, int64_t tile) {
  return d->low + (tile < d->high_tiles);
}

/* Rows that are dealt out, one below the other: `args` says where the first begins, and is moved on
 * behind the last. Of a the tiles begin tile_step elements apart; 0: with the next row. */
void ck_gemm_rows(const struct ck_kernels *k, const struct ck_deal *deal, int64_t tile_step,
                  struct ck_gemm_args *args);

/* Columns of the output for which `column * stride + shift` lies inside the image. */
struct ck_span ck_span_inside(int64_t shift, int64_t stride, int64_t width, struct ck_span within);

/* Euclid's algorithm. */
int64_t ck_gcd(int64_t a, int64_t b);

/* How a window walks along a row: outputs that are `phases` apart are whole dilations apart. */
struct ck_dw_walk {
  int64_t dilation; /* 1 where there is only one tap */
  int64_t phases, group_columns;
};
struct ck_dw_walk ck_dw_walk_of(const ck_window *w);
/* Whether a window, whose stride is so many dilations, is one of those with literal constants in
 * dwconvKxK: these leave out columns outside a row. For all others a row has columns of zeros. */
CK_INLINE bool ck_dw_is_literal(int64_t width, int64_t stride) {
  return stride <= 3 && width >= 3 && width <= 9 && width % 2;
}
/* So many outputs of a row dwconvKxK makes at once, at most. */
enum { CK_DW_GROUP = 14 };
/* How many columns of the input are under `cols` outputs. */
ck_status ck_dw_columns(const struct ck_run *run, int64_t cols, int64_t *columns);
struct ck_blocking ck_dw_blocking(const struct ck_run *run);

/* A depthwise of a block, into any place that an offset table can describe. */
struct ck_dw_target {
  void *out;
  const int64_t *offset; /* where each pixel's channel_begin goes */
  int64_t out_step;      /* elements from L channels of a pixel to its next L */
  int64_t channel_begin, channel_end;
  const ck_activation *activation; /* its limits are applied */
};
void ck_dw_block(const struct ck_run *run, const struct ck_block *block,
                 const struct ck_dw_target *target, void *scratch);
void ck_dw_block_rows(const struct ck_run *run, const struct ck_block *block,
                      const struct ck_dw_target *target, void *scratch);
/* The 3x3 kernel for this window, or null. It sums column by column, all others row by row. */
typedef void ck_dw_3x3_kernel(const struct ck_dw_args *);
ck_dw_3x3_kernel *ck_dw_3x3(const struct ck_run *run);
/* All rows of a block with it. What `args` does not say comes from the run; row_at gives row y of
 * the input, at its first pixel, or null where that is padding. */
void ck_dw_3x3_rows(const struct ck_run *run, const struct ck_block *block,
                    const struct ck_dw_args *args,
                    const void *(*row_at)(const void *context, int64_t y), const void *context);
/* How many rows of output it makes at once, of so many: a power of two. */
int ck_dw_rows(const struct ck_run *run, int64_t pixel_step, int64_t rows);
/* The input row y of an NHWC image, or null where that is padding. */
const void *ck_image_row(const struct ck_run *run, int64_t image, int64_t y);
/* ck_bundles.c: how many groups one matrix of weights should have, to be fastest; and the matrices
 * of so many each, of which the last may have fewer. */
int64_t ck_groups_together(const ck_op *op, ck_layout layout);
ck_status ck_pack_groups(const ck_op *op, ck_layout layout, int64_t together, const ck_weights *w,
                         const void *bias, struct ck_gemm_weights **packed, int64_t *count);
/* Whether two groups of a 1x1 are made together of pairs of elements, see dwconv1x1.tpl.h; of fewer
 * terms a GEMM for each is faster. */
CK_INLINE bool ck_makes_pairs(const struct ck_kernels *k, int64_t group_in, int64_t group_out) {
  return k->gemm_halves && 2 * group_out == k->lanes && group_in >= group_out &&
         group_in <= 2 * k->lanes;
}
/* ck_dwstage.c: a depthwise in NCHW. */
ck_status ck_dw_planes_workspace(const struct ck_run *run, size_t *bytes);
void ck_dw_planes_run(const struct ck_run *run, void *workspace);
/* What a depthwise has after its sums: a residual, and an activation that is no clamp; for n
 * elements of y from `at` on. */
void ck_dw_finish(const struct ck_run *run, int64_t at, int64_t n);
/* The same for those channels of some pixels, NHWC, that the run makes. */
void ck_dw_finish_pixels(const struct ck_run *run, int64_t pixel, int64_t pixels);
extern const ck_activation ck_identity;
ck_status ck_dw_scratch(const struct ck_run *run, int64_t block_cols, size_t *bytes);

/* ------------------------------------------------------------------------------------- threads */

enum { CK_MAX_THREADS = 256 };

/* Job `job` of a call, on one of its threads: thread 0 is the caller's. */
typedef void ck_job(void *context, int64_t job, int thread);

/* Do jobs [0, jobs) on at most so many threads, each a range of them in order, and return when all
 * are done. Where the pool is in use, by this thread or another, thread 0 does them all. Workers
 * have the floating-point mode of ck_fp_enter; the caller sets its own. */
void ck_parallel(int threads, int64_t jobs, ck_job *job, void *context);

/* Part `part` of n things, dealt out to `parts` as evenly as can be; the first get one more. */
struct ck_span ck_deal_out(int64_t n, int64_t parts, int64_t part);

int64_t ck_least_work(void); /* see ck_set_least_work */
/* How many threads are worth it, at most `threads`, for so many vectors of multiply-adds. */
int ck_threads_worth(int threads, double vectors);

/* A piece of some rows, counted over all images: whole images, or rows of one. */
struct ck_piece {
  int64_t image, images;
  int64_t y, rows; /* of each */
};

/* The longest piece of rows [row, end) that begins with the first of them. */
struct ck_piece ck_piece_at(int64_t row, int64_t end, int64_t out_h);

/* ck_split.c: a run cut into parts, one for each thread. Any number of parts gives the same bits.
 */
struct ck_split {
  const struct ck_run *run;
  int64_t parts;
  int64_t units;    /* what is dealt out: rows of all images, */
  int64_t channels; /* or ranges of so many channels; or 0 */
  int64_t slice;    /* bytes of one thread's workspace */
  size_t bytes;     /* of the whole workspace */
};

ck_status ck_split_of(const struct ck_run *run, int threads, struct ck_split *split);
void ck_split_run(const struct ck_split *split, void *workspace);

/* ------------------------------------------------------------------------------------- helpers */

CK_INLINE int64_t ck_min(int64_t a, int64_t b) { return a < b ? a : b; }
CK_INLINE int64_t ck_max(int64_t a, int64_t b) { return a > b ? a : b; }
CK_INLINE int64_t ck_ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
CK_INLINE int64_t ck_round_up(int64_t a, int64_t b) { return ck_ceil_div(a, b) * b; }
CK_INLINE const void *ck_at(const void *base, int64_t elements, int element) {
  return (const char *)base + elements * element;
}
CK_INLINE void *ck_at_mut(void *base, int64_t elements, int element) {
  return (char *)base + elements * element;
}
/* Which channels of the output a run makes. */
CK_INLINE struct ck_span ck_channels(const struct ck_run *run) {
  return run->only.end ? run->only : (struct ck_span){0, run->out_channels};
}
CK_INLINE int64_t ck_x_step(const struct ck_run *run) {
  if (run->x_step) return run->x_step;
  return run->expand ? run->expand->conv.in_channels : run->image.channels;
}
CK_INLINE int64_t ck_y_step(const struct ck_run *run) {
  return run->y_step ? run->y_step : run->out_channels;
}
/* NCHW: elements from one plane of the output to the next. */
CK_INLINE int64_t ck_out_plane(const struct ck_run *run) {
  return run->plane ? run->plane : run->out_h * run->out_w;
}
/* Row y of a plane of an NCHW image. */
CK_INLINE const void *ck_plane_row(const struct ck_run *run, int64_t image, int64_t channel,
                                   int64_t y) {
  const ck_image *i = &run->image;
  return ck_at(run->x, ((image * i->channels + channel) * i->height + y) * i->width,
               run->op->kernels->element);
}
CK_INLINE void *ck_align(void *p) {
  return (void *)(((uintptr_t)p + CK_ALIGN - 1) & ~(uintptr_t)(CK_ALIGN - 1));
}

/* Product in checked 64-bit arithmetic; every size that comes from outside goes through here. */
CK_INLINE bool ck_mul(int64_t a, int64_t b, int64_t *out) {
  return !__builtin_mul_overflow(a, b, out);
}
CK_INLINE bool ck_add(int64_t a, int64_t b, int64_t *out) {
  return !__builtin_add_overflow(a, b, out);
}

/* Denormals cost a hundredfold on most CPUs, so kernels flush them to zero; only those that compute
 * nothing leave them alone. The caller's control word comes back as it was, and so do its sticky
 * flags, which ARM keeps in a word of their own. */
CK_INLINE uint64_t ck_fp_set(bool flush) {
#if CK_X86
  uint32_t saved = _mm_getcsr();
  _mm_setcsr(0x1F80u /* all exceptions masked, round to nearest */ |
             (flush ? 0x8040u /* FTZ, DAZ */ : 0));
  return saved;
#elif CK_ARM64
  uint64_t control, flags; /* 32 bits each */
  __asm__ volatile("mrs %0, fpcr" : "=r"(control));
  __asm__ volatile("mrs %0, fpsr" : "=r"(flags));
  __asm__ volatile("msr fpcr, %0" : : "r"((uint64_t)flush << 24 /* FZ; all else as on x86 */));
  return flags << 32 | control;
#else
  (void)flush;
  return 0;
#endif
}

CK_INLINE uint64_t ck_fp_enter(void) { return ck_fp_set(true); }

CK_INLINE void ck_fp_leave(uint64_t saved) {
#if CK_X86
  _mm_setcsr((uint32_t)saved);
#elif CK_ARM64
  __asm__ volatile("msr fpcr, %0" : : "r"(saved & UINT32_MAX));
  __asm__ volatile("msr fpsr, %0" : : "r"(saved >> 32));
#else
  (void)saved;
#endif
}

#endif
