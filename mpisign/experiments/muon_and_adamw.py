"""Muon for matrices and AdamW for the rest, as one optimizer: what SignMuon is compared with."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from mpisign.compressors import Muon
from mpisign.compressors.newton_schulz import orthogonalize
from mpisign.exchange.embeddings import Embeddings
from mpisign.experiments.tasks.base import Named


class PlainMuon(torch.optim.Optimizer):
    """m = b m + (1 - b) g; p -= lr (sqrt(max(1, rows / columns)) U + wd p), U the polar factor.

    As torch.optim.Muon, of m or of Nesterov's, but of kernels too, as (out, in k k), and in
    float32: torch's computes in bfloat16, which is slow on a processor without its instructions.
    Source: Jordan et al. 2024, Muon.
    """

    def __init__(
        self,
        params: Sequence[torch.Tensor],
        lr: float,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
        nesterov: bool = True,
    ) -> None:
        super().__init__(params, {"lr": lr})
        self._decay, self._momentum, self._nesterov = weight_decay, momentum, nesterov
        of = Muon()
        self._iteration: Any = of.steps, of.coefficients, of.eps

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One step; no closure."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                m = self.state[p].setdefault("momentum", torch.zeros_like(p))
                m.lerp_(p.grad, 1 - self._momentum)
                ahead = p.grad.lerp(m, self._momentum) if self._nesterov else m
                rows = ahead.reshape(len(p), -1)
                scale = max(1.0, rows.shape[0] / rows.shape[1]) ** 0.5
                p.mul_(1 - group["lr"] * self._decay)
                u = orthogonalize(rows, *self._iteration).reshape(p.shape)
                p.sub_(u, alpha=group["lr"] * scale)


class MuonAndAdamW(torch.optim.Optimizer):
    """Muon for what ``Compression.muon(others_for=...)`` takes for a matrix, AdamW for the rest.

    Both follow the groups' learning rate, AdamW at ``share`` of it. ``weight_decay``: Muon's;
    ``rest_decay``: AdamW's. Keeps the two optimizers' state out of ``state_dict``: for studies.
    """

    def __init__(
        self,
        named: Named,
        lr: float,
        share: float = 0.1,
        weight_decay: float = 0.1,
        rest_decay: float = 0.01,
        nesterov: bool = True,
        others_for: Sequence[str] = (),
    ) -> None:
        super().__init__([p for _, p in named], {"lr": lr})
        compressor, embeddings = Muon(others_for=tuple(others_for)), Embeddings()
        matrices: list[torch.Tensor] = []
        rest: list[torch.Tensor] = []
        for name, p in named:
            of = compressor.of_parameter(name, p, partial(embeddings.has, name, p))
            (matrices if of is compressor else rest).append(p)
        muon = PlainMuon(matrices, lr, weight_decay, nesterov=nesterov)
        self._both = (
            (muon, 1.0),
            (torch.optim.AdamW(rest, lr=share * lr, weight_decay=rest_decay), share),
        )

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One step of both; no closure."""
        lr = self.param_groups[0]["lr"]
        for optimizer, share in self._both:
            optimizer.param_groups[0]["lr"] = share * lr
            optimizer.step()
