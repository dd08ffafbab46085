"""DETOX: groups of ranks that compute the same, filtered by majority."""

from __future__ import annotations

from mpisign.detox.groups import Groups
from mpisign.detox.sampler import GroupSampler
from mpisign.partition import Partition, Placement, assign

__all__ = ["GroupSampler", "Groups", "Partition", "Placement", "assign"]
