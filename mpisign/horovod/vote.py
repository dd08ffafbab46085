"""What both ways of voting under ``hvd.DistributedOptimizer`` have in common."""

from __future__ import annotations

from typing import Any, NoReturn

import horovod.torch as hvd
import torch

from mpisign import planes, policies
from mpisign.backend import arrays
from mpisign.compressors.base import Compressor, PackContext, State
from mpisign.horovod.members import Members

_FUNCTION = "mpisign.horovod.Compression"


class Like:
    """What a vote must look like to take a gradient's place: its shape, dtype, strides, device."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self._meta = torch.empty_like(tensor, device="meta")
        self._device = tensor.device
        self.shape = tuple(tensor.shape)
        self.length = tensor.numel()

    def unpacked(self, ballots: torch.Tensor) -> torch.Tensor:
        """+1, -1, 0 from planes (k, B)."""
        vote = torch.empty(self.shape, dtype=self._meta.dtype)
        planes.unpack(ballots if len(ballots) == 2 else ballots[0], out=vote)
        if self._meta.is_contiguous():
            return vote.to(self._device)
        return torch.empty_like(self._meta, device=self._device).copy_(vote)


class VoteCompression:
    """Horovod's compression interface, ``compress`` and ``decompress``, for one compressor.

    ``decompress`` returns the majority's vote, +1, -1 or 0, in the gradient's dtype and shape. Size
    and rank are read on every call, since elastic training changes them. ``process_set`` must be
    the optimizer's. ``seed`` keys the random bits for zeros and ties and is the same on all ranks.
    """

    def __init__(
        self,
        compressor: Compressor,
        *,
        seed: int = 0,
        process_set: hvd.ProcessSet = hvd.global_process_set,
    ) -> None:
        if not isinstance(seed, int) or not 0 <= seed < 1 << 64:
            raise ValueError(f"{_FUNCTION}: seed must be in [0, 2**64), got {seed!r}")
        self.compressor = compressor
        self.seed = seed
        self.process_set = process_set
        self.members = Members()
        self.step = 0

    def compress(self, tensor: torch.Tensor) -> tuple[torch.Tensor, Any]:
        """What Horovod is to sum for this gradient, and the context for ``decompress``."""
        raise NotImplementedError

    def decompress(self, tensor: torch.Tensor, ctx: Any) -> torch.Tensor:
        """The vote behind what Horovod summed."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, State]:
        """This rank's state: ``{parameter name: {"momentum": tensor}, "mpisign": {"step": n}}``.

        Every rank has its own and saves it itself. Tensors are not copied.
        """
        return self.members.state_dict(self.step)

    def load_state_dict(self, states: dict[str, State]) -> None:
        """Continues from ``state_dict``, also before the first step; ValueError on misfits."""
        self.step = self.members.load_state_dict(states)

    @property
    def _planes_up(self) -> int:
        return policies.planes_up(self.compressor.zeros, self.compressor.nan)

    def _pack(
        self, tensor: torch.Tensor, state: State, out: torch.Tensor, start: int, step: int
    ) -> int:
        """This rank's ballot into planes (k, B) on the CPU, from byte ``start``; the NaNs."""
        c = self.compressor
        context = PackContext(self.seed, step, self.process_set.rank())
        out = out if len(out) == 2 else out[0]
        if c.aggregate == "gathered_vote":  # which keeps no state on the tensor's device
            tensor = tensor.detach().cpu()
        if tensor.device.type == "cpu":
            return c.pack([tensor], [state], out, [start], context)
        voted = c.pre_sign(c.compress(tensor, state), context, 8 * start).detach().cpu()
        out = out[..., start : start + planes.plane_bytes(tensor.numel())]
        _, _, nans = planes.pack_census(
            voted, zeros=c.zeros, nan=c.nan, offset=8 * start, out=out, **context.keys
        )
        return int(nans)

    def _ranks(self) -> list[int]:
        """Global ranks of the process set."""
        return self.process_set.ranks or list(range(self._size()))

    def _size(self) -> int:
        size = self.process_set.size()
        if size is None:
            raise ValueError(f"{_FUNCTION}: process_set is not initialized: {self.process_set}")
        return size

    def _like(self, tensor: torch.Tensor) -> Like:
        """TypeError for what is no gradient: on every rank alike, before anything is sent."""
        name = str(tensor.dtype).removeprefix("torch.")
        if name not in arrays.FLOATS or tensor.layout is not torch.strided:
            raise TypeError(
                f"{_FUNCTION}: gradients must be dense and of dtype {', '.join(arrays.FLOATS)}, "
                f"got {name} of layout {tensor.layout}"
            )
        if tensor.requires_grad:
            raise TypeError(
                f"{_FUNCTION}: expected a gradient, got a parameter: op=hvd.Adasum compresses "
                "differences of parameters, which are not voted on. Use op=hvd.Average or hvd.Sum "
                "with this compression, or hvd.Compression.fp16 with Adasum"
            )
        return Like(tensor)

    @staticmethod
    def _refuse_sparse() -> NoReturn:
        raise TypeError(
            f"{_FUNCTION}: a sparse gradient reached decompress, summed but not voted on. Pass "
            "sparse_as_dense=True to hvd.DistributedOptimizer (without named_parameters here), "
            "or build the layer with sparse=False"
        )
