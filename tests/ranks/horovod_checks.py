"""What the Horovod scripts in this folder share: checks, and a model whose gradients are chosen.

Run by tests/test_horovod.py under horovodrun and mpirun. One line a check from rank 0, the first
few failures from any rank; ``finish`` exits 1 if any rank failed any check.
"""

from __future__ import annotations

import hashlib
import sys

import horovod.torch as hvd
import numpy as np
import torch

failures = []


def check(name, ok, detail=""):
    """Books one check of this rank."""
    if not ok:
        failures.append(name)
        print(f"rank {hvd.rank()} FAILED {name} {detail}", flush=True)
    elif hvd.rank() == 0:
        print(f"ok {name}", flush=True)


def raises(name, kind, text, function):
    """The error's text, which must hold ``text``; a failed check if nothing is raised."""
    try:
        function()
    except kind as error:
        check(name, text in str(error), str(error))
        return str(error)
    check(name, False, "raised nothing")
    return ""


def same_everywhere(name, text, process_set=hvd.global_process_set):
    """Every rank holds the same bytes."""
    mine = hashlib.sha256(text if isinstance(text, bytes) else text.encode()).digest()
    every = hvd.allgather(
        torch.frombuffer(bytearray(mine), dtype=torch.uint8)[None],
        name=f"sha256.{name}",
        process_set=process_set,
    )
    check(name, bool((every == every[0]).all()))


def digest(tensors):
    """All bits of some tensors."""
    return b"".join(
        t.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy() for t in tensors
    )


def finish():
    """Exits 0 if every rank passed every check."""
    total = int(hvd.allreduce(torch.tensor([len(failures)]), op=hvd.Sum, name="failures"))
    sys.stdout.flush()
    hvd.shutdown()
    sys.exit(1 if total else 0)


SHAPES = {
    "a": ((1,), torch.float32),
    "b": ((37, 11), torch.float32),
    "c": ((129,), torch.float64),
    "d": ((3, 5, 7), torch.bfloat16),
    "e": ((64,), torch.float16),
    "f": ((4097,), torch.float32),
    "g": ((4, 3, 5, 5), torch.float32),
    "h": ((0,), torch.float32),
}


def parameters():
    """Named parameters of all dtypes and of awkward sizes; "frozen" needs no gradient."""
    named = []
    for name, (shape, dtype) in SHAPES.items():
        data = torch.zeros(shape, dtype=dtype)
        if len(shape) == 4:
            data = data.to(memory_format=torch.channels_last)
        named.append((name, torch.nn.Parameter(data)))
    named.append(("frozen", torch.nn.Parameter(torch.zeros(5), requires_grad=False)))
    return named


def gradient(name, rank, step, nan=False, zeros=True):
    """What rank ``rank`` finds for a parameter at a step: any rank can compute any other's."""
    shape, dtype = SHAPES[name]
    rng = np.random.default_rng([ord(name), rank, step])
    x = rng.standard_normal(shape)
    kind = rng.integers(0, 16, shape)
    if zeros:
        x = np.where(kind == 0, 0.0, np.where(kind == 1, -0.0, x))
    if nan:
        x = np.where(kind == 2, np.nan, x)
    g = torch.from_numpy(np.ascontiguousarray(x)).to(dtype)
    return g.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else g


def uses(name, rank, step, unused):
    """Whether rank ``rank`` uses a parameter at a step; rank 0 always does."""
    if not unused or rank == 0:
        return True
    return bool(np.random.default_rng([7, ord(name), rank, step]).integers(0, 2))


def backward(named, rank, step, unused=False, **kind):
    """Sets gradients in an order of this rank's own, one backward() each."""
    order = np.random.default_rng([rank, step]).permutation(len(SHAPES))
    for i in order:
        name, p = named[i]
        if uses(name, rank, step, unused):
            (p * gradient(name, rank, step, **kind)).sum().backward()


def tally(votes, zeros, ties):
    """(expected vote, where it is not certain) from float64 arrays, one a rank."""
    total, doubt = np.zeros(votes[0].shape), np.zeros(votes[0].shape)
    for v in votes:
        zero = v == 0
        sign = np.where(np.isnan(v), 0.0, np.sign(np.nan_to_num(v)))
        if zeros == "positive":
            sign = np.where(zero, 1.0, sign)
        if zeros == "random":
            doubt += zero
        total += sign
    expected = np.sign(total)
    if ties == "positive":
        expected = np.where(total == 0, 1.0, expected)
    unsure = np.abs(total) < doubt
    if ties != "zero":
        unsure |= np.abs(total) == doubt if ties == "random" else (total == -doubt) & (doubt > 0)
    if ties == "zero":
        unsure |= (np.abs(total) == doubt) & (doubt > 0)
    return expected, unsure
