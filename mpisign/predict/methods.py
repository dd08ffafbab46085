"""The methods that are compared: what each computes and sends for a bucket of the gradient."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

from mpisign.collectives import auto
from mpisign.collectives.dry_run import DryRun, dry_run
from mpisign.collectives.hierarchy import Hierarchy, grouped, hierarchy_of
from mpisign.collectives.traffic import vote_traffic
from mpisign.engine.header import NBYTES as HEADER
from mpisign.engine.header import SHORT_ABOVE
from mpisign.predict import buckets
from mpisign.predict.buckets import Bucket, length
from mpisign.predict.equations import (
    ALONE,
    Compute,
    Exchange,
    Network,
    StepTime,
    ring_seconds,
    step_time,
)
from mpisign.predict.models import ModelShapes
from mpisign.transports.base import Transport

_FP32, _FP16 = 4, 2
_SHRINKS = 2  # times fewer values, at least, of a matrix that PowerSGD compresses, as torch's hook
_HEAD = 8 + 4  # bytes of a message of ef_sign before its plane: NaNs, and a scale a parameter


@dataclass(frozen=True)
class Rates:
    """Seconds per coordinate of what methods compute, measured.

    Args:
        pack: momentum and sign plane (signum).
        tally: of one plane of a majority.
        unpack: a result to +1 and -1.
        pack_error_feedback: ef_sign's plane, scale and residual.
        sum_signs: of one plane of ef_sign's mean.
        copy: of float32 to new memory: ef_sign copies residuals, and divides by the learning rate.
        cast: to 16 bits and back.
        sum_fp32, sum_fp16: one addition of a ring.
        powersgd: projections, orthogonalisation, error feedback; None: not measured.

    Example:
        >>> Rates(1e-10, 1e-11, 1e-10, 1e-10, 1e-11, 1e-10, 1e-10, 1e-10, 1e-10).powersgd is None
        True
    """

    pack: float
    tally: float
    unpack: float
    pack_error_feedback: float
    sum_signs: float
    copy: float
    cast: float
    sum_fp32: float
    sum_fp16: float
    powersgd: float | None = None


@dataclass(frozen=True)
class Cluster:
    """How many ranks on which network, and what a rank computes.

    ``message``: a good size of a message of votes, in bytes; the default is MPI's.
    """

    ranks: int
    network: Network
    rates: Rates
    powersgd_rank: int = 4
    message: int = Transport.message


@dataclass(frozen=True)
class PredictedMethod:
    """A method. ``exchange``: a bucket's, on a cluster. ``cut``: buckets with overlap.

    ``at_once``: without overlap the whole gradient is one exchange, else bucket after bucket.
    """

    name: str
    exchange: Callable[[Bucket, Cluster], Exchange]
    cut: Callable[[ModelShapes], list[Bucket]]
    votes: bool = False
    at_once: bool = True

    def step(
        self, model: ModelShapes, cluster: Cluster, compute: Compute, overlap: bool
    ) -> StepTime:
        """Predicts a step."""
        cut = self.cut if overlap or not self.at_once else buckets.whole
        seen: dict[Any, Exchange] = {}
        found = []
        for bucket in cut(model):
            key = tuple(bucket)
            if key not in seen:
                seen[key] = self.exchange(bucket, cluster)
            found.append(seen[key])
        return step_time(compute, found, overlap)


def _allreduce(bucket: Bucket, c: Cluster, nbytes: int) -> Exchange:
    """A ring of fp32 or fp16: each rank adds a share of (p - 1) / p."""
    n, half = length(bucket), nbytes == _FP16
    adds = (c.rates.sum_fp16 if half else c.rates.sum_fp32) * (c.ranks - 1) / c.ranks
    computes = n * (adds + (c.rates.cast if half else 0.0))
    wire = ring_seconds(nbytes * n, c.ranks, c.network)
    return Exchange(computes, wire, 2 * nbytes * n * (c.ranks - 1) / c.ranks)


def _vote(bucket: Bucket, c: Cluster, algorithm: str) -> Exchange:
    """Packing, as many planes of a tally as ``_tallied`` says, unpacking; the collective's wire."""
    n = length(bucket)
    run = vote_run(algorithm, n, c.ranks, c.network.ranks_per_node, c.message)
    computes = n * (c.rates.pack + _tallied(algorithm, c) * c.rates.tally + c.rates.unpack)
    wire = c.network.costs.seconds(run) + _agreement(algorithm, n, c)
    return Exchange(computes, wire, run.near.sent + run.far.sent)


def _tallied(algorithm: str, c: Cluster) -> float:
    """Planes of the whole gradient that a rank counts: p where all tally all, else 1 in shares."""
    if algorithm == "allgather":
        return c.ranks
    if algorithm == "alltoall":
        return 1
    each = min(c.ranks, c.network.ranks_per_node)
    return 1 + each.bit_length() / each  # ballots in the node, then count planes of the nodes


def _agreement(algorithm: str, n: int, c: Cluster) -> float:
    """Preambles that travel alone, or among many ranks digests of headers, one after another."""
    sends = _agreed(algorithm, n, c.ranks, c.network.ranks_per_node)
    alone = c.network.nodes(c.ranks) == 1
    latency = c.network.local_latency if alone else c.network.latency
    rounds = sends if c.ranks > SHORT_ABOVE else bool(sends)
    return rounds * latency + sends * c.network.per_message


@lru_cache(maxsize=4096)
def _agreed(algorithm: Any, n: int, ranks: int, each: int) -> int:
    nodes = _nodes(ranks, each) if algorithm == "hierarchical" else None
    return vote_traffic(n, ranks, algorithm=algorithm, nodes=nodes).agreement_sends


def _nodes(ranks: int, each: int) -> list[int]:
    return [rank // each for rank in range(ranks)]


@lru_cache(maxsize=4096)
def vote_run(algorithm: str, n: int, ranks: int, each: int, message: int) -> DryRun:
    """What the busiest rank sends, by the collective's own code, run without ranks.

    Args:
        algorithm: "allgather", "alltoall" or "hierarchical".
        n: coordinates.
        ranks: in all.
        each: ranks a node.
        message: a good size of a message, in bytes.

    Returns:
        mpisign's DryRun: messages and bytes within the node and beyond, and rounds.

    Raises:
        ValueError: a number is none of these.

    Example:
        >>> vote_run("alltoall", 8000, 4, 1, 1 << 16).far.sent
        1500
    """
    hierarchy: Hierarchy = hierarchy_of((grouped(_nodes(ranks, each)),))
    busiest = hierarchy.busiest
    near = frozenset(hierarchy.mates(busiest))
    run = auto.named(algorithm, 1, hierarchy)
    return dry_run(run, n, 1, 1, busiest, ranks, message, near, memory=False)


def _ef_sign(bucket: Bucket, c: Cluster) -> Exchange:
    """Headers, then one plane and a scale a parameter to all; every rank adds all up."""
    n, p, each = length(bucket), c.ranks, min(c.ranks, c.network.ranks_per_node)
    nbytes = -(-n // 8) + _HEAD * len(bucket)
    pieces = max(1, nbytes // c.message)
    rates = c.rates
    computes = n * (rates.pack_error_feedback + p * rates.sum_signs + 2 * rates.copy)
    run = DryRun(rounds=[(each > 1, p > each)] * 2)
    for load, ranks in ((run.near, each - 1), (run.far, p - each)):
        load.sends = load.receives = ranks * (1 + pieces)
        load.sent = load.received = ranks * (HEADER + nbytes)
    return Exchange(computes, c.network.costs.seconds(run), (p - 1) * (HEADER + nbytes))


def _powersgd(bucket: Bucket, c: Cluster) -> Exchange:
    """Vogels et al. 2019: P, then Q of every matrix that shrinks, and the rest as it is, in fp32.

    As torch's hook: three allreduces, the rest beside P.
    """
    rank, left, p_values, q_values = c.powersgd_rank, 0, 0, 0
    for shape in bucket:
        size = length([shape])
        rows, columns = (shape[0], size // shape[0]) if len(shape) > 1 else (1, size)
        if len(shape) > 1 and (rows + columns) * rank * _SHRINKS < size:
            p_values += rows * rank
            q_values += columns * rank
        else:
            left += size
    parts = [values for values in (left, p_values, q_values) if values]
    wire = sum(ring_seconds(_FP32 * values, c.ranks, c.network) for values in parts)
    sent = 2 * _FP32 * sum(parts) * (c.ranks - 1) / c.ranks
    return Exchange(length(bucket) * (c.rates.powersgd or 0.0), wire, sent)


FP32, FP16 = "fp32", "fp16"
#: In the order of the tables. The baseline is fp16: the 16-bit ring.
METHODS: tuple[PredictedMethod, ...] = (
    PredictedMethod(FP32, partial(_allreduce, nbytes=_FP32), buckets.ddp_buckets),
    PredictedMethod(FP16, partial(_allreduce, nbytes=_FP16), buckets.ddp_buckets),
    *(
        PredictedMethod(name, partial(_vote, algorithm=algorithm), buckets.vote_buckets, votes=True)
        for name, algorithm in (
            ("allgather-vote", "allgather"),
            ("alltoall-vote", "alltoall"),
            ("hierarchical", "hierarchical"),
        )
    ),
    PredictedMethod("ef_sign", _ef_sign, buckets.vote_buckets, at_once=False),
    PredictedMethod("PowerSGD", _powersgd, buckets.ddp_buckets),
)


def predict(
    model: ModelShapes,
    cluster: Cluster,
    compute: Compute = ALONE,
    overlap: bool = False,
    methods: Sequence[PredictedMethod] = METHODS,
) -> dict[str, StepTime]:
    """Seconds of a step by every method that can be predicted.

    Hierarchical needs several nodes of several ranks, PowerSGD a measured rate.

    Args:
        model: whose gradient travels.
        cluster: ranks, network and measured rates.
        compute: the step without communication.
        overlap: whether buckets travel during backward.
        methods: which.

    Returns:
        StepTime by the methods' names.

    Raises:
        ValueError: fewer than two ranks.

    Example:
        >>> from mpisign.predict.models import model_of
        >>> rates = Rates(1e-10, 1e-11, 1e-10, 1e-10, 1e-11, 1e-10, 1e-10, 1e-10, 1e-10)
        >>> found = predict(model_of("resnet50"), Cluster(8, Network(1e-4, 125e6), rates))
        >>> round(found["fp16"].seconds, 2), round(found["alltoall-vote"].seconds, 3)
        (0.72, 0.05)
    """
    if cluster.ranks < 2:
        raise ValueError(f"predict: cluster must have two ranks or more, got {cluster.ranks}")
    each = cluster.network.ranks_per_node
    found = {}
    for method in methods:
        if method.name == "hierarchical" and not 1 < each < cluster.ranks:
            continue
        if method.name == "PowerSGD" and cluster.rates.powersgd is None:
            continue
        found[method.name] = method.step(model, cluster, compute, overlap)
    return found
