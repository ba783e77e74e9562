"""The one extension; everything else is in pyproject.toml."""

import sys
from pathlib import Path

import numpy
from Cython.Build import cythonize
from setuptools import Extension, setup

CSRC = Path("csrc")
HEADERS = sorted(str(p) for p in CSRC.rglob("*") if p.suffix in {".h", ".inc"})
SOURCES = sorted(str(p) for p in CSRC.glob("ck_*.c"))

# Without -ffp-contract=off scalar tails would round differently from vectors. Never -march=native:
# each ISA is a target region of its own file, chosen at run time.
FLAGS = ["-std=gnu11", "-O3", "-ffp-contract=off", "-fvisibility=hidden", "-g0", "-Wall"]
THREADS = ["-pthread"]  # part of the C library only since glibc 2.34

core = Extension(
    "convkern._core",
    ["convkern/_core.pyx", *SOURCES],
    include_dirs=[str(CSRC), numpy.get_include()],
    depends=HEADERS,
    define_macros=[("NPY_NO_DEPRECATED_API", "NPY_1_20_API_VERSION")],
    extra_compile_args=FLAGS + THREADS if sys.platform != "win32" else [],
    extra_link_args=THREADS if sys.platform != "win32" else [],
    libraries=["m"] if sys.platform != "win32" else [],
)

setup(ext_modules=cythonize([core], build_dir="build"))
