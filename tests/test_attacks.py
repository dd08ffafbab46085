"""mpisign.attacks: objects on honest rows, and hostile ranks in a job."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import types

import numpy as np
import pytest
import torch

import mpisign
from mpisign import attacks
from mpisign.attacks import (
    ATTACKS,
    Adversaries,
    ALittleIsEnough,
    Constant,
    Gaussian,
    Inf,
    InnerProductManipulation,
    LabelFlipping,
    Mimic,
    NearTies,
    Random,
    Reversed,
    SignFlipping,
    by_name,
)
from mpisign.errors import DisagreementError
from mpisign.simulation import run

ROWS = np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0], [7.0, 8.0, 9.0]])

# ByzFL 0.0.11's documentation, and what follows from the definitions.
DOCUMENTED = [
    (SignFlipping(), [-4, -5, -6]),
    (InnerProductManipulation(2.0), [-8, -10, -12]),
    (ALittleIsEnough(1.5), [8.5, 9.5, 10.5]),
    (Mimic(0), [1, 2, 3]),
    (Inf(), [np.inf] * 3),
    (LabelFlipping(), [4, 5, 6]),
    (Reversed(), [-400, -500, -600]),
    (Constant(7.0), [7, 7, 7]),
    (NearTies(3), [-4, -5, -6]),
    (NearTies(2), [4, 5, 6]),
]


@pytest.mark.parametrize(("attack", "expected"), DOCUMENTED, ids=lambda x: repr(x)[:30])
@pytest.mark.parametrize("given", ["array", "list", "tensor", "tensors"])
def test_documented_vectors_in_the_framework_and_dtype_that_came(attack, expected, given):
    for dtype in ("float32", "float64", "float16", "bfloat16"):
        if given in ("array", "list"):
            if dtype == "bfloat16":
                dtype = pytest.importorskip("ml_dtypes").bfloat16
            x = ROWS.astype(dtype)
            before = x.copy()
            out = attack(x if given == "array" else list(x))
            assert type(out) is np.ndarray
            assert (x == before).all()
        else:
            x = torch.tensor(ROWS, dtype=getattr(torch, dtype), requires_grad=True)
            out = attack(x if given == "tensor" else list(x))
            assert isinstance(out, torch.Tensor) and not out.requires_grad
        assert out.dtype == x.dtype and out.shape == (3,)
        wide = out.astype(np.float64) if isinstance(out, np.ndarray) else out.double().numpy()
        assert np.allclose(wide, expected, rtol=1e-6 if dtype in ("float32", "float64") else 1e-2)


def test_what_mimic_gives_is_no_view_of_the_rows():
    x = ROWS.copy()
    Mimic(1)(x)[...] = 0
    assert (x == ROWS).all()


@pytest.mark.parametrize("kind", [Gaussian, Random])
def test_random_vectors_repeat_by_seed_in_every_framework_and_differ_by_call(kind):
    rows = np.random.default_rng(0).normal(0, 3, (4, 2000)).astype("float32")
    one, other = kind(sigma=2.0, seed=[5, 1]), kind(sigma=2.0, seed=[5, 1])
    first = one(rows)
    assert np.array_equal(first, other(torch.from_numpy(rows)).numpy())
    assert not np.array_equal(first, one(rows))
    assert not np.array_equal(first, kind(sigma=2.0, seed=[5, 2])(rows))
    assert first.std() == pytest.approx(2.0 * (1 if kind is Gaussian else 3), rel=0.1)
    with pytest.raises(ValueError, match="sigma must be at least 0"):
        kind(sigma=-1.0)


def test_near_ties_turns_what_it_can_and_votes_along_elsewhere():
    n, f, d = 9, 3, 4000
    rng = np.random.default_rng(1)
    rows = rng.normal(0.3, 1, (n, d)).astype("float32")
    honest = np.sign(rows).sum(0)
    sent = NearTies(f)(rows)
    votes = honest + f * np.sign(sent)
    near = np.abs(honest) <= f
    assert near.any() and not near.all()
    assert (votes[near] * honest[near] <= 0).all()  # turned, or tied at |s| = f
    assert (np.sign(votes[~near]) == np.sign(honest[~near])).all()
    assert (np.sign(sent[~near]) == np.sign(honest[~near])).all()
    assert (np.abs(sent) <= np.abs(rows).max(0) + 1e-6).all()


def test_near_ties_of_a_tie_votes_against_the_mean():
    rows = np.array([[1.0, -3.0, 0.0], [-2.0, 1.0, 0.0]])
    assert NearTies(1)(rows).tolist() == [1.5, 2.0, 0.0]


@pytest.mark.parametrize(
    ("attack", "rows", "error", "text"),
    [
        (SignFlipping(), [[1.0]], TypeError, "SignFlipping: honest must be a NumPy array"),
        (SignFlipping(), np.ones(3), ValueError, r"of shape \(n, d\), n from 1, got \(3,\)"),
        (SignFlipping(), np.ones((0, 3)), ValueError, "n from 1"),
        (SignFlipping(), [], ValueError, "at least one row, got none"),
        (SignFlipping(), [np.ones(3), np.ones(4)], ValueError, "one framework, shape and dtype"),
        (SignFlipping(), np.ones((2, 3), int), TypeError, "got int64"),
        (ALittleIsEnough(), np.ones((1, 3)), ValueError, "needs 2 honest rows, got 1"),
        (Mimic(2), np.ones((2, 3)), ValueError, "epsilon must be below the 2 rows, got 2"),
    ],
)
def test_what_is_no_rows_is_refused_by_name(attack, rows, error, text):
    with pytest.raises(error, match=text):
        attack(rows)


def test_arguments_that_make_no_sense_are_refused():
    for make in (lambda: Mimic(-1), lambda: Mimic(1.5), lambda: NearTies(-1)):
        with pytest.raises(ValueError, match="must be an int from 0"):
            make()
    with pytest.raises(ValueError, match="attack must be one of sign-flip, .*got 'flip'"):
        by_name("flip")


def test_every_name_makes_an_attack_of_rows():
    for name in ATTACKS:
        assert by_name(name, f=2, seed=3)(ROWS).shape == (3,)
    assert by_name("omniscient", f=2) == NearTies(2)


def test_importing_attacks_loads_no_torch_and_no_mpi():
    code = (
        "import sys, mpisign.attacks as a; a.by_name('alie'); "
        "assert not {'torch', 'mpi4py.MPI', 'cupy', 'sklearn'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_as_byzfl_does_where_its_source_is():
    """MPISIGN_BYZFL: a folder that has byzfl in it; its __init__ wants torchvision, so without."""
    source = os.environ.get("MPISIGN_BYZFL", "/tmp/byzsrc")
    if importlib.util.find_spec("byzfl") is None and not os.path.isdir(f"{source}/byzfl/attacks"):
        pytest.skip("needs byzfl: MPISIGN_BYZFL=<folder of its source>")
    pytest.importorskip("scipy")
    bare = types.ModuleType("byzfl")
    spec = importlib.util.find_spec("byzfl")
    bare.__path__ = list(spec.submodule_search_locations) if spec else [f"{source}/byzfl"]
    sys.modules["byzfl"] = bare
    try:
        theirs = importlib.import_module("byzfl.attacks.attacks")
    finally:
        for name in [n for n in sys.modules if n == "byzfl" or n.startswith("byzfl.")]:
            del sys.modules[name]
    rng = np.random.default_rng(2)
    pairs = [
        (SignFlipping(), theirs.SignFlipping()),
        (InnerProductManipulation(0.7), theirs.InnerProductManipulation(0.7)),
        (ALittleIsEnough(1.1), theirs.ALittleIsEnough(1.1)),
        (Mimic(3), theirs.Mimic(3)),
        (Inf(), theirs.Inf()),
        (LabelFlipping(), theirs.LabelFlipping()),
    ]
    for dtype in ("float32", "float64"):
        rows = rng.normal(0, 2, (7, 501)).astype(dtype)
        for ours, peer in pairs:
            for x in (rows, list(rows), torch.from_numpy(rows)):
                assert np.allclose(np.asarray(ours(x)), np.asarray(peer(x)), rtol=2e-5, atol=1e-6)


# ---- in a job ----------------------------------------------------------------------------------

SHAPES = [(5, 3), (3,), (2, 2, 4), ()]


def honest_gradient(rank, i, step=0):
    rng = np.random.default_rng([rank, i, step])
    return rng.normal(0.2, 1, SHAPES[i]).astype("float32")


def parameters_of(rank, dtypes=("float32",) * 4, missing=(), step=0):
    """Parameters whose gradients all ranks can compute."""
    ps = []
    for i, dtype in enumerate(dtypes):
        p = torch.nn.Parameter(torch.zeros(SHAPES[i], dtype=getattr(torch, dtype)))
        if (rank, i) not in missing:
            p.grad = torch.from_numpy(np.array(honest_gradient(rank, i, step))).to(p.dtype)
        ps.append(p)
    return ps


def flat(ps):
    return np.concatenate(
        [np.zeros(p.numel()) if p.grad is None else p.grad.double().numpy().ravel() for p in ps]
    )


@pytest.mark.parametrize("size", [2, 3, 4, 5, 9])
@pytest.mark.parametrize("name", ["alie", "ipm", "mimic", "omniscient"])
def test_hostile_ranks_send_what_the_attack_makes_of_the_honest_rows(size, name):
    hostile = sorted({0, size // 2}) if size > 3 else [size - 1]
    if name == "alie" and size - len(hostile) < 2:
        pytest.skip("a deviation of one row")

    def job(comm):
        ps = parameters_of(comm.rank)
        Adversaries(name, hostile, comm).gradients(iter(ps))
        return flat(ps)

    sent = run(size, job, timeout=20.0)
    own = [flat(parameters_of(r)) for r in range(size)]
    rows = np.stack([own[r] for r in range(size) if r not in hostile]).astype("float32")
    expected = by_name(name, f=len(hostile))(rows)
    for r in range(size):
        assert np.array_equal(sent[r], expected if r in hostile else own[r])


def test_only_hostile_ranks_are_told_and_nothing_is_booked():
    sent = {}

    def job(comm):
        wire = comm.engine.transport
        exchange = wire._exchange

        def spied(sends, recvs, tag):
            sent.setdefault(wire.rank, []).extend((dest, len(part)) for dest, part in sends)
            return exchange(sends, recvs, tag)

        wire._exchange = spied
        ps = parameters_of(comm.rank)
        Adversaries("ipm", [1, 3], comm).gradients(ps)
        Adversaries("sign-flip", [1, 3], comm).gradients(ps)
        Adversaries("label-flip", [1, 3], comm).gradients(ps)

    mpisign.stats().reset()
    run(5, job, timeout=20.0)
    assert mpisign.stats().as_dict()["exchange"]["sent"] == 0
    for rank, parts in sent.items():
        lengths = [(dest, n) for dest, n in parts if n != 32]
        assert lengths == ([] if rank in (1, 3) else [(1, 4 * 35), (3, 4 * 35)])


def test_in_pieces_it_is_the_same(monkeypatch):
    def job(comm, name):
        ps = parameters_of(comm.rank)
        Adversaries(name, [2], comm).gradients(ps)
        return flat(ps)

    whole = [run(4, job, name, timeout=20.0) for name in ("alie", "omniscient")]
    monkeypatch.setattr("mpisign.attacks.side_channel._PIECE", 4 * 8)
    pieces = [run(4, job, name, timeout=20.0) for name in ("alie", "omniscient")]
    assert np.array_equal(whole, pieces)


def test_half_precision_missing_and_frozen_parameters():
    dtypes = ("float16", "bfloat16", "float32", "float64")

    def job(comm):
        # Nobody has a gradient for the last one, the hostile rank none for the first.
        ps = parameters_of(comm.rank, dtypes, missing={(2, 0), *((r, 3) for r in range(4))})
        frozen = torch.nn.Parameter(torch.zeros(3), requires_grad=False)
        Adversaries("ipm", [2], comm).gradients([ps[0], frozen, *ps[1:]])
        assert frozen.grad is None and ps[3].grad is None
        return [p.grad for p in ps[:3]]

    got = run(4, job, timeout=20.0)
    for i, dtype in enumerate(dtypes[:3]):
        rows = np.stack(
            [
                torch.from_numpy(honest_gradient(r, i)).to(getattr(torch, dtype)).double().numpy()
                for r in (0, 1, 3)
            ]
        )
        mean = torch.from_numpy(-2 * rows.mean(0)).to(getattr(torch, dtype))
        assert got[2][i].dtype == getattr(torch, dtype)
        assert torch.equal(got[2][i], mean)
        assert torch.equal(got[1][i].double(), torch.from_numpy(rows[1]))


def test_own_attacks_and_draws_of_their_own():
    def job(comm, name):
        ps = parameters_of(comm.rank)
        Adversaries(name, [0, 2], comm, seed=4).gradients(ps)
        return flat(ps)

    own = [flat(parameters_of(r)) for r in range(3)]
    for name, factor in (("sign-flip", -1), ("reverse", -100)):
        got = run(3, job, name, timeout=20.0)
        assert np.allclose(got, [factor * own[0], own[1], factor * own[2]])
    for name in ("random", "gaussian"):
        got, again = (run(3, job, name, timeout=20.0) for _ in range(2))
        assert np.array_equal(got, again)
        assert np.array_equal(got[1], own[1])
        assert not np.array_equal(got[0], got[2])


def test_labels_are_turned_on_hostile_ranks_alone():
    def job(comm):
        bad = Adversaries("label-flip", [1], comm)
        ps = parameters_of(comm.rank)
        bad.gradients(ps)
        assert np.array_equal(flat(ps), flat(parameters_of(comm.rank)))
        images = np.ones((3, 1, 8, 8), dtype="float32")
        _, labels = bad.batch(images, np.array([0, 4, 9]))
        _, tensor = bad.batch(torch.ones(3), torch.tensor([0, 4, 9]))
        assert labels.tolist() == tensor.tolist()
        return bad.here, labels.tolist()

    assert run(2, job, timeout=20.0) == [(False, [0, 4, 9]), (True, [9, 5, 0])]


def test_with_momentum_the_hostile_momentum_is_what_the_attack_wants():
    """Signum votes on momenta: a gradient alone would reach the vote ten steps late."""
    size, hostile, beta, steps = 6, [1, 4], 0.9, 4
    attack = NearTies(2)

    def job(comm):
        bad, momenta, m = Adversaries(attack, hostile, comm, momentum=beta), [], 0.0
        for step in range(steps):
            ps = parameters_of(comm.rank, step=step)
            bad.gradients(ps)
            m = beta * m + (1 - beta) * flat(ps)
            momenta.append(m)
        return momenta

    got = run(size, job, timeout=20.0)
    for step in range(steps):
        rows = np.stack([got[r][step] for r in range(size) if r not in hostile])
        for r in hostile:
            assert np.allclose(got[r][step], attack(rows), rtol=1e-4, atol=1e-5)


def test_a_function_of_rows_does():
    def job(comm):
        ps = parameters_of(comm.rank)
        Adversaries(lambda rows: rows.max(axis=0), [0], comm).gradients(ps)
        return flat(ps)

    got = run(3, job, timeout=20.0)
    assert np.array_equal(got[0], np.maximum(got[1], got[2]))


def test_ranks_that_differ_in_length_or_in_who_is_hostile_are_told():
    def lengths(comm):
        ps = parameters_of(comm.rank)
        with pytest.raises(DisagreementError, match="length: 35 on rank 0, 18 on rank 2"):
            Adversaries("ipm", [1], comm).gradients(ps[:2] if comm.rank == 2 else ps)

    def hostile(comm):
        ps = parameters_of(comm.rank)
        with pytest.raises(DisagreementError, match="ranks differ in attack and hostile ranks"):
            Adversaries("ipm", [1] if comm.rank else [2], comm).gradients(ps)

    run(3, lengths, timeout=20.0)
    run(3, hostile, timeout=20.0)


def test_adversaries_that_cannot_be_are_refused():
    def job(comm):
        for hostile in ([3], [-1], [1, 1]):
            with pytest.raises(ValueError, match="hostile must be distinct ranks from 0 to 2"):
                Adversaries("ipm", hostile, comm)
        with pytest.raises(ValueError, match="leaves none of 3"):
            Adversaries("ipm", [0, 1, 2], comm)
        with pytest.raises(ValueError, match="needs 2 honest rows, got 1"):
            Adversaries("alie", [0, 1], comm)
        with pytest.raises(ValueError, match="momentum must be in"):
            Adversaries("ipm", [0], comm, momentum=1.0)
        with pytest.raises(TypeError, match="attack must be a name"):
            Adversaries(3, [0], comm)
        with pytest.raises(TypeError, match="comm must be a Communicator, got NoneType"):
            Adversaries("ipm", [0], None)
        Adversaries("sign-flip", [0, 1, 2], comm).gradients(parameters_of(comm.rank))
        Adversaries("ipm", [], comm).gradients(parameters_of(comm.rank))

    run(3, job, timeout=20.0)


def test_the_module_says_what_it_has():
    assert set(attacks.__all__) <= {*dir(attacks), "Adversaries"}
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        attacks.nothing  # noqa: B018
