"""An error of one rank alone is reported on all ranks, and the other methods go on."""

from __future__ import annotations

import sys

import numpy as np

from mpisign.bench.collectives import clock as clocks
from mpisign.bench.collectives import nodes
from mpisign.bench.collectives.method import (
    CollectiveMethod,
    Gradient,
    Running,
    check_signs,
    check_sum,
)
from mpisign.bench.collectives.traffic import of_fp32
from mpisign.bench.peers.mpi import MPIVia
from mpisign.bench.runner import Watchdog

via = MPIVia()
gradient = Gradient(1000, (1000,), via.rank, via.size)
last = via.rank == via.size - 1


def right(**changes):
    """An allreduce that is right, but for ``changes``."""

    def call():
        via.comm.Allreduce(gradient.values, gradient.out)

    given = {"call": call, "check": lambda: check_sum(gradient, gradient.out, exact=True)}
    return Running(**{**given, "result": lambda: gradient.out, **changes})


def off_by_little():
    via.comm.Allreduce(gradient.values, gradient.out)
    gradient.out[7] += 1e-6 if last else 0


def off_by_much():
    via.comm.Allreduce(gradient.values, gradient.out)
    gradient.out[7] += 1 if last else 0


def one_sign():
    via.comm.Allreduce(np.sign(gradient.values), gradient.out)
    at = int(np.flatnonzero(gradient.out)[0])
    gradient.out[gradient.out == 0] = 1
    gradient.out[at] *= -1 if last else 1


def raises():
    if last:
        raise FloatingPointError("one rank's own")


def not_installed(_):
    if last:
        raise ImportError("no such library here")


def turns_bad():
    turns_bad.calls += 1
    if turns_bad.calls > 2 and last:
        raise ValueError("later")


turns_bad.calls = 0
methods = {
    "right": (lambda g: right(), ""),
    "sum": (lambda g: right(call=off_by_much), "wrong: a sum is off by 1"),
    "replica": (lambda g: right(call=off_by_little), "have different results"),
    "sign": (
        lambda g: right(call=one_sign, check=lambda: check_signs(gradient, gradient.out)),
        "wrong: 1 signs are not the majority's",
    ),
    "raises": (lambda g: right(call=raises), "FloatingPointError: one rank's own"),
    "start": (not_installed, "ImportError: no such library here"),
    "later": (
        lambda g: right(call=turns_bad, check=lambda: None, result=None),
        "ValueError: later",
    ),
}
clock = clocks.Clock(via, nodes.find(via), Watchdog(30, lambda what: sys.exit(what)), 5.0)
clock.calibrate()
contestants = [
    clocks.Contestant(via, CollectiveMethod(name, "fp32", of_fp32, start))
    for name, (start, _) in methods.items()
]
for contestant in contestants:
    clock.warm_up(contestant, gradient)
for _ in range(3):
    for contestant in contestants:
        clock.turn(contestant, gradient.length)
for contestant, (_, expected) in zip(contestants, methods.values(), strict=True):
    assert expected in contestant.error and bool(expected) == bool(contestant.error), (
        contestant.method.label,
        contestant.error,
    )
assert len(contestants[0].samples) == 3 * contestants[0].calls
print(f"rank {via.rank} agrees", flush=True)
