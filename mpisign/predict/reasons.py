"""Where votes pay, where they do not, by how much, and why: a sentence each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from mpisign.bench.table import amount, seconds, times
from mpisign.predict.equations import Compute, StepTime
from mpisign.predict.methods import FP16, FP32, METHODS

_EQUAL = 0.15  # of a step: predictions are off by as much
_SLOWEST, _FASTEST = 1e5, 1e13  # bytes per second between which the break-even is sought
_HALVINGS = 30

_VOTES = tuple(method.name for method in METHODS if method.votes)


@dataclass(frozen=True)
class Verdict:
    """Of one cluster: the best vote beside the faster ring.

    That is ``ring``: fp16, or fp32 where casts take longer than the bytes that they save. ``gain``:
    how many times less time the vote takes. ``pays``: "yes", "no" or "too close to call".
    """

    ranks: int
    bandwidth: float
    vote: str
    ring: str
    gain: float
    pays: str
    why: str


def best_vote(steps: Mapping[str, StepTime]) -> str:
    """The vote that takes the least time."""
    return min((name for name in _VOTES if name in steps), key=lambda name: steps[name].seconds)


def best_ring(steps: Mapping[str, StepTime]) -> str:
    """The ring that takes the least time."""
    return min((FP16, FP32), key=lambda name: steps[name].seconds)


def verdict(
    ranks: int, bandwidth: float, steps: Mapping[str, StepTime], compute: Compute, overlap: bool
) -> Verdict:
    """Compares the best vote with the faster ring.

    Args:
        ranks, bandwidth: of the cluster.
        steps: of every method.
        compute: the step without communication.
        overlap: whether backward hides exchanges.

    Returns:
        Verdict.

    Raises:
        KeyError: fp16 or fp32 is not among the steps.
    """
    vote, ring = _Named(steps, best_vote(steps)), _Named(steps, best_ring(steps))
    saved = ring.step.seconds - vote.step.seconds
    hides = overlap and compute.backward > 0
    if abs(saved) <= _EQUAL * ring.step.seconds:
        pays, why = "too close to call", _equal(vote, ring, compute, hides)
    elif saved > 0:
        pays, why = "yes", _pays(vote, ring)
    else:
        pays, why = "no", _does_not(vote, ring, hides)
    gain = ring.step.seconds / vote.step.seconds
    return Verdict(ranks, bandwidth, vote.name, ring.name, gain, pays, why)


class _Named:
    """A method's step; ``waits``: of its wire, what nothing hides."""

    def __init__(self, steps: Mapping[str, StepTime], name: str) -> None:
        self.name, self.step = name, steps[name]
        self.waits = self.step.wire - self.step.hidden


def _pays(vote: _Named, ring: _Named) -> str:
    waits, works = ring.waits - vote.waits, ring.step.computes - vote.step.computes
    if works > waits:
        return (
            f"packing, counting and unpacking take {seconds(works)} less than {ring.name}'s own "
            f"work; {_waiting(vote, waits)}"
        )
    if ring.step.hidden >= 0.5 * ring.step.wire:
        return (
            f"even behind backward {ring.name} waits {seconds(ring.waits)} of the "
            f"{seconds(ring.step.wire)} that it needs the wire for, {vote.name} "
            f"{seconds(vote.waits)}"
        )
    return (
        f"{ring.name} needs the wire for {seconds(ring.step.wire)} ({amount(ring.step.sent)} a "
        f"rank), {vote.name} for {seconds(vote.step.wire)} ({amount(vote.step.sent)})"
    )


def _waiting(vote: _Named, less: float) -> str:
    how = "less" if less > 0 else "more"
    return f"{vote.name} waits {seconds(abs(less))} {how} for the wire"


def _does_not(vote: _Named, ring: _Named, hides: bool) -> str:
    saved, added = ring.waits - vote.waits, vote.step.computes - ring.step.computes
    if added <= -saved:
        return (
            f"latencies, not bytes, take the time: {vote.name} waits {seconds(vote.waits)} for its "
            f"messages, {ring.name} {seconds(ring.waits)}"
        )
    left = " that backward leaves" if hides else ""
    saves = f"on the wire{left} the vote saves {seconds(saved)}"
    return (
        f"packing, counting and unpacking take {seconds(added)} more than {ring.name}'s own work; "
        f"{saves if saved > 0 else _waiting(vote, saved)}"
    )


def _equal(vote: _Named, ring: _Named, compute: Compute, hides: bool) -> str:
    step = ring.step
    if hides and ring.waits <= 0.1 * step.seconds:
        return (
            f"backward hides {seconds(step.hidden)} of the {seconds(step.wire)} that {ring.name} "
            f"needs the wire for: {seconds(ring.waits)} are left to save"
        )
    if compute.step >= 0.8 * step.seconds:
        return f"computing takes {compute.step / step.seconds:.0%} of {ring.name}'s step"
    return f"what {vote.name} saves on the wire it spends on packing, counting and unpacking"


def break_even(steps_at: Callable[[float], Mapping[str, StepTime]]) -> float | None:
    """The bandwidth from which on no vote is faster than both rings, in bytes per second.

    Args:
        steps_at: the steps of rings and votes at a bandwidth.

    Returns:
        The bandwidth to a few percent; None if a vote is faster at any; 0.0 if at none.

    Raises:
        KeyError: fp16 or fp32 is not among the steps.
    """

    def pays(bandwidth: float) -> bool:
        steps = steps_at(bandwidth)
        return steps[best_vote(steps)].seconds < steps[best_ring(steps)].seconds

    low, high = _SLOWEST, _FASTEST
    if pays(high):
        return None
    if not pays(low):
        return 0.0
    for _ in range(_HALVINGS):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if pays(middle) else (low, middle)
        if high < 1.01 * low:
            break
    return low


def in_words(verdict: Verdict) -> str:
    """The verdict as a sentence begins: by how much, then why."""
    if verdict.pays == "yes":
        less = f"{times(verdict.gain)} less time than {verdict.ring}"
        return f"{verdict.vote} pays, {less}: {verdict.why}"
    if verdict.pays == "no":
        longer = times(1 / verdict.gain)
        return f"no vote pays, {verdict.vote} takes {longer} {verdict.ring}'s time: {verdict.why}"
    return f"too close to call: {verdict.why}"
