"""A state as tensors by path, and the tree of all else, in which paths stand for tensors."""

from __future__ import annotations

import hashlib
from collections import Counter, OrderedDict
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

#: What ``torch.load(weights_only=True)`` reads besides tensors, dicts, lists and tuples.
_PLAIN = (type(None), bool, int, float, complex, str, bytes)
_TENSOR = "\0tensor "  # begins what stands for a tensor


class Tree:
    """``name``: of the state, which begins each path. ``shape``: the state without its tensors."""

    def __init__(self, name: str, state: Any) -> None:
        self.tensors: dict[str, torch.Tensor] = {}
        self.shape = self._taken_apart(name, state)

    def digests(self) -> dict[str, str]:
        """BLAKE2b of each tensor's dtype, shape and bits by path; of the shape under ""."""
        found = {path: _digest(tensor) for path, tensor in self.tensors.items()}
        return {"": hashlib.blake2b(repr(self.shape).encode(), digest_size=16).hexdigest()} | found

    def _taken_apart(self, path: str, x: Any) -> Any:
        if isinstance(x, torch.Tensor):
            self.tensors[path] = _on_host(path, x)
            return _TENSOR + path
        if isinstance(x, Mapping):
            for key in x:
                if type(key) not in _PLAIN:
                    raise TypeError(f"{path} has the key {key!r}, which is no string or number")
            parts = {k: self._taken_apart(f"{path}[{k!r}]", v) for k, v in x.items()}
            return _as(x, parts)
        if isinstance(x, (list, tuple)):
            items = [self._taken_apart(f"{path}[{i}]", v) for i, v in enumerate(x)]
            return tuple(items) if isinstance(x, tuple) else items
        if isinstance(x, np.generic):
            x = x.item()
        if type(x) not in _PLAIN:
            raise TypeError(
                f"{path} is a {type(x).__module__}.{type(x).__qualname__}, but checkpoints hold "
                "tensors, numbers and strings only, so that loading runs no code"
                f"{': take torch.from_numpy' if isinstance(x, np.ndarray) else ''}"
            )
        return x


def put_together(shape: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    """The state of a tree; KeyError for a tensor that is not among ``tensors``."""
    if isinstance(shape, str) and shape.startswith(_TENSOR):
        return tensors[shape.removeprefix(_TENSOR)]
    if isinstance(shape, Mapping):
        return _as(shape, {k: put_together(v, tensors) for k, v in shape.items()})
    if isinstance(shape, (list, tuple)):
        return type(shape)(put_together(v, tensors) for v in shape)
    return shape


def _as(mapping: Mapping[Any, Any], parts: dict[Any, Any]) -> Any:
    """``parts`` in a mapping of the same kind, where torch.load reads that kind."""
    if isinstance(mapping, Counter):  # milestones of torch's MultiStepLR
        return Counter(parts)
    if not isinstance(mapping, OrderedDict):
        return parts
    made = OrderedDict(parts)
    if hasattr(mapping, "_metadata"):  # versions of torch's modules; their names and numbers
        made._metadata = mapping._metadata  # type: ignore[attr-defined]
    return made


def _on_host(path: str, x: torch.Tensor) -> torch.Tensor:
    x = x.detach()
    if type(x).__name__ == "DTensor":
        raise TypeError(f"{path} is sharded: save the model it belongs to in the same call")
    if x.layout is not torch.strided or x.is_quantized or x.is_meta:
        raise TypeError(f"{path} must be a dense tensor, got {x.layout} on {x.device}")
    x = x.cpu()
    # torch.save writes all of what a tensor is a view of.
    return x.clone() if x.untyped_storage().nbytes() > x.nbytes else x


def _digest(x: torch.Tensor) -> str:
    state = hashlib.blake2b(f"{x.dtype} {tuple(x.shape)}".encode(), digest_size=16)
    if x.is_conj() or x.is_neg():
        x = x.resolve_conj().resolve_neg()
    flat = torch.view_as_real(x) if x.is_complex() else x
    flat = flat.contiguous().reshape(-1)
    state.update(flat.view(torch.uint8).numpy().data)
    return state.hexdigest()
