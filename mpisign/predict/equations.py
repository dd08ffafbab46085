"""The performance model: seconds of a step from measured quantities, and nothing else.

Agarwal, Wang, Venkataraman, Papailiopoulos 2021, On the Utility of Gradient Compression in
Distributed Training Systems (arXiv 2103.00543), section 4. alpha: latency; BW: bytes per second of
a node's link, each way; p: ranks; k: buckets; gamma: how much slower backward is beside an
exchange::

    ring, b bytes        2 alpha (p - 1) + 2 b (p - 1) / (p BW)
    synchronous SGD      max(gamma T_comp, (k - 1) T_comm(b)) + T_comm(last bucket)
    compressed           T_comp + T_pack + T_tally + T_unpack + T_wire, or with overlap the same max

Here buckets differ in size, so (k - 1) T_comm(b) is a sum. What a method computes (packing, casts,
sums) takes the device that computes gradients: with overlap it is added to gamma T_comp, not to
the wire. Messages of votes are those of the collectives' own code (``mpisign.collectives``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mpisign.collectives.costs import Costs


@dataclass(frozen=True)
class Network:
    """What connects the ranks.

    Args:
        latency: seconds of an exchange between nodes, alpha.
        bandwidth: bytes per second of a node's link, each way.
        ranks_per_node: ranks that share a link.
        per_message: seconds of each further message of an exchange.
        local_latency, local_bandwidth: between ranks of a node, of each rank.
        share: of bandwidths, what ranks reach that exchange with all others at once, as votes do;
            rings reach the whole.

    Example:
        >>> Network(1e-4, 1e9, ranks_per_node=4).costs.remote_per_byte
        4e-09
    """

    latency: float
    bandwidth: float
    ranks_per_node: int = 1
    per_message: float = 0.0
    local_latency: float = 0.0
    local_bandwidth: float = float("inf")
    share: float = 1.0

    @property
    def costs(self) -> Costs:
        """The same as collectives reckon with it: every rank of a node sends at once."""
        return Costs(
            self.local_latency, 1 / self.local_bandwidth, self.latency,
            self.ranks_per_node / (self.share * self.bandwidth), self.per_message, self.per_message,
        )  # fmt: skip

    def nodes(self, ranks: int) -> int:
        """How many nodes ``ranks`` take."""
        return -(-ranks // self.ranks_per_node)


@dataclass(frozen=True)
class Compute:
    """A step without communication, in seconds.

    ``backward``: the part of ``step`` in which gradients appear one after another. ``gamma``: how
    many times longer backward takes while an exchange is under way.
    """

    step: float = 0.0
    backward: float = 0.0
    gamma: float = 1.0


#: Nothing is computed: a step is its exchange.
ALONE = Compute()


@dataclass(frozen=True)
class Exchange:
    """One bucket's exchange: seconds that a rank computes for it, and that the wire takes.

    ``sent``: bytes that a rank sends.
    """

    computes: float
    wire: float
    sent: float

    @property
    def seconds(self) -> float:
        """One after the other."""
        return self.computes + self.wire


@dataclass(frozen=True)
class StepTime:
    """A step, in seconds, and where it goes.

    ``computes``: of ``seconds``, what the method computes beyond the model's own step; ``wire``:
    all that the wire takes; ``hidden``: the part of it that backward covers; ``sent``: bytes.
    """

    seconds: float
    computes: float
    wire: float
    hidden: float
    sent: float


def ring_seconds(nbytes: float, ranks: int, network: Network) -> float:
    """A ring allreduce of ``nbytes``: 2 alpha (p - 1) + 2 b (p - 1) / (p BW).

    The ring enters and leaves each node once, so ranks of a node do not share its link.

    Args:
        nbytes: of the buffer that every rank has.
        ranks: p.
        network: what connects them.

    Returns:
        Seconds.

    Raises:
        ZeroDivisionError: there are no ranks, or the bandwidth is 0.

    Example:
        >>> ring_seconds(4e6, 4, Network(latency=1e-3, bandwidth=1e8))
        0.066
    """
    alone = network.nodes(ranks) == 1
    latency = network.local_latency if alone else network.latency
    bandwidth = network.local_bandwidth if alone else network.bandwidth
    hops = 2 * (ranks - 1)
    return hops * (latency + network.per_message) + hops / ranks * nbytes / bandwidth


def step_time(compute: Compute, buckets: Sequence[Exchange], overlap: bool) -> StepTime:
    """A step whose gradients travel in ``buckets``, in the order in which they start.

    With ``overlap`` all but the last bucket travel while backward goes on, and the last one once it
    is over: forward + max(gamma backward + what they compute, their wire) + the last bucket. Else
    all follow the backward pass.

    Args:
        compute: the step without communication.
        buckets: at least one.
        overlap: whether buckets start during backward.

    Returns:
        StepTime.

    Raises:
        IndexError: there is no bucket.

    Example:
        >>> halves = [Exchange(computes=0.01, wire=0.2, sent=1e6)] * 2
        >>> step_time(Compute(step=0.3, backward=0.2), halves, overlap=False).seconds
        0.72
        >>> round(step_time(Compute(step=0.3, backward=0.2), halves, overlap=True).seconds, 6)
        0.52
    """
    last, before = buckets[-1], buckets[:-1] if overlap else ()
    computes = sum(b.computes for b in buckets)
    wire = sum(b.wire for b in buckets)
    sent = sum(b.sent for b in buckets)
    if not overlap:
        return StepTime(compute.step + computes + wire, computes, wire, 0.0, sent)
    busy = compute.gamma * compute.backward + sum(b.computes for b in before)
    under_way = sum(b.wire for b in before)
    seconds = compute.step - compute.backward + max(busy, under_way) + last.seconds
    return StepTime(seconds, computes, wire, min(busy, under_way), sent)
