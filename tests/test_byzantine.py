"""Votes among ranks some of which lie: the right result, or an error that names them."""

from __future__ import annotations

import itertools
import random
import sys
import threading
import time
import warnings

import numpy as np
import pytest
import reference as ref
import samples
from hostile import (
    STEPS,
    Accuser,
    Babbler,
    LyingHelper,
    LyingOwner,
    TamperingWire,
    Wire,
    at,
    both,
    deviate,
    flipped,
    lie_in_tallies,
    named,
    play,
    same,
    soil_padding,
    two_faced,
)
from launchers import RANKS, mpirun, with_tests

import mpisign
from mpisign import simulation
from mpisign.engine import failure_detection as giving_up
from mpisign.engine import header, progress
from mpisign.engine.echo import digest
from mpisign.errors import BrokenError, CollectiveError, CollectiveTimeout, WireError
from mpisign.transports import threads

pytestmark = pytest.mark.filterwarnings("ignore:the vote's result is right")
SIZES = [(p, f) for p in (3, 4, 5, 7, 9) for f in (1, 2) if p >= 2 * f + 1]
LENGTH = 1003


@pytest.fixture(autouse=True)
def look_often(monkeypatch):
    """Simulated ranks look for notices twice a second, for the sake of a thousand of them."""
    monkeypatch.setattr(progress, "_SLICES", (0.05, 0.05))


def ballots(p, length=LENGTH):
    return [samples.awkward(length, 300 + r) for r in range(p)]


def vote_among(
    p, f, hostile, length=LENGTH, kind=None, tamper=None, timeout=20.0, silent=False, **options
):
    """Outcomes of all ranks, and the right result. ``tamper(rank)`` makes a rank's tampering."""
    world, xs = threads.World(p), ballots(p, length)
    wires = []
    for r in range(p):
        wires.append(TamperingWire(world, r) if r in hostile else Wire(world, r))
        if r in hostile and tamper is not None:
            wires[r].tamper = tamper(r)
            wires[r].silent = silent
    options = {"zeros": "abstain", "ties": "zero", "byzantine_f": f, **options}

    def run(comm, wire):
        if comm.rank in hostile and kind is not None:
            deviate(comm, kind)
        return comm.majority_vote(xs[comm.rank], **options)

    return play(wires, run, timeout), ref.vote(xs)


def all_right(outcomes, expected, honest):
    for r in honest:
        assert same(outcomes[r], expected), f"rank {r}: {outcomes[r]!r}"


def right_or_named(outcomes, expected, honest, hostile):
    """Errors may stand beside right results: then the next vote tells those who have them."""
    for r in honest:
        if isinstance(outcomes[r], np.ndarray):
            assert same(outcomes[r], expected), f"rank {r} has a wrong result"
        else:
            assert isinstance(outcomes[r], CollectiveError), repr(outcomes[r])
            assert named(outcomes[r]) & set(hostile), f"rank {r}: {outcomes[r]}"


def others(p, hostile):
    return [r for r in range(p) if r not in hostile]


# Without liars.


@pytest.mark.parametrize(("p", "f"), SIZES)
@pytest.mark.parametrize(
    "options",
    [
        {"zeros": "random", "ties": "random"},
        {"zeros": "abstain", "ties": "zero"},
        {"zeros": "abstain", "ties": "positive", "weights": [3, 1, 2]},
        {"zeros": "random", "ties": "zero", "weights": [0.5, 1.25, 0.0]},
    ],
)
def test_the_result_is_alltoalls_bit_for_bit(p, f, options):
    options = dict(options)
    weights = options.pop("weights", [1.0])

    def run(comm, length):
        x, weight = samples.awkward(length, comm.rank), weights[comm.rank % len(weights)]
        out = [
            comm.majority_vote(x, step=5, seed=3, weight=weight, algorithm=a, **more, **options)
            for a, more in (("alltoall", {}), ("auto", {"byzantine_f": f}))
        ]
        assert out[0].tobytes() == out[1].tobytes()
        return out[1].tobytes()

    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nobody is accused where nobody lies
        for length in (0, 1, 9, 64, 1003, *([70_001] if p < 7 else [])):
            assert len(set(simulation.run(p, run, length))) == 1


def test_bytes_are_those_of_the_formula():
    p, f, k, kd = 5, 1, 2, 2
    nbytes = 100 * p
    world = threads.World(p)
    comms = []

    def run(comm, wire):
        comms.append(comm)
        return comm.majority_vote(
            np.ones(8 * nbytes), zeros="abstain", ties="zero", byzantine_f=f
        ).sum()

    wires = [threads.ThreadTransport(world, r) for r in range(p)]
    mpisign.stats().reset()
    assert play(wires, run) == [8 * nbytes] * p
    headers = (p - 1) * (header.NBYTES + 32 * p)
    vote = (k * (2 * f + 1) + kd) * nbytes * (p - 1) // p + (p - 1) * (64 * p + 33 * (2 * f + 1))
    exchange = mpisign.stats().as_dict()["exchange"]
    assert exchange["received"] == exchange["sent"] == p * (headers + vote)


@pytest.mark.parametrize(
    ("p", "options", "text"),
    [
        (4, {"byzantine_f": 2}, "byzantine_f=2 needs at least 5 ranks, got 4"),
        (2, {"byzantine_f": 60_000}, "byzantine_f=60000 needs at least 120001 ranks, got 2"),
        (3, {"byzantine_f": 1, "algorithm": "allgather"}, "byzantine_f=1 needs algorithm="),
        (3, {"byzantine_f": -1}, "ranks 0-2: byzantine_f must be in"),
    ],
)
def test_what_cannot_be_is_the_same_error_on_all_and_breaks_nothing(p, options, text):
    def run(comm):
        with pytest.raises(CollectiveError) as raised:
            comm.majority_vote(np.ones(9), **options)
        return str(raised.value), comm.majority_vote(np.ones(9)).sum()

    (said, total), *more = simulation.run(p, run)
    assert text in said and total == 9 and set(more) == {(said, total)}


def test_errors_of_honest_ranks_leave_the_communicator_usable():
    def run(comm):
        x = np.ones(99)
        if comm.rank == 1:
            x[3] = np.nan
        with pytest.raises(CollectiveError, match="got 1 on rank 1"):
            comm.majority_vote(x, byzantine_f=1)
        with pytest.raises(CollectiveError, match="rank 2: x must be a NumPy array"):
            comm.majority_vote([1.0] if comm.rank == 2 else x, byzantine_f=1)
        with pytest.raises(CollectiveError, match="disagree on byzantine_f"):
            comm.majority_vote(np.ones(99), byzantine_f=int(comm.rank > 1))
        return comm.majority_vote(np.ones(99), byzantine_f=1).sum()

    assert simulation.run(4, run) == [99] * 4


# Owners that lie.


@pytest.mark.parametrize(("p", "f"), SIZES)
@pytest.mark.parametrize("kind", [LyingOwner, LyingHelper, Accuser, Babbler])
@pytest.mark.parametrize("place", ["first", "last", "apart"])
def test_f_lying_owners_change_nothing(p, f, kind, place):
    hostile = {
        "first": range(f),
        "last": range(p - f, p),
        "apart": range(0, p, p // f)[:f],
    }[place]
    outcomes, expected = vote_among(p, f, hostile, kind=kind)
    all_right(outcomes, expected, others(p, hostile))


@pytest.mark.parametrize(("p", "f"), SIZES)
@pytest.mark.parametrize(
    "tamper",
    [
        pytest.param(at("results", flipped), id="right digest, wrong data"),
        pytest.param(at("results", flipped, (0, 1)), id="wrong data to some"),
        pytest.param(at("digests", flipped), id="wrong digests"),
        pytest.param(at("digests", flipped, (0, 2)), id="wrong digests to some"),
        pytest.param(at("requests", lambda part: part + 77), id="garbage asked for"),
        pytest.param(at("requests", lambda part: part | 1, (1,)), id="all asked of one"),
        pytest.param(
            both(at("results", flipped), at("responses", flipped)), id="wrong data, twice"
        ),
    ],
)
def test_f_owners_that_tamper_change_nothing(p, f, tamper):
    hostile = range(p - f, p)
    outcomes, expected = vote_among(p, f, hostile, tamper=lambda r: tamper)
    all_right(outcomes, expected, others(p, hostile))


def test_a_result_asked_for_comes_from_an_honest_owner_past_a_second_liar():
    # Rank 0 owns shard 0 first and sends it wrong; rank 1, asked instead, sends it wrong again.
    tampers = {0: at("results", flipped), 1: at("responses", flipped)}
    outcomes, expected = vote_among(7, 2, (0, 1), tamper=tampers.get)
    all_right(outcomes, expected, others(7, (0, 1)))


def test_liars_that_change_nothing_are_named_in_a_warning():
    with pytest.warns(RuntimeWarning) as caught:
        vote_among(5, 1, (3,), kind=LyingOwner)
    texts = {str(w.message) for w in caught}
    assert texts == {"the vote's result is right, but rank 3 sent false tallies"}
    with pytest.warns(RuntimeWarning, match="rank 4 said: rank 0 or rank 1 sent planes other than"):
        vote_among(5, 1, (4,), kind=Accuser)


def test_more_liars_than_f_are_an_error_that_names_them_where_owners_differ():
    outcomes, _ = vote_among(5, 1, (0, 1), kind=Accuser)
    for r in (2, 3, 4):
        assert isinstance(outcomes[r], CollectiveError)
    text = next(str(o) for o in outcomes[2:] if isinstance(o, WireError))
    assert "no 2 of 3 owners agree on shard 0" in text and "ranks 0-1 said" in text


def liar_in(algorithm, p, liar, **more):
    """Outcomes of a vote in which one rank's every tally is the opposite; and the right result."""
    world, xs = threads.World(p), ballots(p, 8000)
    options = {"algorithm": algorithm, "zeros": "random", "ties": "positive", "step": 0, **more}

    def run(comm, wire):
        if comm.rank == liar:
            lie_in_tallies(comm)
        return comm.majority_vote(xs[comm.rank], **options)

    signs = np.stack([ref.pack(x, "random", rank=r)[0] for r, x in enumerate(xs)])
    negative = ref.plane_to_bits(ref.majority(signs)[0], 8000)
    return play([Wire(world, r) for r in range(p)], run), np.where(negative, -1, 1)


def test_what_it_is_for_one_owner_decides_its_shard_of_a_plain_alltoall_vote():
    outcomes, expected = liar_in("alltoall", 5, 2)
    for r in (0, 1, 3, 4):
        assert (outcomes[r] != expected).nonzero()[0].tolist() == list(range(3200, 4800))


def test_allgather_vote_survives_a_lying_tally():
    outcomes, expected = liar_in("allgather", 5, 2)
    all_right(outcomes, expected, (0, 1, 3, 4))
    assert (outcomes[2] != expected).all()


def test_replicated_owners_survive_a_lying_tally():
    outcomes, expected = liar_in("alltoall", 5, 2, byzantine_f=1)
    all_right(outcomes, expected, (0, 1, 3, 4))


# Senders that tell different ranks different things.


@pytest.mark.parametrize(("p", "f"), SIZES)
@pytest.mark.parametrize("step", ["headers", "commitments", "ballots"])
def test_an_equivocating_sender_is_named_or_does_no_harm(p, f, step):
    hostile = range(p - f, p)
    for dests in ({0}, {0, 1}, set(range(0, p, 2))):
        tamper = at(step, flipped, dests)
        outcomes, expected = vote_among(p, f, hostile, tamper=lambda r, t=tamper: t)
        right_or_named(outcomes, expected, others(p, hostile), hostile)


def test_a_ballot_other_than_committed_to_one_owner_does_not_stop_the_others():
    # Rank 6 owns none of rank 0's shards 0 and 6; of shard 5 it is an owner with ranks 5 and 0.
    outcomes, expected = vote_among(7, 1, (6,), tamper=lambda r: at("ballots", flipped, {0}))
    all_right(outcomes, expected, range(6))


@pytest.mark.parametrize(("p", "f"), [(3, 1), (4, 1), (5, 2), (7, 2)])
def test_a_lie_about_what_one_was_told(p, f):
    hostile = range(p - f, p)
    for step in ("echo of headers", "echo of commitments"):
        outcomes, expected = vote_among(p, f, hostile, tamper=lambda r, s=step: at(s, flipped))
        if p > 3 * f:
            all_right(outcomes, expected, others(p, hostile))
        else:
            right_or_named(outcomes, expected, others(p, hostile), hostile)
            assert isinstance(outcomes[0], CollectiveError)


def test_padding_that_a_sender_committed_to_names_it():
    world, xs = threads.World(5), ballots(5)

    def run(comm, wire):
        if comm.rank == 2:
            soil_padding(comm)
        return comm.majority_vote(xs[comm.rank], byzantine_f=1, zeros="random", ties="zero")

    outcomes = play([Wire(world, r) for r in range(5)], run)
    for r in (0, 1, 3, 4):
        assert isinstance(outcomes[r], CollectiveError)
        assert "rank 2 sent planes with padding not 0" in str(outcomes[r]), outcomes[r]


@pytest.mark.parametrize(
    ("p", "f", "hostile"),
    [(3, 1, (2,)), (3, 1, (0,)), (4, 1, (3,)), (5, 1, (2,)), (5, 2, (1, 4)), (7, 2, (5, 6))],
)
@pytest.mark.parametrize("weight", [1, 5])
def test_a_two_faced_rank_never_makes_two_results(p, f, hostile, weight):
    """Hostile ranks run the whole protocol twice, with other ballots, before two audiences.

    Each honest owner then finds its own audience's data in order. Without the quorums of ``echo``
    both audiences would find f + 1 equal digests: one honest owner's and f hostile ones'.
    """
    honest = others(p, hostile)
    xs, ys = ballots(p), [-x for x in ballots(p)]
    splits = [s for n in range(1, len(honest)) for s in itertools.combinations(honest, n)]
    rng = random.Random(p)
    for split in rng.sample(splits, min(len(splits), 6)):
        world = threads.World(p)
        audiences = set(split), set(honest) - set(split)
        wires = [Wire(world, r) for r in honest]
        faces = two_faced(world, hostile, audiences)

        def run(comm, wire):
            second = getattr(wire, "side", 0)
            x = (ys if second else xs)[comm.rank]
            return comm.majority_vote(
                x,
                byzantine_f=f,
                zeros="abstain",
                ties="zero",
                weight=weight if second else 1,
            )

        outcomes = play([*wires, *faces], run, timeout=3.0)[: len(honest)]
        results = [o for o in outcomes if isinstance(o, np.ndarray)]
        assert all(same(results[0], o) for o in results[1:]), "two results"
        lies = [-x if r in hostile else x for r, x in enumerate(xs)]
        weights = [weight if r in hostile else 1 for r in range(p)]
        faced = sum(w * np.sign(x.astype(float)) for w, x in zip(weights, lies, strict=True))
        if results:
            assert same(results[0], ref.vote(xs)) or same(results[0], np.sign(faced))
        for o in outcomes:
            if not isinstance(o, np.ndarray):
                assert isinstance(o, CollectiveError), repr(o)
                assert named(o) & set(hostile), o


# Contributions that are short, long or absent.


@pytest.mark.parametrize("step", STEPS[:8])
@pytest.mark.parametrize("change", ["short", "long"])
def test_a_wrong_length_names_its_sender_on_all(step, change):
    def resized(part):
        return part[:-1].copy() if change == "short" else np.append(part, part[:1])

    outcomes, expected = vote_among(4, 1, (3,), tamper=lambda r: at(step, resized, {1}))
    right_or_named(outcomes, expected, range(3), (3,))
    assert isinstance(outcomes[1], WireError) and "rank 3 sent" in str(outcomes[1])


def vanishing(step):
    """A rank that neither sends nor listens from the first message of a step on."""

    def tamper(s, dest, part):
        if s == step:
            raise OSError("gone")
        return part

    return tamper


@pytest.mark.parametrize("step", ["headers", "ballots"])
def test_a_rank_that_falls_silent_is_named_by_all(step):
    outcomes, _ = vote_among(5, 1, (4,), tamper=lambda r: vanishing(step), timeout=0.5, silent=True)
    for r in range(4):
        assert isinstance(outcomes[r], CollectiveTimeout) and outcomes[r].ranks == (4,), outcomes


def test_a_rank_that_falls_silent_when_it_is_asked_is_named():
    # Rank 0 sends shard 0 wrong, so that rank 1, which has sent its digest, is asked for it.
    tampers = {0: at("results", flipped), 1: vanishing("responses")}
    outcomes, expected = vote_among(7, 2, (0, 1), tamper=tampers.get, timeout=0.5, silent=True)
    all_right(outcomes, expected, (2, 3, 4))  # owners of shard 0 themselves
    for r in (5, 6):
        assert isinstance(outcomes[r], CollectiveTimeout) and outcomes[r].ranks == (1,), outcomes


@pytest.mark.parametrize("step", ["ballots", "results"])
def test_what_is_kept_from_some_ranks_names_who_kept_it(step):
    outcomes, expected = vote_among(
        5, 1, (4,), tamper=lambda r: at(step, lambda part: None, {0, 1}), timeout=0.5
    )
    right_or_named(outcomes, expected, range(4), (4,))
    assert {type(outcomes[r]) for r in (0, 1)} <= {WireError, CollectiveTimeout, CollectiveError}


def test_ranks_that_raise_tell_those_that_have_a_result():
    world, xs = threads.World(5), ballots(5)
    wires = [Wire(world, r) for r in range(4)] + [TamperingWire(world, 4)]
    wires[4].tamper = at("results", lambda part: part[:-1].copy(), {0})  # rank 0 alone will know

    def run(comm, wire):
        outcomes = []
        for _ in range(3):
            try:
                outcomes.append(comm.majority_vote(xs[comm.rank], byzantine_f=1, ties="zero"))
            except CollectiveError as error:
                outcomes.append(error)
        return outcomes

    for r, (_, second, third) in enumerate(play(wires, run)[:4]):
        assert isinstance(second, CollectiveError) and isinstance(third, BrokenError)
        assert 4 in named(second), f"rank {r}: {second}"


# Anything at all.


def test_notices_that_make_no_sense_are_passed_over():
    world, xs = threads.World(4), ballots(4)
    head = giving_up._HEAD
    garbage = [
        b"",
        b"MPSN",
        bytes(512),
        random.Random(0).randbytes(512),
        head.pack(b"MPSN", 9, 0, 0, 1.0),
        head.pack(b"MPSN", 1, 0, 0, float("nan")) + b"\xff" * 7,
    ]

    def run(comm, wire):
        if comm.rank == 3:
            for notice in garbage:
                wire.post(notice)
            time.sleep(0.4)  # so that the others look for notices
        return comm.majority_vote(xs[comm.rank], byzantine_f=1, zeros="abstain", ties="zero")

    all_right(play([Wire(world, r) for r in range(4)], run), ref.vote(xs), range(3))


def test_sixteen_ranks_of_which_five_collude():
    hostile = (1, 2, 3, 8, 15)
    outcomes, expected = vote_among(
        16, 5, hostile, kind=LyingOwner, tamper=lambda r: at("responses", flipped)
    )
    all_right(outcomes, expected, others(16, hostile))


def test_random_damage_never_makes_a_wrong_result():
    outcomes_seen = {"right": 0, "named": 0}
    for seed in range(60):
        rng = random.Random(seed)
        p, f = rng.choice(SIZES)
        hostile = rng.sample(range(p), f)
        honest = others(p, hostile)

        def damage(rank, rng=rng, p=p):
            own = random.Random(rng.random())
            steps = own.sample(STEPS, own.choice((1, 1, 2, 5)))
            dests = own.sample(range(p), own.randrange(1, p + 1))

            def tamper(step, dest, part):
                if step in steps and dest in dests and part.size:
                    part[own.randrange(part.size)] ^= own.randrange(1, 256)
                return part

            return tamper

        outcomes, expected = vote_among(p, f, hostile, tamper=damage)
        right_or_named(outcomes, expected, honest, hostile)
        kinds = {isinstance(outcomes[r], np.ndarray) for r in honest}
        outcomes_seen["right"] += True in kinds
        outcomes_seen["named"] += False in kinds
    assert min(outcomes_seen.values()) >= 10, outcomes_seen


@pytest.mark.mpi
@pytest.mark.parametrize("n", [4, pytest.param(5, marks=pytest.mark.many)])
def test_liars_over_mpi(n):
    output = mpirun(n, sys.executable, RANKS / "byzantine_liars.py", env=with_tests()).stdout
    assert all(f"rank {r} is done" in output for r in range(n - 1)), output


def test_who_sent_different_headers_is_named_or_one_of_two():
    """Rank 1 tells one rank another seed, and echoes to each what it told that one."""

    def errors(p, dest):
        def tamper(step, to, part):
            if to == dest and step in ("headers", "echo of headers"):
                if step == "headers":
                    part[40] ^= 1
                    own = part.copy()
                    part_of["header"] = digest(own)
                else:
                    part.reshape(p, 32)[1] = part_of["header"]
            return part

        part_of, world, found = {}, threads.World(p), [""] * p

        def work(rank):
            wire = TamperingWire(world, rank)
            if rank == 1:
                wire.tamper, wire.silent = tamper, True
            try:
                mpisign.Communicator(wire, timeout=3.0).majority_vote(np.ones(100), byzantine_f=1)
            except CollectiveError as error:
                found[rank] = str(error)

        jobs = [threading.Thread(target=work, args=(r,)) for r in range(p)]
        for job in jobs:
            job.start()
        for job in jobs:
            job.join()
        return found

    told = errors(3, 0)
    assert "different headers: one of ranks 1-2 sent them" in told[0], told
    assert "different headers: one of ranks 0-1 sent them" in told[2], told
    told = errors(4, 3)
    assert "majority_vote: ranks were told different headers: rank 1 sent them" in told[3], told
    assert all("rank 3 broke off" in told[r] and ": rank 1 sent them" in told[r] for r in (0, 2))
