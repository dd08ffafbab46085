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
    """Bytes that suffice for any message of ``length`` coordinates, and for ``encode`` to work in.

    A message itself is at most 8 bytes shorter: two planes and a byte for 131,072 coordinates.
    """
    return 2 * ((length + 7) // 8) + -(-length // _BLOCK) + 8


def encode(planes: Any, *, length: int | None = None, out: Any = None) -> Any:
    """Planes as a message that tells itself how it is coded.

    ``planes``: uint8 (2, B), sign and mask, in host memory. ``length``: coordinates, default 8 B;
    bits behind them, and signs of the absent, are left out. Returns uint8 (n,) of the same
    framework, the beginning of ``out`` or of new memory; ``out``: contiguous uint8 of
    ``coded_bytes_bound(length)`` bytes or more, which are all of no use afterwards but the message.

    Wire layout: blocks of 131,072 coordinates, the last one shorter, each by itself the shortest of
    four: a byte of kind, then bits, lowest first, zeros up to a whole byte. Kind 0: nothing is
    present. 1 to 17, the Rice parameter k: the number of those present, in as many bits as the
    block's number of coordinates has; then for each, with g the absent ones since the last, g >> k
    zeros, a one, the sign, g mod 2^k in k bits. 32: the mask plane, then the signs of those
    present. 33: all are present, the sign plane. No coordinates: no bytes.

    At a share p of independent coordinates present, bits per coordinate: p (k + 1 + 1 / (1 -
    (1 - p)^(2^k))), within 2% of the entropy (p = 0.1: .576, .05: .339, .01: .091), up to p = 0.38,
    from where on it is 1 + p. Source: Golomb 1966; Rice and Plaunt 1971; the parameter: Kiely 2004,
    Selecting the Golomb parameter in Rice coding. Raises TypeError, ValueError for arguments that
    do not fit.
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
    """The planes of a message that ``encode`` made of ``length`` coordinates: uint8 (2, B).

    ``message``: contiguous uint8 (n,) in host memory, from wherever: nothing in it is trusted.
    Returns an array of the same framework, or ``out``, uint8 (2, B).

    Raises WireError if ``message`` is none of that length: too short, too long, with a position
    beyond the length, a block of unknown kind, or padding not 0; ``out`` is of no use then.
    TypeError, ValueError for arguments that do not fit.
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
