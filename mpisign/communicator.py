"""``Communicator``: the ranks that vote together, and their collectives."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from mpisign import policies
from mpisign.collectives import auto, compressed_mean, counts, majority_vote, robust_aggregate
from mpisign.collectives.compressed_mean_state import CompressedMeanState
from mpisign.collectives.counts import Tally
from mpisign.collectives.hierarchy import levels_of
from mpisign.collectives.planned_vote import MajorityVotePlan
from mpisign.connect import connect
from mpisign.engine.engine import Engine, print_choice
from mpisign.engine.handle import Handle
from mpisign.engine.progress import finish_all, timeout_of_environment
from mpisign.engine.replicas import check_every
from mpisign.robust.base import Rule

T = TypeVar("T")
_FUNCTION = "Communicator"


class Communicator:
    """Ranks that vote together. Making one is collective: all its ranks do, in the same order.

    With ``MPISIGN_DEBUG=1`` rank 0 prints which transport was picked, and why.

    Args:
        x: an mpi4py intracommunicator, a torch.distributed process group, a Horovod process set, a
            ``Transport``, "mpi", "horovod" or "torch" (all ranks of the job), or None: what the
            launcher started.
        timeout: seconds that ranks wait for each other before all raise CollectiveTimeout; default
            ``MPISIGN_TIMEOUT``, else 600.
        nodes: one number a rank, equal for ranks that share a node's network link; default: by host
            name. Or several such lists, innermost level first, such as [node of each rank, rack of
            each rank]: the groups of each level are unions of those of the level before.

    Attributes:
        rank: this process, from 0 to ``size`` - 1.
        size: the number of ranks.

    Raises:
        TypeError, ValueError: arguments that do not fit.
        ImportError: what ``x`` needs is not installed.
        LauncherError: the launcher started more ranks than are seen.

    Example:
        >>> import numpy as np, mpisign
        >>> comm = mpisign.Communicator()
        >>> comm.majority_vote(np.array([3.0, -0.5], np.float32)).tolist()
        [1.0, -1.0]
    """

    def __init__(
        self,
        x: Any = None,
        *,
        timeout: float | None = None,
        nodes: Sequence[int] | Sequence[Sequence[int]] | None = None,
    ) -> None:
        wrong: list[Exception] = []  # raised on all ranks by ``survey``, which the others enter

        def checked(setting: Callable[[], T], otherwise: T) -> T:
            try:
                return setting()
            except (TypeError, ValueError) as error:
                wrong.append(error)
                return otherwise

        seconds = checked(lambda: _seconds(timeout), 600.0)
        finish_all()  # while this rank is here, nobody else would move what is in flight
        transport, why = connect(_FUNCTION, x, seconds)
        given = checked(lambda: levels_of(_FUNCTION, nodes, transport.size), None)
        self.engine = Engine(transport, seconds, checked(check_every, 0))
        auto.survey(self.engine, given, wrong[0] if wrong else None)
        self.rank: int = transport.rank
        self.size: int = transport.size
        print_choice(transport, why)

    def free(self) -> None:
        """Waits for what is in flight and releases the transport. Collective; once is enough.

        MPI libraries have a few thousand communicators in all, and this has two. One that a front
        end made from its ``comm=`` is freed with that.

        Example:
            >>> import mpisign
            >>> mpisign.Communicator().free()
        """
        self.engine.free()

    def __repr__(self) -> str:
        return f"Communicator({self.engine.transport.name}, rank {self.rank} of {self.size})"

    def majority_vote(
        self,
        x: Any,
        *,
        algorithm: policies.Algorithm = "auto",
        zeros: policies.Zeros = policies.DEFAULT_ZEROS,
        nan: policies.Nan = policies.DEFAULT_NAN,
        ties: policies.Ties = policies.DEFAULT_TIES,
        weight: float = 1.0,
        byzantine_f: int = 0,
        groups: Any = None,
        seed: int = 0,
        step: int | None = None,
        out: Any = None,
    ) -> Any:
        """sign(sum over ranks of weight * sign(x)), bit for bit the same on every rank.

        Packing, exchange and tally of large arrays overlap. After an error the contents of ``out``
        are undefined. Source: Bernstein et al. 2019, signSGD with majority vote is communication
        efficient and fault tolerant.

        Args:
            x: float32, float16, bfloat16 or float64, NumPy or CuPy array or torch tensor (CPU or
                CUDA) of any shape; the same length and dtype on all ranks, on a device on all or
                on none.
            algorithm: "auto", "allgather", "alltoall" and "hierarchical" (counts in each node, then
                between nodes) give the majority of the ranks; "vote_of_votes" (majorities of nodes
                vote) does not: a persistent bias is published.
            zeros, nan: what zeros and NaN vote, see ``mpisign.pack``.
            ties: see ``mpisign.majority``.
            weight: of this rank, a number from 0.
            byzantine_f: how many ranks may lie about tallies too (2 f + 1 owners tally a shard).
            groups: ranks that vote among themselves first, then their majorities (DETOX): an odd
                number of ranks a group, a ``mpisign.detox.Groups`` or a partition of the ranks.
            seed, step: keys of the random bits, in [0, 2**64); ``step`` defaults to the
                communicator's count of calls.
            out: C-contiguous, of x's shape and dtype; may be ``x``.

        Returns:
            An array of x's framework, shape and dtype: +1, -1, and 0 where ``ties="zero"`` found no
            majority; or ``out``.

        Raises:
            DisagreementError: ranks differ in length, dtype, policy, algorithm, step or seed; names
                ranks and values. As all of these, the same on every rank.
            NaNError: a rank holds NaN under nan="raise".
            CollectiveError: arguments of some rank do not fit.
            CollectiveTimeout: ranks did not arrive in time; names them.
            WireError: a message is not what the protocol asks for.

        Example:
            >>> import torch, mpisign
            >>> mpisign.Communicator().majority_vote(torch.tensor([0.1, -2.0]))
            tensor([ 1., -1.])
        """
        return majority_vote.run(
            self.engine,
            x,
            out,
            groups,
            algorithm=algorithm,
            zeros=zeros,
            nan=nan,
            ties=ties,
            weight=weight,
            byzantine_f=byzantine_f,
            seed=seed,
            step=step,
        )

    def plan_majority_vote(
        self,
        x: Any,
        *,
        algorithm: policies.Algorithm = "auto",
        zeros: policies.Zeros = policies.DEFAULT_ZEROS,
        nan: policies.Nan = policies.DEFAULT_NAN,
        ties: policies.Ties = policies.DEFAULT_TIES,
        weight: float = 1.0,
        groups: Any = None,
        seed: int = 0,
    ) -> MajorityVotePlan:
        """Agrees on votes of one kind and allocates what they need, before the first of them.

        ``majority_vote`` makes the same plan in its first call of a kind and keeps it; this moves
        the work out of the first step, and ``plan(x, out=out)`` says what is meant. Collective.

        Args:
            x: an array like those that will be voted on, or (shape, dtype); in host memory. Its
                values are not read.
            algorithm, zeros, nan, ties, weight, groups, seed: as ``majority_vote``.

        Returns:
            A plan: ``plan(x, out=out)`` votes; ``plan.start(x, out=out)`` returns a handle.

        Raises:
            DisagreementError, CollectiveError: as ``majority_vote``, the same on every rank.

        Example:
            >>> import numpy as np, mpisign
            >>> plan = mpisign.Communicator().plan_majority_vote((2, "float32"))
            >>> plan(np.array([3.0, -0.5], np.float32)).tolist()
            [1.0, -1.0]
        """
        options = {
            "algorithm": algorithm,
            "zeros": zeros,
            "nan": nan,
            "ties": ties,
            "weight": weight,
            "byzantine_f": 0,
            "seed": seed,
        }
        return MajorityVotePlan(self.engine, x, groups, options)

    def tally(
        self,
        x: Any,
        *,
        algorithm: policies.Algorithm = "auto",
        zeros: policies.Zeros = policies.DEFAULT_ZEROS,
        nan: policies.Nan = policies.DEFAULT_NAN,
        weight: int = 1,
        seed: int = 0,
        step: int | None = None,
        out: tuple[Any, Any] | None = None,
    ) -> Tally:
        """How many ranks voted - and + at each coordinate of ``x``, the same on every rank.

        A coordinate that abstains counts in neither.

        Wire: as alltoall-vote and allgather-vote, with count planes of - (lowest bit first), then
        of +, in place of the result. "alltoall": owners of shards tally and send counts to all,
        k B (1 - 1/p) bytes up and k n B (1 - 1/p) down per rank, n = ceil(log2(p + 1)),
        B = ceil(d / 8), k = 2 if coordinates may abstain, else 1; trusts the owners. "allgather":
        every rank tallies for itself, k B (p - 1). "auto" takes the one that moves less.

        Args:
            x, zeros, nan, seed, step: as ``majority_vote``; ``x`` in host memory.
            algorithm: "auto", "allgather" or "alltoall".
            weight: of this rank, a whole number from 0; all ranks' sum is below 2**31.
            out: two C-contiguous int32 arrays of x's shape, of its framework.

        Returns:
            ``Tally(negative, positive)``, int32 of x's shape; or of ``out``.

        Raises:
            CollectiveError: as ``majority_vote``, and its subclasses.

        Example:
            >>> import numpy as np, mpisign
            >>> counts = mpisign.Communicator().tally(np.array([2.0, -1.0]))
            >>> counts.negative.tolist(), counts.positive.tolist()
            ([0, 1], [1, 0])
        """
        return counts.start_tally(  # type: ignore[no-any-return]
            self.engine,
            x,
            out,
            False,
            algorithm=algorithm,
            zeros=zeros,
            nan=nan,
            weight=weight,
            seed=seed,
            step=step,
        ).wait()

    def mean_of_signs(
        self,
        x: Any,
        *,
        algorithm: policies.Algorithm = "auto",
        zeros: policies.Zeros = policies.DEFAULT_ZEROS,
        nan: policies.Nan = policies.DEFAULT_NAN,
        seed: int = 0,
        step: int | None = None,
        out: Any = None,
    ) -> Any:
        """(1/p) sum over ranks of sign(x), bit for bit the same on every rank.

        A coordinate that abstains counts 0 among p. The sum is exact, 1/p is rounded to fp32, their
        product too. Wire and bytes: as ``tally``. Source: Liu et al. 2024, Communication efficient
        distributed training with Distributed Lion, averaging.

        Args:
            x, algorithm, zeros, nan, seed, step: as ``tally``.
            out: C-contiguous float32 of x's shape.

        Returns:
            float32 of x's framework and shape; or ``out``.

        Raises:
            CollectiveError: as ``majority_vote``, and its subclasses.

        Example:
            >>> import numpy as np, mpisign
            >>> mpisign.Communicator().mean_of_signs(np.array([2.0, -1.0])).tolist()
            [1.0, -1.0]
        """
        return counts.start_mean_of_signs(
            self.engine, x, out, algorithm=algorithm, zeros=zeros, nan=nan, seed=seed, step=step
        ).wait()

    def compressed_mean(
        self,
        x: Any,
        state: CompressedMeanState,
        *,
        zeros: policies.Zeros = policies.DEFAULT_ZEROS,
        nan: policies.Nan = policies.DEFAULT_NAN,
        seed: int = 0,
        step: int | None = None,
        out: Any = None,
    ) -> Any:
        """About the mean of ``x`` over the ranks, bit for bit the same on every rank.

        C(q) = mean|q| sign(q), block by block. Each rank sends d = C(x + e) and keeps
        e = x + e - d; the owner of a shard, with a the mean of all d, sends r = C(a + e') and keeps
        e' = a + e' - r. All return r. What one step leaves out the next ones add. fp32, each
        operation rounded, ranks added in order. Source: Tang et al. 2021, 1-bit Adam, Algorithm 1
        (DeepSpeed's compressed allreduce); Seide et al. 2014, 1-bit SGD.

        Wire, per rank: k B (1 - 1/p) bytes up and kd B (1 - 1/p) down, B = ceil(d / 8), k = 2 if
        coordinates may abstain, kd = 2 under zeros="abstain", else 1. Up, chunk by chunk: to each
        owner the bytes of its part of the planes, and the scales of its blocks, float32,
        little-endian; down: the same of r, to all; under nan="raise", behind the last part up, 8
        bytes of count to all. Trusts the owners.

        Args:
            x: float32, float16, bfloat16 or float64 in host memory, NumPy array or torch tensor,
                any shape, one length and dtype on all ranks.
            state: this rank's residuals of that length, which also give the blocks. An error leaves
                it as it was.
            zeros, seed, step: as ``majority_vote``.
            nan: of all that is not finite in float32: "raise", or "abstain": it counts 0 in the
                mean. It never enters a residual.
            out: C-contiguous float32 of x's shape; may be ``x``.

        Returns:
            float32 of x's framework and shape; or ``out``.

        Raises:
            CollectiveError: as ``majority_vote``, and its subclasses.

        Example:
            >>> import numpy as np, mpisign
            >>> x, state = np.array([3.0, -1.0], np.float32), mpisign.CompressedMeanState(2)
            >>> mpisign.Communicator().compressed_mean(x, state).tolist()
            [2.0, -2.0]
        """
        return compressed_mean.start(
            self.engine, x, state, out, step, zeros=zeros, nan=nan, seed=seed
        ).wait()

    def robust_aggregate(
        self,
        x: Any,
        *,
        rule: Rule | str,
        seed: int = 0,
        step: int | None = None,
        out: Any = None,
    ) -> Any:
        """``rule`` of all ranks' ``x``, bit for bit the same on every rank.

        Wire, float32, or float64 where x is: 8 bytes to all, how many coordinates are not finite;
        to rank r the coordinates [d r // p, d (r + 1) // p); partial distances, where the rule
        needs them; the owner's shard of the result to all. 8 d (1 - 1/p) bytes each way and
        8 (p - 1), and 4 p (p - 1) (p + 1) for distances. Trusts the owners: each decides its d / p
        coordinates, and one that lies about distances sways which rows are chosen.

        Args:
            x: float32, float16, bfloat16 or float64, NumPy or CuPy array or torch tensor of any
                shape, one length and dtype on all ranks; reduced in host memory, in float32 or
                float64. An ``x`` with NaN or infinity is left out.
            rule: such as ``mpisign.robust.Median()``, or its name; the rows are the ranks, of
                which ``f`` may be hostile.
            seed, step: keys of what is random; ``step`` defaults to the count of calls.
            out: C-contiguous, of x's shape and dtype; may be ``x``.

        Returns:
            An array of x's framework, shape and dtype; or ``out``.

        Raises:
            NaNError: no rank's x is finite.
            CollectiveError: as ``majority_vote``, and its other subclasses.

        Example:
            >>> import numpy as np, mpisign
            >>> comm = mpisign.Communicator()
            >>> comm.robust_aggregate(np.array([1.0, 2.0]), rule="median").tolist()
            [1.0, 2.0]
        """
        return robust_aggregate.start(self.engine, x, rule, seed, step, out).wait()

    def majority_vote_async(self, x: Any, **options: Any) -> Handle:
        """``majority_vote`` that returns at once.

        The order of calls on one communicator must be the same on all ranks; that of waits need
        not. The vote moves only inside ``wait()``, ``done()`` and other calls of mpisign: no thread
        drives it. So unlike with MPI's own non-blocking collectives, between start and ``wait()``
        no rank may block in a call of another library (``Barrier``, ``Recv``) that ends only when
        another rank has its vote: both would wait until the timeout.

        Args:
            x: packed before this returns, and may be changed then.
            options: those of ``majority_vote``.
                ``out`` must be left alone until ``wait``.

        Returns:
            A handle: ``wait()`` returns the result or raises, ``done()`` never blocks.

        Raises:
            TypeError: an option that ``majority_vote`` does not have.

        Example:
            >>> import numpy as np, mpisign
            >>> handle = mpisign.Communicator().majority_vote_async(np.array([2.0, -1.0]))
            >>> handle.wait().tolist()
            [1.0, -1.0]
        """
        bound = _bind(_VOTE, x, options)
        out, groups = bound.pop("out"), bound.pop("groups")
        return majority_vote.start(self.engine, x, out, groups, True, **bound)

    def tally_async(self, x: Any, **options: Any) -> Handle:
        """``tally`` that returns at once, as ``majority_vote_async`` does.

        Args:
            x: packed before this returns, and may be changed then.
            options: those of ``tally``.
                ``out`` must be left alone until ``wait``.

        Returns:
            A handle: ``wait()`` returns the Tally or raises, ``done()`` never blocks.

        Raises:
            TypeError: an option that ``tally`` does not have.

        Example:
            >>> import numpy as np, mpisign
            >>> mpisign.Communicator().tally_async(np.array([2.0])).wait().positive.tolist()
            [1]
        """
        bound = _bind(_TALLY, x, options)
        return counts.start_tally(self.engine, x, bound.pop("out"), True, **bound)


_VOTE = inspect.signature(Communicator.majority_vote)
_TALLY = inspect.signature(Communicator.tally)


def _bind(signature: inspect.Signature, x: Any, options: dict[str, Any]) -> dict[str, Any]:
    """Keyword arguments with defaults; TypeError for one that the signature lacks."""
    bound = signature.bind(None, x, **options)
    bound.apply_defaults()
    return bound.kwargs


def _seconds(timeout: float | None) -> float:
    if timeout is None:
        return timeout_of_environment()
    if not isinstance(timeout, (int, float)) or not 0 < timeout < float("inf"):
        raise ValueError(
            f"{_FUNCTION}: timeout must be a positive number of seconds, got {timeout!r}"
        )
    return float(timeout)
