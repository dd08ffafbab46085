"""Sparse planes, coded: positions as Golomb-Rice gaps, each followed by its sign.

Source: Golomb 1966, Run-length encodings; Rice and Plaunt 1971. Blocks of 2^17 coordinates, each
the shortest of: 0 (no votes); 33 and the sign plane (all vote); 32, the mask plane and the signs of
the votes; k = 1 to 17, the number of votes, and for each a gap: its quotient by 2^k in unary, the
sign, its k low bits. Bits go from the lowest of a byte to its highest.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from reference.planes import bits_to_plane

BLOCK = 1 << 17


def _bits(value: int, n: int) -> str:
    """The n low bits of a number, lowest first."""
    return f"{value:0{n}b}"[::-1] if n else ""


def _encode_block(sign: Any, mask: Any) -> bytes:
    at, n = np.flatnonzero(mask), mask.size
    signs, q, k = sign[at], (n - at.size) / n, 0
    if at.size in (0, n):
        return b"\0" if at.size == 0 else b"\x21" + bits_to_plane(sign).tobytes()
    while q > 0.6180339887498949:  # 2^k is best where the chance of a gap beyond it is 1/golden
        q, k = q * q, k + 1
    masked = b"\x20" + bits_to_plane(mask).tobytes() + bits_to_plane(signs).tobytes()
    if k == 0:
        return masked
    text = _bits(at.size, n.bit_length())
    for gap, negative in zip((np.diff(at, prepend=-1) - 1).tolist(), signs, strict=True):
        text += "0" * (gap >> k) + "1" + str(int(negative)) + _bits(gap % 2**k, k)
    rice = bytes([k]) + bits_to_plane(np.array(list(text)) == "1").tobytes()
    return min(masked, rice, key=len)


def encode(sign: Any, mask: Any, block: int = BLOCK) -> bytes:
    """The message of booleans (d,): negative, and present."""
    parts = [slice(a, a + block) for a in range(0, sign.size, block)]
    return b"".join(_encode_block(sign[part], mask[part]) for part in parts)


class _Reader:
    """Bytes as text of bits, lowest first; raises ValueError at the end."""

    def __init__(self, data: bytes) -> None:
        self.bits, self.at = "".join(f"{byte:08b}"[::-1] for byte in data), 0

    def take(self, n: int) -> str:
        self.at += n
        if self.at > len(self.bits):
            raise ValueError("short")
        return self.bits[self.at - n : self.at]

    def number(self, n: int) -> int:
        return int(self.take(n)[::-1] or "0", 2)

    def end_byte(self) -> None:
        if "1" in self.take(-self.at % 8):
            raise ValueError("padding")


def _decode_block(text: _Reader, votes: Any) -> None:
    """Writes 1 and -1 into ``votes``, integers of 0."""
    kind, n = text.number(8), votes.size
    if kind in (32, 33):
        mask = np.array(list(text.take(n) if kind == 32 else "1" * n)) == "1"
        if kind == 32:
            text.end_byte()
        votes[mask] = [1 - 2 * int(bit) for bit in text.take(int(mask.sum()))]
    elif 0 < kind <= 17:
        at = -1
        for _ in range(text.number(n.bit_length())):
            gap = text.bits.index("1", text.at) - text.at
            text.take(gap + 1)
            negative = text.number(1)
            at += (gap << kind) + text.number(kind) + 1
            if at >= n:
                raise ValueError("position")
            votes[at] = 1 - 2 * negative
    elif kind:
        raise ValueError("kind")
    text.end_byte()


def decode(data: bytes, length: int, block: int = BLOCK) -> Any:
    """Planes (2, B), signs and mask, of a message; raises ValueError if it is none."""
    text, votes = _Reader(data), np.zeros(length, int)
    for at in range(0, length, block):
        _decode_block(text, votes[at : at + block])
    if text.at != len(text.bits):
        raise ValueError("long")
    return np.stack([bits_to_plane(votes < 0), bits_to_plane(votes != 0)])
