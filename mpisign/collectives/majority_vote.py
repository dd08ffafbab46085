"""majority_vote: the sign of the sum of signs over the ranks of a communicator."""

from __future__ import annotations

from typing import Any

import numpy as np

from mpisign import arrays, planes, policies
from mpisign.collectives.header import Header
from mpisign.collectives.progress import Handle
from mpisign.collectives.vote import Channel
from mpisign.stats import stage
from mpisign.transports.base import Steps


def majority_vote(
    x: Any,
    comm: Any = None,
    *,
    algorithm: policies.Algorithm = "auto",
    zeros: policies.Zeros = policies.DEFAULT_ZEROS,
    nan: policies.Nan = policies.DEFAULT_NAN,
    ties: policies.Ties = policies.DEFAULT_TIES,
    seed: int = 0,
    step: int | None = None,
    out: Any = None,
) -> Any:
    """sign(sum over ranks of sign(x)), bit for bit the same on every rank.

    ``x``: float32, float16, bfloat16 or float64, NumPy array or torch CPU tensor of any shape, the
    same length and dtype on all ranks. ``comm``: mpi4py intracommunicator, default COMM_WORLD; a
    clone of it is used, so that messages of yours never mix with these. Returns an array of the
    same framework, shape and dtype: +1, -1, and 0 where ``ties="zero"`` found no majority;
    ``out=`` is written to and returned.

    algorithm: "allgather", "alltoall" or "auto". zeros, nan, ties: see ``pack`` and ``majority``.
    ``seed`` and ``step`` key the random bits; step defaults to the communicator's count of votes.

    Raises, the same on every rank: DisagreementError (ranks differ in length, dtype, policy,
    algorithm, step or seed; names ranks and values), NaNError, WireError, CollectiveError (bad
    arguments on some rank). TypeError if ``comm`` is none. Source: Bernstein et
    al. 2019, signSGD with majority vote is communication efficient and fault tolerant.
    """
    return majority_vote_async(
        x,
        comm,
        algorithm=algorithm,
        zeros=zeros,
        nan=nan,
        ties=ties,
        seed=seed,
        step=step,
        out=out,
    ).wait()


def majority_vote_async(
    x: Any,
    comm: Any = None,
    *,
    algorithm: policies.Algorithm = "auto",
    zeros: policies.Zeros = policies.DEFAULT_ZEROS,
    nan: policies.Nan = policies.DEFAULT_NAN,
    ties: policies.Ties = policies.DEFAULT_TIES,
    seed: int = 0,
    step: int | None = None,
    out: Any = None,
) -> Handle:
    """``majority_vote`` that returns at once with a handle of ``wait()`` and ``done()``.

    ``x`` is packed before this returns and may be changed; ``out`` belongs to the vote until
    ``wait``. Votes on one communicator run in the order of the calls, which must be the same on
    all ranks; so must be the order of waits for votes on several communicators. Errors are raised
    by ``wait``.
    """
    from mpisign.transports.mpi import channel

    ch = channel("majority_vote", comm)
    call = ch.next_step()
    settings: dict[str, Any] = {
        "algorithm": algorithm,
        "zeros": zeros,
        "nan": nan,
        "ties": ties,
        "seed": seed,
        "step": call if step is None else step,
    }
    try:
        header, ballots, out = _prepare(x, out, ch.transport.rank, settings)
    except Exception as error:
        # The others are on their way into the collective: refuse there, not here.
        reason = str(error).removeprefix("majority_vote: ")
        return ch.queue.submit(ch.headers(Header("majority_vote").refusal(reason), "majority_vote"))
    return ch.queue.submit(_steps(ch, header, ballots, out))


def _prepare(x: Any, out: Any, rank: int, settings: dict[str, Any]) -> tuple[Header, Any, Any]:
    function = "majority_vote"
    v = arrays.view_floats(function, "x", x)
    policies.code(function, "algorithm", settings["algorithm"], policies.ALGORITHMS)
    policies.code(function, "zeros", settings["zeros"], policies.ZEROS)
    policies.code(function, "nan", settings["nan"], policies.NAN)
    policies.code(function, "ties", settings["ties"], policies.TIES)
    for name in ("seed", "step"):
        if not isinstance(settings[name], (int, np.integer)) or not 0 <= settings[name] < 1 << 64:
            raise ValueError(f"{function}: {name} must be in [0, 2**64), got {settings[name]!r}")
    if out is None:
        out = arrays.empty(v.shape, v.dtype, like=v)
    o = arrays.view_floats(function, "out", out, writable=True)
    if o.shape != v.shape or o.dtype != v.dtype or not o.contiguous:
        raise ValueError(
            f"{function}: out must be C-contiguous {v.dtype} {v.shape}, got {o.dtype} {o.shape}"
        )
    two = policies.planes_up(settings["zeros"], settings["nan"])
    ballots = np.empty((two, planes.plane_bytes(v.length)), dtype=np.uint8)
    with stage("pack"):
        _, _, nans = planes.pack_census(
            x,
            zeros=settings["zeros"],
            nan=settings["nan"],
            seed=settings["seed"],
            step=settings["step"],
            rank=rank,
            out=ballots if two == 2 else ballots[0],
        )
    header = Header(function, dtype=v.dtype, length=v.length, nans=nans, **settings)
    return header, ballots, out


def _steps(ch: Channel, header: Header, ballots: Any, out: Any) -> Steps[Any]:
    yield from ch.headers(header, "majority_vote")
    result = yield from ch.vote(ballots, header)
    with stage("unpack"):
        planes.unpack(result if len(result) == 2 else result[0], out=out)
    return out
