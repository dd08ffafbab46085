"""Ways to train by name, for a command line: nothing here imports torch."""

from __future__ import annotations

from dataclasses import dataclass

NONE = "none"
BASE = "horovod-fp16"
#: What others send.
PEERS = ("horovod-fp32", "horovod-fp16", "ddp-fp32", "ddp-fp16", "ddp-powersgd")
#: Ours: each with any compressor, as FRONT-COMPRESSOR. Longer names first.
FRONTS = ("mpi-at-step", "mpi", "horovod-unmodified", "horovod", "ddp")
COMPRESSORS = (
    "sign", "signum", "lion", "lion_avg", "ef_sign", "onebit", "sparsign", "ef_sparsign",
    "noisy_sign", "stochastic_sign", "terngrad", "qsgd",
)  # fmt: skip

OF_STEPS = (NONE, "mpi", "mpi-at-step", "horovod", "horovod-unmodified", "ddp", *PEERS)
OF_ACCURACY = (BASE, "horovod", "ddp")
OF_MEMORY = (NONE, *FRONTS, "ddp-fp32", BASE)


@dataclass(frozen=True)
class Named:
    """One way. ``compressor``: "" of what is not ours; ``via``: the library that connects ranks."""

    name: str
    front: str
    compressor: str

    @property
    def ours(self) -> bool:
        """Whether mpisign's front ends and compressors are at work."""
        return bool(self.compressor)

    @property
    def via(self) -> str:
        """ "mpi", "torch", "horovod", or "" of what does not communicate."""
        first = self.name.partition("-")[0]
        return {NONE: "", "ddp": "torch"}.get(first, first)


def ways(names: tuple[str, ...], compressors: tuple[str, ...]) -> tuple[Named, ...]:
    """Each of ``names`` once, a front end alone with each of ``compressors``; ValueError."""
    found: dict[str, Named] = {}
    for name in names:
        if name == NONE or name in PEERS:
            found[name] = Named(name, name, "")
        elif name in FRONTS:
            for compressor in compressors:
                full = f"{name}-{compressor}"
                found[full] = Named(full, name, compressor)
        else:
            found[name] = _ours(name)
    return tuple(found.values())


def _ours(name: str) -> Named:
    for front in FRONTS:
        compressor = name.removeprefix(f"{front}-")
        if compressor in COMPRESSORS:
            return Named(name, front, compressor)
    raise ValueError(
        f"{name!r} is none of {', '.join((NONE, *PEERS, *FRONTS))}, and no FRONT-COMPRESSOR such "
        "as ddp-lion"
    )
