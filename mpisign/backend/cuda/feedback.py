"""The kernels of error feedback: one pass where a CUDA block can hold a block of scales."""

from __future__ import annotations

from typing import Any

from mpisign.backend.cuda import launch
from mpisign.backend.cuda.layouts import DTYPES

_CHUNK = 256
_THREADS = 256
#: (kernel, coordinates that a CUDA block holds, its threads): kernels/error_feedback.cu.
_TILES = (("feedback", 8192, 512), ("feedback_wide", 16384, 512))


def queue(
    launcher: launch.Launcher,
    dtype: int,
    inputs: tuple[Any, ...],
    block: int,
    sign: int,
    mask: int,
    scales: int,
    tail: tuple[Any, ...],
) -> None:
    """``inputs``: gradient, residual, length, rate; ``tail``: policy, random stream, census."""
    length = inputs[2]
    if block >= length:
        block = -(-length // _CHUNK) * _CHUNK
    for kind, tile, threads in _TILES:
        if block <= tile:
            fit = tile // block
            grid = -(-length // (fit * block))
            args = (inputs[0], dtype, *inputs[1:], block, fit, sign, mask, scales, *tail)
            launcher.launch("error_feedback", kind, grid, threads, 0, args)
            return
    name = DTYPES[dtype]
    _memory, raw_scales = _long(launcher, name, inputs, block, scales)
    args = (*inputs, block, raw_scales, sign, mask, *tail)
    grid = -(-length // (16 * _THREADS))
    launcher.launch("error_feedback_long", f"feedback_apply_{name}", grid, _THREADS, 0, args)


def _long(
    launcher: launch.Launcher, dtype: str, inputs: tuple[Any, ...], block: int, scales: int
) -> tuple[Any, int]:
    """Sums chunks, then level by level up to one sum a block, which gives its scale.

    Returns memory and address of the computed scales, infinity where a sum overflows.
    """
    length = inputs[2]
    file, warps, blocks = "error_feedback_long", _THREADS // 32, -(-length // block)
    widths = [block // _CHUNK]  # sums of a block at each level
    while widths[-1] > 1 or len(widths) == 1:
        widths.append(-(-widths[-1] // _CHUNK))
    counts = [-(-length // _CHUNK), *(blocks * width for width in widths[1:])]
    memory, base = launcher.scratch(4 * sum(counts))
    starts = [base + 4 * sum(counts[:k]) for k in range(len(counts))]
    grid = -(-counts[0] // (4 * warps))
    launcher.launch(file, f"feedback_sums_{dtype}", grid, _THREADS, 0, (*inputs, starts[0]))
    for k, width in enumerate(widths[:-1]):
        last = k == len(widths) - 2
        out = (starts[k + 1], counts[k + 1], scales if last else 0)
        args = (starts[k], counts[k], width, *out, block, length)
        grid = -(-counts[k + 1] // warps)
        launcher.launch(file, "feedback_level", grid, _THREADS, 0, args)
    return memory, starts[-1]
