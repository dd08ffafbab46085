"""DETOX in full precision: what most of a group hold, and a robust rule over the groups."""

from __future__ import annotations

from typing import Any, ClassVar

from mpisign.collectives.detox_rows import detox_rows
from mpisign.engine.agreement import Agreed
from mpisign.exchange.aggregators.base import restart_momenta
from mpisign.exchange.aggregators.robust import RobustAggregator
from mpisign.transports.base import Steps
from mpisign.transports.tagged import TaggedTransport


class DetoxAggregator(RobustAggregator):
    """``Robust.rule`` over one vector of each group, which most of its members hold bit for bit.

    Members must be given the same batches, and compute the same bits of them (or about the same,
    under ``Robust.tolerance``): the same threads and kernels. Where groups were drawn anew, momenta
    start again from zero on all ranks: those of other groups would never become the same bits.
    State of each slot, beside ``RobustAggregator``'s: "momentum_of", a digest of the groups. Wire:
    as ``detox_rows``.
    """

    operation: ClassVar[str] = "bucket_detox"

    def _rows(self) -> int:
        assert self.groups is not None
        return len(self.groups)

    def _flat(self, anywhere: Any) -> Any:
        if self._robust.momentum:
            assert self.groups is not None
            restart_momenta(self.slots, self.groups)
        return super()._flat(anywhere)

    def _reduce(
        self, agreed: Agreed, wire: TaggedTransport, flat: Any, *rule_rng_out: Any
    ) -> Steps[None]:
        assert self.groups is not None
        how: Any = {"function": agreed.function, "nan": agreed.header.nan}
        how |= {"turn": self.context.step, "tolerance": self._robust.tolerance}
        yield from detox_rows(wire, flat, self.groups, *rule_rng_out, **how)
