"""torch DDP: ``model.register_comm_hook(state, mpisign.ddp.majority_vote_hook)``."""

# No ``from __future__ import annotations``: DDP compares a hook's annotations with types.

import contextlib
import threading
import weakref
from collections.abc import Iterable
from functools import partial
from typing import Any, ClassVar

try:
    import torch
    import torch.distributed as dist
except ImportError as error:
    from mpisign.errors import TORCH

    raise ImportError(f"mpisign.ddp needs torch: {TORCH}") from error

from mpisign import policies
from mpisign.compressors import Compressor
from mpisign.compressors.sign import Sign
from mpisign.engine.progress import ProgressEngine
from mpisign.errors import NaNError
from mpisign.exchange import ranks_in_checkpoint
from mpisign.exchange.after_backward import after_backward, is_running, raise_after_backward
from mpisign.exchange.arguments import named_pairs
from mpisign.exchange.buckets import BUCKET_SIZE
from mpisign.exchange.grad_scaler import ScaledPass
from mpisign.exchange.gradient_exchange import GradientExchange
from mpisign.exchange.optimizer_options import check_plain, warn_of_optimizer
from mpisign.exchange.optimizer_steps import NEWCOMER, call_on_every_rank, listen
from mpisign.exchange.parameter_slot import ParameterSlot
from mpisign.exchange.pending_step import ChangedVotes
from mpisign.exchange.process_group import FUNCTION, HookState
from mpisign.exchange.skip import Rule

__all__ = ["MajorityVoteState", "majority_vote_hook"]

_HOOK = "majority_vote_hook"


class MajorityVoteState(HookState):
    """The state of ``majority_vote_hook`` for one DDP module on one rank.

    Buckets here are not DDP's, which change after the first step: they follow the module's order,
    last parameters first, so that a resumed run draws the same random bits.

    Every rank saves ``state_dict()`` in a checkpoint of its own. A pickle holds the same and the
    settings, but neither ``process_group`` nor ``optimizer``: set these two after loading it.

    Args:
        process_group: DDP's group, by default that of ``init_process_group``; or whatever
            ``mpisign.Communicator`` takes, over the same ranks.
        compression: a name (see ``mpisign.Compression``) or a Compressor without local steps.
        algorithm, seed, skip: as in ``mpisign.DistributedOptimizer``.
        named_parameters: ``module.named_parameters()``: names for messages, ``skip`` and
            checkpoints. Default: positions in the module.
        optimizer: gives the compressor its learning rates (ef_sign keeps its residual in units of
            them, without it in units of the gradient). Its options must be equal on all ranks.
        timeout: seconds that a rank waits for the others, default ``MPISIGN_TIMEOUT``.
        bucket_size: coordinates in a bucket.
        changed_votes: "raise" if votes are written to between ``backward()`` and the step of an
            optimizer, as ``clip_grad_norm_`` does, or "allow".
        warmup_steps: as in ``mpisign.DistributedOptimizer``.
        scaler: the torch.amp.GradScaler that scales the loss, its factors powers of two. Gradients
            are unscaled before they travel. Where any rank's hold inf or NaN, all ranks' become
            inf, so that all skip the step and lower the scale, and no state moves. May be set later
            as an attribute, as after loading a pickle.

    What ``backward()`` exchanged counts when an optimizer steps on it: any torch optimizer that
    holds the parameters. Where ``zero_grad()`` throws it away, state and steps are as before.

    Raises:
        TypeError, ValueError: for invalid arguments. What can be checked only against the module
            is raised by ``backward()`` on all ranks.

    Example:
        >>> state = MajorityVoteState(compression="signum", seed=1)
        >>> state.state_dict()
        {'steps': 0, 'state': {}}
    """

    pickled: ClassVar = (
        *HookState.pickled,
        "skip",
        "bucket_size",
        "changed_votes",
        "_order",
        "warmup_steps",
    )
    optimizer: torch.optim.Optimizer | None
    _names: dict[torch.Tensor, str] | None
    _scaled: ScaledPass | None
    _order: list[str] | None  # names in the module's order

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
        changed_votes: ChangedVotes = "raise",
        warmup_steps: int = 0,
        scaler: torch.amp.GradScaler | None = None,
    ) -> None:
        super().__init__(process_group, compression, algorithm, seed, timeout)
        if self.compressor.local_steps > 1:
            raise ValueError(
                f"{FUNCTION}: compression must send every step, got {self.compressor!r}; "
                "mpisign.DistributedOptimizer takes local steps"
            )
        self.skip, self.bucket_size, self.changed_votes = skip, bucket_size, changed_votes
        self._order, self.warmup_steps = None, warmup_steps
        self._start()
        self.process_group, self.optimizer, self.scaler = process_group, optimizer, scaler
        if named_parameters is not None:
            pairs = named_pairs(FUNCTION, named_parameters)
            self._names = {p: name for name, p in pairs if p.requires_grad}
            self._order = list(self._names.values())
        if optimizer is not None:
            check_plain(FUNCTION, optimizer)
            warn_of_optimizer(FUNCTION, self.compressor, optimizer, stacklevel=2)

    def _start(self) -> None:
        super()._start()
        self.optimizer = self._names = self._scaled = None
        self._lock = threading.RLock()
        self._saved: dict[str, Any] = {"steps": 0, "state": {}}
        self._slots: dict[int, ParameterSlot] = {}  # by id(parameter); empty in the first step
        self._exchange = self._exchange_of([], FUNCTION)  # checks the settings
        self._exchange.function = _HOOK
        listen()
        self._begin()

    def _begin(self) -> None:
        """Begins a step."""
        self._seen: list[list[tuple[torch.Tensor, torch.Tensor]]] = []  # one list per DDP bucket
        self._reason = ""  # why this rank cannot take part in the step
        self._unscaled = ""  # why gradients could not be unscaled
        self._moving: ProgressEngine | None = None  # while buckets are in flight
        self._results: list[tuple[torch.futures.Future[torch.Tensor], torch.Tensor]] = []
        self._error: Exception | None = None  # the first of this step
        if self._scaled is not None:
            self._scaled.restart()

    @property
    def scaler(self) -> Any:
        """The GradScaler that scales the loss, or None."""
        return None if self._scaled is None else self._scaled.scaler

    @scaler.setter
    def scaler(self, scaler: Any) -> None:
        on = scaler is not None and (not hasattr(scaler, "is_enabled") or scaler.is_enabled())
        self._scaled = ScaledPass(FUNCTION, scaler) if on else None

    @property
    def steps(self) -> int:
        """Steps taken, including those before a checkpoint."""
        if not self._slots:
            return int(self._saved["steps"])
        return self._exchange.steps - self._exchange.pending.open

    def next_epoch(self) -> dict[str, str]:
        """Ends an epoch of ``Compression.accordion``: see ``mpisign.next_epoch``.

        Returns:
            What each parameter sends from now on, "high" or "low", by name.
        """
        self._exchange.optimizer = self.optimizer
        return self._exchange.next_epoch()

    def state_dict(self) -> dict[str, Any]:
        """Returns this rank's {"steps": n, "state": {name: {key: tensor}}}.

        ``torch.load`` reads it with ``weights_only=True``. The state differs from rank to rank. To
        torch.distributed.checkpoint give the state itself, ``dcp.save({"votes": state, ...})``: it
        then is under a name of this rank's. ``dcp.load`` needs ``named_parameters``.
        """
        own = self._exchange.state_dict() if self._slots else self._saved
        if not ranks_in_checkpoint.is_asked():
            return own
        if not self._slots and not own["steps"]:
            own = ranks_in_checkpoint.initial(self._exchange_of(self._named_slots()))
        return ranks_in_checkpoint.under_rank(own)

    def _named_slots(self) -> list[ParameterSlot]:
        if self._names is None:
            raise ValueError(
                f"{FUNCTION}: torch.distributed.checkpoint needs named_parameters before the first "
                "step, to know what to load"
            )
        return [ParameterSlot(name, p) for p, name in reversed(self._names.items())]

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continues from what ``state_dict()`` returned on this rank.

        Raises:
            ValueError: if it does not fit the module. Before the first step the module is not
                known: then the first ``backward()`` raises on all ranks.
        """
        if isinstance(state_dict, dict):
            state_dict = ranks_in_checkpoint.of_rank(state_dict)
        if not isinstance(state_dict, dict) or not {"steps", "state"} <= state_dict.keys():
            raise ValueError(
                f"load_state_dict: state_dict must be what {FUNCTION}.state_dict() returned, "
                f"got {type(state_dict).__name__}"
            )
        if self._slots:
            self._exchange.load_state_dict(state_dict)
        else:
            self._saved = state_dict

    def _exchange_of(self, members: list[ParameterSlot], function: str = _HOOK) -> GradientExchange:
        return GradientExchange(
            function,
            self.engine,
            members,
            self.compressor,
            skip=self.skip,
            algorithm=self.algorithm,
            seed=self.seed,
            bucket_size=self.bucket_size,
            optimizer=self.optimizer,
            ahead=bool(members),
            changed_votes=self.changed_votes,
            warmup_steps=self.warmup_steps,
        )

    def _take(self, bucket: dist.GradBucket) -> None:
        """Starts the exchange of what the gradients in one of DDP's buckets complete."""
        if bucket.buffer().is_sparse:
            self._reason = "DDP hands over a sparse gradient: make the embedding sparse=False"
            return
        pairs = list(zip(bucket.parameters(), bucket.gradients(), strict=True))
        self._seen.append(pairs)
        if self._scaled is not None:
            reason = self._scaled.take([grad for _, grad in pairs], self._sizes_count())
            self._unscaled = self._unscaled or reason
            self._exchange.refuse(reason)
        if not self._slots:
            return
        exchange = self._exchange
        exchange.optimizer = self.optimizer
        if self.optimizer is not None and bucket.index() == 0:
            if exchange.pending.newcomers.come(self.optimizer):
                self._reason = NEWCOMER
                exchange.refuse(NEWCOMER)  # while buckets can tell all ranks
            # Averages of all ranks are finite on all ranks or on none: these may be scaled.
            # With ``scaler`` it skips on all ranks alike.
            alike = self.compressor.aggregate == "average" or self._scaled is not None
            call_on_every_rank(self.optimizer, not alike)
        for p, grad in pairs:
            slot = self._slots.get(id(p))
            if slot is None:
                self._reason = (
                    "the module has other parameters than in the first step: "
                    f"make a new {FUNCTION} for it"
                )
                continue
            slot.grad = None if p.grad is None and not grad.any() else grad  # None: p was not used
            exchange.ready(slot)
        if self._moving is None and exchange.started and exchange.engine is not None:
            self._moving = exchange.engine.progress

    def _abandon(self) -> None:
        """Ends a step whose backward pass raised, in which other ranks may wait for this one."""
        if self._exchange.started:
            with contextlib.suppress(Exception):  # the user has seen why the pass raised
                try:
                    self._exchange.flush("a backward pass broke off half way")
                finally:
                    self._exchange.finish()
        else:
            self._exchange.restart()
        self._begin()

    def _finish(self) -> None:
        """Makes every gradient the aggregate, after the last of DDP's buckets."""
        first = not self._slots and not self._reason
        reason = (self._bind() if first else self._reason) or self._unscaled
        overflowed = False
        try:
            steps = self._exchange.steps
            try:
                self._exchange.flush(reason)
            finally:
                overflowed = self._end_exchange()
            for pairs in self._seen:
                for p, grad in pairs:
                    aggregate = self._slots[id(p)].grad
                    if aggregate is not None and aggregate is not grad:
                        grad.copy_(aggregate)
            if self._scaled is not None:
                self._scaled.give([grad for pairs in self._seen for _, grad in pairs], overflowed)
            if overflowed:
                self._exchange.take_back(steps)
            elif is_running():
                self._exchange.pending.scaled = self._scaled is not None
                after_backward(
                    partial(self._exchange.pending.hand_out, int(self._scaled is not None))
                )
            else:  # DDP's join() shadows the others' passes; it takes no steps
                self._exchange.pending.commit()
        finally:
            for slot in self._slots.values():
                slot.grad = None
            if first and reason:
                self._slots, self._exchange = {}, self._exchange_of([])

    def _end_exchange(self) -> bool:
        """Waits for all buckets; with a scaler, whether any rank's gradients hold inf or NaN."""
        exchange, reason = self._exchange, ""
        if self._scaled is None:
            exchange.finish()
            return False
        try:
            exchange.finish()
        except NaNError:
            self._scaled.overflowed()
        except RuntimeError as error:
            if type(error) is not RuntimeError or exchange.engine is None:
                raise  # on all ranks
            reason = str(error)
        assert exchange.engine is not None
        return self._scaled.agree(exchange.engine, _HOOK, exchange.steps, reason)

    def _sizes_count(self) -> bool:
        """Whether the size of gradients counts in this step, not their signs alone."""
        signs = type(self.compressor) is Sign and not callable(self.skip)
        return not (signs and self._slots) or self._exchange.warming

    def _bind(self) -> str:
        """Makes the slots in the first step; why this rank cannot go on, "" if it can."""
        # DDP's first buckets hold the module's last parameters, each bucket in the module's order.
        grads = {p: grad for pairs in reversed(self._seen) for p, grad in pairs}
        names, reason = self._name(list(grads))
        slots = [ParameterSlot(name, p) for p, name in names.items()]
        self._exchange = self._exchange_of(slots[::-1])
        self._slots = {id(slot.parameter): slot for slot in slots}
        for slot in slots:
            p, grad = slot.parameter, grads[slot.parameter]
            slot.grad = None if p.grad is None and not grad.any() else grad
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
            self._watch(slots)
        return reason

    def _name(self, parameters: list[torch.Tensor]) -> tuple[dict[torch.Tensor, str], str]:
        """The parameters in the module's order with their names, and what is wrong with these."""
        by_position = {p: str(i) for i, p in enumerate(parameters)}
        known, order, n = self._names, self._order, len(parameters)
        if known is not None:
            missing = sum(p not in known for p in parameters)
            if missing:
                return by_position, (
                    "named_parameters must name every parameter of the module, as "
                    f"module.named_parameters() does, got no name for {missing} of {n}"
                )
            return {p: name for p, name in known.items() if p in by_position}, ""
        if order is None:
            return by_position, ""
        if len(order) != n:
            return by_position, (
                f"the state was saved with {len(order)} parameters, the module has {n}"
            )
        return dict(zip(parameters, order, strict=True)), ""

    def _watch(self, slots: list[ParameterSlot]) -> None:
        """Sees gradients come: DDP calls its hook less often, and afterwards."""
        reference = weakref.ref(self)

        def computing(slot: ParameterSlot) -> Any:
            def hook(_: torch.Tensor) -> None:
                state = reference()
                if state is not None:
                    state._exchange.pending.is_computing(slot)

            return hook

        def computed(_: torch.Tensor) -> None:
            state = reference()
            if state is None or (queue := state._moving) is None:
                return
            # A module on several devices has a thread for each: another one may hold the lock.
            if state._lock.acquire(blocking=False):
                try:
                    queue.advance()
                finally:
                    state._lock.release()

        for slot in slots:
            p = slot.parameter
            needs = p.requires_grad  # not while another optimizer's turn freezes it, as in a GAN
            p.requires_grad_(True)
            p.register_hook(computing(slot))
            p.register_post_accumulate_grad_hook(computed)
            p.requires_grad_(needs)


def majority_vote_hook(
    state: MajorityVoteState, bucket: dist.GradBucket
) -> torch.futures.Future[torch.Tensor]:
    """The communication hook: DDP's gradients become the aggregate of all ranks' compressors.

    For ``DistributedDataParallel.register_comm_hook(state, majority_vote_hook)``, before the first
    backward pass. Buckets travel while ``backward()`` computes further gradients; the call for
    DDP's last bucket waits for all. A vote is +1, -1 or 0: do not clip or unscale it.

    Args:
        state: this module's ``MajorityVoteState``.
        bucket: DDP's bucket: float32, float64, float16 or bfloat16 gradients, dense.

    Returns:
        A future of the bucket's buffer, completed by the call for the step's last bucket.

    Raises:
        NaNError, DisagreementError, CollectiveError, CollectiveTimeout, WireError: as
            ``mpisign.majority_vote`` does, the same on every rank, out of ``backward()``. The
            gradients are undefined then. DDP can take further steps unless the communicator broke.

    Example:
        >>> store = dist.HashStore()
        >>> dist.init_process_group("gloo", store=store, rank=0, world_size=1)
        >>> model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(3, 1))
        >>> model.register_comm_hook(MajorityVoteState(compression="sign"), majority_vote_hook)
        >>> model(torch.tensor([[5.0, -3.0, 0.1]])).sum().backward()
        >>> model.module.weight.grad
        tensor([[ 1., -1.,  1.]])
        >>> dist.destroy_process_group()
    """
    with state._lock:
        if bucket.index() == 0 and state._results:
            state._abandon()
        buffer = bucket.buffer()
        future: torch.futures.Future[torch.Tensor] = torch.futures.Future(
            devices=[] if buffer.device.type == "cpu" else [buffer.device]
        )
        state._results.append((future, buffer))
        try:
            state._take(bucket)
        except Exception as error:
            state._error = error
        if not bucket.is_last():
            return future
        try:
            state._finish()
        except Exception as error:
            state._error = state._error or error
        first, results = state._error, state._results
        state._begin()
        for each, result in results:
            each.set_result(result)
        if first is not None:
            raise_after_backward(first)
        return future
