"""Which layers become thin, and why the others stay."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from torch import nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from mpisign.lowrank.attention import LowRankAttention
from mpisign.lowrank.layers import LowRankConv2d, LowRankLinear
from mpisign.lowrank.lstm import LowRankLSTM
from mpisign.lowrank.matrix import Matrix

Keep = str | Iterable[str] | Callable[[str, nn.Module], bool]

_LINEAR = (nn.Linear, NonDynamicallyQuantizableLinear)
_THIN = (LowRankLinear, LowRankConv2d, LowRankLSTM, LowRankAttention)
#: What counts as a layer where the first and the last stay.
_COUNTED = (
    nn.Linear,
    nn.Bilinear,
    _ConvNd,
    nn.Embedding,
    nn.EmbeddingBag,
    nn.RNNBase,
    nn.MultiheadAttention,
    *_THIN,
)
_GATES = 4


@dataclass(eq=False)
class Layer:
    """A layer, its ``matrices`` that become thin, or ``reason``, why it stays."""

    name: str
    module: nn.Module
    matrices: list[Matrix] = field(default_factory=list)
    reason: str = ""


def layers_of(
    model: nn.Module, rank_ratio: float, keep: Keep, first: int, last: int, min_size: int
) -> list[Layer]:
    """All layers of ``model``, in the order in which its modules are registered."""
    kept = _predicate(model, keep)
    within = [f"{n}." for n, m in model.named_modules() if isinstance(m, nn.MultiheadAttention)]
    layers = [
        Layer(name, module)
        for name, module in model.named_modules()
        if isinstance(module, _COUNTED) and not name.startswith(tuple(within))
    ]
    names = Counter(id(p) for _, p in model.named_parameters(remove_duplicate=False))
    tied = {p for p in model.parameters() if names[id(p)] > 1}
    for i, layer in enumerate(layers):
        layer.reason = "first" if i < first else "last" if i >= len(layers) - last else ""
        if not layer.reason:
            layer.reason = _unfit(layer) or ("keep" if kept(layer.name, layer.module) else "")
        if not layer.reason:
            _choose(layer, rank_ratio, kept, tied, min_size)
    return layers


def _predicate(model: nn.Module, keep: Keep) -> Callable[[str, nn.Module], bool]:
    if callable(keep):
        return keep
    patterns = [keep] if isinstance(keep, str) else list(keep)
    names = [name for name, _ in model.named_modules()]

    def fits(name: str, pattern: str) -> bool:
        parents = name.split(".")
        return any(fnmatchcase(".".join(parents[: i + 1]), pattern) for i in range(len(parents)))

    for pattern in patterns:
        if not any(fits(name, pattern) for name in names if name):
            raise ValueError(f"factorize: keep names {pattern!r}, which is no module of the model")
    return lambda name, _: any(fits(name, pattern) for pattern in patterns)


def _unfit(layer: Layer) -> str:
    """Why no weight of it can be replaced; "" if nothing speaks against it."""
    m = layer.module
    if isinstance(m, _THIN):
        return "factorized already"
    if type(m) not in (*_LINEAR, nn.Conv2d, nn.LSTM, nn.MultiheadAttention):
        return f"of class {type(m).__name__}"
    if not layer.name:
        return "the model itself"
    if isinstance(m, nn.Conv2d) and m.groups > 1:
        return f"{m.groups} groups"
    # What somebody hung on the layer would be lost, or see other shapes.
    if m._forward_hooks or m._forward_pre_hooks or m._backward_hooks or m._backward_pre_hooks:
        return "it has hooks"
    return ""


def _choose(
    layer: Layer,
    rank_ratio: float,
    kept: Callable[[str, nn.Module], bool],
    tied: set[nn.Parameter],
    min_size: int,
) -> None:
    """Fills in ``matrices``, or ``reason``."""
    reasons = []
    for name, module, weight, parts in _weights(layer):
        full = f"{layer.name}.{name}"
        if weight is None:
            continue
        if name.rpartition(".")[2] not in module._parameters:
            reasons.append("its weight is computed")
        elif weight in tied:
            reasons.append("tied")
        elif not weight.requires_grad:
            reasons.append("frozen")
        elif weight.numel() // parts < min_size:
            reasons.append(f"below min_size={min_size:,}")
        elif module is not layer.module and kept(full.rpartition(".")[0], module):
            reasons.append("keep")
        else:
            layer.matrices.append(Matrix.of(full, weight, rank_ratio, parts))
            continue
        if isinstance(layer.module, nn.MultiheadAttention) and module is layer.module:
            layer.matrices.clear()  # q, k and v go together, and out_proj with them
            break
    if not layer.matrices:
        layer.reason = "; ".join(dict.fromkeys(reasons))


def _weights(layer: Layer) -> Iterable[tuple[str, nn.Module, Any, int]]:
    """Names, owners, weights, and of how many matrices they consist."""
    m = layer.module
    if isinstance(m, nn.LSTM):
        for name in m._flat_weights_names:
            if name.startswith("weight"):
                parts = 1 if name.startswith("weight_hr") else _GATES
                yield name, m, getattr(m, name), parts
    elif isinstance(m, nn.MultiheadAttention):
        yield "in_proj_weight", m, m.in_proj_weight, 3
        for letter in "qkv":
            yield f"{letter}_proj_weight", m, getattr(m, f"{letter}_proj_weight"), 1
        yield "out_proj.weight", m.out_proj, m.out_proj.weight, 1
    else:
        yield "weight", m, m.weight, 1
