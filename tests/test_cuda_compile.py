"""Every CUDA file compiles for the GPUs of today, and no kernel spills a register. Needs no GPU."""

from __future__ import annotations

import os
import re
import shutil
import struct
import subprocess
import sys
import types
import unittest.mock
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
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


class Recorder:
    """backend.cuda.launch.Launcher that keeps the types of what each kernel is handed."""

    key = (0, 0)

    def __init__(self):
        self.handed: dict[str, dict[str, set[tuple[str, ...]]]] = {file: {} for file in FILES}

    def launch(self, file, name, grid, block, shared_bytes, args):
        assert 0 < grid < 2**31 and 0 < block <= 1024 and shared_bytes == 0
        self.handed[file].setdefault(name, set()).add(tuple(map(self.kind, args)))

    @staticmethod
    def kind(value):
        """The parameter in PTX that CuPy's packing of ``value`` fills."""
        if isinstance(value, np.ndarray):
            return f"b8[{value.nbytes}]"
        if type(value) is int:
            assert -(2**63) <= value < 2**63, value
            return "u64"
        return {np.float32: "f32", float: "f64"}[type(value)]

    def zeros(self, count):
        return types.SimpleNamespace(data_ptr=lambda: 1 << 41)

    def scratch(self, nbytes):
        return None, 1 << 40


def launch_every_kernel(launcher):
    k, a = kernels.Kernels(launcher), 1 << 42
    random = (2**64 - 1, 2**63, 2**31, 2**61 - 1)
    for dtype, size in enumerate(kernels.ITEM_SIZES):
        k.pack(a, dtype, (1000,), (size,), a, 0, 0, random)
        k.pack(a, dtype, (10, 10), (8000, 16), a, a, 1, random)
        k.unpack(a, a, 1000, dtype, 0.3, a)
        k.unpack_add(a, 0, 1000, dtype, 0.3, a)
        k.update(a, a, 1000, dtype, 0.1, 0.0, a)
        for block in (256, 16384, 65536):
            k.error_feedback(a, dtype, a, 10**6 + 3, 1.0, block, a, 0, a, 0, random)
    for rule in range(4):
        pieces = struct.pack("=12q", a, 1000, 0, 0, a, 0, a, 99, 1, 125, a, 2)
        k.pack_pieces(rule, (0.9, 0.1, 0.5, 0.5), pieces, a, a, 0, random)
    for rows in (2**n for n in range(14)):
        for mask in (0, a):
            stack, many = (a, mask, 128, rows, 1000), rows > kernels._MAX_ROWS
            k.majority(*stack, 0, 1, a, a, 1, random)
            k.majority(*stack, a, 1, a, 0, 1, random)
            k.tally(*stack, 0, 14, a, a, 128)
            for planes in (14, 20):
                k.tally(*stack, a, planes, a, a, 128)
            if not many:
                k.majority(*stack, 0, rows, a, a, 1, random)
                k.group_distances(*stack, rows)
    k.weighted_sum(a, a, 128, 8, 1000, a, 256, 0.5, 0.5, a)


def test_every_kernel_is_handed_what_its_ptx_takes():
    """CuPy packs an int as 8 bytes, float as double, and asks nobody what the kernel expects."""
    launcher = Recorder()
    launch_every_kernel(launcher)
    for file in FILES:
        takes = {name: {tuple(p)} for name, p in nvrtc.parameters(file, "sm_90").items()}
        assert launcher.handed[file] == takes, file


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
