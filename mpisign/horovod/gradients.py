"""The gradients of one ``mpisign.horovod.DistributedOptimizer``: exchanged and handed back."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

import horovod.torch as hvd
import torch
from horovod.common.exceptions import HorovodInternalError

from mpisign import launcher
from mpisign.compressors import Compressor
from mpisign.compressors.uncompressed import BF16Mean
from mpisign.exchange.gradient_exchange import GradientExchange
from mpisign.exchange.left_state import UNWRAP, leave, take_up
from mpisign.exchange.local_steps import local_steps_of
from mpisign.exchange.optimizer_state import with_votes, without_votes
from mpisign.exchange.optimizer_steps import (
    SCALER,
    are_zeros,
    call_on_every_rank,
    is_scaled,
    is_still,
)
from mpisign.exchange.parameter_slot import ParameterSlot
from mpisign.horovod.process_set_engine import OptimizerEngine, elastic
from mpisign.horovod.unwrap import take_over

_VOTES = ("vote", "gathered_vote")


class HorovodGradients:
    """The slots and the exchange of an optimizer on a rank of its process set; see ``methods``."""

    def __init__(self, optimizer: Any, compressor: Compressor, **options: Any) -> None:
        self._optimizer = optimizer
        self._sparse: dict[torch.Tensor, int] = {}  # sparse dimensions of gradients once sparse
        self._sending: dict[torch.Tensor, Callable[[], torch.Tensor]] = {}  # those of this step
        names, wanted = optimizer._parameter_names, optimizer._requires_update
        parameters = [p for g in optimizer.param_groups for p in g["params"] if p in wanted]
        self._slots = {p: ParameterSlot(names[p], p) for p in reversed(parameters)}
        slots = list(self._slots.values())
        self._engine = OptimizerEngine(optimizer.process_set, [m.name for m in slots])
        self._exchange = GradientExchange(
            "step",
            self._engine.begin,
            slots,
            compressor,
            optimizer=optimizer,
            newcomers=lambda: self._engine.newcomers,
            before=self._engine.check_present,
            replicas=False,
            ahead=True,
            **options,
        )
        self._made_up = False  # whether this step's gradients are none that were computed
        call_on_every_rank(optimizer)
        self.replaced = False
        self._exchange.pending.refuses_newcomers = False  # as _unfit does, which tells all ranks
        take_over(optimizer, parameters)
        self._local = local_steps_of(compressor, slots, self._exchange.seed)

    def start(self, p: torch.Tensor) -> Callable[[], torch.Tensor]:
        """Takes this step's gradient of ``p``, or none; returns Horovod's kind of handle."""
        slot, grad = self._slots[p], p.grad
        handle: Any = functools.partial(getattr, p, "grad")
        if grad is not None and grad.is_sparse:
            if self._optimizer.sparse_as_dense:
                grad = grad.to_dense()
            else:
                handle = self._start_sparse(p)
                grad = None
        elif grad is None and p in self._sparse:
            p.grad = _empty_sparse(p, self._sparse[p])
            handle = self._start_sparse(p)
        slot.grad = None if self._made_up else grad
        if self._local is None:
            if not self._exchange.ready_slots:
                self._exchange.refuse(self._unfit())  # while buckets can tell all ranks
            self._engine.begin()
            self._exchange.ready(slot)
        return handle

    def synchronize(self, reason: str = "") -> None:
        """Makes all gradients their aggregates. ``reason``: why this rank cannot take part."""
        optimizer, exchange = self._optimizer, self._exchange
        reason = reason or self._unfit()
        if not optimizer._handles and not reason:
            there = [s for p, s in self._slots.items() if p.grad is not None]
            if there and exchange.pending.holds(there):
                return  # they are the aggregates
            made_up = are_zeros(s.parameter.grad for s in there)
            if made_up and is_still(optimizer):
                return  # a step that is to fill the optimizer's state
            self._made_up = made_up
        try:
            if reason and self._local is None:  # while buckets remain whose headers can carry it
                exchange.flush(reason)
                exchange.finish()
            for p in self._slots:
                if optimizer._handles.get(p, (None,))[0] is None:
                    optimizer._handles[p] = optimizer._allreduce_grad_async(p)
            exchanged = self._exchange_all(reason)
            for p, handle in self._sending.items():
                assert p.grad is not None
                p.grad.zero_().add_(handle())
        except Exception as error:
            if elastic() and self._engine.broken and not isinstance(error, HorovodInternalError):
                raise HorovodInternalError(str(error)) from error
            raise
        finally:
            self._made_up = False
            optimizer._handles.clear()
            self._sending.clear()
            self._engine.end(exchanged=False)
            for p in self._slots:
                optimizer._allreduce_delay[p] = optimizer.backward_passes_per_step
        self._hand_back(exchanged)

    def leave(self) -> None:
        """Ends the exchange; the state stays with the optimizer. See ``mpisign.unwrap``."""
        leave(self._optimizer, self._exchange, self._local)
        self._engine.end(exchanged=False)

    def take_up(self, optimizer: torch.optim.Optimizer) -> None:
        """Goes on with the state of ``optimizer``, if it was unwrapped, and with all else of it."""
        if take_up(optimizer, self._exchange):
            self._optimizer.state.update(optimizer.state)

    def next_epoch(self) -> dict[str, str]:
        """Ends an epoch of ``Compression.accordion``."""
        return self._exchange.next_epoch()

    def state_dict(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        """The optimizer's own ``state_dict`` with this rank's state of votes."""
        more = {} if self._local is None else {"local": self._local.done}
        return with_votes(state_dict, self._exchange, self._place(), more)

    def load_state_dict(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        """Continues from ``state_dict``; abandons a step that has begun. Returns the rest."""
        rest, state = without_votes(state_dict, self._exchange, self._place())
        if self._optimizer._handles and self._local is None:
            self._exchange.drop()
        self._engine.end(exchanged=False)
        for slot in self._slots.values():
            slot.grad = None
        self._exchange.load_state_dict(state)
        if self._local is not None:
            self._local.done = int(state.get("local", 0))
        return rest

    def _exchange_all(self, reason: str) -> bool:
        """Exchanges what is left; False, and no exchange, in a local step."""
        exchange = self._exchange
        if self._local is not None and not exchange.warming:
            rank = self._optimizer.process_set.rank()
            if not self._local.take(exchange.steps, rank):
                if reason:
                    raise RuntimeError(f"step: {reason}")
                return False
        exchange.flush(reason)
        exchange.finish()
        self._engine.end(exchanged=True)
        return True

    def _hand_back(self, exchanged: bool) -> None:
        """Writes the aggregates into the parameters' gradients."""
        if exchanged and self._optimizer.op == hvd.Sum:
            size = self._optimizer.process_set.size()
            for bucket in self._exchange.buckets:
                scaled = self._exchange.regimes is not None  # votes of a mean's size
                if scaled or self._exchange.pending.averaged or _is_mean(bucket.compressor):
                    for slot in bucket.slots:
                        if slot.grad is not None:
                            slot.grad.mul_(size)
        for p, slot in self._slots.items():
            if slot.grad is None:
                continue
            if p.grad is not None and p.grad.is_sparse:
                p.grad.zero_().add_(slot.grad.to_sparse())
            else:
                p.grad = slot.grad
            slot.grad = None
        if exchanged:
            self._exchange.pending.hand_out()

    def _start_sparse(self, p: torch.Tensor) -> Callable[[], torch.Tensor]:
        if not self._sparse and launcher.is_first():
            warnings.warn(
                f"DistributedOptimizer: the gradient of {self._slots[p].name!r} is sparse: Horovod "
                "averages it, without a vote; sparse_as_dense=True makes it dense and votes on it",
                stacklevel=2,
            )
        assert p.grad is not None
        self._sparse[p] = p.grad.sparse_dim()
        optimizer = self._optimizer
        name = optimizer._parameter_names[p]
        handle: Any = optimizer._sparse_allreduce_grad_async(p, name)[0]
        self._sending[p] = handle
        return handle  # type: ignore[no-any-return]

    def _place(self) -> tuple[int, int]:
        return self._optimizer.process_set.rank(), self._optimizer.process_set.size()

    def _unfit(self) -> str:
        """Why this rank cannot take part; "" if it can."""
        optimizer = self._optimizer
        if self.replaced:
            return "another DistributedOptimizer has taken over parameters of this one"
        for group in optimizer.param_groups:
            for p in group["params"]:
                if p.requires_grad and p not in self._slots:
                    return (
                        "the optimizer has a parameter that was added, or began to need a "
                        f"gradient, after it was wrapped: {UNWRAP}"
                    )
        return SCALER if is_scaled(optimizer) else ""


def _empty_sparse(p: torch.Tensor, dimensions: int) -> torch.Tensor:
    """A sparse gradient without values."""
    at = torch.empty((dimensions, 0), dtype=torch.int64, device=p.device)
    return torch.sparse_coo_tensor(at, p.new_empty((0, *p.shape[dimensions:])), p.shape)


def _is_mean(compressor: Compressor) -> bool:
    """Whether its aggregate is a mean, which op=Sum multiplies by the number of ranks."""
    if isinstance(compressor, BF16Mean):
        return not compressor.signs
    return compressor.aggregate not in _VOTES
