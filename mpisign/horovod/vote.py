"""What both compressions for ``hvd.DistributedOptimizer`` have in common."""

from __future__ import annotations

from typing import Any, ClassVar, NoReturn

import horovod.torch as hvd
import torch

from mpisign import forks
from mpisign.compressors.base import Compressor, State
from mpisign.exchange import checkpoint
from mpisign.exchange.after_backward import is_running
from mpisign.exchange.arguments import check_seed
from mpisign.exchange.optimizer_steps import are_zeros
from mpisign.exchange.parameter_slot import ParameterSlot
from mpisign.exchange.pending_step import PendingStep
from mpisign.horovod.slots import Slots, WeakSlot
from mpisign.stopping import StopChannel

_FUNCTION = "mpisign.horovod.Compression"
#: Horovod writes what ``decompress`` returns into the parameter's gradient.
WRITES = 1


class VoteCompression:
    """Horovod's compression interface, ``compress`` and ``decompress``, for one Compressor.

    Size and rank are read on every call, since elastic training changes them.

    Args:
        compressor: what this rank votes with.
        seed: of the random bits for zeros and ties, equal on all ranks.
        process_set: the optimizer's.
    """

    _slots_of: ClassVar[type[ParameterSlot]] = WeakSlot
    pending: PendingStep

    def __init__(
        self,
        compressor: Compressor,
        *,
        seed: int = 0,
        process_set: hvd.ProcessSet = hvd.global_process_set,
    ) -> None:
        check_seed(_FUNCTION, seed)
        self.compressor = compressor
        self.seed = seed
        self.process_set = process_set
        self.slots = Slots(self._slots_of)
        self.step = self._begun = 0  # and at the beginning of the last exchange
        self.stop = StopChannel()

    def compress(self, tensor: torch.Tensor) -> tuple[torch.Tensor, Any]:
        """Returns what Horovod is to sum for this gradient, and the context for ``decompress``."""
        raise NotImplementedError

    def decompress(self, tensor: torch.Tensor, ctx: Any) -> torch.Tensor:
        """Returns the aggregate for what Horovod summed, in the gradient's dtype and shape."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, State]:
        """Returns ``{parameter name: {"momentum": tensor}, "mpisign": {"step": n}}``.

        The state differs from rank to rank: every rank saves its own. Tensors are not copied.
        """
        is_open = self.pending.open
        step = self._begun if is_open else self.step
        return self.slots.state_dict(step, self._origin(), committed=is_open)

    def load_state_dict(self, states: dict[str, State]) -> None:
        """Continues from ``state_dict``, also before the first step; ValueError on misfits."""
        self.step, origin = self.slots.load_state_dict(states)
        self.pending.forget()
        checkpoint.warn_of_origin(origin, self._origin())

    def _origin(self) -> dict[str, Any]:
        if not hvd.is_initialized():
            return {}
        return checkpoint.origin(
            self.process_set.rank(), self._size(), self.seed, repr(self.compressor)
        )

    def _size(self) -> int:
        forks.check(_FUNCTION, "horovod")
        size = self.process_set.size()
        if size is None:
            raise ValueError(f"{_FUNCTION}: process_set is not initialized: {self.process_set}")
        return size

    @staticmethod
    def _check(tensor: torch.Tensor) -> None:
        """Raises TypeError for what is no gradient, on every rank, before anything is sent."""
        if tensor.requires_grad:
            raise TypeError(
                f"{_FUNCTION}: expected a gradient, got a parameter: op=hvd.Adasum compresses "
                "differences of parameters, which are not voted on. Use op=hvd.Average or hvd.Sum "
                "with this compression, or hvd.Compression.fp16 with Adasum"
            )

    @staticmethod
    def _is_made_up(tensor: torch.Tensor) -> bool:
        """Whether no backward pass computed this gradient: Horovod made zeros where none was."""
        return not is_running() and are_zeros([tensor])

    @staticmethod
    def _refuse_sparse() -> NoReturn:
        raise TypeError(
            f"{_FUNCTION}: a sparse gradient reached decompress, summed but not voted on. Pass "
            "sparse_as_dense=True to hvd.DistributedOptimizer (without named_parameters here), "
            "or build the layer with sparse=False"
        )
