"""Raises the errors of communication hooks where the user called ``backward()``."""

from __future__ import annotations

import torch


def raise_after_backward(error: BaseException) -> None:
    """Makes ``backward()`` raise ``error`` after torch has finished its own part of the pass.

    A hook that raises leaves DDP and FSDP in the middle of a step: the next forward pass fails with
    an error that hides the first one. Outside a backward pass, raises at once.
    """

    def fail() -> None:
        raise error

    queue = torch.autograd.Variable._execution_engine.queue_callback  # type: ignore[attr-defined]
    try:
        # Queued twice, so that it runs after the callbacks that torch queues behind the hook.
        queue(lambda: queue(fail))
    except RuntimeError:  # no backward pass is running, as in DDP's join()
        raise error from None
