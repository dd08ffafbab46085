"""EF-signSGD: scaled signs, whose error is added to the next gradient."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from mpisign import planes
from mpisign.compressors.base import Scaled, State, get_or_init
from mpisign.compressors.checks import check_block

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class EFSign(Scaled):
    """q = lr g + e; D = mean|q| sign(q) per block; e = q - D; the ranks' mean of D moves x.

    State: ``residual``, e, float32, the gradient's shape, the rank's own. It is in units of lr g,
    so it stays right when the learning rate changes. The optimizer receives mean(D) / lr (one
    rounding each for / lr and * lr). Under lr = 0 a rank sends zeros and keeps its residual. A
    front end that knows no learning rate uses lr = 1: e is in units of g then, and a smaller lr
    shrinks what e still owes.

    Coordinates not finite in float32 keep their residual and count 0 in the mean under
    nan="abstain". A rank without a gradient sends from its residual. When ranks join or leave, the
    others keep theirs; the residual of a rank that leaves is lost. Source: Karimireddy et al. 2019,
    Error feedback fixes SignSGD and other gradient compression schemes, Algorithm 1; over ranks as
    Zheng et al. 2019, blockwise momentum SGD with error feedback, upwards.

    Args:
        block: Coordinates per scale, a multiple of 256. None: one scale per tensor.
        zeros, nan, ties: As ``Compressor``.

    Example:
        >>> import numpy as np, torch
        >>> from mpisign.compressors import PackContext
        >>> scales, state = np.zeros(1, np.float32), {}
        >>> context = PackContext(0, 0, 0, scales=scales)
        >>> g = torch.tensor([1.0, -3.0])
        >>> _ = EFSign().pack([g], [state], np.zeros(1, np.uint8), [0], context)
        >>> scales.tolist(), state["residual"].tolist()
        ([2.0], [-1.0, -1.0])
    """

    block: int | None = None

    remembers: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_block(self)

    def _pack_one(
        self, g: torch.Tensor, state: State, rate: float, out: Any, scales: Any, keys: Any
    ) -> Any:
        if rate == 0:  # what x cannot move by must not leave the residual
            out[...] = 0
            scales[...] = 0
            return 0
        residual = get_or_init(state, "residual", g)
        keys = {**keys, "zeros": self.zeros, "nan": self.nan, "out": out, "scales": scales}
        *_, bad = planes.pack_error_feedback(g, residual, rate=rate, block=self.block, **keys)
        return bad

    def initial_state(self, parameter: torch.Tensor) -> State:
        state: State = {}
        get_or_init(state, "residual", parameter)
        return state

    def owed(self, state: State, rate: float) -> torch.Tensor | None:
        e: torch.Tensor | None = state.get("residual")
        return None if e is None or rate == 0 else e.float() / rate

    def decompress(self, mean: torch.Tensor, state: State, rate: float) -> torch.Tensor:
        return mean if rate in (0.0, 1.0) else mean.div_(rate)
