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
COMPRESSORS = ["test_every_compressor.py", "test_gathered.py", "test_attacks_in_a_job.py"]


@pytest.mark.parametrize("n", [*(pytest.param(n, marks=pytest.mark.many) for n in (2, 4)), 3])
def test_the_collectives_at(n):
    suite(n, *VOTES)


@pytest.mark.parametrize("n", [pytest.param(2, marks=pytest.mark.many), 3])
def test_plans(n):
    suite(n, "test_plans.py")


def test_every_compressor_and_attack_on_3_ranks():
    suite(3, *COMPRESSORS)


@pytest.mark.many
def test_more_ranks_than_bytes():
    suite(9, "test_majority_vote.py", "-k", "reference and (9- or 151-)")


@pytest.mark.parametrize("n", [6, pytest.param(9, marks=pytest.mark.many)])
def test_detox(n):
    """More ranks than cores."""
    assert on_ranks(n, RANKS / "detox_ranks.py", timeout=180).count("is well") == n
