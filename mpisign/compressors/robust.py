"""Gradients in full precision, aggregated by a robust rule."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from mpisign import policies
from mpisign.compressors.base import Compressor, State, get_or_init
from mpisign.robust.base import Mixing, Rule
from mpisign.robust.names import by_name

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Robust(Compressor):
    """A rule of ``mpisign.robust`` over all ranks' gradients, or their momenta.

    ``rule``: one of ``mpisign.robust``, or its name, to which goes ``f``, the number of hostile
    ranks. All parameters are one vector. ``momentum`` b > 0: each rank sends m = b m + (1 - b) g of
    its own (``state["momentum"]``, float32), where a NaN or infinity never enters; without it rules
    give way to attacks that hide in one step's noise (Karimireddy et al. 2021, Learning from
    history, section 4). A gradient that is not finite is left out with its rank, for this step;
    ``nan="raise"`` stops all ranks instead. A missing gradient counts as zeros, or as the momentum.

    In ``Detox(inner=Robust(...))`` the rule goes over groups, and f counts hostile groups; members
    of a group agree if they send the same bits, or with ``tolerance`` > 0 if the distance between
    them is at most that times their norm (for GPUs that do not reproduce bits; such as 1e-4). Where
    the rule goes on from its last result (CenteredClipping), that is ``state["center"]``, which
    all ranks share.
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
        if not isinstance(self.f, int) or self.f < 0:
            raise ValueError(f"Robust: f must be a number of ranks from 0, got {self.f!r}")
        for name in ("momentum", "tolerance"):
            value = getattr(self, name)
            if not isinstance(value, (int, float)) or not 0.0 <= value < 1.0:
                raise ValueError(f"Robust: {name} must be in [0, 1), got {value!r}")
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
        """The last result, for rules that start from it."""
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

    def compress_missing(self, parameter: torch.Tensor, state: State) -> torch.Tensor:
        m = state.get("momentum") if self.momentum else None
        return super().compress_missing(parameter, state) if m is None else m
