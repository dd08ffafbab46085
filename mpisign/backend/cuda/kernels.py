"""The kernels of mpisign/_kernels.pyi on a CUDA device: same names, same arguments, same bits.

``of(array)`` returns them bound to the array's device and the current stream of its framework. They
queue work and return; counts are device arrays, not waited for. This module decides which kernel
runs with how many blocks. How much a thread does (8, 16, 32 coordinates) is a number that its
source in kernels/ repeats. Methods take the arguments of _kernels.pyi, in its order; they ignore
``threads``, which may be left out.
"""

from __future__ import annotations

import functools
import math
import threading
from typing import Any

import numpy as np

from mpisign.backend import frameworks
from mpisign.backend.cuda import feedback, launch
from mpisign.backend.cuda.layouts import DTYPES, ITEM_SIZES, layout_of, merged, scale_bits
from mpisign.backend.cuda.tables import Tables

_RULES = ("sign", "signum", "lion", "sparsign")
_THREADS = 256

#: Count planes of each kernel -> words of 4 bytes that a thread owns (the W of kernels/*.cu).
_MAJORITY = {1: 4, 2: 4, 3: 4, 4: 4, 5: 4, 7: 4, 13: 4}
_MAJORITY_MASKED = {1: 4, 2: 2, 3: 2, 4: 2, 7: 2, 13: 2}
_GROUPED = {4: 2, 13: 1}
_DISTANCES = {2: 4, 4: 4, 13: 2}
_DISTANCES_MASKED = {2: 4, 4: 2, 13: 1}
_TALLY = {4: 4, 7: 4, 13: 2}
_TALLY_MASKED = {4: 2, 7: 2, 13: 1}
_TALLY_WEIGHTED = {16: 1, 31: 1}
#: CUDA's handle of the per-thread default stream: one handle, a stream for each thread.
_PER_THREAD = 2
#: Most rows that these count. Beyond, every row has weight 1 and counters are as wide as needed.
_MAX_ROWS = 8191


def of(array: Any) -> Kernels:
    """The kernels for a torch CUDA tensor or a CuPy array, on its framework's current stream."""
    if frameworks.is_torch(array):
        import torch

        index = array.device.index
        return _of_stream(index, torch.cuda.current_stream(index).cuda_stream, True)
    cupy = launch.cupy()
    index = array.device.id
    return _of_stream(index, cupy.cuda.get_current_stream(index).ptr, False)


class _OfThread(threading.local):
    """Kernels on a thread's own default streams, for as long as the thread lives."""

    def __init__(self) -> None:
        self.kernels: dict[tuple[int, bool], Kernels] = {}


_of_thread = _OfThread()


def _of_stream(device: int, stream: int, is_torch: bool) -> Kernels:
    """The one Kernels of a stream: its tables are written by work queued on that stream."""
    if stream != _PER_THREAD:
        return _kernels(device, stream, is_torch)
    mine = _of_thread.kernels
    if (device, is_torch) not in mine:
        mine[device, is_torch] = Kernels(launch.launcher(device, stream, is_torch))
    return mine[device, is_torch]


@functools.lru_cache(maxsize=256)
def _kernels(device: int, stream: int, is_torch: bool) -> Kernels:
    return Kernels(launch.launcher(device, stream, is_torch))


class Kernels:
    """All kernels, on one stream of one device."""

    def __init__(self, launcher: launch.Launcher) -> None:
        self._launcher = launcher
        self._tables = Tables(launcher)

    def upload(self, array: np.ndarray[Any, Any]) -> int:
        """The address of a copy of a small host array (weights), kept while it is in use."""
        return self._tables.send(array)

    def pack(self, *arguments: Any) -> Any:
        data, dtype, shape, strides, sign, mask, zeros, random, *_ = arguments
        census = self._launcher.zeros(2)
        length = math.prod(shape)
        if length == 0:
            return census
        planes = (length, sign, mask, zeros, *_random(random), _address(census))
        dims = merged(shape, strides)
        if not dims or dims == [(length, ITEM_SIZES[dtype])]:
            self._launch("pack", f"pack_{DTYPES[dtype]}", length, 32, (data, *planes))
        else:
            args = (data, layout_of(dims), *planes)
            self._launch("pack", f"pack_strided_{DTYPES[dtype]}", length, 8, args)
        return census

    def pack_pieces(self, *arguments: Any) -> Any:
        rule, parameters, pieces, sign, mask, zeros, random, *_ = arguments
        if rule == 0 and len(pieces) == 48:  # one array needs no table
            address, length, dtype, byte, _, _ = np.frombuffer(pieces, dtype=np.int64).tolist()
            planes = (sign + byte, mask + byte if mask else 0, zeros)
            stream = (*random[:3], (random[3] + byte) % 2**64)
            return self.pack(address, dtype, (length,), (ITEM_SIZES[dtype],), *planes, stream)
        census = self._launcher.zeros(2)
        table, rows, blocks = self._tables.pieces(pieces, _THREADS * (32 if rule == 0 else 16))
        if rows:
            floats = tuple(np.float32(p) for p in parameters)
            args = (table, rows, *floats, sign, mask, zeros, *_random(random), _address(census))
            self._launcher.launch("fused", f"pieces_{_RULES[rule]}", blocks, _THREADS, 0, args)
        return census

    def error_feedback(self, *arguments: Any) -> Any:
        grad, dtype, residual, length, rate, block, sign, mask, scales, *rest = arguments
        census = self._launcher.zeros(2)
        if length:
            zeros, random, *_ = rest
            tail = (zeros, *_random(random), _address(census))
            inputs = (grad, residual, length, np.float32(rate))
            feedback.queue(self._launcher, dtype, inputs, block, sign, mask, scales, tail)
        return census

    def majority(self, *arguments: Any) -> Any:
        """Returns a device array int64 (1,): coordinates that tied."""
        *stack, weights, group, out_sign, out_mask, ties, random = arguments[:11]
        _, mask, _, rows, length = stack
        census = self._launcher.zeros(1)
        if length == 0:
            return census
        masked = "_masked" if mask else ""
        out = (out_sign, out_mask, ties, *_random(random), _address(census))
        if weights or (group == 1 and rows > _MAX_ROWS):
            args = (*stack, weights, *out)
            self._launch("vote_weighted", f"majority_weighted{masked}", length, 32, args)
        elif group > 1:
            planes = _at_least(_GROUPED, max(group, rows // group).bit_length())
            name = f"majority_grouped{masked}_{planes}"
            self._launch("vote_grouped", name, length, 32 * _GROUPED[planes], (*stack, group, *out))
        else:
            words = _MAJORITY_MASKED if mask else _MAJORITY
            planes = _at_least(words, rows.bit_length())
            name = f"majority{masked}_{planes}"
            self._launch("vote", name, length, 32 * words[planes], (*stack, *out))
        return census

    def group_distances(self, *arguments: Any) -> Any:
        """Returns a device array int64 (rows,)."""
        *stack, group = arguments[:6]
        _, mask, _, rows, length = stack
        distances = self._launcher.zeros(rows)
        words = _DISTANCES_MASKED if mask else _DISTANCES
        planes = _at_least(words, group.bit_length(), "group_distances")
        args = (*stack, group, _address(distances))
        name = f"distances{'_masked' if mask else ''}_{planes}"
        self._launch("distances", name, length, 32 * words[planes], args)
        return distances

    def tally(self, *arguments: Any) -> None:
        _, mask, _, rows, length, weights, planes, *_ = arguments
        if length == 0:
            return
        name, words, needed = "tally", _TALLY_MASKED if mask else _TALLY, rows.bit_length()
        if weights or rows > _MAX_ROWS:
            name, words, needed = "tally_weighted", _TALLY_WEIGHTED, min(planes, 31)
        counters = _at_least(words, needed)
        name = f"{name}{'_masked' if mask else ''}_{counters}"
        self._launch("tally", name, length, 32 * words[counters], arguments[:10])

    def weighted_sum(self, *arguments: Any) -> None:
        *stack, weights, block, start, scale, out = arguments[:10]
        args = (*stack, weights, min(block, stack[4]), np.float32(start), np.float32(scale), out)
        self._launch("mean", "weighted_sum", stack[4], 8, args)

    def unpack(self, *arguments: Any) -> None:
        *planes, length, dtype, scale, out = arguments[:6]
        args = (*planes, length, scale_bits(scale, dtype), out)
        self._launch("unpack", f"unpack_{DTYPES[dtype]}", length, 32, args)

    def unpack_add(self, *arguments: Any) -> None:
        *planes, length, dtype, scale, out = arguments[:6]
        args = (*planes, length, float(scale), out)
        self._launch("unpack", f"unpack_add_{DTYPES[dtype]}", length, 16, args)

    def update(self, *arguments: Any) -> None:
        *planes, length, dtype, rate, weight_decay, parameter = arguments[:7]
        args = (*planes, length, float(rate), float(weight_decay), parameter)
        self._launch("unpack", f"update_{DTYPES[dtype]}", length, 16, args)

    def _launch(
        self, file: str, name: str, length: int, per_thread: int, args: tuple[Any, ...]
    ) -> None:
        """One thread for every ``per_thread`` coordinates; nothing if there are none."""
        if length:
            grid = -(-length // (per_thread * _THREADS))
            self._launcher.launch(file, name, grid, _THREADS, 0, args)


def _at_least(words: dict[int, int], planes: int, function: str = "majority") -> int:
    """The shortest counter of those compiled that has as many planes."""
    if planes > max(words):
        raise ValueError(f"{function}: groups must be at most {_MAX_ROWS}, of as many rows each")
    return min(p for p in words if p >= planes)


def _random(random: tuple[int, ...]) -> tuple[int, ...]:
    """As signed arguments of 64 bits."""
    return tuple(value - (1 << 64) if value >> 63 else value for value in random)


def _address(array: Any) -> int:
    """Of a torch tensor, a CuPy array, or the tests' stand-in for one."""
    return int(array.data_ptr() if hasattr(array, "data_ptr") else array.data.ptr)
