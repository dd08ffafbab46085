"""Builds kernels/*.cu with g++ and launches them in place of a device."""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import mmap
import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from mpisign.backend.cuda import compile as sources

HERE = Path(__file__).parent
FLAGS = ("-std=c++17", "-O1", "-fPIC", "-ffp-contract=off", "-fno-strict-aliasing")
FLAGS += ("-Wno-unknown-pragmas", f"-I{HERE}")
#: Calls into runtime.cpp at each access and wherever C++ leaves behaviour undefined.
CHECKS = ("-fsanitize=kernel-address,undefined", "-fno-sanitize=vptr")
CHECKS += ("--param", "asan-instrumentation-with-call-threshold=0")
CHECKS += ("--param", "asan-stack=0", "--param", "asan-globals=0")


def build(folder: Path, files: list[Path] | None = None) -> ctypes.CDLL:
    """All kernels (or ``files``) in one library; objects stay in ``folder`` for next time."""
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # of several processes that test, one builds
        return _build(folder, files)


def _build(folder: Path, files: list[Path] | None) -> ctypes.CDLL:
    header = (HERE / "cuda_on_cpu.h").read_text()
    runtime = (HERE / "runtime.cpp").read_text()
    flags = (*FLAGS, *CHECKS, "-include", str(HERE / "cuda_on_cpu.h"))
    jobs = [("runtime", runtime + header, runtime, FLAGS)]
    for file in files or sorted(sources.folder().glob("*.cu")):
        text = sources.source(file)
        jobs.append((file.stem, text + header, text, flags))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(lambda job: _object(folder, *job), jobs))
    library = folder / ("kernels-" + _digest("".join(map(str, objects))) + ".so")
    if not library.exists():
        _gxx("-shared", "-o", str(library), *map(str, objects))
    loaded = ctypes.CDLL(str(library))
    loaded.cuda_launch.restype = ctypes.c_char_p
    return loaded


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _object(folder: Path, name: str, key: str, text: str, flags: tuple[str, ...]) -> Path:
    out = folder / f"{name}-{_digest(key + ' '.join(flags))}.o"
    if not out.exists():
        file = out.with_suffix(".cpp")
        file.write_text(text)
        _gxx(*flags, "-c", str(file), "-o", str(out))
    return out


def _gxx(*arguments: str) -> None:
    done = subprocess.run(["g++", *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]


class Buffer:
    """Memory of exactly an array's size that starts ``odd`` bytes behind a multiple of 256."""

    def __init__(self, library: ctypes.CDLL, content: np.ndarray, odd: int = 0) -> None:
        self._memory = np.full(content.nbytes + 512 + odd, 0xA5, dtype=np.uint8)
        start = -self._memory.ctypes.data % 256 + odd
        flat = self._memory[start : start + content.nbytes]
        flat[:] = np.frombuffer(content.tobytes(), dtype=np.uint8)
        self.address = self._memory.ctypes.data + start
        self.array = flat.view(content.dtype).reshape(content.shape)
        library.cuda_buffer(ctypes.c_size_t(self.address), ctypes.c_size_t(content.nbytes))

    def data_ptr(self) -> int:
        return self.address


class FibreLauncher:
    """backend.cuda.launch.Launcher on the CPU; memory that it has handed out is all there is."""

    key = (0, 0)

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        self._buffers: list[Buffer] = []
        self.launched: list[str] = []
        #: Blocks that each launch runs, from the last one back; None: all.
        self.last_blocks: int | None = None

    def sparse(self, nbytes: int) -> np.ndarray:
        """Zeros of any size: memory that is not touched costs nothing."""
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0x4000)
        memory = np.frombuffer(mmap.mmap(-1, nbytes, flags=flags), dtype=np.uint8)
        address = ctypes.c_size_t(memory.ctypes.data)
        self._library.cuda_buffer(address, ctypes.c_size_t(nbytes))
        return memory

    def buffer(self, content: np.ndarray, odd: int = 0) -> Buffer:
        made = Buffer(self._library, content, odd)
        self._buffers.append(made)
        return made

    def forget(self) -> None:
        self._library.cuda_forget_buffers()
        self._buffers.clear()

    def zeros(self, count: int) -> Buffer:
        return self.buffer(np.zeros(count, dtype=np.int64))

    def scratch(self, nbytes: int) -> tuple[Buffer, int]:
        memory = self.buffer(np.full(nbytes, 0xA5, dtype=np.uint8))
        return memory, memory.address

    def launch(self, file, name, grid, block, shared_bytes, args) -> None:
        assert shared_bytes == 0 and 1 <= grid < 2**31
        values = [_c_value(a) for a in args]
        pointers = (ctypes.c_void_p * len(values))(*(ctypes.addressof(v) for v in values))
        sizes = (ctypes.c_int64 * len(values))(*(ctypes.sizeof(v) for v in values))
        # Every other launch runs its threads and blocks backwards: a missing barrier shows.
        backwards = len(self.launched) % 2
        self.launched.append(name)
        first = 0 if self.last_blocks is None else max(0, grid - self.last_blocks)
        blocks = (ctypes.c_int64(first), ctypes.c_int64(grid), block)
        fault = self._library.cuda_launch(
            name.encode(), *blocks, pointers, sizes, len(values), backwards
        )
        if fault:
            raise AssertionError(fault.decode())


def _c_value(a):
    if isinstance(a, np.float32):
        return ctypes.c_float(a)
    if isinstance(a, float):
        return ctypes.c_double(a)
    if isinstance(a, np.ndarray):
        assert a.size == 1
        return (ctypes.c_char * a.nbytes).from_buffer_copy(a.tobytes())
    assert isinstance(a, int) and -(2**63) <= a < 2**63, a
    return ctypes.c_int64(a)
