"""mpisign.horovod.DistributedOptimizer, and every compressor under Horovod's, by both launchers."""

from __future__ import annotations

import pytest
from test_horovod import show, start

pytest.importorskip("horovod.torch", reason="Horovod is not installed: run scripts/setup")

pytestmark = [pytest.mark.horovod, pytest.mark.slow]

FEW = ["orders", "errors", "broadcasts", "sparse", "two_optimizers"]


@pytest.mark.parametrize(
    "controller, n, checks",
    [
        pytest.param("mpi", 2, ["every_compressor", "under_horovods"], marks=pytest.mark.many),
        ("mpi", 3, []),
        ("gloo", 2, FEW),
    ],
)
def test_what_users_rely_on(controller, n, checks):
    """Values, orders, errors, states, process sets, replicas: see the script."""
    show(start(controller, n, "horovod_optimizer", str(n), *checks))
