"""Sparse planes as short messages: Golomb-Rice coded positions, each with its sign."""

from __future__ import annotations

from typing import Any

from mpisign.backend import arrays
from mpisign.errors import WireError
from mpisign.planes import layout

_BLOCK = 1 << 17  # MPISIGN_SPARSE_BLOCK of kernels/host.h
#: What may be wrong with a message, by its code there.
_WRONG = {
    -1: "that ends before its last coordinate",
    -2: "that goes on behind its last coordinate",
    -3: "with a block of unknown kind",
    -4: "with a position beyond its block",
    -5: "with padding not 0",
}


def coded_bytes_bound(length: int) -> int:
    """Returns the bytes that ``encode`` needs for its output.

    A message has at most 8 bytes fewer: two planes and a byte for each 131,072 coordinates.

    Args:
        length: Coordinates, from 0.

    Example:
        >>> from mpisign import planes
        >>> planes.coded_bytes_bound(1000)
        259
    """
    return 2 * ((length + 7) // 8) + -(-length // _BLOCK) + 8


def encode(planes: Any, *, length: int | None = None, out: Any = None) -> Any:
    """Codes planes as a short message: Golomb-Rice coded gaps, each with a sign.

    Wire layout: blocks of 131,072 coordinates (the last one shorter), each coded by itself as the
    shortest of four: a byte of kind, then bits, lowest first, zeros up to a whole byte. Kind 0:
    nobody votes. 1 to 17, the Rice parameter k: the number of votes, in as many bits as the
    block's number of coordinates has; then for each vote, with g the absent ones since the last,
    g >> k zeros, a one, the sign, g mod 2^k in k bits. 32: the mask plane, then the signs of the
    votes. 33: all vote, the sign plane. No coordinates: no bytes.

    At a share p of independent votes a coordinate takes p (k + 1 + 1 / (1 - (1 - p)^(2^k))) bits,
    within 2% of the entropy (p = 0.1: .576, .05: .339, .01: .091) up to p = 0.38, then 1 + p.

    Args:
        planes: uint8 (2, B), sign and mask, in host memory. Bits beyond ``length`` and the signs
            of absent votes are not coded.
        length: Coordinates, default 8 B.
        out: Contiguous uint8 of at least ``coded_bytes_bound(length)`` bytes, overwritten.

    Returns:
        uint8 (n,) of the same framework, the beginning of ``out`` or of new memory.

    Raises:
        TypeError, ValueError: An argument does not fit.

    Source: Golomb 1966; Rice and Plaunt 1971; Kiely 2004, Selecting the Golomb parameter in Rice
    coding.

    Example:
        >>> import numpy as np
        >>> from mpisign import planes
        >>> votes = planes.pack(np.eye(1, 1000, 7), zeros="abstain")
        >>> message = planes.encode(votes, length=1000)
        >>> votes.nbytes, message.nbytes, np.array_equal(planes.decode(message, 1000), votes)
        (250, 4, True)
    """
    p, mask, nbytes = layout.planes_in("encode", planes)
    _on_host("encode", "planes", p)
    if len(p.shape) != 2:
        raise ValueError(f"encode: planes must have shape (2, B), got {p.shape}")
    length = layout.checked_length("encode", length, nbytes)
    bound = coded_bytes_bound(length)
    if out is None:
        out = arrays.empty((bound,), "uint8", like=p)
    o = arrays.view_bytes("encode", "out", out, writable=True)
    layout.same_device("encode", "out", o, p)
    if len(o.shape) != 1 or o.length < bound:
        raise ValueError(
            f"encode: out must have shape (n,), n at least {bound} for {length} coordinates, "
            f"got {o.shape}"
        )
    return out[: p.kernels.encode_sparse(p.address, mask, length, o.address)]


def decode(message: Any, length: int, out: Any = None) -> Any:
    """Decodes a message of ``encode``. The message may come from anywhere: none of it is trusted.

    Args:
        message: Contiguous uint8 (n,) in host memory.
        length: Coordinates that were encoded.
        out: uint8 (2, B) to write to; undefined after an error.

    Returns:
        uint8 (2, B) of the same framework: sign and mask plane.

    Raises:
        WireError: The message is too short or too long, has a position beyond ``length``, a block
            of unknown kind, or padding that is not 0.
        TypeError, ValueError: An argument does not fit.

    Example:
        >>> import numpy as np
        >>> from mpisign import planes
        >>> planes.decode(np.array([33, 2], dtype=np.uint8), 3).tolist()
        [[2], [7]]
    """
    m = arrays.view_bytes("decode", "message", message)
    _on_host("decode", "message", m)
    if len(m.shape) != 1:
        raise ValueError(f"decode: message must have shape (n,), got {m.shape}")
    if length < 0:
        raise ValueError(f"decode: length must not be negative, got {length}")
    nbytes = (length + 7) // 8
    out, sign, mask = layout.planes_out("decode", out, nbytes, True, False, m)
    wrong = m.kernels.decode_sparse(m.address, m.length, length, sign, mask)
    if wrong:
        raise WireError(f"decode: a message of {m.length} bytes {_WRONG[wrong]}")
    return out


def _on_host(function: str, argument: str, v: arrays.View) -> None:
    if v.device != "cpu":
        raise TypeError(f"{function}: {argument} must be in host memory, got device {v.device}")
