"""Choosing an instruction set and a number of threads; what show_config says."""

import json

import numpy as np
import pytest
from cases import EXAMPLES, example, python

import convkern as ck

TOKENS = {"scalar", "sse2", "avx2", "avx512", "neon", "amx"}


def test_available_isas():
    isas = ck.available_isas()
    assert isinstance(isas, tuple)
    assert isas[0] == "scalar"
    assert set(isas) <= TOKENS
    assert len(set(isas)) == len(isas)
    assert ck.isa() in isas


def test_fastest_isa_is_the_default():
    done = python("import convkern as ck; print(ck.isa() == ck.available_isas()[-1])")
    assert done.stdout == "True\n", done.stderr


@pytest.mark.parametrize("name", ck.available_isas())
def test_use_isa_sets_now_and_restores(name):
    before = ck.isa()
    with ck.use_isa(name):
        assert ck.isa() == name
        with ck.use_isa("scalar"):
            assert ck.isa() == "scalar"
        assert ck.isa() == name
    assert ck.isa() == before
    undo = ck.use_isa(name)
    assert ck.isa() == name
    with undo:
        assert ck.isa() == name
    assert ck.isa() == before


def test_use_isa_restores_after_an_error():
    before = ck.isa()
    with pytest.raises(KeyError), ck.use_isa("scalar"):
        raise KeyError
    assert ck.isa() == before


@pytest.mark.parametrize("name", ["", "AVX2", "avx", "mmx", "avx2 ", "scalar\0"])
def test_unknown_isa(name):
    before = ck.isa()
    with pytest.raises(ValueError, match="scalar") as raised:
        ck.use_isa(name)
    assert repr(name) in str(raised.value)
    assert ck.isa() == before


@pytest.mark.parametrize("name", [None, 1, b"avx2", ["avx2"]], ids=repr)
def test_isa_is_a_string(name):
    with pytest.raises((TypeError, ValueError)):
        ck.use_isa(name)


@pytest.mark.parametrize("name", sorted(TOKENS - set(ck.available_isas())))
def test_isa_that_the_cpu_lacks(name):
    before = ck.isa()
    with pytest.raises(RuntimeError, match=name) as raised:
        ck.use_isa(name)
    for available in ck.available_isas():
        assert available in str(raised.value)
    assert ck.isa() == before
    done = python("import convkern as ck; ck.isa()", CONVKERN_ISA=name)
    assert "RuntimeError" in done.stderr
    assert "scalar" in done.stderr


def test_environment_names_an_unknown_isa():
    done = python("import convkern as ck; ck.isa()", CONVKERN_ISA="nonsense")
    assert done.returncode == 1
    assert "ValueError" in done.stderr
    assert "nonsense" in done.stderr


@pytest.mark.parametrize("name", ck.available_isas())
def test_environment_forces_an_isa(name):
    program = "import convkern as ck; print(ck.isa(), ck.show_config('dicts')['isa'])"
    assert python(program, CONVKERN_ISA=name).stdout.split() == [name, name]


def test_empty_environment_is_none():
    done = python(
        "import convkern as ck; print(ck.isa() == ck.available_isas()[-1])", CONVKERN_ISA=""
    )
    assert done.stdout == "True\n", done.stderr


@pytest.mark.parametrize("name", EXAMPLES)
def test_isas_agree_on_integers(name):
    made = example(name, data="integers")
    with ck.use_isa("scalar"):
        want = made.run()
    for isa in ck.available_isas():
        with ck.use_isa(isa):
            np.testing.assert_array_equal(made.run(), want)


def test_layer_outlives_its_isa():
    made = example("separable_3x3")
    layers = {}
    for isa in ck.available_isas():
        with ck.use_isa(isa):
            layers[isa] = made.layer(), made.run()
    for isa in ck.available_isas():
        with ck.use_isa(isa):
            want = made.run()
            for layer, packed_then in layers.values():
                y = layer(made.x)
                assert any(np.array_equal(y, w) for w in (want, packed_then))


def test_threads():
    before = ck.get_num_threads()
    assert before >= 1
    assert ck.set_num_threads(before) == before
    assert ck.get_num_threads() == before


@pytest.mark.parametrize("n", [0, -1, 1.5, "2", None, 2**64], ids=repr)
def test_bad_number_of_threads(n):
    before = ck.get_num_threads()
    with pytest.raises((ValueError, TypeError, OverflowError)):
        ck.set_num_threads(n)
    if n == 0:
        with pytest.raises(ValueError, match="0"):
            ck.set_num_threads(0)
    assert ck.get_num_threads() == before


def test_config(capsys):
    config = ck.show_config("dicts")
    assert capsys.readouterr().out == ""
    assert set(config) >= {
        "version",
        "isa",
        "available_isas",
        "cpu",
        "compiler",
        "threads",
        "numpy",
    }
    assert set(config["cpu"]) >= {"name", "features", "l1d_bytes", "l2_bytes", "cores"}
    assert config["version"] == ck.__version__
    assert config["isa"] == ck.isa()
    assert tuple(config["available_isas"]) == ck.available_isas()
    assert config["numpy"] == np.__version__
    json.dumps(config)
    ck.show_config()
    printed = capsys.readouterr().out
    for word in (ck.__version__, ck.isa(), config["cpu"]["name"]):
        assert word in printed


def test_bad_config_mode():
    with pytest.raises(ValueError, match="mode"):
        ck.show_config("xml")


def test_probes_are_positive():
    assert ck.runtime.cpu_name()
    assert 0.01 < ck.runtime.fma_peak_gflops() < 10_000
    assert 0.1 < ck.runtime.nop_rate_ghz() < 1_000


def test_public_names_are_importable_and_typed():
    for name in ck.__all__:
        assert getattr(ck, name) is not None


def test_import_leaves_floating_point_alone():
    done = python("import convkern, numpy as np; print(np.float32(1e-40) * np.float32(1) > 0)")
    assert done.stdout == "True\n", done.stderr


def test_import_needs_only_numpy():
    program = (
        "import sys, convkern; print(sorted({m.split('.')[0] for m in sys.modules}"
        " & {'torch', 'onnxruntime', 'rich', 'matplotlib', 'PIL', 'scipy', 'pytest'}))"
    )
    assert python(program).stdout == "[]\n"


def test_fork_after_use():
    program = (
        "import os, numpy as np, convkern as ck\n"
        "x, w = np.ones((1, 64, 64, 8), np.float32), np.ones((8, 8), np.float32)\n"
        "want = ck.pointwise_conv2d(x, w, threads=2)\n"
        "pid = os.fork()\n"
        "same = (ck.pointwise_conv2d(x, w, threads=2) == want).all()\n"
        "if not pid: os._exit(0 if same else 1)\n"
        "print(os.waitpid(pid, 0)[1], same)\n"
    )
    assert python(program).stdout == "0 True\n"


def test_same_bits_in_another_process():
    program = (
        "from cases import example\n"
        "print(example('separable_3x3', activation='silu').run().tobytes().hex())\n"
    )
    done = python(program, CONVKERN_ISA=ck.isa())
    assert done.stdout.strip() == example("separable_3x3", activation="silu").run().tobytes().hex()
