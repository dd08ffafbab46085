"""Accordion in a training loop: where epochs end, and its form for batch sizes."""

from __future__ import annotations

from typing import Any

import torch

from mpisign import policies
from mpisign.compressors.accordion import is_steady
from mpisign.exchange.regimes import norm_of
from mpisign.exchange.step_hooks import KEY, StepHooks

#: The entry of every parameter group with the number of passes: front ends compare options.
_PASSES = "accordion_passes"


def next_epoch(votes: Any) -> dict[str, str]:
    """Tells ``Compression.accordion`` that an epoch is over, on every rank.

    Call it after the epoch's last ``step()`` and after ``scheduler.step()``; at the beginning of
    each epoch it does as well: an epoch without steps is none. If one rank leaves it out, the next
    exchange raises ``DisagreementError`` on all ranks.

    Args:
        votes: What ``mpisign.DistributedOptimizer``, ``mpisign.horovod.DistributedOptimizer`` or
            ``hvd.DistributedOptimizer`` returned, or the state of DDP's hook.

    Returns:
        By name, "high" or "low": what each parameter sends from now on. Without Accordion, and
        before DDP's first step, empty.

    Raises:
        TypeError: ``votes`` is none of these.
        ValueError: Epochs end by ``steps_per_epoch``.
        RuntimeError: Gradients of a step are on their way.

    Example:
        >>> import mpisign
        >>> w = torch.nn.Parameter(torch.zeros(2, 3))
        >>> sgd = torch.optim.SGD([w], lr=0.1)
        >>> accordion = mpisign.Compression.accordion(every=1)
        >>> sgd = mpisign.DistributedOptimizer(sgd, [("w", w)], compression=accordion, skip=None)
        >>> for epoch in range(2):
        ...     (w * torch.tensor([1.0, -2.0, 3.0])).sum().backward()
        ...     sgd.step()
        ...     print(mpisign.next_epoch(sgd))
        ...     sgd.zero_grad()
        {'w': 'low'}
        {'w': 'high'}
    """
    own = getattr(votes, "__dict__", {})
    hooks = own.get(KEY)
    if isinstance(hooks, StepHooks):
        return hooks.exchange.next_epoch()
    for told in (own.get("_mpisign"), own.get("_compression"), votes):
        if told is not None and hasattr(told, "next_epoch"):
            found: dict[str, str] = told.next_epoch()
            return found
    raise TypeError(
        "next_epoch: votes must be an optimizer of mpisign or Horovod whose compression is "
        f"mpisign's, or the state of DDP's hook, got {type(votes).__name__}"
    )


class AccordionBatch:
    """Accordion for batch sizes: small batches where gradients change, large ones else.

    Says how many backward passes make a step: ``small`` in a critical regime, ``large`` in a
    steady one, so that ranks exchange a vote or a mean every ``large``-th pass. The detector is
    that of ``Compression.accordion``, on all parameters together: r of the norms of the gradients
    that the optimizer stepped on, their mean over the steps of every n-th epoch, for steps become
    fewer. These are aggregates, equal on all ranks, so that all decide alike; the number is also
    an option of the parameter groups, which the ranks compare. Votes have a size of their own, and
    so has each number of passes: two epochs of one number are compared, and after a change the
    number stays until there are two.

    The learning rate is the caller's: averages over larger batches take a larger one, votes do not.
    Scale the loss by 1 / ``passes``, for a mean over the passes. Source: Agarwal et al. 2021,
    Accordion (arXiv 2010.16248), on batch sizes.

    Args:
        optimizer: The one that steps, already distributed.
        small: Passes a step in the first epochs and where gradients change.
        large: Passes a step where they are steady.
        threshold, every, fall: As in ``Compression.accordion``.
        only_grow: Stay with ``large`` once it was reached.

    Attributes:
        passes: The passes that make a step now.

    Raises:
        TypeError, ValueError: A value does not fit.

    Example:
        >>> w = torch.nn.Parameter(torch.zeros(3))
        >>> sgd = torch.optim.SGD([w], lr=0.1)
        >>> batch = AccordionBatch(sgd, large=2, every=1)
        >>> for epoch in range(3):
        ...     for _ in range(4):
        ...         (w.sum() / batch.passes).backward()
        ...         if batch.is_due():
        ...             sgd.step()
        ...             sgd.zero_grad()
        ...     batch.next_epoch()
        1
        2
        2
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        *,
        small: int = 1,
        large: int = 8,
        threshold: float = 0.5,
        every: int = 10,
        fall: float = 0.25,
        only_grow: bool = False,
    ) -> None:
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise TypeError(
                "AccordionBatch: optimizer must be a torch.optim.Optimizer, "
                f"got {type(optimizer).__name__}"
            )
        for name, value in (("small", small), ("large", large), ("every", every)):
            if policies.whole(value, 1) is None:
                raise ValueError(f"AccordionBatch: {name} must be a number from 1, got {value!r}")
        for name, share in (("threshold", threshold), ("fall", fall)):
            if not isinstance(share, (int, float)) or not share >= 0:
                raise ValueError(f"AccordionBatch: {name} must be a number from 0, got {share!r}")
        if small > large:
            raise ValueError(
                f"AccordionBatch: small must be at most large, got {small} and {large}"
            )
        self._optimizer = optimizer
        self._small, self._large, self._every = int(small), int(large), int(every)
        self._threshold, self._fall, self._only_grow = threshold, fall, bool(only_grow)
        self._done = self._epoch = self._steps = 0
        self._norm: float | None = None
        self._passes_of_norm = 0
        self._rate = self._rate_now()
        self._sums: list[torch.Tensor | None] = []
        self.passes = self._small
        self._tell()
        optimizer.register_step_post_hook(self._stepped)

    def is_due(self) -> bool:
        """Counts a backward pass.

        Returns:
            Whether the step is due, with this pass as its last one.
        """
        self._done += 1
        if self._done < self.passes:
            return False
        self._done = 0
        return True

    def next_epoch(self) -> int:
        """Ends an epoch, on every rank; passes of a step that was not taken count in the next one.

        Returns:
            The passes that make a step from now on.
        """
        if not self._steps:
            return self.passes
        rate, wanted = self._rate_now(), self.passes
        if self._epoch % self._every == 0:
            norm = norm_of(self._sums, self._steps)
            if self._norm is None or self._passes_of_norm == self.passes:
                steady = is_steady(self._norm, norm, self._threshold)
                wanted = self._large if steady else self._small
            self._norm, self._passes_of_norm = norm, self.passes
        if rate < self._fall * self._rate:
            wanted = self._small
        self._epoch, self._steps, self._sums, self._rate = self._epoch + 1, 0, [], rate
        self.passes = max(self.passes, wanted) if self._only_grow else wanted
        self._tell()
        return self.passes

    def state_dict(self) -> dict[str, Any]:
        """Returns the state, equal on all ranks but for passes of a step that is not taken yet."""
        return {
            "passes": self.passes,
            "done": self._done,
            "epoch": self._epoch,
            "steps": self._steps,
            "norm": self._norm,
            "passes_of_norm": self._passes_of_norm,
            "rate": self._rate,
            "sums": [None if x is None else x.clone() for x in self._sums],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continues from ``state_dict()``, bit for bit.

        Args:
            state_dict: What it returned.
        """
        self.passes, self._done = int(state_dict["passes"]), int(state_dict["done"])
        self._epoch, self._steps = int(state_dict["epoch"]), int(state_dict["steps"])
        self._norm, self._rate = state_dict["norm"], float(state_dict["rate"])
        self._passes_of_norm = int(state_dict["passes_of_norm"])
        pairs = zip(state_dict["sums"], self._parameters(), strict=False)
        self._sums = [None if x is None else x.detach().to(p.device, copy=True) for x, p in pairs]
        self._tell()

    def _stepped(self, *_: Any) -> None:
        self._steps += 1
        if self._epoch % self._every:
            return
        parameters = self._parameters()
        self._sums += [None] * (len(parameters) - len(self._sums))
        for i, p in enumerate(parameters):
            if p.grad is None:
                continue
            total = self._sums[i]
            if total is None:
                total = self._sums[i] = torch.zeros(p.shape, device=p.device)
            total += p.grad.detach().to_dense() if p.grad.is_sparse else p.grad.detach()

    def _parameters(self) -> list[torch.Tensor]:
        return [p for group in self._optimizer.param_groups for p in group["params"]]

    def _rate_now(self) -> float:
        return max((float(g.get("lr", 1.0)) for g in self._optimizer.param_groups), default=1.0)

    def _tell(self) -> None:
        for group in self._optimizer.param_groups:
            group[_PASSES] = self.passes
