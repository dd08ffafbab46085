"""Which framework an array belongs to, and where its memory begins."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from mpisign import _kernels


def is_torch(x: object) -> bool:
    """True for torch tensors, without importing torch."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(x, torch.Tensor)


def address(x: Any) -> int:
    """Where the memory of an array of any framework begins; unchecked."""
    if isinstance(x, np.ndarray):
        try:
            return _kernels.address(x)
        except (BufferError, ValueError):  # a dtype that no buffer can name, such as bfloat16
            return int(x.__array_interface__["data"][0])
    return int(x.data_ptr() if is_torch(x) else x.data.ptr)
