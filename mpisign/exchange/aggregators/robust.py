"""A robust rule over all ranks' gradients, in full precision."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch

from mpisign.collectives.robust_aggregate import robust_rows
from mpisign.compressors.base import Compressor
from mpisign.compressors.robust import Robust
from mpisign.engine.agreement import Agreed
from mpisign.engine.engine import Engine
from mpisign.engine.header import Header
from mpisign.exchange.aggregators.base import Aggregator
from mpisign.stats import stage
from mpisign.transports.base import Steps
from mpisign.transports.tagged import TaggedTransport


class RobustAggregator(Aggregator):
    """``Robust.rule`` on what the compressor makes of a bucket's members, as one float32 vector.

    Wire and arithmetic: as ``mpisign.robust_aggregate``, in host memory. State of each member:
    "momentum", float32, the rank's own; "center", float32, the last result, where the rule starts
    from it: the same on all ranks. What is not finite enters neither.
    """

    operation: ClassVar[str] = "bucket_robust"

    def begin(self, header: Header, message: int) -> None:
        super().begin(header, message)
        self._robust.resolved.check(self._rows())

    def steps(
        self, engine: Engine, wire: TaggedTransport, agreed: Agreed, number: int, anywhere: Any
    ) -> Steps[None]:
        with stage("pack"):
            flat = self._flat(anywhere)
            rule = self._robust.resolved
            if self._robust.goes_on:
                rule = rule.after(self._center(anywhere))
        result = np.empty_like(flat)
        rng = np.random.default_rng([self.context.seed, self.context.step])
        yield from self._reduce(agreed, wire, flat, rule, rng, result)
        engine.replicas.add(number, result)
        with stage("unpack"):
            self._unpack(torch.from_numpy(result), anywhere)

    @property
    def _robust(self) -> Robust:
        return robust_in(self.compressor)

    def _rows(self) -> int:
        return self.size

    def _reduce(
        self, agreed: Agreed, wire: TaggedTransport, flat: Any, *rule_rng_out: Any
    ) -> Steps[None]:
        """The collective after its headers: flat, float32 (d,), by a rule to ``out``."""
        how: Any = {"function": agreed.function, "nan": agreed.header.nan}
        yield from robust_rows(wire, flat, *rule_rng_out, **how)

    def _flat(self, anywhere: Any) -> Any:
        """What the rule is given of this rank, float32; zeros for members without a gradient."""
        c, flat = self.compressor, np.zeros(sum(self.bucket.lengths), dtype=np.float32)
        for m, part, there in zip(self.slots, self._parts(flat), anywhere, strict=True):
            if not there:
                continue
            if m.grad is None:
                x = c.compress_missing(m.parameter.detach(), m.state)
            else:
                x = c.compress(m.grad.detach(), m.state)
            part[...] = x.detach().cpu().float().reshape(-1).numpy()
        return flat

    def _center(self, anywhere: Any) -> Any:
        flat = np.zeros(sum(self.bucket.lengths), dtype=np.float32)
        for m, part, there in zip(self.slots, self._parts(flat), anywhere, strict=True):
            if there and "center" in m.state:
                part[...] = m.state["center"].detach().cpu().float().reshape(-1).numpy()
        return flat

    def _parts(self, flat: Any) -> list[Any]:
        return np.split(flat, np.cumsum(self.bucket.lengths)[:-1])

    def _unpack(self, result: torch.Tensor, anywhere: Any) -> None:
        parts = result.split(list(self.bucket.lengths))
        for m, part, there in zip(self.slots, parts, anywhere, strict=True):
            if there:
                part = part.view(m.parameter.shape)
                if self._robust.goes_on:
                    m.state["center"] = part.clone().to(m.parameter.device)
                m.target().copy_(part)


def robust_in(compressor: Compressor) -> Robust:
    """The ``Robust`` that a compressor is, or has inside it."""
    inner: Any = getattr(compressor, "inner", compressor)
    if not isinstance(inner, Robust):
        raise TypeError(f"the round of {compressor!r} needs Compression.robust")
    return inner
