"""Collectives among ranks that are threads of one process."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from mpisign import stopping, tracing
from mpisign.communicator import Communicator
from mpisign.transports.base import LEFT
from mpisign.transports.threads import TURN, ThreadTransport, World


def run(size: int, function: Callable[..., Any], *args: Any, **options: Any) -> list[Any]:
    """Runs ``function(communicator, *args)`` on ``size`` ranks that are threads of this process.

    For simulations: the ranks share the interpreter's lock and ``mpisign.stats``.

    Args:
        size: Number of ranks.
        function: What each rank runs, with its Communicator first.
        *args: Further arguments, the same on every rank.
        **options: Of ``mpisign.Communicator``.

    Returns:
        What each rank returned, by rank.

    Raises:
        ValueError: ``size`` is below 1. Else what the first failing rank raised, once all ended.

    Example:
        >>> import numpy as np
        >>> from mpisign import simulation
        >>> def vote(comm):
        ...     return comm.majority_vote(np.array([1.0, comm.rank - 0.5])).tolist()
        >>> simulation.run(3, vote)
        [[1.0, 1.0], [1.0, 1.0], [1.0, 1.0]]
    """
    world = World(size)
    results: list[Any] = [None] * size
    errors: list[BaseException | None] = [None] * size

    def work(rank: int) -> None:
        transport = ThreadTransport(world, rank)
        stopping.thread_is_a_rank()
        tracing.thread_is_a_rank()
        TURN.take()
        try:
            results[rank] = function(Communicator(transport, **options), *args)
        except BaseException as error:
            errors[rank] = error
            transport.post(LEFT)
        finally:
            TURN.leave()

    threads = [threading.Thread(target=work, args=(r,), daemon=True) for r in range(size)]
    with TURN.left():  # a rank may run a world of its own
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for error in filter(None, errors):
        raise error
    return results
