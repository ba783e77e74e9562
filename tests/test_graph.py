"""Graphs: the bits that their layers give one by one, whatever the planner fuses or cuts."""

import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from guard import guarded

import convkern as ck
from convkern import _core

RNG = np.random.default_rng(4)


def random(*shape, dtype=np.float32):
    return RNG.standard_normal(shape).astype(dtype)


def one_by_one(graph, x):
    """What the layers give, called in order."""
    arrays = {graph.input: x}
    for node in graph.nodes:
        extra = {} if node.residual is None else {"residual": arrays[node.residual]}
        arrays[node.name] = node.layer(*(arrays[name] for name in node.inputs), **extra)
    return arrays[graph.output]


def l2_bytes():
    """Bytes of this machine's L2."""
    return ck.show_config("dicts")["cpu"]["l2_bytes"]


def check(graph, x):
    np.testing.assert_array_equal(graph(x), one_by_one(graph, x))


def inverted_residual(name, x, channels, expansion, out, *, kernel=3, stride=1, add=False, **kind):
    """The three nodes of a block of MobileNetV2."""
    layout, dtype = kind.get("layout", "NHWC"), kind.get("dtype", np.float32)
    wide = channels * expansion
    options = {"layout": layout, "weight_layout": "HWIO"}
    return [
        (
            f"{name}.expand",
            ck.PointwiseConv2d(random(channels, wide, dtype=dtype), activation="relu6", **options),
            x,
        ),
        (
            f"{name}.depthwise",
            ck.DepthwiseConv2d(
                random(kernel, kernel, wide, dtype=dtype),
                stride=stride,
                padding="same",
                activation="relu6",
                **options,
            ),
            f"{name}.expand",
        ),
        (
            f"{name}.project",
            ck.PointwiseConv2d(random(wide, out, dtype=dtype), **options),
            f"{name}.depthwise",
            x if add else None,
        ),
    ]


def small_mobilenet_v2(**kind):
    """Wide enough at 224 pixels that the planner cuts its first half into bands."""
    layout, dtype = kind.get("layout", "NHWC"), kind.get("dtype", np.float32)
    stem = ck.Conv2d(
        random(3, 3, 3, 16, dtype=dtype),
        random(16, dtype=dtype),
        stride=2,
        padding="same",
        layout=layout,
        weight_layout="HWIO",
    )
    return ck.Graph(
        [
            ("stem", stem, "input"),
            *inverted_residual("a", "stem", 16, 6, 16, add=True, **kind),
            *inverted_residual("b", "a.project", 16, 6, 24, stride=2, **kind),
            *inverted_residual("c", "b.project", 24, 6, 24, kernel=5, add=True, **kind),
            *inverted_residual("d", "c.project", 24, 6, 32, kernel=5, stride=2, **kind),
        ]
    )


@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
@pytest.mark.parametrize("size", [1, 2, 7, 33, 224], ids="{0}x{0}".format)
def test_inverted_residuals_give_the_layers_bits(layout, size):
    graph = small_mobilenet_v2(layout=layout)
    shape = (size, size, 3) if layout == "NHWC" else (3, size, size)
    check(graph, random(*shape))


def test_batch_and_float64():
    graph = small_mobilenet_v2(dtype=np.float64)
    check(graph, random(2, 112, 96, 3, dtype=np.float64))
    graph = small_mobilenet_v2()
    x = random(3, 130, 128, 3)
    y = graph(x)
    for image, result in zip(x, y, strict=True):
        np.testing.assert_array_equal(graph(image), result)


@pytest.mark.parametrize("threads", [2, 3, 7, 64])
def test_any_number_of_threads_gives_the_same_bits(threads):
    graph = small_mobilenet_v2()
    x = random(2, 219, 224, 3)
    np.testing.assert_array_equal(graph(x, threads=threads), graph(x, threads=1))


def test_what_is_large_goes_band_by_band():
    with ck.set_num_threads(1):
        plan = small_mobilenet_v2().plan((224, 224, 3))
    banded = [step for step in plan.steps if step.band]
    assert banded, str(plan)
    kept = [step for step in banded if step.rows]
    assert kept
    for step in kept:
        assert step.rows < step.shape[0]
        assert step.bytes < np.prod(step.shape) * 4
    assert plan.arena < 112 * 112 * 96 * 4  # the first expanded array alone
    assert plan.workspace >= plan.arena
    assert "bands of" in str(plan)


def windows():
    """Chains whose windows move in every way, at a size that is cut into bands."""
    for kernel, stride, dilation, padding in [
        (3, 1, 1, 1),
        (3, 2, 1, "same"),
        (5, 3, 1, 0),
        (1, 2, 1, 0),
        (2, 3, 1, ((0, 1), (1, 0))),
        (3, 1, 3, 3),
        ((7, 1), (1, 2), 1, ((6, 0), (0, 0))),
        ((1, 5), (4, 1), 1, 0),
        (3, 1, 1, ((9, 11), (1, 1))),
    ]:
        yield pytest.param(
            {"stride": stride, "dilation": dilation, "padding": padding},
            (kernel, kernel) if isinstance(kernel, int) else kernel,
            id=f"k{kernel}s{stride}d{dilation}p{padding}",
        )


@pytest.mark.parametrize(("options", "kernel"), list(windows()))
def test_bands_of_every_window(options, kernel):
    wide = 64
    nodes = [
        ("a", ck.PointwiseConv2d(random(8, wide), activation="relu"), "input"),
        ("b", ck.Conv2d(random(*kernel, wide, 16), random(16), **options), "a"),
        ("c", ck.PointwiseConv2d(random(16, wide), activation="silu"), "b"),
        ("d", ck.DepthwiseConv2d(random(*kernel, wide), **options), "c"),
        ("e", ck.PointwiseConv2d(random(wide, 8)), "d"),
    ]
    graph = ck.Graph(nodes)
    x = random(2, 151, 120, 8)
    assert any(step.band for step in graph.plan(x.shape).steps)
    check(graph, x)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("height", "width", "channels", "wide", "stride", "padding"),
    [
        (7, 1500, 16, 96, 1, "same"),  # one block of rows and the next, many strips
        (6, 1501, 16, 96, 2, 1),  # the last strip is of one column
        (5, 1500, 4, 100, 1, (0, 0)),  # a slice of four channels; no padding
        (9, 1200, 24, 88, 2, ((2, 0), (0, 2))),
        (1, 6000, 16, 96, 1, "same"),  # all other rows are padding
        (160, 40, 12, 96, 1, ((2, 2), (5, 4))),  # windows of padding alone, at the sides
    ],
)
def test_what_is_expanded_never_exists(height, width, channels, wide, stride, padding, dtype):
    """Where it is more than L2 holds, it is made inside the next step: the same bits."""
    batch = 1 + l2_bytes() // (height * width * wide * np.dtype(dtype).itemsize)
    height *= batch  # of one image, whatever L2 this machine has
    expand = ck.PointwiseConv2d(
        random(channels, wide, dtype=dtype), random(wide, dtype=dtype), activation="relu6"
    )
    project = ck.SeparableConv2d(
        random(3, 3, wide, dtype=dtype),
        random(wide, 20, dtype=dtype),
        dw_bias=random(wide, dtype=dtype),
        stride=stride,
        padding=padding,
        dw_activation="relu",
    )
    graph = ck.Sequential([expand, project])
    x = random(2, height, width, channels, dtype=dtype)
    assert [step.inside for step in graph.plan(x.shape).steps] == [True, False]
    assert "inside the next" in str(graph.plan(x.shape))
    expected = one_by_one(graph, x)
    for threads in (1, 2, 5):
        np.testing.assert_array_equal(graph(x, threads=threads), expected)


def test_what_others_read_is_not_made_inside():
    """The expanded array is read twice; and the first rows of a window are padding only."""
    expand = ck.PointwiseConv2d(random(16, 96), activation="relu6")
    rows = 1 + l2_bytes() // (400 * 96 * 4)
    x = random(1, rows, 400, 16)
    for padding, twice in (((3, 0), (1, 1)), False), ("same", True):
        project = ck.SeparableConv2d(random(3, 3, 96), random(96, 96), padding=padding)
        nodes = [
            ("expand", expand, "input"),
            ("project", project, "expand", "expand" if twice else None),
        ]
        graph = ck.Graph(nodes)
        assert not any(step.inside for step in graph.plan(x.shape).steps)
        check(graph, x)


@pytest.mark.parametrize("batch", [1, 3], ids="batch_{}".format)
@pytest.mark.parametrize("threads", [1, 2, 5], ids="threads_{}".format)
def test_dense_layers_behind_a_network(threads, batch):
    """Whose weights, more than those of all steps before, are brought near meanwhile."""
    dense = [ck.PointwiseConv2d(random(c, n)) for c, n in ((96, 1000), (1000, 700), (700, 33))]
    graph = ck.Sequential(
        [
            ck.SeparableConv2d(random(3, 3, 24), random(24, 48), padding="same"),
            ck.PointwiseConv2d(random(48, 96), activation="relu"),
            ck.GlobalAvgPool2d(),
            *dense,
        ]
    )
    x = random(batch, 7, 7, 24)
    np.testing.assert_array_equal(graph(x, threads=threads), one_by_one(graph, x))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("threads", [1, 3], ids="threads_{}".format)
def test_room_between_pixels(threads, dtype):
    """For the depthwise 3x3 behind 128 channels and more, unless others read them, too."""

    def separable(channels, out, stride=1, kernel=3, **options):
        depthwise = random(kernel, kernel, channels, dtype=dtype)
        pointwise = random(channels, out, dtype=dtype) / channels
        return ck.SeparableConv2d(depthwise, pointwise, stride=stride, padding="same", **options)

    graph = ck.Graph(
        [
            ("a", separable(16, 128, activation="silu"), "input"),
            ("b", separable(128, 256, 2), "a"),
            ("read twice", separable(256, 256), "b"),
            ("added", separable(256, 256), "read twice", "read twice"),
            ("c", separable(256, 128), "added"),
            ("5x5 reads", separable(128, 128, kernel=5), "c"),
            ("last", separable(128, 128, 2), "5x5 reads"),
        ]
    )
    x = random(2, 19, 23, 16, dtype=dtype)
    np.testing.assert_array_equal(graph(x, threads=threads), one_by_one(graph, x))


def test_a_residual_from_far_behind():
    """The band keeps what the residual reads later, though nothing else does."""
    wide = 16
    nodes = [("in", ck.PointwiseConv2d(random(4, wide)), "input")]
    for i, name in enumerate("abcd"):
        before = nodes[-1][0]
        layer = ck.DepthwiseConv2d(random(5, 5, wide), padding=2)
        nodes.append((name, layer, before, "in" if i == 3 else None))
    graph = ck.Graph(nodes)
    x = random(160, 130, 4)
    assert graph.plan(x.shape).steps[0].rows >= 8
    check(graph, x)


def test_a_band_keeps_what_is_read_for_its_new_rows():
    """What later steps made for the band before, and keep, needs nothing again."""
    nets = [ck.DepthwiseConv2d(random(3, 3, 32), padding=1) for _ in range(8)]
    graph = ck.Sequential(nets)
    x = random(300, 200, 32)
    with ck.set_num_threads(1):
        steps = graph.plan(x.shape).steps
    for i, step in enumerate(steps[:-1]):
        if step.rows:  # a window's rows; the first band has one more for each step behind
            assert step.rows <= step.band + max(2, len(steps) - 1 - i)
    assert any(step.rows for step in steps)
    check(graph, x)


def test_branches_and_every_kind_of_layer():
    c = 12
    nodes = [
        ("offset", ck.Conv2d(random(3, 3, c, 18) * 0.3, padding=1), "input"),
        ("mask", ck.Conv2d(random(3, 3, c, 9), padding=1, activation="sigmoid"), "input"),
        ("deformed", ck.DeformConv2d(random(3, 3, c, c), padding=1), ("input", "offset", "mask")),
        ("moved", ck.DeformConv2d(random(3, 3, c, c), padding=1), ["deformed", "offset"], "input"),
        ("pool", ck.MaxPool2d(3, stride=2, padding=1, ceil_mode=True), "moved"),
        ("mean", ck.AvgPool2d(2, stride=1, padding=((0, 1), (0, 1))), "pool"),
        ("sum", ck.PointwiseConv2d(random(c, c), activation="hardswish"), "mean", "pool"),
        (
            "grouped",
            ck.Conv2d(random(3, 3, 3, 24), random(24), groups=4, padding=1, stride=2),
            "sum",
        ),
        ("spatial", ck.SpatiallySeparableConv2d(random(5), random(5), padding=2), "grouped"),
        ("separable", ck.SeparableConv2d(random(3, 3, 24), random(24, 5)), "spatial"),
        ("unread", ck.PointwiseConv2d(random(c, 3)), "sum"),
        ("whole", ck.GlobalAvgPool2d(), "separable"),
    ]
    graph = ck.Graph(nodes)
    x = random(2, 31, 29, c)
    check(graph, x)
    assert all("unread" not in step.names for step in graph.plan(x.shape).steps)
    middle = ck.Graph(nodes, output="sum")
    check(middle, x)


def test_only_a_depthwise_that_nobody_else_reads_is_fused():
    def names(*extra, residual=None):
        nodes = [
            ("d", ck.DepthwiseConv2d(random(3, 3, 8), padding=1), "input"),
            ("p", ck.PointwiseConv2d(random(8, 8)), "d", residual),
            *extra,
        ]
        graph = ck.Graph(nodes)
        check(graph, random(9, 9, 8))
        return [step.names for step in graph.plan((9, 9, 8)).steps]

    assert names() == [("d", "p")]
    assert names(residual="input") == [("d", "p")]
    assert names(residual="d") == [("d",), ("p",)]
    assert names(("q", ck.PointwiseConv2d(random(8, 8)), "p", "d")) == [("d",), ("p",), ("q",)]
    stride = ck.Conv2d(random(1, 1, 8, 8), stride=2)
    assert names(("e", ck.DepthwiseConv2d(random(3, 3, 8)), "p"), ("f", stride, "e")) == [
        ("d", "p"),
        ("e",),
        ("f",),
    ]


def test_sequential_is_a_line():
    layers = [ck.Conv2d(random(3, 3, 3, 8), stride=2), ck.MaxPool2d(2), ck.GlobalAvgPool2d()]
    net = ck.Sequential(layers)
    x = random(2, 40, 40, 3)
    y = x
    for layer in layers:
        y = layer(y)
    np.testing.assert_array_equal(net(x), y)
    assert net.layers == tuple(layers)
    assert net.out_shape(x.shape) == y.shape
    assert net.cost(x.shape).macs == layers[0].cost(x.shape).macs


def test_out_is_written_and_returned():
    net = small_mobilenet_v2()
    x = random(64, 64, 3)
    expected = net(x)
    out = np.full((*expected.shape[:2], 2 * expected.shape[2]), 7, np.float32)
    strided = out[:, :, ::2]
    assert net(x, out=strided) is strided
    np.testing.assert_array_equal(strided, expected)
    assert (out[:, :, 1::2] == 7).all()


def test_out_may_be_the_input():
    net = ck.Sequential([ck.DepthwiseConv2d(random(3, 3, 8), padding=1) for _ in range(3)])
    x = random(40, 40, 8)
    expected = net(x)
    np.testing.assert_array_equal(net(x, out=x), expected)


def test_pickles():
    graph = small_mobilenet_v2()
    line = ck.Sequential(graph.nodes[0].layer for _ in range(1))
    x = random(60, 60, 3)
    for net in (graph, line):
        again = pickle.loads(pickle.dumps(net))
        assert type(again) is type(net)
        np.testing.assert_array_equal(again(x), net(x))


def test_runs_from_several_threads_at_once():
    graph = small_mobilenet_v2()
    images = [random(40 + 8 * i, 56, 3) for i in range(6)]
    expected = [graph(x) for x in images]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            for y, right in zip(pool.map(graph, images), expected, strict=True):
                np.testing.assert_array_equal(y, right)


def test_keeps_plans_for_a_few_shapes_only():
    net = ck.Sequential([ck.DepthwiseConv2d(random(3, 3, 4))])
    for size in range(3, 40):
        net(random(size, 5, 4))
    assert len(net._programs) <= 8


def test_empty_batch():
    graph = small_mobilenet_v2()
    assert graph(random(0, 32, 32, 3)).shape == (0, 4, 4, 32)
    assert graph.plan((0, 32, 32, 3)).steps


def test_no_bytes_beside_the_arrays():
    """NaN all around the input and the output: none comes in, none is overwritten."""
    graph = small_mobilenet_v2()
    x = random(96, 96, 3)
    expected = graph(x)
    around = np.full(x.size + 256, np.nan, np.float32)
    inside = around[128:-128].reshape(x.shape)
    inside[...] = x
    out = np.full(expected.size + 256, np.nan, np.float32)
    y = out[128:-128].reshape(expected.shape)
    graph(inside, out=y)
    np.testing.assert_array_equal(y, expected)
    assert np.isnan(out[:128]).all()
    assert np.isnan(out[-128:]).all()


P = ck.PointwiseConv2d(np.ones((4, 4), np.float32))


@pytest.mark.parametrize(
    ("nodes", "options", "error", "message"),
    [
        ([], {}, ValueError, "nodes is empty"),
        ([P], {}, TypeError, r"nodes\[0\] must be a Node"),
        ([("a", P)], {}, TypeError, r"nodes\[0\] must be a Node"),
        ([(1, P, "input")], {}, TypeError, r"the name of nodes\[0\] must be a string, not int"),
        ([("a", np.tanh, "input")], {}, TypeError, "the layer of 'a' must be a layer, not ufunc"),
        ([("a", P, "b")], {}, ValueError, "'a' reads 'b', which no node before it makes"),
        ([("a", P, "a")], {}, ValueError, "'a' reads 'a', which no node before it makes"),
        ([("a", P, "input", "b")], {}, ValueError, "'a' reads 'b'"),
        ([("a", P, ("input", "input"))], {}, ValueError, "'a' reads one array"),
        ([("a", P, 3)], {}, TypeError, "the inputs of 'a' must be a string or a sequence"),
        ([("a", P, (3,))], {}, TypeError, "what 'a' reads must be a string, not int"),
        ([("input", P, "input")], {}, ValueError, "two arrays are called 'input'"),
        ([("a", P, "input"), ("a", P, "a")], {}, ValueError, "two arrays are called 'a'"),
        ([("a", ck.MaxPool2d(2), "input", "input")], {}, ValueError, "'a' is a pooling"),
        ([("a", P, "input")], {"output": "b"}, ValueError, "output='b' is not a node"),
        ([("a", P, "input")], {"input": 3}, TypeError, "input must be a string, not int"),
        (
            [
                ("a", P, "input"),
                ("b", ck.PointwiseConv2d(np.ones((4, 4))), "a"),
            ],
            {},
            ValueError,
            "'a' has dtype float32 and 'b' has float64",
        ),
        (
            [("a", P, "input"), ("b", ck.MaxPool2d(2, layout="NCHW"), "a")],
            {},
            ValueError,
            "'a' has layout NHWC and 'b' has NCHW",
        ),
    ],
)
def test_bad_graphs(nodes, options, error, message):
    with pytest.raises(error, match=message):
        ck.Graph(nodes, **options)


def test_bad_calls():
    graph = ck.Graph([("a", P, "input"), ("b", P, "a", "input")])
    with pytest.raises(TypeError, match="all arrays must have one dtype"):
        graph(np.ones((5, 5, 4)))
    with pytest.raises(ValueError, match="3 channels"):
        graph(np.ones((5, 5, 3), np.float32))
    with pytest.raises(ValueError, match="out has shape"):
        graph(np.ones((5, 5, 4), np.float32), out=np.empty((5, 5, 3), np.float32))
    stride = ck.PointwiseConv2d(np.ones((4, 4), np.float32), stride=2)
    with pytest.raises(ValueError, match="'b' adds 'input' of shape"):
        ck.Graph([("a", P, "input"), ("b", stride, "a", "input")])(np.ones((5, 5, 4), np.float32))


@pytest.mark.skipif(len(ck.available_isas()) < 2, reason="there is one ISA")
def test_layers_of_two_isas_are_refused():
    with ck.use_isa(ck.available_isas()[0]):
        other = ck.PointwiseConv2d(np.ones((4, 4), np.float32))
    with ck.use_isa(ck.available_isas()[-1]):
        mine = ck.PointwiseConv2d(np.ones((4, 4), np.float32))
    with pytest.raises(ValueError, match="ISA"):
        ck.Sequential([mine, other])


def test_a_plan_outlives_its_graph():
    """A plan holds the operations it runs."""
    net = ck.Sequential([ck.DepthwiseConv2d(random(3, 3, 4))])
    x = random(9, 9, 4)
    expected = net(x)
    program = net._program(x.shape, x.dtype, 2).packed
    del net
    np.testing.assert_array_equal(program.run(expected.shape, x), expected)


# ------------------------------------------------------------------ planes, turned at the ends


class Planes:
    """Layers of NCHW."""

    def __init__(self, dtype=np.float32):
        self.dtype = dtype

    def conv(self, channels, out, kernel=3, **options):
        options = {"padding": "same", "activation": "relu6", **options}
        w = random(out, channels, kernel, kernel, dtype=self.dtype)
        return ck.Conv2d(w, random(out, dtype=self.dtype), layout="NCHW", **options)

    def depthwise(self, channels, kernel=3, **options):
        w = random(channels, 1, kernel, kernel, dtype=self.dtype)
        return ck.DepthwiseConv2d(w, layout="NCHW", padding=kernel // 2, **options)

    def pointwise(self, channels, out, **options):
        w = random(out, channels, dtype=self.dtype)
        return ck.PointwiseConv2d(w, layout="NCHW", **options)

    def spatial(self, channels):
        column, row, bias = (
            random(*s, dtype=self.dtype) for s in ((channels, 5), (3,), (channels,))
        )
        return ck.SpatiallySeparableConv2d(column, row, bias, padding=2, layout="NCHW")

    def deform(self, channels, out):
        w = random(out, channels, 3, 3, dtype=self.dtype)
        return ck.DeformConv2d(w, padding=1, layout="NCHW")

    def separable(self, name, x, channels, out, **options):
        return [
            (f"{name}.depthwise", self.depthwise(channels, **options), x),
            (name, self.pointwise(channels, out), f"{name}.depthwise"),
        ]


def turned_graphs(make):
    """Nodes and the shape of an image, by name."""
    return {
        "stride_2_first_and_bands": (
            [
                ("a", make.conv(3, 32, stride=2), "input"),
                *make.separable("b", "a", 32, 64),
                *make.separable("c", "b", 64, 72, stride=2),
                *make.separable("d", "c", 72, 40),
            ],
            (3, 219, 224),
        ),
        "input_read_twice_and_added": (
            [
                ("a", make.conv(12, 24), "input"),
                ("b", make.pointwise(12, 24), "input", "a"),
                ("c", make.conv(24, 12, 5), "b", "input"),
                ("d", make.conv(12, 20), "c"),
            ],
            (12, 70, 66),
        ),
        "input_added_at_the_end": (
            [
                ("a", make.pointwise(16, 96, activation="relu6"), "input"),
                ("b", make.depthwise(96), "a"),
                ("c", make.pointwise(96, 16), "b", "input"),
            ],
            (16, 150, 131),
        ),
        "input_added_from_outside_a_group": (
            [
                ("a", make.conv(16, 8, stride=2), "input"),
                ("b", make.conv(8, 16), "a"),
                ("c", make.pointwise(16, 24), "input"),
                ("d", make.conv(24, 16, stride=2), "c", "b"),
            ],
            (16, 30, 28),
        ),
        "output_adds_what_lies_between": (
            [
                ("a", make.conv(5, 20), "input"),
                ("b", make.conv(20, 20), "a"),
                ("c", make.conv(20, 20), "b", "a"),
            ],
            (5, 9, 11),
        ),
        "smaller_than_a_band": (
            [("a", make.conv(3, 17), "input"), ("b", make.conv(17, 19), "a")],
            (3, 2, 3),
        ),
        "one_pixel": (
            [("a", make.conv(7, 17), "input"), ("b", make.pointwise(17, 19), "a")],
            (7, 1, 1),
        ),
        "one_row": ([("a", make.conv(7, 9), "input"), ("b", make.conv(9, 6), "a")], (7, 1, 40)),
        "one_column": ([("a", make.conv(7, 9), "input"), ("b", make.conv(9, 6), "a")], (7, 40, 1)),
        "one_pixel_out": (
            [
                ("a", make.conv(3, 17, stride=2), "input"),
                ("b", ck.GlobalAvgPool2d(layout="NCHW"), "a"),
                ("c", make.pointwise(17, 10), "b"),
            ],
            (3, 12, 14),
        ),
        "no_pixel_out": (
            [
                ("a", make.conv(3, 17, stride=2), "input"),
                ("b", ck.GlobalAvgPool2d(keepdims=False, layout="NCHW"), "a"),
            ],
            (3, 12, 14),
        ),
        "one_channel_in": (
            [("a", make.conv(1, 8), "input"), ("b", make.conv(8, 6), "a")],
            (1, 40, 30),
        ),
        "one_channel_out": (
            [("a", make.conv(3, 8), "input"), ("b", make.conv(8, 1), "a")],
            (3, 40, 30),
        ),
        "pooled_first_and_last": (
            [
                ("a", ck.MaxPool2d(3, stride=2, padding=1, layout="NCHW"), "input"),
                ("b", make.conv(6, 24), "a"),
                ("c", ck.AvgPool2d(2, stride=1, ceil_mode=True, layout="NCHW"), "b"),
            ],
            (6, 33, 35),
        ),
        "deformed_first_and_last": (
            [
                ("offset", make.conv(6, 18, activation=None), "input"),
                ("mask", make.conv(6, 9, activation="sigmoid"), "input"),
                ("a", make.deform(6, 10), ("input", "offset", "mask")),
                ("b", make.deform(10, 4), ("a", "offset")),
            ],
            (6, 21, 23),
        ),
        "spatial_and_groups": (
            [
                ("a", make.spatial(8), "input"),
                ("b", make.conv(2, 24, groups=4), "a"),
                ("c", make.depthwise(48, 5), "b"),
                ("d", make.conv(12, 12, groups=4, dilation=2), "c"),
            ],
            (8, 25, 26),
        ),
    }


TURNED = list(turned_graphs(Planes()))


@pytest.fixture
def always_turn(monkeypatch):
    monkeypatch.setattr("convkern.graph._LEAST_SUMS", 0)


@pytest.fixture(params=TURNED)
def turned(request, always_turn):
    """A graph of planes that runs on pixels, and the shape of its image."""
    return make_turned(request.param)


def make_turned(name, dtype=np.float32):
    nodes, shape = turned_graphs(Planes(dtype))[name]
    graph = ck.Graph(nodes)
    assert all("NHWC" in repr(step.layer) for step in graph.plan(shape).steps)
    return graph, shape


@pytest.fixture
def eager():
    """Threads take part however little there is to do."""
    before = _core.set_least_work(1)
    yield
    _core.set_least_work(before)


@pytest.mark.parametrize("threads", [1, 2, 5], ids="threads_{}".format)
def test_planes_give_the_layers_bits(turned, threads, eager):
    graph, shape = turned
    graph = pickle.loads(pickle.dumps(graph))  # without plans for less eager threads
    for x in (random(*shape), random(2, *shape)):
        np.testing.assert_array_equal(graph(x, threads=threads), one_by_one(graph, x))


@pytest.mark.parametrize("name", TURNED)
def test_planes_of_float64(always_turn, name):
    graph, shape = make_turned(name, np.float64)
    check(graph, random(2, *shape, dtype=np.float64))


@pytest.mark.parametrize("end", ["before", "after"])
def test_guard_pages_around_planes(turned, end):
    graph, shape = turned
    x = random(2, *shape)
    expected = graph(x)
    out = guarded(np.full_like(expected, np.nan), end, writable=True)
    for threads in (1, 2):
        np.testing.assert_array_equal(graph(guarded(x, end), out=out, threads=threads), expected)


def test_strided_planes(turned):
    graph, shape = turned
    x = random(2, *shape)
    expected = graph(x)
    wide = np.zeros((*x.shape[:-1], 2 * x.shape[-1]), np.float32)
    wide[..., ::2] = x
    out = np.full((*expected.shape[:-1], 2 * expected.shape[-1]), 7, np.float32)
    graph(wide[..., ::2], out=out[..., ::2])
    np.testing.assert_array_equal(out[..., ::2], expected)
    assert (out[..., 1::2] == 7).all()


def test_planes_in_a_pickle(turned):
    graph, shape = turned
    x = random(*shape)
    again = pickle.loads(pickle.dumps(graph))
    assert [node.layer._options["layout"] for node in again.nodes] == ["NCHW"] * len(graph.nodes)
    np.testing.assert_array_equal(again(x), graph(x))


def test_planes_are_turned_in_bands():
    nodes, shape = turned_graphs(Planes())["stride_2_first_and_bands"]
    graph = ck.Graph(nodes)
    with ck.set_num_threads(1):
        plan = graph.plan(shape)
    assert [step.shape for step in plan.steps] == [
        (32, 110, 112),
        (64, 110, 112),
        (72, 55, 56),
        (40, 55, 56),
    ]
    assert plan.steps[0].x_shape == shape
    assert plan.steps[0].band
    assert plan.steps[0].rows
    assert "3x219x224" in str(plan)
    assert plan.arena > plan.steps[0].bytes
    assert all("NCHW" in repr(node.layer) for node in graph.nodes)


def test_planes_stay_where_little_is_summed():
    make = Planes()
    for layers, shape in [
        ([make.depthwise(16), make.depthwise(16)], (16, 20, 20)),
        ([ck.MaxPool2d(2, layout="NCHW"), ck.MaxPool2d(2, layout="NCHW")], (16, 20, 20)),
        ([make.pointwise(8, 8), make.pointwise(8, 8)], (8, 20, 20)),
        ([make.conv(64, 64)], (64, 20, 20)),
        ([make.depthwise(64), make.pointwise(64, 64)], (64, 20, 20)),
    ]:
        graph = ck.Sequential(layers)
        assert all("NCHW" in repr(step.layer) for step in graph.plan(shape).steps)
        check(graph, random(*shape))


def test_planes_that_do_not_fit():
    """Messages say the shapes that the caller knows."""
    make = Planes()
    graph = ck.Graph([("a", make.conv(6, 32), "input"), ("b", make.conv(32, 32), "a", "a")])
    with pytest.raises(ValueError, match=r"shape \(8, 8, 6\) \(NCHW\), 8 channels"):
        graph(np.ones((8, 8, 6), np.float32))
    graph = ck.Graph([("a", make.conv(6, 32), "input"), ("b", make.conv(32, 32), "a", "input")])
    with pytest.raises(ValueError, match=r"'b' adds 'input' of shape \(6, 8, 9\); .* \(32, 8, 9\)"):
        graph(np.ones((6, 8, 9), np.float32))
    assert graph.out_shapes((6, 8, 9))["b"] == (32, 8, 9)
    assert ck.Graph(graph.nodes[:1])(np.ones((0, 6, 8, 9), np.float32)).shape == (0, 32, 8, 9)
