"""NVRTC through ctypes: compiles CUDA where no GPU is, and says what the assembler made of it."""

from __future__ import annotations

import ctypes
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


def compiled(file: str, arch: str) -> dict[str, dict[str, int]]:
    """kernel -> registers, stack frame, spills, as ptxas has them; AssertionError with the log."""
    nvrtc, program, size = library(), ctypes.c_void_p(), ctypes.c_size_t()
    code = sources.source(sources.folder() / f"{file}.cu").encode()
    name = f"{file}.cu".encode()
    assert nvrtc.nvrtcCreateProgram(ctypes.byref(program), code, name, 0, None, None) == 0
    options = [*sources.OPTIONS, f"--gpu-architecture={arch}", "--ptxas-options=-v"]
    given = (ctypes.c_char_p * len(options))(*(o.encode() for o in options))
    status = nvrtc.nvrtcCompileProgram(program, len(options), given)
    nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    nvrtc.nvrtcGetProgramLog(program, log)
    nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
    text = log.value.decode()
    assert status == 0, text
    assert "warning" not in text, text
    return report(text)


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
