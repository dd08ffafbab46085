"""The part of torch's key-value store that belongs to one transport of a process group."""

from __future__ import annotations

import os
import time
import weakref

import torch.distributed as dist
from torch.distributed import distributed_c10d as c10d

from mpisign.errors import CollectiveTimeout


class TorchStore:
    """Keys of this transport alone: a ``Store`` for ``Mailbox``."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        self._group = group
        count = _MADE[group] = _MADE.get(group, 0) + 1
        self.store = dist.PrefixStore(f"mpisign/{count}", c10d._get_process_group_store(group))
        #: Rank 0's process serves the store, unless torchrun's agent does.
        agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        self._served_here = dist.get_rank() == 0 and not agent

    def put(self, key: str, value: bytes) -> None:
        self.store.set(key, value)  # type: ignore[arg-type]  # bytes are taken as they are

    def get(self, key: str) -> bytes | None:
        return bytes(self.store.get(key)) if self.store.check([key]) else None

    def meet(self, rank: int, size: int, seconds: float) -> None:
        """Returns once all ranks are here; CollectiveTimeout, naming those that are not."""
        self.put(f"here.{rank}", b"1")
        missing = [r for r in range(size) if r != rank]
        until, pause = time.monotonic() + seconds, 1e-3
        while missing := [r for r in missing if not self.store.check([f"here.{r}"])]:
            if time.monotonic() > until:
                self.store.delete_key(f"here.{rank}")
                _MADE[self._group] -= 1  # the next try is this one again
                raise CollectiveTimeout(
                    f"Communicator: {_ranks(missing)} did not come in {seconds:.1f} s: all ranks "
                    "of a process group must make a Communicator of it, or call their first "
                    "collective on it",
                    missing,
                )
            time.sleep(pause)
            pause = min(2 * pause, 0.05)

    def part(self, rank: int, size: int, seconds: float = 3.0) -> None:
        """Says that this rank ends, and has the process that serves the store end last.

        Without it torch prints a trace on every rank that writes to a store that has gone. A rank
        that does not end within ``seconds`` is not waited for.
        """
        try:
            self.put(f"gone.{rank}", b"1")
            until = time.monotonic() + seconds
            while self._served_here and time.monotonic() < until:
                if self.store.check([f"gone.{r}" for r in range(size)]):
                    break
                time.sleep(0.01)
        except RuntimeError:
            pass  # it has gone already


def _ranks(ranks: list[int]) -> str:
    return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))}"


#: How many transports a group has: its ranks make them in the same order.
_MADE: weakref.WeakKeyDictionary[dist.ProcessGroup, int] = weakref.WeakKeyDictionary()
