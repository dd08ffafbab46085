"""``factorize``: a model goes on as a thinner one, on all ranks with the same bits."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
from torch import nn

from mpisign.engine.engine import Engine
from mpisign.engine.header import Header
from mpisign.engine.replicas import ParameterDigest
from mpisign.exchange.broadcast_state import broadcast_tensors
from mpisign.exchange.left_state import left_states
from mpisign.exchange.parameter_slot import mark_replaced
from mpisign.exchange.step_hooks import KEY, StepHooks
from mpisign.functions import engine_of
from mpisign.lowrank.choice import Keep, layers_of
from mpisign.lowrank.install import install
from mpisign.lowrank.matrix import Matrix
from mpisign.lowrank.report import FactorizeReport, report_of
from mpisign.lowrank.states import layout, of_thin, projected, tensors
from mpisign.optim.base import CompressedOptimizer
from mpisign.optimizer import unwrap
from mpisign.policies import whole
from mpisign.transports.base import Steps
from mpisign.transports.tagged import TaggedTransport

_FUNCTION = "factorize"
_PATIENCE = 3600.0  # seconds, while rank 0 decomposes
_STATES = ("projected", "new")


def factorize(
    model: nn.Module,
    rank_ratio: float = 0.25,
    keep: Keep = (),
    optimizer: torch.optim.Optimizer | None = None,
    comm: Any = None,
    *,
    first: int = 1,
    last: int = 1,
    min_size: int = 4096,
    states: Literal["projected", "new"] = "projected",
) -> FactorizeReport:
    """Makes the large layers of ``model`` two thin ones each, in place; collective.

    A weight W of a Linear, a Conv2d, a gate of an LSTM or q, k, v and out_proj of a
    MultiheadAttention becomes U sqrt(S) and sqrt(S) V' of its largest singular values; a k x k
    convolution becomes one to r channels and one of 1 x 1. Biases and all other parameters stay.
    Train the full model for some epochs first, then call this between a step and the next backward
    pass. Source: Wang et al. 2021, Pufferfish, arXiv 2103.03936, section 3.

    Rank 0 decomposes, the others receive its factors: all ranks go on with the same bits.

    Layers count in the order of ``model.named_modules()``: Linear, Bilinear, convolutions,
    embeddings, recurrent layers, and attentions as one each. Weights that are tied, frozen,
    computed from others (weight norm), grouped convolutions, subclasses of the layers above and
    layers with hooks stay full; the report says why.

    An ``optimizer`` goes on: factors take their weight's place in its parameter groups, so rates
    and weight decays stay. If it is a ``mpisign.DistributedOptimizer`` it is unwrapped, and wrapped
    again as it was: buckets are planned anew, the count of steps continues. After
    ``mpisign.unwrap`` it is left to you to wrap it. Of what optimizer and compressor keep of W,
    sums of gradients S (momenta, residuals) become S V and U' S, by the chain rule; sums of squares
    the same with squared factors; other state is dropped.

    Args:
        model: the module; not wrapped by DDP or FSDP, which come after.
        rank_ratio: the factors' rank as a share of the full rank, in (0, 1], rounded down.
        keep: what stays full besides: names of modules ("blocks.0", with all within), patterns
            ("*.linear1"), or a function of (name, module).
        optimizer: the one that steps on the model; without it, make a new one afterwards.
        comm: what ``mpisign.Communicator`` takes; default: the optimizer's, else what the launcher
            started.
        first: that many layers stay full at the beginning. The paper keeps the first ten of VGG-19,
            the first block of a ResNet, the first encoder of a transformer.
        last: that many at the end.
        min_size: coordinates of a matrix below which it stays.
        states: "projected" as above, or "new": factors start without momenta and residuals.

    Returns:
        What became thin, with ranks and parameters, and what stayed and why.

    Raises:
        TypeError, ValueError: invalid arguments.
        CollectiveError: on every rank, with the model unchanged: a weight of some rank holds NaN or
            infinity, replicas differ, or rank 0 could not decompose.
        DisagreementError: ranks differ in the model's layers or in the arguments.

    Example:
        >>> import torch
        >>> from mpisign.lowrank import factorize
        >>> layers = [torch.nn.Linear(80, 80) for _ in range(3)]
        >>> model = torch.nn.Sequential(*layers)
        >>> print(factorize(model, rank_ratio=0.25))
        weight    shape     rank  parameters  thin
        0                                     stays: first
        1.weight  (80, 80)    20       6,400  3,200
        2                                     stays: last
        model                         19,440  16,240 (83.5 %)
    """
    _check(model, rank_ratio, optimizer, first, last, min_size, states)
    layers = layers_of(model, float(rank_ratio), keep, int(first), int(last), int(min_size))
    before = sum(p.numel() for p in model.parameters())
    hooks = None if optimizer is None else optimizer.__dict__.get(KEY)
    if isinstance(hooks, StepHooks) and comm is None:
        engine = hooks.exchange.engine_now()
    else:
        engine = engine_of(_FUNCTION, comm)
    matrices = [x for layer in layers for x in layer.matrices]
    kept = {} if optimizer is None or states == "new" else optimizer.state
    found = _Decomposed(model, matrices, kept, repr((float(rank_ratio), states)))
    found.agree(engine)
    if not matrices:
        return report_of(layers, before, before, ())
    slots = {} if hooks is None else {s.parameter: s.name for s in hooks.exchange.slots}
    names: dict[torch.Tensor, str] = {p: name for name, p in model.named_parameters()}
    if optimizer is not None and hooks is not None:
        unwrap(optimizer)
    for layer in layers:
        if layer.matrices:
            install(model, layer)
    new_states: set[str] = set()
    if optimizer is not None:
        new_states = _change(optimizer, model, matrices, found, states == "projected")
    if optimizer is not None and hooks is not None:
        hooks.wrap_again(optimizer, _named(optimizer, model, matrices, slots, names))
    left = set(model.parameters())
    mark_replaced((p for p in names if p not in left), _FUNCTION)
    after = sum(p.numel() for p in model.parameters())
    return report_of(layers, before, after, sorted(new_states))


def _check(
    model: Any, rank_ratio: Any, optimizer: Any, first: Any, last: Any, min_size: Any, states: Any
) -> None:
    """Raises TypeError, ValueError for invalid arguments, before anything is sent."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"factorize: model must be a Module, got {type(model).__name__}")
    if isinstance(model, (nn.parallel.DistributedDataParallel, nn.DataParallel)):
        raise ValueError(
            f"factorize: model must not be wrapped, got {type(model).__name__}: give model.module, "
            "then wrap it anew"
        )
    if any(hasattr(p, "full_tensor") for p in model.parameters()):
        raise ValueError("factorize: model must be whole on each rank: factorize before FSDP")
    if isinstance(rank_ratio, bool) or not isinstance(rank_ratio, (int, float)):
        raise TypeError(f"factorize: rank_ratio must be a number, got {type(rank_ratio).__name__}")
    if not 0 < rank_ratio <= 1:
        raise ValueError(f"factorize: rank_ratio must be in (0, 1], got {rank_ratio!r}")
    for name, value in (("first", first), ("last", last), ("min_size", min_size)):
        if whole(value, 0, 1 << 62) is None:
            raise ValueError(f"factorize: {name} must be a number from 0, got {value!r}")
    if states not in _STATES:
        raise ValueError(f"factorize: states must be 'projected' or 'new', got {states!r}")
    if optimizer is None:
        return
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(
            f"factorize: optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}"
        )
    if isinstance(optimizer, CompressedOptimizer):
        raise ValueError(
            f"factorize: optimizer must not be {type(optimizer).__name__}, which exchanges the "
            "parameters that it was made with: factorize(model), then make a new one"
        )
    if hasattr(optimizer, "skip_synchronize"):
        raise ValueError(
            "factorize: optimizer must not be Horovod's: mpisign.unwrap(optimizer) first, and "
            "hvd.DistributedOptimizer again afterwards"
        )


class _Decomposed:
    """The factors, and what ``kept``, an optimizer's state, becomes of each matrix."""

    def __init__(
        self, model: nn.Module, matrices: Sequence[Matrix], kept: Any, settings: str
    ) -> None:
        self.model, self.matrices, self.settings = model, matrices, settings
        self.kept = [kept.get(x.weight, {}) for x in matrices]
        self.states: list[tuple[dict[str, Any], dict[str, Any]]] = []

    def agree(self, engine: Engine) -> None:
        """Rank 0 decomposes, all receive its factors and states; or all raise. Collective."""
        header = Header(_FUNCTION)
        try:
            header = self._header()
            if engine.transport.rank == 0:
                for x in self.matrices:
                    x.decompose()
        except Exception as error:
            header = header.refusal(str(error) or type(error).__name__)
        digest = ParameterDigest()
        for _, p in sorted(self.model.named_parameters(), key=lambda pair: pair[0]):
            if p.layout is torch.strided and not p.is_meta:
                flat = p.detach().cpu().contiguous().view(-1)
                digest.update(flat.view(torch.uint8).numpy())
        engine.digest = digest.field()

        def steps(wire: TaggedTransport) -> Steps[None]:
            yield from engine.headers(wire, header, _FUNCTION)
            yield from broadcast_tensors(wire, [f for x in self.matrices for f in (x.u, x.v)])
            self.states = [projected(*pair) for pair in zip(self.kept, self.matrices, strict=True)]
            every = [t for pair in self.states for state in pair for t in tensors(state)]
            yield from broadcast_tensors(wire, every)

        progress, usual = engine.progress, engine.progress.timeout
        progress.timeout = max(usual, _PATIENCE)
        try:
            engine.submit(_FUNCTION, steps).wait()
        finally:
            progress.timeout = usual

    def _header(self) -> Header:
        plan = [
            (x.name, tuple(x.weight.shape), str(x.weight.dtype), x.parts, x.rank)
            for x in self.matrices
        ]
        kept = [layout(state) for state in self.kept]
        for x in self.matrices:
            if not bool(x.weight.isfinite().all()):
                raise ValueError(f"parameter {x.name!r} holds NaN or infinity")
        return Header(
            _FUNCTION,
            tensor=_digest(repr(plan)),
            length=sum(x.parameters for x in self.matrices),
            settings=_digest(f"{self.settings} {kept!r}"),
        )


def _digest(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def _change(
    optimizer: torch.optim.Optimizer,
    model: nn.Module,
    matrices: Sequence[Matrix],
    found: _Decomposed,
    project: bool,
) -> set[str]:
    """Puts the factors into the optimizer; the names of weights whose state was dropped."""
    names = {p: name for name, p in model.named_parameters()}
    thin = {x.weight: [p for pair in x.thin for p in pair] for x in matrices}
    for group in optimizer.param_groups:
        old = group["params"]
        if "param_names" in group:
            pairs = zip(old, group["param_names"], strict=True)
            group["param_names"] = [
                name if p is q else names[q] for p, name in pairs for q in thin.get(p, [p])
            ]
        group["params"] = [q for p in old for q in thin.get(p, [p])]
    dropped = set()
    compressors = left_states(optimizer)
    for x, own in zip(matrices, found.states, strict=True):
        for states, made in ((optimizer.state, own), (compressors, None)):
            state = states.pop(x.weight, {})
            pair = ({}, {}) if not project else made or projected(state, x)
            if state and not pair[0]:
                dropped.add(x.name)
            for p, each in of_thin(x, *pair):
                if each:
                    states[p] = each
    return dropped


def _named(
    optimizer: torch.optim.Optimizer,
    model: nn.Module,
    matrices: Sequence[Matrix],
    slots: dict[torch.Tensor, str],
    before: dict[torch.Tensor, str],
) -> list[tuple[str, torch.Tensor]] | None:
    """The optimizer's parameters with names as they were given, None where these were positions.

    ``slots``: the names in the exchange, ``before``: those in the model, of the old parameters.
    """
    if list(slots.values()) in (_positions(slots), _positions(slots)[::-1]):
        return None
    now = {p: name for name, p in model.named_parameters()}
    given = dict(slots)
    for x in matrices:
        name, own = slots.get(x.weight, ""), before[x.weight]
        prefix = name.removesuffix(own) if name.endswith(own) else f"{name}."
        given |= {p: prefix + now[p] for pair in x.thin for p in pair}
    return [(given[p], p) for p in _parameters(optimizer)]


def _positions(slots: dict[torch.Tensor, str]) -> list[str]:
    return [str(i) for i in range(len(slots))]


def _parameters(optimizer: torch.optim.Optimizer) -> Iterator[torch.Tensor]:
    for group in optimizer.param_groups:
        yield from group["params"]
