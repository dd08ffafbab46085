"""What the communication hooks of DDP and FSDP have in common: ranks, settings, checkpoints."""

from __future__ import annotations

from typing import Any, ClassVar

import torch.distributed as dist

from mpisign import policies
from mpisign.communicator import Communicator
from mpisign.compressors import Compressor, resolve
from mpisign.engine.engine import Engine
from mpisign.exchange.arguments import check_seed
from mpisign.exchange.trace_steps import trace_steps
from mpisign.functions import engine_of

FUNCTION = "MajorityVoteState"


class HookState:
    """The settings of one communication hook on one rank.

    ``process_group``: None for the default group of ``init_process_group``, or what
    ``mpisign.Communicator`` takes. No rank communicates before the first ``engine()``, which is
    collective. A pickle holds the attributes named in ``pickled`` and ``state_dict()``.
    """

    pickled: ClassVar[tuple[str, ...]] = ("compressor", "algorithm", "seed", "timeout")

    def __init__(
        self,
        process_group: Any,
        compression: str | Compressor,
        algorithm: policies.Algorithm,
        seed: int,
        timeout: float | None,
    ) -> None:
        self.compressor = resolve(FUNCTION, compression)
        policies.code(FUNCTION, "algorithm", algorithm, policies.ALGORITHMS)
        check_seed(FUNCTION, seed)
        self.process_group = process_group
        self.algorithm, self.seed, self.timeout = algorithm, seed, timeout
        self._own: Communicator | None = None  # made where ``timeout`` is given
        trace_steps()

    def engine(self) -> Engine:
        """The engine between the ranks of ``process_group``."""
        group = dist.group.WORLD if self.process_group is None else self.process_group
        if self.timeout is None:
            return engine_of(FUNCTION, group)
        if self._own is None:
            self._own = Communicator(group, timeout=self.timeout)
        return self._own.engine

    def state_dict(self) -> dict[str, Any]:
        """This rank's state, of plain types and tensors."""
        raise NotImplementedError

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continues from ``state_dict()``."""
        raise NotImplementedError

    def _start(self) -> None:
        """Sets the attributes that a pickle does not hold."""
        self.process_group = self._own = None

    def __getstate__(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.pickled} | {"saved": self.state_dict()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        state = dict(state)
        saved = state.pop("saved")
        self.__dict__.update(state)
        self._start()
        trace_steps()
        self.load_state_dict(saved)
