"""Host memory in the place of devices, and Gloo in that of NCCL, for TorchDeviceTransport.

Parts are torch tensors of the CPU. The groups are torch's own, with real ranks.
"""

from __future__ import annotations

import contextlib
from datetime import timedelta

import torch
import torch.distributed as dist

#: The groups between devices that this process has made.
GROUPS = []


class HostStreams:
    """No streams: what is called has run."""

    waits = False

    def tensor(self, part):
        assert isinstance(part, torch.Tensor)
        return part

    def current(self):
        return torch.device("cpu")

    def of(self, part):
        return None

    def on(self, stream):
        return contextlib.nullcontext()

    def follow(self, stream):
        pass

    def enter(self, device):
        pass

    def settle(self, part):
        pass


def gloo_group(store, rank, size, members, seconds):
    """In the place of ``torch_device.nccl_group``."""
    group = dist.ProcessGroupGloo(store, rank, size, timedelta(seconds=seconds))
    assert group.name() == "gloo" and len(members) == size
    GROUPS.append(group)
    return group


def install():
    """Votes of CPU tensors by front ends take the wire for device memory, from now on."""
    import os

    from mpisign.backend import arrays
    from mpisign.exchange.aggregators import vote
    from mpisign.transports import on_device, torch_device
    from mpisign.transports import torch as torch_wire

    os.environ[on_device.VARIABLE] = "torch"
    torch_wire.nccl_group = gloo_group
    torch_wire.dist.is_nccl_available = lambda: True
    torch_device.CudaStreams = HostStreams
    make = vote.BucketTask.__init__

    def on_a_device(task, aggregator, like):
        first = aggregator.slots[0].parameter.detach()
        make(task, aggregator, arrays.view("step", "gradient", first))

    vote.BucketTask.__init__ = on_a_device
