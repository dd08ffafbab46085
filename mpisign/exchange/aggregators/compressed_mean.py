"""The compressed mean of a bucket, with error feedback on both sides."""

from __future__ import annotations

from operator import is_
from typing import Any, ClassVar

import numpy as np
import torch

from mpisign.collectives import compressed_mean
from mpisign.collectives.compressed_mean_state import CompressedMeanState
from mpisign.compressors.base import get_or_init
from mpisign.engine.agreement import Agreed
from mpisign.engine.engine import Engine
from mpisign.exchange.aggregators.base import Aggregator
from mpisign.exchange.parameter_slot import ParameterSlot
from mpisign.stats import stage
from mpisign.transports.base import Steps
from mpisign.transports.tagged import TaggedTransport


class CompressedMeanAggregator(Aggregator):
    """``mpisign.compressed_mean`` of what the compressor makes of a bucket's members, end to end.

    State of each member: "residual", float32, the rank's own. Of the first member, for the whole
    bucket: "owner_residual", float32, of this rank's shard, and "owner_of", what it belongs to:
    [rank, size, coordinates, block]. Where that differs (ranks came or went, the bucket was cut
    otherwise) the owner's residual starts from zero. A member without a gradient on any rank keeps
    its part of all residuals.
    """

    operation: ClassVar[str] = "bucket_compressed_mean"

    def __init__(self, *of: Any) -> None:
        super().__init__(*of)
        #: The residuals after the last step, and the views of them in the members' states.
        self._kept: tuple[CompressedMeanState, list[torch.Tensor]] | None = None

    def steps(
        self, engine: Engine, wire: TaggedTransport, agreed: Agreed, number: int, anywhere: Any
    ) -> Steps[None]:
        cuts = np.cumsum([0, *self.bucket.lengths]).tolist()
        parts = [slice(a, b) for a, b in zip(cuts, cuts[1:], strict=False)]
        with stage("pack"):
            state, flat = self._state(parts), self._flat(parts, anywhere)
        before = state.residual, state.owner_residual
        c, context = self.compressor, self.context
        how = {"zeros": c.zeros, "nan": c.nan, "seed": context.seed, "step": context.step}
        yield from compressed_mean.exchange(engine, wire, state, how, flat, flat, number, agreed)
        with stage("unpack"):
            for part, there in zip(parts, anywhere, strict=True):
                if not there:
                    _restore(state, before, part)
            self._keep(state, parts)
            for m, part, there in zip(self.slots, parts, anywhere, strict=True):
                if there:
                    mean = torch.from_numpy(flat[part]).view(m.parameter.shape)
                    mean = mean.to(m.parameter.device)
                    m.target().copy_(c.decompress(mean, m.state, m.rate))

    def _flat(self, parts: list[slice], anywhere: Any) -> Any:
        """What the mean is taken of, float32, zeros for members without a gradient anywhere."""
        flat = np.empty(sum(self.bucket.lengths), dtype=np.float32)
        for m, part, there in zip(self.slots, parts, anywhere, strict=True):
            flat[part] = self._sent(m).detach().cpu().float().numpy().reshape(-1) if there else 0
        return flat

    def _sent(self, m: ParameterSlot) -> torch.Tensor:
        if m.grad is None:
            return self.compressor.compress_missing(m.parameter.detach(), m.state)
        return self.compressor.compress(m.grad.detach(), m.state)

    def _state(self, parts: list[slice]) -> CompressedMeanState:
        """The bucket's residuals from its members' states."""
        first = self.slots[0].state
        kept = [*(m.state.get("residual") for m in self.slots), first.get("owner_residual")]
        if self._kept is not None and all(map(is_, kept, self._kept[1])):
            return self._kept[0]  # nobody has put others in their place
        length = sum(self.bucket.lengths)
        state = CompressedMeanState(length, self.size, self.rank, self.compressor.block)
        for m, part in zip(self.slots, parts, strict=True):
            if "residual" in m.state:
                e = get_or_init(m.state, "residual", m.parameter)
                state.residual[part] = e.cpu().numpy().reshape(-1)
        if first.get("owner_of") == self._owner_of(state):
            owned = first["owner_residual"].detach().cpu().float().numpy()
            if owned.shape == state.owner_residual.shape:
                state.owner_residual[...] = owned
        return state

    def _keep(self, state: CompressedMeanState, parts: list[slice]) -> None:
        """The other way: members' residuals are views of the bucket's from then on."""
        state.release()
        for m, part in zip(self.slots, parts, strict=True):
            e = torch.from_numpy(state.residual[part]).view(m.parameter.shape)
            m.state["residual"] = e.to(m.parameter.device)
        first = self.slots[0].state
        first["owner_residual"] = torch.from_numpy(state.owner_residual)
        first["owner_of"] = self._owner_of(state)
        on_host = all(m.parameter.device.type == "cpu" for m in self.slots)
        kept = [*(m.state["residual"] for m in self.slots), first["owner_residual"]]
        self._kept = (state, kept) if on_host else None

    def _owner_of(self, state: CompressedMeanState) -> list[int]:
        return [state.rank, state.size, state.length, state.block or 0]


def _restore(state: CompressedMeanState, before: tuple[Any, Any], part: slice) -> None:
    """Both residuals of the coordinates ``part`` as they were: nothing of them was applied."""
    residual, owners = before
    state.residual[part] = residual[part]
    first = state.shard.a
    a, b = (min(max(x - first, 0), owners.size) for x in (part.start, part.stop))
    state.owner_residual[a:b] = owners[a:b]
