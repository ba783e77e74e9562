# cython: language_level=3, boundscheck=False, wraparound=False, freethreading_compatible=True
"""The only file that calls C. No shape logic: that is _operation.py's, and C checks it again."""

cimport numpy as cnp
from libc.stdlib cimport calloc, free
from libc.string cimport memset

from ._geometry import usable

cnp.import_array()

COMPILER = ck_compiler().decode()

ACTIVATIONS = {
    "clamp": CK_ACT_CLAMP,
    "hardswish": CK_ACT_HARDSWISH,
    "hardsigmoid": CK_ACT_HARDSIGMOID,
    "sigmoid": CK_ACT_SIGMOID,
    "silu": CK_ACT_SILU,
}


cdef int _raise(ck_status status, str op) except -1:
    if status == CK_E_NOMEM:
        raise MemoryError(f"{op}: an allocation failed")
    if status == CK_E_SHAPE:
        raise ValueError(f"{op}: sizes that do not fit together")
    if status == CK_E_OVERFLOW:
        raise OverflowError(f"{op}: a product of sizes does not fit in 64 bits")
    if status == CK_E_ISA:
        raise RuntimeError(f"{op}: this CPU or this build lacks the ISA")
    if status != CK_OK:
        raise SystemError(f"{op}: internal error {<int>status}")
    return 0


cdef ck_activation _activation(tuple spec):
    cdef ck_activation a
    a.kind = <ck_act_kind><int>spec[0]
    a.low = spec[1]
    a.high = spec[2]
    return a


cdef ck_window _window(tuple sizes) except *:
    cdef ck_window w
    (w.kernel_h, w.kernel_w, w.stride_h, w.stride_w, w.dilation_h, w.dilation_w) = sizes
    return w


cdef ck_conv _conv(int isa, ck_layout layout, tuple window, int64_t in_channels,
                   int64_t out_channels, int64_t groups, int64_t multiplier,
                   tuple dw_activation, tuple activation, cnp.ndarray w,
                   bint fast=False) except *:
    cdef ck_conv c
    c.isa = <ck_isa>isa
    c.layout = layout
    c.dtype = CK_F64 if cnp.PyArray_ITEMSIZE(w) == 8 else CK_F32
    c.window = _window(window)
    c.in_channels = in_channels
    c.out_channels = out_channels
    c.groups = groups
    c.multiplier = multiplier
    c.dw_activation = _activation(dw_activation)
    c.precision = CK_PRECISION_FAST if fast else CK_PRECISION_FULL
    c.activation = _activation(activation)
    return c


cdef ck_weights _weights(cnp.ndarray w) except *:
    cdef ck_weights view
    cdef int i
    if w.ndim != 4:
        raise SystemError("weights are passed as a 4-D view")
    view.data = cnp.PyArray_DATA(w)
    for i in range(4):
        view.stride[i] = w.strides[i] // cnp.PyArray_ITEMSIZE(w)
    return view


cdef ck_image _image(tuple sizes) except *:
    cdef ck_image i
    (i.batch, i.height, i.width, i.channels,
     i.pad_top, i.pad_bottom, i.pad_left, i.pad_right) = sizes
    return i


cdef const void *_data(cnp.ndarray a):
    return NULL if a is None else cnp.PyArray_DATA(a)


cdef int _check(cnp.ndarray a, ck_dtype dtype, str op) except -1:
    """What would corrupt memory if Python had it wrong."""
    if (not cnp.PyArray_IS_C_CONTIGUOUS(a) or not cnp.PyArray_ISALIGNED(a)
            or cnp.PyArray_ITEMSIZE(a) != (8 if dtype == CK_F64 else 4)):
        raise SystemError(f"{op}: an array that is not contiguous, or of another dtype")
    return 0


cdef cnp.ndarray _readable(cnp.ndarray a, ck_dtype dtype, str op):
    """An input, or none, as it is or copied so that C can read it."""
    if a is None:
        return None
    if not cnp.PyArray_IS_C_CONTIGUOUS(a) or not cnp.PyArray_ISALIGNED(a):
        a = usable(a)
    _check(a, dtype, op)
    return a


cdef void _extent(cnp.ndarray a, size_t *begin, size_t *end) noexcept:
    """From the first byte of an array to behind its last; nothing where it is empty."""
    cdef cnp.npy_intp span
    cdef int axis
    begin[0] = end[0] = <size_t>cnp.PyArray_DATA(a)
    if cnp.PyArray_SIZE(a) == 0:
        return
    for axis in range(cnp.PyArray_NDIM(a)):
        span = (cnp.PyArray_DIM(a, axis) - 1) * cnp.PyArray_STRIDE(a, axis)
        if span < 0:
            begin[0] += <size_t>span
        else:
            end[0] += <size_t>span
    end[0] += <size_t>cnp.PyArray_ITEMSIZE(a)


cdef bint _in_place(cnp.ndarray out, tuple inputs) except -1:
    """Whether C can write into `out` itself: contiguous, and apart from every input."""
    cdef size_t begin, end, first, last
    if not cnp.PyArray_IS_C_CONTIGUOUS(out) or not cnp.PyArray_ISALIGNED(out):
        return False
    _extent(out, &begin, &end)
    for array in inputs:
        if array is None:
            continue
        _extent(array, &first, &last)
        if first < end and begin < last:
            return False
    return True


cdef cnp.ndarray _target(cnp.ndarray out, tuple shape, ck_dtype dtype, tuple inputs):
    """Where C writes the result of this shape: `out`, if it can, or a new array."""
    cdef cnp.npy_intp sizes[4]
    cdef int axis
    if out is not None and _in_place(out, inputs):
        return out
    cdef int axes = <int>len(shape)
    if axes > 4:
        raise SystemError("results have at most 4 axes")
    for axis in range(axes):
        sizes[axis] = shape[axis]
    return cnp.PyArray_EMPTY(axes, sizes,
                             cnp.NPY_FLOAT64 if dtype == CK_F64 else cnp.NPY_FLOAT32, 0)


cdef cnp.ndarray _deliver(cnp.ndarray y, cnp.ndarray out):
    """The result where the caller wants it."""
    if out is None:
        return y
    if y is not out:
        out[...] = y
    return out


cdef int _threads(int64_t n) noexcept:
    """As C takes it; nobody has so many."""
    return <int>min(n, 1 << 16)


cdef class Op:
    """A created operation: weights packed for one ISA. Immutable, and safe to run from any thread.

    Arrays are contiguous and of one dtype; the weights are 4-D views of any strides.
    """

    def __cinit__(self, str name, str kind, int isa, str layout, tuple window, tuple channels,
                  cnp.ndarray w, cnp.ndarray bias, tuple activation, cnp.ndarray dw=None,
                  cnp.ndarray dw_bias=None, tuple dw_activation=(0, 0.0, 0.0),
                  bint fast=False):
        cdef ck_weights w_view = _weights(w)
        cdef ck_weights dw_view
        cdef ck_status status
        in_channels, out_channels, groups, multiplier = channels
        self.conv = _conv(isa, CK_NCHW if layout == "NCHW" else CK_NHWC, window, in_channels,
                          out_channels, groups, multiplier, dw_activation, activation, w,
                          fast)
        self.name = name
        self.out_channels = in_channels * multiplier if kind == "depthwise" else out_channels
        memset(&dw_view, 0, sizeof(dw_view))
        if dw is not None:
            dw_view = _weights(dw)
        cdef const void *bias_data = _data(bias)
        cdef const void *dw_bias_data = _data(dw_bias)
        if kind == "conv2d":
            with nogil:
                status = ck_conv2d_create(&self.conv, &w_view, bias_data, &self.op)
        elif kind == "depthwise":
            with nogil:
                status = ck_dwconv_create(&self.conv, &w_view, bias_data, &self.op)
        elif kind == "deform":
            with nogil:
                status = ck_deform_create(&self.conv, &w_view, bias_data, &self.op)
        elif kind == "spatial":
            with nogil:
                status = ck_spatial_create(&self.conv, &dw_view, &w_view, bias_data, &self.op)
        else:
            with nogil:
                status = ck_sepconv_create(&self.conv, &dw_view, dw_bias_data, &w_view, bias_data,
                                           &self.op)
        _raise(status, name)

    def __dealloc__(self):
        ck_op_destroy(self.op)

    def run(self, tuple sizes, tuple shape, cnp.ndarray x not None, cnp.ndarray residual=None,
            cnp.ndarray out=None, int64_t threads=1, cnp.ndarray offset=None,
            cnp.ndarray mask=None, int64_t offset_groups=1):
        """The operation on x, of this shape; sizes is (batch, h, w, c, top, bottom, left, right).

        It takes at most so many threads. A deformable one has an offset, and perhaps a mask.
        """
        cdef ck_image image = _image(sizes)
        cdef ck_deform deform
        cdef const ck_deform *where = NULL
        cdef size_t needed = 0
        cdef void *workspace
        cdef ck_status status
        cdef int most = _threads(threads)
        cdef ck_dtype dtype = self.conv.dtype
        cdef cnp.ndarray y = _target(out, shape, dtype, (x, residual, offset, mask))
        _check(y, dtype, self.name)
        x = _readable(x, dtype, self.name)
        residual = _readable(residual, dtype, self.name)
        if offset is not None:
            offset = _readable(offset, dtype, self.name)
            mask = _readable(mask, dtype, self.name)
            deform.offset = cnp.PyArray_DATA(offset)
            deform.mask = _data(mask)
            deform.groups = offset_groups
            where = &deform
        _raise(ck_deform_workspace_size(self.op, &image, where, most, &needed), self.name)
        cdef const void *x_data = cnp.PyArray_DATA(x)
        cdef const void *residual_data = _data(residual)
        cdef void *y_data = cnp.PyArray_DATA(y)
        with nogil:
            workspace = ck_workspace_take(needed)
            if workspace == NULL:
                status = CK_E_NOMEM
            else:
                status = ck_deform_run(self.op, &image, where, x_data, residual_data, y_data,
                                       most, workspace, needed)
                ck_workspace_give(workspace)
        _raise(status, self.name)
        return _deliver(y, out)


cdef ck_pool _pool(str kind, int isa, ck_dtype dtype, tuple window, bint ceil_mode,
                   bint count_include_pad) except *:
    cdef ck_pool p
    p.isa = <ck_isa>isa
    p.dtype = dtype
    p.kind = CK_POOL_MAX if kind == "max" else CK_POOL_AVERAGE
    p.ceil_mode = ceil_mode
    p.count_include_pad = count_include_pad
    p.window = _window(window)
    return p


def pool(str name, str kind, int isa, tuple window, bint ceil_mode, bint count_include_pad,
         tuple sizes, tuple shape, cnp.ndarray x not None, cnp.ndarray out=None,
         int64_t threads=1):
    """x pooled; kind is "max" or "average", the rest is that of Op.run."""
    cdef ck_image image = _image(sizes)
    cdef ck_pool p = _pool(kind, isa, CK_F64 if cnp.PyArray_ITEMSIZE(x) == 8 else CK_F32, window,
                           ceil_mode, count_include_pad)
    cdef size_t needed = 0
    cdef void *workspace
    cdef ck_status status
    cdef int most = _threads(threads)
    cdef cnp.ndarray y = _target(out, shape, p.dtype, (x,))
    _check(y, p.dtype, name)
    x = _readable(x, p.dtype, name)
    _raise(ck_pool_workspace_size(&p, &image, most, &needed), name)
    cdef const void *x_data = cnp.PyArray_DATA(x)
    cdef void *y_data = cnp.PyArray_DATA(y)
    with nogil:
        workspace = ck_workspace_take(needed)
        if workspace == NULL:
            status = CK_E_NOMEM
        else:
            status = ck_pool_run(&p, &image, x_data, y_data, most, workspace, needed)
            ck_workspace_give(workspace)
    _raise(status, name)
    return _deliver(y, out)


cdef class Plan:
    """A network planned for one input shape and at most so many threads.

    Immutable, and safe to run from any thread.

    Each step is (what, sizes, arrays, offset_groups): `what` is an Op, or a tuple for a pooling
    (kind, isa, window, ceil_mode, count_include_pad); sizes are those of Op.run; arrays are the
    numbers of x, residual, offset and mask, -1 for none. Where `turn`, steps are in NHWC, and the
    input and the output in NCHW.
    """

    def __cinit__(self, str name, bint f64, list steps, int64_t threads=1, bint turn=False):
        cdef ck_status status
        cdef int most = _threads(threads)
        cdef ck_step *step = <ck_step *>calloc(max(len(steps), 1), sizeof(ck_step))
        if step == NULL:
            raise MemoryError(f"{name}: an allocation failed")
        self.name = name
        self.dtype = CK_F64 if f64 else CK_F32
        self.steps = len(steps)
        self.ops = tuple(what for what, _, _, _ in steps)
        try:
            for i, (what, sizes, arrays, offset_groups) in enumerate(steps):
                if isinstance(what, Op):
                    step[i].op = (<Op>what).op
                else:
                    kind, isa, window, ceil_mode, count_include_pad = what
                    step[i].pool = _pool(kind, isa, self.dtype, window, ceil_mode,
                                         count_include_pad)
                step[i].image = _image(sizes)
                step[i].x, step[i].residual, step[i].offset, step[i].mask = arrays
                step[i].offset_groups = offset_groups
            with nogil:
                status = ck_plan_create(step, self.steps, turn, most, &self.plan)
        finally:
            free(step)
        _raise(status, name)

    def __dealloc__(self):
        ck_plan_destroy(self.plan)

    def run(self, tuple shape, cnp.ndarray x not None, cnp.ndarray out=None):
        """The network on x, of this shape; one that is empty is not run."""
        cdef ck_status status = CK_E_NOMEM
        cdef size_t needed = ck_plan_workspace_size(self.plan)
        cdef cnp.ndarray y = _target(out, shape, self.dtype, (x,))
        if cnp.PyArray_SIZE(y) == 0:
            return _deliver(y, out)
        _check(y, self.dtype, self.name)
        x = _readable(x, self.dtype, self.name)
        cdef const void *x_data = cnp.PyArray_DATA(x)
        cdef void *y_data = cnp.PyArray_DATA(y)
        cdef void *workspace
        with nogil:
            workspace = ck_workspace_take(needed)
            if workspace != NULL:
                status = ck_plan_run(self.plan, x_data, y_data, workspace, needed)
                ck_workspace_give(workspace)
        _raise(status, self.name)
        return _deliver(y, out)

    def places(self):
        """For each step what ck_place says, in its order; the arena, and the workspace."""
        cdef ck_place p
        cdef int64_t i
        places = []
        for i in range(self.steps):
            _raise(ck_plan_place(self.plan, i, &p), self.name)
            places.append((p.group, p.band, p.rows, p.offset, p.bytes, bool(p.inside)))
        return places, ck_plan_arena_size(self.plan), ck_plan_workspace_size(self.plan)


def naive(str name, str kind, tuple window, tuple channels, tuple sizes, cnp.ndarray x not None,
          cnp.ndarray w not None, cnp.ndarray bias, cnp.ndarray y not None):
    """The textbook loops: kind is "conv2d", "pointwise" or "depthwise"."""
    cdef ck_weights view = _weights(w)
    cdef ck_image image = _image(sizes)
    in_channels, out_channels, groups, multiplier = channels
    cdef tuple identity = (0, float("-inf"), float("inf"))
    cdef ck_conv conv = _conv(0, CK_NHWC, window, in_channels, out_channels, groups, multiplier,
                              identity, identity, w)
    cdef const void *x_data = cnp.PyArray_DATA(x)
    cdef const void *bias_data = _data(bias)
    cdef void *y_data = cnp.PyArray_DATA(y)
    cdef ck_status status
    _check(x, conv.dtype, name)
    _check(y, conv.dtype, name)
    if kind == "conv2d":
        with nogil:
            status = ck_naive_conv2d(&conv, &image, &view, bias_data, x_data, y_data)
    elif kind == "pointwise":
        with nogil:
            status = ck_naive_pointwise(&conv, &image, &view, bias_data, x_data, y_data)
    else:
        with nogil:
            status = ck_naive_depthwise(&conv, &image, &view, bias_data, x_data, y_data)
    _raise(status, name)


def set_least_work(int64_t vectors):
    """How much work is worth a thread, in vectors of multiply-adds; gives what it was."""
    return ck_set_least_work(vectors)


def isa_names():
    """Every ISA that convkern knows, by number."""
    return tuple(ck_isa_name(<ck_isa>i).decode() for i in range(CK_ISA_COUNT))


def isa_available(int isa):
    return bool(ck_isa_available(<ck_isa>isa))


def isa_best():
    return <int>ck_isa_best()


def cpu():
    """Name, features, bytes of the L1 data cache and of the L2."""
    return (ck_cpu_name().decode("ascii", "replace"), tuple(ck_cpu_features().decode().split()),
            ck_cpu_l1d_bytes(), ck_cpu_l2_bytes())


def kernels(int isa, bint f64=False):
    """The registry: {name: whether this ISA's table has it}."""
    cdef ck_dtype dtype = CK_F64 if f64 else CK_F32
    cdef int i = 0
    present = {}
    while ck_kernel_name(i) != NULL:
        present[ck_kernel_name(i).decode()] = bool(ck_kernel_present(<ck_isa>isa, dtype, i))
        i += 1
    return present


def tile(int isa, bint f64=False):
    """Rows and columns of the GEMM tile, and lanes of a vector."""
    cdef int64_t rows = 0, columns = 0, lanes = 0
    _raise(ck_tile(<ck_isa>isa, CK_F64 if f64 else CK_F32, &rows, &columns, &lanes), "tile")
    return rows, columns, lanes


def probe_fma(int isa, bint f64=False):
    """FLOP/s of a register-only FMA loop."""
    cdef double rate = 0
    cdef ck_status status
    cdef ck_dtype dtype = CK_F64 if f64 else CK_F32
    with nogil:
        status = ck_probe_fma(<ck_isa>isa, dtype, &rate)
    _raise(status, "probe_fma")
    return rate


def probe_nop():
    """Nops per second."""
    cdef double rate
    with nogil:
        rate = ck_probe_nop()
    return rate
