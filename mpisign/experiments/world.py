"""The ranks of a run, through MPI, torch or Horovod: what training needs besides votes."""

from __future__ import annotations

import os
import re
import socket
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
import numpy.typing as npt

from mpisign import launcher
from mpisign.errors import LauncherError
from mpisign.experiments.errors import SettingsError, missing

_ADDRESS = 512  # bytes of a host name and a port
_MESSAGE = 1024  # bytes of an error message that reach the other ranks

T = TypeVar("T")


class TrainingWorld(ABC):
    """All ranks of the job; ``kind`` is that of ``mpisign.Communicator``. Collective methods."""

    kind: ClassVar[str]
    rank: int
    size: int
    one_machine: bool
    library: str = "Gloo"  # what connects the ranks, for the report
    barrier: Callable[[], object]

    @abstractmethod
    def gather(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Every rank's ``values`` (n,), the same n and dtype on all: (size, n), on every rank."""

    def gather_texts(self, text: str, limit: int) -> list[str]:
        """Every rank's ``text``, cut off after ``limit`` bytes."""
        buffer = np.zeros(limit, dtype=np.uint8)
        encoded = np.frombuffer(text.encode()[:limit], dtype=np.uint8)
        buffer[: len(encoded)] = encoded
        rows = self.gather(buffer)
        return [row.tobytes().rstrip(b"\0").decode(errors="replace") for row in rows]

    def gather_digests(self, digest: str) -> list[str]:
        """Every rank's ``digest``, in hexadecimal."""
        own = np.frombuffer(bytes.fromhex(digest), dtype=np.uint8)
        return [row.tobytes().hex() for row in self.gather(own)]


class MPIWorld(TrainingWorld):
    """A duplicate of COMM_WORLD."""

    kind = "mpi"

    def __init__(self) -> None:
        from mpi4py import MPI

        launcher.check_world(MPI.COMM_WORLD.Get_size())
        self._comm = MPI.COMM_WORLD.Dup()
        self.rank, self.size = self._comm.Get_rank(), self._comm.Get_size()
        self.barrier = self._comm.Barrier
        node = self._comm.Split_type(MPI.COMM_TYPE_SHARED)
        self.one_machine = node.Get_size() == self.size
        node.Free()
        self.library = MPI.Get_library_version().split(",")[0].strip("\0\n ")

    def gather(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        received = np.empty((self.size, *values.shape), dtype=values.dtype)
        self._comm.Allgather(np.ascontiguousarray(values), received)
        return received


class GlooWorld(TrainingWorld):
    """Ranks whose library gathers tensors of bytes."""

    def gather(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        import torch

        own = torch.from_numpy(np.array(values, order="C").reshape(-1).view(np.uint8))
        rows: npt.NDArray[Any] = self._gathered(own).numpy().view(values.dtype)
        return rows.reshape(self.size, *values.shape)

    @abstractmethod
    def _gathered(self, own: Any) -> Any:
        """Every rank's ``own``, one after the other."""


class HorovodWorld(GlooWorld):
    """Horovod's global process set, where there is no MPI: ``horovodrun --gloo``."""

    kind = "horovod"

    def __init__(self) -> None:
        self._hvd = start_horovod()
        self.rank, self.size = self._hvd.rank(), self._hvd.size()
        self.barrier = self._hvd.barrier
        self.one_machine = self._hvd.local_size() == self.size

    def _gathered(self, own: Any) -> Any:
        return self._hvd.allgather(own, name="mpisign.experiments.gather")


class TorchWorld(GlooWorld):
    """All ranks of torch.distributed, on Gloo: ``torchrun``."""

    kind = "torch"

    def __init__(self) -> None:
        import torch.distributed as dist

        if not dist.is_initialized():
            dist.init_process_group("gloo")
        self.rank, self.size, self.barrier = dist.get_rank(), dist.get_world_size(), dist.barrier
        self.one_machine = os.environ.get("LOCAL_WORLD_SIZE") == str(self.size)

    def _gathered(self, own: Any) -> Any:
        from torch.distributed import all_gather

        gathered = own.new_empty(self.size * len(own))
        all_gather(list(gathered.split(max(1, len(own)))), own)
        return gathered


def started_by_torch() -> bool:
    """Whether ``torchrun`` started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def started_by_gloo() -> bool:
    """Whether ``horovodrun --gloo`` started this process: it makes no MPI world."""
    return os.environ.get("HOROVOD_CONTROLLER") == "gloo"


def join(vias: set[str]) -> TrainingWorld:
    """The world that fits the launcher and the transports; SettingsError, LauncherError."""
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


def start_torch(world: TrainingWorld) -> None:
    """torch.distributed on Gloo between the ranks of ``world``, unless it runs already."""
    import torch.distributed as dist

    if dist.is_initialized():
        return
    # Rank 0 listens on the port before the others learn its number: nobody else can take it.
    host = "127.0.0.1" if world.one_machine else socket.gethostname()
    store = dist.TCPStore(host, 0, world.size, is_master=True, wait_for_workers=False)
    first = world.gather_texts(f"{host} {store.port}", _ADDRESS)[0]
    if world.rank:
        name, port = first.split()
        store = dist.TCPStore(name, int(port), world.size, is_master=False)
    dist.init_process_group("gloo", store=store, rank=world.rank, world_size=world.size)


def start_horovod(world: TrainingWorld | None = None) -> Any:
    """Horovod's torch module, initialised; the same ranks as ``world``, if given."""
    import horovod.torch as hvd

    hvd.init()
    if world is None:
        launcher.check_world(hvd.size())
    elif hvd.size() != world.size:
        raise LauncherError(
            f"Horovod sees {hvd.size()} of {world.size} ranks: was it built without MPI?"
        )
    elif hvd.rank() != world.rank:
        raise LauncherError(f"rank {world.rank} is rank {hvd.rank()} in Horovod")
    return hvd


def stop() -> None:
    """Ends the threads of Horovod and torch.distributed, if started, before MPI ends."""
    hvd = sys.modules.get("horovod.torch")
    if hvd is not None and hvd.is_initialized():
        hvd.shutdown()
    dist = sys.modules.get("torch.distributed")
    if dist is not None and dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def agreed(world: TrainingWorld, action: Callable[[], T]) -> T:
    """``action()``, or the first rank's SettingsError on all ranks. Collective."""
    text, value = "", None
    try:
        value = action()
    except SettingsError as error:
        text = str(error) or "unusable settings"
    for rank, message in enumerate(world.gather_texts(text, _MESSAGE)):
        if message:
            raise SettingsError(message if rank == 0 else f"rank {rank}: {message}")
    return value  # type: ignore[return-value]  # no rank raised, so action() returned


def wire_measurable(world: TrainingWorld) -> bool:
    """Whether all traffic is TCP over this machine's loopback device, which alone is counted."""
    if not world.one_machine or world.size == 1 or loopback_sent() is None:
        return False
    if started_by_gloo() or started_by_torch():
        return True
    btl = set(os.environ.get("OMPI_MCA_btl", "").split(","))
    return btl == {"tcp", "self"} and os.environ.get("OMPI_MCA_pml", "ob1") == "ob1"


def loopback_sent() -> int | None:
    """Bytes that the machine has sent over ``lo``, headers included; None if not known."""
    try:
        found = re.search(r"^ *lo:((?: *\d+){9})", Path("/proc/net/dev").read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(found[1].split()[8]) if found else None
