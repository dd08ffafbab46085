"""What ranks tell each other before data moves, so that all go ahead or all raise the same error.

Wire layout, little-endian, 512 bytes a rank. Agreed, 56 bytes that must be the same on all ranks:
magic "MPSG", version u16, operation u8, dtype u8, algorithm u8, zeros u8, nan u8, ties u8,
byzantine_f u16, device u8 (0 host, 1 CUDA), a byte 0, step u64, tensor u64, length u64, seed u64,
settings u64. Own, 72 bytes: rank u32, refused u8, late u8, 2 bytes 0, NaNs u64, weight f64,
presence 16 bytes, replica digest 32 bytes. Then 384 bytes, zero-filled: UTF-8 reason of a refusal,
or the planes of a small ballot. Fixed size, never unpickled. Among many ranks 16 bytes a rank go
first: 0, then 15 of BLAKE2b over all but the rank and the last 384 bytes; or 1 where the whole
header must be read.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from mpisign import arrays, policies
from mpisign.errors import CollectiveError, DisagreementError, NaNError, WireError
from mpisign.transports.base import Bytes

MAGIC = b"MPSG"
VERSION = 2
OPERATIONS = ("majority_vote", "bucket_vote", "average", "tally", "compressed_mean")
_OF_X = ("majority_vote", "tally", "mean_of_signs")  # front ends that are given one array
DEVICES = ("cpu", "cuda")  # where the arrays are, which says the wire
_AGREED = struct.Struct("<4sH6BHBx5Q")
_OWN = struct.Struct("<I2B2xQd16s32s")
NBYTES = 512
#: Where the planes of a small ballot lie, and how many bytes of them fit.
INLINE = _AGREED.size + _OWN.size
INLINE_NBYTES = NBYTES - INLINE
_RANK = slice(_AGREED.size, _AGREED.size + 4)
#: Among more ranks than these, digests of headers go first.
SHORT_ABOVE = 64
_FEW = 32  # ranks, up to which NumPy costs more than it saves
#: Where a header says byzantine_f.
BYZANTINE_F = slice(12, 14)


@dataclass(slots=True)
class Header:
    """One rank's word on the collective it is about to run.

    ``settings`` digests the optimizer's (learning rate and so on); ``presence`` which members of a
    bucket have a gradient here; ``replica`` what replicas must have in common, an earlier vote's
    result or the parameters (first byte 1 or 2, then which vote), zeros if not taken; ``late`` that
    NaNs are not counted yet; ``reason`` says why this rank refuses.
    """

    operation: str
    dtype: str = "float32"
    algorithm: policies.Algorithm = "auto"
    zeros: policies.Zeros = policies.DEFAULT_ZEROS
    nan: policies.Nan = policies.DEFAULT_NAN
    ties: policies.Ties = policies.DEFAULT_TIES
    byzantine_f: int = 0
    device: str = "cpu"
    step: int = 0
    tensor: int = 0
    length: int = 0
    seed: int = 0
    settings: int = 0
    rank: int = 0
    late: bool = False
    nans: int = 0
    weight: float = 1.0
    presence: bytes = bytes(16)
    replica: bytes = bytes(32)
    reason: str = ""

    AGREED: ClassVar[tuple[str, ...]] = (
        "operation",
        "step",
        "tensor",
        "length",
        "dtype",
        "algorithm",
        "byzantine_f",
        "device",
        "zeros",
        "nan",
        "ties",
        "seed",
        "settings",
    )

    def refusal(self, reason: str) -> Header:
        """This header, saying that its rank cannot take part."""
        return replace(self, reason=reason or "unknown")

    def encode(self, inline: Bytes | None = None) -> Bytes:
        """The bytes on the wire: uint8 (512,); with ``inline``, the planes of a small ballot."""
        data = bytearray(NBYTES)
        _AGREED.pack_into(
            data,
            0,
            MAGIC,
            VERSION,
            OPERATIONS.index(self.operation),
            arrays.FLOATS.index(self.dtype),
            policies.ALGORITHMS.index(self.algorithm),
            policies.ZEROS.index(self.zeros),
            policies.NAN.index(self.nan),
            policies.TIES.index(self.ties),
            self.byzantine_f,
            DEVICES.index(self.device),
            self.step,
            self.tensor,
            self.length,
            self.seed,
            self.settings,
        )
        _OWN.pack_into(
            data,
            _AGREED.size,
            self.rank,
            bool(self.reason),
            self.late,
            self.nans,
            self.weight,
            self.presence,
            self.replica,
        )
        message = np.frombuffer(data, dtype=np.uint8)
        if self.reason:
            text = self.reason.encode()[:INLINE_NBYTES]
            message[INLINE : INLINE + len(text)] = np.frombuffer(text, dtype=np.uint8)
        elif inline is not None:
            message[INLINE : INLINE + inline.size] = inline.reshape(-1)
        return message

    def short(self, message: Bytes) -> Bytes:
        """16 bytes in the place of ``message``: 0 and a digest of all but the rank, if it may stand
        for the whole; else 1, and headers must follow."""
        data = message.tobytes()
        digest = hashlib.blake2b(data[: _RANK.start], digest_size=15)
        digest.update(data[_RANK.stop : INLINE])
        plain = not (self.reason or self.nans or self.byzantine_f)
        return np.frombuffer(bytes([not plain]) + digest.digest(), dtype=np.uint8)

    @classmethod
    def decode(cls, message: Bytes, rank: int) -> Header:
        """The header that ``rank`` sent; WireError if the bytes are none."""
        data = message.tobytes()
        magic, version, operation, dtype, algorithm, zeros, nan, ties, *agreed = (
            _AGREED.unpack_from(data)
        )
        sender, refused, late, nans, weight, presence, replica = _OWN.unpack_from(
            data, _AGREED.size
        )
        if magic != MAGIC or version != VERSION or sender != rank:
            raise WireError(
                f"rank {rank} sent no mpisign header of version {VERSION}: "
                f"magic {magic!r}, version {version}, rank {sender}"
            )
        byzantine_f, device, step, tensor, length, seed, settings = agreed
        reason = ""
        if refused:
            text = data[INLINE:].rstrip(b"\0").decode(errors="replace")
            reason = "".join(c if c.isprintable() else "?" for c in text) or "unknown"
        try:
            return cls(
                operation=OPERATIONS[operation],
                dtype=arrays.FLOATS[dtype],
                algorithm=policies.ALGORITHMS[algorithm],
                zeros=policies.ZEROS[zeros],
                nan=policies.NAN[nan],
                ties=policies.TIES[ties],
                byzantine_f=byzantine_f,
                device=DEVICES[device],
                step=step,
                tensor=tensor,
                length=length,
                seed=seed,
                settings=settings,
                rank=sender,
                late=bool(late),
                nans=nans,
                weight=weight,
                presence=presence,
                replica=replica,
                reason=reason,
            )
        except IndexError:
            raise WireError(f"rank {rank} sent a header with an unknown code") from None


@dataclass(slots=True)
class Agreed:
    """What all ranks' headers said, where they agree. ``rows``: uint8 (ranks, 512), as received.

    ``header``: this rank's. ``function``: the caller's name for messages. ``weights``: by rank,
    None if all are 1.
    """

    function: str
    header: Header
    rows: Bytes
    late: bool
    weights: list[float] | None
    same_presence: bool


def agree(rows: Bytes, own: Header, function: str, alike: bool, size: int) -> Agreed:
    """The headers (ranks, 512) of all ranks; the same error on every rank unless all may go ahead.

    ``alike``: what ``all_alike`` said of them, or that all ``size`` are known to be as the one
    given.

    CollectiveError: a rank refused. DisagreementError: a field differs; names ranks and values.
    NaNError: a rank holds NaN under nan="raise". CollectiveError: replicas differ. WireError: a
    message is no header, or holds a weight that is none.
    """
    if alike and not (own.reason or own.nans):
        return Agreed(
            function, own, rows, own.late, None if own.weight == 1.0 else [own.weight] * size, True
        )
    headers = [Header.decode(row, r) for r, row in enumerate(rows)]
    _check(headers, function)
    weights = [h.weight for h in headers]
    for rank, weight in enumerate(weights):
        if not 0 <= weight < float("inf"):
            raise WireError(f"rank {rank} sent a weight of {weight}")
    return Agreed(
        function,
        own,
        rows,
        any(h.late for h in headers),
        None if all(w == 1.0 for w in weights) else weights,
        len({h.presence for h in headers}) == 1,
    )


def all_alike(rows: Bytes, own: int) -> bool:
    """Whether all headers are the own one but for their ranks: the usual case, in one look."""
    size = len(rows)
    if size > _FEW:
        ranks = np.arange(size, dtype="<u4").view(np.uint8).reshape(size, 4)
        same = rows[:, :INLINE] == rows[own, :INLINE]
        same[:, _RANK] = rows[:, _RANK] == ranks
        return bool(same.all())
    data = rows.tobytes()
    heads = [data[at : at + INLINE] for at in range(0, len(data), NBYTES)]
    mine, first, last = heads[own], _RANK.start, _RANK.stop
    return all(
        head[:first] == mine[:first]
        and head[first:last] == rank.to_bytes(4, "little")
        and head[last:] == mine[last:]
        for rank, head in enumerate(heads)
    )


def _check(headers: Sequence[Header], function: str) -> None:
    reasons = _group([h for h in headers if h.reason], lambda h: h.reason)
    if reasons:
        refused = "; ".join(f"{name_ranks(r)}: {reason}" for reason, r in reasons.items())
        raise CollectiveError(f"{function}: cannot go on because of {refused}")
    differences = []
    said = {"tensor": "names, shapes or dtypes of the parameters", "settings": "optimizer settings"}
    if headers[0].operation == "compressed_mean":
        said["settings"] = "blocks of the states"
    for name in Header.AGREED:
        groups = _group(headers, lambda h, name=name: getattr(h, name))  # type: ignore[misc]
        if len(groups) > 1:
            if name in said:
                sides = " against ".join(name_ranks(r) for r in groups.values())
                differences.append(f"{said[name]} ({sides})")
                continue
            values = "; ".join(f"{name_ranks(r)}: {v}" for v, r in groups.items())
            differences.append(f"{name} ({values})")
    if differences:
        raise DisagreementError(f"{function}: ranks disagree on {', '.join(differences)}")
    if headers[0].nan == "raise":
        refuse_nans(function, [h.nans for h in headers])
    for kind, what in ((1, "an earlier vote's result"), (2, "the parameters they start from")):
        said_so = [h for h in headers if h.replica[0] == kind]
        latest = max((h.replica[1] for h in said_so), default=0)
        replicas = _group([h for h in said_so if h.replica[1] == latest], lambda h: h.replica)
        if len(replicas) > 1:
            sides = " against ".join(name_ranks(r) for r in replicas.values())
            raise CollectiveError(
                f"{function}: replicas differ in {what}: {sides}. All ranks must start from the "
                "same parameters: one seed, or a broadcast"
            )


def refuse_nans(function: str, nans: Sequence[int]) -> None:
    """NaNError if any rank holds NaN. ``nans``: how many, by rank."""
    if any(nans):
        held = ", ".join(f"{n} on rank {r}" for r, n in enumerate(nans) if n)
        raise NaNError(
            f"{function}: {'x' if function in _OF_X else 'gradients'} must hold no NaN "
            f"under nan='raise', got {held} (nan='abstain', an argument of majority_vote and of "
            "the compressor, leaves them out of the vote)"
        )


def _group(headers: Sequence[Header], key: Callable[[Header], Any]) -> dict[Any, list[int]]:
    groups: dict[Any, list[int]] = {}
    for h in headers:
        groups.setdefault(key(h), []).append(h.rank)
    return groups


def name_ranks(ranks: Sequence[int]) -> str:
    """ "rank 3" or "ranks 0-2, 5"."""
    runs: list[list[int]] = []
    for r in ranks:
        if runs and runs[-1][1] == r - 1:
            runs[-1][1] = r
        else:
            runs.append([r, r])
    text = ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)
    return f"rank{'s' if len(ranks) > 1 else ''} {text}"
