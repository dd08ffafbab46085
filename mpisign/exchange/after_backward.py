"""Errors of communication hooks, raised where the user called ``backward()``."""

from __future__ import annotations

import torch


def raise_after_backward(error: BaseException) -> None:
    """Has ``backward()`` raise ``error`` once torch has finished its own part of it.

    An error that a hook raises itself leaves DDP and FSDP in the middle of a step: the next forward
    pass fails, and says nothing of the first error. Raised at once outside of a backward pass.
    """

    def fail() -> None:
        raise error

    queue = torch.autograd.Variable._execution_engine.queue_callback  # type: ignore[attr-defined]
    try:
        # What torch queues after the hook comes between these two.
        queue(lambda: queue(fail))
    except RuntimeError:  # no backward pass is under way, as in DDP's join()
        raise error from None
