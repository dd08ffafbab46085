"""What a plain torch optimizer does before and after its steps, once it steps on aggregates."""

from __future__ import annotations

from typing import Any

import torch

from mpisign.gradients.exchange import GradientExchange
from mpisign.gradients.local_steps import LocalSteps
from mpisign.rounds.member import Member

KEY = "mpisign"  # of the compressors' state in optimizer.state_dict()


class StepHooks:
    """The hooks of one optimizer. ``overlap``: exchanges begin during the backward pass."""

    def __init__(
        self, optimizer: torch.optim.Optimizer, exchange: GradientExchange, overlap: bool
    ) -> None:
        self.exchange = exchange
        self.overlap = overlap
        self.local: LocalSteps | None = None
        c = exchange.compressor
        if c.local_steps > 1:
            budget = c.budget_local  # type: ignore[attr-defined]  # who has local steps has it
            self.local = LocalSteps(exchange.members, c.local_steps, budget, exchange.seed)
        parameters = [p for g in optimizer.param_groups for p in g["params"]]
        self._ids = [id(p) for p in parameters]
        self._stepping = False
        self._voted: list[tuple[int, int]] = []
        self._spoilt = ""
        if overlap:
            for m in exchange.members:
                if m.parameter.requires_grad:
                    m.parameter.register_post_accumulate_grad_hook(self._computed(m))
        optimizer.register_step_pre_hook(self.before_step)
        optimizer.register_step_post_hook(self.after_step)
        optimizer.register_state_dict_post_hook(self.save)
        optimizer.register_load_state_dict_pre_hook(self.load)

    def _computed(self, m: Member) -> Any:
        def hook(p: torch.Tensor) -> None:
            if self.exchange.told(m):
                self._spoilt = (
                    f"the gradient of {m.name!r} was computed twice before step(), but is on its "
                    "way already: with overlap=True there is one backward() a step"
                )
                raise RuntimeError(f"backward: {self._spoilt}")
            m.grad = p.grad
            self.exchange.ready(m)

        return hook

    def before_step(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        """The step pre-hook."""
        # torch hooks the step of every class: a step that calls its base class's comes here twice.
        if self._stepping and self._voted == self._versions():
            return
        reason = self._spoilt or self._unfit(optimizer, (*args[1:], *kwargs.values()))
        self._spoilt = ""
        for m in self.exchange.members:
            if not self.exchange.told(m):
                m.grad = m.parameter.grad
            elif m.grad is not m.parameter.grad:
                reason = reason or f"the gradient of {m.name!r} was replaced before step()"
        if self.local is None or self.local.take(self.exchange.steps, self._rank()):
            self.exchange.flush(reason)
            self.exchange.finish()
        if reason:  # too late to tell the others
            raise RuntimeError(f"step: {reason}")
        for m in self.exchange.members:
            if m.grad is not None and m.parameter.grad is None:
                m.parameter.grad = m.grad
            m.grad = None
        self._stepping, self._voted = True, self._versions()

    def after_step(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        """The step post-hook."""
        self._stepping = False

    def _rank(self) -> int:
        return self.exchange.channel_now().transport.rank

    def _versions(self) -> list[tuple[int, int]]:
        grads = [m.parameter.grad for m in self.exchange.members]
        return [(id(g), g._version) for g in grads if g is not None]

    def _unfit(self, optimizer: Any, arguments: tuple[Any, ...]) -> str:
        """Why this rank cannot take part; it must say so where the others wait for it."""
        if any(a is not None for a in arguments):
            return (
                "a closure computes gradients after they were voted on; "
                "call backward() first and step() without arguments"
            )
        if [id(p) for g in optimizer.param_groups for p in g["params"]] != self._ids:
            return "the optimizer's parameters are not those it had when it was wrapped"
        if getattr(optimizer, "grad_scale", None) is not None:
            return "torch.amp.GradScaler does not go with votes, which need no scale"
        return "" if self.local is None else self.local.unfit(optimizer)

    def save(self, optimizer: Any, state_dict: dict[str, Any]) -> dict[str, Any]:
        """The state_dict post-hook."""
        own = self.exchange.state_dict()
        if self.local is not None:
            own["local"] = self.local.done
        return {**state_dict, KEY: own}

    def load(self, optimizer: Any, state_dict: dict[str, Any]) -> dict[str, Any]:
        """The load_state_dict pre-hook."""
        saved = state_dict.get(KEY, {"steps": 0, "state": {}})
        self.exchange.load_state_dict(saved)
        if self.local is not None:
            self.local.done = int(saved.get("local", 0))
        return {k: v for k, v in state_dict.items() if k != KEY}
