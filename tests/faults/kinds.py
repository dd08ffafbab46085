"""What one rank of a job does wrong, and how such a job must end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

#: How a job must end.
ENDS = {
    "right": "every rank ends with the right results",
    "named": "every other rank raises an error that names the rank",
    "leaves": "the job ends; whoever raises names the rank (the launcher may be faster)",
    "either": "every rank ends with the right results, or the others name the rank",
    "noticed": "nobody goes on for ever: all others raise an error that names a rank",
    "alike": "the others hold the same results, and errors name a rank",
}
#: Front ends, and the wires of each.
MPI, GLOO = ("mpi",), ("torch",)
HOROVOD = ("horovod-mpi", "horovod-gloo")
FRONTS = {
    "functions": (*MPI, *GLOO, *HOROVOD),
    "plain": (*MPI, *GLOO, *HOROVOD),
    "overlap": (*MPI, *GLOO, *HOROVOD),
    "ddp": GLOO,
    "fsdp": GLOO,
    "mpisign.horovod": HOROVOD,
    "hvd-by-name": HOROVOD,
    "hvd": HOROVOD,
}
#: Not votes by Horovod's own allreduce, nor FSDP, whose all-gathers are torch's own: there mpisign
#: does not wait, and cannot know who is missing.
OURS = tuple(f for f in FRONTS if f not in ("hvd", "fsdp"))
OPTIMIZERS = tuple(f for f in FRONTS if f != "functions")


@dataclass(frozen=True)
class Kind:
    """``act(fault)`` runs on the odd rank when ``when`` says.

    "start": before its front end is made; "made": after; "step": before the job's step ``at``;
    "between": between that step's exchange and its step.
    """

    name: str
    about: str
    ends: str
    act: Callable[[Any], None]
    fronts: tuple[str, ...] = tuple(FRONTS)
    wires: tuple[str, ...] = (*MPI, *GLOO, *HOROVOD)
    when: str = "step"
    everyone: bool = False  # all ranks call ``act``
    told: bool = False  # the text must be the same on all ranks
    says: str = ""  # and hold this
    ranks: tuple[int, ...] = (2, 3, 4)
    settings: tuple[tuple[str, Any], ...] = ()  # of the job
    planted: bool = False  # shows that the campaign would find it: must not end well

    def fits(self, front: str, wire: str) -> bool:
        """Whether it can be done there."""
        return front in self.fronts and wire in self.wires and wire in FRONTS[front]


KINDS: dict[str, Kind] = {}


def kind(ends: str, settings: dict[str, Any] | None = None, **more: Any) -> Any:
    """Registers a function by its name; its docstring tells what the rank does."""
    assert ends in ENDS, ends

    def register(act: Callable[[Any], None]) -> Callable[[Any], None]:
        name = act.__name__.replace("_", "-")
        about = " ".join((act.__doc__ or "").split()).rstrip(".")
        pairs = tuple((settings or {}).items())
        KINDS[name] = Kind(name, about, ends, act, settings=pairs, **more)
        return act

    return register


def known() -> dict[str, Kind]:
    """All kinds by name."""
    from faults import arguments, messages, planted, processes  # noqa: F401

    return KINDS
