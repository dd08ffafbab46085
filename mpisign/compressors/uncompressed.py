"""Averages without votes, in 32 and in 16 bits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from mpisign.compressors.base import Compressor


@dataclass(frozen=True)
class Uncompressed(Compressor):
    """The mean of gradients in float32, by the transport's own allreduce: the baseline.

    Args:
        zeros, nan, ties: Not used: NaN and infinity reach all ranks.

    Example:
        >>> Uncompressed().aggregate
        'average'
    """

    aggregate: ClassVar[str] = "average"
    unit: ClassVar[str] = "gradient"


@dataclass(frozen=True)
class BF16Mean(Compressor):
    """The mean of gradients sent in bfloat16; what ``skip=`` calls "16bit".

    Args:
        signs: Hand the optimizer the mean's sign, 0 for a mean of 0: for parameters beside others
            that move by votes. With one learning rate for all of them, a mean a thousandth of a
            vote in size would leave its parameter in place.
        zeros, nan, ties: As ``Compressor``; only ``nan`` is used.

    Example:
        >>> BF16Mean(signs=True).aggregate
        'halves'
    """

    aggregate: ClassVar[str] = "halves"
    unit: ClassVar[str] = "gradient"
    signs: bool = False
