"""The CUDA sources (kernels/*.cu) and how they are compiled: by NVRTC, at first use."""

from __future__ import annotations

import functools
import re
from pathlib import Path

import mpisign

#: No multiply-add that rounds once, no flush of subnormals: the CPU's results, bit for bit.
OPTIONS = ("--std=c++17", "--fmad=false", "--ftz=false", "--prec-div=true")

_INCLUDE = re.compile(r'^#include "([^"]+)"$', re.MULTILINE)


def folder() -> Path:
    """The folder of the sources: mpisign/kernels/ if installed, else kernels/ of the checkout."""
    here = Path(str(mpisign.__file__)).resolve().parent
    installed = here / "kernels"
    return installed if installed.is_dir() else here.parent / "kernels"


@functools.cache
def source(file: Path) -> str:
    """A CUDA file with the text of its headers (of ``folder()``) in place of its #include lines.

    CuPy's cache on disk is keyed by the source without its headers, so these must be part of it.
    """
    seen: set[str] = set()

    def text(path: Path) -> str:
        content = path.read_text()

        def include(match: re.Match[str]) -> str:
            header = match[1]
            if header in seen:
                return ""
            seen.add(header)
            after = content.count("\n", 0, match.start()) + 2
            inner = text(folder() / header)
            return f'#line 1 "{header}"\n{inner}\n#line {after} "{path.name}"'

        return _INCLUDE.sub(include, content)

    return f'#line 1 "{file.name}"\n' + text(file)
