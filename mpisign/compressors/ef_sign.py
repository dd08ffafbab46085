"""EF-signSGD: scaled signs, and what they leave out sent later."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from mpisign import planes
from mpisign.compressors.base import Compressor, PackContext, State, blocks, get_or_init

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class EFSign(Compressor):
    """q = lr g + e; D = mean|q| sign(q) for each block; e = q - D; the ranks' mean of D moves x.

    ``block``: coordinates that share a scale, a multiple of 256; None: each tensor has one.
    ``state["residual"]``: e, float32, the gradient's shape, never leaves the rank. It is in units
    of lr g, so that it stays right when the learning rate changes. The optimizer is handed
    mean(D) / lr, which SGD multiplies by lr again (one rounding each way). Under lr = 0 nothing is
    sent of a gradient and its residual stays. Where a front end knows no learning rate, lr = 1
    here: e is in units of g then, and a smaller lr shrinks what is still owed with it.

    What is not finite in float32 keeps its residual, and counts 0 in the mean under nan="abstain".
    A rank without a gradient sends of its residual. When ranks come or go the others keep theirs;
    what a rank that leaves still owed is lost.

    Source: Karimireddy et al. 2019, Error feedback fixes SignSGD and other gradient compression
    schemes, Algorithm 1; over ranks as Zheng et al. 2019, blockwise momentum SGD with error
    feedback, upwards.
    """

    block: int | None = None

    aggregate: ClassVar[str] = "gathered_mean"
    scaled: ClassVar[bool] = True
    unit: ClassVar[str] = "gradient"

    def __post_init__(self) -> None:
        super().__post_init__()
        blocks(self, self.block)

    def pack(
        self,
        grads: Sequence[torch.Tensor],
        states: Sequence[State],
        out: Any,
        offsets: Sequence[int],
        context: PackContext,
    ) -> int:
        rates, scales = context.rates, context.scales
        if scales is None:
            raise ValueError("EFSign.pack: scales must be given: signs are not all it sends")
        at, nans = 0, 0
        for i, (g, state, start) in enumerate(zip(grads, states, offsets, strict=True)):
            rate = 1.0 if rates is None else rates[i]
            part = out[..., start : start + planes.plane_bytes(g.numel())]
            own = scales[at : at + self.scales_of(g.numel())]
            at += len(own)
            if rate == 0:  # what x cannot move by must not leave the residual
                part[...] = 0
                own[...] = 0
                continue
            *_, bad = planes.pack_error_feedback(
                g,
                get_or_init(state, "residual", g),
                rate=rate,
                block=self.block,
                zeros=self.zeros,
                nan=self.nan,
                **context.keys,
                offset=8 * start,
                out=part,
                scales=own,
            )
            nans += int(bad)
        return nans

    def decompress(self, mean: torch.Tensor, state: State, rate: float) -> torch.Tensor:
        return mean if rate in (0.0, 1.0) else mean.div_(rate)
