"""What the optimizers share: groups, exchange, saved state, and the frame of a step."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable
from typing import Any

import torch

from mpisign.exchange.arguments import check_seed, named_pairs
from mpisign.exchange.buckets import BUCKET_SIZE
from mpisign.exchange.grad_scaler import ScaledStep
from mpisign.exchange.optimizer_state import with_votes, without_votes
from mpisign.exchange.optimizer_steps import SCALER, call_on_every_rank, is_scaled
from mpisign.exchange.parameter_slot import ParameterSlot
from mpisign.exchange.skip import Rule
from mpisign.functions import engine_of
from mpisign.optim.arguments import check_group, check_shared
from mpisign.optim.momentum_exchange import MASK, MomentumExchange, MomentumMean
from mpisign.optim.wrapped import DDP, Wrappers

#: What an optimizer takes as ``params``.
Params = Iterable[torch.Tensor] | Iterable[dict[str, Any]] | Iterable[tuple[str, torch.Tensor]]


class MomentumSlot(ParameterSlot):
    """A slot whose aggregate is float32, whatever the parameter's dtype."""

    __slots__ = ()

    def target(self) -> torch.Tensor:
        if self.grad is None:
            self.grad = torch.empty_like(self.parameter, dtype=torch.float32)
        return self.grad.detach()


_RESIDUALS = ("residual", "owner_residual", "owner_of")


class CompressedOptimizer(torch.optim.Optimizer):
    """An optimizer whose ranks exchange momenta at one bit a coordinate.

    State of a parameter, float32 and equal on all ranks wherever they synchronise: ``exp_avg``, m,
    and ``exp_avg_sq``, v. Every group counts its steps in ``step``; so checkpoints have the count,
    and ranks compare it. Residuals are the rank's own, under "mpisign" of ``state_dict()``.
    """

    exchange: MomentumExchange | None = None  # which a copy or a pickle has lost

    def __init__(
        self,
        params: Params,
        defaults: dict[str, Any],
        *,
        comm: Any,
        block: int | None,
        skip: str | Rule | None,
        seed: int,
        bucket_size: int | None,
    ) -> None:
        name = self._name = type(self).__name__
        check_seed(name, seed)
        super().__init__(params, defaults)
        for group in self.param_groups:
            check_group(name, group)
            check_shared(name, group, defaults)
        compressor = MomentumMean(block=block, missing=self._missing_of)
        self._slots = [MomentumSlot(n, p) for n, p in self._named()]
        self._slot_of = {s.parameter: s for s in self._slots}
        self._known_alive: dict[torch.Tensor, tuple[Any, Any, Any, torch.Tensor | None]] = {}
        self._find_groups()
        self.exchange = MomentumExchange(
            name,
            engine_of(name, comm),
            self._slots,
            compressor,
            self,
            skip=skip,
            seed=seed,
            bucket_size=BUCKET_SIZE if bucket_size is None else bucket_size,
        )
        self._wrappers: Wrappers | None = None
        call_on_every_rank(self)
        self.register_state_dict_post_hook(_save)
        self.register_load_state_dict_pre_hook(_load)

    def _named(self) -> list[tuple[str, torch.Tensor]]:
        """The parameters, by their names where ``params`` had some, else by their positions."""
        pairs: list[tuple[str, torch.Tensor]] = []
        for group in self.param_groups:
            first, count = len(pairs), len(group["params"])
            names = group.get("param_names") or map(str, range(first, first + count))
            pairs += zip(names, group["params"], strict=True)
        return named_pairs(self._name, pairs)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Refuses groups that come later: the ranks' messages have the parameters' layout.

        Args:
            param_group: As torch's.

        Raises:
            RuntimeError: The optimizer is made already.
        """
        if self.exchange is not None:
            raise RuntimeError(
                f"{self._name}.add_param_group: give all parameters to the constructor; for others "
                "make a new optimizer and load this one's state of the parameters that stay"
            )
        super().add_param_group(param_group)

    @property
    def steps(self) -> int:
        """Steps so far, equal on all ranks."""
        return int(self.param_groups[0]["step"])

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """One step. Collective, but for the local steps of ``ZeroOneAdam``.

        Args:
            closure: Computes the loss and the gradients, once.

        Returns:
            The closure's loss; None without one.

        Raises:
            NaNError: On all ranks, where a gradient is not finite on one; nothing has changed.
            DisagreementError: Ranks differ in options, steps or parameters.
            CollectiveError, CollectiveTimeout, WireError: As ``mpisign.DistributedOptimizer``.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        exchange = self.exchange_now()
        if self._wrappers is None:
            self._wrappers = Wrappers(self._slot_of)
            if not self.steps:
                exchange.share_parameters()
        scaled = ScaledStep.of(self)
        reason = self._unfit()
        if scaled is not None:
            assert exchange.engine is not None
            what = exchange.engine, f"{self._name}.step", self.steps
            if not scaled.goes_on(*what, values=True, absent=False, reason=reason):
                return loss
            reason = ""
        try:
            self._advance(reason)
        except BaseException:
            if scaled is not None:
                scaled.forget()
            raise
        for group in self.param_groups:
            group["step"] += 1
        return loss

    def exchange_now(self) -> MomentumExchange:
        """The exchange, with the engine of the step to come."""
        if self.exchange is None:
            raise RuntimeError(
                f"{self._name}.step: a copy or a pickle has lost its ranks: make a new one and "
                "load the state_dict"
            )
        self.exchange.engine_now()
        return self.exchange

    @abstractmethod
    def _advance(self, reason: str) -> None:
        """One step but for the count. ``reason``: why this rank cannot take part, if so."""

    def _missing_of(self, state: dict[str, Any]) -> torch.Tensor:
        return self._missing(next(s.parameter for s in self._slots if s.state is state))

    @abstractmethod
    def _missing(self, p: torch.Tensor) -> torch.Tensor:
        """What this rank sends of ``p``, whose gradient only other ranks have."""

    def _unfit(self) -> str:
        assert self._wrappers is not None
        if is_scaled(self):
            return SCALER
        return DDP if self._wrappers.average() else ""

    def _frozen_without_variance(self) -> str:
        """A reason to refuse: a parameter's first gradient comes when v does not change any more.

        Its v is zero, so that its steps would be divided by eps.
        """
        for s in self._slots:
            if s.parameter.grad is not None and "exp_avg_sq" not in self.state[s.parameter]:
                return (
                    f"{s.name!r} has its first gradient after v was frozen: v is zero there. "
                    "Freeze later, or make a new optimizer"
                )
        return ""

    def _gradient(self, p: torch.Tensor) -> torch.Tensor | None:
        """This rank's gradient; one of float32 is written over where it is averaged."""
        if p.grad is None or p.grad.is_sparse:  # the second is refused
            return p.grad
        g = p.grad.detach().float()
        if g.stride() != p.stride():
            g = torch.empty_like(p, dtype=torch.float32).copy_(g)
        return g

    def _average(
        self,
        reason: str,
        plain: bool,
        sent: Callable[[torch.Tensor], torch.Tensor | None],
    ) -> dict[torch.Tensor, torch.Tensor]:
        """The ranks' mean of what each sends, for what any rank sends something of.

        ``plain``: fp32; else compressed, if there is more than one rank.
        """
        exchange = self.exchange_now()
        assert exchange.engine is not None
        exchange.averaging = plain or exchange.engine.transport.size == 1
        try:
            for s in self._slots:
                s.grad = sent(s.parameter)
            exchange.flush(reason)
            exchange.finish()
            return {s.parameter: s.grad for s in self._slots if s.grad is not None}
        finally:
            for s in self._slots:
                s.grad = None

    def _state_of(self, p: torch.Tensor) -> dict[str, Any]:
        """m and v of a parameter, zeros at first."""
        state = self.state[p]
        for key in ("exp_avg", "exp_avg_sq"):
            if key not in state:
                state[key] = torch.zeros_like(p, dtype=torch.float32)
        return state  # type: ignore[no-any-return]

    def _only_alive(self, p: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """``x`` in place, 0 where no momentum may be: masked, or v is 0, which divides nothing."""
        alive = self._alive(p)
        return x if alive is None else x.mul_(alive.view_as(x))

    def _alive(self, p: torch.Tensor) -> torch.Tensor | None:
        """1 where a momentum may be, else 0; None where it may be everywhere."""
        v, mask = self._state_of(p)["exp_avg_sq"], self._group_of[p].get(MASK)
        versions = v._version, -1 if mask is None else mask._version
        known = self._known_alive.get(p)
        if known is None or known[0] is not v or known[1] is not mask or known[2] != versions:
            alive = (v != 0).float()
            if mask is not None:
                alive.mul_(mask.to(alive.device, torch.float32))
            # While v is frozen this is known from the first of these steps on.
            known = v, mask, versions, None if bool((alive == 1).all()) else alive
            self._known_alive[p] = known
        return known[3]

    def _clear_residual(self, p: torch.Tensor) -> None:
        """Where nothing travels nothing is left out."""
        residual = self._slot_of[p].state.get("residual")
        if residual is not None:
            self._only_alive(p, residual)

    def _restart_residuals(self) -> None:
        """All residuals from zero: what is sent from now on has other units."""
        for s in self._slots:
            for key in _RESIDUALS:
                s.state.pop(key, None)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continues from ``state_dict()``, bit for bit where rank and number of ranks are the same.

        Own residuals are loaded; owners' start from zero where the number of ranks has changed, as
        those of ``Compression.onebit``. A mask is not loaded: it may change between runs.

        Args:
            state_dict: This rank's; a rank that joins loads that of any other.

        Raises:
            ValueError: It does not fit the parameters.
        """
        masks = [group.get(MASK) for group in self.param_groups]
        super().load_state_dict(state_dict)
        for group, mask in zip(self.param_groups, masks, strict=True):
            group.pop(MASK, None)
            if mask is not None:
                group[MASK] = mask
        # torch has cast tensors to the parameters' dtype; m and v are float32.
        numbers = [n for group in state_dict["param_groups"] for n in group["params"]]
        parameters = [p for group in self.param_groups for p in group["params"]]
        for n, p in zip(numbers, parameters, strict=True):
            for key, value in state_dict["state"].get(n, {}).items():
                if isinstance(value, torch.Tensor) and key in self.state[p]:
                    self.state[p][key] = value.detach().to(p.device, copy=True)
        self._find_groups()
        self._wrappers = None

    def _find_groups(self) -> None:
        self._group_of = {p: g for g in self.param_groups for p in g["params"]}


def _save(optimizer: Any, state_dict: dict[str, Any]) -> dict[str, Any]:
    """The state_dict post-hook: without masks, with the residuals."""
    exchange = optimizer.exchange_now()
    place = exchange.engine.transport.rank, exchange.engine.transport.size
    groups = [{k: v for k, v in g.items() if k != MASK} for g in state_dict["param_groups"]]
    return with_votes({**state_dict, "param_groups": groups}, exchange, place, {})


def _load(optimizer: Any, state_dict: dict[str, Any]) -> dict[str, Any]:
    """The load_state_dict pre-hook."""
    exchange = optimizer.exchange_now()
    place = exchange.engine.transport.rank, exchange.engine.transport.size
    rest, saved = without_votes(state_dict, exchange, place)
    exchange.drop()
    exchange.load_state_dict(saved)
    return rest
