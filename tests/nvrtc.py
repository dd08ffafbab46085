"""NVRTC through ctypes: compiles CUDA where no GPU is, and says what the assembler made of it."""

from __future__ import annotations

import ctypes
import functools
import re
from pathlib import Path

import pytest

from mpisign.backend.cuda import compile as sources


def library() -> ctypes.CDLL:
    """libnvrtc of the wheel nvidia-cuda-nvrtc (test extra); skips the test without it."""
    nvidia = pytest.importorskip("nvidia", reason="needs the wheel nvidia-cuda-nvrtc")
    for folder in nvidia.__path__:
        for path in sorted(Path(folder).glob("*/lib/libnvrtc.so.*")):
            return ctypes.CDLL(str(path))
    pytest.skip("needs the wheel nvidia-cuda-nvrtc")


@functools.cache
def _compiled(file: str, arch: str) -> tuple[str, str]:
    """(what ptxas printed, PTX); AssertionError with the log."""
    nvrtc, program, size = library(), ctypes.c_void_p(), ctypes.c_size_t()
    code = sources.source(sources.folder() / f"{file}.cu").encode()
    name = f"{file}.cu".encode()
    assert nvrtc.nvrtcCreateProgram(ctypes.byref(program), code, name, 0, None, None) == 0
    options = [*sources.OPTIONS, f"--gpu-architecture={arch}", "--ptxas-options=-v"]
    given = (ctypes.c_char_p * len(options))(*(o.encode() for o in options))
    status = nvrtc.nvrtcCompileProgram(program, len(options), given)
    texts = []
    for what in ("ProgramLog", "PTX")[: 1 if status else 2]:
        getattr(nvrtc, f"nvrtcGet{what}Size")(program, ctypes.byref(size))
        text = ctypes.create_string_buffer(size.value)
        getattr(nvrtc, f"nvrtcGet{what}")(program, text)
        texts.append(text.value.decode())
    nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
    assert status == 0 and "warning" not in texts[0], texts[0]
    log, ptx = texts
    return log, ptx


def compiled(file: str, arch: str) -> dict[str, dict[str, int]]:
    """kernel -> registers, stack frame, spills, as ptxas has them."""
    return report(_compiled(file, arch)[0])


def parameters(file: str, arch: str) -> dict[str, list[str]]:
    """kernel -> its parameters' types in PTX: u64, f32, f64, or b8[N] for N bytes."""
    found = {}
    for name, text in re.findall(r"\.entry (\w+)\((.*?)\)", _compiled(file, arch)[1], re.DOTALL):
        found[name] = [
            kind + size for kind, size in re.findall(r"\.(\w\d+) [^,]*?(\[\d+\])?(?:,|$)", text)
        ]
    return found


def report(text: str) -> dict[str, dict[str, int]]:
    """The kernels in what ``-Xptxas -v`` prints."""
    pattern = (
        r"Compiling entry function '(\w+)'[^\n]*\n(?:[^\n]*Function properties for \w+\n)?"
        r"(?:ptxas +\.)? *(\d+) bytes stack frame, (\d+) bytes spill stores, "
        r"(\d+) bytes spill loads\n"
        r"[^\n]*Used (\d+) registers"
    )
    kernels = {}
    for name, *numbers in re.findall(pattern, text):
        keys = ("stack", "spill stores", "spill loads", "registers")
        kernels[name] = dict(zip(keys, map(int, numbers), strict=True))
    return kernels
