"""Which parameters travel together, in which order, and where each lies in its bucket's planes."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from mpisign import launcher, planes
from mpisign.compressors.base import Compressor
from mpisign.exchange.embeddings import Embeddings
from mpisign.exchange.parameter_slot import ParameterSlot
from mpisign.exchange.skip import Rule, variant

#: Coordinates of a bucket, by default, where several travel at once: a quarter of a MiB a plane.
BUCKET_SIZE = 2 << 20
_WEYL = 0x9E3779B97F4A7C15  # odd: the seeds of 2^64 buckets differ


class BucketLayout:
    """Where each tensor of a bucket lies in the bucket's planes.

    Each tensor starts at a byte of its own, so that tensors are packed and unpacked independently.
    The up to 7 bits between tensors are packed as 0 and never unpacked. ``nbytes``: bytes of one
    plane of the bucket; ``length``: its coordinates, padding included; ``spans``: each tensor's
    first byte and the byte behind it.
    """

    def __init__(self, lengths: Sequence[int]) -> None:
        self.lengths = tuple(lengths)
        ends = np.cumsum([0, *map(planes.plane_bytes, self.lengths)]).tolist()
        self.offsets = tuple(ends[:-1])
        self.spans = list(zip(ends, ends[1:], strict=False))
        self.nbytes: int = ends[-1]
        self.length = 8 * self.nbytes

    def span(self, i: int) -> slice:
        """The bytes of one tensor within a plane of the bucket."""
        return slice(*self.spans[i])

    def identity(self, names: Sequence[str]) -> int:
        """64 bits of BLAKE2b over names and lengths, by which ranks compare their layouts."""
        digest = hashlib.blake2b(digest_size=8)
        for name, length in zip(names, self.lengths, strict=True):
            digest.update(f"{len(name)}:{name}={length};".encode())
        return int.from_bytes(digest.digest(), "little")


class GradientBucket:
    """Slots that travel together, with one compressor. ``index``: its place among the buckets.

    ``present``: uint8, one byte a slot, 1 = it has a gradient here. ``waiting``: how many slots
    have no gradient yet in this step. ``aggregator``: kept from step to step, with what it is for.
    ``masked``: this rank sends nothing for a coordinate whose gradient is zero here, whatever the
    compressor remembers of it.
    """

    def __init__(
        self,
        index: int,
        slots: Sequence[ParameterSlot],
        compressor: Compressor,
        masked: bool = False,
    ) -> None:
        self.index = index
        self.slots = list(slots)
        self.compressor = compressor
        self.masked = masked
        self.layout = BucketLayout([s.parameter.numel() for s in slots])
        kind = " masked" if masked else ""
        self.tensor = self.layout.identity([f"{s.name} {s.parameter.dtype}{kind}" for s in slots])
        #: What traces say of it.
        self.about = {"coordinates": self.layout.length, "first": slots[0].name}
        self.present: Any = np.zeros(len(self.slots), dtype=np.uint8)
        self.waiting = 0
        self.aggregator: tuple[Any, Any] = (None, None)

    def aggregator_on(self, engine: Any, kind: type[Any], rank: int, size: int) -> Any:
        """The aggregator of ``kind`` between an engine's ranks; another one where they change."""
        groups = self.compressor.groups_of(size, engine.nodes)
        place = engine, kind, rank, size, groups, self.slots[0].parameter.device
        if self.aggregator[0] != place:
            self.free()
            self.aggregator = place, kind(self, rank, size, groups)
        return self.aggregator[1]

    def update_versions(self) -> None:
        """Gradients are the aggregate's from now on: see ``ParameterSlot.version``."""
        for s in self.slots:
            if s.grad is not None:
                s.version = s.grad._version

    def free(self) -> None:
        """Releases what is kept from step to step."""
        if self.aggregator[1] is not None:
            self.aggregator[1].free()
        self.aggregator = None, None

    def is_like(self, other: GradientBucket) -> bool:
        """Whether the same slots travel in the same order, and alike."""
        mine, others = ([id(s) for s in b.slots] for b in (self, other))
        how = self.compressor == other.compressor and self.masked == other.masked
        return how and mine == others

    def seed(self, seed: int) -> int:
        """A seed of its own: random bits are keyed by places, which count from 0 in each bucket."""
        return (seed + self.index * _WEYL) % (1 << 64)


def cut(
    function: str,
    slots: Sequence[ParameterSlot],
    compressor: Compressor,
    rule: Rule,
    bucket_size: int | None,
) -> list[GradientBucket]:
    """Buckets of up to ``bucket_size`` coordinates, or of one slot that has more.

    ``bucket_size`` None: one bucket for each compressor. Slots keep their order; those of one
    bucket share a device. Slots that need no gradient now lie in buckets of their own, behind all
    others, which need not wait for them; but what is ``whole`` stays so.
    """
    if compressor.whole:
        bucket_size = None
    embeddings = Embeddings()
    lanes: dict[Any, list[list[ParameterSlot]]] = {}
    order: list[tuple[tuple[Compressor, bool], list[ParameterSlot]]] = []
    for s in slots:
        how = rule(s.name, s.parameter)
        own = compressor.of_parameter(
            s.name, s.parameter, partial(embeddings.has, s.name, s.parameter)
        )
        c = variant(function, how, own).now(s.state)
        masked = how == "abstain" and c.remembers
        apart = None if c.whole else (s.parameter.device, s.parameter.requires_grad)
        lane = lanes.setdefault((c, masked, apart), [])
        full = bool(lane) and bucket_size is not None
        if full:
            held = sum(k.parameter.numel() for k in lane[-1])
            full = held + s.parameter.numel() > (bucket_size or 0)
        if not lane or full:
            lane.append([])
            order.append(((c, masked), lane[-1]))
        lane[-1].append(s)
    # In the order of their last slots: with overlap, that in which they fill up.
    place = {id(s): i for i, s in enumerate(slots)}
    order.sort(key=lambda pair: (not pair[1][0].parameter.requires_grad, place[id(pair[1][-1])]))
    return [GradientBucket(i, part, *how) for i, (how, part) in enumerate(order)]


def warn_of_bf16_mean(
    function: str, buckets: Sequence[GradientBucket], compressor: Compressor
) -> None:
    """Warns, on rank 0, of a model so small that nothing of it goes through ``compressor``."""
    halves = [b.compressor.aggregate == "halves" for b in buckets]
    if halves and all(halves) and compressor.aggregate != "halves" and launcher.is_first():
        warnings.warn(
            f"{function}: nothing goes through {compressor!r}: all tensors are vectors or of up to "
            "1,024 coordinates and travel in 16 bits; skip=None sends all alike",
            stacklevel=4,
        )
