"""Accordion over the compressors of ``reference.compressors``: all ranks, all epochs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from reference import compressors as c
from reference.votes import bf16_mean, majority, votes_of, weighted_sum


def is_steady(before: Any, now: float, threshold: float) -> bool:
    """r = |before - now| / before < threshold; norms of 0 are not steady.

    Source: Agarwal et al. 2021, Accordion (arXiv 2010.16248), Algorithm 1.
    """
    return bool(before and now and abs(before - now) / before < threshold)


class AccordionRanks:
    """``p`` ranks; ``high``: "ef_sign", or "signum" whose momentum sees the means too.

    Zeros abstain, ties are 0: no random bits.
    """

    def __init__(
        self,
        p: int,
        lengths: Sequence[int],
        high: str,
        threshold: float,
        every: int,
        epoch_steps: int,
        beta: float = 0.9,
    ) -> None:
        self.p, self.name, self.beta = p, high, beta
        self.threshold, self.every, self.epoch_steps = threshold, every, epoch_steps
        n = len(lengths)
        self.kept = [[np.zeros(k, np.float32) for k in lengths] for _ in range(p)]  # m or e
        self.high, self.norms, self.voted = [False] * n, [None] * n, [False] * n
        self.scales, self.rate = [0.0] * n, None
        self.sums = [np.zeros(k, np.float32) for k in lengths]
        self.sizes = [np.zeros(k, np.float32) for k in lengths]

    def step(self, grads: Any, number: int, rate: float) -> list[Any]:
        """``grads``: [rank][tensor]. What the optimizers get."""
        if number % self.epoch_steps == 0:
            self._epoch(number // self.epoch_steps, rate)
        given = [self._one(i, [g[i] for g in grads], rate) for i in range(len(self.high))]
        for i, x in enumerate(given):
            if x is not None:
                self.sums[i] = self.sums[i] + x
                self.sizes[i] = self.sizes[i] + np.abs(x)
        return given

    def _epoch(self, ended: int, rate: float) -> None:
        votes = self.name == "signum"
        if ended and (ended - 1) % self.every == 0:
            for i, total in enumerate(self.sums):
                norm = float(np.linalg.norm(total.astype(np.float64))) / self.epoch_steps
                voted = votes and self.high[i]
                if votes and not voted:
                    self.scales[i] = float(self.sizes[i].mean(dtype=np.float64)) / self.epoch_steps
                if self.norms[i] is None or self.voted[i] == voted:
                    self.high[i] = is_steady(self.norms[i], norm, self.threshold)
                self.norms[i], self.voted[i] = norm, voted
        if self.rate is not None and rate < 0.25 * self.rate:
            self.high = [False] * len(self.high)
        self.rate = rate
        self.sums = [0 * x for x in self.sums]
        self.sizes = [0 * x for x in self.sizes]

    def _one(self, i: int, grads: Any, rate: float) -> Any:
        if all(g is None for g in grads):
            return None
        of = [row[i] for row in self.kept]
        gs = [
            np.zeros_like(e) if g is None else c.widened(g) for g, e in zip(grads, of, strict=True)
        ]
        if self.name == "signum":
            sent = [c.signum(g, m, self.beta)[0] for g, m in zip(gs, of, strict=True)]
            for r, (g, given) in enumerate(zip(gs, grads, strict=True)):
                if given is None:
                    sent[r] = of[r]
                else:
                    self.kept[r][i] = c.signum(g, of[r], self.beta)[1]
            if not self.high[i]:
                return bf16_mean(gs)
            signs, masks = zip(*(c.pack(x, "abstain") for x in sent), strict=True)
            n = gs[0].size
            vote = majority(np.stack(signs), np.stack(masks), "zero", length=n)
            size = np.float32(self.scales[i])
            return votes_of(vote[0][None], vote[1][None], n)[0].astype(np.float32) * size
        if not self.high[i]:
            paid = [g + e / np.float32(rate) for g, e in zip(gs, of, strict=True)]
            for row in self.kept:
                row[i] = 0 * row[i]
            return bf16_mean(paid)
        rows = [c.error_feedback(g, e, rate, None, "abstain") for g, e in zip(gs, of, strict=True)]
        for row, made in zip(self.kept, rows, strict=True):
            row[i] = made[3]
        signs, masks, scales = (np.stack([row[k] for row in rows]) for k in range(3))
        mean = weighted_sum(signs, masks, scales / np.float32(self.p), None, length=gs[0].size)
        return mean / np.float32(rate)
