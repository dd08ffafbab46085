"""The ranks of a hook: a process group's, or those of whatever connects them."""

from __future__ import annotations

from typing import Any

import torch.distributed as dist

from mpisign.communicator import Communicator, engine_of
from mpisign.engine.engine import Engine


class Group:
    """``process_group``: None for all of ``init_process_group``, or what ``Communicator`` takes.

    Asks for ranks only once they are needed: the first ``engine()`` is collective.
    """

    def __init__(self, function: str, process_group: Any, timeout: float | None) -> None:
        self._function = function
        self.process_group = process_group
        self.timeout = timeout
        self._own: Communicator | None = None  # with a timeout of its own

    def engine(self) -> Engine:
        """The engine of these ranks."""
        group = dist.group.WORLD if self.process_group is None else self.process_group
        if self.timeout is None:
            return engine_of(self._function, group)
        if self._own is None:
            self._own = Communicator(group, timeout=self.timeout)
        return self._own.engine
