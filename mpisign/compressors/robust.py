"""Gradients in full precision, aggregated by a robust rule."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from mpisign import policies
from mpisign.compressors.base import Compressor, State, get_or_init
from mpisign.compressors.checks import check_fraction, check_whole
from mpisign.robust.base import Mixing, Rule
from mpisign.robust.names import by_name

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Robust(Compressor):
    """A rule of ``mpisign.robust`` over all ranks' gradients, or their momenta, as one vector each.

    With ``momentum`` b > 0 each rank sends m = b m + (1 - b) g. Without it rules give way to
    attacks that hide in one step's noise (Karimireddy et al. 2021, Learning from history, section
    4). A missing gradient counts as zeros, or as the momentum.

    State, float32: ``momentum``, the rank's own, without NaN and infinity; ``center``, the last
    result, equal on all ranks, where the rule starts from it (CenteredClipping).

    Args:
        rule: A rule of ``mpisign.robust`` or its name.
        f: Hostile ranks, for a rule given by name; hostile groups in ``Detox``.
        momentum: b, in [0, 1).
        tolerance: In ``Detox`` members of a group agree if they send the same bits or, with a
            tolerance > 0, if their distance is at most that times their norm (for GPUs that do not
            reproduce bits; such as 1e-4).
        nan: "abstain" leaves out a rank whose gradient is not finite, "raise" stops all ranks.

    Raises:
        TypeError: ``rule`` is neither a rule nor a name.
        ValueError: A value is out of range, or ``f`` is given beside a rule object.

    Example:
        >>> Robust("nnm+krum", f=1).resolved
        Pipeline(mixings=(NNM(f=1),), rule=Krum(f=1, neighbours='n-f-1', squared=True))
    """

    zeros: policies.Zeros = field(init=False, repr=False, default=policies.DEFAULT_ZEROS)
    ties: policies.Ties = field(init=False, repr=False, default=policies.DEFAULT_TIES)
    nan: policies.Nan = field(kw_only=True, default="abstain")
    rule: Rule | str = "median"
    f: int = 0
    momentum: float = 0.0
    tolerance: float = 0.0

    aggregate: ClassVar[str] = "robust"
    unit: ClassVar[str] = "gradient"
    whole: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole(self, "f", 0, "a number of ranks from 0")
        check_fraction(self, "momentum", "tolerance")
        if isinstance(self.rule, str):
            by_name(self.rule, self.f)
        elif not isinstance(self.rule, Rule) or isinstance(self.rule, Mixing):
            raise TypeError(
                f"Robust: rule must be a rule of mpisign.robust or its name, got {self.rule!r}"
            )
        elif self.f:
            raise ValueError(
                f"Robust: f goes with a rule's name: got f={self.f} beside {self.rule!r}"
            )
        elif self.rule.center is not None:
            raise ValueError("Robust: CenteredClipping must start from the origin, got an m")

    @property
    def resolved(self) -> Rule:
        """The rule itself."""
        return by_name(self.rule, self.f) if isinstance(self.rule, str) else self.rule

    @property
    def goes_on(self) -> bool:
        """Whether the rule starts from its last result."""
        rule = self.resolved
        return rule.after(None) is not rule

    @property
    def shared(self) -> tuple[str, ...]:  # type: ignore[override]
        """ "center", for rules that start from their last result."""
        return ("center",) if self.goes_on else ()

    def abstaining(self) -> Compressor:
        return self

    def compress(self, grad: torch.Tensor, state: State) -> torch.Tensor:
        g = grad.detach().float()
        if not self.momentum:
            return g
        m = get_or_init(state, "momentum", grad)
        new = m * self.momentum + g * (1.0 - self.momentum)
        m.copy_(new.where(new.isfinite(), m))
        return new

    def initial_state(self, parameter: torch.Tensor) -> State:
        state: State = {}
        if self.momentum:
            get_or_init(state, "momentum", parameter)
        if self.goes_on:
            get_or_init(state, "center", parameter)
        return state

    def warm_up(self, grad: torch.Tensor | None, mean: torch.Tensor, state: State) -> None:
        if grad is not None:
            self.compress(grad.detach(), state)

    def compress_missing(self, parameter: torch.Tensor, state: State) -> torch.Tensor:
        m = state.get("momentum") if self.momentum else None
        return super().compress_missing(parameter, state) if m is None else m
