"""1-bit momentum: scaled signs both ways, and an error feedback on both sides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

from mpisign.compressors.base import Compressor, PackContext, State, blocks, get_or_init
from mpisign.compressors.signum import momentum_fits

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class OneBit(Compressor):
    """m_i = b m + (1 - b) g_i; m = the compressed mean of all m_i, which is the next m everywhere.

    Each rank sends C(m_i + e), C(q) = mean|q| sign(q) block by block, and keeps what that leaves
    out; owners of shards average, add their own residual and compress again (see
    ``mpisign.compressed_mean``). The optimizer is handed m.

    ``block``: coordinates of a bucket that share a scale, a multiple of 256; None: all of them.
    State: ``momentum``, float32, equal on all ranks; ``residual``, float32, the rank's own; both of
    the gradient's shape. Owners' residuals belong to a bucket and its number of ranks: when ranks
    come or go they start from zero, and what is lost is what the last mean left out. Residuals are
    in units of the gradient, whatever the learning rate. A rank without a gradient counts as zeros.

    Source: Tang et al. 2021, 1-bit Adam, Algorithm 1, from T_w on (its v stays fixed there; here it
    is 1: momentum SGD); Seide et al. 2014, 1-bit SGD.
    """

    momentum: float = 0.9
    block: int | None = 4096

    aggregate: ClassVar[str] = "compressed_mean"
    scaled: ClassVar[bool] = True
    shared: ClassVar[tuple[str, ...]] = ("momentum",)
    unit: ClassVar[str] = "gradient"

    def __post_init__(self) -> None:
        super().__post_init__()
        momentum_fits(self, ("momentum",), "float32")
        blocks(self, self.block)

    def pack(
        self,
        grads: Sequence[torch.Tensor],
        states: Sequence[State],
        out: Any,
        offsets: Sequence[int],
        context: PackContext,
    ) -> NoReturn:
        raise NotImplementedError("OneBit.pack: a compressed mean packs twice: see compress")

    def compress(self, grad: torch.Tensor, state: State) -> torch.Tensor:
        """m_i, float32: what the compressed mean is taken of. ``state`` stays as it is."""
        new = grad.detach().float() * (1.0 - self.momentum)
        return new.add_(get_or_init(state, "momentum", grad) * self.momentum)

    def compress_missing(self, parameter: torch.Tensor, state: State) -> torch.Tensor:
        return get_or_init(state, "momentum", parameter) * self.momentum

    def decompress(self, mean: torch.Tensor, state: State, rate: float) -> torch.Tensor:
        get_or_init(state, "momentum", mean).copy_(mean)
        return mean
