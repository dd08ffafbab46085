"""Arrays to sign planes, majorities of planes, planes to arrays.

Wire layout (also in memory): a plane of d coordinates is ceil(d / 8) bytes, element i at bit i
(little-endian, as ``numpy.packbits(bitorder="little")``), padding bits 0. In a sign plane 1 means
negative; in a mask plane 1 means that the coordinate votes. Planes of one tensor are the rows of
one uint8 array: shape (B,) is a sign plane alone, shape (2, B) a sign plane and its mask plane.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mpisign.planes.error_feedback import pack_error_feedback
from mpisign.planes.fused import pack_lion, pack_signum, pack_sparsign
from mpisign.planes.mean import mean_of_counts, weighted_sum
from mpisign.planes.pack import pack, pack_census, pack_many
from mpisign.planes.sparse import coded_bytes_bound, decode, encode
from mpisign.planes.unpack import unpack, unpack_add, update
from mpisign.planes.vote import group_distances, majority, majority_census, tally

__all__ = [
    "coded_bytes_bound", "decode", "encode", "group_distances", "majority", "majority_census",
    "mean_of_counts", "pack", "pack_census", "pack_error_feedback", "pack_lion", "pack_many",
    "pack_signum", "pack_sparsign", "padding_is_zero", "plane_bytes", "tally", "unpack",
    "unpack_add", "update", "weighted_sum",
]  # fmt: skip


def plane_bytes(length: int) -> int:
    """Returns the bytes of one plane.

    Args:
        length: Coordinates, from 0.

    Example:
        >>> from mpisign import planes
        >>> planes.plane_bytes(9)
        2
    """
    return (length + 7) // 8


def padding_is_zero(planes: Any, length: int) -> Any:
    """Returns whether the padding bits of each plane are 0, as a sender must leave them.

    Args:
        planes: uint8 (..., B), B = ``plane_bytes(length)`` > 0.
        length: Coordinates of a plane.

    Returns:
        bool (...) of the same framework (NumPy where there is no padding).

    Example:
        >>> import numpy as np
        >>> from mpisign import planes
        >>> planes.padding_is_zero(np.array([[0b011], [0b111]], dtype=np.uint8), length=2)
        array([ True, False])
    """
    used = length % 8
    if used == 0:
        return np.ones(planes.shape[:-1], dtype=bool)
    return planes[..., -1] >> used == 0
