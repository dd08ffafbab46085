"""Methods of training by name, and their learning rates: nothing here imports torch.

docs/measurements.md has how the rates were found.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

NONE = "none"
BASE = "horovod-fp16"
#: Methods of others.
PEERS = ("horovod-fp32", "horovod-fp16", "ddp-fp32", "ddp-fp16", "ddp-powersgd")
#: mpisign's front ends: each with any compressor, as FRONT-COMPRESSOR. Longer names first.
FRONTS = ("mpi-at-step", "mpi", "horovod-unmodified", "horovod", "ddp")
#: Optimizers that exchange by themselves, over MPI: ours, by their names in mpisign.optim. Not
#: ZeroOneAdam, whose replicas are not equal after every step.
OPTIMIZERS = {
    "optim-onebit-adam": "OneBitAdam",
    "optim-onebit-lamb": "OneBitLamb",
}
#: DeepSpeed's, beside them.
DEEPSPEED = "deepspeed-onebit-adam"
COMPRESSORS = (
    "sign", "signum", "lion", "lion_avg", "muon", "muon_avg", "ef_sign", "onebit", "sparsign",
    "ef_sparsign", "noisy_sign", "stochastic_sign", "terngrad", "qsgd",
)  # fmt: skip

OF_STEPS = (NONE, "mpi", "mpi-at-step", "horovod", "horovod-unmodified", "ddp", *PEERS)
OF_ACCURACY = (BASE, "horovod", "ddp")
OF_MEMORY = (NONE, *FRONTS, "ddp-fp32", BASE)

MOMENTUM = 0.9  # of every method: torch's SGD has it where the compressor has none

_AVERAGE = 0.03
_SIGNS = 2e-4
_ADAM = 1e-3
#: Compressors whose result is like an averaged gradient, and which keep no momentum of their own.
_PLAIN = ("ef_sign", "terngrad", "qsgd")
#: Its momentum is a mean of gradients, torch's a sum of 10.
_ONEBIT = 10 * _AVERAGE
_GRID = (0.25, 0.5, 1.0, 2.0, 4.0)


@dataclass(frozen=True)
class TrainingMethod:
    """One method. ``compressor``: "" for peers; ``via``: the library that connects the ranks."""

    name: str
    front: str
    compressor: str

    @property
    def ours(self) -> bool:
        """Whether it is mpisign's."""
        return bool(self.compressor)

    @property
    def via(self) -> str:
        """ "mpi", "torch", "horovod", or "" without communication."""
        first = self.name.partition("-")[0]
        known = {NONE: "", "ddp": "torch", "optim": "mpi", "deepspeed": "mpi"}
        return known.get(first, first)


def methods(names: tuple[str, ...], compressors: tuple[str, ...]) -> tuple[TrainingMethod, ...]:
    """Each of ``names`` once, a front end alone with each of ``compressors``; ValueError."""
    found: dict[str, TrainingMethod] = {}
    for name in names:
        if name in OPTIMIZERS:
            found[name] = TrainingMethod(name, "optim", "onebit")
        elif name == NONE or name in PEERS or name == DEEPSPEED:
            found[name] = TrainingMethod(name, name, "")
        elif name in FRONTS:
            for compressor in compressors:
                full = f"{name}-{compressor}"
                found[full] = TrainingMethod(full, name, compressor)
        else:
            found[name] = _ours(name)
    return tuple(found.values())


def _ours(name: str) -> TrainingMethod:
    for front in FRONTS:
        compressor = name.removeprefix(f"{front}-")
        if compressor in COMPRESSORS:
            return TrainingMethod(name, front, compressor)
    raise ValueError(
        f"{name!r} is none of {', '.join((NONE, *PEERS, *OPTIMIZERS, DEEPSPEED, *FRONTS))}, and "
        "no FRONT-COMPRESSOR such as ddp-lion"
    )


def rate(method: TrainingMethod) -> float:
    """The learning rate at the start of a method's schedule."""
    if method.front == "optim" or method.name == DEEPSPEED:
        return _ADAM
    if method.compressor == "onebit":
        return _ONEBIT
    return _AVERAGE if not method.ours or method.compressor in _PLAIN else _SIGNS


def momentum(method: TrainingMethod) -> float:
    """Momentum of the method's torch.optim.SGD: a vote's would sum up to steps of 10 rates."""
    return MOMENTUM if not method.ours or method.compressor in _PLAIN else 0.0


def grid(around: float) -> tuple[float, ...]:
    """What --tune tries."""
    return tuple(float(f"{around * factor:.3g}") for factor in _GRID)


def share(step: int, steps: int) -> float:
    """Of the learning rate at ``step``: half a cosine, from 1 to 0, the same for all methods."""
    return 0.5 * (1.0 + math.cos(math.pi * step / steps))
