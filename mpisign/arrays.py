"""Arrays of any framework as the kernels see them: an address, a shape, strides, a dtype.

NumPy arrays and torch CPU tensors, never copied. torch is looked at only if it is already imported.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

import numpy as np

#: Codes of the kernels (kernels/mpisign_kernels.h) in this order.
FLOATS = ("float32", "float16", "bfloat16", "float64")
ITEM_SIZE = {"float32": 4, "float16": 2, "bfloat16": 2, "float64": 8}


@dataclass(frozen=True)
class View:
    """One array's memory. ``strides`` are in bytes; ``owner`` keeps the memory alive."""

    owner: Any
    address: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: str
    is_torch: bool

    @property
    def length(self) -> int:
        """Coordinates in the array."""
        n = 1
        for extent in self.shape:
            n *= extent
        return n

    @property
    def contiguous(self) -> bool:
        """True if the elements lie in C order without gaps."""
        expected = ITEM_SIZE.get(self.dtype, 1)
        for extent, stride in zip(reversed(self.shape), reversed(self.strides), strict=True):
            if extent != 1 and stride != expected:
                return self.length == 0
            expected *= extent
        return True


def is_torch(x: object) -> bool:
    """True for torch tensors, without importing torch."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(x, torch.Tensor)


def view(function: str, argument: str, x: Any, *, writable: bool = False) -> View:
    """The memory of ``x``; TypeError if it is no NumPy array or dense torch CPU tensor.

    ``writable``: ValueError if it cannot be written to.
    """
    if is_torch(x):
        if x.device.type != "cpu" or x.layout is not sys.modules["torch"].strided:
            raise TypeError(
                f"{function}: {argument} must be a dense CPU tensor, "
                f"got layout {x.layout} on device {x.device}"
            )
        if writable and x.is_neg():
            raise ValueError(f"{function}: {argument} must be writable, got a negated view")
        x = x.detach().resolve_neg()
        dtype = str(x.dtype).removeprefix("torch.")
        size = x.element_size()
        strides = tuple(s * size for s in x.stride())
        return View(x, x.data_ptr(), tuple(x.shape), strides, dtype, True)
    if isinstance(x, np.ndarray):
        if not x.dtype.isnative:
            raise TypeError(f"{function}: {argument} must have native byte order, got {x.dtype!r}")
        if writable and not x.flags.writeable:
            raise ValueError(f"{function}: {argument} must be writable, got a read-only array")
        return View(x, x.ctypes.data, x.shape, x.strides, x.dtype.name, False)
    raise TypeError(
        f"{function}: {argument} must be a NumPy array or a torch tensor, got {type(x).__name__}"
    )


def view_floats(function: str, argument: str, x: Any, *, writable: bool = False) -> View:
    """``view`` for a gradient; TypeError unless its dtype is one of FLOATS."""
    v = view(function, argument, x, writable=writable)
    if v.dtype not in FLOATS:
        raise TypeError(
            f"{function}: {argument} must have dtype {', '.join(FLOATS)}, got {v.dtype}"
        )
    return v


def view_bytes(function: str, argument: str, x: Any, *, writable: bool = False) -> View:
    """``view`` for planes; TypeError unless uint8, ValueError unless the last axis is dense."""
    v = view(function, argument, x, writable=writable)
    if v.dtype != "uint8":
        raise TypeError(f"{function}: {argument} must have dtype uint8, got {v.dtype}")
    if v.length and v.shape and v.shape[-1] > 1 and v.strides[-1] != 1:
        raise ValueError(
            f"{function}: {argument} must be contiguous along its last axis, "
            f"got strides {v.strides} for shape {v.shape}"
        )
    return v


def empty(shape: tuple[int, ...], dtype: str, *, torch_like: bool) -> Any:
    """A new array of the framework; ImportError if NumPy needs ml_dtypes for bfloat16."""
    if torch_like:
        torch = sys.modules["torch"]
        return torch.empty(shape, dtype=getattr(torch, dtype))
    if dtype != "bfloat16":
        return np.empty(shape, dtype=dtype)
    try:
        import ml_dtypes
    except ImportError as e:
        raise ImportError("bfloat16 in NumPy needs ml_dtypes: pip install ml_dtypes") from e
    return np.empty(shape, dtype=ml_dtypes.bfloat16)


def float_name(function: str, argument: str, dtype: Any) -> str:
    """The name of a float dtype given as a name, a NumPy or a torch dtype."""
    name = dtype if isinstance(dtype, str) else str(dtype).removeprefix("torch.")
    if name not in FLOATS:
        try:
            name = np.dtype(dtype).name
        except TypeError:
            pass
    if name not in FLOATS:
        raise TypeError(f"{function}: {argument} must be one of {', '.join(FLOATS)}, got {dtype!r}")
    return name
