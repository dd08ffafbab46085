"""The interface between front ends and compressors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from mpisign import planes, policies
from mpisign.detox.assignment import Partition

if TYPE_CHECKING:
    import torch

State = dict[str, Any]


@dataclass(frozen=True, slots=True)
class PackContext:
    """What `Compressor.pack` needs besides the gradients.

    Args:
        seed: seed of the random bits, the same on all ranks.
        step: number of the step, the same on all ranks.
        rank: this rank (the group's number where ranks of a group must draw the same bits).
        rates: learning rate of each gradient; None: 1 for all.
        scales: float32 array that ``pack`` writes to: ``scales_of`` entries for each gradient, one
            gradient after the other. Only for compressors that are ``scaled``.
    """

    seed: int
    step: int
    rank: int
    rates: Sequence[float] | None = None
    scales: Any = None

    @property
    def keys(self) -> dict[str, Any]:
        """The keyword arguments of ``mpisign.planes`` that key random bits."""
        return {"seed": self.seed, "step": self.step, "rank": self.rank}


@dataclass(frozen=True)
class Compressor:
    """One way to turn a gradient into what is sent of it.

    A compressor is a value without state. What it must remember of a parameter lies in a dict that
    the front end owns, one per parameter, tensors under string keys, so that it is saved, loaded
    and broadcast with everything else the optimizer keeps.

    ``aggregate``: what becomes of all ranks' planes (``mpisign.exchange.aggregators``): "vote", "mean_of_signs",
    "gathered_vote", "gathered_mean", "compressed_mean". ``scaled``: scales travel beside planes.
    ``shared``: keys of the state that are equal on all ranks, and that a rank which comes later
    must be given. ``unit``: what the optimizer is handed: "sign" (of size 1, whatever the
    gradients') or "gradient". ``whole``: all members travel in one bucket, whatever its size.
    """

    zeros: policies.Zeros = policies.DEFAULT_ZEROS
    nan: policies.Nan = policies.DEFAULT_NAN
    ties: policies.Ties = policies.DEFAULT_TIES

    aggregate: ClassVar[str] = "vote"
    whole: ClassVar[bool] = False
    scaled: ClassVar[bool] = False
    shared: ClassVar[tuple[str, ...]] = ()
    unit: ClassVar[str] = "sign"

    def __post_init__(self) -> None:
        name = type(self).__name__
        policies.code(name, "zeros", self.zeros, policies.ZEROS)
        policies.code(name, "nan", self.nan, policies.NAN)
        policies.code(name, "ties", self.ties, policies.TIES)

    def groups_of(self, size: int, nodes: Sequence[Sequence[int]] | None) -> Partition | None:
        """The groups in which ``size`` ranks vote or compare gradients, None for no groups."""
        return None

    def abstaining(self) -> Compressor:
        """This one, with zeros that abstain, and 0 where nobody votes."""
        return replace(self, zeros="abstain", ties="zero")

    @property
    def local_steps(self) -> int:
        """Steps to an exchange: all but the last a rank takes by itself."""
        return 1

    @property
    def block(self) -> int | None:
        """Coordinates of a tensor that share a scale, None for all of them."""
        return None

    def scales_of(self, length: int) -> int:
        """How many scales a tensor of ``length`` coordinates sends."""
        return -(-length // (self.block or max(1, length))) if self.scaled else 0

    def compress(self, grad: torch.Tensor, state: State) -> torch.Tensor:
        """The tensor whose signs are this rank's ballot, shaped like ``grad``; updates ``state``.

        May return ``grad`` itself or a tensor that lives in ``state``: callers read, never write.
        """
        raise NotImplementedError(
            f"{type(self).__name__} sends more than the signs of a tensor: take pack"
        )

    def pre_sign(self, x: torch.Tensor, context: PackContext, place: int) -> torch.Tensor:
        """What the sign is taken of, from ``compress``'s tensor: itself, or with noise.

        ``place``: coordinates before ``x`` in its bucket. Never writes to ``x``.
        """
        return x

    def pack(
        self,
        grads: Sequence[torch.Tensor],
        states: Sequence[State],
        out: Any,
        offsets: Sequence[int],
        context: PackContext,
    ) -> int:
        """What this rank sends of many gradients, packed into one bucket's planes.

        Updates ``states``, one for each gradient. ``out``: uint8 (B,), or (2, B) if a coordinate
        may abstain; ``offsets``: the byte that each gradient starts at; the rest of ``out`` stays
        as it is. ``rates``: the learning rate of each, default 1. ``scales``: float32, written to,
        ``scales_of`` each gradient one after the other; only if ``scaled``. Returns the NaNs that
        are no votes, under either policy: it never raises on them.
        """
        if not grads:
            return 0
        voted = [
            self.pre_sign(self.compress(g, state), context, 8 * start)
            for g, state, start in zip(grads, states, offsets, strict=True)
        ]
        _, _, nans = planes.pack_many(
            voted,
            zeros=self.zeros,
            nan=self.nan,
            **context.keys,
            offsets=offsets,
            out=out,
        )
        return int(nans)

    def compress_missing(self, parameter: torch.Tensor, state: State) -> torch.Tensor:
        """This rank's ballot for a parameter that has a gradient on other ranks only."""
        return parameter.new_zeros(()).expand(parameter.shape)

    def decompress(self, mean: torch.Tensor, state: State, rate: float) -> torch.Tensor:
        """What the optimizer is handed as gradient, from the ranks' mean (float32); not of votes.

        The same on every rank. May update ``state`` and ``mean``, and return the latter.
        """
        return mean


def get_or_init(state: State, key: str, like: torch.Tensor, dtype: str = "float32") -> torch.Tensor:
    """The tensor of ``dtype`` under a key of a state, shaped as ``like``; zeros at first."""
    import torch

    wanted = getattr(torch, dtype)
    x: torch.Tensor | None = state.get(key)
    if x is None:
        x = state[key] = torch.zeros(like.shape, dtype=wanted, device=like.device)
    elif x.dtype != wanted or not x.is_contiguous():  # saved by another version, or loaded so
        x = state[key] = x.to(wanted).contiguous()
    return x


def abstains(compressor: Compressor) -> None:
    """ValueError unless zeros abstain, as they do in all that is sparse."""
    if compressor.zeros != "abstain":
        raise ValueError(
            f"{type(compressor).__name__}: zeros must be 'abstain', since most coordinates do, "
            f"got {compressor.zeros!r}"
        )


def positive(compressor: Compressor, name: str) -> None:
    """ValueError unless the field is a positive number that float32 holds."""
    value = getattr(compressor, name)
    if not isinstance(value, (int, float)) or not 1.2e-38 < value < 3.4e38:
        raise ValueError(
            f"{type(compressor).__name__}: {name} must be a positive number, got {value!r}"
        )


def blocks(compressor: Compressor, block: int | None) -> None:
    """ValueError unless ``block`` is a positive multiple of 256 or None."""
    if block is not None and (not isinstance(block, int) or block < 1 or block % 256):
        raise ValueError(
            f"{type(compressor).__name__}: block must be a positive multiple of 256 or None, "
            f"got {block!r}"
        )
