"""What votes do, for TensorBoard and Prometheus: margins, ties, bytes, seconds, suspects."""

from mpisign.log.prometheus_file import write_prometheus
from mpisign.log.sampling import sample_votes
from mpisign.log.tensorboard import TensorBoard

__all__ = ["TensorBoard", "sample_votes", "write_prometheus"]
