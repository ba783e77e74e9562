/* convkern: the convolutions of light networks, as a plain C11 library.
 *
 * An operation is created once from its weights (they are packed for one ISA), run any number of
 * times from any number of threads, and destroyed. Nothing here aborts or prints. The caller owns
 * x, residual, y and the workspace; ck_op_workspace_size says how much.
 *
 * A run takes at most as many threads as its caller allows: its own, and others from a pool that
 * sleeps between runs. Fewer take part where there is little to do, and only the caller's where the
 * pool is in use. The result is the same to the last bit.
 *
 * Images are contiguous, NHWC or NCHW. Weights come with their strides, so that HWIO and OIHW are
 * the same thing to the packer. Sums run over the kernel without flipping it (cross-correlation).
 */
#ifndef CONVKERN_H
#define CONVKERN_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef enum ck_status {
  CK_OK = 0,
  CK_E_NULL = -1,     /* a pointer that must not be null is null */
  CK_E_SHAPE = -2,    /* a size below 1, channels that do not fit, a kernel larger than the input */
  CK_E_OVERFLOW = -3, /* a product of sizes does not fit in 64 bits */
  CK_E_NOMEM = -4,    /* an allocation failed */
  CK_E_ISA = -5,      /* no such ISA in this build, or this CPU lacks it */
  CK_E_WORKSPACE = -6, /* the workspace is smaller than ck_op_workspace_size asked for */
} ck_status;

/* From the slowest to the fastest; each is a set of CPU features, not a CPU. */
typedef enum ck_isa {
  CK_ISA_SCALAR = 0,
  CK_ISA_SSE2,
  CK_ISA_AVX2,   /* AVX2 and FMA */
  CK_ISA_AVX512, /* AVX-512 F, BW, VL, DQ */
  CK_ISA_NEON,
  CK_ISA_AMX, /* AVX512, and AMX-BF16 for matrix products of float32 in three parts */
  CK_ISA_COUNT,
} ck_isa;

typedef enum ck_dtype { CK_F32 = 0, CK_F64 = 1, CK_DTYPE_COUNT } ck_dtype;

typedef enum ck_layout { CK_NHWC = 0, CK_NCHW = 1 } ck_layout;

typedef enum ck_act_kind {
  CK_ACT_CLAMP = 0, /* low <= y <= high; -inf and +inf are the identity */
  CK_ACT_HARDSWISH,
  CK_ACT_HARDSIGMOID,
  CK_ACT_SIGMOID,
  CK_ACT_SILU,
} ck_act_kind;

typedef struct ck_activation {
  ck_act_kind kind;
  double low, high; /* of CK_ACT_CLAMP */
} ck_activation;

/* A kernel's walk over the image. */
typedef struct ck_window {
  int64_t kernel_h, kernel_w;
  int64_t stride_h, stride_w;
  int64_t dilation_h, dilation_w;
} ck_window;

/* How near to the exact sums float32 comes out. Where it is multiplied in parts, fast leaves out
 * half of the products of these, and 2^-16 of each product with them; elsewhere both are the same.
 */
typedef enum { CK_PRECISION_FULL, CK_PRECISION_FAST, CK_PRECISION_COUNT } ck_precision;

/* What an operation is, without its weights.
 *   conv2d     in_channels -> out_channels in groups; multiplier is ignored
 *   deform     as conv2d
 *   depthwise  in_channels -> in_channels * multiplier; out_channels and groups are ignored
 *   separable  a depthwise, then a pointwise to out_channels
 *   spatial    a kernel_h x 1 depthwise, then a 1 x kernel_w one; in_channels 0 takes images of any
 *              channels, all with one kernel; out_channels, groups and multiplier are ignored */
typedef struct ck_conv {
  ck_isa isa;
  ck_dtype dtype;
  ck_layout layout; /* of the images */
  ck_window window;
  int64_t in_channels, out_channels;
  int64_t groups, multiplier;
  ck_activation dw_activation; /* separable: between the two */
  ck_activation activation;
  ck_precision precision;
} ck_conv;

/* Weights as a strided 4-D array; strides in elements, any sign.
 *   standard   (kernel_h, kernel_w, in_channels / groups, out_channels)
 *   depthwise  (kernel_h, kernel_w, in_channels, multiplier)
 *   spatial    (kernel_h, 1, in_channels, 1) and (1, kernel_w, in_channels, 1) */
typedef struct ck_weights {
  const void *data;
  int64_t stride[4];
} ck_weights;

/* The image an operation runs on. A depthwise or separable operation whose image has fewer channels
 * than in_channels * multiplier sees that as its multiplier: the packed weights are the same. */
typedef struct ck_image {
  int64_t batch, height, width, channels;
  int64_t pad_top, pad_bottom, pad_left, pad_right;
} ck_image;

/* Where a deformable convolution samples. Tap (ky, kx) of offset group g has the number
 *
 *   t = (g * kernel_h + ky) * kernel_w + kx;
 *
 * offset channel 2 t moves it down, 2 t + 1 to the right, in pixels, and mask channel t multiplies
 * it. Both arrays are of the output's size and in the image's layout. */
typedef struct ck_deform {
  const void *offset; /* 2 * groups * kernel_h * kernel_w channels */
  const void *mask;   /* half as many, or null: all ones */
  int64_t groups;     /* offset groups; divide in_channels */
} ck_deform;

typedef struct ck_op ck_op;

/* bias and dw_bias may be null; they are contiguous. On failure *op is null. */
ck_status ck_conv2d_create(const ck_conv *conv, const ck_weights *w, const void *bias, ck_op **op);
ck_status ck_dwconv_create(const ck_conv *conv, const ck_weights *w, const void *bias, ck_op **op);
ck_status ck_sepconv_create(const ck_conv *conv, const ck_weights *dw, const void *dw_bias,
                            const ck_weights *pw, const void *bias, ck_op **op);
ck_status ck_deform_create(const ck_conv *conv, const ck_weights *w, const void *bias, ck_op **op);
/* The column runs first; the bias comes after the row, and is null where in_channels is 0. */
ck_status ck_spatial_create(const ck_conv *conv, const ck_weights *column, const ck_weights *row,
                            const void *bias, ck_op **op);
void ck_op_destroy(ck_op *op);

/* For at most so many threads. */
ck_status ck_op_workspace_size(const ck_op *op, const ck_image *image, int threads, size_t *bytes);

/* residual may be null; y overlaps neither x nor residual. The workspace need not be aligned. */
ck_status ck_op_run(const ck_op *op, const ck_image *image, const void *x, const void *residual,
                    void *y, int threads, void *workspace, size_t workspace_bytes);

/* How much a thread must have to do before another is woken for it, in vectors of multiply-adds;
 * gives what it was. Not between the size of a workspace and its use. */
int64_t ck_set_least_work(int64_t vectors);

/* A workspace, kept for the next call when it is given back: from any thread, null where there is
 * no memory. Callers may as well use memory of their own. */
void *ck_workspace_take(size_t bytes);
void ck_workspace_give(void *workspace);

/* The same for a deformable convolution, which ck_op_run refuses. */
ck_status ck_deform_workspace_size(const ck_op *op, const ck_image *image, const ck_deform *deform,
                                   int threads, size_t *bytes);
ck_status ck_deform_run(const ck_op *op, const ck_image *image, const ck_deform *deform,
                        const void *x, const void *residual, void *y, int threads, void *workspace,
                        size_t workspace_bytes);

/* The size of the output, in checked 64-bit arithmetic. */
ck_status ck_output_size(const ck_window *window, const ck_image *image, int64_t *out_h,
                         int64_t *out_w);

/* Pooling has no weights, hence nothing to create. It treats each channel by itself, so an NCHW
 * image is pooled as batch * channels images of one channel. */
typedef enum ck_pool_kind { CK_POOL_MAX = 0, CK_POOL_AVERAGE } ck_pool_kind;

typedef struct ck_pool {
  ck_isa isa;
  ck_dtype dtype;
  ck_pool_kind kind;
  ck_window window;
  int ceil_mode;         /* keep a last window that starts before the end and hangs over it */
  int count_include_pad; /* an average's divisor counts the taps on padding */
} ck_pool;

ck_status ck_pool_output_size(const ck_pool *pool, const ck_image *image, int64_t *out_h,
                              int64_t *out_w);
ck_status ck_pool_workspace_size(const ck_pool *pool, const ck_image *image, int threads,
                                 size_t *bytes);

/* y does not overlap x. The workspace need not be aligned. */
ck_status ck_pool_run(const ck_pool *pool, const ck_image *image, const void *x, void *y,
                      int threads, void *workspace, size_t workspace_bytes);

/* A network, planned for images of one size and run in one call. Its arrays are numbered: 0 is the
 * input, i + 1 is what step i makes, and what the last makes is the output. Steps run in order. A
 * plan keeps its operations, which must outlive it, and places all other arrays in its workspace;
 * any number of threads may run it, each with a workspace of its own. A run takes at most so many
 * threads of the pool; ck_set_least_work makes it fail with CK_E_WORKSPACE from then on. */
typedef struct ck_step {
  const ck_op *op;      /* a convolution; null: */
  ck_pool pool;         /* a pooling */
  ck_image image;       /* how it sees array x */
  int64_t x, residual;  /* arrays; residual is -1 where there is none */
  int64_t offset, mask; /* arrays of a deformable convolution; or -1 */
  int64_t offset_groups;
} ck_step;

typedef struct ck_plan ck_plan;

/* turn: the caller's input and output are in NCHW, and all steps in NHWC; planes become pixels
 * before the first, and pixels planes behind the last. On failure *plan is null; CK_E_SHAPE where
 * an array has not the size that a step wants. */
ck_status ck_plan_create(const ck_step *steps, int64_t count, int turn, int threads,
                         ck_plan **plan);
void ck_plan_destroy(ck_plan *plan);
size_t ck_plan_workspace_size(const ck_plan *plan);
size_t ck_plan_arena_size(const ck_plan *plan); /* the part of it that holds the arrays */

/* y does not overlap x. The workspace need not be aligned. */
ck_status ck_plan_run(const ck_plan *plan, const void *x, void *y, void *workspace,
                      size_t workspace_bytes);

/* How a step runs. Several steps of one group run together, band by band. */
typedef struct ck_place {
  int64_t group;         /* counted from 0; a turn may be one by itself */
  int64_t band;          /* rows of the group's output that are made at once; 0: all at once */
  int64_t rows;          /* of this step's array that are kept; 0: all */
  int64_t offset, bytes; /* of what is kept, in the workspace; the output has 0 bytes there */
  int inside;            /* made within the next step, and never whole: nothing is kept */
} ck_place;
ck_status ck_plan_place(const ck_plan *plan, int64_t step, ck_place *place);

/* The textbook loops: the baseline the theory is measured on (float32 and float64, no activation,
 * no residual). Same arguments as above, and no packing. */
ck_status ck_naive_conv2d(const ck_conv *conv, const ck_image *image, const ck_weights *w,
                          const void *bias, const void *x, void *y);
ck_status ck_naive_pointwise(const ck_conv *conv, const ck_image *image, const ck_weights *w,
                             const void *bias, const void *x, void *y);
ck_status ck_naive_depthwise(const ck_conv *conv, const ck_image *image, const ck_weights *w,
                             const void *bias, const void *x, void *y);

/* What this build is, and what this CPU has. Strings are static. */
const char *ck_compiler(void);
const char *ck_isa_name(ck_isa isa);
int ck_isa_available(ck_isa isa);
ck_isa ck_isa_best(void);
const char *ck_cpu_name(void);
const char *ck_cpu_features(void); /* separated by spaces */
int64_t ck_cpu_l1d_bytes(void);
int64_t ck_cpu_l2_bytes(void);

/* The registry: the name of kernel `index`, and whether an ISA's table has it. */
const char *ck_kernel_name(int index); /* null past the last */
int ck_kernel_present(ck_isa isa, ck_dtype dtype, int index);

/* One ISA's GEMM tile: rows x columns, and the lanes of a vector. */
ck_status ck_tile(ck_isa isa, ck_dtype dtype, int64_t *rows, int64_t *columns, int64_t *lanes);

/* Probes for honest benchmarks: about a millisecond each.
 * FMA peak in FLOP/s of a register-only loop (sse2 and scalar: multiply, then add);
 * nops per second, which a neighbour on the same physical core halves. */
ck_status ck_probe_fma(ck_isa isa, ck_dtype dtype, double *flops_per_second);
double ck_probe_nop(void);

#ifdef __cplusplus
}
#endif
#endif
