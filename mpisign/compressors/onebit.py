"""1-bit momentum: scaled signs in both directions, with error feedback on both sides."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

from mpisign.compressors.base import Scaled, State, get_or_init
from mpisign.compressors.checks import check_block, check_fraction

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class OneBit(Scaled):
    """m_i = b m + (1 - b) g_i; the compressed mean of all m_i is the next m, and the update.

    Each rank sends C(m_i + e), C(q) = mean|q| sign(q) per block, and keeps the error. Owners of
    shards average, add a residual of their own and compress again (``mpisign.compressed_mean``).

    State, both float32 of the gradient's shape: ``momentum``, equal on all ranks; ``residual``, the
    rank's own, in units of g whatever the learning rate. Owners' residuals belong to a bucket and a
    number of ranks; they restart at zero when ranks join or leave. A rank without a gradient counts
    as zeros. Source: Tang et al. 2021, 1-bit Adam, Algorithm 1, from T_w on (its v stays fixed
    there; here it is 1: momentum SGD); Seide et al. 2014, 1-bit SGD.

    Args:
        momentum: b, in [0, 1).
        block: Coordinates of a bucket per scale, a multiple of 256. None: one scale per bucket.
        zeros, nan, ties: As ``Compressor``.

    Example:
        >>> import torch
        >>> state = {"momentum": torch.tensor([2.0])}
        >>> OneBit(momentum=0.5).compress(torch.tensor([4.0]), state)
        tensor([3.])
    """

    momentum: float = 0.9
    block: int | None = 4096

    aggregate: ClassVar[str] = "compressed_mean"
    shared: ClassVar[tuple[str, ...]] = ("momentum",)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fraction(self, "momentum")
        check_block(self)

    def pack(self, *_: Any) -> NoReturn:
        raise NotImplementedError("OneBit.pack: a compressed mean packs twice: see compress")

    def compress(self, grad: torch.Tensor, state: State) -> torch.Tensor:
        new = grad.detach().float() * (1.0 - self.momentum)
        return new.add_(get_or_init(state, "momentum", grad) * self.momentum)

    def compress_missing(self, parameter: torch.Tensor, state: State) -> torch.Tensor:
        return get_or_init(state, "momentum", parameter) * self.momentum

    def initial_state(self, parameter: torch.Tensor) -> State:
        state: State = {}
        get_or_init(state, "momentum", parameter)
        get_or_init(state, "residual", parameter)
        return state

    def warm_up(self, grad: torch.Tensor | None, mean: torch.Tensor, state: State) -> None:
        # As 1-bit Adam's first stage: the momentum is that of the mean, and equal on all ranks.
        m = get_or_init(state, "momentum", mean)
        new = m.mul(self.momentum).add_(mean.to(m.device), alpha=1.0 - self.momentum)
        m.copy_(new.where(new.isfinite(), m))

    def owed(self, state: State, rate: float) -> torch.Tensor | None:
        e: torch.Tensor | None = state.get("residual")
        return None if e is None else e.float()

    def decompress(self, mean: torch.Tensor, state: State, rate: float) -> torch.Tensor:
        get_or_init(state, "momentum", mean).copy_(mean)
        return mean
