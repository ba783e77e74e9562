"""`python -m bench.peers`: its statistics, its options, and a tiny network on every peer."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import reference

import convkern as ck

pytest.importorskip("rich")

from peers import command, nodes, report
from peers.libraries import PEERS, hold_to
from peers.measure import OURS, Contest, Sample, best_peer, rounds_of, summarize
from peers.workloads import Workload, oracle

from convkern.cli._measure import WrongResultError

ROOT = Path(__file__).resolve().parents[1]
ACTIVATIONS = [None, "relu", "relu6", (-1.5, 2.5), "hardswish", "hardsigmoid", "sigmoid", "silu"]


def sample(ghz, ours, torch=2e-3, openvino=1e-3, threads=1, waited=0.0):
    seconds = {OURS: ours, "torch": torch, "openvino": openvino}
    return Sample("net", threads, ghz, peak_gflops=100.0, waited=waited, seconds=seconds)


# --------------------------------------------------------------------------------------- statistics


def test_rows_are_medians_of_paired_ratios_with_quiet_and_contended_rounds_apart():
    quiet = [sample(4.0, 1e-3), sample(3.9, 4e-3, torch=4e-3), sample(3.7, 2e-3, torch=12e-3)]
    contended = [sample(2.0, 1e-3, torch=80e-3), sample(4.0, 1e-3, torch=90e-3, waited=0.1)]
    (row,) = summarize([contended[0], *quiet, contended[1]], {"net": 10**8})
    assert (row["rounds"], row["quiet_rounds"]) == (5, 3)
    assert row["ratios"] == pytest.approx({"torch": 2.0, "openvino": 0.5})  # not 4/2 over medians
    assert row["contended_ratios"] == pytest.approx({"torch": 85.0, "openvino": 1.0})
    assert row["ms"][OURS] == pytest.approx(2.0)
    assert row["peak_fraction"] == pytest.approx(0.2e9 / 2e-3 / 100e9)


def test_without_quiet_rounds_all_count():
    (row,) = summarize([sample(4.0, 1e-3), *[sample(1.0, 4e-3)] * 4], {"net": 0})
    assert row["quiet_rounds"] == 1
    assert row["ratios"]["torch"] == pytest.approx(0.5)
    assert row["peak_fraction"] is None


def test_quiet_is_judged_among_runs_on_as_many_threads():
    one, two = [sample(4.0, 1e-3)] * 3, [sample(2.0, 1e-3, threads=2)] * 3
    rows = summarize([*one, *two], {"net": 1})
    assert [(row["threads"], row["quiet_rounds"]) for row in rows] == [(1, 3), (2, 3)]


def test_best_peer_is_the_fastest_of_those_that_count():
    ratios = {"torch": 2.0, "onnxruntime": 0.9, "openvino": 1.1}
    assert best_peer(ratios, list(ratios)) == "onnxruntime"
    assert best_peer(ratios, ["torch", "openvino", "ncnn"]) == "openvino"
    assert best_peer(ratios, []) is None


def test_a_lost_row_is_shown_and_marked(monkeypatch):
    monkeypatch.setattr(report.metadata, "version", lambda package: "1.2.3")
    samples = [sample(4.0, 1.1e-3)] * 3
    made = report.make(samples, [made_up(lambda: None)], ["torch", "openvino"], {"ncnn": "no"}, 0)
    *_, row = report.markdown(made)
    assert "1.82 |" in row
    assert "0.91! |" in row
    notes = " ".join(report.notes(made))
    assert "ncnn: no" in notes
    assert "openvino 1.2.3" in notes
    json.dumps(made)


# ------------------------------------------------------------------------------------------- rounds


def made_up(run, want=None):
    """Make a workload whose network is not run."""
    network = nodes.Network({"x": np.ones((1, 1, 1, 1), np.float32)}, [], "x")
    workload = Workload("net", network, lambda threads: run(), macs=1)
    vars(workload)["want"] = want
    return workload


def test_rounds_run_every_engine_once_in_changing_order(monkeypatch):
    log = []
    monkeypatch.setattr("peers.measure.time_of", lambda program: program() and 1e-3)
    contest = Contest(made_up(lambda: np.ones(1), np.ones(1)), [], threads=1)
    contest._programs = {
        name: (lambda name=name: log.append(name) or 1, None) for name in (OURS, "a", "b", "c")
    }
    got = list(rounds_of([contest], rounds=8, seed=3))
    orders = [tuple(log[i : i + 4]) for i in range(0, 32, 4)]
    assert all(sorted(order) == sorted(contest._programs) for order in orders)
    assert len(set(orders)) > 1
    assert all(s.nop_ghz > 0 and s.peak_gflops > 0 and s.waited >= 0 for s in got)
    assert all(len(s.seconds) == 4 for s in got)
    log.clear()
    list(rounds_of([contest], rounds=8, seed=3))
    assert orders == [tuple(log[i : i + 4]) for i in range(0, 32, 4)]


@pytest.mark.parametrize("wrong", [1.01, np.nan])
def test_a_wrong_output_is_refused(wrong):
    right = np.ones((1, 1, 2))
    assert Contest(made_up(lambda: right, right), [], 1).sample(random.Random(0)).seconds[OURS] > 0
    with pytest.raises(WrongResultError, match="net: convkern"):
        Contest(made_up(lambda: right * [1, wrong], right), [], 1)


def test_peers_that_cannot_be_held_are_not_compared(monkeypatch):
    monkeypatch.setattr(os, "environ", {})
    assert hold_to("avx512", "avx512") == list(PEERS)
    assert hold_to("avx512", "amx") == list(PEERS)
    assert os.environ == {}
    assert hold_to("avx2", "avx512") == ["torch", "openvino"]
    assert os.environ["ONEDNN_MAX_CPU_ISA"] == "AVX2"


# ------------------------------------------------------------------------------------------ options


@pytest.mark.parametrize(
    ("arguments", "mention"),
    [
        (["--nets", "alexnet"], "mobilenet_v2"),
        (["--peers", "torch,tf"], "openvino"),
        (["--threads", "0"], "--threads"),
        (["--threads", "100000"], "CPUs"),
        (["--rounds", "0"], "--rounds"),
        (["--rounds", "many"], "--help"),
        (["--isa", "mmx"], "--isa"),
        (["--ops", "nothing"], "--ops"),
        (["--plot", "figure.xyz"], "figure.xyz"),
        (["--json", "no/such/folder"], "no/such/folder"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_options(arguments, mention, capsys):
    try:
        code = command.main(arguments)
    except SystemExit as exit:
        code = exit.code
    out, err = capsys.readouterr()
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert mention in err


def test_python_m_bench_peers(tmp_path):
    """Alone, so that it runs where no peer is installed."""
    file = tmp_path / "numbers.json"
    arguments = "--ops global_avg_pool2d-240* --peers ncnn --rounds 2 --threads 1 --markdown"
    done = subprocess.run(
        [sys.executable, "-m", "bench.peers", *arguments.split(), "--json", file],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "| global_avg_pool2d-240-28x28 | 1 |" in done.stdout
    (row,) = json.loads(file.read_text())["rows"]
    assert (row["rounds"], row["ms"][OURS] > 0) == (2, True)


# -------------------------------------------------------------------------------------------- peers


def tiny(activation):
    """Make a net of asymmetric padding, groups, a residual, poolings, and a vector at the end."""
    rng = np.random.default_rng(1)

    def draw(*shape):
        return rng.standard_normal(shape).astype(np.float32)

    same = {"padding": "same", "activation": activation}
    narrow = ck.SeparableConv2d(draw(3, 3, 24), draw(24, 8), dw_activation="relu", **same)
    column_row = ck.SpatiallySeparableConv2d(draw(3), draw(3), stride=2, activation=activation)
    return ck.Graph(
        [
            ("stem", ck.Conv2d(draw(3, 3, 3, 8), draw(8), stride=2, **same), "image"),
            ("widen", ck.PointwiseConv2d(draw(8, 24), draw(24), activation="relu6"), "stem"),
            ("narrow", narrow, "widen", "stem"),
            ("groups", ck.Conv2d(draw(3, 3, 4, 6), groups=2, padding=((0, 1), (2, 0))), "narrow"),
            ("largest", ck.MaxPool2d(2, stride=1), "groups"),
            ("spatial", column_row, "largest"),
            ("means", ck.AvgPool2d(2), "spatial"),
            ("vector", ck.GlobalAvgPool2d(), "means"),
            ("classes", ck.PointwiseConv2d(draw(6, 5), draw(5)), "vector"),
            ("unused", ck.PointwiseConv2d(draw(6, 5)), "vector"),
        ],
        input="image",
        output="classes",
    )


@pytest.mark.parametrize("peer", [*PEERS, "oracle"])
def test_a_tiny_net_gives_the_same_on_every_peer(peer):
    if peer != "oracle":
        pytest.importorskip(PEERS[peer].package)
    x = np.random.default_rng(0).standard_normal((22, 18, 3)).astype(np.float32)
    for activation in ACTIVATIONS:
        graph = tiny(activation)
        want, network = graph(x), nodes.of_graph(graph, x)
        if peer == "oracle":
            got = oracle(network)
        else:
            run, result = PEERS[peer].prepare(network, threads=1)
            run()
            got = result(run())
        assert got.shape == want.shape
        tolerance = 1e-4 * np.abs(want).max()
        np.testing.assert_allclose(got, want, rtol=0, atol=tolerance, err_msg=str(activation))


def test_nodes_keep_what_the_layer_was_given():
    """Independent of convkern's kernels: the nodes' arrays and windows through the oracle."""
    rng = np.random.default_rng(0)
    w, bias, x = (rng.standard_normal(s) for s in [(3, 3, 6, 2), (12,), (7, 5, 6)])
    w, bias, x = (a.astype(np.float32) for a in (w, bias, x))
    options = {"stride": (2, 1), "padding": "same", "dilation": (1, 2), "activation": "relu6"}
    (node,) = nodes.of_layer(ck.DepthwiseConv2d(w, bias, **options), "y", ["x"], [x.shape])
    got = oracle(nodes.Network({"x": x.transpose(2, 0, 1)[None]}, [node], "y"))
    np.testing.assert_allclose(got, reference.depthwise_conv2d(x, w, bias, **options), atol=1e-5)
    assert node.activation == (0, 6)
