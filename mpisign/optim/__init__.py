"""Optimizers whose ranks exchange momenta at one bit a coordinate: those DeepSpeed has removed."""

from __future__ import annotations

try:
    import torch as torch
except ImportError as error:
    from mpisign.errors import TORCH

    raise ImportError(f"mpisign.optim needs torch: {TORCH}") from error

from mpisign.optim.onebit_adam import OneBitAdam
from mpisign.optim.onebit_lamb import OneBitLamb
from mpisign.optim.zero_one_adam import ZeroOneAdam

__all__ = ["OneBitAdam", "OneBitLamb", "ZeroOneAdam"]
