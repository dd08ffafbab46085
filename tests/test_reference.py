"""reference itself: known answers, facts of the papers, and that it needs NumPy alone."""

from __future__ import annotations

import doctest
import subprocess
import sys

import numpy as np
import pytest
import reference as ref
import samples
from launchers import TESTS
from reference import rules

X = np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0], [7.0, 8.0, 9.0]])


def test_it_imports_numpy_alone():
    code = (
        "import sys, reference; "
        "print({'torch', 'mpi4py', 'horovod', 'cupy', 'mpisign.collectives'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=TESTS
    )
    assert done.stdout.strip() == "set()"


def test_its_examples():
    assert doctest.testmod(ref).failed == 0


@pytest.mark.parametrize(
    "counter, key, words",
    [
        ((0,) * 4, (0,) * 2, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_gives_the_known_answers_of_random123(counter, key, words):
    assert tuple(int(w) for w in ref.philox(counter, key)) == words


def test_random_bits_are_addressed():
    whole = ref.random_bits(5, 7, 2, 0, 1000)
    assert np.array_equal(ref.random_bits(5, 7, 2, 333, 400), whole[333:733])
    assert not np.array_equal(ref.random_bits(5, 7, 3, 0, 1000), whole)
    assert 400 < whole.sum() < 600


@pytest.mark.parametrize("share", [0, 0.01, 0.3, 1])
def test_coded_planes_come_back(share):
    rng = np.random.default_rng(1)
    mask = rng.random(1003) < share
    sign = mask & (rng.random(1003) < 0.5)
    planes = ref.golomb.decode(ref.golomb.encode(sign, mask), 1003)
    assert np.array_equal(planes, [ref.bits_to_plane(sign), ref.bits_to_plane(mask)])


def test_votes_over_nodes_and_in_groups():
    votes = np.sign(np.random.default_rng(0).integers(-2, 3, (9, 500)))
    nodes = [[0, 1, 2, 3], [4, 5], [6, 7, 8]]
    assert np.array_equal(ref.hierarchical_vote(votes, nodes), np.sign(votes.sum(axis=0)))
    # 4 of 9 ranks win a vote of votes, where the flat vote needs 5.
    votes = np.array([[-1, -1, 1, -1, -1, 1, 1, 1, 1]]).T
    groups = [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    assert ref.grouped_vote(votes, groups) == -1 and np.sign(votes.sum()) == 1
    assert ref.vote_of_votes is ref.grouped_vote


def test_policies_of_a_vote():
    xs = [np.array([1.0, -1.0, 0.0, -0.0, np.nan]), np.array([1.0, 1.0, -1.0, 0.0, -1.0])]
    votes = ref.majority_vote(xs, "abstain", "zero", "abstain")
    assert votes.tolist() == [1, 0, -1, 0, -1] and votes.dtype == np.float32
    assert ref.majority_vote(xs, "positive", "positive", "abstain").tolist() == [1, 1, 1, 1, -1]
    weighted = ref.majority_vote(xs, "abstain", "zero", "abstain", weights=[2, 1])
    assert weighted.tolist() == [1, -1, -1, 0, -1]
    with pytest.raises(ValueError, match="NaN"):
        ref.majority_vote(xs)


def test_magnitude_matters():
    """u = (10, then nine of -1): the sign vote is wrong for certain, sparsign seldom."""
    n = 20_000
    us = [np.full(n, 10.0)] + [np.full(n, -1.0)] * 9
    assert (ref.vote(us) == -1).all()
    sent = [ref.sparsign(u, 0.1, rank=r) for r, u in enumerate(us)]
    signs, masks = (np.stack(planes) for planes in zip(*sent, strict=True))
    votes = np.sign(ref.votes_of(signs, masks, n).sum(axis=0))
    for sign, p in ((1, 0.386), (-1, 0.225), (0, 0.390)):
        assert np.mean(votes == sign) == pytest.approx(p, abs=0.01)


@pytest.mark.parametrize("name", ["ef_sign", "onebit"])
def test_error_feedback_leaves_nothing_out(name):
    """What is sent and what is kept add up to what there was."""
    options = {"block": None, "zeros": "random", "momentum": 0.0}
    ranks, total = ref.Ranks(name, 3, [300], **options), np.zeros(300)
    true = np.zeros(300)
    for step in range(20):
        grads = [[np.random.default_rng([step, r]).standard_normal(300)] for r in range(3)]
        true += np.mean([g for (g,) in grads], axis=0)
        total += ranks.step(grads, step, [1.0])[0]
    if name == "onebit":
        kept = np.mean(ranks.mean.residuals, axis=0) + ranks.mean.owners
    else:
        kept = np.mean([e for (e,) in ranks.states], axis=0)
    assert np.allclose(total + kept, true, atol=1e-4)
    assert not np.allclose(total, true, atol=1e-2)


def test_a_bf16_mean_rounds_to_nearest_even():
    bf16 = pytest.importorskip("ml_dtypes").bfloat16
    xs = [samples.awkward(1001, r) for r in range(3)]
    xs = [np.where(np.isinf(x), 1e38, x).astype(np.float32) for x in xs]
    total = sum(x.astype(bf16).astype(np.float32) for x in xs)
    expected = (total / np.float32(3)).astype(bf16).astype(np.float32)
    assert np.array_equal(ref.bf16_mean(xs), expected)


@pytest.mark.parametrize(
    "rule, expected",
    [
        (rules.mean, [4, 5, 6]),
        (rules.median, [4, 5, 6]),
        (lambda X: rules.trimmed_mean(X, 1), [4, 5, 6]),
        (lambda X: rules.meamed(X, 1), [2.5, 3.5, 4.5]),
        (lambda X: rules.krum(X, 1), [1, 2, 3]),
        (lambda X: rules.multi_krum(X, 1), [2.5, 3.5, 4.5]),
        (lambda X: rules.bulyan(X, 0), [4, 5, 6]),
        (rules.geometric_median, [3.78788764, 4.78788764, 5.78788764]),
        (rules.centered_clipping, [4, 5, 6]),
        (lambda X: rules.nnm(X, 1)[2], [5.5, 6.5, 7.5]),
        (lambda X: rules.bucketing(X, 2, [0, 2, 1])[0], [4, 5, 6]),
        (lambda X: rules.clipping(X)[0], [0.53452248, 1.06904497, 1.60356745]),
        (lambda X: rules.detox(X[[0, 0, 1, 2, 2, 2]], [range(3), range(3, 6)], rules.mean), X[1]),
        (lambda X: rules.detox(X[[0, 1, 2, 2]], [range(2), range(2, 4)], rules.mean), X[2]),
    ],
)
def test_rules_give_the_documented_vectors(rule, expected):
    np.testing.assert_allclose(rule(X), expected, rtol=2e-7)
