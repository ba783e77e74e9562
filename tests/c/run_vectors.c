/* Runs the operations that a file holds, on one ISA, and writes down what came out: the tests of
 * what Python cannot run, another architecture, and of the C library without Python.
 *
 *   run_vectors isas                        what this CPU has, one ISA a line
 *   run_vectors run ISA CASES RESULTS       tests/vectors.py writes CASES and reads RESULTS
 *   run_vectors touch inside|before|after   one byte of an array, or of its neighbours: a crash
 *
 * Every array lies against an unmapped page, inputs in read-only pages. A case runs twice, with the
 * unmapped pages before the arrays on one thread and after them on some, however little there is to
 * do, and must give the same bits. The caller's rounding
 * mode and exception flags are unusual, must not matter, and must come back as they were.
 */
#define _DEFAULT_SOURCE
#include <fenv.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "convkern.h"

enum kind { CONV2D, DEPTHWISE, SEPARABLE, MAX_POOL, AVG_POOL, DEFORM, SPATIAL };
enum array { X, RESIDUAL, W, BIAS, DW, DW_BIAS, OFFSET, MASK, ARRAYS };
enum side { BEFORE, AFTER, SIDES };
enum { SOME_THREADS = 3 };

/* What a case begins with; its arrays follow. HEADER in tests/vectors.py is the same. */
struct header {
  int64_t kind, dtype, layout;
  int64_t window[6];   /* as ck_window */
  int64_t channels[4]; /* in, out, groups, multiplier */
  int64_t image[8];    /* as ck_image */
  int64_t pool[2];     /* ceil_mode, count_include_pad */
  int64_t offset_groups;
  int64_t dw_activation, activation;
  double dw_clamp[2], clamp[2];
  int64_t w_stride[4], dw_stride[4];
  int64_t count[ARRAYS]; /* elements; an array of 0 is none */
};

struct vector_case {
  struct header header;
  ck_conv conv;
  ck_pool pool;
  ck_image image;
  size_t element;
  void *array[ARRAYS];
};

static long current_case;

static void __attribute__((noreturn)) fail(const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  fprintf(stderr, "run_vectors: case %ld: ", current_case);
  vfprintf(stderr, format, arguments);
  fputc('\n', stderr);
  exit(1);
}

static void *allocate(size_t bytes) {
  void *p = malloc(bytes + 1);
  if (!p) fail("no memory");
  return p;
}

/* -------------------------------------------------------------------------------- guarded arrays
 */

enum { CANARY = 0xA5 };

struct guarded {
  unsigned char *page; /* the first that is mapped */
  size_t mapped, bytes;
  unsigned char *data;
};

static struct guarded guarded_new(size_t bytes, enum side unmapped) {
  const size_t page = (size_t)sysconf(_SC_PAGESIZE);
  struct guarded g = {.mapped = (bytes + page) / page * page, .bytes = bytes};
  unsigned char *all =
      mmap(NULL, g.mapped + 2 * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (all == MAP_FAILED) fail("mmap");
  g.page = all + page;
  g.data = unmapped == BEFORE ? g.page : g.page + g.mapped - bytes;
  if (mprotect(g.page, g.mapped, PROT_READ | PROT_WRITE)) fail("mprotect");
  memset(g.page, CANARY, g.mapped);
  return g;
}

static struct guarded guarded_copy(const void *from, size_t bytes, enum side unmapped) {
  struct guarded g = guarded_new(bytes, unmapped);
  if (bytes) memcpy(g.data, from, bytes);
  if (mprotect(g.page, g.mapped, PROT_READ)) fail("mprotect");
  return g;
}

static void guarded_free(struct guarded *g) {
  const size_t page = (size_t)sysconf(_SC_PAGESIZE);
  for (unsigned char *p = g->page; p < g->page + g->mapped; ++p)
    if ((p < g->data || p >= g->data + g->bytes) && *p != CANARY) fail("wrote beside an array");
  munmap(g->page - page, g->mapped + 2 * page);
}

/* ------------------------------------------------------------------------------------------ cases
 */

static ck_activation activation_of(int64_t kind, const double *clamp) {
  return (ck_activation){(ck_act_kind)kind, clamp[0], clamp[1]};
}

static bool read_case(FILE *file, ck_isa isa, struct vector_case *c) {
  struct header *h = &c->header;
  if (fread(h, sizeof *h, 1, file) != 1) return false;
  const int64_t *w = h->window, *i = h->image;
  c->conv = (ck_conv){
      .isa = isa,
      .dtype = (ck_dtype)h->dtype,
      .layout = (ck_layout)h->layout,
      .window = {w[0], w[1], w[2], w[3], w[4], w[5]},
      .in_channels = h->channels[0],
      .out_channels = h->channels[1],
      .groups = h->channels[2],
      .multiplier = h->channels[3],
      .dw_activation = activation_of(h->dw_activation, h->dw_clamp),
      .activation = activation_of(h->activation, h->clamp),
  };
  c->pool = (ck_pool){
      .isa = isa,
      .dtype = c->conv.dtype,
      .kind = h->kind == MAX_POOL ? CK_POOL_MAX : CK_POOL_AVERAGE,
      .window = c->conv.window,
      .ceil_mode = (int)h->pool[0],
      .count_include_pad = (int)h->pool[1],
  };
  c->image = (ck_image){i[0], i[1], i[2], i[3], i[4], i[5], i[6], i[7]};
  c->element = h->dtype == CK_F64 ? sizeof(double) : sizeof(float);
  for (int a = 0; a < ARRAYS; ++a) {
    const size_t n = (size_t)h->count[a];
    c->array[a] = n ? allocate(n * c->element) : NULL;
    if (n && fread(c->array[a], c->element, n, file) != n) fail("the file ends early");
  }
  return true;
}

static void free_case(struct vector_case *c) {
  for (int a = 0; a < ARRAYS; ++a) free(c->array[a]);
}

static ck_weights weights_of(const void *data, const int64_t *stride) {
  return (ck_weights){data, {stride[0], stride[1], stride[2], stride[3]}};
}

static ck_status create(const struct vector_case *c, void *const *array, ck_op **op) {
  const ck_weights w = weights_of(array[W], c->header.w_stride);
  const ck_weights dw = weights_of(array[DW], c->header.dw_stride);
  switch (c->header.kind) {
    case CONV2D: return ck_conv2d_create(&c->conv, &w, array[BIAS], op);
    case DEPTHWISE: return ck_dwconv_create(&c->conv, &w, array[BIAS], op);
    case SPATIAL: return ck_spatial_create(&c->conv, &dw, &w, array[BIAS], op);
    case SEPARABLE: return ck_sepconv_create(&c->conv, &dw, array[DW_BIAS], &w, array[BIAS], op);
    case DEFORM: return ck_deform_create(&c->conv, &w, array[BIAS], op);
    default: *op = NULL; return CK_OK; /* there is nothing to create */
  }
}

static bool is_pool(const struct vector_case *c) {
  return c->header.kind == MAX_POOL || c->header.kind == AVG_POOL;
}

static bool is_deform(const struct vector_case *c) { return c->header.kind == DEFORM; }

static ck_deform deform_of(const struct vector_case *c, void *const *array) {
  return (ck_deform){array[OFFSET], array[MASK], c->header.offset_groups};
}

static ck_status workspace_size(const struct vector_case *c, const ck_op *op, int threads,
                                size_t *bytes) {
  const ck_deform deform = {.groups = c->header.offset_groups};
  if (is_pool(c)) return ck_pool_workspace_size(&c->pool, &c->image, threads, bytes);
  if (is_deform(c)) return ck_deform_workspace_size(op, &c->image, &deform, threads, bytes);
  return ck_op_workspace_size(op, &c->image, threads, bytes);
}

static ck_status call(const struct vector_case *c, const ck_op *op, void *const *array, void *y,
                      int threads, void *workspace, size_t bytes) {
  const ck_deform deform = deform_of(c, array);
  if (is_pool(c)) return ck_pool_run(&c->pool, &c->image, array[X], y, threads, workspace, bytes);
  if (is_deform(c))
    return ck_deform_run(op, &c->image, &deform, array[X], array[RESIDUAL], y, threads, workspace,
                         bytes);
  return ck_op_run(op, &c->image, array[X], array[RESIDUAL], y, threads, workspace, bytes);
}

static int64_t output_count(const struct vector_case *c) {
  const ck_conv *conv = &c->conv;
  int64_t h, w;
  if (is_pool(c)) {
    if (ck_pool_output_size(&c->pool, &c->image, &h, &w) != CK_OK) fail("no output size");
    return c->image.batch * h * w * c->image.channels;
  }
  if (ck_output_size(&conv->window, &c->image, &h, &w) != CK_OK) fail("no output size");
  const int64_t pixels = c->image.batch * h * w;
  switch (c->header.kind) {
    case DEPTHWISE: return pixels * conv->in_channels * conv->multiplier;
    case SPATIAL: return pixels * c->image.channels;
    default: return pixels * conv->out_channels;
  }
}

/* ------------------------------------------------------------------------------------------- runs
 */

static void set_odd_environment(void) {
  fesetround(FE_UPWARD);
  feclearexcept(FE_ALL_EXCEPT);
  feraiseexcept(FE_DIVBYZERO);
}

static void check_odd_environment(void) {
  const bool same = fegetround() == FE_UPWARD && fetestexcept(FE_ALL_EXCEPT) == FE_DIVBYZERO;
  volatile float denormal = 1e-40f;
  const bool flushes = denormal * 0.5f == 0;
  fesetenv(FE_DFL_ENV);
  if (!same) fail("the rounding mode or the exception flags did not come back");
  if (flushes) fail("the caller's denormals are flushed now");
}

/* Offsets go with deformable convolutions and with no others. */
static void check_offsets(const struct vector_case *c, const ck_op *op, void *const *array, void *y,
                          void *workspace, size_t bytes) {
  const ck_deform deform = deform_of(c, array), none = {.groups = deform.groups};
  const ck_status wrong = c->image.batch ? CK_E_NULL : CK_OK;
  if (is_pool(c)) return;
  if (!is_deform(c)) {
    if (ck_deform_run(op, &c->image, &deform, array[X], NULL, y, 1, workspace, bytes) != CK_E_SHAPE)
      fail("took offsets that it has no use for");
  } else if (ck_op_run(op, &c->image, array[X], NULL, y, 1, workspace, bytes) != CK_E_NULL ||
             ck_deform_run(op, &c->image, &none, array[X], NULL, y, 1, workspace, bytes) != wrong) {
    fail("did without offsets");
  }
}

static ck_status run_op(const struct vector_case *c, const ck_op *op, void *const *array,
                        enum side unmapped, void *y, size_t y_bytes) {
  const int threads = unmapped == BEFORE ? 1 : SOME_THREADS;
  size_t bytes;
  ck_status status = workspace_size(c, op, threads, &bytes);
  if (status != CK_OK) return status;
  struct guarded workspace = guarded_new(bytes, unmapped), out = guarded_new(y_bytes, unmapped);
  if (bytes && call(c, op, array, out.data, threads, workspace.data, bytes - 1) !=
                   (c->image.batch ? CK_E_WORKSPACE : CK_OK))
    fail("a workspace that is too small was taken");
  check_offsets(c, op, array, out.data, workspace.data, bytes);
  set_odd_environment();
  status = call(c, op, array, out.data, threads, workspace.data, bytes);
  check_odd_environment();
  memcpy(y, out.data, y_bytes);
  guarded_free(&workspace);
  guarded_free(&out);
  return status;
}

static bool is_packed(int array) { return array >= W && array <= DW_BIAS; }

/* The case with its arrays against unmapped pages. The weights go before the run, because they are
 * packed. */
static ck_status run_guarded(const struct vector_case *c, enum side unmapped, void *y,
                             size_t y_bytes) {
  struct guarded copy[ARRAYS];
  void *array[ARRAYS];
  ck_op *op;
  for (int a = 0; a < ARRAYS; ++a) {
    copy[a] = guarded_copy(c->array[a], (size_t)c->header.count[a] * c->element, unmapped);
    array[a] = c->header.count[a] ? copy[a].data : NULL;
  }
  ck_status status = create(c, array, &op);
  for (int a = 0; a < ARRAYS; ++a)
    if (is_packed(a)) guarded_free(&copy[a]);
  if (status == CK_OK) status = run_op(c, op, array, unmapped, y, y_bytes);
  for (int a = 0; a < ARRAYS; ++a)
    if (!is_packed(a)) guarded_free(&copy[a]);
  ck_op_destroy(op);
  return status;
}

static void run_case(const struct vector_case *c, FILE *results) {
  ck_op *op;
  int64_t answer[2] = {create(c, c->array, &op), 0}; /* status, elements */
  size_t bytes;
  if (answer[0] == CK_OK) answer[0] = workspace_size(c, op, 1, &bytes);
  ck_op_destroy(op);
  if (answer[0] == CK_OK) answer[1] = output_count(c);
  bytes = (size_t)answer[1] * c->element;
  void *y[SIDES] = {allocate(bytes), allocate(bytes)};
  for (int side = BEFORE; answer[0] == CK_OK && side < SIDES; ++side)
    answer[0] = run_guarded(c, (enum side)side, y[side], bytes);
  if (memcmp(y[BEFORE], y[AFTER], bytes)) fail("other bits at another address");
  fwrite(answer, sizeof answer, 1, results);
  fwrite(y[AFTER], 1, bytes, results);
  fflush(results); /* after a crash the results say which case it was */
  free(y[BEFORE]);
  free(y[AFTER]);
}

/* --------------------------------------------------------------------------------------- commands
 */

static ck_isa isa_of(const char *name) {
  int isa = 0;
  while (isa < CK_ISA_COUNT && strcmp(name, ck_isa_name((ck_isa)isa)) != 0) ++isa;
  return (ck_isa)isa;
}

/* A failed creation leaves no operation, whatever was there before. */
static void check_nulls(void) {
  ck_op *a = (void *)&a, *b = a, *c = a, *d = a, *e = a;
  if (ck_conv2d_create(NULL, NULL, NULL, &a) != CK_E_NULL || a ||
      ck_dwconv_create(NULL, NULL, NULL, &b) != CK_E_NULL || b ||
      ck_sepconv_create(NULL, NULL, NULL, NULL, NULL, &c) != CK_E_NULL || c ||
      ck_deform_create(NULL, NULL, NULL, &d) != CK_E_NULL || d ||
      ck_spatial_create(NULL, NULL, NULL, NULL, &e) != CK_E_NULL || e)
    fail("made an operation of nothing");
  if (ck_deform_run(NULL, NULL, NULL, NULL, NULL, NULL, 1, NULL, 0) != CK_E_NULL)
    fail("deformed nothing");
  if (ck_pool_run(NULL, NULL, NULL, NULL, 1, NULL, 0) != CK_E_NULL) fail("pooled nothing");
}

static int run(const char *isa, const char *cases_path, const char *results_path) {
  FILE *cases = fopen(cases_path, "rb"), *results = fopen(results_path, "wb");
  if (!cases || !results) fail("cannot open %s and %s", cases_path, results_path);
  ck_set_least_work(1);
  struct vector_case c;
  check_nulls();
  for (; read_case(cases, isa_of(isa), &c); ++current_case) {
    run_case(&c, results);
    free_case(&c);
  }
  fclose(cases);
  return fclose(results) ? 1 : 0;
}

static int list_isas(void) {
  for (int isa = 0; isa < CK_ISA_COUNT; ++isa)
    if (ck_isa_available((ck_isa)isa)) puts(ck_isa_name((ck_isa)isa));
  return 0;
}

static int touch(const char *where) {
  const enum side side = strcmp(where, "before") == 0 ? BEFORE : AFTER;
  struct guarded g = guarded_new(3, side);
  volatile unsigned char *first = g.data, *last = g.data + g.bytes - 1;
  const bool inside = strcmp(where, "inside") == 0;
  if (side == BEFORE) return first[-1] + 1;
  return last[inside ? 0 : 1] == CANARY ? 0 : 1;
}

int main(int argc, char **argv) {
  if (argc == 2 && strcmp(argv[1], "isas") == 0) return list_isas();
  if (argc == 3 && strcmp(argv[1], "touch") == 0) return touch(argv[2]);
  if (argc == 5 && strcmp(argv[1], "run") == 0) return run(argv[2], argv[3], argv[4]);
  fprintf(stderr, "usage: run_vectors isas | run ISA CASES RESULTS | touch inside|before|after\n");
  return 2;
}
