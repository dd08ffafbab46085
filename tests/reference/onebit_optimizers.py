"""1-bit Adam, 0/1 Adam and 1-bit LAMB on p ranks, over one vector per tensor.

Sources: Tang et al. 2021, Lu et al. 2022, Li et al. 2021, each Algorithm 1, as in DeepSpeed 0.19.6.
Every product and sum is float32 and rounded by itself, so that a result is equal bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from reference.compressed_mean import CompressedMean

f = np.float32


def mix(m: Any, b: float, g: Any) -> Any:
    """b m + (1 - b) g."""
    return m * f(b) + g * f(1 - b)


class Optimizers:
    """``xs``: the tensors, flat float32; ``grads`` of a step: [rank][tensor]."""

    def __init__(self, xs: Sequence[Any], p: int, block: int, **options: Any) -> None:
        self.p, self.o, self.t, self.exchanges = p, options, 0, 0
        self.cuts = np.cumsum([0, *map(len, xs)])
        self.x, self.m, self.v = np.concatenate(xs), *np.zeros((2, self.cuts[-1]), f)
        self.block, self.mean = block, CompressedMean(self.cuts[-1], p, block)

    def parts(self, x: Any) -> list[Any]:
        return [x[a:b] for a, b in zip(self.cuts, self.cuts[1:], strict=False)]

    def average(self, grads: Any) -> Any:
        """The fp32 mean, added up by rank."""
        self.exchanges += 1
        total = np.zeros(self.cuts[-1], f)
        for g in grads:
            total = total + np.concatenate(g)
        return total / f(self.p)

    def compressed(self, xs: Sequence[Any]) -> Any:
        """The two-sided compressed mean where v is no zero; elsewhere nothing is left out."""
        alive = (self.v != 0).astype(f)
        number, self.exchanges = self.exchanges, self.exchanges + 1
        if self.p == 1:
            return xs[0] * alive
        result = self.mean.step([x * alive for x in xs], "random", 0, number)
        self.mean.residuals = [e * alive for e in self.mean.residuals]
        return result * alive

    def adam(self, g: Any) -> None:
        b1, b2 = self.o["betas"]
        self.m, self.v = mix(self.m, b1, g), mix(self.v, b2, g * g)

    def momenta(self, grads: Any) -> list[Any]:
        return [mix(self.m, self.o["betas"][0], np.concatenate(g)) for g in grads]

    @property
    def denominator(self) -> Any:
        return np.sqrt(self.v) + f(self.o["eps"])

    def move(self) -> None:
        self.x = self.x - (self.m / self.denominator + self.x * f(self.o["wd"])) * f(self.o["lr"])


class OneBitAdam(Optimizers):
    def step(self, grads: Any) -> list[Any]:
        """All ranks' parameters after the step."""
        if self.t < self.o["freeze_step"]:
            self.adam(self.average(grads))
        else:
            self.m = self.compressed(self.momenta(grads))
        self.t += 1
        self.move()
        return [self.x] * self.p


class ZeroOneAdam(Optimizers):
    interval, refreshes, local, counter = 1, 0, 1, 0

    def step(self, grads: Any) -> list[Any]:
        self.t += 1
        if self.t > self.o["var_freeze_step"]:
            return self.frozen(grads)
        if self.t % self.interval == 0:
            self.adam(self.average(grads))
            self.refreshes += 1
            if self.refreshes % self.o["var_update_scaler"] == 0:
                self.interval *= 2
        else:
            g = self.compressed([np.concatenate(g) for g in grads])
            self.m = mix(self.m, self.o["betas"][0], g)
        self.move()
        return [self.x] * self.p

    def frozen(self, grads: Any) -> list[Any]:
        o, lr = self.o, f(self.o["lr"])
        if self.t == o["var_freeze_step"] + 1:
            self.mean = CompressedMean(self.cuts[-1], self.p, self.block)
        if not hasattr(self, "u"):
            self.xs, self.ms, self.rates = [self.x] * self.p, [self.m] * self.p, 0.0
            self.u = [np.zeros_like(self.x)] * self.p
        self.rates += o["lr"]
        alive = (self.v != 0).astype(f)
        for r, g in enumerate(grads):
            self.ms[r] = mix(self.ms[r], o["betas"][0], np.concatenate(g)) * alive
            step = (self.ms[r] / self.denominator + self.xs[r] * f(o["wd"])) * lr
            self.u[r], self.xs[r] = self.u[r] + step, self.xs[r] - step
        xs = self.xs
        if self.t % self.local == 0:
            s = self.compressed([u * self.denominator for u in self.u])
            self.m, self.x = s / f(self.rates), self.x - s / self.denominator
            xs = [self.x] * self.p
            del self.u
        self.counter += 1
        if self.counter % o["local_step_scaler"] == 0:
            self.local = min(o["local_step_clipper"], 2 * self.local)
        return xs


def norm(x: Any) -> float:
    """The 2-norm of float32, to 2^-52 of the largest square."""
    top = float(np.abs(x).max(initial=0))
    if not top:
        return 0.0
    bits = min(52, 62 - x.size.bit_length())
    shares = np.rint((x.astype(np.float64) / top) ** 2 * 2.0**bits).astype(np.int64)
    return top * math.sqrt(int(shares.sum()) / 2.0**bits)


class OneBitLamb(Optimizers):
    def step(self, grads: Any) -> list[Any]:
        o, warm, before = self.o, self.t < self.o["freeze_step"], self.m
        if not self.t:
            self.trust, self.last = [0.0] * (len(self.cuts) - 1), [1.0] * (len(self.cuts) - 1)
        if warm:
            self.adam(self.average(grads))
        else:
            self.compress(grads, before)
        self.t += 1
        moved = []
        for i, (x, m, v) in enumerate(zip(*map(self.parts, (self.x, self.m, self.v)), strict=True)):
            d = np.sqrt(v) + f(o["eps"])
            update = m / d + x * f(o["wd"])
            if warm:
                sizes, c = (norm(x), norm(update)), 1.0
                if all(sizes):
                    c = min(max(sizes[0] / sizes[1], o["min_coeff"]), o["max_coeff"])
                if c != 1:
                    b = o["coeff_beta"]
                    self.trust[i] = b * self.trust[i] + (1 - b) * c
            else:
                fresh = np.sqrt(self.parts(self.fresh)[i]) + f(o["eps"])
                r = min(1.0, norm(m / d) / norm(update)) if o["wd"] else 1.0
                c = min(
                    max(float((d / fresh).max()) * r + (1 - r), o["factor_min"]), o["factor_max"]
                )
                least, most = (self.last[i] * (1 + s * o["factor_threshold"]) for s in (-1, 1))
                self.last[i] = c = min(max(c, least), most)
                c *= self.trust[i]
            moved.append(x - update * f(o["lr"] * c))
        self.x = np.concatenate(moved)
        return [self.x] * self.p

    def compress(self, grads: Any, before: Any) -> None:
        b1, b2 = self.o["betas"]
        if self.t == self.o["freeze_step"]:
            sizes = [norm(m) / math.sqrt(m.size) for m in self.parts(self.m)]
            scales = [sum(sizes) / len(sizes) / s if s else 1.0 for s in sizes]
            self.scale = np.concatenate(
                [np.full(m.size, f(s)) for m, s in zip(self.parts(self.m), scales, strict=True)]
            )
            self.fresh = self.v
        self.m = self.compressed([m * self.scale for m in self.momenta(grads)]) / self.scale
        g = (self.m - before * f(b1)) / f(1 - b1)
        self.fresh = mix(self.fresh, b2, g * g)
