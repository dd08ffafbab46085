"""Device memory over torch.distributed: torch's groups on the CPU, with Gloo in NCCL's place."""

from __future__ import annotations

import pytest
from launchers import ONE_THREAD, RANKS, find, run


@pytest.mark.parametrize(
    "n", [pytest.param(2, marks=pytest.mark.many), 3, pytest.param(4, marks=pytest.mark.many)]
)
def test_planes_of_devices_over_a_group_of_our_own(n):
    env = {**ONE_THREAD, "GLOO_SOCKET_IFNAME": "lo"}
    command = [find("torchrun"), "--standalone", "--nproc-per-node", n, RANKS / "gpu_torch.py"]
    output = run(command, env=env).stdout
    assert output.count(" checks passed") == n and output.count(": survived") == n - 1, output
