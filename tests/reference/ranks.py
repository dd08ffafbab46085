"""Steps of p ranks with any compressor: every rank's states in one process."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np

from reference import compressors as c
from reference import muon
from reference.compressed_mean import CompressedMean
from reference.planes import pack
from reference.votes import majority, mean_of_signs, votes_of, weighted_sum

#: Both draws of an ``ef_sparsign`` without local steps come from streams of their own.
LOCAL_SEED = 0xD1B54A32D192ED03


class Ranks:
    """The states of ``p`` ranks and what one step makes of their gradients.

    ``name``, ``options``: of a compressor and its fields. ``lengths``: of the tensors of the one
    bucket, each of which starts at a byte of its own; ``muon``'s matrices have ``shapes``.
    """

    def __init__(self, name: str, p: int, lengths: Sequence[int], seed: int = 0, **options: Any):
        self.name, self.p, self.lengths, self.seed = name, p, lengths, seed
        self.options = SimpleNamespace(**{"block": None, **options})
        starts = np.cumsum([0, *(-(-n // 8) for n in lengths)])
        self.offsets = [8 * int(start) for start in starts[:-1]]
        self.states = [[np.zeros(n, np.float32) for n in lengths] for _ in range(p)]
        self.shared = [np.zeros(n, np.float32) for n in lengths]  # equal on all ranks
        if name == "onebit":
            self.mean = CompressedMean(sum(lengths), p, self.options.block)

    def step(
        self, grads: Any, number: int, rates: Sequence[float], there: Sequence[int] | None = None
    ) -> list[Any]:
        """``grads``: [rank][tensor], arrays or None. Returns what each tensor's gradient becomes
        on all ranks, fp32, or None where no rank has one. ``there``: the ranks that take part,
        as if there were no others; default all."""
        self.number = number
        there = range(self.p) if there is None else there
        present = [any(grads[r][i] is not None for r in there) for i in range(len(self.lengths))]
        if self.name == "onebit":
            return self._onebit(grads, present)
        given: list[Any] = []
        for i, rate in enumerate(rates):
            if not present[i]:
                given.append(None)
                continue
            sent = [self._sent(r, i, grads[r][i], rate) for r in there]
            signs, masks, scales = (np.stack(rows) for rows in zip(*sent, strict=True))
            given.append(self._received(i, signs, masks, scales, rate))
        return given

    def _keys(self, i: int) -> dict[str, int]:
        return {"seed": self.seed, "step": self.number, "offset": self.offsets[i]}

    def _sent(self, r: int, i: int, g: Any, rate: float) -> tuple[Any, Any, Any]:
        """(sign plane, mask plane, scales) of one rank's tensor. A missing gradient is zeros, but
        that a momentum votes by itself where all of it votes."""
        o, n, state, keys = self.options, self.lengths[i], self.states[r], self._keys(i)
        keys["rank"], one = r, np.ones(1, np.float32)
        x = np.zeros(n, np.float32) if g is None else c.widened(g)
        density = getattr(o, "density", None)
        match self.name:
            case "signum" | "lion" | "lion_avg" if g is None and density is None:
                x = state[i]
            case "signum":
                x, state[i] = c.signum(x, state[i], o.momentum)
            case "lion" | "lion_avg":
                x, state[i] = c.lion(x, state[i], o.beta1, o.beta2)
            case "muon" | "muon_avg" if g is None:
                x = muon.polar(state[i], o.shapes[i], o)
            case "muon" | "muon_avg":
                x, state[i] = muon.muon(x, state[i], o.shapes[i], o)
            case "noisy_sign" if g is not None:
                x = c.noisy_sign(x, o.scale, o.noise, **keys)
            case "stochastic_sign" if g is not None:
                x = c.stochastic_sign(x, o.bound, **keys)
            case "ef_sign" if rate == 0:
                nothing = np.zeros(-(-n // 8), np.uint8)
                return nothing, nothing, np.zeros(-(-n // (o.block or n)), np.float32)
            case "ef_sign":
                *sent, state[i], _, _ = c.error_feedback(
                    x, state[i], rate, o.block, o.zeros, **keys
                )
                return tuple(sent)
            case "terngrad" | "qsgd":
                sign, mask, scale = getattr(c, self.name)(x, **keys)
                return sign, mask, one * scale
            case "sparsign":
                return *c.sparsign(x, o.budget, **keys), one
            case "ef_sparsign":
                if o.local_steps == 1:
                    x = c.local_steps(
                        [x], o.budget_local, **keys | {"seed": self.seed ^ LOCAL_SEED}
                    )
                return *c.sparsign(x, o.budget_global, **keys), one
            case name if g is not None and name != "sign":
                raise ValueError(f"Ranks._sent has no case for {name!r}")
        if density is not None:
            return *c.largest(x, density, **keys), one
        return *pack(x, o.zeros, **keys), one

    def _received(self, i: int, signs: Any, masks: Any, scales: Any, rate: float) -> Any:
        """The aggregate of all ranks' planes (p, B) and scales (p, blocks)."""
        o, n = self.options, self.lengths[i]
        if self.name in ("lion_avg", "muon_avg"):
            return mean_of_signs(votes_of(signs, masks, n))
        if self.name not in ("ef_sign", "ef_sparsign", "terngrad", "qsgd"):
            sign, mask = majority(signs, masks, o.ties, length=n, **self._keys(i))
            vote = votes_of(sign[None], mask[None], n)[0].astype(np.float32)
            if self.name == "muon" and o.polar:
                rows = vote.reshape(o.shapes[i][0], -1)
                vote = muon.exact_polar(rows, o.steps, o.coefficients, o.eps).reshape(-1)
                vote *= float(max(rows.shape)) ** 0.5
            return vote
        mean = weighted_sum(signs, masks, scales / np.float32(len(scales)), o.block, length=n)
        if self.name == "ef_sparsign":
            mean, self.shared[i] = c.server_residual(mean, self.shared[i])
        return mean / np.float32(rate) if self.name == "ef_sign" and rate else mean

    def _onebit(self, grads: Any, present: Sequence[bool]) -> list[Any]:
        """b m + (1 - b) g of all tensors by one compressed mean, which is the next m.

        Source: Tang et al. 2021, 1-bit Adam, Algorithm 1, from T_w on. What no rank has a gradient
        of keeps its residuals.
        """
        o = self.options
        cuts = np.cumsum([0, *self.lengths])
        parts = [slice(a, b) for a, b in zip(cuts, cuts[1:], strict=False)]
        xs = np.zeros((self.p, cuts[-1]), np.float32)
        for r, row in enumerate(xs):
            for i, part in enumerate(parts):
                if present[i]:
                    g = np.float32(0) if grads[r][i] is None else c.widened(grads[r][i])
                    row[part] = np.float32(1 - o.momentum) * g
                    row[part] += np.float32(o.momentum) * self.shared[i]
        before = [e.copy() for e in (*self.mean.residuals, self.mean.owners)]
        result = self.mean.step(list(xs), o.zeros, self.seed, self.number)
        for i, part in enumerate(parts):
            if present[i]:
                self.shared[i] = result[part]
                continue
            for e, old in zip((*self.mean.residuals, self.mean.owners), before, strict=True):
                e[part] = old[part]
        return [result[part] if there else None for part, there in zip(parts, present, strict=True)]
