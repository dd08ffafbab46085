"""Which parameters are embeddings: weights of which a step uses some rows and not others."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import torch

_NAMES = ("embed", "wte", "wpe", "emb.")
_MODULES = (torch.nn.Embedding, torch.nn.EmbeddingBag)


class Embeddings:
    """Recognises embeddings by the modules that hold them, whatever they are called.

    A front end has parameters, not the model. But every living ``nn.Embedding`` refers to its
    class, so that the garbage collector finds them all, and with them their weights: in one pass of
    about 20 ms, once for each exchange, and only if it has matrices whose names do not tell. A
    weight that an output layer shares is an embedding too: where the loss leaves out a part of the
    vocabulary, or a probability underflows, its rows have zero gradients as well.

    Modules of other classes, which look rows up themselves, are known by the names in ``_NAMES``.
    """

    def __init__(self) -> None:
        self._weights: dict[int, torch.Tensor] | None = None

    def has(self, name: str, p: torch.Tensor) -> bool:
        """Whether the parameter ``p``, called ``name``, is an embedding."""
        if p.dim() != 2:
            return False
        if any(e in name.lower() for e in _NAMES):
            return True
        if self._weights is None:
            self._weights = {id(w): w for w in _weights()}
        return id(p) in self._weights


def _weights() -> Iterator[torch.Tensor]:
    """The weights of all embeddings of this process."""
    kinds = set(_MODULES)
    for kind in _MODULES:
        kinds |= _subclasses(kind)
    for holder in gc.get_referrers(*kinds):
        if type(holder) in kinds:
            parameters: dict[str, Any] = holder.__dict__.get("_parameters", {})
            if isinstance(weight := parameters.get("weight"), torch.Tensor):
                yield weight


def _subclasses(kind: type) -> set[type]:
    found: set[type] = set()
    subclasses: list[type] = kind.__subclasses__()
    for k in subclasses:
        found |= {k} | _subclasses(k)
    return found
