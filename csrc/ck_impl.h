/* Private to csrc/: one ISA's table of kernels, the arguments its kernels take, and helpers.
 *
 * Drivers (ck_*.c) are ISA-free and dtype-free: they count in elements and let ck_at() turn that
 * into bytes. Kernels (kernels/<op>.tpl.h) see one dtype and one ISA; they never allocate, never
 * fail, and never touch rows they were not given.
 */
#ifndef CK_IMPL_H
#define CK_IMPL_H

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

#define CK_INLINE static inline __attribute__((always_inline))

/* Vectors, and everything the workspace holds, start on a cache line. */
#define CK_ALIGN 64

/* ------------------------------------------------------------------ kernels and their arguments */

/* The panel: the GEMM's left operand, one tile of output pixels after the other. With L lanes and
 * MR rows a tile is [terms / L][MR][L], so that a depthwise kernel stores whole vectors of channels
 * into it and the GEMM broadcasts one term of each pixel from it. `offset` tables give the element
 * at which each pixel's first term lies; MR * L further on come its next L terms. */

/* Memory to bring into L2 while a kernel computes: so many lines for every L terms, up to end. */
struct ck_ahead {
  const char *at, *end;
  int64_t lines;
};

/* c[rows][columns] = clamp(bias + a x b + residual); where bias is null the sum continues from c.
 */
struct ck_gemm_args {
  const void *a;        /* one tile of the panel */
  const void *b;        /* packed weights [terms][vectors * L] */
  const void *bias;     /* vectors * L elements, or null */
  const void *residual; /* laid out as c, or null */
  void *c;
  int64_t c_step; /* elements from one row of c to the next */
  int64_t terms;
  int64_t columns; /* of c; at most vectors * L */
  int rows;        /* 1 .. MR */
  int vectors;     /* 1 .. CK_GEMM_VECTORS */
  double low, high;
  struct ck_ahead ahead[2];
};

/* One or more rows of depthwise output, every channel of [channel_begin, channel_end). */
struct ck_dw_args {
  const void *const *rows; /* the input rows the taps touch, top down; null is a row of padding */
  const void *weights;     /* packed [channels / L][kernel_h * kernel_w][L] */
  const void *bias;        /* one per output channel, rounded up to L */
  void *out;
  const int64_t *offset; /* where in out each pixel's channel_begin goes, row after row */
  int64_t out_step;      /* elements from L channels of a pixel to its next L */
  int64_t channel_begin, channel_end; /* output channels; begin is a multiple of L */
  int64_t pixel_step;                 /* elements from one input pixel to the next */
  int64_t multiplier;
  int64_t in_w, out_w;
  int64_t x0; /* input column under the first tap of the first output; negative is padding */
  int64_t kernel_h, kernel_w, stride_w, dilation_w;
  int out_rows; /* 1, or up to dw_rows in a 3x3 kernel */
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
  const void *planes;  /* where the others are: the first of the n channels; or null */
  int64_t plane_step;  /* from one channel to the next */
  const void *dy, *dx; /* of the first pixel */
  int64_t offset_step; /* from one pixel's to the next */
  const void *mask;    /* of the first pixel; null: ones */
  int64_t mask_step;
  int64_t tap_y, tap_x; /* where the first pixel's tap lies before it is moved */
  int64_t stride_w;
  const void *zeros; /* n of them: a pixel outside the image */
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
  int dw_rows;      /* output rows that a 3x3 kernel likes to make at once */
#define CK_KERNEL(name, args) void (*name)(args *);
#include "ck_kernels.inc"
#undef CK_KERNEL
};

/* Null where the build or the CPU lacks it. */
const struct ck_kernels *ck_kernels_for(ck_isa isa, ck_dtype dtype);

/* ------------------------------------------------------------------------------ packed weights */

/* The GEMM's right operand: panels of `panel_columns`, each [terms][panel_columns], the last one
 * only as many vectors wide as it needs. Padding columns are zero. */
struct ck_gemm_weights {
  int64_t terms, columns;
  int64_t panel_columns;
  void *data;
  void *bias; /* columns rounded up to a panel */
};

struct ck_dw_weights {
  int64_t channels; /* of the output */
  void *data;
  void *bias;
};

ck_status ck_pack_gemm(const struct ck_kernels *k, const ck_window *window, int64_t in_channels,
                       int64_t columns, const ck_weights *w, const void *bias,
                       struct ck_gemm_weights *packed);
ck_status ck_pack_dw(const struct ck_kernels *k, const ck_window *window, int64_t in_channels,
                     int64_t multiplier, const ck_weights *w, const void *bias,
                     struct ck_dw_weights *packed);
void *ck_alloc(size_t bytes); /* aligned, zeroed; null on failure or 0 bytes */
void ck_free(void *p);

/* ------------------------------------------------------------------- an operation, and its parts
 */

enum ck_op_kind { CK_OP_CONV2D, CK_OP_DEPTHWISE, CK_OP_SEPARABLE, CK_OP_DEFORM };

struct ck_op {
  enum ck_op_kind kind;
  const struct ck_kernels *kernels;
  ck_conv conv;
  struct ck_dw_weights dw;      /* depthwise, separable */
  struct ck_gemm_weights *gemm; /* conv2d, deform: one per group; separable: one */
  int64_t gemms;
  void *zeros; /* deform: a pixel of one group's channels */
};

/* One call: the operation, the image and the arrays. */
struct ck_run {
  const struct ck_op *op;
  ck_image image;
  int64_t out_h, out_w;
  int64_t multiplier; /* output channels per input channel, of a depthwise */
  const void *x, *residual;
  void *y;
  const ck_deform *deform; /* of a deformable convolution */
};

/* Checks that every entry point makes: sizes at least 1, groups that divide, products in 64 bits.
 * ck_check_run also finds the output's size. */
ck_status ck_check_conv(enum ck_op_kind kind, const ck_conv *conv);
ck_status ck_check_run(struct ck_run *run);

void ck_dwconv_run(const struct ck_run *run, void *workspace);
void ck_sepconv_run(const struct ck_run *run, void *workspace);
void ck_conv2d_run(const struct ck_run *run, void *workspace);
ck_status ck_dwconv_workspace(const struct ck_run *run, size_t *bytes);
ck_status ck_sepconv_workspace(const struct ck_run *run, size_t *bytes);
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
  const int64_t *offset; /* one entry per pixel of the block */
  int64_t elements;      /* in use, from data on */
};

typedef void ck_fill_fn(const void *context, const struct ck_block *block, int64_t term_begin,
                        int64_t term_end, const struct ck_panel *panel);

struct ck_gemm {
  const struct ck_kernels *kernels;
  const struct ck_gemm_weights *weights;
  ck_fill_fn *fill;
  const void *context;
  const struct ck_run *run; /* the image and the window that the blocks read */
  const void *residual;     /* null, or laid out as y */
  void *y;                  /* at this GEMM's first column */
  int64_t y_step;           /* elements from one pixel to the next */
  ck_activation activation;
};

void ck_gemm_run(const struct ck_gemm *g, void *workspace);
ck_status ck_gemm_workspace(const struct ck_gemm *g, size_t *bytes);

/* The context of the fills of ck_pwconv.c, ck_conv2d.c and ck_deform.c: one group of channels. */
struct ck_conv_fill {
  const struct ck_run *run;
  int64_t first_channel, channels; /* of the input */
  void *scratch;                   /* of a deformable convolution */
};
ck_fill_fn ck_fill_pointwise, ck_fill_deformed;

/* What ck_fill_deformed keeps from one block to the next. */
ck_status ck_deform_scratch(const struct ck_run *run, size_t *bytes);
void ck_deform_start(const struct ck_conv_fill *fill);

/* Trained offsets mostly stay within so many rows: those are brought near beforehand. */
#define CK_DEFORM_REACH 4

/* Depthwise rows of a block, into any place that an offset table can describe. */
void ck_dw_block(const struct ck_run *run, const struct ck_block *block, int64_t channel_begin,
                 int64_t channel_end, void *out, const int64_t *offset, int64_t out_step,
                 const ck_activation *activation, const void **rows);
int64_t ck_dw_row_pointers(const struct ck_run *run); /* how many `rows` must hold */

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

/* Denormals cost a hundredfold on most CPUs, so kernels flush them to zero. The caller's control
 * word, its sticky flags included, comes back as it was. */
CK_INLINE uint64_t ck_fp_enter(void) {
#if CK_X86
  uint32_t saved = _mm_getcsr();
  _mm_setcsr(0x1F80u /* all exceptions masked, round to nearest */ | 0x8040u /* FTZ, DAZ */);
  return saved;
#elif CK_ARM64
  uint64_t saved;
  __asm__ volatile("mrs %0, fpcr" : "=r"(saved));
  __asm__ volatile("msr fpcr, %0" : : "r"((uint64_t)1 << 24 /* FZ */));
  return saved;
#else
  return 0;
#endif
}

CK_INLINE void ck_fp_leave(uint64_t saved) {
#if CK_X86
  _mm_setcsr((uint32_t)saved);
#elif CK_ARM64
  __asm__ volatile("msr fpcr, %0" : : "r"(saved));
#else
  (void)saved;
#endif
}

#endif
