"""What one optimizer of ours exchanges in each step, and what it makes of the result."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

import horovod.torch as hvd
import torch
from horovod.common.exceptions import HorovodInternalError

from mpisign.compressors import Compressor
from mpisign.compressors.uncompressed import BF16Mean
from mpisign.exchange.gradient_exchange import GradientExchange
from mpisign.exchange.local_steps import LocalSteps
from mpisign.exchange.parameter_slot import ParameterSlot
from mpisign.horovod.wire import Wire, elastic

_VOTES = ("vote", "gathered_vote")


class HorovodGradients:
    """The members of an optimizer that Horovod's methods drive; see ``methods``."""

    def __init__(self, optimizer: Any, compressor: Compressor, **options: Any) -> None:
        self._optimizer = optimizer
        self._sparse: dict[torch.Tensor, int] = {}  # what Horovod sent, and how many dimensions are
        self._sending: dict[torch.Tensor, Callable[[], torch.Tensor]] = {}  # so in this step
        self._members: dict[torch.Tensor, ParameterSlot] = {}
        self._exchange: GradientExchange | None = None
        self._local: LocalSteps | None = None
        if not optimizer.process_set.included():
            return
        names, wanted = optimizer._parameter_names, optimizer._requires_update
        parameters = [p for g in optimizer.param_groups for p in g["params"] if p in wanted]
        self._members = {p: ParameterSlot(names[p], p) for p in reversed(parameters)}
        members = list(self._members.values())
        self._wire = Wire(optimizer.process_set, [m.name for m in members])
        self._exchange = GradientExchange(
            "step",
            self._wire.call,
            members,
            compressor,
            optimizer=optimizer,
            newcomers=lambda: self._wire.newcomers,
            before=self._wire.roll_call,
            replicas=False,
            **options,
        )
        if compressor.local_steps > 1:
            budget = compressor.budget_local  # type: ignore[attr-defined]
            self._local = LocalSteps(members, compressor.local_steps, budget, self._exchange.seed)

    def start(self, p: torch.Tensor) -> Callable[[], torch.Tensor]:
        """This step's gradient of ``p`` is there, or there is none; Horovod's kind of handle."""
        member, grad = self._members[p], p.grad
        handle: Any = functools.partial(getattr, p, "grad")
        if grad is not None and grad.is_sparse:
            if self._optimizer.sparse_as_dense:
                grad = grad.to_dense()
            else:
                handle = self._start_sparse(p)
                grad = None
        elif grad is None and p in self._sparse:
            p.grad = _nothing(p, self._sparse[p])
            handle = self._start_sparse(p)
        member.grad = grad
        if self._local is None:
            assert self._exchange is not None
            self._wire.call()
            self._exchange.ready(member)
        return handle

    def synchronize(self, reason: str = "") -> None:
        """All gradients become their aggregates. ``reason``: why this rank cannot go on, if so."""
        optimizer, exchange = self._optimizer, self._exchange
        assert exchange is not None
        reason = reason or self._unfit()
        try:
            if reason and self._local is None:  # before the rest is on its way, so that all hear it
                exchange.flush(reason)
                exchange.finish()
            for p in self._members:
                if optimizer._handles.get(p, (None,))[0] is None:
                    optimizer._handles[p] = optimizer._allreduce_grad_async(p)
            exchanged = self._exchange_all(reason)
            for p, handle in self._sending.items():
                assert p.grad is not None
                p.grad.zero_().add_(handle())
        except Exception as error:
            if elastic() and self._wire.broken and not isinstance(error, HorovodInternalError):
                raise HorovodInternalError(str(error)) from error
            raise
        finally:
            self._forget()
        self._take(exchanged)

    def state_dict(self) -> dict[str, Any]:
        """This rank's; see ``GradientExchange.state_dict``."""
        if self._exchange is None:
            return {"steps": 0, "state": {}}
        own = self._exchange.state_dict()
        return own if self._local is None else {**own, "local": self._local.done}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from ``state_dict``."""
        if self._exchange is None:
            return
        self._drop()
        self._exchange.load_state_dict(state)
        if self._local is not None:
            self._local.done = int(state.get("local", 0))

    def _exchange_all(self, reason: str) -> bool:
        """False after a step that this rank took alone."""
        exchange = self._exchange
        assert exchange is not None
        if self._local is not None:
            rank = self._optimizer.process_set.rank()
            if not self._local.take(exchange.steps, rank):
                if reason:
                    raise RuntimeError(f"step: {reason}")
                return False
        exchange.flush(reason)
        exchange.finish()
        self._wire.ended(well=True)
        return True

    def _take(self, exchanged: bool) -> None:
        """What was exchanged becomes the parameters' gradients."""
        assert self._exchange is not None
        if exchanged and self._optimizer.op == hvd.Sum:
            size = self._optimizer.process_set.size()
            for bucket in self._exchange.buckets:
                if _is_mean(bucket.compressor):
                    for m in bucket.slots:
                        if m.grad is not None:
                            m.grad.mul_(size)
        for p, m in self._members.items():
            if m.grad is None:
                continue
            if p.grad is None:
                p.grad = m.grad
            elif p.grad.is_sparse:
                p.grad.zero_().add_(m.grad.to_sparse())
            elif p.grad is not m.grad:
                p.grad = m.grad
            m.grad = None

    def _forget(self) -> None:
        optimizer = self._optimizer
        optimizer._handles.clear()
        self._sending.clear()
        self._wire.ended(well=False)
        for p in self._members:
            optimizer._allreduce_delay[p] = optimizer.backward_passes_per_step

    def _drop(self) -> None:
        """Ends what is on its way, with its errors: nobody waits for it."""
        assert self._exchange is not None
        if self._optimizer._handles and self._local is None:
            self._exchange.drop()
        self._wire.ended(well=False)
        for m in self._members.values():
            m.grad = None

    def _start_sparse(self, p: torch.Tensor) -> Callable[[], torch.Tensor]:
        if not self._sparse:
            warnings.warn(
                f"DistributedOptimizer: the gradient of {self._members[p].name!r} is sparse and "
                "travels as Horovod sends it, averaged and not voted on; "
                "sparse_as_dense=True gives it a vote",
                stacklevel=2,
            )
        assert p.grad is not None
        self._sparse[p] = p.grad.sparse_dim()
        optimizer = self._optimizer
        name = optimizer._parameter_names[p]
        handle: Any = optimizer._sparse_allreduce_grad_async(p, name)[0]
        self._sending[p] = handle
        return handle  # type: ignore[no-any-return]

    def _unfit(self) -> str:
        """Why this rank cannot take part."""
        optimizer = self._optimizer
        for group in optimizer.param_groups:
            for p in group["params"]:
                if p.grad is not None and p.requires_grad and p not in self._members:
                    return (
                        "the optimizer has a parameter that it had not, or that needed no "
                        "gradient, when it was wrapped: wrap it again"
                    )
        if getattr(optimizer, "grad_scale", None) is not None:
            return "torch.amp.GradScaler does not go with votes, which need no scale"
        return ""


def _nothing(p: torch.Tensor, sparse: int) -> torch.Tensor:
    """A sparse gradient that holds none."""
    at = torch.empty((sparse, 0), dtype=torch.int64, device=p.device)
    return torch.sparse_coo_tensor(at, p.new_empty((0, *p.shape[sparse:])), p.shape)


def _is_mean(compressor: Compressor) -> bool:
    """Whether what it hands over grows with the number of ranks under op=Sum."""
    if isinstance(compressor, BF16Mean):
        return not compressor.signs
    return compressor.aggregate not in _VOTES
