"""What a communication hook of DDP keeps from step to step."""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist

from mpisign import policies
from mpisign.compressors import Compressor, resolve
from mpisign.ddp.group import Group
from mpisign.exchange.buckets import BUCKET_SIZE
from mpisign.exchange.gradient_exchange import GradientExchange
from mpisign.exchange.optimizer_options import warn_of_momentum
from mpisign.exchange.parameter_slot import ParameterSlot
from mpisign.exchange.skip import Rule

_FUNCTION = "MajorityVoteState"
_HOOK = "majority_vote_hook"
_SETTINGS = ("compressor", "algorithm", "seed", "skip", "bucket_size")


class MajorityVoteState:
    """What ``majority_vote_hook`` keeps from step to step on one rank, for one DDP module.

    ``process_group``: DDP's, default all of ``init_process_group``; or whatever
    ``mpisign.Communicator`` takes, over the same ranks. ``compression``: a name ("signum", see
    ``mpisign.Compression``) or a Compressor without local steps. ``named_parameters``: of the
    module (``module.named_parameters()``), names for messages, ``skip=`` and checkpoints; default:
    positions in the module. ``skip``, ``seed``, ``algorithm``: as in
    ``mpisign.DistributedOptimizer``. ``optimizer``: whose learning rates the compressor hears of
    (ef_sign keeps its residual in units of them, else of the gradient), and whose options must be
    alike on all ranks. ``timeout``: seconds that ranks wait for each other, default
    ``MPISIGN_TIMEOUT``. ``bucket_size``: coordinates that travel together. Buckets here are not
    DDP's, which change after the first step: they follow the module's order, last parameters first,
    so that a run that is resumed draws the same random bits.

    ``state_dict()`` belongs into every rank's own checkpoint. A pickle holds the same and the
    settings, without process group and optimizer: set these two afterwards.

    Raises TypeError, ValueError for arguments that do not fit; what else may be wrong is raised on
    all ranks by ``backward()``.
    """

    def __init__(
        self,
        process_group: Any = None,
        compression: str | Compressor = "signum",
        *,
        algorithm: policies.Algorithm = "auto",
        seed: int = 0,
        skip: str | Rule | None = "auto",
        named_parameters: Iterable[tuple[str, torch.Tensor]] | None = None,
        optimizer: torch.optim.Optimizer | None = None,
        timeout: float | None = None,
        bucket_size: int | None = BUCKET_SIZE,
    ) -> None:
        self._group = Group(_FUNCTION, process_group, timeout)
        self.optimizer = optimizer
        self.compressor = resolve(_FUNCTION, compression)
        if self.compressor.local_steps > 1:
            raise ValueError(
                f"{_FUNCTION}: compression must send every step, got {self.compressor!r}; "
                "mpisign.DistributedOptimizer takes local steps"
            )
        self.algorithm, self.seed, self.skip = algorithm, seed, skip
        self.bucket_size = bucket_size
        self._names = None if named_parameters is None else _named(named_parameters)
        self._order: list[str] | None = None if self._names is None else list(self._names.values())
        if optimizer is not None:
            warn_of_momentum(_FUNCTION, self.compressor, optimizer, stacklevel=2)
        self._start()

    def _start(self) -> None:
        self.lock = threading.RLock()
        self._saved: dict[str, Any] = {"steps": 0, "state": {}}
        self._members: dict[
            torch.Tensor, ParameterSlot
        ] = {}  # empty until the first step's last bucket
        self._exchange = self._exchange_of([], _FUNCTION)  # checks the settings
        self._exchange.function = _HOOK
        self.begin()

    def begin(self) -> None:
        """A step."""
        self._seen: list[list[tuple[torch.Tensor, torch.Tensor]]] = []  # by bucket of DDP's
        self._reason = ""
        #: The hook's: a future and the memory of its result for each bucket, and the first error.
        self.results: list[tuple[torch.futures.Future[torch.Tensor], torch.Tensor]] = []
        self.error: Exception | None = None

    @property
    def process_group(self) -> Any:
        """As given; may be set until the first step."""
        return self._group.process_group

    @process_group.setter
    def process_group(self, process_group: Any) -> None:
        self._group.process_group = process_group

    @property
    def steps(self) -> int:
        """Steps taken, those of before a checkpoint included."""
        return self._exchange.steps if self._members else int(self._saved["steps"])

    def state_dict(self) -> dict[str, Any]:
        """This rank's state: {"steps": n, "state": {name: {key: tensor}}}; each rank has its own.

        Of plain types and tensors, so that ``torch.load`` reads it with ``weights_only=True``.
        """
        return self._exchange.state_dict() if self._members else self._saved

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continues from what ``state_dict()`` returned on this rank.

        Raises ValueError if it does not fit the module, or the first ``backward()`` afterwards does
        so on all ranks, if no step was taken yet.
        """
        if not isinstance(state_dict, dict) or not {"steps", "state"} <= state_dict.keys():
            raise ValueError(
                f"load_state_dict: state_dict must be what {_FUNCTION}.state_dict() returned, "
                f"got {type(state_dict).__name__}"
            )
        if self._members:
            self._exchange.load_state_dict(state_dict)
        else:
            self._saved = state_dict

    def __getstate__(self) -> dict[str, Any]:
        settings = {name: getattr(self, name) for name in _SETTINGS}
        return {
            "settings": settings,
            "timeout": self._group.timeout,
            "names": self._order,
            "saved": self.state_dict(),
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._group = Group(_FUNCTION, None, state["timeout"])
        self.optimizer = self._names = None
        for name in _SETTINGS:
            setattr(self, name, state["settings"][name])
        self._order = state["names"]
        self._start()
        self._saved = state["saved"]

    def _exchange_of(self, members: list[ParameterSlot], function: str = _HOOK) -> GradientExchange:
        return GradientExchange(
            function,
            self._group.engine,
            members,
            self.compressor,
            skip=self.skip,
            algorithm=self.algorithm,
            seed=self.seed,
            bucket_size=self.bucket_size,
            optimizer=self.optimizer,
        )

    def take(self, bucket: dist.GradBucket) -> None:
        """The gradients of one of DDP's buckets: starts what they complete."""
        if bucket.index() == 0 and self._exchange.started:
            self._abandon()
        if bucket.buffer().is_sparse:
            self._reason = "DDP hands over a sparse gradient: make the embedding sparse=False"
            return
        pairs = list(zip(bucket.parameters(), bucket.gradients(), strict=True))
        self._seen.append(pairs)
        self._exchange.optimizer = self.optimizer
        for p, grad in pairs if self._members else ():
            member = self._members.get(p)
            if member is None:
                self._reason = (
                    "the module has other parameters than in the first step: "
                    f"make a new {_FUNCTION} for it"
                )
                continue
            member.grad = _own_gradient(p, grad)
            self._exchange.ready(member)

    def _abandon(self) -> None:
        """Ends a step whose backward pass broke off, for which ranks that go on with it wait."""
        with contextlib.suppress(Exception):  # who called that pass has seen why
            try:
                self._exchange.flush("a backward pass broke off half way")
            finally:
                self._exchange.finish()

    def finish(self) -> None:
        """The step's end, after all of DDP's buckets: every gradient becomes the aggregate."""
        new = not self._members and not self._reason
        reason = self._reason or (self._bind() if new else "")
        try:
            try:
                self._exchange.flush(reason)
            finally:
                self._exchange.finish()
            for p, grad in (pair for pairs in self._seen for pair in pairs):
                aggregate = self._members[p].grad
                if aggregate is not None and aggregate is not grad:
                    grad.copy_(aggregate)
        finally:
            for member in self._members.values():
                member.grad = None
            if new and reason:
                self._members, self._exchange = {}, self._exchange_of([])

    def _bind(self) -> str:
        """Finds out the parameters and their names; why this rank cannot go on, for all to hear."""
        # DDP's first buckets hold the module's last parameters, each bucket in the module's order.
        grads = {p: grad for pairs in reversed(self._seen) for p, grad in pairs}
        names, reason = self._name(list(grads))
        members = [ParameterSlot(name, p) for p, name in names.items()]
        self._exchange = self._exchange_of(members[::-1])
        self._members = {m.parameter: m for m in members}
        for m in members:
            m.grad = _own_gradient(m.parameter, grads[m.parameter])
        if self.optimizer is not None:
            stepped = {p for g in self.optimizer.param_groups for p in g["params"]}
            if any(p not in stepped for p in names):
                reason = reason or "optimizer must be that of all parameters of the module"
        try:
            self._exchange.load_state_dict(self._saved)
        except ValueError as error:
            reason = reason or str(error)
        if not reason:
            self._order = list(names.values())
            self._saved = {"steps": 0, "state": {}}  # has been copied
            self._watch()
        return reason

    def _name(self, parameters: list[torch.Tensor]) -> tuple[dict[torch.Tensor, str], str]:
        """The parameters in the module's order with their names; what is wrong with these."""
        by_position = {p: str(i) for i, p in enumerate(parameters)}
        if self._names is not None:
            known = self._names
            missing = sum(p not in known for p in parameters)
            if missing:
                return by_position, (
                    "named_parameters must name every parameter of the module, as "
                    "module.named_parameters() does, got no name for "
                    f"{missing} of {len(parameters)}"
                )
            return {p: name for p, name in known.items() if p in by_position}, ""
        if self._order is None:
            return by_position, ""
        if len(self._order) != len(parameters):
            return by_position, (
                f"the state was saved with {len(self._order)} parameters, "
                f"the module has {len(parameters)}"
            )
        return dict(zip(parameters, self._order, strict=True)), ""

    def _watch(self) -> None:
        """Moves on what is in flight whenever a gradient was computed: hooks come too seldom."""
        here = weakref.ref(self)

        def computed(_: torch.Tensor) -> None:
            state = here()
            if state is not None:
                state._advance()

        for p in self._members:
            p.register_post_accumulate_grad_hook(computed)

    def _advance(self) -> None:
        # Modules on several devices have a thread for each: another one is at it then.
        if self._exchange.started and self.lock.acquire(blocking=False):
            try:
                if self._exchange.engine is not None:
                    self._exchange.engine.progress.advance()
            finally:
                self.lock.release()


def _own_gradient(p: torch.Tensor, grad: torch.Tensor) -> torch.Tensor | None:
    """DDP's view of this rank's gradient; None if ``p`` took no part in this rank's loss."""
    return None if p.grad is None and not grad.any() else grad


def _named(named_parameters: Iterable[tuple[str, torch.Tensor]]) -> dict[torch.Tensor, str]:
    names = {p: name for name, p in named_parameters if p.requires_grad}
    if len(set(names.values())) < len(names):
        raise ValueError(f"{_FUNCTION}: named_parameters must have distinct names")
    return names
