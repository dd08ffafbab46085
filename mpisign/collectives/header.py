"""What ranks tell each other before data moves, so that all go ahead or all raise the same error.

Wire layout, little-endian, 256 bytes a rank: magic "MPSG", version u16, operation u8, dtype u8,
algorithm u8, zeros u8, nan u8, ties u8, refused u8, 3 bytes 0, rank u32, step u64, tensor u64,
length u64, seed u64, settings u64, NaNs u64, presence 16 bytes, replica digest 32 bytes, reason
UTF-8 136 bytes, zero-filled. Fixed size, never unpickled.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from mpisign import arrays, policies
from mpisign.errors import CollectiveError, DisagreementError, NaNError, WireError

MAGIC = b"MPSG"
VERSION = 1
OPERATIONS = ("majority_vote", "bucket_vote", "average")
_LAYOUT = struct.Struct("<4sH7B3xI6Q16s32s136s")
NBYTES = 256
assert _LAYOUT.size <= NBYTES


@dataclass(frozen=True)
class Header:
    """One rank's word on the collective it is about to run.

    Every field but rank, NaNs, presence and reason must be the same on all ranks. ``settings``
    digests the optimizer's (learning rate and so on); ``presence`` which members of a bucket have a
    gradient here; ``replica`` what replicas must have in common, an earlier vote's result or the
    parameters (first byte 1 or 2), zeros if not taken; ``reason`` says why this rank refuses.
    """

    operation: str
    dtype: str = "float32"
    algorithm: policies.Algorithm = "auto"
    zeros: policies.Zeros = policies.DEFAULT_ZEROS
    nan: policies.Nan = policies.DEFAULT_NAN
    ties: policies.Ties = policies.DEFAULT_TIES
    step: int = 0
    tensor: int = 0
    length: int = 0
    seed: int = 0
    settings: int = 0
    rank: int = 0
    nans: int = 0
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
        "zeros",
        "nan",
        "ties",
        "seed",
        "settings",
    )

    def refusal(self, reason: str) -> Header:
        """This header, saying that its rank cannot take part."""
        return replace(self, reason=reason or "unknown")

    def encode(self) -> bytes:
        """The 256 bytes on the wire."""
        packed = _LAYOUT.pack(
            MAGIC,
            VERSION,
            OPERATIONS.index(self.operation),
            arrays.FLOATS.index(self.dtype),
            policies.ALGORITHMS.index(self.algorithm),
            policies.ZEROS.index(self.zeros),
            policies.NAN.index(self.nan),
            policies.TIES.index(self.ties),
            bool(self.reason),
            self.rank,
            self.step,
            self.tensor,
            self.length,
            self.seed,
            self.settings,
            self.nans,
            self.presence,
            self.replica,
            self.reason.encode()[:136],
        )
        return packed.ljust(NBYTES, b"\0")

    @classmethod
    def decode(cls, data: bytes, rank: int) -> Header:
        """The header that ``rank`` sent; WireError if the bytes are none."""
        (magic, version, operation, dtype, algorithm, zeros, nan, ties, refused, sender, *rest) = (
            _LAYOUT.unpack(data[: _LAYOUT.size])
        )
        if magic != MAGIC or version != VERSION or sender != rank:
            raise WireError(
                f"rank {rank} sent no mpisign header of version {VERSION}: "
                f"magic {magic!r}, version {version}, rank {sender}"
            )
        step, tensor, length, seed, settings, nans, presence, replica, text = rest
        reason = text.rstrip(b"\0").decode(errors="replace")
        try:
            return cls(
                operation=OPERATIONS[operation],
                dtype=arrays.FLOATS[dtype],
                algorithm=policies.ALGORITHMS[algorithm],
                zeros=policies.ZEROS[zeros],
                nan=policies.NAN[nan],
                ties=policies.TIES[ties],
                step=step,
                tensor=tensor,
                length=length,
                seed=seed,
                settings=settings,
                rank=sender,
                nans=nans,
                presence=presence,
                replica=replica,
                reason="".join(c if c.isprintable() else "?" for c in reason)
                if reason or not refused
                else "unknown",
            )
        except IndexError:
            raise WireError(f"rank {rank} sent a header with an unknown code") from None


def agree(headers: Sequence[Header], function: str) -> None:
    """Raises the same error on every rank unless all may go ahead.

    CollectiveError: a rank refused. DisagreementError: a field differs; names ranks and values.
    NaNError: a rank holds NaN under nan="raise". CollectiveError: replicas differ.
    """
    reasons = _group([h for h in headers if h.reason], lambda h: h.reason)
    if reasons:
        refused = "; ".join(f"{_ranks(r)}: {reason}" for reason, r in reasons.items())
        raise CollectiveError(f"{function}: cannot go on because of {refused}")
    differences = []
    said = {"tensor": "names, shapes or dtypes of the parameters", "settings": "optimizer settings"}
    for name in Header.AGREED:
        groups = _group(headers, lambda h, name=name: getattr(h, name))  # type: ignore[misc]
        if len(groups) > 1:
            if name in said:
                sides = " against ".join(_ranks(r) for r in groups.values())
                differences.append(f"{said[name]} ({sides})")
                continue
            values = "; ".join(f"{_ranks(r)}: {v}" for v, r in groups.items())
            differences.append(f"{name} ({values})")
    if differences:
        raise DisagreementError(f"{function}: ranks disagree on {', '.join(differences)}")
    if headers[0].nan == "raise" and any(h.nans for h in headers):
        held = ", ".join(f"{h.nans} on rank {h.rank}" for h in headers if h.nans)
        raise NaNError(
            f"{function}: {'x' if function == 'majority_vote' else 'gradients'} must hold no NaN "
            f"under nan='raise', got {held} (nan='abstain', an argument of majority_vote and of "
            "the compressor, leaves them out of the vote)"
        )
    for kind, what in ((1, "an earlier vote's result"), (2, "the parameters they start from")):
        replicas = _group([h for h in headers if h.replica[0] == kind], lambda h: h.replica)
        if len(replicas) > 1:
            sides = " against ".join(_ranks(r) for r in replicas.values())
            raise CollectiveError(
                f"{function}: replicas differ in {what}: {sides}. All ranks must start from the "
                "same parameters: one seed, or a broadcast"
            )


def _group(headers: Sequence[Header], key: Callable[[Header], Any]) -> dict[Any, list[int]]:
    groups: dict[Any, list[int]] = {}
    for h in headers:
        groups.setdefault(key(h), []).append(h.rank)
    return groups


def _ranks(ranks: Sequence[int]) -> str:
    """ "rank 3" or "ranks 0-2, 5"."""
    runs: list[list[int]] = []
    for r in ranks:
        if runs and runs[-1][1] == r - 1:
            runs[-1][1] = r
        else:
            runs.append([r, r])
    text = ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)
    return f"rank{'s' if len(ranks) > 1 else ''} {text}"
