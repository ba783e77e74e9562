"""The command: exit codes, error lines, and a bench of tiny blocks."""

import io
import json
import math
import re
import subprocess
import sys
from functools import partial
from statistics import median

import numpy as np
import pytest
from cases import python
from test_runtime import TOKENS

import convkern as ck
from convkern import cost
from convkern.cli import bench, main
from convkern.cli._measure import (
    MOBILENET_V1,
    Block,
    Sample,
    WrongResultError,
    measure,
    summarize,
)

pytest.importorskip("rich")

TINY = (Block(4, 8, size=7), Block(5, 3, size=6, stride=2), Block(3, 4, size=5, k=5))
ROW_KEYS = {
    "block", "m", "n", "k", "stride", "size", "predicted", "naive_standard_ms",
    "naive_separable_ms", "standard_ms", "separable_ms", "naive_ratio", "fast_ratio",
    "peak_fraction",
}  # fmt: skip


@pytest.fixture
def tiny(monkeypatch):
    """Make ``convkern bench`` measure blocks that take no time."""
    monkeypatch.setattr(bench, "run", partial(bench.run, blocks=TINY))


def outcome(capsys, *arguments):
    """Run the command; return its exit code and what it wrote to stdout and stderr."""
    try:
        code = main([str(a) for a in arguments])
    except SystemExit as exit:
        code = exit.code
    return code, *capsys.readouterr()


def fails(capsys, *arguments):
    """Run a command that must fail with code 2 and one line; return that line."""
    code, out, err = outcome(capsys, *arguments)
    assert code == 2
    assert out == ""
    assert err.startswith("convkern")
    assert err.count("\n") == 1
    return err


def test_version(capsys):
    assert outcome(capsys, "--version") == (0, f"convkern {ck.__version__}\n", "")


def test_help_names_the_commands(capsys):
    code, out, _ = outcome(capsys, "--help")
    assert code == 0
    assert all(name in out for name in ("bench", "classify", "info"))


def test_no_command_prints_help(capsys):
    code, out, err = outcome(capsys)
    assert (code, err) == (0, "")
    assert out.startswith("usage: convkern")


@pytest.mark.parametrize(
    "arguments", [("fly",), ("bench", "--rounds"), ("bench", "--json"), ("info", "more")]
)
def test_bad_arguments(arguments, capsys):
    assert "--help" in fails(capsys, *arguments)


def test_python_m_convkern():
    done = subprocess.run(
        [sys.executable, "-P", "-m", "convkern", "fly"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "fly" in done.stderr


@pytest.mark.parametrize("command", ["bench", "classify image.png", "info"])
@pytest.mark.parametrize("name", ["nonsense", "avx2 ", *sorted(TOKENS - set(ck.available_isas()))])
def test_environment_names_no_isa_of_this_cpu(command, name):
    program = f"import convkern.cli as cli; raise SystemExit(cli.main({command.split()}))"
    done = python(program, CONVKERN_ISA=name)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"convkern {command.split()[0]}: CONVKERN_ISA: ")
    assert repr(name) in done.stderr
    assert "scalar" in done.stderr
    assert done.stderr.count("\n") == 1


def test_help_whatever_the_environment_names():
    program = "import convkern.cli as cli; cli.main(['--help'])"
    done = python(program, CONVKERN_ISA="nonsense")
    assert (done.returncode, done.stderr) == (0, "")


def test_info_shows_the_configuration(capsys):
    code, out, err = outcome(capsys, "info")
    assert (code, err) == (0, "")
    for value in (ck.__version__, ck.isa(), np.__version__, *ck.available_isas()):
        assert value in out


@pytest.mark.parametrize("command", ["bench", "info"])
def test_missing_extra(command, capsys, monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "rich"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "rich", None)
    assert "pip install 'convkern[cli]'" in fails(capsys, command)


def test_missing_matplotlib(tiny, capsys, monkeypatch, tmp_path):
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(sys.modules, "convkern.cli._plot", raising=False)
    monkeypatch.delattr("convkern.cli._plot", raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    line = fails(capsys, "bench", "--plot", tmp_path / "figure.png")
    assert "pip install 'convkern[cli]'" in line


def test_bench_unknown_isa(tiny, capsys):
    line = fails(capsys, "bench", "--isa", "mmx")
    assert "mmx" in line
    assert "avx2" in line


def test_bench_leaves_the_isa_as_it_was(tiny, capsys):
    before = ck.isa()
    assert outcome(capsys, "bench", "--quick", "--isa", "scalar")[0] == 0
    assert ck.isa() == before


@pytest.mark.parametrize("option", ["--json", "--plot"])
@pytest.mark.parametrize("path", ["missing/file.png", "."])
def test_bench_unwritable_path(option, path, capsys, monkeypatch, tmp_path):
    if option == "--plot":
        pytest.importorskip("matplotlib")
    monkeypatch.setattr("convkern.cli._measure.measure", must_not_run)
    assert "cannot write" in fails(capsys, "bench", option, tmp_path / path)


def test_bench_unknown_image_type(capsys, monkeypatch, tmp_path):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr("convkern.cli._measure.measure", must_not_run)
    assert "png" in fails(capsys, "bench", "--plot", tmp_path / "figure.doc")
    assert list(tmp_path.iterdir()) == []


def must_not_run(*arguments):
    raise AssertionError("measured before the paths were checked")


def test_bench_interrupted(tiny, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr("convkern.cli._measure.measure", interrupt)
    code, _, err = outcome(capsys, "bench", "--json", tmp_path / "numbers.json")
    assert code == 130
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def interrupt(*arguments):
    raise KeyboardInterrupt


def test_bench_wrong_result(tiny, capsys, monkeypatch, tmp_path):
    right = ck.naive.separable_conv2d

    def wrong(*arrays, out, **options):
        right(*arrays, out=out, **options)
        out[-1, -1, -1] += 2.0**-10

    monkeypatch.setattr(ck.naive, "separable_conv2d", wrong)
    path = tmp_path / "numbers.json"
    code, _, err = outcome(capsys, "bench", "--quick", "--json", path)
    assert code == 1
    assert "WRONG RESULT" in err
    assert "4->8 @7" in err
    assert not path.exists()


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Run a whole bench once; its stdout, JSON and PNG."""
    pytest.importorskip("matplotlib")
    folder = tmp_path_factory.mktemp("bench")
    numbers, figure = folder / "numbers.json", folder / "figure.png"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench, "run", partial(bench.run, blocks=TINY))
        with open(folder / "stdout", "w+") as stdout:
            patch.setattr(sys, "stdout", stdout)
            assert main(["bench", "--quick", "--json", str(numbers), "--plot", str(figure)]) == 0
    return (folder / "stdout").read_text(), json.loads(numbers.read_text()), figure.read_bytes()


def test_bench_begins_and_ends_with_a_sentence(written):
    first, *_, last = written[0].strip().splitlines()
    assert first.startswith("Timing 3 separable blocks")
    assert ck.isa() in first
    assert last.startswith("A separable convolution is ")
    assert last.endswith(".")


def test_bench_table_has_every_block(written):
    for block in TINY:
        assert re.search(rf"^ *{re.escape(block.name)} .*\d/20", written[0], re.MULTILINE)


def test_bench_table_fits_80_columns(written, capsys):
    from rich.console import Console

    wide = {"block": "512->1024 @14 s2", "fast_ratio": 10.5, "naive_ratio": 10.5, "gflops": 1234.5}
    wide |= {"cross_ratio": 1234.5, "separable_ms": 10.5, "peak_fraction": 1.0}
    wide |= {"standard_peak_fraction": 1.0, "rounds": 100, "quiet_rounds": 100}
    rows = [{**row, **wide} for row in written[1]["rows"]]
    Console(width=80).print(bench._table({"rows": rows}))
    assert "…" not in capsys.readouterr().out


def test_bench_json_says_where_and_when(written):
    report = written[1]
    assert set(report) == {"machine", "rounds", "date", "rows"}
    machine = report["machine"]
    assert machine["isa"] == ck.isa()
    assert machine["threads"] == 1
    assert machine["peak_gflops"] > 0
    assert machine["versions"]["numpy"] == np.__version__
    assert re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d\d:\d\d", report["date"])


def test_bench_json_rows(written):
    report = written[1]
    for row, block in zip(report["rows"], TINY, strict=True):
        assert set(row) >= ROW_KEYS
        assert row["block"] == block.name
        sizes = [row[key] for key in ("m", "n", "size", "stride", "k")]
        assert sizes == [block.m, block.n, block.size, block.stride, block.k]
        assert row["predicted"] == pytest.approx(cost.speedup(block.n, block.k), rel=1e-3)
        assert row["rounds"] == report["rounds"] == 20
        assert 0 <= row["quiet_rounds"] <= row["rounds"]
        numbers = [value for value in row.values() if isinstance(value, float)]
        assert all(math.isfinite(value) and value > 0 for value in numbers)


def test_bench_plot_is_an_image(written):
    image = pytest.importorskip("PIL.Image")
    with image.open(io.BytesIO(written[2])) as figure:
        assert figure.format == "PNG"
        pixels = np.asarray(figure.convert("RGB"))
    assert pixels.shape[1] >= 1000
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 10


def test_blocks_of_mobilenet_v1():
    """The nine distinct separable blocks: each continues the one before at the size it left."""
    assert len(set(MOBILENET_V1)) == 9
    channels, size = 32, 112
    for block in MOBILENET_V1:
        assert (block.m, block.size, block.k) == (channels, size, 3)
        channels, size = block.n, size // block.stride
    assert (channels, size) == (1024, 7)


def test_measure_interleaves_and_spreads_the_naive_rounds():
    samples = list(measure(TINY, rounds=6, naive_rounds=2))
    assert [s.block for s in samples] == 6 * list(TINY)
    naive = ["naive_standard" in s.seconds for s in samples]
    assert naive == [i // len(TINY) in (0, 3) for i in range(len(samples))]


def test_measure_checks_before_the_second_round(monkeypatch):
    right = ck.naive.conv2d
    monkeypatch.setattr(ck.naive, "conv2d", lambda *a, out, **o: out.fill(right(*a, **o).min()))
    with pytest.raises(WrongResultError, match="standard"):
        list(measure(TINY, rounds=1, naive_rounds=1))


def made_up(ghz, standard, separable=1e-3, naive=None):
    seconds = {"standard": standard, "separable": separable}
    if naive:
        seconds |= {"naive_standard": naive, "naive_separable": 0.1}
    return Sample(TINY[0], ghz, 10.0, seconds)


def test_summary_takes_medians_of_paired_ratios_over_quiet_rounds():
    quiet = [
        made_up(4.0, 6e-3, naive=0.8),
        made_up(3.9, 14e-3, separable=2e-3),
        made_up(3.7, 8e-3),
    ]
    contended = [made_up(2.0, 90e-3), made_up(1.9, 80e-3)]
    (row,) = summarize([contended[0], *quiet, contended[1]])
    assert (row["rounds"], row["quiet_rounds"]) == (5, 3)
    assert row["fast_ratio"] == pytest.approx(median([6, 7, 8]))
    assert row["fast_ratio_all_rounds"] == pytest.approx(median([6, 7, 8, 80, 90]))
    assert row["standard_ms"] == pytest.approx(8)
    assert row["naive_ratio"] == pytest.approx(8)
    assert row["cross_ratio"] == pytest.approx(800)
    macs = TINY[0].costs()["separable"].macs
    assert row["peak_fraction"] == pytest.approx(2e-9 * macs / 1e-3 / 10)


def test_summary_without_quiet_rounds_takes_all():
    samples = [made_up(4.0, 6e-3, naive=0.8), *[made_up(1.0, 9e-3) for _ in range(4)]]
    (row,) = summarize(samples)
    assert row["quiet_rounds"] == 1
    assert row["fast_ratio"] == pytest.approx(9)


def test_verdict_counts_the_blocks_that_fall_short():
    rows = [{"predicted": 8.0, "fast_ratio": ratio} for ratio in (4.0, 7.0, 8.0)]
    assert "7.0 times" in bench.verdict(rows)
    assert "0.50 to 1.00" in bench.verdict(rows)
    assert "1 of 3 blocks below" in bench.verdict(rows)
    assert "none of 2 blocks below" in bench.verdict(rows[1:])
