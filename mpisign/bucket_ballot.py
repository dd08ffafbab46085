"""A bucket of gradients as a ballot: its members are packed and unpacked as chunks come and go."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from mpisign import arrays, planes, policies
from mpisign.buckets import Bucket
from mpisign.collectives.ballot import Ballot, Planes
from mpisign.compressors.base import Compressor, State
from mpisign.stats import stage


class BucketBallot:
    """One vote on a bucket: its members are packed and unpacked as their chunks come and go."""

    def __init__(
        self,
        bucket: Bucket,
        state: dict[torch.Tensor, State],
        c: Compressor,
        *,
        seed: int,
        step: int,
        rank: int,
    ) -> None:
        self._bucket = bucket
        self._state = state
        self._compressor = c
        self._keys = {"seed": seed, "step": step, "rank": rank}
        self._parameters = list(state)
        self._packed = self._unpacked = 0
        self.nans = 0
        self.anywhere: Any = None  # which members have a gradient on any rank
        up, down = policies.planes_up(c.zeros, c.nan), policies.planes_down(c.ties)
        self.planes = np.zeros((up, bucket.nbytes), dtype=np.uint8)
        self._result = np.empty((down, bucket.nbytes), dtype=np.uint8)
        self.ballot = Ballot(
            length=bucket.length,
            k=up,
            ties=c.ties,
            seed=seed,
            step=step,
            pack=self._pack,
            unpack=self._unpack,
        )

    def pack_all(self) -> None:
        """Every member at once."""
        self._pack_until(self._bucket.nbytes)

    def _pack(self, a: int, b: int, out: Planes) -> None:
        self._pack_until(b)
        out[...] = self.planes[:, a:b]

    def _pack_until(self, b: int) -> None:
        """All members that begin before byte ``b``."""
        offsets = self._bucket.offsets
        first = last = self._packed
        while last < len(offsets) and offsets[last] < b:
            last += 1
        if first < last:
            with stage("pack"):
                self._pack_members(first, last)
        self._packed = last

    def _pack_members(self, first: int, last: int) -> None:
        compressor = self._compressor
        grads, states, offsets = [], [], []
        for i, p in enumerate(self._parameters[first:last], first):
            if p.grad is not None:
                grads.append(p.grad)
                states.append(self._state[p])
                offsets.append(self._bucket.offsets[i])
                continue
            out = self.planes[:, self._bucket.span(i)]
            _, _, found = planes.pack_census(
                compressor.voted_on_without_gradient(p, self._state[p]),
                zeros=compressor.zeros,
                nan=compressor.nan,
                offset=8 * self._bucket.offsets[i],
                out=out if len(out) == 2 else out[0],
                **self._keys,
            )
            self.nans += int(found)
        out = self.planes if len(self.planes) == 2 else self.planes[0]
        self.nans += compressor.pack(grads, states, out, offsets, **self._keys)

    def _unpack(self, a: int, b: int, result: Planes) -> None:
        self._result[:, a:b] = result
        bucket = self._bucket
        with stage("unpack"):
            while self._unpacked < len(bucket.offsets):
                i = self._unpacked
                if bucket.span(i).stop > b:
                    break
                if self.anywhere[i]:
                    votes = self._result[:, bucket.span(i)]
                    _put(self._parameters[i], torch.from_numpy(votes))
                self._unpacked += 1


def _put(p: torch.Tensor, votes: torch.Tensor) -> None:
    """The votes (kd, B) as the gradient of ``p``, in place where its memory allows."""
    flat = votes if len(votes) == 2 else votes[0]
    if p.grad is None:
        p.grad = torch.empty_like(p, memory_format=torch.contiguous_format)
    grad = p.grad.detach()
    if arrays.view("step", "grad", grad).contiguous:
        planes.unpack(flat, out=grad)
    else:
        grad.copy_(planes.unpack(flat, grad.shape, dtype=grad.dtype))
