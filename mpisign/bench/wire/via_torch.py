"""torch.distributed on Gloo."""

from __future__ import annotations

import os
import socket
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from mpisign import launcher
from mpisign.bench.wire.via import Bytes, Via

# Its name before and from torch 2.13 on.
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


class TorchVia(Via):
    """The default process group, on Gloo.

    Started by torchrun's variables, or, if ``control`` already connects the ranks, at an address
    that its rank 0 tells the others.
    """

    name = "torch"

    def __init__(self, control: Via | None, seconds: float) -> None:
        torch.set_num_threads(1)
        interface = os.environ.get("NETLAB_INTERFACE")
        if interface:
            os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
        self.seconds = seconds
        timeout = timedelta(seconds=seconds)
        if control is None:
            dist.init_process_group("gloo", timeout=timeout)
        else:
            store = _store(control)
            dist.init_process_group(
                "gloo", store=store, rank=control.rank, world_size=control.size, timeout=timeout
            )
        self._groups: dict[str, Any] = {}
        self.rank = dist.get_rank()
        self.size = dist.get_world_size()
        launcher.check_world(self.size)
        self.library = f"Gloo of torch {torch.__version__}"

    def barrier(self) -> None:
        dist.barrier()

    def allgather(self, send: Bytes, received: Bytes) -> None:
        _all_gather(torch.from_numpy(received).view(-1), torch.from_numpy(send))

    def alltoall(self, send: Bytes, received: Bytes) -> None:
        dist.all_to_all_single(torch.from_numpy(received), torch.from_numpy(send))

    def shift(self, by: int, send: Bytes, received: Bytes) -> None:
        to, source = (self.rank + by) % self.size, (self.rank - by) % self.size
        receive = dist.irecv(torch.from_numpy(received), source)
        dist.send(torch.from_numpy(send), to)
        assert receive is not None
        receive.wait()

    def group(self, name: str) -> Any:
        """A group of all ranks for one peer alone: what breaks it leaves the others whole."""
        if name not in self._groups:
            self._groups[name] = dist.new_group(timeout=timedelta(seconds=self.seconds))
        return self._groups[name]

    def argument(self) -> Any:
        return dist.group.WORLD

    def stop(self) -> None:
        if dist.is_initialized():
            dist.destroy_process_group()


def _store(control: Via) -> Any:
    """A store at a free port of rank 0, whose address ``control`` carries to the others."""
    told, store = "", None
    if control.rank == 0:
        host = _address()
        store = dist.TCPStore(host, 0, control.size, True, wait_for_workers=False)
        told = f"{host} {store.port}"
    host, port = control.tell(told)[0].split()
    if store is None:
        store = dist.TCPStore(host, int(port), control.size, False)
    return store


def _address() -> str:
    """What the other ranks reach this host by."""
    one_node = launcher.local_size() == launcher.launched_size()
    if one_node and "NETLAB" not in os.environ:
        return "127.0.0.1"
    return socket.gethostbyname(socket.gethostname())
