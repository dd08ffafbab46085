"""The files in tests/ranks again, under the real launcher, at several ranks."""

from __future__ import annotations

import pytest
from launchers import RANKS, on_ranks, suite

VOTES = [
    "test_majority_vote.py",
    "test_optimizer.py",
    "test_counts.py",
    "test_compressed_mean.py",
]
COMPRESSORS = [
    "test_every_compressor.py",
    "test_signmuon.py",
    "test_gathered.py",
    "test_attacks_in_a_job.py",
]


@pytest.mark.timeout(600)
def test_all_of_them_on_3_ranks():
    """In one job: starting ranks takes as long as some of these files."""
    suite(3, *VOTES, "test_plans.py", *COMPRESSORS, timeout=580)


@pytest.mark.many
@pytest.mark.parametrize("n", [2, 4])
def test_the_collectives_at(n):
    suite(n, *VOTES)


@pytest.mark.many
def test_plans_of_2_ranks():
    suite(2, "test_plans.py")


@pytest.mark.many
def test_more_ranks_than_bytes():
    suite(9, "test_majority_vote.py", "-k", "reference and (9- or 151-)")


@pytest.mark.parametrize("n", [6, pytest.param(9, marks=pytest.mark.many)])
def test_detox(n):
    """More ranks than cores."""
    assert on_ranks(n, RANKS / "detox_ranks.py", timeout=180).count("is well") == n
