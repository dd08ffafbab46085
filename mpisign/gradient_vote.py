"""One optimizer's gradients: packed, voted on and put back before each of its steps."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from mpisign import arrays, policies
from mpisign.bucket_ballot import BucketBallot
from mpisign.buckets import Bucket
from mpisign.collectives.agreement import Agreed
from mpisign.collectives.header import Header
from mpisign.collectives.line import Line
from mpisign.collectives.vote import Channel, ReplicaDigest, small
from mpisign.compressors import Compressor
from mpisign.transports.base import Steps

KEY = "mpisign"  # of the compressor's state in optimizer.state_dict()


class GradientVote:
    """The hooks of one optimizer. ``names``: its parameters, in its order, to their names."""

    def __init__(
        self,
        channel: Channel,
        compressor: Compressor | None,
        algorithm: policies.Algorithm,
        seed: int,
        optimizer: torch.optim.Optimizer,
        names: dict[torch.Tensor, str],
    ) -> None:
        self.channel = channel
        self.compressor = compressor
        self.algorithm = algorithm
        self.seed = seed
        self.optimizer = optimizer
        self.names = names
        self.state: dict[torch.Tensor, dict[str, Any]] = {p: {} for p in names}
        self.bucket = Bucket([p.numel() for p in names])
        # One byte a member, 1 = it has a gradient here: which ones to leave alone is agreed on.
        self.present = np.zeros(len(names), dtype=np.uint8)
        self.steps = 0  # saved with the state: it keys the random bits
        self.compared = False  # the parameters, with those of the other ranks
        self.stepping = False
        self.voted: list[tuple[int, int]] = []

    def before_step(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        """The step pre-hook."""
        # torch hooks the step of every class: a step that calls its base class's comes here twice.
        if self.stepping and self.voted == self._versions():
            return
        reason = self._unfit(optimizer, (*args[1:], *kwargs.values()))
        number = self.channel.next_step()
        self.channel.submit(
            "step", lambda line: self._vote_or_average(line, reason, number), self.steps
        ).wait()
        self.steps += 1
        self.stepping, self.voted = True, self._versions()

    def after_step(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        """The step post-hook."""
        self.stepping = False

    def _versions(self) -> list[tuple[int, int]]:
        grads = [p.grad for p in self.names if p.grad is not None]
        return [(id(g), g._version) for g in grads]

    def _unfit(self, optimizer: Any, arguments: tuple[Any, ...]) -> str:
        """Why this rank cannot take part; it must say so where the others wait for it."""
        if any(a is not None for a in arguments):
            return (
                "a closure computes gradients after they were voted on; "
                "call backward() first and step() without arguments"
            )
        parameters = [p for g in optimizer.param_groups for p in g["params"]]
        if [id(p) for p in parameters] != [id(p) for p in self.names]:
            return "the optimizer's parameters are not those it had when it was wrapped"
        if getattr(optimizer, "grad_scale", None) is not None:
            return "torch.amp.GradScaler does not go with votes, which need no scale"
        return ""

    def _vote_or_average(self, line: Line, reason: str, number: int) -> Steps[None]:
        name = "average" if self.compressor is None else "bucket_vote"
        header, members, inline = Header(name), None, None
        try:
            header = self._header(header)
            if self.compressor is not None:
                members = BucketBallot(
                    self.bucket,
                    self.state,
                    self.compressor,
                    seed=self.seed,
                    step=self.steps,
                    rank=line.rank,
                )
                if members.ballot.short(line.transport.message):
                    members.pack_all()
                    header = replace(header, late=False, nans=members.nans)
                if small(members.ballot, header, line.size):
                    inline = members.planes
        except Exception as error:
            reason = reason or str(error) or type(error).__name__
        if reason:
            header = header.refusal(reason)
        agreed = yield from self.channel.headers(line, header, "step", inline)
        anywhere = yield from self._present_anywhere(line, agreed)
        self.compared = True
        if members is None:
            yield from self._average(line, anywhere)
            return
        members.anywhere = anywhere
        yield from self.channel.vote(
            line,
            members.ballot,
            agreed,
            number,
            lambda: members.nans,
            inlined=inline is not None,
        )

    def _header(self, header: Header) -> Header:
        """What this rank says of itself, with everything that may fail on one rank alone."""
        for i, p in enumerate(self.names):
            self.present[i] = p.grad is not None
            if p.grad is not None:
                arrays.view_floats("step", f"the gradient of {self.names[p]!r}", p.grad)
        header = replace(
            header,
            step=self.steps,
            tensor=self.bucket.identity([f"{name} {p.dtype}" for p, name in self.names.items()]),
            length=self.bucket.length,
            seed=self.seed,
            algorithm=self.algorithm,
            settings=self._settings(),
            presence=hashlib.blake2b(self.present.tobytes(), digest_size=16).digest(),
        )
        if not self.compared:
            self.channel.digest = self._parameters()
        c = self.compressor
        if c is None:
            return header
        return replace(header, zeros=c.zeros, nan=c.nan, ties=c.ties, late=True)

    def _settings(self) -> int:
        """64 bits of the optimizer's options: another learning rate would part the replicas."""
        options = [
            sorted((k, _plain(v)) for k, v in g.items() if k != "params")
            for g in self.optimizer.param_groups
        ]
        digest = hashlib.blake2b(repr(options).encode(), digest_size=8).digest()
        return int.from_bytes(digest, "little")

    def _parameters(self) -> bytes:
        digest = ReplicaDigest("parameters")
        for p in self.names:
            flat = p.detach().cpu().contiguous().view(-1)
            digest.update(flat.view(torch.uint8).numpy())
        return digest.field()

    def _present_anywhere(self, line: Line, agreed: Agreed) -> Steps[Any]:
        """The members that have a gradient on any rank: uint8 (members,)."""
        if agreed.same_presence:
            return self.present.copy()
        rows = np.empty((line.size, len(self.present)), dtype=np.uint8)
        yield line.allgather(self.present, rows)
        return rows.max(axis=0)

    def _flat(self) -> Any:
        """All gradients in one float32 array, zeros where there is none."""
        flat = np.zeros(sum(self.bucket.lengths), dtype=np.float32)
        for p, part in zip(self.names, np.split(flat, self._cuts()), strict=True):
            if p.grad is not None:
                part[:] = p.grad.detach().float().reshape(-1).numpy()
        return flat

    def _cuts(self) -> Any:
        return np.cumsum(self.bucket.lengths)[:-1]

    def _average(self, line: Line, anywhere: Any) -> Steps[None]:
        mean = self._flat()
        yield line.allreduce(mean)
        mean /= np.float32(line.size)
        for i, (p, part) in enumerate(zip(self.names, np.split(mean, self._cuts()), strict=True)):
            if anywhere[i]:
                p.grad = torch.empty_like(p) if p.grad is None else p.grad
                p.grad.detach().copy_(torch.from_numpy(part).view(p.shape))

    def save(self, optimizer: Any, state_dict: dict[str, Any]) -> dict[str, Any]:
        """The state_dict post-hook."""
        kept = {
            self.names[p]: {k: v.clone() for k, v in state.items()}
            for p, state in self.state.items()
            if state
        }
        return {**state_dict, KEY: {"steps": self.steps, "state": kept}}

    def load(self, optimizer: Any, state_dict: dict[str, Any]) -> dict[str, Any]:
        """The load_state_dict pre-hook."""
        saved = state_dict.get(KEY, {"steps": 0, "state": {}})
        kept = saved["state"]
        unknown = set(kept) - set(self.names.values())
        if unknown:
            raise ValueError(f"load_state_dict: no parameter is named {sorted(unknown)[0]!r}")
        for p, name in self.names.items():
            for key, value in kept.get(name, {}).items():
                if value.shape != p.shape:
                    raise ValueError(
                        f"load_state_dict: {key} of {name!r} must have shape {tuple(p.shape)}, "
                        f"got {tuple(value.shape)}"
                    )
        self.steps = saved["steps"]
        self.compared = False
        for p, name in self.names.items():
            self.state[p] = {k: v.clone() for k, v in kept.get(name, {}).items()}
        return {k: v for k, v in state_dict.items() if k != KEY}


def _plain(value: Any) -> str:
    """An option as text that is the same on every rank; "" for what has no such text."""
    if isinstance(value, torch.Tensor):
        return repr(value.tolist())
    if isinstance(value, (tuple, list)):
        return f"[{','.join(_plain(v) for v in value)}]"
    return repr(value) if isinstance(value, (bool, int, float, str, type(None))) else ""
