"""The wires for device memory, as far as a machine without a device can tell.

With one, scripts/test-gpu runs tests/ranks/gpu_wires.py.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys

import numpy as np
import pytest
from cuda_device import missing
from hypothesis import given, settings
from hypothesis import strategies as st
from launchers import ROOT, mpirun, run

from mpisign.transports.pool import Pool

RANKS = ROOT / "tests" / "ranks"
PATH = {"PYTHONPATH": str(ROOT / "tests"), "OMP_NUM_THREADS": "1"}


def place(x):
    return x.__array_interface__["data"][0]


steps = st.lists(
    st.one_of(
        st.lists(st.one_of(st.integers(0, 3000), st.integers(0, 3 << 20)), max_size=5),
        st.integers(0, 100),
    ),
    max_size=60,
)


@settings(max_examples=150, deadline=None)
@given(steps)
def test_no_two_live_slices_overlap(steps):
    blocks, live = [], []
    pool = Pool(lambda n: blocks.append(np.empty(n, np.uint8)) or blocks[-1])
    for step in steps:
        if isinstance(step, list):
            lease = pool.take(step)
            assert [s.nbytes for s in lease.slices] == step
            live.append(lease)
        elif live:
            live.pop(step % len(live)).give_back()
        ranges = sorted(
            (place(s), place(s) + s.nbytes) for held in live for s in held.slices if s.size
        )
        assert all(past <= first for (_, past), (first, _) in zip(ranges, ranges[1:], strict=False))
        inside = [(place(b), place(b) + b.nbytes) for b in blocks]
        assert all(any(a <= f and p <= b for a, b in inside) for f, p in ranges)
    assert pool.nbytes == sum(b.nbytes for b in blocks)
    while live:
        live.pop().give_back()
    # All given back and all gaps joined: the largest block is whole again, and nothing grows.
    if blocks:
        count = len(blocks)
        whole = pool.take([max(b.nbytes for b in blocks)])
        assert len(blocks) == count
        whole.give_back()


def test_the_same_exchanges_again_take_no_more_memory():
    grown = []
    pool = Pool(lambda n: grown.append(n) or np.empty(n, np.uint8))
    for _ in range(100):
        leases = [pool.take([n, 0, 7]) for n in (5000, 3 << 20, 1)]
        for lease in leases:
            lease.give_back()
            lease.give_back()  # once is enough, twice does no harm
    assert len(grown) <= 3
    # Needs that grow by a little each time: a logarithmic number of allocations.
    pool.take([50 << 20])
    for i in range(1000):
        pool.take([(1 << 16) * (i % 7)])
    assert len(grown) < 12


def test_what_allocation_raises_leaves_the_pool_as_it_was():
    left = [1 << 21]

    def allocate(n):
        if n > left[0]:
            raise MemoryError(f"{n} bytes of pinned memory")
        return np.empty(n, np.uint8)

    pool = Pool(allocate)
    first = pool.take([1 << 20])
    with pytest.raises(MemoryError, match="pinned"):
        pool.take([1 << 22])
    first.give_back()
    assert pool.take([1 << 20]).slices[0].base is not None
    assert pool.nbytes == 1 << 20


def test_memory_goes_with_the_pool():
    import weakref

    gone = []

    class Block(np.ndarray):
        pass

    def allocate(n):
        block = np.empty(n, np.uint8).view(Block)
        weakref.finalize(block, gone.append, n)
        return block

    pool = Pool(allocate)
    lease = pool.take([100])
    kept = lease.slices[0]
    del pool, lease
    assert not gone  # the wire may still write there
    del kept
    assert gone == [1 << 20]


@pytest.mark.mpi
@pytest.mark.parametrize("n", [1, 2, 3])
def test_staging_over_mpi(n):
    result = mpirun(n, sys.executable, "-m", "mpi4py", RANKS / "gpu_staged.py", env=PATH)
    assert f"all well at {n} ranks" in result.stdout


@pytest.mark.mpi
@pytest.mark.parametrize("n", [1, 2, 3])
def test_mpi_on_addresses(n):
    result = mpirun(n, sys.executable, "-m", "mpi4py", RANKS / "gpu_cuda_mpi.py", env=PATH)
    assert f"all well at {n} ranks" in result.stdout


def asks(n, *settings, env=None):
    script = [sys.executable, "-m", "mpi4py", RANKS / "gpu_asks.py", *settings]
    output = mpirun(n, *script, env={**PATH, **(env or {})}).stdout
    told = re.findall(r"^together: (.*)$", output, re.MULTILINE)
    return re.findall(r"^library: (.*)$", output, re.MULTILINE)[0], *told


@pytest.mark.mpi
def test_a_person_is_believed_and_the_least_of_all_ranks_counts():
    no = "this MPI library is built without CUDA"
    assert asks(3, "auto", "1", "1,1,0", "1,auto,1", "1,yes,0") == (
        f"False {no}",
        f"False rank 0: {no}",
        "True MPISIGN_CUDA_MPI=1",
        "False rank 2: MPISIGN_CUDA_MPI=0",
        f"False rank 1: {no}",
        "ValueError: rank 1: MPISIGN_CUDA_MPI must be auto, 1 or 0",
    )


@pytest.mark.mpi
@pytest.mark.parametrize("variable", ["MPICH_GPU_SUPPORT_ENABLED", "MV2_USE_CUDA"])
@pytest.mark.skipif(missing() is None, reason="of a machine without a device")
def test_a_yes_without_a_device_is_a_no(variable):
    library, together = asks(2, env={variable: "1"})
    assert library == f"True {variable}=1"
    assert together == "False rank 0: no CUDA device can be used"


@pytest.mark.mpi
@pytest.mark.skipif(missing() is None, reason="of a machine without a device")
def test_the_false_yes_of_a_cuda_aware_open_mpi(cuda_mpi):
    """It answers 1 where libcuda is missing: this one was tried, on such a machine."""
    program, env = cuda_mpi
    script = [sys.executable, "-m", "mpi4py", RANKS / "gpu_asks.py"]
    passed = [part for name in env if name != "PATH" for part in ("-x", name)]
    output = run([program, "-np", "2", "--oversubscribe", *passed, *script], env=env).stdout
    assert "library: True MPIX_Query_cuda_support says yes" in output
    assert "together: False rank 0: no CUDA device can be used" in output


@pytest.fixture(scope="session")
def cuda_mpi(tmp_path_factory):
    """The CUDA-aware Open MPI that lies beside the project: its mpirun, and its environment."""
    archives = sorted((ROOT.parent / "shared" / "cuda-mpi").glob("openmpi-*-cuda.tar.xz"))
    if not archives:
        pytest.skip("no CUDA-aware MPI here: ../shared/cuda-mpi/openmpi-*-cuda.tar.xz")
    folder = tmp_path_factory.mktemp("cuda-mpi")
    subprocess.run(["tar", "xJf", archives[-1], "-C", folder], check=True)
    prefix = folder / "ompi-cuda"
    return prefix / "bin" / "mpirun", {
        "OPAL_PREFIX": str(prefix),
        "PATH": f"{prefix}/bin:{os.environ['PATH']}",
        "LD_LIBRARY_PATH": f"{prefix}/lib",
        **PATH,
    }


@pytest.mark.mpi
@pytest.mark.parametrize(
    ("kinds", "yes"),
    [
        ("", False),
        ("mpi,system", False),
        ("system,cuda", True),
        ("system, cuda:device:managed", True),
        ("cuda:host", False),
        ("cuda:managed,mpi", False),
        ("xcuda,cudax", False),
    ],
)
def test_the_list_of_kinds_of_memory(kinds, yes):
    pytest.importorskip("mpi4py.MPI", exc_type=Exception)
    from mpisign.transports import cuda_mpi

    assert cuda_mpi._has_cuda(kinds) is yes


@pytest.mark.mpi
@pytest.mark.parametrize(
    ("test", "n"),
    [
        *(("everything", n) for n in (1, 2, 4)),
        *(("lacking", 3), ("absent", 3), ("stuck", 2), ("old_cupy", 2), ("ends", 2)),
    ],
)
def test_nccl(test, n):
    script = RANKS / "gpu_nccl.py"
    result = mpirun(n, sys.executable, "-m", "mpi4py", script, test, env=PATH)
    assert f"{test}: all well at {n} ranks" in result.stdout


@pytest.fixture
def real_nccl():
    """cupy.cuda.nccl, which can be asked for ids and names without a device."""
    from mpisign.transports import nccl_start

    try:
        return nccl_start.load()
    except ImportError as error:
        pytest.skip(str(error))


def test_names_and_arguments_are_those_of_cupy(real_nccl):
    import inspect

    pytest.importorskip("mpi4py.MPI", exc_type=Exception)
    import nccl_on_host as played

    for name in ("send", "recv", "allReduce", "commSplit", "check_async_error", "abort", "destroy"):
        real = getattr(real_nccl.NcclCommunicator, name).__doc__.splitlines()[0]
        real = re.findall(r"(\w+)(?:=\w+)?(?=[,)])", real.partition("(")[2])
        assert list(inspect.signature(getattr(played.NcclCommunicator, name)).parameters) == real
    for name in ("NCCL_UINT8", "NCCL_FLOAT32", "NCCL_FLOAT64", "NCCL_SUM"):
        assert getattr(played, name) == getattr(real_nccl, name)
    assert real_nccl.groupStart.__doc__ and real_nccl.groupEnd.__doc__


@pytest.mark.mpi
@pytest.mark.skipif(missing() is None, reason="of a machine without a device")
def test_nccl_itself_says_why_it_does_not_start(real_nccl):
    script = RANKS / "gpu_nccl.py"
    folders = os.environ.get("LD_LIBRARY_PATH", "")
    path = f"{PATH['PYTHONPATH']}:{os.environ.get('PYTHONPATH', '')}"
    env = {**PATH, "LD_LIBRARY_PATH": folders, "PYTHONPATH": path}
    result = mpirun(2, sys.executable, "-m", "mpi4py", script, "deviceless", env=env)
    assert "deviceless: all well at 2 ranks" in result.stdout
