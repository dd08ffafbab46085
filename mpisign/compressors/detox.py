"""DETOX: another compressor's ballots, filtered in groups of ranks that compute the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from mpisign import policies
from mpisign.compressors.base import Compressor, PackContext, State
from mpisign.compressors.signum import Signum
from mpisign.detox.assignment import Partition, Placement, assign, partition_of

if TYPE_CHECKING:
    import torch

    from mpisign.detox.groups import Groups


@dataclass(frozen=True)
class Detox(Compressor):
    """``inner``, in groups of ``redundancy`` ranks that are given the same batches.

    Where ``inner`` votes (a Compressor or its name), each group votes first, then the groups, in
    one tally and with no more bytes (``VoteTask.groups``); how far a rank is from its group's vote is
    told by ``mpisign.stats().suspects``. With ``Compression.robust`` gradients are compared in full
    precision, and a robust rule goes over one of each group (``mpisign.exchange.aggregators.detox``).

    ``placement``: see ``mpisign.detox.assign``. ``groups``: a ``mpisign.detox.Groups`` that says it
    all, and may be drawn anew between steps, as ``GroupSampler.set_epoch`` does. Without, groups
    are those of ``Groups`` with the same redundancy and placement and nothing else given. Source:
    Rajput et al. 2019, DETOX: a redundancy-based framework for faster and more robust gradient
    aggregation, Algorithm 1.
    """

    zeros: policies.Zeros = field(init=False, repr=False)
    nan: policies.Nan = field(init=False, repr=False)
    ties: policies.Ties = field(init=False, repr=False)
    redundancy: int = 3
    inner: Compressor | str = field(default_factory=Signum)
    placement: Placement = "spread"
    groups: Groups | None = None

    def __post_init__(self) -> None:
        from mpisign.compressors.names import resolve

        try:
            inner = resolve("Detox", self.inner)
        except ValueError as error:
            raise ValueError(
                str(error).replace("compression must be", "inner must be", 1)
            ) from None
        if isinstance(inner, Detox) or inner.aggregate not in ("vote", "robust"):
            raise ValueError(
                "Detox: inner must be a compressor that votes, such as 'signum', or "
                f"Compression.robust, got {self.inner!r}"
            )
        told: dict[str, Any] = {name: getattr(inner, name) for name in ("zeros", "nan", "ties")}
        if self.groups is not None:
            told |= self._told_by(self.groups)
        elif isinstance(self.placement, str):
            assign(1 << 10, self.redundancy, self.placement)  # which checks both
        else:
            told["placement"] = tuple(tuple(group) for group in self.placement)
        for name, value in {"inner": inner, **told}.items():
            object.__setattr__(self, name, value)
        super().__post_init__()

    def _told_by(self, groups: Any) -> dict[str, Any]:
        """What ``groups`` says in place of redundancy and placement, which may not contradict."""
        if not hasattr(groups, "members"):
            raise TypeError(
                "Detox: groups must be a mpisign.detox.Groups; redundancy= takes a number, "
                f"placement= a partition of the ranks, got {groups!r}"
            )
        told = {"redundancy": groups.redundancy, "placement": groups.placement}
        for name, default in (("redundancy", 3), ("placement", "spread")):
            if getattr(self, name) not in (default, told[name]):
                raise ValueError(
                    f"Detox: {name} is that of groups, {told[name]!r}, got {getattr(self, name)!r}"
                )
        return told

    @property
    def _inner(self) -> Compressor:
        assert isinstance(self.inner, Compressor)
        return self.inner

    @property
    def aggregate(self) -> str:  # type: ignore[override]
        """The inner one's, or what compares gradients first."""
        return "detox_robust" if self._inner.aggregate == "robust" else self._inner.aggregate

    @property
    def unit(self) -> str:  # type: ignore[override]
        """The inner one's."""
        return self._inner.unit

    @property
    def shared(self) -> tuple[str, ...]:  # type: ignore[override]
        """The inner one's."""
        return self._inner.shared

    @property
    def whole(self) -> bool:  # type: ignore[override]
        """The inner one's."""
        return self._inner.whole

    def groups_of(self, size: int, nodes: Sequence[Sequence[int]] | None) -> Partition:
        members = partition_of(self.groups, size, nodes)
        return assign(size, self.redundancy, self.placement, nodes) if members is None else members

    def abstaining(self) -> Compressor:
        return replace(self, inner=self._inner.abstaining())

    def compress(self, grad: torch.Tensor, state: State) -> torch.Tensor:
        return self._inner.compress(grad, state)

    def pre_sign(self, x: torch.Tensor, context: PackContext, place: int) -> torch.Tensor:
        return self._inner.pre_sign(x, context, place)

    def pack(
        self,
        grads: Sequence[torch.Tensor],
        states: Sequence[State],
        out: Any,
        offsets: Sequence[int],
        context: PackContext,
    ) -> int:
        return self._inner.pack(grads, states, out, offsets, context)

    def compress_missing(self, parameter: torch.Tensor, state: State) -> torch.Tensor:
        return self._inner.compress_missing(parameter, state)

    def decompress(self, mean: torch.Tensor, state: State, rate: float) -> torch.Tensor:
        return self._inner.decompress(mean, state, rate)
