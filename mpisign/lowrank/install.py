"""Thin modules in the place of full ones."""

from __future__ import annotations

from typing import Any

from torch import nn

from mpisign.lowrank.attention import LowRankAttention
from mpisign.lowrank.choice import Layer
from mpisign.lowrank.layers import LowRankConv2d, LowRankLinear
from mpisign.lowrank.lstm import LowRankLSTM
from mpisign.lowrank.matrix import Matrix


def install(model: nn.Module, layer: Layer) -> None:
    """Replaces the layer, and fills in ``thin`` of its matrices."""
    m = layer.module
    new: Any
    if isinstance(m, nn.LSTM):
        factors = {x.name.rpartition(".")[2]: _factors(x) for x in layer.matrices}
        # Of a single matrix, the projection of the hidden state, as of the gates: (1, rows, rank).
        new = thin = LowRankLSTM(m, factors)
        for x, name in zip(layer.matrices, factors, strict=True):
            x.thin = [(getattr(thin, f"u_{name}"), getattr(thin, f"v_{name}"))]
    elif isinstance(m, nn.MultiheadAttention):
        new = _attention(m, layer.matrices)
    else:
        (x,) = layer.matrices
        u, v = x.u[0].clone(), x.v[0].clone()
        if isinstance(m, nn.Conv2d):
            new = LowRankConv2d(m, u, v)
        else:
            new = LowRankLinear(u, v, m.bias)  # type: ignore[arg-type]
        x.thin = [(new.u, new.v)]
    new.train(m.training)
    parent, _, name = layer.name.rpartition(".")
    setattr(model.get_submodule(parent), name, new)


def _factors(x: Matrix) -> tuple[Any, Any]:
    return x.u.clone(), x.v.clone()


def _attention(m: nn.MultiheadAttention, matrices: list[Matrix]) -> LowRankAttention:
    """The matrices: one of three parts or three of one, then that of out_proj if it is thin."""
    own = [x for x in matrices if not x.name.endswith("out_proj.weight")]
    pairs = [(x.u[i].clone(), x.v[i].clone()) for x in own for i in range(x.parts)]
    out: nn.Module = m.out_proj
    for x in matrices[len(own) :]:
        out = LowRankLinear(x.u[0].clone(), x.v[0].clone(), m.out_proj.bias)
        x.thin = [(out.u, out.v)]
    new = LowRankAttention(m, pairs[0], pairs[1], pairs[2], out)
    thin = [(p.u, p.v) for p in (new.q, new.k, new.v)]
    if len(own) == 1:
        own[0].thin = thin
    else:
        for x, pair in zip(own, thin, strict=True):
            x.thin = [pair]
    return new
