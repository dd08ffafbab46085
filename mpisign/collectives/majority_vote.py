"""majority_vote: the sign of the sum of signs over the ranks of a communicator."""

from __future__ import annotations

import contextlib
import functools
import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np

from mpisign import _kernels, policies
from mpisign.backend import arrays
from mpisign.collectives.allgather_vote import allgather_vote
from mpisign.collectives.alltoall_vote import alltoall_vote
from mpisign.collectives.auto import choose
from mpisign.collectives.plan import Algorithm, GeneratorPlan, Plan, exchange_nans
from mpisign.collectives.vote_plan import VotePlan
from mpisign.collectives.vote_task import ArrayTask, VoteTask
from mpisign.engine.agreement import Agreed
from mpisign.engine.engine import Engine
from mpisign.engine.header import SHORT_ABOVE, Header
from mpisign.engine.preamble import terms_of
from mpisign.engine.progress import Handle
from mpisign.errors import CollectiveError
from mpisign.partition import Partition, partition_of
from mpisign.transports.base import FirstRound, Steps
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
        call = ArrayCall(engine, _FUNCTION, ArrayTask, v, o, options, partition)
        call.whole = whole or arrays.overlap_partly(v, o)
        return functools.partial(call.steps, number, result)

    return engine.start(_FUNCTION, _FUNCTION, options["step"], make)


def run(
    engine: Engine,
    x: Any,
    out: Any,
    groups: Any,
    *,
    algorithm: Any,
    zeros: Any,
    nan: Any,
    ties: Any,
    weight: Any,
    byzantine_f: Any,
    seed: Any,
    step: Any,
) -> Any:
    """A vote that blocks: at once, by a plan whose first round is the only one, if it can be."""
    policy = (algorithm, zeros, nan, ties, weight, byzantine_f, seed)  # in the order of _POLICY
    dtype = arrays.numpy_name(x)
    if groups is None and dtype is not None and engine.progress.is_quiet():
        plan = None
        with contextlib.suppress(TypeError):  # a policy that is none
            plan = engine.plans.take((_FUNCTION, dtype, x.size, *policy))
        if plan is not None:
            if out is None:
                out = np.empty(x.shape, x.dtype)
            step = engine.votes if step is None else step
            if _place(plan, x, out, step):
                return _run(engine, plan, policy, x, out, step)
            plan.busy = False
    options = dict(zip(_POLICY, policy, strict=True))
    return start(engine, x, out, groups, False, **options, step=step).wait()


_POLICY = ("algorithm", "zeros", "nan", "ties", "weight", "byzantine_f", "seed")


def _place(plan: Plan, x: Any, out: Any, step: Any) -> bool:
    """Gives the plan the arrays of a call, if it can run it at once."""
    if (
        not isinstance(plan, VotePlan)
        or not plan.single
        or type(step) is not int
        or not 0 <= step < 1 << 64
    ):
        return False
    if type(out) is not np.ndarray or out.dtype != x.dtype or out.shape != x.shape:
        return False
    try:
        a, b = _kernels.contiguous(x, False), _kernels.contiguous(out, True)
    except (BufferError, ValueError):
        return False
    if a != b and abs(a - b) < x.nbytes:
        return False
    assert isinstance(plan.task, ArrayTask)
    plan.task.place(a, b, step)
    return True


def _run(
    engine: Engine, plan: VotePlan, policy: tuple[Any, ...], x: Any, out: Any, step: int
) -> Any:
    """A call by a plan that was given its arrays; with a handle once it does not end at once."""
    progress, number = engine.progress, engine.votes
    engine.votes = number + 1
    tag = progress.next_tag
    try:
        started = plan.start(engine, tag, engine.transport.first_tag(tag), number, step, 0)
        if progress.spin(started) and plan.same(engine, started):
            plan.finish(engine)
            progress.count_call()
            plan.busy = False
            return out
    except BaseException as error:
        raise progress.fail(_FUNCTION, step, error) from None

    def steps(wire: TaggedTransport) -> Steps[Any]:
        wire.first_tag()
        v, o = (arrays.view_floats(_FUNCTION, "x", array) for array in (x, out))
        values = dict(zip(_POLICY, policy, strict=True))
        call = ArrayCall(engine, _FUNCTION, ArrayTask, v, o, {**values, "step": step})
        return (yield from call.steps(number, out, wire, plan, started))

    return progress.submit(_FUNCTION, steps, step).wait()


class ArrayCall:
    """One call on the array ``x``, by a plan where one is kept. ``options``: checked.

    ``whole``: ``x`` is packed before anything else. ``check``: raises what the agreed headers do
    not allow.
    """

    def __init__(
        self,
        engine: Engine,
        function: str,
        task_type: type[ArrayTask],
        x: arrays.View,
        out: Any,
        options: dict[str, Any],
        partition: Partition | None = None,
    ) -> None:
        self.engine, self.function = engine, function
        self.x, self.out, self.options = x, out, options
        self.task_type, self.partition = task_type, partition
        self.settings: int = options.get("settings", 0)
        self.whole = False
        self.check: Callable[[Agreed], None] = lambda agreed: None
        self.key = (function, x.dtype, x.length, *(options[o] for o in options if o != "step"))

    def steps(
        self,
        number: int,
        result: Any,
        wire: TaggedTransport,
        plan: Plan | None = None,
        started: FirstRound | None = None,
    ) -> Steps[Any]:
        """The collective. ``plan``, ``started``: the plan that was taken, its first round."""
        engine, step = self.engine, self.options["step"]
        used = None
        if started is None and self.x.device == "cpu" and not self.options.get("byzantine_f"):
            plan = engine.plans.take(self.key)
        try:
            task = plan.task if plan is not None else self._new_task()
            assert isinstance(task, ArrayTask)
            same = False
            if plan is not None and started is not None:
                same = yield from plan.go_on(engine, wire, started, step, self.settings)
            if not same:
                task.begin(self.x, self.out, step, self.whole)
            if plan is not None and started is None and wire.size <= SHORT_ABOVE:
                same = yield from plan.run(engine, wire, number, step, self.settings)
            if same:
                used = plan
                return result
            header = self._header(task, wire.transport.message)
            agreed = yield from engine.headers(wire, header, self.function)
            self.check(agreed)
            used = yield from vote(engine, wire, task, agreed, number, plan)
            return result
        finally:
            engine.plans.give_back(self.key, plan, used)

    def _new_task(self) -> ArrayTask:
        names = ("zeros", "nan", "ties", "seed")
        policy = {name: self.options[name] for name in names if name in self.options}
        return self.task_type(self.engine.transport.rank, self.x, self.partition, **policy)

    def _header(self, task: ArrayTask, message: int) -> Header:
        x, options = self.x, self.options
        header = Header(
            self.task_type.operation,
            dtype=x.dtype,
            length=x.length,
            device="cpu" if x.device == "cpu" else "cuda",
            **options,
        )
        # Under byzantine_f the header must carry the NaNs.
        if task.planes is None and (header.byzantine_f or task.short(message)):
            task.begin(x, self.out, header.step, True)
        header.nan_count_pending = task.planes is None
        if task.planes is not None:
            header.nans = int(task.nans)
        return header


def vote(
    engine: Engine,
    wire: TaggedTransport,
    task: VoteTask,
    agreed: Agreed,
    number: int,
    plan: Plan | None = None,
) -> Steps[Plan | None]:
    """The vote itself, after ``Engine.headers``; ``number``: of the call.

    Returns the plan for such votes: ``plan``, where it still is one, or a new one; None for CUDA
    memory and for byzantine_f. NaNError on all ranks under nan="raise".
    """
    task.agree(agreed.weights, wire.size)
    if task.groups is not None and agreed.weights is not None:
        raise CollectiveError(f"{agreed.function}: weight must be 1 on all ranks in groups")
    header = agreed.header
    task.raises = header.nan == "raise"
    algorithm = choose(engine, wire.size, task, header)
    if task.like is None and not header.byzantine_f:
        terms = terms_of(agreed)
        if plan is None or plan.terms != terms:
            plan = _make_plan(engine, task, algorithm, terms, agreed.function)
        yield from plan.run_agreed(engine, wire, number, header.step, header.settings)
        return plan
    if engine.adversary is not None:
        algorithm = engine.adversary(task, header.byzantine_f) or algorithm
    digest = task.digest = engine.due_digest(number)
    if task.like is not None:
        wire = yield from engine.wire_for(wire, task.like)
    yield from algorithm(wire, task)
    # Under byzantine_f no count is pending: a hostile rank would send it to some ranks only.
    if agreed.nan_count_pending and task.raises and not header.byzantine_f:
        yield from exchange_nans(wire, int(task.nans), agreed.function)
    if digest is not None:
        engine.digest = digest.field()
    return None


def _make_plan(
    engine: Engine, task: VoteTask, algorithm: Algorithm, terms: bytes, function: str
) -> Plan:
    if algorithm in (allgather_vote, alltoall_vote):
        return VotePlan(engine.transport, task, algorithm is alltoall_vote, terms, function)
    return GeneratorPlan(engine.transport, task, algorithm, terms, function)


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
