"""majority_vote: the sign of the sum of signs over the ranks of a communicator."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from mpisign import planes, policies
from mpisign.backend import arrays
from mpisign.collectives.vote_task import Planes, VoteTask
from mpisign.communicator import engine_of
from mpisign.detox.assignment import Partition, partition_of
from mpisign.engine.engine import Engine, small
from mpisign.engine.header import Header
from mpisign.engine.progress import Handle
from mpisign.stats import stage
from mpisign.transports.base import Steps
from mpisign.transports.tagged import TaggedTransport

_FUNCTION = "majority_vote"


def majority_vote(
    x: Any,
    comm: Any = None,
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

    ``x``: float32, float16, bfloat16 or float64, NumPy or CuPy array or torch tensor (CPU or CUDA)
    of any shape, the same length and dtype on all ranks, on a device on all or on none. ``comm``:
    whatever ``Communicator`` takes, default what the launcher started; a clone of an mpi4py
    communicator is used, so that messages of yours never mix with these. Returns an array of the
    same framework, shape and dtype: +1, -1, and 0 where ``ties="zero"`` found no majority; ``out=``
    is written to and returned, and may be ``x``.

    algorithm: "auto", "allgather" or "alltoall", "hierarchical" (counts in each node first, then
    between nodes: the same result), all of which give the majority of the ranks; "vote_of_votes"
    (majorities of nodes vote) does not: a persistent bias is published. zeros, nan, ties: see
    ``pack`` and ``majority``. ``weight``: this rank's, a non-negative number. ``byzantine_f``: how
    many ranks may lie about tallies too (2 f + 1 owners tally each shard). ``groups``: ranks that
    vote among themselves first, then their majorities (DETOX): an odd number of ranks a group, a
    ``mpisign.detox.Groups`` or a partition of the ranks. ``seed`` and ``step``
    key the random bits; step defaults to the communicator's count of votes.

    Packing, exchange and tally of large arrays overlap; after an error ``out`` holds nothing of
    use. Raises, the same on every rank: DisagreementError (ranks differ in length, dtype, policy,
    algorithm, step or seed; names ranks and values), NaNError, CollectiveError (bad arguments on
    some rank), CollectiveTimeout (ranks did not come), WireError. TypeError for a ``comm``
    that is no communicator. Source: Bernstein et al. 2019, signSGD with majority vote is
    communication efficient and fault tolerant.
    """
    return _start(
        x,
        comm,
        out,
        eager=False,
        algorithm=algorithm,
        zeros=zeros,
        nan=nan,
        ties=ties,
        weight=weight,
        byzantine_f=byzantine_f,
        groups=groups,
        seed=seed,
        step=step,
    ).wait()


def majority_vote_async(
    x: Any,
    comm: Any = None,
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
) -> Handle:
    """``majority_vote`` that returns at once with a handle of ``wait()`` and ``done()``.

    ``x`` is packed before this returns and may be changed; ``out`` belongs to the vote until
    ``wait``. The order of calls on one communicator must be the same on all ranks; that of waits
    need not. Errors are raised by ``wait``.
    """
    return _start(
        x,
        comm,
        out,
        eager=True,
        algorithm=algorithm,
        zeros=zeros,
        nan=nan,
        ties=ties,
        weight=weight,
        byzantine_f=byzantine_f,
        groups=groups,
        seed=seed,
        step=step,
    )


def _start(x: Any, comm: Any, out: Any, *, eager: bool, **settings: Any) -> Handle:
    engine = engine_of(_FUNCTION, comm)
    number = engine.next_step()
    if settings["step"] is None:
        settings["step"] = number
    try:
        vote = _Vote(x, out, eager, engine, settings)
    except Exception as error:
        # The others are on their way into the collective: refuse there, not here.
        refusal = Header(_FUNCTION).refusal(str(error).removeprefix(f"{_FUNCTION}: "))
        return engine.submit(_FUNCTION, lambda wire: engine.headers(wire, refusal, _FUNCTION))
    return engine.submit(_FUNCTION, lambda wire: vote.steps(engine, wire, number), settings["step"])


class _Vote:
    """One call's arguments, checked; packed whole if ``eager`` or small."""

    def __init__(
        self, x: Any, out: Any, eager: bool, engine: Engine, settings: dict[str, Any]
    ) -> None:
        transport = engine.transport
        groups = partition_of(settings.pop("groups"), transport.size, engine.nodes)
        v = arrays.view_floats(_FUNCTION, "x", x)
        check_settings(_FUNCTION, settings)
        if out is None:
            out = arrays.empty(v.shape, v.dtype, like=v)
        o = arrays.view_floats(_FUNCTION, "out", out, writable=True)
        if o.shape != v.shape or o.dtype != v.dtype or not o.contiguous:
            raise ValueError(
                f"{_FUNCTION}: out must be C-contiguous {v.dtype} {v.shape}, "
                f"got {o.dtype} {o.shape}"
            )
        self.out = out
        self._x, self._flat_out = x, out.reshape(-1)
        rank = transport.rank  # of the random bits: one for all members of a group
        if groups is not None:
            rank = next(i for i, group in enumerate(groups) if rank in group)
            settings["settings"] = _digest(groups)
        self._how = {k: settings[k] for k in ("zeros", "nan", "seed", "step")} | {"rank": rank}
        self._nans: Any = 0
        self._like = None if v.device == "cpu" else v  # NumPy packs and unpacks for torch too
        device = v.device.partition(":")[0]
        self.header = Header(_FUNCTION, dtype=v.dtype, length=v.length, device=device, **settings)
        self.task = VoteTask(
            length=v.length,
            k=policies.planes_up(settings["zeros"], settings["nan"]),
            ties=settings["ties"],
            seed=settings["seed"],
            step=settings["step"],
            pack=self._pack_chunk,
            unpack=self._unpack_chunk,
            groups=groups,
        )
        self._planes: Any = None
        whole = eager or settings["byzantine_f"] > 0  # then NaNs must be told in the header
        whole = whole or not v.contiguous or arrays.overlap_partly(v, o)
        if whole or self.task.short(transport.message):
            self._planes = arrays.empty((self.task.k, self.task.nbytes), "uint8", like=self._like)
            self._pack(x, 0, self._planes)
            self.header.nans = int(self._nans)
        else:
            self._x = x.reshape(-1)
            self.header.late = True

    def steps(self, engine: Engine, wire: TaggedTransport, number: int) -> Steps[Any]:
        inlined = small(self.task, self.header, wire.size)
        agreed = yield from engine.headers(
            wire, self.header, _FUNCTION, self._planes if inlined else None
        )
        yield from engine.vote(
            wire,
            self.task,
            agreed,
            number,
            lambda: int(self._nans),
            inlined=inlined,
            like=self._like,
        )
        return self.out

    def _pack(self, x: Any, first: int, out: Planes) -> None:
        with stage("pack"):
            _, _, nans = planes.pack_census(
                x, **self._how, offset=8 * first, out=out if len(out) == 2 else out[0]
            )
        self._nans = self._nans + nans  # on a GPU a device scalar, which is not waited for here

    def _pack_chunk(self, a: int, b: int, out: Planes) -> None:
        if self._planes is not None:
            out[...] = self._planes[:, a:b]
        else:
            self._pack(self._x[8 * a : 8 * b], a, out)

    def _unpack_chunk(self, a: int, b: int, result: Planes) -> None:
        with stage("unpack"):
            planes.unpack(
                result if len(result) == 2 else result[0], out=self._flat_out[8 * a : 8 * b]
            )


def _digest(groups: Partition) -> int:
    """64 bits of BLAKE2b: ranks that know other groups count other ballots."""
    return int.from_bytes(hashlib.blake2b(repr(groups).encode(), digest_size=8).digest(), "little")


def check_settings(function: str, settings: dict[str, Any]) -> None:
    """ValueError for a policy, a number or a weight that is none."""
    policies.code(function, "algorithm", settings["algorithm"], policies.ALGORITHMS)
    policies.code(function, "zeros", settings["zeros"], policies.ZEROS)
    policies.code(function, "nan", settings["nan"], policies.NAN)
    policies.code(function, "ties", settings["ties"], policies.TIES)
    for name, below in (("seed", 1 << 64), ("step", 1 << 64), ("byzantine_f", 1 << 16)):
        value = settings[name]
        if not isinstance(value, (int, np.integer)) or not 0 <= value < below:
            bits = below.bit_length() - 1
            raise ValueError(f"{function}: {name} must be in [0, 2**{bits}), got {value!r}")
    weight = settings["weight"]
    most = np.finfo(np.float64).max  # 10**400 is no float
    if not isinstance(weight, (int, float, np.number)) or not 0 <= weight <= most:
        raise ValueError(f"{function}: weight must be a number from 0, got {weight!r}")
