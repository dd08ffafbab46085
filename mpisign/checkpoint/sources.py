"""What is saved: objects with state_dict(), dicts, sharded models, and the random generators."""

from __future__ import annotations

import random
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from mpisign.exchange.process_group import HookState

RANDOM = "mpisign.random"


class Sources:
    """``state``: what a caller gives ``save`` and ``load``, checked; TypeError, ValueError.

    ``gathered``: the names of what is sharded over the ranks, whose states rank 0 alone holds.
    """

    def __init__(self, state: Any) -> None:
        if not isinstance(state, Mapping) or not all(isinstance(name, str) for name in state):
            raise TypeError(
                "state must be a dict of names and objects, such as "
                f'{{"model": model, "optimizer": optimizer}}, got {type(state).__name__}'
            )
        for name, x in state.items():
            stateful = hasattr(x, "state_dict") and hasattr(x, "load_state_dict")
            if not (stateful or isinstance(x, dict)) or name == RANDOM:
                raise TypeError(
                    f"state[{name!r}] must have state_dict() and load_state_dict(), or be a dict "
                    f"that load fills, got {type(x).__name__}"
                )
        self.state = dict(state)
        self._sharded = _sharded_models(self.state)
        self._model_of = {n: m for n in state if (m := self._sharded_model(n)) is not None}
        self.gathered = frozenset(self._model_of)

    def check_votes(self) -> None:
        """ValueError if a hook's or a compression's state, which is not the optimizer's, lacks."""
        given = {id(x) for x in self.state.values()}
        for name, x in self.state.items():
            hooks = [hook[-1] for hook in getattr(x, "_comm_hooks", ())]
            compression = getattr(x, "_compression", None)
            if type(compression).__module__.startswith("mpisign.horovod"):
                hooks.append(compression)
            for votes in hooks:
                ours = isinstance(votes, HookState) or votes is compression
                if ours and id(votes) not in given:
                    raise ValueError(
                        f"state[{name!r}] exchanges gradients through a {type(votes).__name__}, "
                        'whose state is its own: add it to state, as "votes"'
                    )

    def collect(self, rank: int) -> dict[str, Any]:
        """The states by name; of what is gathered on rank 0 alone. Collective for sharded models"""
        found = {}
        for name in self._in_order():
            x = self.state[name]
            if name in self.gathered:
                full = self._full_state(name, x)
                if rank == 0:
                    found[name] = full
            else:
                found[name] = x.state_dict() if hasattr(x, "state_dict") else x
        return found

    def put_back(self, states: dict[str, Any]) -> None:
        """Loads states into the objects. Collective for sharded models."""
        for name in self._in_order():
            x, state = self.state[name], states[name]
            if name in self.gathered:
                self._load_full_state(name, x, state)
            elif hasattr(x, "load_state_dict"):
                x.load_state_dict(state)
            else:
                x.clear()
                x.update(state)

    def _in_order(self) -> list[str]:
        """What is sharded first: no rank may fail, by something of its own, before it takes part"""
        return sorted(self.state, key=lambda name: name not in self.gathered)

    def _sharded_model(self, name: str) -> Any:
        """The sharded model that an object is, or whose parameters an optimizer steps."""
        x = self.state[name]
        for model in self._sharded:
            if x is model:
                return model
            if isinstance(x, torch.optim.Optimizer):
                own = {id(p) for p in model.parameters()}
                if all(id(p) in own for group in x.param_groups for p in group["params"]):
                    return model
        return None

    def _full_state(self, name: str, x: Any) -> Any:
        from torch.distributed.checkpoint import state_dict as dcp

        model = self._model_of[name]
        # From host to host memory, FSDP1 of torch 2.13 reads memory that it has freed.
        offload = any(p.device.type != "cpu" for p in model.parameters())
        options = dcp.StateDictOptions(full_state_dict=True, cpu_offload=offload)
        if isinstance(x, torch.optim.Optimizer):
            return dcp.get_optimizer_state_dict(model, x, options=options)
        return dcp.get_model_state_dict(x, options=options)

    def _load_full_state(self, name: str, x: Any, state: Any) -> None:
        from torch.distributed.checkpoint import state_dict as dcp

        options = dcp.StateDictOptions(full_state_dict=True)
        if isinstance(x, torch.optim.Optimizer):
            dcp.set_optimizer_state_dict(self._model_of[name], x, state, options=options)
        else:
            dcp.set_model_state_dict(x, state, options=options)


def _sharded_models(state: Mapping[str, Any]) -> list[torch.nn.Module]:
    """The models of FSDP, either one, and others of DTensors."""
    fsdp = sys.modules.get("torch.distributed.fsdp")
    if fsdp is None:
        return []
    tensor: Any = getattr(sys.modules.get("torch.distributed.tensor"), "DTensor", ())
    return [
        x
        for x in state.values()
        if isinstance(x, torch.nn.Module)
        and (
            any(isinstance(m, fsdp.FullyShardedDataParallel) for m in x.modules())
            or any(isinstance(p, tensor) for p in x.parameters())
        )
    ]


def random_state() -> dict[str, Any]:
    """That of torch's, NumPy's and Python's global generators, and of this rank's CUDA device."""
    version, words, gauss = random.getstate()
    numpy = np.random.get_state(legacy=False)
    assert isinstance(numpy, dict)
    key = torch.from_numpy(numpy["state"]["key"].astype(np.int64))
    state: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "python": [version, torch.tensor(words), gauss],
        "numpy": {**numpy, "state": {**numpy["state"], "key": key}},
    }
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_random_state(state: dict[str, Any]) -> None:
    """Continues from ``random_state()``."""
    torch.set_rng_state(state["torch"])
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words.tolist()), gauss))
    numpy = state["numpy"]
    key = numpy["state"]["key"].numpy().astype(np.uint32)
    np.random.set_state({**numpy, "state": {**numpy["state"], "key": key}})
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
