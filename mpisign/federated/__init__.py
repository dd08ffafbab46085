"""Clients that train on data of their own and average their models, not their gradients.

``matched_average`` and ``FedMA`` match hidden units before they average them, ``FedAvg`` does not,
and can send its rounds as votes.
"""

from mpisign.federated.fedavg import FedAvg
from mpisign.federated.fedma import FedMA, RoundReport
from mpisign.federated.matched_average import Matched, matched_average

__all__ = ["FedAvg", "FedMA", "Matched", "RoundReport", "matched_average"]
