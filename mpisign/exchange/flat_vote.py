"""A flat gradient's vote, whole or shard by shard."""

from __future__ import annotations

import torch

from mpisign import planes, policies
from mpisign.backend import arrays
from mpisign.collectives.shard_vote import shard_vote
from mpisign.collectives.vote_task import Planes, VoteTask
from mpisign.compressors import Compressor, PackContext
from mpisign.engine.engine import Engine, small
from mpisign.engine.header import Header
from mpisign.exchange.buckets import Bucket
from mpisign.exchange.optimizer_options import options_of
from mpisign.stats import stage
from mpisign.transports.base import Steps
from mpisign.transports.tagged import TaggedTransport


class FlatVote:
    """One rank's part in the vote on a flat gradient, packed before anything is sent.

    The ballot has a member for each shard, or one if every rank needs all: see ``Bucket``. On a GPU
    planes are packed and unpacked there; they alone cross to the host and back.
    """

    def __init__(self, function: str, engine: Engine, compressor: Compressor) -> None:
        self._function = function
        self._rank, self._size = engine.transport.rank, engine.transport.size
        self._nodes = engine.nodes
        self._compressor = compressor
        self._header = Header("shard_vote")
        self._ballot: VoteTask | None = None

    def begin(
        self,
        grad: torch.Tensor,
        output: torch.Tensor | None,
        *,
        seed: int,
        step: int,
        algorithm: policies.Algorithm,
    ) -> None:
        """Packs. What does not fit is told to the other ranks by ``steps``."""
        self._sharded = output is not None
        self._target = grad if output is None else output
        try:
            self._pack(grad, seed, step, algorithm)
        except Exception as error:
            self._header = self._header.refusal(str(error).removeprefix(f"{self._function}: "))

    def _pack(
        self, grad: torch.Tensor, seed: int, step: int, algorithm: policies.Algorithm
    ) -> None:
        c = self._compressor
        g = arrays.view_floats(self._function, "grad", grad)
        target = arrays.view_floats(self._function, "output", self._target, writable=True)
        parts = self._size if self._sharded else 1
        if not (g.contiguous and target.contiguous) or parts * target.length != g.length:
            raise ValueError(
                f"{self._function}: output must be contiguous and one of {parts} equal parts of "
                f"grad, got {target.shape} for {g.shape}: is the state's process group the model's?"
            )
        bucket = Bucket([target.length] * parts)
        self._shard = self._rank * (bucket.nbytes // parts) if self._sharded else 0
        groups, alike = c.groups_of(self._size, self._nodes), self._rank
        if groups is not None:  # members that compute the same vote the same
            alike = next(i for i, group in enumerate(groups) if self._rank in group)
        k = policies.planes_up(c.zeros, c.nan)
        rows = torch.zeros((k, bucket.nbytes), dtype=torch.uint8, device=grad.device)
        with stage("pack"):
            nans = c.pack(
                grad.detach().reshape(parts, -1).unbind(),
                [{} for _ in range(parts)],
                rows if k == 2 else rows[0],
                bucket.offsets,
                PackContext(seed, step, alike),
            )
            self._planes: Planes = rows.cpu().numpy()
        self._ballot = VoteTask(
            length=bucket.length,
            k=k,
            ties=c.ties,
            seed=seed,
            step=step,
            pack=self._piece,
            unpack=self._unpack,
            groups=groups,
        )
        self._header = Header(
            "shard_vote" if self._sharded else "bucket_vote",
            dtype=g.dtype,
            zeros=c.zeros,
            nan=c.nan,
            ties=c.ties,
            step=step,
            tensor=bucket.identity([""] * parts),
            length=bucket.length,
            seed=seed,
            settings=options_of(c, None),
            nans=nans,
            algorithm=algorithm,
        )

    def steps(self, engine: Engine, wire: TaggedTransport, number: int) -> Steps[None]:
        """The collective."""
        inlined = False
        if self._ballot is not None and not self._sharded:
            inlined = small(self._ballot, self._header, wire.size)
        agreed = yield from engine.headers(
            wire, self._header, self._function, self._planes if inlined else None
        )
        assert self._ballot is not None  # or all have raised
        if self._sharded:
            yield from shard_vote(wire, self._ballot)
        else:
            yield from engine.vote(wire, self._ballot, agreed, number, inlined=inlined)

    def _piece(self, a: int, b: int, out: Planes) -> None:
        out[...] = self._planes[:, a:b]

    def _unpack(self, a: int, b: int, result: Planes) -> None:
        flat = self._target.detach().view(-1)
        with stage("unpack"):
            planes.unpack(
                torch.from_numpy(result if len(result) == 2 else result[0]).to(flat.device),
                out=flat[8 * (a - self._shard) : 8 * (b - self._shard)],
            )
