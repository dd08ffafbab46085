"""DETOX: groups of ranks that compute the same, filtered by majority."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mpisign.detox.assignment import Partition, Placement, assign

if TYPE_CHECKING:
    from mpisign.detox.groups import Groups
    from mpisign.detox.sampler import GroupSampler

__all__ = ["GroupSampler", "Groups", "Partition", "Placement", "assign"]

_LAZY = {"Groups": "mpisign.detox.groups", "GroupSampler": "mpisign.detox.sampler"}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'mpisign.detox' has no attribute {name!r}")
    import importlib

    value = getattr(importlib.import_module(_LAZY[name]), name)
    globals()[name] = value
    return value
