"""One rank's part in a vote: what is packed, tallied and unpacked, chunk by chunk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from mpisign import _kernels, census, planes, policies
from mpisign.backend import arrays, threads
from mpisign.engine.replicas import ResultHash
from mpisign.errors import WireError
from mpisign.partition import Partition
from mpisign.planes.pack import pack_view
from mpisign.planes.unpack import unpack_view
from mpisign.planes.vote import majority_rows
from mpisign.stats import begin_pack, begin_unpack, begin_vote, count_stage, stage, stats

Planes = npt.NDArray[np.uint8]


def address(x: npt.NDArray[Any]) -> int:
    """The address of an array in host memory."""
    return x.__array_interface__["data"][0]  # type: ignore[no-any-return]


def signs_and_mask(x: Planes) -> tuple[int, int]:
    """Addresses of the sign plane of (k, b) planes in host memory, and of the mask plane or 0."""
    sign = address(x)
    return sign, sign + x.strides[0] if len(x) == 2 else 0


_OVERLAP = 16  # chunks that suffice to hide one behind the others
_MOST = 1024
ARENA = 64 << 20  # bytes of buffers for chunks that any number of ranks may need, besides a plane


class Pieces:
    """Pieces of planes that lie apart in a plan's memory.

    ``spans``: the bytes [a, b) of the planes that each holds; ``planes``: uint8 (k, b - a) each.
    ``table``: for kernels, int64 (pieces, 4): a, b, addresses of the sign and the mask plane or 0.
    ``memory``: int64 (planes of all pieces, 2): their addresses and bytes.
    """

    def __init__(self, spans: Sequence[tuple[int, int]], views: Sequence[Planes]) -> None:
        self.spans, self.planes = list(spans), list(views)
        rows = [(a, b, *signs_and_mask(v)) for (a, b), v in zip(spans, views, strict=True)]
        self._table = np.array(rows, dtype=np.int64).reshape(len(rows), 4)
        self.table = address(self._table), len(rows)
        parts = [(address(plane), plane.nbytes) for piece in self.planes for plane in piece]
        self._memory = np.array(parts, dtype=np.int64).reshape(len(parts), 2)
        self.memory = address(self._memory), len(parts)

    def update(self, result: ResultHash) -> None:
        """Hashes all planes."""
        result.update_pieces((plane for piece in self.planes for plane in piece), self.memory)


class VoteTask:
    """What is voted on, chunk by chunk, so that packing, exchange and tally overlap.

    An algorithm calls ``pack(a, b, out)``, which writes bytes [a, b) of this rank's planes to
    ``out``, uint8 (k, b - a), k = 2 with a mask plane; ``tally``; and ``unpack(a, b, result)``,
    which reads the same bytes of the result, (kd, b - a), kd = 2 if ties are zero. Subclasses
    define ``read`` and ``write``, which these two call for one chunk after the other, from 0 to
    ``nbytes``. All other attributes are agreed by the ranks. ``weights``: one a rank, or None.

    ``like``: an array of the device that planes are packed and unpacked on, None for host memory.
    ``planes``: (k, B), where all is packed before the exchange. ``nans``: those packed so far.
    ``groups``: ranks that vote among themselves first, then their majorities; a group that ties
    abstains. Stacks then hold rows in the groups' order: ``rows`` gives each rank's.
    """

    def __init__(
        self,
        length: int,
        k: int,
        ties: policies.Ties,
        seed: int,
        step: int,
        groups: Partition | None = None,
        like: arrays.View | None = None,
    ) -> None:
        self.length = length
        self.nbytes = (length + 7) // 8  # of a plane
        self.k = k
        self.kd = 2 if ties == "zero" else 1
        self.ties = ties
        self.ties_code = policies.TIES.index(ties)
        self.seed, self.step = int(seed), int(step)  # NumPy integers too, which kernels refuse
        self.groups = groups
        self.order = None if groups is None else [r for g in groups for r in g]
        self.like = like
        self.weights: Sequence[float] | None = None
        self.planes: Any = None
        self._room: Any = None  # for planes that are packed whole
        self.nans: Any = 0
        self.raises = False  # on NaN, once agreed
        self.hash: ResultHash | None = None  # of the result, if replicas compare it
        self.lie: Any = None  # of a hostile owner, in experiments

    def read(self, a: int, b: int, out: Planes) -> None:
        """Packs bytes [a, b) of this rank's planes into ``out`` (k, b - a); counts NaNs."""
        raise NotImplementedError

    def write(self, a: int, b: int, result: Planes) -> None:
        """Unpacks bytes [a, b) of the result, (kd, b - a)."""
        raise NotImplementedError

    def pick(self, size: int) -> str | None:
        """The algorithm that "auto" stands for, None: the cheapest by the measured costs."""
        return None

    def agree(self, weights: Sequence[float] | None, size: int) -> None:
        """Takes the agreed weights of ``size`` ranks."""
        self.weights = weights

    def pack_whole(self) -> None:
        """Packs all planes before the exchange: the header then carries their NaNs."""
        if self._room is None:
            self._room = arrays.empty((self.k, self.nbytes), "uint8", like=self.like)
        self.planes = self._room
        start = begin_pack()
        self.read(0, self.nbytes, self.planes)
        count_stage("pack", start)

    def pack(self, a: int, b: int, out: Planes) -> None:
        """Bytes [a, b) of this rank's planes to ``out`` (k, b - a)."""
        if self.planes is not None:
            out[...] = self.planes[:, a:b]
        else:
            start = begin_pack()
            self.read(a, b, out)
            count_stage("pack", start)

    def unpack(self, a: int, b: int, result: Planes) -> None:
        """Takes bytes [a, b) of the result, (kd, b - a)."""
        if self.hash is not None:
            for plane in result:
                self.hash.update(plane)
        self._unpack(a, b, result)

    def _unpack(self, a: int, b: int, result: Planes) -> None:
        start = begin_unpack()
        self.write(a, b, result)
        count_stage("unpack", start)

    def chunks(
        self, message: int, parts: int, held: Callable[[int, int], int] | None = None
    ) -> list[tuple[int, int]]:
        """Byte ranges [a, b) that travel one after the other, each cut into ``parts`` messages.

        ``message``: the transport's. ``held``: bytes of the buffers of the rank that needs most,
        for so many chunks of so many bytes at most; chunks are so short that they are at most
        ``ARENA`` and one plane. Depends on agreed values alone.
        """
        overlap = min(_OVERLAP, self.nbytes // (4 * message))
        n = max(1, overlap, min(_MOST, self.nbytes // (parts * message)))
        most = ARENA + self.nbytes
        while held is not None and n < self.nbytes:
            needed = held(n, -(-self.nbytes // n))
            if needed <= most:
                break
            n = min(self.nbytes, max(n + 1, n * needed // most))
        bounds = [self.nbytes * i // n for i in range(n + 1)]
        return list(zip(bounds, bounds[1:], strict=False))

    def pack_pieces(self, pieces: Pieces) -> None:
        """Packs pieces of this rank's planes, each where it is sent from."""
        for (a, b), views in zip(pieces.spans, pieces.planes, strict=True):
            if b > a:
                self.pack(a, b, views)

    def unpack_pieces(self, pieces: Pieces) -> None:
        """Takes pieces of the result, in order."""
        if self.hash is not None:
            pieces.update(self.hash)
        for (a, b), views in zip(pieces.spans, pieces.planes, strict=True):
            if b > a:
                self._unpack(a, b, views)

    def short(self, message: int) -> bool:
        """Whether all is packed before anything is sent."""
        return self.nbytes <= 4 * message

    def coordinates(self, a: int, b: int) -> int:
        """How many coordinates bytes [a, b) hold."""
        return max(0, min(self.length, 8 * b) - 8 * a)

    def rows(self, size: int) -> Sequence[int]:
        """Each rank's row in a stack of all ``size`` ranks' planes."""
        if self.order is None:
            return range(size)
        places = [0] * size
        for row, rank in enumerate(self.order):
            places[rank] = row
        return places

    def by_rows(self, stack: Any) -> Any:
        """A stack in the ranks' order as ``tally`` takes it."""
        return stack if self.order is None else stack[self.order]

    def tally(
        self,
        stack: Any,
        first: int,
        out: Any,
        weights: Sequence[float] | None = None,
        voters: Sequence[float] | None = None,
    ) -> None:
        """The majority of ``stack`` (n, k, b), bytes [first, first + b) of the planes: (kd, b).

        The random bits of ties depend on the coordinate's place in the whole task alone, so that
        every owner of a shard decides alike. ``weights``: of the rows, default the ranks'; rows are
        no ranks then, and ``voters`` are the ranks' weights. With ``groups``, each rank's distance
        from its group's vote is added to ``mpisign.stats``.
        """
        b = stack.shape[2]
        if b == 0:
            return
        length = min(self.length - 8 * first, 8 * b)
        start = begin_vote()
        self.count(stack, length, first, out, self.weights if weights is None else weights)
        count_stage("vote", start)
        if census.every and self.step % census.every == 0:
            self.sample(stack, first, weights, voters)
        if self.lie is not None:
            self.lie(stack, first, out)

    def sample(
        self,
        stack: Any,
        first: int,
        weights: Sequence[float] | None = None,
        voters: Sequence[float] | None = None,
    ) -> None:
        """Adds a sample of what ``tally`` takes to ``mpisign.stats().votes``."""
        places, ranks = census.places(stack.shape[2], len(stack), self.step), None
        if weights is None:
            weights, ranks = self.weights or [1] * len(stack), self.order or range(len(stack))
        valid = self.valid_bits(first + np.arange(stack.shape[2])[places])
        rows = arrays.host(stack[..., places])
        stats().votes.add_votes(rows, valid, weights, voters or weights, ranks)

    def valid_bits(self, at: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """How many bits of each byte of the planes, of those at ``at``, are coordinates."""
        return np.clip(self.length - 8 * at, 0, 8)

    def count(self, stack: Any, length: int, first: int, out: Any, weights: Any) -> None:
        """``tally``'s arithmetic on ``length`` coordinates from byte ``first`` on."""
        if weights is None and self.groups is None and self.like is None:
            stride, second, _ = stack.strides
            sign = address(stack)
            mask = sign + second if stack.shape[1] == 2 else 0
            key = self.seed, self.step, policies.TIE_STREAM, first
            planes_of = sign, mask, stride, len(stack), length
            majority_rows(_kernels, planes_of, signs_and_mask(out), self.ties_code, key)
            return
        rows = stack if stack.shape[1] == 2 else stack[:, 0]
        group = 1
        if self.groups is not None:
            group = len(self.groups[0])
            self._add_distances(rows, length)
            if any(len(g) != group for g in self.groups):
                rows, group = self._group_votes(rows, length), 1
        planes.majority(
            rows,
            length=length,
            ties=self.ties,
            weights=weights,
            group=group,
            seed=self.seed,
            step=self.step,
            offset=8 * first,
            out=out if len(out) == 2 else out[0],
        )

    def add_up(self, stack: Any, first: int, weights: Sequence[int], out: Any) -> None:
        """Count planes of ``stack`` (n, k, b), bytes [first, first + b): ``planes.tally``.

        ``weights``: one a row. ``out``: uint8 (k bits, b), contiguous; bits of the negative votes,
        then with masks those of the positive ones.
        """
        b = stack.shape[2]
        if b == 0:
            return
        masked = stack.shape[1] == 2
        with stage("vote"):
            planes.tally(
                stack if masked else stack[:, 0],
                length=self.coordinates(first, first + b),
                weights=None if len(set(weights)) == 1 and weights[0] else weights,
                out=out.reshape(2, len(out) // 2, b) if masked else out,
            )

    def verdict(self, stack: Any, first: int, weights: Sequence[int] | None, out: Any) -> None:
        """The majority of ``stack`` (n, k, b), bytes [first, first + b), one vote among others.

        ``out``: sign plane, and mask plane if it can tie, (1 or 2, b), contiguous.
        """
        b = stack.shape[2]
        if b == 0:
            return
        with stage("vote"):
            planes.majority(
                stack if stack.shape[1] == 2 else stack[:, 0],
                length=self.coordinates(first, first + b),
                ties="zero" if len(out) == 2 else "positive",  # which cannot occur
                weights=weights,
                out=out if len(out) == 2 else out[0],
            )

    def _group_votes(self, rows: Any, length: int) -> list[Any]:
        """The votes of groups of unlike sizes, each (2, b): a group that ties abstains."""
        return [planes.majority(part, length=length, ties="zero") for part in self._parts(rows)]

    def _add_distances(self, rows: Any, length: int) -> None:
        assert self.groups is not None
        equal = len({len(g) for g in self.groups}) == 1
        parts = [rows] if equal else self._parts(rows)
        sizes = [len(self.groups[0])] if equal else [len(p) for p in parts]
        differing = np.concatenate(
            [
                planes.group_distances(part, group=size, length=length)
                for part, size in zip(parts, sizes, strict=True)
            ]
        )
        stats().add_distances(self.groups, length, differing.tolist())

    def _parts(self, rows: Any) -> list[Any]:
        assert self.groups is not None
        ends = np.cumsum([0, *map(len, self.groups)])
        return [rows[a:b] for a, b in pairwise(ends.tolist())]

    def check_padding(self, stack: Any, first: int, ranks: Sequence[int] | None = None) -> None:
        """WireError if a rank's planes in ``stack`` (ranks, k, b) have bits beyond the length.

        ``ranks``: of the rows, default 0, 1, ...
        """
        b = stack.shape[2]
        if b == 0 or first + b < self.nbytes or self.length % 8 == 0:
            return
        good = planes.padding_is_zero(stack, self.coordinates(first, first + b))
        order = self.order if ranks is None and len(stack) == len(self.order or ()) else ranks
        for row, planes_good in enumerate(good.reshape(len(stack), -1).tolist()):
            if not all(planes_good):
                rank = row if order is None else order[row]
                raise WireError(f"rank {rank} sent planes with padding not 0")


class ArrayTask(VoteTask):
    """A task on arrays like ``x``, a View: call after call, each between ``begin`` and its end.

    ``rank``: of this process; ``groups``: of ranks, or None.
    """

    operation: ClassVar[str] = "majority_vote"

    def __init__(
        self,
        rank: int,
        x: arrays.View,
        groups: Partition | None = None,
        *,
        zeros: policies.Zeros,
        nan: policies.Nan,
        ties: policies.Ties = policies.DEFAULT_TIES,
        seed: int = 0,
    ) -> None:
        # NumPy packs and unpacks for torch too.
        like = None if x.device == "cpu" else x
        super().__init__(x.length, policies.planes_up(zeros, nan), ties, seed, 0, groups, like)
        # One stream of random bits for all members of a group.
        if groups is not None:
            rank = next(i for i, group in enumerate(groups) if rank in group)
        self._rank, self._zeros_code = rank, policies.ZEROS.index(zeros)
        self._dtype_code = arrays.FLOAT_CODES[x.dtype]

    def begin(self, x: arrays.View, out: Any, step: int, whole: bool) -> None:
        """Takes the arrays of a call, the result's contiguous.

        Packs ``x`` now if ``whole`` or if it is not contiguous, else piece by piece.
        """
        self._x: Any = x
        self._out = out
        self.place(x.address, 0 if type(out) is not arrays.View else out.address, int(step))
        if whole or not x.contiguous:
            self.pack_whole()

    def release(self) -> None:
        """Ends a call: its arrays are the caller's alone again."""
        self._x = self._out = None

    def place(self, x: int, out: int, step: int) -> None:
        """Takes addresses of contiguous arrays for a call."""
        self._address, self._out_address, self.step = x, out, step
        self.nans, self.planes = 0, None

    def read(self, a: int, b: int, out: Planes) -> None:
        x, sign, mask = self._place(self._x, out, a, b)
        key = self.seed, self.step, self._rank, a
        _, nans = pack_view(x, sign, mask, self._zeros_code, key)
        self.nans = self.nans + nans  # on a GPU a device scalar, which is not waited for here

    def write(self, a: int, b: int, result: Planes) -> None:
        unpack_view(*self._place(self._out, result, a, b))

    def pack_pieces(self, pieces: Pieces) -> None:
        if self.planes is not None:
            super().pack_pieces(pieces)
            return
        start = begin_pack()
        self.nans += _kernels.pack_planes(
            self._address,
            self._dtype_code,
            self.length,
            *pieces.table,
            self._zeros_code,
            (self.seed, self.step, self._rank, 0),
            threads.for_work(self.length),
        )
        count_stage("pack", start)

    def unpack_pieces(self, pieces: Pieces) -> None:
        if type(self).write is not ArrayTask.write:
            super().unpack_pieces(pieces)
            return
        if self.hash is not None:
            pieces.update(self.hash)
        start, n_threads = begin_unpack(), threads.for_work(self.length)
        _kernels.unpack_planes(
            *pieces.table, self._dtype_code, self._out_address, self.length, n_threads
        )
        count_stage("unpack", start)

    def _place(self, x: arrays.View, rows: Planes, a: int, b: int) -> tuple[arrays.View, int, int]:
        """The part of ``x`` in bytes [a, b) of the planes, and the addresses of ``rows``."""
        if b - a < self.nbytes:
            x = x.part(8 * a, min(8 * b, self.length) - 8 * a)
        if self.like is None:
            return x, *signs_and_mask(rows)
        sign, mask = (*map(arrays.address, rows), 0)[:2]
        return x, sign, mask
