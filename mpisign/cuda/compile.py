"""The CUDA sources (kernels/*.cu) and how they are compiled: by NVRTC, at first use."""

from __future__ import annotations

import functools
import re
from pathlib import Path

#: No multiply-add that rounds once, no flush of subnormals: the CPU's results, bit for bit.
OPTIONS = ("--std=c++17", "--fmad=false", "--ftz=false", "--prec-div=true")

_INCLUDE = re.compile(r'^#include "([^"]+)"$', re.MULTILINE)


def folder() -> Path:
    """Where the sources lie: mpisign/kernels/ if installed, else kernels/ of the checkout."""
    here = Path(__file__).resolve().parents[1]
    installed = here / "kernels"
    return installed if installed.is_dir() else here.parent / "kernels"


def files() -> list[str]:
    """The names of all CUDA files, without ``.cu``."""
    return sorted(path.stem for path in folder().glob("*.cu"))


@functools.cache
def source(file: str) -> str:
    """A CUDA file with its headers in place of its #include lines.

    CuPy's cache on disk is addressed by the source it is given, not by what that includes: a header
    that changed must change the source.
    """
    seen: set[str] = set()

    def text(name: str) -> str:
        content = (folder() / name).read_text()

        def include(match: re.Match[str]) -> str:
            header = match[1]
            if header in seen:
                return ""
            seen.add(header)
            after = content.count("\n", 0, match.start()) + 2
            return f'#line 1 "{header}"\n{text(header)}\n#line {after} "{name}"'

        return _INCLUDE.sub(include, content)

    return f'#line 1 "{file}.cu"\n' + text(file + ".cu")
