"""The code length of a rank's own messages, each counted once."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from mpisign.compressors import Compressor
from mpisign.planes import sparse

_SCALE = 32  # bits
_FP32 = 32


class CodeLength:
    """Bits of one rank's messages so far, without headers and copies for other ranks."""

    def __init__(self) -> None:
        self.bits = 0

    def of(self, compressor: Compressor) -> Compressor:
        """``compressor``, whose messages count from now on.

        Two planes count as ``mpisign.planes.sparse`` codes them, one plane a bit a coordinate, a
        scale 32.
        """
        kind, count = type(compressor), self

        class Counted(kind):  # type: ignore[misc, valid-type]
            def pack(self, grads: Any, states: Any, out: Any, offsets: Any, context: Any) -> int:
                nans: int = super().pack(grads, states, out, offsets, context)
                count._add(self, out, [g.numel() for g in grads], offsets)
                return nans

        Counted.__name__ = Counted.__qualname__ = kind.__name__  # of its repr, which ranks compare
        return Counted(
            **{f.name: getattr(compressor, f.name) for f in fields(compressor) if f.init}
        )

    def unpacked(self, compressor: Compressor, lengths: list[int]) -> None:
        """Books a step of a compressor whose messages are no planes that ``pack`` makes."""
        if compressor.aggregate in ("average", "robust", "detox_robust"):
            self.bits += _FP32 * sum(lengths)
        elif compressor.aggregate == "compressed_mean":
            n = sum(lengths)
            self.bits += n + _SCALE * -(-n // (compressor.block or n))

    def _add(self, compressor: Any, out: Any, lengths: list[int], offsets: Any) -> None:
        if not lengths:
            return
        self.bits += _SCALE * sum(map(compressor.scales_of, lengths))
        if out.ndim == 1:
            self.bits += sum(lengths)
            return
        end = 8 * (offsets[-1] - offsets[0]) + lengths[-1]
        planes = out[:, offsets[0] : offsets[-1] + (lengths[-1] + 7) // 8]
        self.bits += 8 * len(sparse.encode(planes.copy(), length=end))
