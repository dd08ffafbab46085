"""What every compressor makes of all ranks' gradients, step by step, in NumPy in one process."""

from __future__ import annotations

import numpy as np
import references as ref
from test_compressed_mean import Reference

from mpisign import compressors as c
from mpisign.exchange.buckets import BucketLayout


def as_float32(x):
    with np.errstate(over="ignore"):
        return np.asarray(x, np.float32).reshape(-1)


class AllRanks:
    """The states of ``p`` ranks and what one step makes of their gradients.

    ``lengths``: of the members of the one bucket. ``step(grads, number, rates)``: gradients
    [rank][member], float arrays or None; returns what each member's becomes, float32, or None.
    """

    def __init__(self, compressor, p, lengths, seed):
        self.c, self.p, self.lengths, self.seed = compressor, p, lengths, seed
        self.offsets = BucketLayout(lengths).offsets
        self.states = [[np.zeros(n, np.float32) for n in lengths] for _ in range(p)]
        self.shared = [np.zeros(n, np.float32) for n in lengths]
        if isinstance(compressor, c.OneBit):
            self.mean = Reference(sum(lengths), p, compressor.block)

    def step(self, grads, number, rates):
        self.number = number
        there = [any(g[i] is not None for g in grads) for i in range(len(self.lengths))]
        if isinstance(self.c, c.OneBit):
            return self._compressed(grads, there)
        given = []
        for i, n in enumerate(self.lengths):
            if not there[i]:
                given.append(None)
                continue
            sent = [self._sent(r, i, grads[r][i], rates[i]) for r in range(self.p)]
            signs, masks = (np.stack([s[j] for s in sent]) for j in (0, 1))
            masks = masks if "abstain" in (self.c.zeros, self.c.nan) else None
            scales = np.stack([s[2] for s in sent]) / np.float32(self.p)
            given.append(self._aggregate(i, n, signs, masks, scales, rates[i]))
        return given

    def _keys(self, i, rank=0):
        return {
            "seed": self.seed,
            "step": self.number,
            "rank": rank,
            "offset": 8 * self.offsets[i],
        }

    def _sent(self, r, i, g, rate):
        """(sign plane, mask plane, scales) of one rank's member."""
        this, keys, n = self.c, self._keys(i, r), self.lengths[i]
        one = np.ones(1, np.float32)
        missing = g is None
        x = np.zeros(n, np.float32) if missing else as_float32(g)
        if isinstance(this, (c.Signum, c.Lion)):
            m = self.states[r][i]
            if missing:
                x = m
            elif isinstance(this, c.Signum):
                x, self.states[r][i] = ref.signum(x, m, this.momentum)
            else:
                x, self.states[r][i] = ref.lion(x, m, this.beta1, this.beta2)
        if isinstance(this, (c.NoisySign, c.StochasticSign)) and not missing:
            counter = np.array([0, keys["offset"], self.number, r], np.uint64)
            philox = np.random.Philox(counter=counter, key=np.array([self.seed, 0], np.uint64))
            rng = np.random.Generator(philox)
            if getattr(this, "noise", "uniform") == "normal":
                x = np.float32(this.scale) * rng.standard_normal(n, dtype=np.float32) + x
            else:
                size = np.float32(getattr(this, "scale", 0) or this.bound)
                x = size * (2 * rng.random(n, dtype=np.float32) - np.float32(1)) + x
        if isinstance(this, c.EFSign):
            if rate == 0:
                nothing = np.zeros(-(-n // 8), np.uint8)
                return nothing, nothing, np.zeros(this.scales_of(n), np.float32)
            e = self.states[r][i]
            sign, mask, scales, self.states[r][i], _, _ = ref.error_feedback(
                x, e, rate, this.block, this.zeros, **keys
            )
            return sign, mask, scales
        if isinstance(this, c.TernGrad):
            good = np.isfinite(x)
            order = 2 if isinstance(this, c.QSGD) else np.inf
            norm = np.linalg.norm(np.where(good, x, 0).astype(np.float64), order) if n else 0
            scale = np.float32(norm)
            if scale < 2.94e-39:
                nothing = np.zeros(-(-n // 8), np.uint8)
                return nothing, nothing, np.zeros(1, np.float32)
            x = np.where(good, x, np.float32("nan"))
            return *ref.sparsign(x, 1 / float(scale), **keys), one * scale
        if isinstance(this, c.Sparsign):
            return *ref.sparsign(x, this.budget, **keys), one
        if isinstance(this, c.EFSparsign):
            if this.local_steps == 1:
                own = keys | {"seed": self.seed ^ 0xD1B54A32D192ED03}
                sign, mask = ref.sparsign(x, this.budget_local, **own)
                x = ref.votes_of(sign[None], mask[None], n)[0]
            return *ref.sparsign(x, this.budget_global, **keys), one
        return *ref.pack(x, this.zeros, **keys), one

    def _aggregate(self, i, n, signs, masks, scales, rate):
        this = self.c
        if this.aggregate in ("vote", "gathered_vote"):
            keys = {k: v for k, v in self._keys(i).items() if k != "rank"}
            sign, mask = ref.majority(signs, masks, this.ties, length=n, **keys)
            return ref.votes_of(sign[None], mask[None], n)[0].astype(np.float32)
        if isinstance(this, c.LionAvg):
            total = ref.votes_of(signs, masks, n).sum(axis=0).astype(np.float32)
            return total * np.float32(1 / self.p)
        mean = ref.weighted_sum(signs, masks, scales, block=this.block, length=n)
        if isinstance(this, c.EFSparsign):
            v = mean + self.shared[i]
            out = ref.tree_sum(np.abs(v)) / np.float32(n) * np.sign(v)
            self.shared[i] = v - out
            return out
        return mean / np.float32(rate) if isinstance(this, c.EFSign) and rate else mean

    def _compressed(self, grads, there):
        b, cuts = np.float32(self.c.momentum), np.cumsum([0, *self.lengths])
        parts = [slice(x, y) for x, y in zip(cuts, cuts[1:], strict=False)]
        xs = np.zeros((self.p, cuts[-1]), np.float32)
        for r in range(self.p):
            for i, part in enumerate(parts):
                if there[i]:
                    g = np.float32(0) if grads[r][i] is None else as_float32(grads[r][i])
                    xs[r, part] = np.float32(1 - self.c.momentum) * g + b * self.shared[i]
        before = [e.copy() for e in (*self.mean.residuals, self.mean.owners)]
        result = self.mean.step(list(xs), self.c.zeros, self.seed, self.number)
        given = []
        for i, part in enumerate(parts):
            if there[i]:
                self.shared[i] = result[part]
            else:
                for e, old in zip((*self.mean.residuals, self.mean.owners), before, strict=True):
                    e[part] = old[part]
            given.append(result[part] if there[i] else None)
        return given
