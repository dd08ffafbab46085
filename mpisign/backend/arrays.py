"""Arrays of any framework as the kernels see them: an address, a shape, strides, a dtype.

NumPy and CuPy arrays and torch tensors, on the CPU or a CUDA device, are never copied. This module
never imports torch or CuPy: a tensor of theirs exists only once somebody else has.
"""

from __future__ import annotations

import math
import sys
from typing import Any

import numpy as np

from mpisign import _kernels
from mpisign.backend.frameworks import address, is_torch

#: Codes of the kernels (kernels/shared.h) in this order.
FLOATS = ("float32", "float16", "bfloat16", "float64")
FLOAT_CODES = {name: code for code, name in enumerate(FLOATS)}
ITEM_SIZE = {
    "float32": 4, "float16": 2, "bfloat16": 2, "float64": 8, "uint8": 1, "int32": 4
}  # fmt: skip

_DTYPES = {name: np.dtype(name) for name in ("float32", "float16", "float64", "uint8")}
_NAMES: dict[Any, str] = {dtype: name for name, dtype in _DTYPES.items()}


class View:
    """One array's memory, as kernels take it. ``owner``, the array, keeps it alive.

    Functions of mpisign.planes take a View in place of its array: whoever calls them again and
    again for one array looks at it once. ``device``: "cpu" or "cuda:N". ``contiguous``: the
    elements lie in C order without gaps.
    """

    __slots__ = ("address", "contiguous", "device", "dtype", "length", "owner", "shape")

    def __init__(
        self, owner: Any, address: int, shape: Any, dtype: str, contiguous: bool, device: str
    ) -> None:
        self.owner, self.address, self.dtype = owner, address, dtype
        self.shape: tuple[int, ...] = tuple(shape)  # a plain one, also of a torch.Size
        self.contiguous, self.device = contiguous, device
        self.length = math.prod(shape)

    @property
    def is_torch(self) -> bool:
        """True for a torch tensor."""
        return is_torch(self.owner)

    @property
    def framework(self) -> str:
        """ "numpy", "torch" or "cupy"."""
        if isinstance(self.owner, np.ndarray):
            return "numpy"
        return "torch" if is_torch(self.owner) else "cupy"

    @property
    def strides(self) -> tuple[int, ...]:
        """In bytes."""
        if is_torch(self.owner):
            size = self.owner.element_size()
            return tuple(s * size for s in self.owner.stride())
        strides: tuple[int, ...] = self.owner.strides
        return strides

    @property
    def kernels(self) -> Any:
        """The host kernels, or those on the current CUDA stream of the array's framework."""
        if self.device == "cpu":
            return _kernels
        from mpisign.backend.cuda import kernels

        return kernels.of(self.owner)

    def part(self, first: int, length: int) -> View:
        """``length`` elements from ``first`` on, in C order, of a contiguous array; unchecked."""
        address = self.address + first * ITEM_SIZE[self.dtype]
        return View(self.owner, address, (length,), self.dtype, True, self.device)


def numpy_name(x: Any) -> str | None:
    """The dtype of a plain NumPy array by name; None for anything else, or a dtype not seen yet."""
    return _NAMES.get(x.dtype) if type(x) is np.ndarray else None


def view(function: str, argument: str, x: Any, *, writable: bool = False) -> View:
    """The memory of a NumPy or CuPy array, a dense torch tensor, or a View of one.

    Raises TypeError for anything else, ValueError if ``writable`` and it cannot be written to.
    """
    if isinstance(x, View):
        return x
    if isinstance(x, np.ndarray):
        if type(x) is not np.ndarray and isinstance(x, np.ma.MaskedArray):
            raise TypeError(f"{function}: {argument} must not be a masked array")
        if type(x) is not np.ndarray and isinstance(x, np.matrix):  # which is never flat
            raise TypeError(
                f"{function}: {argument} must not be a np.matrix: take np.asarray of it"
            )
        flags = x.flags
        name = _NAMES.get(x.dtype) or _numpy_name(function, argument, x)
        if writable and not flags.writeable:
            raise ValueError(f"{function}: {argument} must be writable, got a read-only array")
        try:
            start = _kernels.address(x)
        except (BufferError, ValueError):
            start = address(x)
        return View(x, start, x.shape, name, flags.c_contiguous, "cpu")
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(x, torch.Tensor):
        return _torch_view(function, argument, x, writable)
    cupy = sys.modules.get("cupy")
    if cupy is not None and isinstance(x, cupy.ndarray):
        device = f"cuda:{x.device.id}"
        return View(x, x.data.ptr, x.shape, x.dtype.name, x.flags.c_contiguous, device)
    hint = " (of (planes, zeros, NaNs), which pack_signum and others return, take [0])"
    raise TypeError(
        f"{function}: {argument} must be a NumPy array, a CuPy array or a torch tensor, "
        f"got {type(x).__name__}{hint if isinstance(x, tuple) else ''}"
    )


def view_floats(function: str, argument: str, x: Any, *, writable: bool = False) -> View:
    """``view`` for a gradient; TypeError unless its dtype is one of FLOATS."""
    v = view(function, argument, x, writable=writable)
    if v.dtype not in FLOAT_CODES:
        raise TypeError(
            f"{function}: {argument} must have dtype {', '.join(FLOATS)}, got {v.dtype}"
        )
    if v.device != "cpu" and v.address % ITEM_SIZE[v.dtype]:
        raise ValueError(f"{function}: {argument} must be aligned to its items on a GPU")
    return v


def view_bytes(function: str, argument: str, x: Any, *, writable: bool = False) -> View:
    """``view`` for planes; TypeError unless uint8, ValueError unless the last axis is dense."""
    v = view(function, argument, x, writable=writable)
    if v.dtype != "uint8":
        raise TypeError(f"{function}: {argument} must have dtype uint8, got {v.dtype}")
    if not v.contiguous and v.length and v.shape[-1] > 1 and v.strides[-1] != 1:
        raise ValueError(
            f"{function}: {argument} must be contiguous along its last axis, "
            f"got strides {v.strides} for shape {v.shape}"
        )
    return v


def empty(shape: tuple[int, ...], dtype: str, *, like: View | None = None) -> Any:
    """A new array of ``like``'s framework, on its device (default: NumPy).

    ImportError if NumPy or CuPy needs ml_dtypes for bfloat16.
    """
    if like is None or isinstance(like.owner, np.ndarray):
        return np.empty(shape, _DTYPES.get(dtype) or _numpy_dtype(dtype))
    if is_torch(like.owner):
        torch = sys.modules["torch"]
        return torch.empty(shape, dtype=getattr(torch, dtype), device=like.owner.device)
    cupy = sys.modules["cupy"]
    with like.owner.device:
        return cupy.empty(shape, dtype=_numpy_dtype(dtype))


def overlap_partly(a: View, b: View) -> bool:
    """Whether two contiguous arrays share memory, but do not begin and end together."""
    if a.device != b.device or not a.length or not b.length:
        return False
    ends = [v.address + v.length * ITEM_SIZE[v.dtype] for v in (a, b)]
    same = (a.address, ends[0]) == (b.address, ends[1])
    return not same and a.address < ends[1] and b.address < ends[0]


def itemsize(dtype: str) -> int:
    """Bytes of an element of a dtype of ``FLOATS`` or uint8."""
    return ITEM_SIZE[dtype]


def host(x: Any) -> np.ndarray[Any, Any]:
    """``x`` itself if it is a NumPy array, else a copy in host memory; waits for the device."""
    if isinstance(x, np.ndarray):
        return x
    copy: np.ndarray[Any, Any] = x.detach().cpu().numpy() if is_torch(x) else x.get()
    return copy


def address_like(x: np.ndarray[Any, Any], like: View) -> int:
    """The address of ``x`` in ``like``'s memory; a copy on a GPU, kept while it is in use."""
    return address(x) if like.device == "cpu" else int(like.kernels.upload(x))


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


def _torch_view(function: str, argument: str, x: Any, writable: bool) -> View:
    device = "cpu" if x.is_cpu else str(x.device)
    if x.layout is not sys.modules["torch"].strided or device[:4] not in ("cpu", "cuda"):
        raise TypeError(
            f"{function}: {argument} must be a dense CPU or CUDA tensor, "
            f"got layout {x.layout} on device {x.device}"
        )
    if x.is_neg():
        if writable:
            raise ValueError(f"{function}: {argument} must be writable, got a negated view")
        x = x.detach().resolve_neg()
    name = _NAMES.get(x.dtype)
    if name is None:
        name = _NAMES[x.dtype] = str(x.dtype).removeprefix("torch.")
    start = x.data_ptr()
    if not start and x.numel():
        raise TypeError(
            f"{function}: {argument} must be a tensor with memory of its own, "
            f"got a {type(x).__name__} without (of a DTensor take to_local())"
        )
    return View(x, start, x.shape, name, x.is_contiguous(), device)


def _numpy_name(function: str, argument: str, x: np.ndarray[Any, Any]) -> str:
    if not x.dtype.isnative:
        raise TypeError(f"{function}: {argument} must have native byte order, got {x.dtype!r}")
    return _NAMES.setdefault(x.dtype, x.dtype.name)


def _numpy_dtype(dtype: str) -> Any:
    if dtype in _DTYPES:
        return _DTYPES[dtype]
    try:
        import ml_dtypes
    except ImportError as e:
        raise ImportError("bfloat16 in NumPy needs ml_dtypes: pip install ml_dtypes") from e
    return np.dtype(ml_dtypes.bfloat16)
