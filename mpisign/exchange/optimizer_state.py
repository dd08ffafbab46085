"""The votes' state within an optimizer's own, for torch.distributed.checkpoint."""

from __future__ import annotations

import re
import sys
import warnings
from typing import Any

import torch

from mpisign.exchange.checkpoint import OF
from mpisign.exchange.gradient_exchange import GradientExchange

KEY = "mpisign"  # of the compressors' state in optimizer.state_dict()
NONE: dict[str, Any] = {"steps": 0, "state": {}}
#: Of a parameter: the steps, and a tensor of one rank's.
_STEPS = "mpisign_steps"
_TENSOR = re.compile(r"mpisign_rank(\d+)_of_(\d+)_(\w+)")
_CHECKPOINT = "torch.distributed.checkpoint.state_dict"
_DEPTH = 12  # frames between its function and ours, at most


def with_votes(
    state_dict: dict[str, Any],
    exchange: GradientExchange,
    place: tuple[int, int],
    more: dict[str, Any],
) -> dict[str, Any]:
    """An optimizer's state_dict with the votes' state under ``KEY``, and ``more`` in that.

    ``place``: this rank, and the number of ranks.

    torch.distributed.checkpoint keeps of it only what lies in "state" under a parameter, and one
    copy of what has one name on all ranks. So for it the state is there too, under names with the
    rank; zeros before the first step, which tell a checkpoint that is loaded what to look for. For
    others not: hvd.broadcast_optimizer_state could not broadcast what has another name on each
    rank.
    """
    own = {**exchange.state_dict(place), **more}
    if not _for_checkpoint():
        return {**state_dict, KEY: own}
    initial: dict[str, Any] = {}
    if not own["steps"]:
        of = [(s, b.compressor) for b in exchange.buckets for s in b.slots]
        initial = {s.name: c.initial_state(s.parameter.detach()) for s, c in of}
    prefix = f"mpisign_rank{place[0]}_of_{place[1]}_"
    states = dict(state_dict["state"])
    for number, name in zip(_numbers(state_dict), _names(exchange), strict=False):
        if name:
            kept = own["state"].get(name) or initial.get(name, {})
            tensors = {prefix + k: v for k, v in kept.items() if isinstance(v, torch.Tensor)}
            states[number] = {**states.get(number, {}), _STEPS: own["steps"], **tensors}
    return {**state_dict, "state": states, KEY: own}


def without_votes(
    state_dict: dict[str, Any], exchange: GradientExchange, place: tuple[int, int]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The inverse: the optimizer's state_dict, and the votes' state; warns if there is none.

    Of several ranks' tensors this rank's count, else those of the lowest.
    """
    rest: dict[Any, Any] = {}
    kept: dict[tuple[int, int], dict[str, Any]] = {}
    steps = None
    names = dict(zip(_numbers(state_dict), _names(exchange), strict=False))
    for number, state in state_dict["state"].items():
        own = {}
        for key, value in state.items():
            if key == _STEPS:
                steps = int(value)
            elif (match := _TENSOR.fullmatch(str(key))) and names.get(number):
                of = int(match[1]), int(match[2])
                kept.setdefault(of, {}).setdefault(names[number], {})[match[3]] = value
            else:
                own[key] = value
        if own or not state:
            rest[number] = own
    saved = state_dict.get(KEY)
    if saved is None and steps is not None:
        of = place if place in kept or not kept else min(kept)
        found = {"rank": of[0], "size": of[1]}
        saved = {"steps": steps, "state": kept.get(of, {}), OF: found}
    elif saved is None:
        saved = NONE
        if exchange.steps or state_dict["state"]:
            warnings.warn(
                "load_state_dict: there is no state of votes in it: they start anew", stacklevel=4
            )
    return {k: v for k, v in state_dict.items() if k != KEY} | {"state": rest}, saved


def _numbers(state_dict: dict[str, Any]) -> list[Any]:
    """The parameters as a state_dict names them, in the optimizer's order."""
    return list(dict.fromkeys(n for group in state_dict["param_groups"] for n in group["params"]))


def _names(exchange: GradientExchange) -> list[str]:
    """The names of the optimizer's parameters in its order, "" for what is not exchanged."""
    names = {id(s.parameter): s.name for s in exchange.slots}
    assert exchange.optimizer is not None
    groups = exchange.optimizer.param_groups
    return [names.get(id(p), "") for p in dict.fromkeys(p for g in groups for p in g["params"])]


def _for_checkpoint() -> bool:
    frame = sys._getframe(1)
    for _ in range(_DEPTH):
        if frame.f_globals.get("__name__") == _CHECKPOINT:
            return True
        if frame.f_back is None:
            return False
        frame = frame.f_back
    return False
