"""Fixtures of all tests."""

import pytest
from cases import DATA, ISAS, LAYOUTS

import convkern as ck


@pytest.fixture(params=ISAS, scope="module")
def isa(request):
    """Force an instruction set: each that the CPU has, or the one of ``CONVKERN_ISA``."""
    with ck.use_isa(request.param):
        yield request.param


@pytest.fixture(params=DATA)
def data(request):
    """Kind of data: integers must come out exact, real numbers within the error bound."""
    return request.param


@pytest.fixture(params=LAYOUTS)
def layout(request):
    """Order of an image's axes."""
    return request.param
