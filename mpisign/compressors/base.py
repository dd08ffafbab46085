"""The interface between front ends and compressors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mpisign import planes, policies

if TYPE_CHECKING:
    import torch

State = dict[str, Any]


@dataclass(frozen=True)
class Compressor:
    """One way to turn a gradient into a ballot.

    A compressor is a value without state. What it must remember of a parameter lies in a dict that
    the front end owns, one per parameter, tensors under string keys, so that it is saved, loaded
    and broadcast with everything else the optimizer keeps.
    """

    zeros: policies.Zeros = policies.DEFAULT_ZEROS
    nan: policies.Nan = policies.DEFAULT_NAN
    ties: policies.Ties = policies.DEFAULT_TIES

    def __post_init__(self) -> None:
        name = type(self).__name__
        policies.code(name, "zeros", self.zeros, policies.ZEROS)
        policies.code(name, "nan", self.nan, policies.NAN)
        policies.code(name, "ties", self.ties, policies.TIES)

    def voted_on(self, grad: torch.Tensor, state: State) -> torch.Tensor:
        """The tensor whose signs are this rank's ballot, shaped like ``grad``; updates ``state``.

        May return ``grad`` itself or a tensor that lives in ``state``: callers read, never write.
        """
        raise NotImplementedError

    def pack(
        self,
        grads: Sequence[torch.Tensor],
        states: Sequence[State],
        out: Any,
        offsets: Sequence[int],
        *,
        seed: int,
        step: int,
        rank: int,
    ) -> int:
        """This rank's ballot for many gradients, packed into one bucket's planes in one call.

        Updates ``states``, one for each gradient. ``out``: uint8 (B,), or (2, B) if a coordinate
        may abstain; ``offsets``: the byte that each gradient starts at; the rest of ``out`` stays
        as it is. Returns the NaNs that are no votes, under either policy: it never raises on them.
        """
        if not grads:
            return 0
        voted = [self.voted_on(g, state) for g, state in zip(grads, states, strict=True)]
        _, _, nans = planes.pack_many(
            voted,
            zeros=self.zeros,
            nan=self.nan,
            seed=seed,
            step=step,
            rank=rank,
            offsets=offsets,
            out=out,
        )
        return int(nans)

    def voted_on_without_gradient(self, parameter: torch.Tensor, state: State) -> torch.Tensor:
        """This rank's ballot for a parameter that has a gradient on other ranks only."""
        return parameter.new_zeros(()).expand(parameter.shape)


def resolve(function: str, compression: object) -> Compressor:
    """A compressor from its name ("sign", "signum") or itself; ValueError names what is known."""
    from mpisign.compressors.sign import Sign
    from mpisign.compressors.signum import Signum

    known = {"sign": Sign, "signum": Signum}
    if isinstance(compression, Compressor):
        return compression
    if isinstance(compression, str) and compression in known:
        return known[compression]()
    names = ", ".join(repr(n) for n in known)
    raise ValueError(
        f"{function}: compression must be a Compressor or one of {names}, got {compression!r}"
    )
