"""Fixtures of more than one file."""

from __future__ import annotations

import os
import shutil

import pytest
from alone import Alone
from cuda_device import DeviceLauncher, missing
from cuda_on_cpu.fibres import FibreLauncher, build
from cuda_on_cpu.gpu import Gpu

#: Files of minutes. Under pytest-xdist, which deals files out in this order, they go first.
LONG = ("test_promises", "test_horovod", "test_ranks", "test_train", "test_bench_collectives")


def pytest_configure(config):
    if hasattr(config, "workerinput"):
        config.pluginmanager.register(Alone(config.workerinput["testrunuid"]))


def pytest_collection_modifyitems(config, items):
    """Leaves out what is marked many, unless MPISIGN_TEST_ALL=1 asks for everything."""
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: LONG.index(s) if (s := item.path.stem) in LONG else len(LONG))
    if os.environ.get("MPISIGN_TEST_ALL") == "1":
        return
    for item in items:
        if item.get_closest_marker("many"):
            item.add_marker(pytest.mark.skip(reason="takes long: MPISIGN_TEST_ALL=1"))


@pytest.fixture(scope="session")
def cuda_library(request):
    """kernels/*.cu as a library for this processor; about 15 seconds of g++ the first time."""
    if shutil.which("g++") is None:
        pytest.skip("needs g++")
    return build(request.config.cache.mkdir("cuda_on_cpu"))


@pytest.fixture
def gpu(request):
    """The CUDA kernels: run on the CPU by fibres, or on a device under MPISIGN_TEST_CUDA=1."""
    if os.environ.get("MPISIGN_TEST_CUDA"):
        if missing():
            pytest.skip(str(missing()))
        made = Gpu(DeviceLauncher())
    else:
        made = Gpu(FibreLauncher(request.getfixturevalue("cuda_library")))
    yield made
    made.launcher.forget()


@pytest.fixture
def sampling():
    """``mpisign.stats()`` while every vote is looked at."""
    import mpisign.log

    mpisign.stats().reset()
    mpisign.log.sample_votes(1)
    yield mpisign.stats()
    mpisign.log.sample_votes(0)
    mpisign.stats().reset()
