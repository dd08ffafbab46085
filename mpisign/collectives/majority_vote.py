"""majority_vote: the sign of the sum of signs over the ranks of a communicator."""

from __future__ import annotations

import contextlib
import functools
import hashlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from mpisign import _kernels, policies
from mpisign.backend import arrays
from mpisign.collectives.allgather_vote import allgather_vote
from mpisign.collectives.alltoall_vote import alltoall_vote
from mpisign.collectives.auto import choose, survey_devices
from mpisign.collectives.plan import Algorithm, GeneratorPlan, Plan, exchange_nans
from mpisign.collectives.vote_plan import VotePlan
from mpisign.collectives.vote_task import ArrayTask, VoteTask
from mpisign.engine.agreement import Agreed
from mpisign.engine.engine import Engine
from mpisign.engine.handle import Handle
from mpisign.engine.header import SHORT_ABOVE, Header
from mpisign.engine.preamble import terms_of
from mpisign.errors import CollectiveError
from mpisign.partition import Partition, partition_of
from mpisign.transports.base import Steps
from mpisign.transports.tagged import TaggedTransport

_FUNCTION = "majority_vote"


def start(engine: Engine, x: Any, out: Any, groups: Any, whole: bool, **options: Any) -> Handle:
    """Starts a vote; ``whole``: packs ``x`` before this returns. See Communicator.majority_vote."""

    def make(number: int, step: int) -> Any:
        options["step"] = step
        partition = partition_option(engine, groups, options)
        v = arrays.view_floats(_FUNCTION, "x", x)
        result = _result(engine, v) if out is None else out
        o = arrays.view_floats(_FUNCTION, "out", result, writable=True)
        check_options(_FUNCTION, **options)
        if o.shape != v.shape or o.dtype != v.dtype or not o.contiguous:
            raise ValueError(
                f"{_FUNCTION}: out must be C-contiguous {v.dtype} {v.shape}, "
                f"got {o.dtype} {o.shape}"
            )
        call = ArrayCall(engine, _FUNCTION, ArrayTask, v, o, options, partition)
        call.whole = whole or arrays.overlap_partly(v, o)
        if call.whole:
            call.prepare()
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
        with contextlib.suppress(TypeError, MemoryError):  # a policy that is none; too large
            result = engine.results.empty(x.shape, x.dtype) if out is None else out
            plan = engine.plans.take((_FUNCTION, dtype, x.size, *policy))
        if plan is not None:
            called = engine.votes if step is None else step
            if isinstance(plan, VotePlan) and _place(plan, x, result, called):
                number = engine.votes
                engine.votes = number + 1
                given = (engine, plan, policy, x, result, number, called)
                steps = functools.partial(_planned, *given)
                return engine.progress.run(_FUNCTION, steps, called, number)
            plan.busy = False
    options = dict(zip(_POLICY, policy, strict=True))
    return start(engine, x, out, groups, False, **options, step=step).wait()


_POLICY = ("algorithm", "zeros", "nan", "ties", "weight", "byzantine_f", "seed")


def _place(plan: Plan, x: Any, out: Any, step: Any) -> bool:
    """Gives the plan the arrays of a call, if they are as plain as most are."""
    if type(step) is not int or not 0 <= step < 1 << 64:
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


def _planned(
    engine: Engine,
    plan: Plan,
    policy: tuple[Any, ...],
    x: Any,
    out: Any,
    number: int,
    step: int,
    wire: TaggedTransport,
) -> Steps[Any]:
    """A call by a plan that was given its arrays."""
    if wire.size <= SHORT_ABOVE and (yield from plan.run(engine, wire, number, step, 0)):
        return out
    v, o = (arrays.view_floats(_FUNCTION, "x", array) for array in (x, out))
    options = {**dict(zip(_POLICY, policy, strict=True)), "step": step}
    call = ArrayCall(engine, _FUNCTION, ArrayTask, v, o, options)
    call.prepare(plan)
    return (yield from call.by_headers(number, out, wire))


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
        self.plan: Plan | None = None
        self.task: ArrayTask | None = None
        self.check: Callable[[Agreed], None] = lambda agreed: None
        self.key = (function, x.dtype, x.length, *(options[o] for o in options if o != "step"))

    def prepare(self, plan: Plan | None = None) -> None:
        """Takes a plan and begins its task; packs if ``whole``. ``plan``: that was taken before."""
        if plan is None and self.x.device == "cpu" and not self.options.get("byzantine_f"):
            plan = self.engine.plans.take(self.key)
        task = plan.task if plan is not None else self._new_task()
        assert isinstance(task, ArrayTask)
        task.begin(self.x, self.out, self.options["step"], self.whole)
        self.plan, self.task = plan, task

    def steps(self, number: int, result: Any, wire: TaggedTransport) -> Steps[Any]:
        """The collective, by a plan if there is one."""
        if self.task is None:
            self.prepare()
        assert self.task is not None
        engine, plan, task = self.engine, self.plan, self.task
        try:
            if plan is not None and wire.size <= SHORT_ABOVE:
                step = self.options["step"]
                if (yield from plan.run(engine, wire, number, step, self.settings)):
                    return result
                if task.planes is None:  # else ``x`` may have changed since it was packed
                    task.begin(self.x, self.out, step, False)
            return (yield from self.by_headers(number, result, wire))
        finally:
            task.release()

    def by_headers(self, number: int, result: Any, wire: TaggedTransport) -> Steps[Any]:
        """The collective by an exchange of headers."""
        engine, plan, task, used = self.engine, self.plan, self.task, None
        assert task is not None
        try:
            header = self._header(task, wire.transport.message)
            agreed = yield from engine.headers(wire, header, self.function)
            self.check(agreed)
            used = yield from vote(engine, wire, task, agreed, number, plan)
            return result
        finally:
            task.release()
            engine.plans.give_back(self.key, plan, used)

    def make_plan(self, wire: TaggedTransport) -> Steps[None]:
        """Agrees on calls like this one and keeps a plan for them; ``x`` has no memory."""
        engine, task = self.engine, self._new_task()
        header = self._header_of("plan_majority_vote")
        agreed = yield from engine.headers(wire, header, self.function)
        algorithm = _algorithm(engine, task, agreed)
        agreed.header = replace(agreed.header, operation=task.operation)
        kept = engine.plans.take(self.key)
        plan = _plan(engine, task, algorithm, agreed, kept)
        engine.plans.give_back(self.key, kept, plan)

    def _new_task(self) -> ArrayTask:
        names = ("zeros", "nan", "ties", "seed")
        policy = {name: self.options[name] for name in names if name in self.options}
        return self.task_type(self.engine.transport.rank, self.x, self.partition, **policy)

    def _header(self, task: ArrayTask, message: int) -> Header:
        header = self._header_of(self.task_type.operation)
        # Under byzantine_f the header must carry the NaNs.
        if task.planes is None and (header.byzantine_f or task.short(message)):
            task.begin(self.x, self.out, header.step, True)
        header.nan_count_pending = task.planes is None
        if task.planes is not None:
            header.nans = int(task.nans)
        return header

    def _header_of(self, operation: str) -> Header:
        x = self.x
        device = "cpu" if x.device == "cpu" else "cuda"
        return Header(operation, dtype=x.dtype, length=x.length, device=device, **self.options)


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
    if task.like is not None:
        wire = yield from engine.wire_for(wire, task.like)
        yield from survey_devices(engine, wire)
    algorithm = _algorithm(engine, task, agreed)
    header = agreed.header
    if task.like is None and not header.byzantine_f:
        plan = _plan(engine, task, algorithm, agreed, plan)
        yield from plan.run_agreed(engine, wire, number, header.step, header.settings)
        return plan
    if engine.adversary is not None:
        algorithm = engine.adversary(task, header.byzantine_f) or algorithm
    task.hash = engine.replicas.begin(number, on_host=task.like is None)
    yield from algorithm(wire, task)
    # Under byzantine_f no count is pending: a hostile rank would send it to some ranks only.
    if agreed.nan_count_pending and task.raises and not header.byzantine_f:
        nans = yield from engine.counts.read(task.nans)
        yield from exchange_nans(wire, nans, agreed.function)
    engine.replicas.end(task.hash)
    return None


def _algorithm(engine: Engine, task: VoteTask, agreed: Agreed) -> Algorithm:
    """What the agreed headers ask for, of which the task then knows the rest."""
    size = engine.transport.size
    task.agree(agreed.weights, size)
    if task.groups is not None and agreed.weights is not None:
        raise CollectiveError(f"{agreed.function}: weight must be 1 on all ranks in groups")
    task.raises = agreed.header.nan == "raise"
    return choose(engine, size, task, agreed.header)


def _plan(
    engine: Engine, task: VoteTask, algorithm: Algorithm, agreed: Agreed, plan: Plan | None
) -> Plan:
    """``plan`` if it is for what was agreed on, or a new one."""
    terms = terms_of(agreed, engine.transport.message)
    if plan is not None and plan.terms == terms:
        plan.task = task
        return plan
    if algorithm in (allgather_vote, alltoall_vote):
        sharded = algorithm is alltoall_vote
        return VotePlan(engine.transport, task, sharded, terms, agreed.function)
    return GeneratorPlan(engine.transport, task, algorithm, terms, agreed.function)


def _result(engine: Engine, v: arrays.View) -> Any:
    if isinstance(v.owner, np.ndarray):
        return engine.results.empty(v.shape, v.owner.dtype)
    return arrays.empty(v.shape, v.dtype, like=v)


def partition_option(engine: Engine, groups: Any, options: dict[str, Any]) -> Partition | None:
    """The ranks of each group, whose digest goes into the options; None without groups."""
    if groups is None:
        return None
    partition = partition_of(groups, engine.transport.size, engine.nodes)
    assert partition is not None
    options["settings"] = _digest(partition)
    return partition


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
    if policies.whole(value, 0, below) is None:
        bits = below.bit_length() - 1
        raise ValueError(f"{function}: {name} must be in [0, 2**{bits}), got {value!r}")
