"""The portable kernels on Arm: built by a cross compiler, run by qemu, digests as on x86-64."""

from __future__ import annotations

import shutil
import subprocess

import pytest
from launchers import ROOT

CROSS = "aarch64-linux-gnu-gcc"
EMULATOR = "qemu-aarch64"
FLAGS = ["-O3", "-std=gnu11", "-ffp-contract=off", "-Wno-psabi", "-Wno-unknown-pragmas", "-static"]


@pytest.mark.skipif(
    not (shutil.which(CROSS) and shutil.which(EMULATOR)),
    reason=f"needs {CROSS} and {EMULATOR} (apt install gcc-aarch64-linux-gnu "
    "libc6-dev-arm64-cross qemu-user)",
)
def test_arm_computes_what_x86_computes(tmp_path):
    results = []
    for compiler, runner in (("gcc", []), (CROSS, [EMULATOR])):
        program = tmp_path / compiler
        sources = [ROOT / "tests" / "arm_driver.c", ROOT / "kernels" / "portable.c"]
        command = [
            compiler,
            *FLAGS,
            f"-I{ROOT / 'kernels'}",
            *map(str, sources),
            "-o",
            str(program),
            "-lm",
        ]
        subprocess.run(command, check=True, timeout=240)
        done = subprocess.run(
            [*runner, str(program)], check=True, timeout=120, capture_output=True, text=True
        )
        results.append(done.stdout.splitlines())
    assert len(results[0]) > 1000
    differing = [pair for pair in zip(*results, strict=True) if pair[0] != pair[1]]
    assert not differing
