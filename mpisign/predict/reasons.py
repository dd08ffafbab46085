"""Where votes pay, where they do not, by how much, and why: a sentence each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from mpisign.bench.table import amount, seconds, times
from mpisign.predict.equations import Compute, StepTime
from mpisign.predict.methods import FP16, METHODS

_EQUAL = 0.03  # of a step: a smaller difference is none
_SLOWEST, _FASTEST = 1e5, 1e13  # bytes per second between which the break-even is sought
_HALVINGS = 30

_VOTES = tuple(method.name for method in METHODS if method.votes)


@dataclass(frozen=True)
class Verdict:
    """Of one cluster: the best vote beside the 16-bit ring.

    ``gain``: how many times less time the vote takes. ``pays``: "yes", "no" or "no difference".
    """

    ranks: int
    bandwidth: float
    vote: str
    gain: float
    pays: str
    why: str


def best_vote(steps: Mapping[str, StepTime]) -> str:
    """The vote that takes the least time."""
    return min((name for name in _VOTES if name in steps), key=lambda name: steps[name].seconds)


def verdict(
    ranks: int, bandwidth: float, steps: Mapping[str, StepTime], compute: Compute, overlap: bool
) -> Verdict:
    """Compares the best vote with fp16.

    Args:
        ranks, bandwidth: of the cluster.
        steps: of every method.
        compute: the step without communication.
        overlap: whether backward hides exchanges.

    Returns:
        Verdict.

    Raises:
        KeyError: fp16 is not among the steps.
    """
    name = best_vote(steps)
    vote, ring = steps[name], steps[FP16]
    gain = ring.seconds / vote.seconds
    saved = ring.seconds - vote.seconds
    if abs(saved) <= _EQUAL * ring.seconds:
        pays = "no difference"
    else:
        pays = "yes" if saved > 0 else "no"
    why = {"yes": _pays, "no": _does_not, "no difference": _equal}[pays](
        name, vote, ring, compute, overlap
    )
    return Verdict(ranks, bandwidth, name, gain, pays, why)


def _exposed(step: StepTime) -> float:
    return step.wire - step.hidden


def _pays(name: str, vote: StepTime, ring: StepTime, compute: Compute, overlap: bool) -> str:
    if ring.hidden >= 0.5 * ring.wire:
        return (
            f"even behind backward fp16 leaves {seconds(_exposed(ring))} of the wire's "
            f"{seconds(ring.wire)} to wait for, {name} {seconds(_exposed(vote))}"
        )
    return (
        f"fp16 needs the wire for {seconds(ring.wire)} ({amount(ring.sent)} a rank), {name} for "
        f"{seconds(vote.wire)} ({amount(vote.sent)})"
    )


def _does_not(name: str, vote: StepTime, ring: StepTime, compute: Compute, overlap: bool) -> str:
    saved, added = _exposed(ring) - _exposed(vote), vote.computes - ring.computes
    if saved <= 0:
        return (
            f"latencies, not bytes, take the time: {name} waits {seconds(_exposed(vote))} for its "
            f"messages, fp16 {seconds(_exposed(ring))}"
        )
    hides = " that backward leaves" if overlap and compute.backward else ""
    return (
        f"packing, counting and unpacking take {seconds(added)} more than fp16's casts and sums, "
        f"the wire{hides} gives back {seconds(saved)}"
    )


def _equal(name: str, vote: StepTime, ring: StepTime, compute: Compute, overlap: bool) -> str:
    if overlap and compute.backward and _exposed(ring) <= 0.1 * ring.seconds:
        return (
            f"backward hides {seconds(ring.hidden)} of the {seconds(ring.wire)} that fp16 needs "
            f"the wire for: {seconds(_exposed(ring))} are left to save"
        )
    if compute.step >= 0.8 * ring.seconds:
        return f"computing takes {compute.step / ring.seconds:.0%} of fp16's step"
    return f"what {name} saves on the wire it spends on packing, counting and unpacking"


def break_even(steps_at: Callable[[float], Mapping[str, StepTime]]) -> float | None:
    """The bandwidth from which on no vote is faster than fp16, in bytes per second.

    Args:
        steps_at: the steps of fp16 and of votes at a bandwidth.

    Returns:
        The bandwidth to a few percent; None if a vote is faster at any; 0.0 if at none.

    Raises:
        KeyError: fp16 is not among the steps.
    """

    def pays(bandwidth: float) -> bool:
        steps = steps_at(bandwidth)
        return steps[best_vote(steps)].seconds < steps[FP16].seconds

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
        return f"{verdict.vote} pays, {times(verdict.gain)} less time: {verdict.why}"
    if verdict.pays == "no":
        return (
            f"no vote pays, {verdict.vote} takes {times(1 / verdict.gain)} the time: {verdict.why}"
        )
    return f"no difference: {verdict.why}"
