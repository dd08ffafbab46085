"""Votes as sign planes in one bucket, over Horovod's alltoall and allgather."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import horovod.torch as hvd
import numpy as np
import torch

from mpisign import policies
from mpisign.buckets import Bucket
from mpisign.collectives.agreement import Agreed
from mpisign.collectives.ballot import Ballot, Planes
from mpisign.collectives.header import Header
from mpisign.collectives.line import Line
from mpisign.collectives.progress import Queue
from mpisign.collectives.vote import Channel, check_every
from mpisign.compressors.base import Compressor, State
from mpisign.errors import CollectiveError, DisagreementError
from mpisign.horovod import roll_call
from mpisign.horovod.members import named_by_optimizers, optimizers_of
from mpisign.horovod.vote import Like, VoteCompression
from mpisign.stats import stage, stats
from mpisign.transports.base import Steps
from mpisign.transports.horovod import HorovodTransport

_FUNCTION = "Compression(named_parameters)"
_HEADERS_EVERY = 16  # votes; roll calls tell of any disagreement in between


@dataclass
class _Round:
    """One step's vote: who is in it, then its result or why it has none."""

    step: int
    packed: set[str] = field(default_factory=set)
    roll: bytes = b""  # as it came back for a gradient without NaN
    spans: dict[str, slice] = field(default_factory=dict)
    result: Planes | None = None
    clock: int = 0
    error: Exception | None = None

    @property
    def over(self) -> bool:
        """True once the vote was held or has failed."""
        return self.result is not None or self.error is not None


@dataclass(frozen=True)
class _Context:
    round: _Round
    name: str
    like: Like


class BucketVote(VoteCompression):
    """``compression=`` given named parameters: 2 (1 - 1/p) bits per coordinate each way.

    ``compress`` packs a gradient into its place in the bucket and hands Horovod a roll call to sum.
    Horovod has submitted every gradient before it asks for the first result, so the first
    ``decompress`` of a step finds the bucket full and holds the vote: alltoall, tally, allgather,
    and headers before every 16th. Not earlier: a rank that has called ``hvd.join`` shows in the
    roll call only, and Horovod does not survive its absence from an alltoall.

    Raises, the same on every rank: NaNError, DisagreementError, WireError; CollectiveError if a
    rank has joined. TypeError for a tensor that is no named parameter's gradient.
    """

    def __init__(
        self,
        compressor: Compressor,
        named_parameters: Iterable[tuple[str, torch.Tensor]],
        *,
        seed: int = 0,
        process_set: hvd.ProcessSet = hvd.global_process_set,
    ) -> None:
        super().__init__(compressor, seed=seed, process_set=process_set)
        named = sorted(_checked(named_parameters), key=lambda pair: pair[0])
        self._kept = [p for _, p in named]
        self._lengths = {name: p.numel() for name, p in named}
        self._bucket = Bucket(list(self._lengths.values()))
        self._identity = self._bucket.identity(list(self._lengths))
        self._spans = {name: self._bucket.span(i) for i, name in enumerate(self._lengths)}
        self._planes = np.zeros((self._planes_up, self._bucket.nbytes), dtype=np.uint8)
        self._round: _Round | None = None
        self._channel: Channel | None = None
        self._complete = False
        self.members.add(named)

    def compress(self, tensor: torch.Tensor) -> tuple[torch.Tensor, _Context]:
        like, size, rank = self._like(tensor), self._size(), self.process_set.rank()
        if not self._complete:
            self._check_complete()
        member = self.members.find(tensor)
        if member is None:
            raise TypeError(
                f"{_FUNCTION}: a tensor of shape {like.shape} is the gradient of none of the named "
                "parameters. With sparse_as_dense=True or hvd.allreduce use the compression "
                "without named_parameters"
            )
        name, now = member.name, self._round
        if now is None or now.over or name in now.packed:
            now = self._round = _Round(self.step)
        start, out = self._spans[name].start, torch.from_numpy(self._planes)
        with stage("pack"):
            nans = self._pack(tensor, member.state, out, start, now.step)
        now.packed.add(name)
        placeholder = torch.empty(roll_call.n_words(size), dtype=torch.float64)
        roll_call.write(
            placeholder.numpy(),
            rank,
            size,
            clock=now.step,
            creed=f"bucket {self._identity} {size} {self.seed} {self.compressor!r} {check_every()}",
            nan=nans > 0 and self.compressor.nan == "raise",
        )
        ring = 2 * (size - 1) * placeholder.numel() * placeholder.element_size() // size
        stats().add("exchange", calls=0, sent=ring, received=ring)
        return placeholder, _Context(now, name, like)

    def decompress(self, tensor: torch.Tensor, ctx: _Context | None) -> torch.Tensor:
        if ctx is None:
            self._refuse_sparse()
        assert ctx is not None
        now = ctx.round
        if now.error is not None:
            raise now.error
        words = tensor.detach().cpu().numpy()
        if now.result is None:
            try:
                now.result = self._vote(now, words)
            except Exception as error:
                now.error = error
                raise
        if words.tobytes() != now.roll:
            where = f"{_FUNCTION}, {ctx.name!r}"
            roll = roll_call.read(words, self._size(), where)
            roll_call.check(roll, where, self._ranks())
            if roll.clock != now.clock:
                raise DisagreementError(
                    f"{where}: ranks hold this vote in different steps: one compression for each "
                    "optimizer, and steps in the same order on all ranks"
                )
            now.roll = words.tobytes()
        with stage("unpack"):
            return ctx.like.unpacked(torch.from_numpy(now.result[:, now.spans[ctx.name]]))

    def _check_complete(self) -> None:
        # Before anything is sent: a rank that raised at the first stranger would leave others,
        # who reach their parameters in another order, with half of their gradients under way.
        known = {id(p) for p in self._kept}
        optimizers = named_by_optimizers(self)
        if len(optimizers_of(self)) > 1:
            gc.collect()  # one that was given up may still be there
        if len(optimizers_of(self)) > 1:
            raise TypeError(
                f"{_FUNCTION}: one optimizer for each compression: two would mix their votes"
            )
        strangers = [name for name, p in optimizers if p.requires_grad and id(p) not in known]
        if strangers:
            raise TypeError(
                f"{_FUNCTION}: named_parameters must name every parameter of the optimizer, "
                f"got none for {', '.join(map(repr, sorted(strangers)))}"
            )
        self._complete = True

    def load_state_dict(self, states: dict[str, State]) -> None:
        super().load_state_dict(states)
        self._round = None

    def _vote(self, now: _Round, words: np.ndarray[Any, Any]) -> Planes:
        size, ranks = self._size(), self._ranks()
        roll = roll_call.read(words, size, _FUNCTION)
        if roll.joined:
            held = ", ".join(str(ranks[r]) for r in roll.joined)
            raise CollectiveError(
                f"{_FUNCTION}: rank{'s' if len(roll.joined) > 1 else ''} {held} called hvd.join, "
                "which Horovod's alltoall cannot do without. Use the compression without "
                "named_parameters (Compression.sign), whose votes allow for joined ranks"
            )
        self.step = roll.clock // size + 1
        now.clock = roll.clock
        names = [name for name in self._spans if name in now.packed]
        bucket = Bucket([self._lengths[name] for name in names])
        now.spans = {name: bucket.span(i) for i, name in enumerate(names)}
        ballots = self._planes
        if len(names) < len(self._spans):
            ballots = np.concatenate([ballots[:, self._spans[name]] for name in names], axis=1)
        c = self.compressor
        header = Header(
            "bucket_vote",
            zeros=c.zeros,
            nan=c.nan,
            ties=c.ties,
            step=roll.clock,
            tensor=bucket.identity(names),
            length=bucket.length,
            seed=self.seed,
        )
        channel = self._channel_now()
        result = np.empty((policies.planes_down(c.ties), ballots.shape[1]), dtype=np.uint8)
        try:
            channel.submit(
                _FUNCTION,
                lambda line: self._steps(channel, line, ballots, result, header, roll),
                step=roll.clock,
            ).wait()
        finally:
            if channel.queue.broken is not None:
                self._channel = None  # elastic training goes on, with another
        return result

    def _steps(
        self,
        channel: Channel,
        line: Line,
        ballots: Planes,
        result: Planes,
        header: Header,
        roll: roll_call.RollCall,
    ) -> Steps[None]:
        number = roll.clock // roll.size
        transport = channel.transport
        assert isinstance(transport, HorovodTransport)
        nobody = np.empty((0, 0), dtype=np.uint8)
        agreed = Agreed(_FUNCTION, header, nobody, late=False, weights=None, same_presence=True)
        if not roll.agreed or number % (channel.check_every or _HEADERS_EVERY) == 0:
            # One name for all buckets, or ranks whose buckets differ would wait for each other.
            transport.restart("headers")
            agreed = yield from channel.headers(line, header, _FUNCTION)
        roll_call.check_creed(roll, _FUNCTION)  # of what headers do not tell
        transport.restart(f"{self._identity:x}")  # the votes of two optimizers never meet

        def pack(a: int, b: int, out: Planes) -> None:
            out[...] = ballots[:, a:b]

        def unpack(a: int, b: int, decided: Planes) -> None:
            result[:, a:b] = decided

        ballot = Ballot(
            length=header.length,
            k=len(ballots),
            ties=header.ties,
            seed=header.seed,
            step=header.step,
            pack=pack,
            unpack=unpack,
        )
        yield from channel.vote(line, ballot, agreed, number)

    def _channel_now(self) -> Channel:
        """This job's channel; a new one after elastic training changed the ranks."""
        transport = None if self._channel is None else self._channel.transport
        now = (self.process_set.rank(), self._size())
        if transport is None or (transport.rank, transport.size) != now:
            self._channel = Channel(HorovodTransport("mpisign", self.process_set))
            if os.environ.get("HOROVOD_ELASTIC") == "1":
                # A rank that has just come knows no digest of the last result.
                self._channel.check_every = 0
        channel = self._channel
        assert channel is not None
        # Each vote is the first of its queue, for a rank that has just come has counted none.
        channel.queue = Queue(channel.transport, channel.queue.timeout)
        return channel


def _checked(named_parameters: Iterable[Any]) -> list[tuple[str, torch.Tensor]]:
    named = list(named_parameters)
    for pair in named:
        fits = isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[0], str)
        if not fits or not isinstance(pair[1], torch.Tensor):
            raise TypeError(
                f"{_FUNCTION}: named_parameters must hold (name, parameter) pairs as "
                f"model.named_parameters() does, got {type(pair).__name__}"
            )
    names = [name for name, _ in named]
    if not names or len(set(names)) < len(names):
        doubles = sorted({n for n in names if names.count(n) > 1})
        raise ValueError(
            f"{_FUNCTION}: named_parameters must be at least one and uniquely named, "
            f"got {f'{doubles} twice' if names else 'none'}"
        )
    return named
