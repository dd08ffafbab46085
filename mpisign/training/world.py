"""The ranks of a run, seen through MPI, torch or Horovod: what training needs besides votes.

Only buffers of one fixed size travel; nothing is pickled. None of it is booked in mpisign.stats.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from mpisign import launcher
from mpisign.errors import LauncherError
from mpisign.training.errors import SettingsError, missing

_ADDRESS = 512  # bytes of a host name and a port
_MESSAGE = 1024  # bytes of an error message that reach the other ranks

T = TypeVar("T")


class World(Protocol):
    """All ranks of the job. Every method is collective."""

    rank: int
    size: int
    #: Whether all ranks share one machine.
    one_machine: bool
    #: What connects them, for the report.
    library: str
    #: What ``mpisign.Communicator`` calls it.
    kind: str

    def gather(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Every rank's ``values`` (n,), the same n and dtype on all: (size, n), on every rank."""

    def barrier(self) -> None:
        """Returns once all ranks have come."""


class MPIWorld:
    """COMM_WORLD, by a clone."""

    kind = "mpi"

    def __init__(self) -> None:
        from mpi4py import MPI

        launcher.check_world(MPI.COMM_WORLD.Get_size())
        self._comm = MPI.COMM_WORLD.Dup()
        self.rank: int = self._comm.Get_rank()
        self.size: int = self._comm.Get_size()
        node = self._comm.Split_type(MPI.COMM_TYPE_SHARED)
        self.one_machine: bool = node.Get_size() == self.size
        node.Free()
        self.library: str = MPI.Get_library_version().split(",")[0].strip("\0\n ")

    def gather(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        received = np.empty((self.size, *values.shape), dtype=values.dtype)
        self._comm.Allgather(np.ascontiguousarray(values), received)
        return received

    def barrier(self) -> None:
        self._comm.Barrier()


class HorovodWorld:
    """Horovod's global process set, where there is no MPI: ``horovodrun --gloo``."""

    kind = "horovod"

    def __init__(self) -> None:
        self._hvd = start_horovod()
        self.rank: int = self._hvd.rank()
        self.size: int = self._hvd.size()
        self.one_machine: bool = self._hvd.local_size() == self.size
        self.library: str = "Gloo"

    def gather(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        import torch

        flat = torch.from_numpy(np.array(values, order="C").reshape(-1).view(np.uint8))
        gathered = self._hvd.allgather(flat, name="mpisign.training.gather")
        return gathered.numpy().view(values.dtype).reshape(self.size, *values.shape)

    def barrier(self) -> None:
        self._hvd.barrier()


class TorchWorld:
    """All ranks of torch.distributed, on Gloo: ``torchrun``."""

    kind = "torch"

    def __init__(self) -> None:
        import torch.distributed as dist

        if not dist.is_initialized():
            dist.init_process_group("gloo")
        self._dist = dist
        self.rank: int = dist.get_rank()
        self.size: int = dist.get_world_size()
        self.one_machine: bool = os.environ.get("LOCAL_WORLD_SIZE") == str(self.size)
        self.library: str = "Gloo"

    def gather(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        import torch

        flat = torch.from_numpy(np.array(values, order="C").reshape(-1).view(np.uint8))
        rows = [torch.empty_like(flat) for _ in range(self.size)]
        self._dist.all_gather(rows, flat)
        gathered = torch.stack(rows).numpy().view(values.dtype)
        return gathered.reshape(self.size, *values.shape)

    def barrier(self) -> None:
        self._dist.barrier()


def started_by_torch() -> bool:
    """Whether ``torchrun`` started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def started_by_gloo() -> bool:
    """Whether ``horovodrun --gloo`` started this process: it makes no MPI world."""
    return os.environ.get("HOROVOD_CONTROLLER") == "gloo"


def join(vias: set[str]) -> World:
    """The world that fits the launcher and the transports of the ways, "mpi", "torch", "horovod".

    Raises SettingsError if MPI or Horovod is missing, or the launcher started another world,
    LauncherError if ranks would run alone.
    """
    if started_by_torch():
        if vias != {"torch"}:
            raise SettingsError(
                "torchrun starts no MPI and no Horovod world: --via torch goes with it, the others "
                "with mpirun or horovodrun"
            )
        return TorchWorld()
    if started_by_gloo() and "mpi" not in vias:
        return HorovodWorld()
    try:
        import mpi4py.MPI  # noqa: F401
    except (ImportError, RuntimeError) as error:
        if vias == {"horovod"}:
            return HorovodWorld()
        raise missing("mpi4py and an MPI library", ImportError(error)) from error
    return MPIWorld()


def start_torch(world: World) -> None:
    """torch.distributed on Gloo between the ranks of ``world``, unless it runs already."""
    import torch.distributed as dist

    if dist.is_initialized():
        return
    # Rank 0 keeps the port from the moment it is told: nobody else can take it in between.
    host = "127.0.0.1" if world.one_machine else socket.gethostname()
    store = dist.TCPStore(host, 0, world.size, is_master=True, wait_for_workers=False)
    told = np.zeros(_ADDRESS, dtype=np.uint8)
    address = f"{host} {store.port}".encode()
    told[: len(address)] = np.frombuffer(address, dtype=np.uint8)
    first = world.gather(told)[0].tobytes().rstrip(b"\0").decode()
    if world.rank:
        name, port = first.split()
        store = dist.TCPStore(name, int(port), world.size, is_master=False)
    dist.init_process_group("gloo", store=store, rank=world.rank, world_size=world.size)


def start_horovod(world: World | None = None) -> Any:
    """Horovod's torch module, initialised; the same ranks as ``world``, if given."""
    import horovod.torch as hvd

    hvd.init()
    size = hvd.size() if world is None else world.size
    if hvd.size() != size:
        raise LauncherError(f"Horovod sees {hvd.size()} of {size} ranks: was it built without MPI?")
    if world is None:
        launcher.check_world(size)
    elif hvd.rank() != world.rank:
        raise LauncherError(f"rank {world.rank} is rank {hvd.rank()} in Horovod")
    return hvd


def stop_torch() -> None:
    """Ends torch.distributed's threads before the interpreter does, if they were started."""
    dist = sys.modules.get("torch.distributed")
    if dist is not None and dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def stop_horovod() -> None:
    """Ends Horovod's thread before MPI ends, if it was started."""
    hvd = sys.modules.get("horovod.torch")
    if hvd is not None and hvd.is_initialized():
        hvd.shutdown()


def agreed(world: World, action: Callable[[], T]) -> T:
    """``action()``, or the first rank's SettingsError on all of them."""
    text, value = "", None
    try:
        value = action()
    except SettingsError as error:
        text = str(error) or "unusable settings"
    buffer = np.zeros(_MESSAGE, dtype=np.uint8)
    encoded = np.frombuffer(text.encode()[:_MESSAGE], dtype=np.uint8)
    buffer[: len(encoded)] = encoded
    for rank, row in enumerate(world.gather(buffer)):
        if row[0]:
            said = row.tobytes().rstrip(b"\0").decode(errors="replace")
            raise SettingsError(said if rank == 0 else f"rank {rank}: {said}")
    return value  # type: ignore[return-value]  # no rank raised, so action() returned
