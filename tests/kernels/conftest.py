"""Every test of a compiled module runs on every instruction set that is built and that this CPU has."""

import pytest

from llamacy import kernels


@pytest.fixture(params=kernels.available())
def isa(request):
    """The name of an instruction set: kernels.load(module, isa) imports its modules."""
    return request.param
