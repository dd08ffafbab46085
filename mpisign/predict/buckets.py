"""How a model's gradient is cut into buckets, last layer first, as the front ends cut it."""

from __future__ import annotations

import math
from collections.abc import Sequence

from mpisign.predict.models import ModelShapes, Shape

#: Coordinates of a bucket of votes: mpisign.exchange.buckets.BUCKET_SIZE, which needs torch.
OF_VOTES = 2 << 20
#: Coordinates of DistributedDataParallel's first bucket, and of the others: 1 MiB and 25 MiB.
OF_DDP = (1 << 18, 25 << 18)

Bucket = list[Shape]


def vote_buckets(model: ModelShapes) -> list[Bucket]:
    """Buckets of up to ``OF_VOTES`` coordinates, or of one parameter that has more."""
    found: list[Bucket] = []
    held = 0
    for shape in reversed(model.shapes):
        size = math.prod(shape)
        if not found or held + size > OF_VOTES:
            found.append([])
            held = 0
        found[-1].append(shape)
        held += size
    return found


def ddp_buckets(model: ModelShapes) -> list[Bucket]:
    """Buckets that are closed by the parameter with which they reach their size."""
    found: list[Bucket] = []
    held, limits = 0, iter((*OF_DDP[:1], *[OF_DDP[1]] * len(model.shapes)))
    limit = 0
    for shape in reversed(model.shapes):
        if held >= limit:
            found.append([])
            held, limit = 0, next(limits)
        found[-1].append(shape)
        held += math.prod(shape)
    return found


def whole(model: ModelShapes) -> list[Bucket]:
    """All of it at once."""
    return [list(reversed(model.shapes))]


def length(bucket: Sequence[Shape]) -> int:
    """Coordinates of a bucket."""
    return sum(map(math.prod, bucket))
