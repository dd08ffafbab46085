"""Momenta, or gradients, of all ranks to their means: the exchange below the optimizers."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import torch

from mpisign.compressors.base import Compressor, Scaled, State, get_or_init
from mpisign.compressors.checks import check_block
from mpisign.compressors.uncompressed import BF16Mean
from mpisign.engine.engine import Engine
from mpisign.engine.header import Header
from mpisign.exchange.broadcast_state import broadcast_tensors
from mpisign.exchange.buckets import GradientBucket
from mpisign.exchange.consistency import digest_of
from mpisign.exchange.gradient_exchange import GradientExchange
from mpisign.exchange.optimizer_options import options_of
from mpisign.exchange.parameter_slot import ParameterSlot
from mpisign.exchange.skip import Rule
from mpisign.transports.base import Steps
from mpisign.transports.tagged import TaggedTransport

#: The option of a parameter group that keeps momenta at zero, as DeepSpeed calls it.
MASK = "exp_avg_mask"

#: From a slot's state, what the rank sends for its parameter.
Missing = Callable[[State], torch.Tensor]


@dataclass(frozen=True)
class MomentumMean(Scaled):
    """Sends what it is given as scaled signs, with error feedback on both sides.

    State: ``residual``, float32, the rank's own; owners' residuals as ``OneBit``. ``missing``: what
    a rank sends for a parameter whose gradient only other ranks have.
    """

    block: int | None = 4096
    missing: Missing | None = field(default=None, repr=False, compare=False)

    aggregate: ClassVar[str] = "compressed_mean"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_block(self)

    def compress(self, grad: torch.Tensor, state: State) -> torch.Tensor:
        return grad

    def compress_missing(self, parameter: torch.Tensor, state: State) -> torch.Tensor:
        assert self.missing is not None
        return self.missing(state)

    def initial_state(self, parameter: torch.Tensor) -> State:
        state: State = {}
        get_or_init(state, "residual", parameter)
        return state


@dataclass(frozen=True)
class _ShortMean(BF16Mean):
    """``BF16Mean`` of momenta, which go on where a rank has no gradient."""

    missing: Missing | None = field(default=None, repr=False, compare=False)

    def compress_missing(self, parameter: torch.Tensor, state: State) -> torch.Tensor:
        assert self.missing is not None
        return self.missing(state)


class MomentumExchange(GradientExchange):
    """The exchange of one optimizer: plain fp32 means, or compressed ones, step by step.

    ``averaging``: of the step to come. What is not finite on one rank raises NaNError on all,
    before any state changes. The options of the optimizer's groups are compared in every step; a
    mask is compared by its digest.
    """

    def __init__(
        self,
        function: str,
        engine: Engine,
        slots: Sequence[ParameterSlot],
        compressor: MomentumMean,
        optimizer: torch.optim.Optimizer,
        *,
        skip: str | Rule | None,
        seed: int,
        bucket_size: int | None,
    ) -> None:
        self.averaging = True
        super().__init__(
            function,
            lambda: engine,
            slots,
            compressor,
            skip=skip,
            seed=seed,
            bucket_size=bucket_size,
            optimizer=optimizer,
            state=True,
        )
        for bucket in self.buckets:
            if bucket.compressor.aggregate == "halves":
                bucket.compressor = _ShortMean(nan="raise", missing=compressor.missing)
        self._masks: dict[int, tuple[torch.Tensor, int, str]] = {}
        self._not_finite = 0

    def compare_state(self, compare: bool) -> None:
        """Whether the optimizer's state must be equal on all ranks where parameters must be."""
        self._state_of = self.optimizer if compare else None

    @property
    def warming(self) -> bool:
        return self.averaging

    def flush(self, reason: str = "") -> None:
        grads = [s.grad.detach() for s in self.slots if s.grad is not None and not s.grad.is_sparse]
        self._not_finite = sum(map(_not_finite, grads))
        super().flush(reason)

    def _header(
        self, engine: Engine, operation: str, bucket: GradientBucket, fresh: bool
    ) -> Header:
        # In the header of each bucket: then no bucket of a step that fails changes a residual.
        header = super()._header(engine, operation, bucket, fresh)
        header.nans = self._not_finite
        return header

    def _options(self, compressor: Compressor, fresh: bool) -> int:
        assert self.optimizer is not None
        groups = [
            {k: self._text(v) if k == MASK else v for k, v in group.items()}
            for group in self.optimizer.param_groups
        ]
        return options_of(compressor, SimpleNamespace(param_groups=groups))  # type: ignore[arg-type]

    def _text(self, mask: torch.Tensor) -> str:
        kept = self._masks.get(id(mask))
        if kept is None or kept[0] is not mask or kept[1] != mask._version:
            array = np.ascontiguousarray(mask.detach().cpu().float().numpy())
            text = f"{tuple(mask.shape)} {hashlib.blake2b(array.tobytes()).hexdigest()}"
            kept = self._masks[id(mask)] = mask, mask._version, text
        return kept[2]

    def share_parameters(self) -> None:
        """Rank 0's parameters become everyone's, where some differ. Collective."""
        engine = self.engine_now()
        engine.progress.submit(self.function, self._share, 0, None, "parameters").wait()

    def _share(self, wire: TaggedTransport) -> Steps[None]:
        """Wire: headers, digests of 32 bytes, and where these differ the parameters."""
        assert self.engine is not None
        yield from self.agree(self.engine, wire)
        own = np.frombuffer(digest_of(self.slots, None), dtype=np.uint8)
        rows = np.empty((wire.size, own.size), dtype=np.uint8)
        yield wire.allgather(own, rows)
        if (rows == rows[0]).all():
            return
        values = [s.parameter.detach() for s in self.slots]
        yield from broadcast_tensors(wire, values)


def _not_finite(x: torch.Tensor) -> int:
    """How many values are NaN or infinite."""
    # One pass where the sum tells; that of finite values may overflow.
    total = x.sum(dtype=torch.float64 if x.dtype == torch.float64 else torch.float32)
    return 0 if bool(total.isfinite()) else int((~x.isfinite()).sum())
