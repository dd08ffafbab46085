"""What is not voted on: plain averages, in 32 and in 16 bits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from mpisign.compressors.base import Compressor


@dataclass(frozen=True)
class Uncompressed(Compressor):
    """The average of gradients in fp32, by the wire's own allreduce: the baseline."""

    aggregate: ClassVar[str] = "average"
    unit: ClassVar[str] = "gradient"


@dataclass(frozen=True)
class BF16Mean(Compressor):
    """The average of gradients sent in bfloat16; what ``skip=`` calls "16bit".

    ``signs``: its sign instead, for parameters beside others that move by votes: with one learning
    rate for all of them, an average a thousandth of a vote in size would leave its parameter where
    it is. A mean of 0 is no update.
    """

    aggregate: ClassVar[str] = "halves"
    unit: ClassVar[str] = "gradient"
    signs: bool = False
