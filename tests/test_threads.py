"""Threads: the same bits for any number of them, the pool that they come from, and how many."""

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import deforming
import numpy as np
import pooling
import pytest
from cases import EXAMPLES, assert_same_bits, call, example, python

import convkern as ck
from convkern import _core
from convkern._cpus import usable_cpus

COUNTS = (2, 3, 5, 8)  # more than there are cores, or rows


@pytest.fixture
def eager():
    """Let threads take part however little there is to do."""
    before = _core.set_least_work(1)
    yield
    _core.set_least_work(before)


def check_counts(calls):
    """Any number of threads gives the bits that one gives."""
    for made in calls:
        want = made.run(threads=1)
        for threads in COUNTS:
            assert_same_bits(made.run(threads=threads), want)


# ------------------------------------------------------------------------------------ the same bits


@pytest.mark.parametrize("name", EXAMPLES)
def test_any_operation(isa, eager, name, layout, data):
    made = example(name, layout=layout, data=data)
    extras = {"residual": True, "activation": "hardswish", "layout": layout, "data": data}
    check_counts([made, example(name, **extras)])


@pytest.mark.parametrize("name", deforming.EXAMPLES)
def test_any_deformable(isa, eager, name, data):
    made = deforming.example(name, data=data, residual=True)
    check_counts([made, deforming.nchw(made)])


@pytest.mark.parametrize("name", pooling.EXAMPLES)
def test_any_pooling(isa, eager, name, data):
    made = pooling.example(name, data=data)
    check_counts([made, pooling.nchw(made)])


# Rows are fewer than threads: channels are dealt out, where they can be.
FEW_ROWS = {
    "pointwise": {"op": "pointwise_conv2d", "x": (1, 1, 37), "outputs": 211},
    "pointwise_7x7": {"op": "pointwise_conv2d", "x": (7, 7, 37), "outputs": 131},
    "pointwise_136": {"op": "pointwise_conv2d", "x": (1, 2, 37), "outputs": 136},
    "conv2d": {"op": "conv2d", "x": (3, 5, 9), "outputs": 131, "padding": 1, "stride": 2},
    "groups": {"op": "conv2d", "x": (2, 3, 170), "outputs": 190, "groups": 10, "padding": 1},
    "narrow_groups": {"op": "conv2d", "x": (2, 3, 57), "outputs": 114, "groups": 19, "padding": 1},
    "separable": {"op": "separable_conv2d", "x": (2, 2, 21), "outputs": 131, "padding": 1},
    "depthwise_3x3": {"op": "depthwise_conv2d", "x": (3, 4, 133), "padding": 1},
    "depthwise_5x5": {"op": "depthwise_conv2d", "x": (2, 4, 133), "kernel": (5, 5), "padding": 2},
    "multiplier": {"op": "depthwise_conv2d", "x": (2, 4, 45), "multiplier": 3, "padding": 1},
    "spatial": {"op": "spatially_separable_conv2d", "x": (2, 5, 133), "padding": 1},
}


@pytest.mark.parametrize("name", FEW_ROWS)
def test_few_rows(isa, eager, name, layout, data):
    options = {**FEW_ROWS[name], "layout": layout, "data": data}
    check_counts(
        call(residual=extra, activation=activation, **options)
        for extra, activation in ((False, "relu6"), (True, "silu"))
    )


def test_few_rows_of_a_deformable(isa, eager, data):
    made = deforming.deform((1, 2, 3, 19), outputs=131, padding=1, data=data)
    check_counts([made, deforming.nchw(made)])


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_few_averages_of_whole_images(isa, eager, batch, data):
    made = pooling.pool("global_avg_pool2d", (batch, 5, 7, 133), data=data)
    check_counts([made, pooling.nchw(made)])


@pytest.mark.parametrize("batch", [1, 2, 5, 7])
def test_parts_of_several_images(eager, batch, layout):
    """A part may end one image, hold others and begin the next; the last part is all padding."""
    for op in ("conv2d", "depthwise_conv2d", "separable_conv2d", "spatially_separable_conv2d"):
        window = {"padding": ((3, 9), (1, 1)), "stride": (2, 1), "layout": layout}
        check_counts([call(op, (batch, 5, 6, 19), residual=True, **window)])


def test_large_enough_by_itself():
    made = call("conv2d", (90, 91, 19), outputs=37, padding=1)
    check_counts([made, replace(made, x=made.x[:, ::-1])])


@pytest.mark.parametrize("batch", [1, 3])
def test_network(isa, eager, batch, layout, data):
    """Steps fused and in bands, alone and in several parts, pooling and few rows at the end."""
    rng = np.random.default_rng(0)

    def weights(*shape):
        w = rng.standard_normal(shape).astype(np.float64 if data == "doubles" else np.float32)
        return w if layout == "NHWC" else w.transpose(3, 2, 0, 1)

    options = {"layout": layout, "padding": "same", "activation": "relu6"}
    net = ck.Sequential(
        [
            ck.Conv2d(weights(3, 3, 3, 40), stride=2, **options),
            ck.SeparableConv2d(weights(3, 3, *((40, 1) if layout == "NHWC" else (1, 40))),
                               weights(1, 1, 40, 70), **options),
            ck.PointwiseConv2d(weights(1, 1, 70, 190), layout=layout, activation="relu6"),
            ck.MaxPool2d(3, stride=2, padding=1, layout=layout),
            ck.Conv2d(weights(3, 3, 190, 50), stride=3, **options),
            ck.GlobalAvgPool2d(layout=layout),
        ]
    )  # fmt: skip
    x = rng.standard_normal((batch, 41, 37, 3)).astype(weights(1, 1, 1, 1).dtype)
    x = x if layout == "NHWC" else np.ascontiguousarray(x.transpose(0, 3, 1, 2))
    want = net(x, threads=1)
    for threads in COUNTS:
        assert_same_bits(net(x, threads=threads), want)


def test_network_that_was_planned_for_more_work(eager):
    """Its workspace may be too small now; that is no reason to write beside it."""
    net = ck.Sequential([ck.PointwiseConv2d(np.ones((8, 8), np.float32))])
    x = np.ones((32, 32, 8), np.float32)
    net(x, threads=2)
    _core.set_least_work(2)
    with pytest.raises(SystemError):
        net(x, threads=2)


def test_denormals_in_every_part(eager):
    tiny = np.full((8, 9, 40), 1e-40, np.float32)
    flushed = ck.pointwise_conv2d(tiny, np.ones((40, 9), np.float32), threads=8)
    assert (flushed == 0).all()
    assert (ck.max_pool2d(tiny, kernel=1, threads=8) == tiny).all()


# --------------------------------------------------------------------------------------- the pool

TASKS = "tasks = lambda: len(os.listdir('/proc/self/task'))\n"
BEGIN = (
    "import os, signal, threading, time, resource\n"
    "os.environ['OPENBLAS_NUM_THREADS'] = '1'\n"
    "import numpy as np, convkern as ck\n"
    "x, w = np.ones((64, 64, 64), np.float32), np.ones((64, 64), np.float32)\n"
    "layer = ck.PointwiseConv2d(w)\n"
    "right = lambda threads: (layer(x, threads=threads) == 64).all()\n"
) + TASKS
linux = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="counts threads in /proc")

asan = pytest.mark.skipif("ASAN_OPTIONS" in os.environ, reason="ASan's own locks and mappings")


def prints(program, **environment):
    done = python(BEGIN + program, **environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@linux
def test_threads_start_when_they_are_asked_for():
    assert (
        prints(
            "counts = [tasks()]\n"
            "for threads in (1, 3, 2, 4): assert right(threads); counts.append(tasks())\n"
            "print(np.subtract(counts, counts[0]))\n"
        )
        == "[0 0 2 2 3]"
    )


@linux
def test_small_problems_stay_on_the_callers_thread():
    assert prints("before = tasks(); layer(x[:1, :1], threads=8); print(tasks() - before)") == "0"


@linux
def test_idle_threads_take_no_time():
    program = (
        "for _ in range(20): right(4)\n"
        "time.sleep(0.001)\n"
        "start = time.process_time()\n"
        "time.sleep(0.5)\n"
        "print(time.process_time() - start)\n"
    )
    assert float(prints(program)) < 0.05


@linux
def test_fork():
    """A child has threads of its own, and so has its child."""
    program = (
        "def child(depth):\n"
        "    pid = os.fork()\n"
        "    if pid: return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])\n"
        "    signal.alarm(60)\n"
        "    before = tasks()\n"
        "    good = right(3) and (before, tasks()) == (1, 3)\n"
        "    os._exit(not good if depth == 0 else child(depth - 1))\n"
        "assert right(3)\n"
        "print(child(0), child(2), right(3))\n"
    )
    assert prints(program) == "0 0 True"


@asan
def test_fork_while_the_pool_is_in_use():
    program = (
        "done = threading.Event()\n"
        "def keep_busy():\n"
        "    while not done.is_set(): right(3)\n"
        "thread = threading.Thread(target=keep_busy)\n"
        "thread.start()\n"
        "codes = set()\n"
        "for _ in range(20):\n"
        "    pid = os.fork()\n"
        "    if not pid:\n"
        "        signal.alarm(60)\n"
        "        os._exit(not right(3))\n"
        "    codes.add(os.waitpid(pid, 0)[1])\n"
        "done.set()\n"
        "thread.join()\n"
        "print(codes)\n"
    )
    assert prints(program) == "{0}"


@linux
@asan
def test_threads_that_cannot_start():
    """There is no room for their stacks: the caller does it all, and asks again the next time."""
    program = (
        "assert right(1)\n"
        "before, room = tasks(), 4 << 20\n"
        "used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "soft, hard = resource.getrlimit(resource.RLIMIT_AS)\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + room, hard))\n"
        "print(right(4), tasks() - before)\n"
        "resource.setrlimit(resource.RLIMIT_AS, (soft, hard))\n"
        "print(right(4), tasks() - before)\n"
    )
    assert prints(program) == "True 0\nTrue 3"


def test_concurrent_calls(eager):
    """Calls of several shapes at once: one has the pool, the others go on without it."""
    calls = [example(name, layout=layout) for name in EXAMPLES for layout in ("NHWC", "NCHW")]
    calls += [pooling.example(name) for name in pooling.EXAMPLES]
    wants = [made.run(threads=1) for made in calls]
    with ThreadPoolExecutor(6) as executor:
        for threads in (2, 3, 4):
            results = executor.map(lambda made, n=threads: made.run(threads=n), calls * 5)
            for got, want in zip(results, wants * 5, strict=True):
                assert_same_bits(got, want)


def test_calls_that_fail_leave_the_pool_alone(eager):
    made = example("conv2d_3x3")
    want = made.run(threads=1)
    for _ in range(3):
        with pytest.raises(ValueError, match="residual"):
            made.run(threads=3, residual=want[:, 1:])
        assert_same_bits(made.run(threads=3), want)


def test_more_threads_than_anyone_has(eager):
    made = example("separable_3x3")
    assert_same_bits(made.run(threads=2**62), made.run(threads=1))


# ------------------------------------------------------------------------------ how many there are


def test_set_num_threads():
    before = ck.get_num_threads()
    assert ck.set_num_threads(3) == before
    assert ck.get_num_threads() == 3
    assert ck.set_num_threads(before) == 3
    assert ck.get_num_threads() == before


def test_set_num_threads_for_a_while():
    before = ck.get_num_threads()
    with ck.set_num_threads(5) as previous:
        assert (previous, ck.get_num_threads()) == (before, 5)
        with ck.set_num_threads(2):
            assert ck.get_num_threads() == 2
        assert ck.get_num_threads() == 5
    with pytest.raises(KeyError), ck.set_num_threads(7):
        raise KeyError
    assert ck.get_num_threads() == before


@linux
def test_who_says_how_many():
    """An argument, set_num_threads, and what the environment says, in that order."""
    program = "ck.set_num_threads({}); before = tasks(); layer(x{}); print(tasks() - before)"
    assert prints(program.format(3, ""), CONVKERN_NUM_THREADS="2") == "2"
    assert prints(program.format(3, ", threads=2")) == "1"
    assert prints(program.format(3, ", threads=1")) == "0"
    assert prints("before = tasks(); layer(x); print(tasks() - before)", OMP_NUM_THREADS="4") == "3"


@pytest.mark.parametrize(
    ("own", "openmp", "want"),
    [
        ("3", "2", 3),
        ("", "2", 2),
        (" 4 ", None, 4),
        (None, "5,2", 5),
        (None, "0", None),
        (None, "many", None),
        (None, None, None),
    ],
)
def test_environment(own, openmp, want):
    given = {"CONVKERN_NUM_THREADS": own, "OMP_NUM_THREADS": openmp}
    shown = prints("print(ck.get_num_threads())", **{k: v for k, v in given.items() if v})
    assert int(shown) == (want or usable_cpus())


@pytest.mark.parametrize("value", ["0", "-1", "two", "1.5", "2**64", "²"])
def test_bad_environment(value):
    program = (
        "for use in (ck.get_num_threads, lambda: layer(x), lambda: ck.set_num_threads(2)):\n"
        "    try: use()\n"
        "    except ValueError as error: print(error)\n"
    )
    rule = f"CONVKERN_NUM_THREADS must be an integer of at least 1, not {value!r}"
    assert prints(program, CONVKERN_NUM_THREADS=value).splitlines() == [rule] * 3


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity here")
def test_affinity():
    program = "os.sched_setaffinity(0, [min(os.sched_getaffinity(0))]); print(ck.get_num_threads())"
    assert prints(program) == "1"


def group(mounts, path, **files):
    """Make a control group."""
    (mounts / path).mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (mounts / path / name.replace("_", ".", 1)).write_text(text)


@pytest.mark.parametrize("quota", ["50000", "199999", "max", "-1", "", "nonsense", "100000000"])
@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("inside", ["", "outer", "outer/inner"])
def test_quota(tmp_path, quota, version, inside):
    """Of its group or of one around it, version 1 or 2; of a CPU and a half, one is used."""
    if version == 2:
        group(tmp_path, inside, cpu_max=f"{quota} 100000\n")
        groups = "0::/outer/inner\n"
    else:
        files = {"cpu_cfs_quota_us": f"{quota}\n", "cpu_cfs_period_us": "100000\n"}
        group(tmp_path, f"cpu,cpuacct/{inside}", **files)
        groups = "7:memory:/else\n4:cpu,cpuacct:/outer/inner\n0::/\n"
    (tmp_path / "groups").write_text(groups)
    limited = quota in ("50000", "199999")
    everything = usable_cpus(tmp_path / "none", tmp_path)
    assert usable_cpus(tmp_path / "groups", tmp_path) == (1 if limited else everything)


def test_least_quota(tmp_path):
    for path, quota in (("", 300000), ("a", 100000), ("a/b", 200000)):
        group(tmp_path, path, cpu_max=f"{quota} 100000")
    (tmp_path / "groups").write_text("0::/a/b")
    assert usable_cpus(tmp_path / "groups", tmp_path) == 1


def test_threadpoolctl():
    threadpoolctl = pytest.importorskip("threadpoolctl", minversion="3.5")
    with ck.set_num_threads(3):
        (ours,) = (i for i in threadpoolctl.threadpool_info() if i["user_api"] == "convkern")
        assert (ours["num_threads"], ours["version"]) == (3, ck.__version__)
        assert Path(ours["filepath"]).samefile(_core.__file__)
        with threadpoolctl.threadpool_limits(limits=1):
            assert ck.get_num_threads() == 1
        with threadpoolctl.threadpool_limits(limits=1, user_api="blas"):
            assert ck.get_num_threads() == 3
        assert ck.get_num_threads() == 3


def test_without_threadpoolctl():
    program = (
        "import sys\n"
        "sys.modules['threadpoolctl'] = None\n"
        "import convkern as ck\n"
        "print(ck.get_num_threads() >= 1)\n"
    )
    done = python(program)
    assert (done.returncode, done.stdout) == (0, "True\n"), done.stderr
