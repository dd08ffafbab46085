"""Accordion: each layer votes where its gradients are steady, and is averaged where they change."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Final

from mpisign import policies
from mpisign.compressors.base import Compressor, State, resolve
from mpisign.compressors.checks import check_one_of, check_positive, check_whole
from mpisign.compressors.ef_sign import EFSign
from mpisign.compressors.uncompressed import BF16Mean, Uncompressed

if TYPE_CHECKING:
    import torch

#: The entry of a parameter's state that says what it sends: a dict, equal on all ranks.
REGIME: Final = "accordion"
_LOWS = ("16bit", "none")
_HIGHS = ("vote", "gathered_vote", "mean_of_signs", "gathered_mean", "compressed_mean")


def is_steady(before: float | None, now: float, threshold: float) -> bool:
    """Whether r = |before - now| / before is below ``threshold``; False for norms of 0."""
    if not before or not now or not math.isfinite(now):
        return False
    return abs(before - now) / before < threshold


class _Low(Compressor):
    """What ``high`` would send, averaged as it is.

    Momenta of ``high`` see the gradients. What its residual owes is paid in the first step: the
    rank sends g + e, and e is 0 then, so that nothing is lost at a switch.
    """

    high: Compressor

    @property
    def shared(self) -> tuple[str, ...]:  # type: ignore[override]
        return self.high.shared

    def send(
        self, grad: torch.Tensor | None, parameter: torch.Tensor, state: State, rate: float
    ) -> torch.Tensor:
        """What this rank's mean is of: float32, the parameter's shape, a new tensor."""
        import torch

        sent = torch.zeros(parameter.shape, device=parameter.device)
        if grad is not None:
            sent += grad.detach()
        owed = self.high.owed(state, rate)
        return sent if owed is None else sent.add_(owed)

    def receive(
        self, grad: torch.Tensor | None, mean: torch.Tensor, state: State, rate: float
    ) -> None:
        """The mean has come: changes the state. ``grad``: as it was sent."""
        if self.high.owed(state, rate) is not None:
            state.pop("residual")
        self.warm_up(grad, mean, state)

    def warm_up(self, grad: torch.Tensor | None, mean: torch.Tensor, state: State) -> None:
        self.high.warm_up(grad, mean, state)

    def initial_state(self, parameter: torch.Tensor) -> State:
        return self.high.initial_state(parameter)


@dataclass(frozen=True)
class Low16(_Low, BF16Mean):
    """The mean in bfloat16."""

    high: Compressor = field(default_factory=EFSign)
    aggregate = "low_halves"


@dataclass(frozen=True)
class Low32(_Low, Uncompressed):
    """The mean in float32."""

    high: Compressor = field(default_factory=EFSign)
    aggregate = "low_average"


@dataclass(frozen=True)
class Accordion(Compressor):
    """Per parameter: ``high`` where gradients are steady, a mean where they change.

    In every n-th epoch all ranks add up the aggregates that they received. At its end
    r = |before - now| / before, of the norms of what has been added up, per step. r < ``threshold``
    sends ``high`` in the epochs to come, else ``low``. Low also in the first n epochs, after a norm
    of 0, and until the next comparison after an epoch in which the learning rate fell. What is
    added up are aggregates, which are equal on all ranks to the last bit: all decide alike, nobody
    sends a decision, and headers compare it.

    Two rules make norms comparable. ``high`` of a gradient's size with error feedback (``ef_sign``,
    ``onebit``) hands over, summed up, what the gradients sum up to, up to one residual: any two
    epochs are compared. Votes have a size of their own: two epochs of means are compared, or two
    of votes; after a switch the choice stays until there are two of a kind.

    The optimizer receives updates of the gradient's size, at one learning rate: a mean, what
    ``high`` makes of it, or ``vote_scale`` times the vote. Momenta see the steps of means.
    What a residual owes is sent with the first mean; owners' residuals of ``onebit`` restart.

    State, beside ``high``'s: "accordion", a dict of numbers; in every n-th epoch "accordion_sum",
    float32, the parameter's shape, with votes also "accordion_abs". Equal on all ranks. Epochs
    end by ``mpisign.next_epoch``. What ``skip=`` sends in 16 bits is no part of it. Means are no
    protection against hostile ranks. Source: Agarwal et al. 2021, Accordion (arXiv 2010.16248),
    Algorithm 1; there each rank adds up its own gradients, rank 0 decides and broadcasts, and any
    fall of the learning rate counts.

    Args:
        high: A compressor that votes, ``ef_sign``, ``onebit``, ``terngrad`` or ``qsgd``, or a name.
        low: "16bit", a mean in bfloat16, or "none", in float32.
        threshold: Of r. 0: always low.
        every: n, epochs from one comparison to the next.
        steps_per_epoch: An epoch ends after so many steps. None: where ``next_epoch`` says so.
        vote_scale: Size of the update where ``high`` votes. None: the mean absolute aggregate of
            the parameter's last epoch of means that was added up.
        fall: The learning rate fell if it is below this share of that of the epoch before. Half a
            cosine never falls so fast as by the default.
        zeros, nan, ties: Those of ``high``.

    Raises:
        ValueError: A value does not fit.

    Example:
        >>> Accordion(high="signum", every=5).now({"accordion": {"high": True}}).aggregate
        'vote'
        >>> Accordion(high="signum", every=5).now({}).aggregate
        'low_halves'
    """

    zeros: policies.Zeros = field(init=False, repr=False)
    nan: policies.Nan = field(init=False, repr=False)
    ties: policies.Ties = field(init=False, repr=False)
    high: Compressor | str = field(default_factory=EFSign)
    low: str = "16bit"
    threshold: float = 0.5
    every: int = 10
    steps_per_epoch: int | None = None
    vote_scale: float | None = None
    fall: float = 0.25

    aggregate = "accordion"
    unit = "gradient"
    #: A subclass of ``Low16`` or ``Low32`` that takes its place.
    mean: ClassVar[type[Compressor] | None] = None

    def __post_init__(self) -> None:
        try:
            high = resolve("Accordion", self.high)
        except ValueError as error:
            raise ValueError(str(error).replace("compression must be", "high must be", 1)) from None
        if high.aggregate not in _HIGHS or high.local_steps > 1 or high.shared == ("residual",):
            raise ValueError(
                "Accordion: high must be a compressor that votes, such as 'signum', or 'ef_sign', "
                f"'onebit', 'terngrad' or 'qsgd', got {self.high!r}"
            )
        for name, value in {"high": high, "zeros": high.zeros, "nan": high.nan}.items():
            object.__setattr__(self, name, value)
        object.__setattr__(self, "ties", high.ties)
        super().__post_init__()
        check_one_of(self, "low", _LOWS, "'16bit' or 'none'")
        check_whole(self, "every", 1, "a number of epochs from 1")
        if self.steps_per_epoch is not None:
            check_whole(self, "steps_per_epoch", 1, "a number of steps from 1 or None")
        if self.vote_scale is not None:
            check_positive(self, "vote_scale")
        for name, least in (("threshold", "0"), ("fall", "0")):
            value = getattr(self, name)
            if not isinstance(value, (int, float)) or not value >= 0:
                raise ValueError(f"Accordion: {name} must be a number from {least}, got {value!r}")

    @property
    def votes(self) -> bool:
        """Whether ``high`` hands over votes, whose size says nothing of the gradient's."""
        return self._high.unit == "sign"

    @property
    def _high(self) -> Compressor:
        assert isinstance(self.high, Compressor)
        return self.high

    def now(self, state: State) -> Compressor:
        return self._high if state.get(REGIME, {}).get("high") else self.averaging()

    def averaging(self) -> Compressor:
        """What parameters send that are low.

        Returns:
            A compressor whose aggregate is "low_halves" or "low_average".

        Example:
            >>> Accordion(low="none").averaging().aggregate
            'low_average'
        """
        kind: Any = self.mean or (Low16 if self.low == "16bit" else Low32)
        made: Compressor = kind(zeros=self.zeros, nan=self.nan, ties=self.ties, high=self._high)
        return made

    def in_16_bits(self) -> Compressor:
        """What parameters send that never vote.

        Returns:
            That of the means, so that they share a bucket, if these have 16 bits.

        Example:
            >>> Accordion().in_16_bits() == Accordion().averaging()
            True
        """
        return self.averaging() if self.low == "16bit" else BF16Mean(nan=self.nan)

    def of_parameter(self, *of: Any) -> Compressor:
        return replace(self, high=self._high.of_parameter(*of))

    def abstaining(self) -> Compressor:
        return replace(self, high=self._high.abstaining())

    def initial_state(self, parameter: torch.Tensor) -> State:
        return self._high.initial_state(parameter)
