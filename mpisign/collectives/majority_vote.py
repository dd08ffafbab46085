"""majority_vote: the sign of the sum of signs over the ranks of a communicator."""

from __future__ import annotations

import functools
import hashlib
from typing import Any

import numpy as np

from mpisign import policies
from mpisign.backend import arrays
from mpisign.collectives.auto import choose
from mpisign.collectives.vote_task import ArrayTask, VoteTask
from mpisign.engine.agreement import Agreed, refuse_nans
from mpisign.engine.dissemination import all_same
from mpisign.engine.engine import Engine
from mpisign.engine.header import EAGER_AT, EAGER_NBYTES, SHORT_ABOVE, Header
from mpisign.engine.progress import Handle
from mpisign.errors import CollectiveError
from mpisign.partition import Partition, partition_of
from mpisign.transports.base import Steps
from mpisign.transports.tagged import TaggedTransport

_FUNCTION = "majority_vote"


def start(engine: Engine, x: Any, out: Any, groups: Any, whole: bool, **options: Any) -> Handle:
    """Starts a vote; ``whole``: packs ``x`` before this returns. See Communicator.majority_vote."""

    def make(number: int, step: int) -> Any:
        options["step"] = step
        partition = None
        if groups is not None:
            partition = partition_of(groups, engine.transport.size, engine.nodes)
            assert partition is not None
            options["settings"] = _digest(partition)
        v = arrays.view_floats(_FUNCTION, "x", x)
        result = arrays.empty(v.shape, v.dtype, like=v) if out is None else out
        o = arrays.view_floats(_FUNCTION, "out", result, writable=True)
        check_options(_FUNCTION, **options)
        if o.shape != v.shape or o.dtype != v.dtype or not o.contiguous:
            raise ValueError(
                f"{_FUNCTION}: out must be C-contiguous {v.dtype} {v.shape}, "
                f"got {o.dtype} {o.shape}"
            )
        device = "cpu" if v.device == "cpu" else "cuda"
        header = Header(_FUNCTION, dtype=v.dtype, length=v.length, device=device, **options)
        # Under byzantine_f the header must carry the NaNs.
        now = whole or header.byzantine_f > 0 or arrays.overlap_partly(v, o)
        task = ArrayTask(engine, v, o, header, now, partition)
        return functools.partial(_steps, engine, task, number, _FUNCTION, result)

    return engine.start(_FUNCTION, _FUNCTION, options["step"], make)


def _steps(
    engine: Engine, task: ArrayTask, number: int, function: str, result: Any, wire: TaggedTransport
) -> Steps[Any]:
    eager = is_eager(task, task.header, wire.size)
    agreed = yield from engine.headers(wire, task.header, function, task.planes if eager else None)
    yield from vote(engine, wire, task, agreed, number, eager)
    return result


def vote(
    engine: Engine,
    wire: TaggedTransport,
    task: VoteTask,
    agreed: Agreed,
    number: int,
    eager: bool = False,
) -> Steps[None]:
    """The vote itself, after ``Engine.headers``; ``number``: of the call.

    ``eager``: the task ``is_eager`` and all ranks' planes came with their headers. If any rank's
    header said nan_count_pending, ranks exchange the counts after ``task.unpack``, and all raise
    NaNError under nan="raise".
    """
    task.agree(agreed.weights, wire.size)
    if task.groups is not None and agreed.weights is not None:
        raise CollectiveError(f"{agreed.function}: weight must be 1 on all ranks in groups")
    hostile = None
    if engine.adversary is not None:
        hostile = engine.adversary(task, agreed.header.byzantine_f)
    digest = task.digest = engine.due_digest(number)
    if eager:
        nbytes = task.k * task.nbytes
        stack = agreed.rows[:, EAGER_AT : EAGER_AT + nbytes]
        stack = task.by_rows(stack.reshape(wire.size, task.k, task.nbytes))
        task.check_padding(stack, 0)
        planes = np.empty((task.kd, task.nbytes), dtype=np.uint8)
        task.tally(stack, 0, planes)
        task.unpack(0, task.nbytes, planes)
    else:
        algorithm = hostile or choose(engine, wire.size, task, agreed.header)
        if task.like is not None:
            wire = yield from engine.wire_for(wire, task.like)
        yield from algorithm(wire, task)
    header = agreed.header
    # Under byzantine_f no count is pending: a hostile rank would send it to some ranks only.
    if agreed.nan_count_pending and header.nan == "raise" and not header.byzantine_f:
        yield from share_nans(wire, int(task.nans), agreed.function)
    if digest is not None:
        engine.digest = digest.field()


def share_nans(wire: TaggedTransport, nans: int, function: str) -> Steps[None]:
    """NaNError on all ranks if any holds ``nans``; many ranks first ask whether anyone does."""
    none = np.array([nans > 0], dtype=np.uint8)
    if wire.size > SHORT_ABOVE and (yield from all_same(wire, none)):
        return
    counts = np.zeros((wire.size, 8), dtype=np.uint8)
    yield wire.allgather(np.array([nans], dtype="<u8").view(np.uint8), counts)
    refuse_nans(function, counts.view("<u8")[:, 0].tolist())


def is_eager(task: VoteTask, header: Header, size: int) -> bool:
    """Whether the task's planes travel in the headers: agreed values decide alone."""
    return (
        size <= SHORT_ABOVE
        and task.k * task.nbytes <= EAGER_NBYTES
        and header.algorithm in ("auto", "allgather")
        and not header.byzantine_f
        and header.device == "cpu"
    )


def _digest(groups: Partition) -> int:
    """64 bits of BLAKE2b: ranks with another partition would count other tasks."""
    return int.from_bytes(hashlib.blake2b(repr(groups).encode(), digest_size=8).digest(), "little")


def check_options(function: str, step: Any, settings: int = 0, **options: Any) -> None:
    """ValueError for a policy, a number or a weight that is none."""
    if type(step) is not int or not 0 <= step < 1 << 64:
        _check_number(function, "step", step, 1 << 64)
    try:
        _check_options(function, **options)
    except TypeError:  # not hashable
        _check_options.__wrapped__(function, **options)


@functools.lru_cache(maxsize=256, typed=True)
def _check_options(
    function: str,
    algorithm: Any = "auto",
    zeros: Any = policies.DEFAULT_ZEROS,
    nan: Any = policies.DEFAULT_NAN,
    ties: Any = policies.DEFAULT_TIES,
    weight: Any = 1,
    byzantine_f: Any = 0,
    seed: Any = 0,
    algorithms: tuple[str, ...] = policies.ALGORITHMS,
) -> None:
    policies.code(function, "algorithm", algorithm, policies.ALGORITHMS)
    policies.code(function, "algorithm", algorithm, algorithms)
    policies.code(function, "zeros", zeros, policies.ZEROS)
    policies.code(function, "nan", nan, policies.NAN)
    policies.code(function, "ties", ties, policies.TIES)
    _check_number(function, "seed", seed, 1 << 64)
    _check_number(function, "byzantine_f", byzantine_f, 1 << 16)
    most = np.finfo(np.float64).max  # 10**400 is no float
    if not isinstance(weight, (int, float, np.number)) or not 0 <= weight <= most:
        raise ValueError(f"{function}: weight must be a number from 0, got {weight!r}")


def _check_number(function: str, name: str, value: Any, below: int) -> None:
    if not isinstance(value, (int, np.integer)) or not 0 <= value < below:
        bits = below.bit_length() - 1
        raise ValueError(f"{function}: {name} must be in [0, 2**{bits}), got {value!r}")
