"""torch FSDP: votes of which each rank needs its own shard alone.

FSDP1: ``model.register_comm_hook(state, mpisign.fsdp.majority_vote_hook)``. FSDP2:
``mpisign.fsdp.register_comm_hook(model, state)``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

try:
    import torch
    import torch.distributed as dist
    import torch.distributed.fsdp
except ImportError as error:
    raise ImportError('mpisign.fsdp needs torch: pip install "mpisign[torch]"') from error

from mpisign import policies
from mpisign.compressors import Compressor, Detox, NoisySign, Sign, StochasticSign, resolve
from mpisign.ddp.group import Group
from mpisign.engine.engine import Engine
from mpisign.exchange.after_backward import raise_after_backward
from mpisign.exchange.flat_vote import flat_vote
from mpisign.functions import engine_of

_FUNCTION = "MajorityVoteState"
_HOOK = "majority_vote_hook"
_STATELESS = (Sign, NoisySign, StochasticSign)  # or Detox of one of these


class MajorityVoteState:
    """What the hook keeps on one rank: settings, and how often it was called.

    ``process_group``: FSDP's, default all of ``init_process_group``; or whatever
    ``mpisign.Communicator`` takes, over the same ranks. ``compression``: "sign", "noisy_sign",
    "stochastic_sign", one of these Compressors, or ``Compression.detox`` of one: those with a
    momentum or a residual need a rank's whole gradient from step to step, which FSDP exists to
    avoid. ``algorithm``: of
    NO_SHARD alone. ``seed``: of the random bits, which the number of calls keys too: keep
    ``state_dict()``, or a pickle (which lacks the process group), with the checkpoint.
    ``timeout``: seconds that ranks wait for each other, default ``MPISIGN_TIMEOUT``.

    Raises ValueError for arguments that do not fit.
    """

    def __init__(
        self,
        process_group: Any = None,
        compression: str | Compressor = "sign",
        *,
        algorithm: policies.Algorithm = "auto",
        seed: int = 0,
        timeout: float | None = None,
    ) -> None:
        self.compressor = resolve(_FUNCTION, compression)
        c = self.compressor
        if not isinstance(c.inner if isinstance(c, Detox) else c, _STATELESS):
            raise ValueError(
                f"{_FUNCTION}: compression must keep no state: 'sign', 'noisy_sign' or "
                f"'stochastic_sign', got {compression!r}; mpisign.ddp takes the others"
            )
        policies.code(_FUNCTION, "algorithm", algorithm, policies.ALGORITHMS)
        if not isinstance(seed, int) or not 0 <= seed < 1 << 64:
            raise ValueError(f"{_FUNCTION}: seed must be in [0, 2**64), got {seed!r}")
        self.algorithm, self.seed = algorithm, seed
        self.group = Group(_FUNCTION, process_group, timeout)
        self.calls = 0

    def state_dict(self) -> dict[str, int]:
        """{"calls": n}, the same on every rank."""
        return {"calls": self.calls}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Continues from ``state_dict()``."""
        self.calls = int(state_dict["calls"])

    def __getstate__(self) -> dict[str, Any]:
        names = ("compressor", "algorithm", "seed", "calls")
        return {n: getattr(self, n) for n in names} | {"timeout": self.group.timeout}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.group = Group(_FUNCTION, None, state.pop("timeout"))
        self.__dict__.update(state)


def majority_vote_hook(
    state: MajorityVoteState, grad: torch.Tensor, output: torch.Tensor | None = None
) -> None:
    """A communication hook of FSDP1: +1, -1, or 0 where ``ties="zero"``, instead of the mean.

    ``grad``: this rank's whole gradient of a unit; with NO_SHARD it becomes the vote. Else
    ``output``, this rank's shard, does: rank r's is the r-th of equal parts of ``grad``, which
    stays as it is. Waits for the other ranks. ``backward()`` raises what ``mpisign.majority_vote``
    raises, the same on every rank; gradients are of no use then.
    """
    _vote(state, state.group.engine, grad, output)


def register_comm_hook(model: torch.nn.Module, state: MajorityVoteState) -> None:
    """Has the modules of ``model`` that ``fully_shard`` was applied to vote. For FSDP2.

    Takes their custom reduce-scatter, and sets their gradients to be summed and not divided.
    The group is that of each module's mesh, whatever ``state`` says. On a mesh of one rank torch
    calls no reduce-scatter: gradients stay what they are.

    Raises ValueError if there is no such module, or one is replicated too (HSDP), ImportError if
    torch is older than these methods of ``FSDPModule``.
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
    try:
        engine: Engine = engine_now()
        flat_vote(
            _HOOK,
            engine,
            state.compressor,
            grad,
            output,
            algorithm=state.algorithm,
            seed=state.seed,
            step=step,
        )
    except Exception as error:
        if output is not None:
            output.zero_()
        raise_after_backward(error)
