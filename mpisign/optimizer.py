"""Training without Horovod or DDP: any torch optimizer that steps on votes, over any wire."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from mpisign import policies
from mpisign.communicator import Communicator
from mpisign.compressors import Compressor, resolve
from mpisign.exchange.arguments import named_pairs
from mpisign.exchange.buckets import BUCKET_SIZE
from mpisign.exchange.gradient_exchange import PLANES_ONLY, GradientExchange
from mpisign.exchange.local_steps import check_optimizer
from mpisign.exchange.optimizer_options import check_plain, warn_of_optimizer
from mpisign.exchange.parameter_slot import ParameterSlot
from mpisign.exchange.skip import Rule
from mpisign.exchange.step_hooks import KEY, StepHooks
from mpisign.functions import engine_of

_FUNCTION = "DistributedOptimizer"


def DistributedOptimizer(
    optimizer: torch.optim.Optimizer,
    named_parameters: Iterable[tuple[str, torch.Tensor]] | None = None,
    *,
    comm: Any = None,
    compression: str | Compressor = "signum",
    algorithm: policies.Algorithm = "auto",
    byzantine_f: int = 0,
    seed: int = 0,
    skip: str | Rule | None = "auto",
    overlap: bool = False,
    bucket_size: int | None = None,
    warmup_steps: int = 0,
    participation: float = 1.0,
) -> torch.optim.Optimizer:
    """Makes ``optimizer`` step on the aggregate of all ranks' compressed gradients.

    Before each ``step()`` every gradient becomes the aggregate of its compressor over ``comm``: for
    those that vote +1, -1, or 0 where ``ties="zero"``. torch's SGD then does x -= lr (V + wd x).
    A parameter without a gradient on some ranks counts as zeros there (with signum, as its momentum
    stands); one without a gradient on any rank is left alone. Parameters must start equal on all
    ranks: the first step checks that, and every step checks the optimizer's options.

    The compressor's state is part of ``optimizer.state_dict()`` and differs from rank to rank. A
    copy or pickle of the optimizer has lost its hooks: wrap it again. With torch.amp.GradScaler all
    ranks skip a step where one rank's gradients hold inf or NaN, and lower the scale alike; it is
    refused with ``overlap``.

    Args:
        optimizer: any torch optimizer; use one without momentum for votes.
        named_parameters: ``model.named_parameters()``: names for messages, ``skip``, checkpoints
            and the check that all ranks hold the same model. Default: positions.
        comm: what ``mpisign.Communicator`` takes, default the ranks that the launcher started.
        compression: a name (see ``mpisign.Compression``) or a Compressor. "none" is the fp32
            average by the wire's own allreduce, the baseline.
        algorithm: of the vote, see ``mpisign.majority_vote``.
        byzantine_f: the number of ranks that may send false tallies, for compressors that vote;
            see ``mpisign.majority_vote``.
        seed: of the random bits, equal on all ranks.
        skip: parameters that are sent differently: None, or a function of (name, parameter) that
            returns "16bit", "abstain" or None. With "auto" embeddings, found by the modules that
            hold them, abstain where their gradient is 0; with compressors whose updates have a
            gradient's size, vectors and tensors of up to 1,024 coordinates are averaged in 16 bits.
        overlap: exchange gradients while ``backward()`` computes others. Then there is one
            ``backward()`` a step, and gradients and learning rates must not change before
            ``step()``. The optimizer gets a communicator of its own, unless ``comm`` is a
            ``Communicator``, which no other optimizer with overlap may use.
        bucket_size: coordinates in a bucket, default 2 Mi; without overlap, by default, one bucket
            for all votes or averages.
        warmup_steps: steps, from the first one on, that take the plain fp32 average of the ranks'
            gradients; then votes, with momenta that have seen these gradients. The learning rate is
            yours to change at the switch: a vote is +1 or -1, whatever the gradient's size.
        participation: the share of the ranks, rounded half up, that take part in each step after
            the warm-up (in each round of local steps): drawn anew by ``seed`` and step, the same on
            all ranks. Votes and means are those of the ranks that do. The others need no gradient
            (see ``mpisign.takes_part``) and send nothing that counts; their momenta and residuals
            stay as they are, and they step on the aggregate as all do. With compressors that vote
            or average, but not with "onebit", "robust", "detox" and ``byzantine_f``.

    Returns:
        ``optimizer`` itself.

    Raises:
        TypeError, ValueError: for invalid arguments.
        NaNError, DisagreementError, CollectiveError, CollectiveTimeout, WireError: from ``step()``,
            on every rank, before any parameter changes. With overlap an error found after the last
            bucket has started is raised on its own rank only.

    Example:
        >>> model = torch.nn.Linear(3, 1, bias=False)
        >>> _ = torch.nn.init.zeros_(model.weight)
        >>> sgd = torch.optim.SGD(model.parameters(), lr=0.5)
        >>> optimizer = DistributedOptimizer(sgd, model.named_parameters(), compression="sign")
        >>> model(torch.tensor([[5.0, -3.0, 0.1]])).sum().backward()
        >>> optimizer.step()
        >>> model.weight.data
        tensor([[-0.5000,  0.5000, -0.5000]])
    """
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(
            f"{_FUNCTION}: optimizer must be a torch.optim.Optimizer, "
            f"got {type(optimizer).__name__}"
        )
    if getattr(optimizer, KEY, None) is not None:
        raise ValueError(
            f"{_FUNCTION}: the optimizer is a DistributedOptimizer already: to wrap it again, "
            "mpisign.unwrap(optimizer) first"
        )
    check_plain(_FUNCTION, optimizer)
    compressor = resolve(_FUNCTION, compression)
    members = [ParameterSlot(name, p) for name, p in _named(optimizer, named_parameters)]
    warn_of_optimizer(_FUNCTION, compressor, optimizer, stacklevel=2)
    check_optimizer(_FUNCTION, optimizer, compressor, overlap)
    if bucket_size is None and (overlap or compressor.aggregate not in PLANES_ONLY):
        bucket_size = BUCKET_SIZE
    if overlap and not isinstance(comm, Communicator):
        # Two optimizers on one engine may fill their first buckets in another order on each rank.
        comm = Communicator(comm)
    engine = engine_of(_FUNCTION, comm)
    exchange = GradientExchange(
        "step",
        lambda: engine,
        members[::-1] if overlap else members,
        compressor,
        skip=skip,
        algorithm=algorithm,
        byzantine_f=byzantine_f,
        seed=seed,
        bucket_size=bucket_size,
        optimizer=optimizer,
        state=True,
        number=engine.exchanges if overlap else 0,
        ahead=overlap,
        warmup_steps=warmup_steps,
        participation=participation,
    )
    engine.exchanges += overlap

    def wrap_again(optimizer: torch.optim.Optimizer, named: Any) -> None:
        DistributedOptimizer(
            optimizer,
            named,
            comm=comm,
            compression=compressor,
            algorithm=algorithm,
            byzantine_f=byzantine_f,
            seed=seed,
            skip=skip,
            overlap=overlap,
            bucket_size=bucket_size,
            warmup_steps=warmup_steps,
            participation=participation,
        )

    setattr(optimizer, KEY, StepHooks(optimizer, exchange, overlap, wrap_again))
    return optimizer


def takes_part(optimizer: torch.optim.Optimizer) -> bool:
    """Whether this rank's gradients count in the optimizer's next step; see ``participation``.

    Where they do not, the rank need compute none, and calls ``step()`` all the same. With local
    steps the answer is that of the whole round. Not collective.

    Args:
        optimizer: what ``mpisign.DistributedOptimizer`` returned.

    Returns:
        True without ``participation``, and in the steps of a warm-up.

    Raises:
        TypeError: if it is another optimizer.

    Example:
        >>> sgd = torch.optim.SGD([torch.nn.Parameter(torch.zeros(2))], lr=0.5)
        >>> takes_part(DistributedOptimizer(sgd, participation=0.5))  # one rank, which is needed
        True
    """
    hooks = optimizer.__dict__.get(KEY) if isinstance(optimizer, torch.optim.Optimizer) else None
    if not isinstance(hooks, StepHooks):
        raise TypeError(
            "takes_part: optimizer must be one that mpisign.DistributedOptimizer returned, "
            f"got {type(optimizer).__name__}"
        )
    return hooks.takes_part()


def unwrap(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """Takes back ``DistributedOptimizer``, or Horovod's: ``optimizer`` steps on its own gradients.

    Wrapped again it goes on: parameters that stay keep their momenta and residuals, new ones begin
    with none, and the count of steps continues. So a model may freeze, unfreeze, add or drop
    parameters between two steps, the same ones on all ranks:

        optimizer = mpisign.unwrap(optimizer)
        optimizer.add_param_group({"params": new_layer.parameters()})
        mpisign.DistributedOptimizer(optimizer, model.named_parameters())

    Until it is wrapped again, ``optimizer.state_dict()`` is without the votes' state. Exchanges
    that began in a backward pass are discarded: call it between a step and the next backward pass.
    The state that ``hvd.DistributedOptimizer``'s compression keeps is in its own ``state_dict()``.

    Args:
        optimizer: what ``mpisign.DistributedOptimizer``, ``mpisign.horovod.DistributedOptimizer``
            or ``hvd.DistributedOptimizer`` returned.

    Returns:
        ``optimizer`` itself, again of the class that was wrapped.

    Raises:
        TypeError: if it is none of these.
        RuntimeError: in the middle of a round of local steps.

    Example:
        >>> sgd = torch.optim.SGD([torch.nn.Parameter(torch.zeros(2))], lr=0.5)
        >>> optimizer = DistributedOptimizer(sgd)
        >>> optimizer = DistributedOptimizer(unwrap(optimizer), compression="sign")
    """
    hooks = optimizer.__dict__.get(KEY) if isinstance(optimizer, torch.optim.Optimizer) else None
    if isinstance(hooks, StepHooks):
        hooks.take_off(optimizer)
        return optimizer
    if hasattr(optimizer, "skip_synchronize"):
        from mpisign.horovod.unwrap import unwrap as unwrap_horovods

        return unwrap_horovods(optimizer)
    raise TypeError(
        "unwrap: optimizer must be one that DistributedOptimizer returned, "
        f"got {type(optimizer).__name__}"
    )


def _named(
    optimizer: torch.optim.Optimizer,
    named_parameters: Iterable[tuple[str, torch.Tensor]] | None,
) -> list[tuple[str, torch.Tensor]]:
    """The optimizer's parameters with their names, in its order."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    if named_parameters is None:
        return [(name, p) for p, name in {p: str(i) for i, p in enumerate(parameters)}.items()]
    names = {p: name for name, p in named_pairs(_FUNCTION, named_parameters)}
    missing = sum(p not in names for p in parameters)
    if missing:
        raise ValueError(
            f"{_FUNCTION}: named_parameters must name every parameter of the optimizer, as "
            f"model.named_parameters() does, got no name for {missing} of {len(parameters)}"
        )
    return [(names[p], p) for p in dict.fromkeys(parameters)]
