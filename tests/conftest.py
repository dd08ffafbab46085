"""Fixtures of more than one file."""

from __future__ import annotations

import pytest
from cuda_on_cpu.fibres import FibreLauncher, build
from cuda_on_cpu.gpu import Gpu


@pytest.fixture(scope="session")
def cuda_library(request):
    """kernels/*.cu as a library for this processor; about 15 seconds of g++ the first time."""
    return build(request.config.cache.mkdir("cuda_on_cpu"))


@pytest.fixture
def gpu(cuda_library):
    """The CUDA kernels, run on the CPU by fibres."""
    made = Gpu(FibreLauncher(cuda_library))
    yield made
    made.launcher.forget()
