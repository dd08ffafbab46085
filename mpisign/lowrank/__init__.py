"""Low-rank training: after some epochs the large layers of a model go on as two thin ones each.

Fewer coordinates to compute and to exchange, and with votes one bit for each of them.
"""

from mpisign.lowrank.attention import LowRankAttention
from mpisign.lowrank.factorization import factorize
from mpisign.lowrank.layers import LowRankConv2d, LowRankLinear
from mpisign.lowrank.lstm import LowRankLSTM
from mpisign.lowrank.report import FactorizedWeight, FactorizeReport

__all__ = [
    "FactorizeReport",
    "FactorizedWeight",
    "LowRankAttention",
    "LowRankConv2d",
    "LowRankLSTM",
    "LowRankLinear",
    "factorize",
]
