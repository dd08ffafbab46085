"""Every CUDA file compiles for the GPUs of today, and no kernel spills a register. Needs no GPU."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import unittest.mock
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nvrtc
import pytest

from mpisign.backend.cuda import compile as sources
from mpisign.backend.cuda import kernels, launch

FILES = sorted(path.stem for path in sources.folder().glob("*.cu"))


def names_in(file: str) -> set[str]:
    """The kernels that a source defines: each name is the first word of a macro's line."""
    text = (sources.folder() / f"{file}.cu").read_text()
    macro = r"^(?:PACK|PACK_STRIDED|PIECES|FEEDBACK|MAJORITY|TALLY|DISTANCES)\((\w+),"
    found = set(re.findall(macro, text, re.MULTILINE))
    for names in re.findall(r"^(?:LONG_FEEDBACK|UNPACK)\(([\w, ]+), MPISIGN", text, re.MULTILINE):
        found |= set(names.split(", "))
    return found | set(re.findall(r"^MPISIGN_KERNEL\(THREADS, (\w+),", text, re.MULTILINE))


def check(file: str, found: dict[str, dict[str, int]]) -> None:
    assert set(found) == names_in(file)
    for name, numbers in found.items():
        in_memory = {k: n for k, n in numbers.items() if k != "registers" and n}
        assert not in_memory, (name, numbers)
        assert numbers["registers"] <= 128, (name, numbers)


@pytest.mark.parametrize(
    "arch", ["sm_90", *(pytest.param(a, marks=pytest.mark.many) for a in ("sm_80", "sm_100"))]
)
@pytest.mark.parametrize("file", FILES)
def test_nvrtc(file, arch):
    check(file, nvrtc.compiled(file, arch))


def test_nvcc(tmp_path):
    nvcc = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")
    if nvcc is None:
        pytest.skip("no nvcc on PATH")
    options = [o for o in sources.OPTIONS if o.startswith("--fmad") or o.startswith("--std")]
    # -G: not optimized, which takes a third of the time; NVRTC above is given all of it.
    options += ["-G", "-arch=sm_90", "-ptx", "-Werror=all-warnings", "-o"]

    def compiled(file):
        # From the folder of the sources, with plain #includes: not as Python puts them together.
        command = [nvcc, *options, tmp_path / file, f"{file}.cu"]
        return subprocess.run(command, cwd=sources.folder(), capture_output=True, text=True)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        results = list(pool.map(compiled, FILES))
    for file, done in zip(FILES, results, strict=True):
        assert done.returncode == 0, (file, done.stderr)


def test_python_launches_only_kernels_that_exist():
    defined = {name for file in FILES for name in names_in(file)}
    for words, name in (
        (kernels._MAJORITY, "majority_{}"),
        (kernels._MAJORITY_MASKED, "majority_masked_{}"),
        (kernels._GROUPED, "majority_grouped_{}"),
        (kernels._GROUPED, "majority_grouped_masked_{}"),
        (kernels._DISTANCES, "distances_{}"),
        (kernels._DISTANCES_MASKED, "distances_masked_{}"),
        (kernels._TALLY, "tally_{}"),
        (kernels._TALLY_MASKED, "tally_masked_{}"),
        (kernels._TALLY_WEIGHTED, "tally_weighted_{}"),
        (kernels._TALLY_WEIGHTED, "tally_weighted_masked_{}"),
    ):
        for planes, width in words.items():
            assert name.format(planes) in defined
            line = f"({name.format(planes)}, {planes}, {width},"
            assert any(line in p.read_text() for p in sources.folder().glob("*.cu")), line


def test_a_missing_cupy_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(ImportError, match="pip install cupy-cuda13x"):
        launch.cupy()


def test_launches_go_to_the_stream_of_the_array(monkeypatch):
    """Against a stand-in for CuPy: which of its calls are made, and with what."""
    cupy = unittest.mock.MagicMock()
    monkeypatch.setattr(launch, "cupy", lambda: cupy)
    launch._module.cache_clear()
    launch._function.cache_clear()
    kernels_here = kernels.Kernels(launch.CupyLauncher(0, 1234))
    kernels_here.unpack(16, 0, 100, 0, 1.0, 32)
    (handle,) = cupy.cuda.Stream.from_external.call_args.args
    assert handle.__cuda_stream__() == (0, 1234)
    (code,) = [call.kwargs["code"] for call in cupy.RawModule.call_args_list]
    assert code == sources.source(sources.folder() / "unpack.cu") and '#include "' not in code
    cupy.RawModule().get_function.assert_called_once_with("unpack_fp32")
    grid, block, args = cupy.RawModule().get_function().call_args.args
    assert (grid, block, args) == ((1,), (256,), (16, 0, 100, 0x3F800000, 32))
    stream = cupy.cuda.Stream.from_external()
    assert cupy.RawModule().get_function().call_args.kwargs == {"shared_mem": 0, "stream": stream}
    launch._module.cache_clear()
    launch._function.cache_clear()


def test_importing_mpisign_imports_neither_cupy_nor_torch():
    code = "import sys, mpisign.backend.cuda.kernels; print({'cupy', 'torch'} & set(sys.modules))"
    command = [Path(sys.executable), "-c", code]
    assert subprocess.run(command, capture_output=True, text=True).stdout.strip() == "set()"
