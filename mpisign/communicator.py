"""``Communicator``: the ranks that vote together, over whatever connects them."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, TypeVar

from mpisign import launcher
from mpisign.engine.engine import Engine, check_every, tell_choice
from mpisign.engine.progress import finish_all, timeout_of_environment
from mpisign.transports.base import Transport

T = TypeVar("T")
_FUNCTION = "Communicator"
_TORCH = {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}  # all that torch needs
_KINDS = ("mpi", "horovod", "torch")


class Communicator:
    """Ranks that vote together.

    ``x``: an mpi4py intracommunicator, a torch.distributed process group, a Horovod process set, a
    ``Transport``, "mpi", "horovod" or "torch" (all ranks of the job), or None: what the launcher
    started. Making one is collective: all its ranks do, in the same order.

    ``timeout``: seconds that ranks wait for each other before they raise CollectiveTimeout, default
    ``MPISIGN_TIMEOUT``, else 600. ``nodes``: one number a rank, equal for ranks that share a node's
    network link; default: by host name. With ``MPISIGN_DEBUG=1`` rank 0 prints which transport was
    picked, and why.

    Raises TypeError, ValueError for arguments that do not fit, ImportError if what ``x`` needs is
    not installed, LauncherError if the launcher started more ranks than are seen.
    """

    def __init__(
        self,
        x: Any = None,
        *,
        timeout: float | None = None,
        nodes: Sequence[int] | None = None,
    ) -> None:
        wrong: list[Exception] = []  # told to the others, who would wait for this rank

        def checked(setting: Callable[[], T], otherwise: T) -> T:
            try:
                return setting()
            except (TypeError, ValueError) as error:
                wrong.append(error)
                return otherwise

        seconds = checked(lambda: _seconds(timeout), 600.0)
        finish_all()  # while this rank is here, nobody else would move what is in flight
        transport, why = _transport(_FUNCTION, x, seconds)
        given = checked(lambda: _nodes(nodes, transport.size), None)
        self.engine = Engine(transport, seconds, checked(check_every, 0))
        self.engine.survey(given, wrong[0] if wrong else None)
        self.rank: int = transport.rank
        self.size: int = transport.size
        tell_choice(transport, why)

    def free(self) -> None:
        """Waits for what is in flight and gives back what the wire holds; collective.

        MPI libraries have a few thousand communicators in all, and this has two. One that was made
        on the way, from what a front end was given as ``comm``, is freed with that.
        """
        self.engine.progress.finish()
        self.engine.transport.free()

    def __repr__(self) -> str:
        return f"Communicator({self.engine.transport.name}, rank {self.rank} of {self.size})"

    def majority_vote(self, x: Any, **options: Any) -> Any:
        """``mpisign.majority_vote`` on this communicator."""
        from mpisign.collectives.majority_vote import majority_vote

        return majority_vote(x, self, **options)

    def majority_vote_async(self, x: Any, **options: Any) -> Any:
        """``mpisign.majority_vote_async`` on this communicator."""
        from mpisign.collectives.majority_vote import majority_vote_async

        return majority_vote_async(x, self, **options)

    def tally(self, x: Any, **options: Any) -> Any:
        """``mpisign.tally`` on this communicator."""
        from mpisign.collectives.tally import tally

        return tally(x, self, **options)

    def tally_async(self, x: Any, **options: Any) -> Any:
        """``mpisign.tally_async`` on this communicator."""
        from mpisign.collectives.tally import tally_async

        return tally_async(x, self, **options)

    def mean_of_signs(self, x: Any, **options: Any) -> Any:
        """``mpisign.mean_of_signs`` on this communicator."""
        from mpisign.collectives.mean_of_signs import mean_of_signs

        return mean_of_signs(x, self, **options)

    def compressed_mean(self, x: Any, state: Any, **options: Any) -> Any:
        """``mpisign.compressed_mean`` on this communicator."""
        from mpisign.collectives.compressed_mean import compressed_mean

        return compressed_mean(x, state, self, **options)


def engine_of(function: str, comm: Any) -> Engine:
    """The engine of what a front end was given as ``comm``.

    Made by the first call for a communicator (collective), and kept as long as that lives.
    """
    if isinstance(comm, Communicator):
        return comm.engine
    mpi4py = sys.modules.get("mpi4py.MPI")
    if comm is not None and mpi4py is not None and isinstance(comm, mpi4py.Intracomm) and comm:
        from mpisign.transports import mpi

        kept = mpi.kept(comm)
        if kept is not None:
            return kept.engine  # type: ignore[no-any-return]
    kind, comm, why = _resolve(function, comm)
    if kind == "mpi":
        from mpisign.transports import mpi

        kept = mpi.kept(comm)
        if kept is None:
            kept = Communicator(comm)
            mpi.keep(comm, kept)
        assert isinstance(kept, Communicator)
        return kept.engine
    key = _key(kind, comm)
    if key not in _KEPT:
        _KEPT[key] = Communicator(kind if kind == "horovod" and comm is None else comm), comm
    return _KEPT[key][0].engine


_KEPT: dict[Any, tuple[Communicator, Any]] = {}  # with what the key's id belongs to


def _key(kind: str, x: Any) -> Any:
    if kind == "horovod":
        import horovod.torch as hvd

        process_set = hvd.global_process_set if x is None else x
        # Elastic training changes the ranks behind a process set.
        return kind, process_set.process_set_id, process_set.rank(), process_set.size()
    return kind, id(x)


def _seconds(timeout: float | None) -> float:
    if timeout is None:
        return timeout_of_environment()
    if not isinstance(timeout, (int, float)) or not 0 < timeout < float("inf"):
        raise ValueError(
            f"{_FUNCTION}: timeout must be a positive number of seconds, got {timeout!r}"
        )
    return float(timeout)


def _nodes(nodes: Sequence[int] | None, size: int) -> list[int] | None:
    if nodes is None:
        return None
    numbers = [int(n) for n in nodes]
    if len(numbers) != size:
        raise ValueError(
            f"{_FUNCTION}: nodes must be one for each of {size} ranks, got {len(numbers)}"
        )
    return numbers


def _transport(function: str, x: Any, seconds: float) -> tuple[Transport, str]:
    if isinstance(x, Transport):
        return x, "it was given"
    kind, x, why = _resolve(function, x, seconds)
    if kind == "mpi":
        from mpisign.transports import mpi

        return mpi.MPITransport(mpi.duplicate(mpi.checked(x), seconds)), why
    if kind == "torch":
        from mpisign.transports.torch import TorchTransport

        return TorchTransport(x), why
    if kind == "horovod":
        from mpisign.transports import horovod

        return horovod.made(x, seconds), why
    from mpisign.transports.threads import ThreadTransport, World

    return ThreadTransport(World(1), 0), why


def _resolve(function: str, x: Any, seconds: float | None = None) -> tuple[str, Any, str]:
    """Kind of transport, what it is made of, and why. ``seconds``: that its start may take."""
    module = type(x).__module__
    if x is None:
        return _launched(seconds)
    if isinstance(x, str):
        if x not in _KINDS:
            raise ValueError(f"{function}: comm must be {', '.join(map(repr, _KINDS))}, got {x!r}")
        return x, _world(x, seconds), "it was asked for"
    if module.startswith("mpi4py"):
        from mpisign.transports import mpi

        return "mpi", mpi.intracommunicator(function, x), "it was given an mpi4py communicator"
    if module.startswith("horovod"):
        return "horovod", x, "it was given a Horovod process set"
    if module.startswith("torch") and hasattr(x, "allreduce") and hasattr(x, "rank"):
        return "torch", x, "it was given a torch process group"
    raise TypeError(
        f"{function}: comm must be an mpi4py intracommunicator, a torch process group, a Horovod "
        f"process set, a Communicator or None, got {type(x).__name__}"
    )


def _world(kind: str, seconds: float | None) -> Any:
    if kind == "mpi":
        from mpisign.transports import mpi

        return mpi.MPI.COMM_WORLD
    if kind == "torch":
        try:
            import torch.distributed as dist
        except ImportError as error:
            raise ImportError(
                "votes over torch.distributed need torch: pip install torch"
            ) from error
        if not dist.is_initialized():
            limit = None if seconds is None else timedelta(seconds=seconds)
            dist.init_process_group(timeout=limit)
        return dist.group.WORLD
    from mpisign.transports.horovod import hvd  # which says what to install

    if not hvd.is_initialized():
        hvd.init()
    return None


def _launched(seconds: float | None) -> tuple[str, Any, str]:
    """What the launcher started, by what it left in the environment."""
    env = os.environ
    if env.get("HOROVOD_CONTROLLER") == "gloo" or (
        "HOROVOD_RANK" in env and "OMPI_COMM_WORLD_RANK" not in env
    ):
        return "horovod", _world("horovod", seconds), "horovodrun --gloo started this process"
    if "TORCHELASTIC_RUN_ID" in env:
        return "torch", _world("torch", seconds), "torchrun started this process"
    size = launcher.launched_size()
    if size is None and env.get("WORLD_SIZE", "1") != "1" and _TORCH <= env.keys():
        return "torch", _world("torch", seconds), "RANK and WORLD_SIZE are set"
    try:
        import mpi4py  # noqa: F401
    except ImportError:
        if size is None or size == 1:
            return "alone", None, "no launcher started this process and mpi4py is not installed"
    if size is None and _torch_runs():
        return "torch", _world("torch", seconds), "torch.distributed is initialised"
    why = "mpi4py is installed" if size is None else f"a launcher started {size} processes"
    return "mpi", _world("mpi", seconds), why


def _torch_runs() -> bool:
    dist = sys.modules.get("torch.distributed")
    return dist is not None and dist.is_available() and dist.is_initialized()
