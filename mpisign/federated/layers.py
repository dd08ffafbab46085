"""A model as a chain of layers whose units may change places, and a model of such layers."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from mpisign.federated.matching import Array, Units

#: Work on each number alone, whatever its place.
_ELEMENTWISE = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish),
    *(nn.Tanh, nn.Sigmoid, nn.Softplus, nn.Softsign, nn.LogSigmoid, nn.Hardtanh, nn.Hardswish),
    *(nn.Hardsigmoid, nn.Tanhshrink, nn.Softshrink, nn.Hardshrink, nn.Identity, nn.Dropout),
)
#: Work on each channel of a picture alone.
_OF_CHANNELS = (
    *(nn.MaxPool2d, nn.AvgPool2d, nn.LPPool2d, nn.AdaptiveMaxPool2d, nn.AdaptiveAvgPool2d),
    *(nn.Dropout2d, nn.ZeroPad2d, nn.ReflectionPad2d, nn.ReplicationPad2d, nn.Upsample),
)
_NORMS = (
    *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm, nn.GroupNorm),
    *(nn.LayerNorm, nn.InstanceNorm1d, nn.InstanceNorm2d),
)


@dataclass
class Weights:
    """A layer's numbers: ``weight`` (units, inputs, k), ``bias`` (units,) or None.

    Inputs are the units of the layer before, or the model's own; each has k weights: the kernel's,
    or, behind a flatten, one for each place of the channel. float64.
    """

    weight: Array
    bias: Array | None

    @property
    def atoms(self) -> Array:
        """(units, d): all numbers of a unit, its bias last."""
        flat = self.weight.reshape(len(self.weight), -1)
        return flat if self.bias is None else np.hstack([flat, self.bias[:, None]])

    @classmethod
    def of_atoms(cls, atoms: Array, inputs: int, biased: bool) -> Weights:
        """What ``atoms`` are of."""
        flat = atoms[:, :-1] if biased else atoms
        weight = flat.reshape(len(atoms), inputs, -1)
        return cls(weight, atoms[:, -1].copy() if biased else None)

    def widened(self, places: Units | None, inputs: int) -> Weights:
        """For ``inputs`` inputs, of which its own are at ``places``; the others count nothing."""
        if places is None:
            return self
        weight = np.zeros((len(self.weight), inputs, self.weight.shape[2]))
        weight[:, places] = self.weight
        return Weights(weight, self.bias)

    def restricted(self, units: Units | None, inputs: Units | None) -> Weights:
        """Some units of it with some of their inputs; None: all."""
        weight = self.weight if units is None else self.weight[units]
        bias = self.bias if units is None or self.bias is None else self.bias[units]
        return Weights(weight if inputs is None else weight[:, inputs], bias)


Layer = nn.Linear | nn.Conv2d


def layers(function: str, model: nn.Module) -> list[Layer]:
    """The Linear and Conv2d layers of ``model`` in order; TypeError, ValueError if it is no chain.

    A chain is an nn.Sequential, or several in each other, of these layers and of what leaves units
    apart from each other: activations, pooling, dropout, a Flatten behind the channels.
    """
    if not isinstance(model, nn.Sequential):
        raise TypeError(
            f"{function}: the model must be an nn.Sequential, of which the order of layers is "
            f"known, got {type(model).__name__}"
        )
    found: list[Layer] = []
    flat = True  # units are along the last axis
    for name, m in _leaves(model, ""):
        if any(m is known for known in found):
            raise ValueError(f"{function}: {name} is a layer that the model has twice")
        if type(m) is nn.Conv2d:
            if m.groups != 1:
                raise ValueError(f"{function}: {name} must have groups=1, got {m.groups}")
            if found and flat:
                raise ValueError(f"{function}: {name}, a Conv2d, must not follow a Linear")
            flat = False
        elif type(m) is nn.Linear:
            if not flat:
                raise ValueError(f"{function}: before {name}, a Linear, there must be a Flatten")
        elif type(m) is nn.Flatten:
            if m.start_dim != 1 or m.end_dim != -1:
                raise ValueError(f"{function}: {name} must flatten all but the first axis")
            flat = True
            continue
        elif isinstance(m, _NORMS):
            raise ValueError(
                f"{function}: {name} is a {type(m).__name__}, whose statistics belong to a "
                "client's own units and data: leave normalization layers out of the model"
            )
        elif isinstance(m, _ELEMENTWISE) or (isinstance(m, _OF_CHANNELS) and not flat):
            continue
        elif isinstance(m, _OF_CHANNELS) and not found:
            continue
        else:
            raise ValueError(
                f"{function}: {name}, a {type(m).__name__}, may mix units: expected Linear, "
                "Conv2d, Flatten, activations, pooling of channels and dropout"
            )
        if found and _inputs(m) % _units(found[-1]):
            raise ValueError(
                f"{function}: {name} must have a multiple of {_units(found[-1])} inputs, "
                f"the units before it, got {_inputs(m)}"
            )
        if type(m) is nn.Linear and found and type(found[-1]) is nn.Linear:
            if m.in_features != found[-1].out_features:
                raise ValueError(
                    f"{function}: {name} must have {found[-1].out_features} inputs, the units "
                    f"before it, got {m.in_features}"
                )
        if m.weight.dtype != torch.float32:
            raise TypeError(f"{function}: {name} must be of float32, got {m.weight.dtype}")
        found.append(m)
    if not found:
        raise ValueError(f"{function}: the model must have a Linear or Conv2d layer, got none")
    return found


def _leaves(module: nn.Sequential, prefix: str) -> Iterator[tuple[str, nn.Module]]:
    for name, child in module.named_children():
        if isinstance(child, nn.Sequential):
            yield from _leaves(child, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", child


def _units(m: Layer) -> int:
    return m.out_features if isinstance(m, nn.Linear) else m.out_channels


def _inputs(m: Layer) -> int:
    return m.in_features if isinstance(m, nn.Linear) else m.in_channels


def signature(model: nn.Module) -> str:
    """What models that can be matched have in common: all but the widths of hidden layers."""
    chain = [m for _, m in _leaves(model, "")] if isinstance(model, nn.Sequential) else []
    own = [m for m in chain if isinstance(m, (nn.Linear, nn.Conv2d))]
    text = []
    for m in chain:
        if isinstance(m, nn.Conv2d):
            shape = (m.kernel_size, m.stride, m.padding, m.dilation, m.padding_mode)
            text.append(f"Conv2d{shape}, bias {m.bias is not None}")
        elif isinstance(m, nn.Linear):
            text.append(f"Linear, bias {m.bias is not None}")
        else:
            text.append(repr(m))
    if own:
        text.append(f"{_inputs(own[0])} inputs, {_units(own[-1])} outputs")
    return "; ".join(text)


def read(found: Sequence[Layer]) -> list[Weights]:
    """The numbers of each layer, copied."""
    weights, before = [], 0
    for m in found:
        w = m.weight.detach().cpu().numpy().astype(np.float64)
        b = None if m.bias is None else m.bias.detach().cpu().numpy().astype(np.float64)
        weights.append(Weights(w.reshape(_units(m), before or _inputs(m), -1), b))
        before = _units(m)
    return weights


def write(function: str, model: nn.Module, weights: Sequence[Weights]) -> None:
    """Gives the layers of ``model`` these numbers, and the widths that they have."""
    for m, w in zip(layers(function, model), weights, strict=True):
        units, inputs, k = w.weight.shape
        at = m.weight.device
        shape: tuple[int, ...]
        if isinstance(m, nn.Linear):
            m.out_features, m.in_features = units, inputs * k
            shape = (units, inputs * k)
        else:
            m.out_channels, m.in_channels = units, inputs
            shape = (units, inputs, *m.kernel_size)
        m.weight = _parameter(w.weight.reshape(shape), at)
        if w.bias is not None:
            m.bias = _parameter(w.bias, at)


def _parameter(values: Array, device: torch.device) -> nn.Parameter:
    return nn.Parameter(torch.from_numpy(values.astype(np.float32)).to(device))


def built(function: str, model: nn.Module, weights: Sequence[Weights]) -> nn.Module:
    """A copy of ``model`` with these numbers and widths."""
    made = copy.deepcopy(model)
    write(function, made, weights)
    return made
