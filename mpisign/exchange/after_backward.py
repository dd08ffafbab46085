"""What follows a backward pass once torch has finished its own part of it."""

from __future__ import annotations

from collections.abc import Callable

import torch


def is_running() -> bool:
    """Whether this thread is in a backward pass."""
    return torch._C._current_graph_task_id() != -1


def after_backward(call: Callable[[], None]) -> None:
    """Calls at the end of the running backward pass, or at once where none is running."""
    queue = torch.autograd.Variable._execution_engine.queue_callback  # type: ignore[attr-defined]
    if is_running():
        # Queued twice, so that it runs after the callbacks that torch queues behind the hook.
        queue(lambda: queue(call))
    else:  # as in DDP's join()
        call()


def raise_after_backward(error: BaseException) -> None:
    """Makes ``backward()`` raise ``error`` after torch has finished its own part of the pass.

    A hook that raises leaves DDP and FSDP in the middle of a step: the next forward pass fails with
    an error that hides the first one. Outside a backward pass, raises at once.
    """

    def fail() -> None:
        raise error from None

    after_backward(fail)
