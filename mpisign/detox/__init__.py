"""DETOX: groups of ranks that compute the same, filtered by majority."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mpisign.detox.groups import Groups
from mpisign.partition import Partition, Placement, assign

if TYPE_CHECKING:
    from mpisign.detox.sampler import GroupSampler

__all__ = ["GroupSampler", "Groups", "Partition", "Placement", "assign"]


def __getattr__(name: str) -> Any:
    if name != "GroupSampler":  # which loads torch
        raise AttributeError(f"module 'mpisign.detox' has no attribute {name!r}")
    from mpisign.detox.sampler import GroupSampler

    return GroupSampler
