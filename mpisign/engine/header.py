"""The header that each rank sends before data moves: all ranks proceed, or all raise one error.

Wire layout, little-endian, 512 bytes a rank. Agreed, 56 bytes that must be the same on all ranks:
magic "MPSG", version u16, operation u8, dtype u8, algorithm u8, zeros u8, nan u8, ties u8,
byzantine_f u16, device u8 (0 host, 1 CUDA), a byte 0, step u64, tensor u64, length u64, seed u64,
settings u64. Own, 72 bytes: rank u32, refused u8, nan_count_pending u8, fresh u8, stop u8, NaNs
u64, weight f64, presence 16 bytes, replica digest 32 bytes. Then 384 bytes, zero-filled: the UTF-8
reason of a refusal. Fixed size, never unpickled. Among many ranks 16 bytes go
first (engine/dissemination.py): 0, then 15 of BLAKE2b over all but the rank and the last 384 bytes;
or 1 where the whole header must be read.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from mpisign import policies
from mpisign.backend import arrays
from mpisign.errors import WireError
from mpisign.transports.base import Bytes

MAGIC = b"MPSG"
VERSION = 2
OPERATIONS = (
    "majority_vote",
    "bucket_vote",
    "average",
    "tally",
    "compressed_mean",
    "halves",
    "bucket_mean_of_signs",
    "bucket_gathered_vote",
    "bucket_gathered_mean",
    "bucket_compressed_mean",
    "shard_vote",
    "robust_aggregate",
    "bucket_robust",
    "bucket_detox",
    "plan_majority_vote",
    "mean_of_signs",
    "warm_up",
    "checkpoint",
    "bucket_polar_vote",
    "factorize",
    "federated",
    "found_inf",
)
DEVICES = ("cpu", "cuda")  # where the arrays are, which says the wire
_AGREED = struct.Struct("<4sH6BHBx5Q")
_OWN = struct.Struct("<I4BQd16s32s")
NBYTES = 512
#: Where the reason of a refusal lies.
REASON_AT = _AGREED.size + _OWN.size
RANK = slice(_AGREED.size, _AGREED.size + 4)
#: Among more ranks than these, digests of headers go first.
SHORT_ABOVE = 64
#: Where a header says byzantine_f.
BYZANTINE_F = slice(12, 14)


@dataclass(slots=True)
class Header:
    """What one rank states about the collective it is about to run.

    ``settings``: a digest of the optimizer's options. ``presence``: of which slots of a bucket have
    a gradient here. ``replica``: of an earlier vote's result or of the parameters (first byte 1 or
    2, then the number of the vote), zeros if not taken. ``nan_count_pending``: NaNs are not counted
    yet. ``fresh``: this rank may lack state that all ranks share. ``stop``: it asks all to stop
    after this exchange. ``reason``: why it refuses.
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
    nan_count_pending: bool = False
    fresh: bool = False
    stop: bool = False
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

    def terms(self) -> bytes:
        """The agreed part without step and settings: what stays the same from call to call."""
        return self._agreed(0, 0)

    def _agreed(self, step: int, settings: int) -> bytes:
        return _AGREED.pack(
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
            step,
            self.tensor,
            self.length,
            self.seed,
            settings,
        )

    def encode(self) -> Bytes:
        """The bytes on the wire: uint8 (512,)."""
        data = bytearray(NBYTES)
        data[: _AGREED.size] = self._agreed(self.step, self.settings)
        _OWN.pack_into(
            data,
            _AGREED.size,
            self.rank,
            bool(self.reason),
            self.nan_count_pending,
            self.fresh,
            self.stop,
            self.nans,
            self.weight,
            self.presence,
            self.replica,
        )
        message = np.frombuffer(data, dtype=np.uint8)
        if self.reason:
            text = self.reason.encode()[: NBYTES - REASON_AT]
            message[REASON_AT : REASON_AT + len(text)] = np.frombuffer(text, dtype=np.uint8)
        return message

    def short(self, message: Bytes) -> Bytes:
        """16 bytes in the place of ``message``: 0 and a digest of all but the rank, if it may stand
        for the whole; else 1, and headers must follow."""
        data = message.tobytes()
        digest = hashlib.blake2b(data[: RANK.start], digest_size=15)
        digest.update(data[RANK.stop : REASON_AT])
        plain = not (self.reason or self.nans or self.byzantine_f)
        return np.frombuffer(bytes([not plain]) + digest.digest(), dtype=np.uint8)

    @classmethod
    def decode(cls, message: Bytes, rank: int) -> Header:
        """The header that ``rank`` sent; WireError if the bytes are none."""
        data = message.tobytes()
        magic, version, operation, dtype, algorithm, zeros, nan, ties, *agreed = (
            _AGREED.unpack_from(data)
        )
        sender, refused, pending, fresh, stop, nans, weight, presence, replica = _OWN.unpack_from(
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
            text = data[REASON_AT:].rstrip(b"\0").decode(errors="replace")
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
                nan_count_pending=bool(pending),
                fresh=bool(fresh),
                stop=bool(stop),
                nans=nans,
                weight=weight,
                presence=presence,
                replica=replica,
                reason=reason,
            )
        except IndexError:
            raise WireError(f"rank {rank} sent a header with an unknown code") from None
