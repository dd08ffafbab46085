"""DETOX: another compressor's votes, filtered in groups of ranks with the same batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from mpisign import policies
from mpisign.compressors.base import Compressor, resolve
from mpisign.compressors.signum import Signum
from mpisign.partition import Partition, Placement, assign, partition_of

if TYPE_CHECKING:
    import torch

    from mpisign.detox.groups import Groups


def _of_inner(name: str) -> Any:
    """A property: the attribute ``name`` of the inner compressor."""
    return property(lambda self: getattr(self.inner, name), doc=f"``inner``'s ``{name}``.")


@dataclass(frozen=True)
class Detox(Compressor):
    """``inner``, filtered in groups of ``redundancy`` ranks that receive the same batches.

    If ``inner`` votes, each group votes first, then the groups, in one tally and with no more
    bytes. ``mpisign.stats().suspects`` has each rank's distance from its group's vote. With
    ``Compression.robust`` gradients are compared in full precision, and the robust rule gets one
    gradient of each group. Source: Rajput et al. 2019, DETOX: a redundancy-based framework for
    faster and more robust gradient aggregation, Algorithm 1.

    Args:
        redundancy: Ranks per group, odd.
        inner: A compressor that votes, ``Compression.robust``, or a name of either.
        placement: "spread", "packed" or a partition of the ranks; see ``mpisign.detox.assign``.
        groups: A ``mpisign.detox.Groups`` instead of redundancy and placement; its groups may be
            redrawn between steps. Default: those of ``Groups(comm, redundancy, placement)``.

    Raises:
        ValueError: A value does not fit, or contradicts ``groups``.
        TypeError: ``groups`` is not a ``Groups``.

    Example:
        >>> Detox(redundancy=3, inner="sign", placement="packed").groups_of(6, None)
        ((0, 1, 2), (3, 4, 5))
    """

    zeros: policies.Zeros = field(init=False, repr=False)
    nan: policies.Nan = field(init=False, repr=False)
    ties: policies.Ties = field(init=False, repr=False)
    redundancy: int = 3
    inner: Compressor | str = field(default_factory=Signum)
    placement: Placement = "spread"
    groups: Groups | None = None

    def __post_init__(self) -> None:
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
        settings: dict[str, Any] = {name: getattr(inner, name) for name in ("zeros", "nan", "ties")}
        if self.groups is not None:
            settings |= self._settings_of(self.groups)
        elif isinstance(self.placement, str):
            assign(1 << 10, self.redundancy, self.placement)  # checks both
            settings["redundancy"] = int(self.redundancy)
        else:
            settings["placement"] = tuple(tuple(group) for group in self.placement)
        for name, value in {"inner": inner, **settings}.items():
            object.__setattr__(self, name, value)
        super().__post_init__()

    def _settings_of(self, groups: Any) -> dict[str, Any]:
        """Redundancy and placement of ``groups``; ValueError if other ones were given."""
        if not hasattr(groups, "members"):
            raise TypeError(
                "Detox: groups must be a mpisign.detox.Groups; redundancy= takes a number, "
                f"placement= a partition of the ranks, got {groups!r}"
            )
        own = {"redundancy": groups.redundancy, "placement": groups.placement}
        for name, default in (("redundancy", 3), ("placement", "spread")):
            if getattr(self, name) not in (default, own[name]):
                raise ValueError(
                    f"Detox: {name} is that of groups, {own[name]!r}, got {getattr(self, name)!r}"
                )
        return own

    @property
    def aggregate(self) -> str:  # type: ignore[override]
        """``inner``'s, or "detox_robust" for ``Compression.robust``."""
        aggregate: str = self.inner.aggregate  # type: ignore[union-attr]
        return "detox_robust" if aggregate == "robust" else aggregate

    unit, shared, whole = map(_of_inner, ("unit", "shared", "whole"))
    remembers, warm_up = _of_inner("remembers"), _of_inner("warm_up")
    compress, decompress = _of_inner("compress"), _of_inner("decompress")
    compress_missing, initial_state = map(_of_inner, ("compress_missing", "initial_state"))
    pre_sign, pack = _of_inner("pre_sign"), _of_inner("pack")

    def groups_of(self, size: int, nodes: Sequence[Sequence[int]] | None) -> Partition:
        partition = partition_of(self.groups, size, nodes)
        if partition is None:
            return assign(size, self.redundancy, self.placement, nodes)
        return partition

    def of_parameter(
        self, name: str, parameter: torch.Tensor, is_embedding: Callable[[], bool]
    ) -> Compressor:
        inner: Any = self.inner
        own = inner.of_parameter(name, parameter, is_embedding)
        return self if own is inner else replace(self, inner=own)

    def abstaining(self) -> Compressor:
        return replace(self, inner=self.inner.abstaining())  # type: ignore[union-attr]
