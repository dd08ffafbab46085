"""torch FSDP: majority votes of which each rank computes its own shard.

FSDP1: ``model.register_comm_hook(state, mpisign.fsdp.majority_vote_hook)``. FSDP2:
``mpisign.fsdp.register_comm_hook(model, state)``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

try:
    import torch
    import torch.distributed as dist
    import torch.distributed.fsdp
except ImportError as error:
    from mpisign.errors import TORCH

    raise ImportError(f"mpisign.fsdp needs torch: {TORCH}") from error

from mpisign import policies
from mpisign.compressors import Compressor, Detox, NoisySign, Sign, StochasticSign
from mpisign.engine.engine import Engine
from mpisign.exchange.after_backward import after_backward, raise_after_backward
from mpisign.exchange.arguments import check_warmup
from mpisign.exchange.flat_average import flat_average
from mpisign.exchange.flat_vote import flat_vote
from mpisign.exchange.handed_shards import HandedShards
from mpisign.exchange.pending_step import ChangedVotes
from mpisign.exchange.process_group import FUNCTION, HookState
from mpisign.functions import engine_of

__all__ = ["MajorityVoteState", "majority_vote_hook", "register_comm_hook"]

_HOOK = "majority_vote_hook"
_STATELESS = (Sign, NoisySign, StochasticSign)  # or Detox of one of these


class MajorityVoteState(HookState):
    """The state of FSDP's hook on one rank: settings, and the number of calls.

    The number of calls keys the random bits: save ``state_dict()`` with the checkpoint, or a
    pickle, which holds the settings too but not ``process_group``.

    Args:
        process_group: FSDP's group, by default that of ``init_process_group``; or whatever
            ``mpisign.Communicator`` takes, over the same ranks.
        compression: "sign", "noisy_sign", "stochastic_sign", one of these Compressors, or
            ``Compression.detox`` of one. A momentum or a residual would need a rank's whole
            gradient from step to step, which FSDP avoids.
        algorithm: as in ``mpisign.majority_vote``; only NO_SHARD uses it.
        seed: of the random bits, equal on all ranks.
        timeout: seconds that a rank waits for the others, default ``MPISIGN_TIMEOUT``.
        changed_votes: "raise" if an optimizer steps on shards that are no longer votes, as after
            ``clip_grad_norm_`` or two passes without ``zero_grad()``, or "allow". A few values of
            each gradient are looked at.
        warmup_steps: backward passes, from the first one on, after which gradients are the ranks'
            plain fp32 average, as FSDP's own; then votes.

    Raises:
        ValueError: for invalid arguments.

    Example:
        >>> state = MajorityVoteState(compression="noisy_sign", seed=1)
        >>> state.state_dict()
        {'calls': 0}
    """

    pickled: ClassVar = (*HookState.pickled, "changed_votes", "warmup_steps")

    def __init__(
        self,
        process_group: Any = None,
        compression: str | Compressor = "sign",
        *,
        seed: int = 0,
        algorithm: policies.Algorithm = "auto",
        timeout: float | None = None,
        changed_votes: ChangedVotes = "raise",
        warmup_steps: int = 0,
    ) -> None:
        self.changed_votes = changed_votes
        super().__init__(process_group, compression, algorithm, seed, timeout)
        c = self.compressor
        if not isinstance(c.inner if isinstance(c, Detox) else c, _STATELESS):
            raise ValueError(
                f"{FUNCTION}: compression must keep no state: 'sign', 'noisy_sign' or "
                f"'stochastic_sign', got {compression!r}; mpisign.ddp takes the others, "
                "and muon's matrices whole"
            )
        self.warmup_steps = check_warmup(FUNCTION, warmup_steps)
        self._handed = HandedShards(FUNCTION, changed_votes)
        self._count_from_zero()

    def _start(self) -> None:
        super()._start()
        self._handed = HandedShards(FUNCTION, self.changed_votes)
        self._count_from_zero()

    def _count_from_zero(self) -> None:
        self.calls = self._passes = 0
        self._in_pass = False

    def state_dict(self) -> dict[str, int]:
        """Returns {"calls": n}, the same on every rank; with warm-up also the backward "passes"."""
        return {"calls": self.calls} | ({"passes": self._passes} if self.warmup_steps else {})

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Continues from ``state_dict()``."""
        self.calls = int(state_dict["calls"])
        self._passes = int(state_dict.get("passes", 0))

    def _warming(self) -> bool:
        """Whether this call is of a backward pass of warm-up, which it counts at its end."""
        if self._passes >= self.warmup_steps:
            return False
        if not self._in_pass:
            self._in_pass = True
            after_backward(self._end_pass)
        return True

    def _end_pass(self) -> None:
        self._passes += self._in_pass
        self._in_pass = False


def majority_vote_hook(
    state: MajorityVoteState, grad: torch.Tensor, output: torch.Tensor | None = None
) -> None:
    """The communication hook of FSDP1: votes of +1, -1, or 0 instead of the mean.

    For ``FullyShardedDataParallel.register_comm_hook(state, majority_vote_hook)``. Waits for the
    other ranks.

    Args:
        state: the ``MajorityVoteState``.
        grad: this rank's whole gradient of a unit, float (n,). With NO_SHARD it becomes the vote.
        output: this rank's shard, float (n / p,): rank r's becomes the vote on the r-th of p equal
            parts of ``grad``. None with NO_SHARD.

    Raises:
        NaNError, DisagreementError, CollectiveError, CollectiveTimeout, WireError: as
            ``mpisign.majority_vote`` does, the same on every rank, out of ``backward()``. The
            gradients are undefined then.

    Example:
        >>> store = dist.HashStore()
        >>> dist.init_process_group("gloo", store=store, rank=0, world_size=1)
        >>> shard = torch.empty(3)
        >>> majority_vote_hook(MajorityVoteState(), torch.tensor([5.0, -3.0, 0.1]), shard)
        >>> shard
        tensor([ 1., -1.,  1.])
        >>> dist.destroy_process_group()
    """
    _vote(state, state.engine, grad, output)


def register_comm_hook(model: torch.nn.Module, state: MajorityVoteState) -> None:
    """Registers the vote with every FSDP2 module of ``model`` (those of ``fully_shard``).

    Replaces their reduce-scatter and sets their gradients to be summed, not divided. The ranks are
    those of each module's mesh, whatever ``state.process_group`` is. On a mesh of one rank torch
    calls no reduce-scatter, and gradients stay unchanged.

    Args:
        model: a module with FSDP2 modules, sharded on one mesh dimension.
        state: the ``MajorityVoteState``.

    Raises:
        ValueError: if ``model`` has no such module, or one is also replicated (HSDP).
        ImportError: if torch is too old for these methods of ``FSDPModule``.

    Example:
        >>> from torch.distributed.fsdp import fully_shard
        >>> store = dist.HashStore()
        >>> dist.init_process_group("gloo", store=store, rank=0, world_size=1)
        >>> mesh = torch.distributed.init_device_mesh("cpu", (1,))
        >>> register_comm_hook(fully_shard(torch.nn.Linear(3, 1), mesh=mesh), MajorityVoteState())
        >>> dist.destroy_process_group()
    """
    kind: Any = getattr(dist.fsdp, "FSDPModule", None)
    wanted = ("set_custom_reduce_scatter", "set_force_sum_reduction_for_comms")
    if kind is None or not all(hasattr(kind, name) for name in wanted):
        raise ImportError(
            f"register_comm_hook needs a torch whose FSDPModule has {', '.join(wanted)}, "
            f"such as 2.13, got {torch.__version__}"
        )
    modules: list[Any] = [m for m in model.modules() if isinstance(m, kind)]
    if not modules:
        raise ValueError(
            "register_comm_hook: model must have modules that fully_shard was applied to "
            "(FullyShardedDataParallel has a register_comm_hook of its own)"
        )
    for p in model.parameters():
        placements: Sequence[Any] = getattr(p, "placements", ())
        if len(placements) > 1 and placements[0].is_replicate():
            raise ValueError("register_comm_hook: model must be sharded alone, got hybrid sharding")
    for m in modules:
        m.set_custom_reduce_scatter(_VoteScatter(state))
        m.set_gradient_divide_factor(1.0)
        m.set_force_sum_reduction_for_comms(True)


class _VoteScatter:
    """FSDP2's interface of a reduce-scatter (torch's ReduceScatter, which it does not export)."""

    def __init__(self, state: MajorityVoteState) -> None:
        self._state = state

    def allocate(
        self, size: Sequence[int], *, dtype: torch.dtype, device: torch.device
    ) -> torch.Tensor:
        return torch.empty(*size, dtype=dtype, device=device)

    def __call__(
        self,
        output_tensor: torch.Tensor,
        input_tensor: torch.Tensor,
        group: dist.ProcessGroup,
        op: Any,
        async_op: bool = False,
    ) -> None:
        _vote(self._state, lambda: engine_of(_HOOK, group), input_tensor, output_tensor)


def _vote(
    state: MajorityVoteState, engine_now: Any, grad: torch.Tensor, output: torch.Tensor | None
) -> None:
    step, state.calls = state.calls, state.calls + 1
    warming = state._warming()
    try:
        engine: Engine = engine_now()
        what = _HOOK, engine, state.compressor, grad, output
        how: Any = {"step": step, "optimizers": state._handed.steppers}
        if warming:
            flat_average(*what, warmup_steps=state.warmup_steps, **how)
        else:
            flat_vote(*what, algorithm=state.algorithm, seed=state.seed, **how)
        state._handed.add(grad if output is None else output, votes=not warming)
    except Exception as error:
        state._in_pass = False
        if output is not None:
            output.zero_()
        raise_after_backward(error)
