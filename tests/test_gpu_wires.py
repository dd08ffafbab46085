"""The wires for device memory, as far as a machine without a device can tell.

With one, scripts/test-gpu runs tests/ranks/gpu_wires.py.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from cuda_device import missing
from launchers import PYTEST, RANKS, ROOT, on_ranks, run, with_tests
from wires import start

ALL_WELL = {
    1: {"staged": [], "by address": [], "nccl": ["everything"]},
    2: {"nccl": ["everything", "old_cupy", "ends", "stuck", "channel", "two_devices"]},
    3: {"staged": [], "by address": [], "nccl": ["lacking", "absent"]},
    4: {"nccl": ["everything"]},
}
SCRIPTS = {"staged": "gpu_staged.py", "by address": "gpu_cuda_mpi.py", "nccl": "gpu_nccl.py"}


@pytest.mark.mpi
@pytest.mark.parametrize("n", [1, 2, 3, pytest.param(4, marks=pytest.mark.many)])
def test_wires_of_a_played_device(n):
    """Staging, MPI on addresses, NCCL: the scripts in one job."""
    jobs = [["+", SCRIPTS[wire], *tests] for wire, tests in ALL_WELL[n].items()]
    output = on_ranks(n, RANKS / "several.py", *sum(jobs, [])[1:])
    for wire, tests in ALL_WELL[n].items():
        for name in [f"{wire}: {test}" for test in tests] or [wire]:
            assert f"{name}: all well at {n} ranks" in output, name


def asks(n, *settings, env=None):
    output = on_ranks(n, RANKS / "gpu_asks.py", *settings, env=env)
    answers = re.findall(r"^together: (.*)$", output, re.MULTILINE)
    return re.findall(r"^library: (.*)$", output, re.MULTILINE)[0], *answers


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
    folders = [os.environ.get("MPISIGN_TEST_SHARED"), ROOT / "shared", ROOT.parent / "shared"]
    archives = [a for f in folders if f for a in Path(f).glob("cuda-mpi/openmpi-*-cuda.tar.xz")]
    if not archives:
        pytest.skip("no CUDA-aware MPI here: ../shared/cuda-mpi/openmpi-*-cuda.tar.xz")
    folder = tmp_path_factory.mktemp("cuda-mpi")
    subprocess.run(["tar", "xJf", archives[0], "-C", folder], check=True)
    prefix = folder / "ompi-cuda"
    return prefix / "bin" / "mpirun", {
        "OPAL_PREFIX": str(prefix),
        "PATH": f"{prefix}/bin:{os.environ['PATH']}",
        "LD_LIBRARY_PATH": f"{prefix}/lib:{os.environ.get('LD_LIBRARY_PATH', '')}",
        **with_tests(),
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
    output = on_ranks(2, RANKS / "gpu_nccl.py", "deviceless")
    assert "deviceless: all well at 2 ranks" in output


@pytest.mark.mpi
@pytest.mark.parametrize(
    ("wire", "tests"),
    [
        ("staged-played", ["exchanges", "votes", "path", "optimizer"]),
        ("nccl-played", ["exchanges", "votes", "path"]),  # torch has no device to play
    ],
)
def test_what_a_device_will_be_asked(wire, tests):
    """tests/ranks/gpu_wires.py itself, so that it does not meet its first error on a GPU."""
    output = on_ranks(3, RANKS / "gpu_wires.py", wire, *tests, timeout=240)
    assert all(f"{wire}: {test}: all well at 3 ranks" in output for test in tests)
    assert "of copy" in output  # path's table


@pytest.mark.gpu
@pytest.mark.mpi
@pytest.mark.skipif(missing() is not None, reason=str(missing()))
@pytest.mark.parametrize("test", ["exchanges", "votes", "front_end", "optimizer", "path"])
@pytest.mark.parametrize("wire", ["staged", "cuda-mpi", "nccl"])
def test_on_a_device(wire, test, request, capsys):
    """Four ranks on one device: correctness only. The path is one rank's, and is timed."""
    pytest.importorskip("mpi4py")
    script = [sys.executable, "-m", "mpi4py", RANKS / "gpu_wires.py", wire, test]
    n = 1 if test == "path" else 4
    if wire == "nccl":
        request.getfixturevalue("real_nccl")
    if wire == "cuda-mpi":
        program, env = request.getfixturevalue("cuda_mpi")
        passed = [part for name in env if name != "PATH" for part in ("-x", name)]
        command = [program, "-np", n, "--oversubscribe", "--bind-to", "none", *passed, *script]
        output = run(command, env=env, timeout=240).stdout
    else:
        output = on_ranks(n, *script[3:], timeout=240)
    assert f"{wire}: {test}: all well at {n} ranks" in output
    with capsys.disabled():
        print("\n" + output)


@pytest.mark.mpi
@pytest.mark.parametrize(
    ("wire", "n", "on_it"),
    [
        *(("mpi", 3, on_it) for on_it in ("staged", "nccl")),
        *(pytest.param("mpi", 1, on_it, marks=pytest.mark.many) for on_it in ("staged", "nccl")),
        pytest.param("mpi", 5, "staged", marks=pytest.mark.many),
        pytest.param("mpi", 5, "nccl", marks=pytest.mark.many),
        pytest.param("torch", 2, "staged", marks=pytest.mark.many),
        pytest.param("horovod-gloo", 2, "staged", marks=pytest.mark.many),
    ],
)
def test_the_suite_of_all_wires(wire, n, on_it, tmp_path, monkeypatch):
    monkeypatch.setenv("MPISIGN_TEST_ON_IT", on_it)
    output = start(wire, n, [*PYTEST, RANKS / "gpu_transports.py"], tmp_path)
    assert output.count(" passed") == n, output


def picks(n, *settings, **env):
    output = on_ranks(n, RANKS / "gpu_picks.py", *settings, env=env)
    return re.findall(r"^picked: (.*)$", output, re.M)


@pytest.mark.mpi
@pytest.mark.skipif(missing() is None, reason="of a machine without a device")
def test_the_wire_that_is_picked():
    no = "rank 0 has no NCCL; MPI is not CUDA-aware: rank 0: this MPI library is built without CUDA"
    must = "MPISIGN_DEVICE_WIRE must be auto, nccl, mpi, staged, torch, as on rank 0"
    assert picks(
        2, "auto", "nccl", "mpi", "staged", "other auto", "auto,nccl", "nvlink", "torch"
    ) == [
        f"mpi, staged of 2 for cuda: {no}",
        "nccl of 2 for cuda: MPISIGN_DEVICE_WIRE=nccl",
        "mpi, staged of 2 for cuda: MPISIGN_DEVICE_WIRE=mpi; MPI is not CUDA-aware: "
        "rank 0: this MPI library is built without CUDA",
        "mpi, staged of 2 for cuda: MPISIGN_DEVICE_WIRE=staged",
        "subgroup, staged of 2 for cuda: rank 0 has no NCCL, and subgroup takes host memory only",
        f"ValueError: rank 1: {must}",
        f"ValueError: rank 0: {must}",
        "ValueError: rank 0: MPISIGN_DEVICE_WIRE=torch needs torch's NCCL and a torch group",
    ]
    assert picks(2, "auto", MPISIGN_CUDA_MPI="1") == [
        "cuda-mpi of 2 for cuda: rank 0 has no NCCL; MPISIGN_CUDA_MPI=1"
    ]
