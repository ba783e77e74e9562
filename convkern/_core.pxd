from libc.stdint cimport int64_t


cdef extern from "convkern.h" nogil:
    ctypedef enum ck_status:
        CK_OK
        CK_E_NULL
        CK_E_SHAPE
        CK_E_OVERFLOW
        CK_E_NOMEM
        CK_E_ISA
        CK_E_WORKSPACE

    ctypedef enum ck_isa:
        CK_ISA_SCALAR
        CK_ISA_COUNT

    ctypedef enum ck_dtype:
        CK_F32
        CK_F64

    ctypedef enum ck_layout:
        CK_NHWC
        CK_NCHW

    ctypedef enum ck_act_kind:
        CK_ACT_CLAMP
        CK_ACT_HARDSWISH
        CK_ACT_HARDSIGMOID
        CK_ACT_SIGMOID
        CK_ACT_SILU

    ctypedef struct ck_activation:
        ck_act_kind kind
        double low
        double high

    ctypedef struct ck_window:
        int64_t kernel_h
        int64_t kernel_w
        int64_t stride_h
        int64_t stride_w
        int64_t dilation_h
        int64_t dilation_w

    ctypedef enum ck_precision:
        CK_PRECISION_FULL
        CK_PRECISION_FAST

    ctypedef struct ck_conv:
        ck_isa isa
        ck_dtype dtype
        ck_layout layout
        ck_window window
        int64_t in_channels
        int64_t out_channels
        int64_t groups
        int64_t multiplier
        ck_activation dw_activation
        ck_activation activation
        ck_precision precision

    ctypedef struct ck_weights:
        const void *data
        int64_t stride[4]

    ctypedef struct ck_image:
        int64_t batch
        int64_t height
        int64_t width
        int64_t channels
        int64_t pad_top
        int64_t pad_bottom
        int64_t pad_left
        int64_t pad_right

    ctypedef struct ck_deform:
        const void *offset
        const void *mask
        int64_t groups

    ctypedef struct ck_op:
        pass

    ctypedef enum ck_pool_kind:
        CK_POOL_MAX
        CK_POOL_AVERAGE

    ctypedef struct ck_pool:
        ck_isa isa
        ck_dtype dtype
        ck_pool_kind kind
        ck_window window
        int ceil_mode
        int count_include_pad

    ck_status ck_conv2d_create(const ck_conv *, const ck_weights *, const void *, ck_op **)
    ck_status ck_dwconv_create(const ck_conv *, const ck_weights *, const void *, ck_op **)
    ck_status ck_sepconv_create(const ck_conv *, const ck_weights *, const void *,
                                const ck_weights *, const void *, ck_op **)
    ck_status ck_deform_create(const ck_conv *, const ck_weights *, const void *, ck_op **)
    ck_status ck_spatial_create(const ck_conv *, const ck_weights *, const ck_weights *,
                                const void *, ck_op **)
    void ck_op_destroy(ck_op *)
    void *ck_workspace_take(size_t)
    void ck_workspace_give(void *)
    int64_t ck_set_least_work(int64_t)
    ck_status ck_op_workspace_size(const ck_op *, const ck_image *, int, size_t *)
    ck_status ck_op_run(const ck_op *, const ck_image *, const void *, const void *, void *,
                        int, void *, size_t)
    ck_status ck_deform_workspace_size(const ck_op *, const ck_image *, const ck_deform *,
                                       int, size_t *)
    ck_status ck_deform_run(const ck_op *, const ck_image *, const ck_deform *, const void *,
                            const void *, void *, int, void *, size_t)
    ck_status ck_pool_workspace_size(const ck_pool *, const ck_image *, int, size_t *)
    ck_status ck_pool_run(const ck_pool *, const ck_image *, const void *, void *, int, void *,
                          size_t)
    ctypedef struct ck_step:
        const ck_op *op
        ck_pool pool
        ck_image image
        int64_t x
        int64_t residual
        int64_t offset
        int64_t mask
        int64_t offset_groups

    ctypedef struct ck_plan:
        pass

    ctypedef struct ck_place:
        int64_t group
        int64_t band
        int64_t rows
        int64_t offset
        int64_t bytes
        int inside

    ck_status ck_plan_create(const ck_step *, int64_t, int, int, ck_plan **)
    void ck_plan_destroy(ck_plan *)
    size_t ck_plan_workspace_size(const ck_plan *)
    size_t ck_plan_arena_size(const ck_plan *)
    ck_status ck_plan_run(const ck_plan *, const void *, void *, void *, size_t)
    ck_status ck_plan_place(const ck_plan *, int64_t, ck_place *)
    ck_status ck_naive_conv2d(const ck_conv *, const ck_image *, const ck_weights *,
                              const void *, const void *, void *)
    ck_status ck_naive_pointwise(const ck_conv *, const ck_image *, const ck_weights *,
                                 const void *, const void *, void *)
    ck_status ck_naive_depthwise(const ck_conv *, const ck_image *, const ck_weights *,
                                 const void *, const void *, void *)

    const char *ck_compiler()
    const char *ck_isa_name(ck_isa)
    int ck_isa_available(ck_isa)
    ck_isa ck_isa_best()
    const char *ck_cpu_name()
    const char *ck_cpu_features()
    int64_t ck_cpu_l1d_bytes()
    int64_t ck_cpu_l2_bytes()
    const char *ck_kernel_name(int)
    int ck_kernel_present(ck_isa, ck_dtype, int)
    ck_status ck_tile(ck_isa, ck_dtype, int64_t *, int64_t *, int64_t *)
    ck_status ck_probe_fma(ck_isa, ck_dtype, double *)
    double ck_probe_nop()


cdef class Op:
    cdef ck_op *op
    cdef ck_conv conv
    cdef str name
    cdef int64_t out_channels


cdef class Plan:
    cdef ck_plan *plan
    cdef tuple ops
    cdef ck_dtype dtype
    cdef str name
    cdef int64_t steps
