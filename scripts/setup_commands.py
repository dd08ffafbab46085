"""How scripts/setup runs commands: the log, progress, and the environment of .venv."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
LOG = VENV / "setup.log"
STATE = VENV / "setup.json"

# What a log says, and what the reader can do about it.
REMEDIES = [
    (r"Python\.h: No such file", "Python's headers are missing: apt install python3-dev"),
    (r"No CMAKE_CXX_COMPILER|C\+\+ compiler.*not found", "no C++ compiler: apt install g++"),
    (r"error: command '\S*(gcc|cc|clang)\S*' failed: No such", "no C compiler: apt install gcc"),
    (r"Could NOT find MPI", "MPI's compiler wrapper is missing: apt install libopenmpi-dev"),
    (r"Could NOT find CUDAToolkit", "no whole CUDA toolkit: set CUDA_HOME to its folder"),
    (r"ensurepip is not available", "no venv module: apt install python3-venv"),
    (r"No space left on device", "the disk is full: about 3 GB are needed"),
    (r"Killed signal|Cannot allocate memory", "out of memory: MAKEFLAGS=-j1 scripts/setup"),
    (r"NewConnectionError|name resolution", "no network: look at your proxy and `pip config list`"),
    (r"Could not find a version", "the package index lacks this: look at `pip config list`"),
]

stopping = threading.Event()  # ends what runs beside the main thread
state: dict = {}  # the contents of STATE
switches: dict = {}  # of this run, those of earlier ones included


class Failed(Exception):
    """A step that failed, and what the reader can do about it."""


class Console:
    """Progress: a live timer on a terminal, a line every 30 s elsewhere."""

    step = steps = shown = mark = 0  # the last two: positions in the log

    def open(self, stream, verbose: bool) -> None:
        self.stream, self.verbose = stream, verbose
        self.live = stream.isatty() and not verbose

    def say(self, text: str, end: str = "\n") -> None:
        print(text, end=end, file=self.stream, flush=True)

    def begin(self, text: str, about: str = "") -> None:
        self.step += 1
        self.text = f"[{self.step}/{self.steps}] {text}"
        self.since = self.reported = time.monotonic()
        self.about = f" (about {about})" if about else ""
        self.say(f"{self.text}{self.about}", end="" if self.live else "\n")

    def tick(self) -> None:
        if self.verbose:
            log = LOG.read_bytes()
            self.say(log[min(self.shown, len(log)) :].decode(errors="replace"), end="")
            self.shown = len(log)
            return
        now = time.monotonic()
        seconds = f"{now - self.since:.0f} s{log_percentage()}"
        if self.live:
            self.say(f"\r\033[K{self.text}: {seconds}{self.about}", end="")
        elif now - self.reported >= 30:
            self.reported = now
            self.say(f"      still at it, {seconds}")

    def end(self, text: str = "done") -> None:
        line = f"{text}, {time.monotonic() - self.since:.1f} s"
        self.say(f"\r\033[K{self.text}: {line}" if self.live else f"      {line}")


console = Console()


def log_tail(size: int, start: int = 0) -> str:
    data = LOG.read_bytes() if LOG.exists() else b""
    return data[max(start, len(data) - size) :].decode(errors="replace")


def log_percentage() -> str:
    """CMake's own '[ 42%]' or ninja's '[30/73]', where the running command prints them."""
    found = re.findall(r"^\s*\[ *(\d+)(?:%|/(\d+))\]", log_tail(20000, console.mark), re.M)
    if not found:
        return ""
    part, whole = (int(n or 100) for n in found[-1])
    return f", {100 * part // whole}%"


def run(command, env=None, timeout: float = 3600, check: bool = True) -> tuple[int, str]:
    """Runs a command with its output in the log; stops its process group when we are stopped."""
    command = [str(c) for c in command]
    with open(LOG, "ab") as log:
        log.write(f"\n$ {shlex.join(command)}\n".encode())
        log.flush()
        start = log.tell()
        ahead = threading.current_thread() is threading.main_thread()  # whose progress is shown
        if ahead:
            console.mark = start
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=env or tool_env(),
            cwd=ROOT,
            start_new_session=True,
        )
        deadline = time.monotonic() + timeout
        try:
            while child.poll() is None and time.monotonic() < deadline and not stopping.is_set():
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.wait(0.5)
                if ahead:
                    console.tick()
        finally:
            if child.poll() is None:
                stop(child)
                log.write(b"stopped\n")
            if ahead:
                console.tick()
    output = log_tail(sys.maxsize, start)
    if check and child.returncode:
        advice = [f": {advice}" for pattern, advice in REMEDIES if re.search(pattern, output)]
        start = f"{Path(command[0]).name} {' '.join(command[1:4])}"
        raise Failed(f"`{start} ...` failed{''.join(advice[:1])}")
    return child.returncode, output


class Beside(threading.Thread):
    """``function()`` on a thread of its own; ``wait`` shows progress, and raises what it raised."""

    def __init__(self, function) -> None:
        super().__init__(daemon=True)
        self._function, self._error = function, None
        self.start()

    def run(self) -> None:
        try:
            self._function()
        except BaseException as error:  # noqa: BLE001 - raised by wait
            self._error = error

    def wait(self) -> None:
        while self.is_alive():
            self.join(0.5)
            console.tick()
        if self._error:
            raise self._error


def end_what_runs_beside() -> None:
    stopping.set()
    for thread in threading.enumerate():
        if isinstance(thread, Beside):
            thread.join(20)


def stop(child: subprocess.Popen) -> None:
    """First as Ctrl-C does, so that pip and mpirun clean up after themselves."""
    for sig in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
            os.killpg(child.pid, sig)
            child.wait(5)


def works(command, env=None, timeout: float = 180) -> bool:
    return run(command, env, timeout, check=False)[0] == 0


def pip(*args, **kwargs) -> tuple[int, str]:
    command = [PYTHON, "-m", "pip", args[0], "--disable-pip-version-check", "--no-input"]
    if args[0] == "install":
        command.append("--no-compile")  # to .pyc: the first import of a module does it in time
    return run([*command, *args[1:]], **kwargs)


def output_of(*command) -> str:
    """Standard output of a short command that leaves no trace in the log."""
    return subprocess.run([str(c) for c in command], capture_output=True, text=True).stdout


def cores() -> int:
    """The cores that this process may use, as mpirun counts them: without their second threads."""
    found = set()
    for cpu in os.sched_getaffinity(0):
        folder = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology")
        try:
            found.add(tuple((folder / n).read_text() for n in ("physical_package_id", "core_id")))
        except OSError:
            found.add(cpu)
    return len(found)


def launch_env(mpi: str, ranks: int = 4) -> dict[str, str]:
    """What mpirun needs for ``ranks`` ranks or as root; every MPI ignores the others' names."""
    env = {
        "PATH": os.pathsep.join([str(VENV / "bin"), clean_path()]),
        "VIRTUAL_ENV": str(VENV),
        "MPISIGN_MPI": mpi,
    }
    if cores() < ranks:
        env |= {
            "OMPI_MCA_rmaps_base_oversubscribe": "1",
            "OMPI_MCA_hwloc_base_binding_policy": "none",
            "OMPI_MCA_mpi_yield_when_idle": "1",
            "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
            "PRTE_MCA_hwloc_default_binding_policy": "none",
        }
    if os.geteuid() == 0:
        env["OMPI_ALLOW_RUN_AS_ROOT"] = env["OMPI_ALLOW_RUN_AS_ROOT_CONFIRM"] = "1"
    return env


def tool_env(**more: str) -> dict[str, str]:
    dropped = ("PYTHONHOME", "PYTHONPATH", "OPAL_PREFIX", "PIP_TARGET", "PIP_PREFIX", "__PYVENV_L")
    foreign = ("OMPI_COMM_", "PMIX_", "PMI_")
    env = {k: v for k, v in os.environ.items() if k not in dropped and not k.startswith(foreign)}
    if switches.get("mpi_used") == "system" and "OPAL_PREFIX" in os.environ:
        env["OPAL_PREFIX"] = os.environ["OPAL_PREFIX"]
    return {**env, **launch_env(switches.get("mpi_used", "")), "PIP_USER": "0", **more}


def clean_path() -> str:
    """PATH without this .venv, so that 'the system's mpirun' is not our own."""
    folders = os.environ.get("PATH", os.defpath).split(os.pathsep)
    return os.pathsep.join(f for f in folders if f and Path(f).absolute() != VENV / "bin")


def which(name: str) -> str | None:
    return shutil.which(name, path=clean_path())


def site_packages() -> Path | None:
    return next(VENV.glob("lib/python3*/site-packages"), None)


def installed(name: str) -> str | None:
    found = importlib.metadata.distributions(name=name, path=[str(site_packages())])
    return next((dist.version for dist in found), None)


def python_tag(python) -> str:
    code = "import sys, sysconfig; print(sys.version_info[:2], sysconfig.get_config_var('SOABI'))"
    return output_of(python, "-c", code).strip()


def torch_cuda() -> str | None:
    """CUDA's version where torch is a CUDA build."""
    text = (site_packages() / "torch" / "version.py").read_text()
    found = re.search(r"^cuda\b.*=\s*['\"](.+)['\"]", text, re.M)
    return found.group(1) if found else None


def cuda_home() -> Path | None:
    """The toolkit's folder; an nvcc on PATH may be no more than a script that calls another."""
    nvcc = Path(which("nvcc") or "/-/-/-").resolve()
    named = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")]
    folders = [Path(f) for f in [*named, nvcc.parents[1], "/usr/local/cuda"] if f]
    folders = [f for f in folders if (f / "bin" / "nvcc").exists()]
    whole = [f for f in folders if (f / "include" / "cuda_runtime.h").exists()]
    return next(iter(whole + folders), None)


def digest(*parts) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def file_digest(*patterns: str) -> str:
    files = sorted(f for p in patterns for f in ROOT.glob(p))
    return digest([(str(f), hashlib.sha256(f.read_bytes()).hexdigest()) for f in files])


def save_state(**changes) -> None:
    state.update(changes)
    temporary = STATE.with_suffix(".tmp")
    temporary.write_text(json.dumps(state, indent=1, sort_keys=True))
    os.replace(temporary, STATE)
