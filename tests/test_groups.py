"""Groups of ranks, and the sampler that gives a group one sequence of indices."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys

import pytest

from mpisign import simulation
from mpisign.detox import Groups, assign
from mpisign.detox.worst_case import worst_case

torch = pytest.importorskip("torch")

from mpisign.detox import GroupSampler  # noqa: E402


def everybody(size, redundancy=3, **options):
    return [Groups.of(size, rank, redundancy, **options) for rank in range(size)]


def samplers(size, redundancy, length, *, groups=None, **options):
    groups = groups or everybody(size, redundancy)
    return [GroupSampler(range(length), g, **options) for g in groups]


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 9, 15])
def test_what_all_ranks_know_alike(size):
    made = simulation.run(size, lambda comm: Groups(comm, 1 if size < 3 else 3, reshuffle_every=2))
    texts = {repr(g) for g in made}
    assert len(texts) == 1
    for rank, g in enumerate(made):
        assert (g.rank, g.size) == (rank, size)
        assert rank in g.members[g.group] and g.group == g.group_of(rank)
        assert sorted(r for group in g.members for r in group) == list(range(size))
        g.set_epoch(1)
        assert repr(g) in texts, "an epoch of the same draw"
        g.set_epoch(2)
    later = {repr(g) for g in made}
    assert len(later) == 1 and later != texts
    for g in made:
        g.set_epoch(0)
    assert {repr(g) for g in made} == texts


def test_the_communicators_nodes_are_those_of_the_groups():
    nodes = [0, 0, 0, 1, 1, 1, 2, 2, 2]
    for g in simulation.run(9, lambda comm: Groups(comm, 3, "spread", seed=4), nodes=nodes):
        assert all({nodes[r] for r in group} == {0, 1, 2} for group in g.members)
    packed = simulation.run(9, lambda comm: Groups(comm, 3, "packed"), nodes=nodes)
    assert {g.members for g in packed} == {((0, 1, 2), (3, 4, 5), (6, 7, 8))}


def test_groups_are_plain_values():
    g = Groups.of(9, 4, reshuffle_every=1, seed=3)
    g.set_epoch(5)
    for other in (copy.deepcopy(g), pickle.loads(pickle.dumps(g))):
        assert repr(other) == repr(g) and other.group == g.group
    g.set_epoch(6)
    assert Groups.of(9, 0, seed=3).reshuffle_every is None and len(g) == 3


def test_seeds_and_draws_differ():
    texts = {repr(Groups.of(15, 0, seed=seed)) for seed in range(5)}
    g = Groups.of(15, 0, reshuffle_every=1)
    for epoch in range(5):
        g.set_epoch(epoch)
        texts.add(repr(g))
    assert len(texts) == 9  # seed 0, draw 0 is in both


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Groups.of(9, 9), r"Groups\.of: rank must be in \[0, 9\), got 9"),
        (lambda: Groups.of(9, 0, 2), "redundancy must be an odd number from 1, got 2"),
        (lambda: Groups.of(2, 0, 3), "redundancy=3 needs as many ranks, got 2"),
        (lambda: Groups.of(9, 0, reshuffle_every=0), "reshuffle_every must be"),
        (lambda: Groups.of(9, 0, 3, "packed", reshuffle_every=1), "needs placement='spread'"),
        (lambda: Groups.of(3, 0, 3, [[0, 1]]), "each of ranks 0 to 2 in one group"),
        (lambda: Groups.of(9, 0, seed=-1), "seed must be a number from 0, got -1"),
        (lambda: Groups.of(9, 0).set_epoch(-1), "epoch must be a number from 0, got -1"),
        (lambda: Groups.of(9, 0).group_of(9), r"rank must be in \[0, 9\), got 9"),
        (lambda: samplers(9, 3, 2), "an index for each of 3 groups, got 2"),
        (lambda: samplers(9, 3, 9, order="flipflip"), "did you mean 'flipflop'"),
        (lambda: samplers(9, 3, 9, seed="x"), "seed must be a number from 0, got 'x'"),
    ],
)
def test_what_does_not_fit(make, message):
    with pytest.raises(ValueError, match=message):
        make()
    with pytest.raises(TypeError, match="groups must be mpisign.detox.Groups, got int"):
        GroupSampler(range(9), 3)


@pytest.mark.parametrize(("size", "r"), [(9, 3), (15, 3), (15, 5), (16, 3), (8, 3), (45, 3)])
def test_the_worst_case_is_what_the_documentation_says(size, r):
    """As few ranks as the formula says own the majority of the groups, where r divides p."""
    groups = size // r
    needed = (r // 2 + 1) * (groups // 2 + 1)
    if size % r == 0:
        assert needed == -(-r // 2) * (size // (2 * r) + 1)
    for hostile in range(size + 1):
        bad = range(size - hostile, size)
        members = worst_case(size, r, bad)
        assert sorted(map(len, members)) == sorted(map(len, assign(size, r)))
        assert sorted(rank for group in members for rank in group) == list(range(size))
        owned = sum(2 * sum(rank in bad for rank in group) > len(group) for group in members)
        if hostile < needed:
            assert 2 * owned <= groups
        elif size % r == 0:
            assert 2 * owned > groups


def test_the_worst_case_refuses_ranks_that_there_are_not():
    with pytest.raises(ValueError, match="different ranks below 9"):
        worst_case(9, 3, [9])
    with pytest.raises(ValueError, match="different ranks below 9"):
        worst_case(9, 3, [1, 1])


@pytest.mark.parametrize("order", ["random", "flipflop"])
@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("drop_last", [True, False])
@pytest.mark.parametrize(("size", "length"), [(9, 30), (9, 31), (9, 3), (10, 32), (3, 5), (15, 99)])
def test_one_sequence_a_group(order, shuffle, drop_last, size, length):
    groups = everybody(size, reshuffle_every=1)
    made = samplers(
        size, 3, length, groups=groups, order=order, shuffle=shuffle, drop_last=drop_last
    )
    for epoch in range(3):
        for s in made:
            s.set_epoch(epoch)
        sequences = [list(s) for s in made]
        of_group = {}
        for g, s, sequence in zip(groups, made, sequences, strict=True):
            assert len(sequence) == len(s)
            assert of_group.setdefault(g.group, sequence) == sequence
        together = [i for sequence in of_group.values() for i in sequence]
        if drop_last:
            assert len(set(together)) == len(together) > length - len(of_group)
        else:
            assert set(together) == set(range(length))
            assert len(together) < length + len(of_group)


def test_flipflop_goes_back_the_way_it_came():
    (s,) = samplers(1, 1, 50, order="flipflop")
    epochs = []
    for epoch in range(4):
        s.set_epoch(epoch)
        epochs.append(list(s))
    assert epochs[1] == epochs[0][::-1] and epochs[3] == epochs[2][::-1]
    assert epochs[2] != epochs[0] != list(range(50))
    (plain,) = samplers(1, 1, 50)
    first = list(plain)
    plain.set_epoch(1)
    assert list(plain) not in (first, first[::-1]), "order='random' draws each epoch"


@pytest.mark.parametrize("stop", [0, 1, 4, 12])
@pytest.mark.parametrize("order", ["random", "flipflop"])
def test_a_loader_goes_on_in_mid_epoch(stop, order):
    """Groups are drawn anew in every epoch; a state that any rank saved fits them all."""

    def made(rank):
        groups = Groups.of(9, rank, reshuffle_every=1)
        return GroupSampler(range(150), groups, order=order)

    def loader(sampler):
        return torch.utils.data.DataLoader(range(150), batch_size=4, sampler=sampler)

    def epoch_of(sampler, epoch):
        sampler.set_epoch(epoch)
        return [batch.tolist() for batch in loader(sampler)]

    for rank in (0, 5, 8):
        whole = made(rank)
        expected = [epoch_of(whole, epoch) for epoch in range(4)]
        saved = made(0)
        saved.set_epoch(2)
        batches = iter(loader(saved))
        for _ in range(stop):
            next(batches)
        state = saved.state_dict()
        assert state["given"] == 4 * stop
        again = made(rank)
        again.load_state_dict(pickle.loads(pickle.dumps(state)))
        assert again.state_dict() == state
        assert epoch_of(again, 2) == expected[2][stop:]
        assert epoch_of(again, 3) == expected[3]
        assert epoch_of(again, 2) == expected[2], "a state is for one iterator"


def test_a_loader_with_workers_is_told_what_was_used():
    (s,) = samplers(1, 1, 100)
    loader = torch.utils.data.DataLoader(range(100), batch_size=5, sampler=s, num_workers=1)
    batches = iter(loader)
    first = [next(batches).tolist() for _ in range(3)]
    assert s.state_dict()["given"] > 15, "workers fetch ahead"
    state = s.state_dict(used=15)
    del batches
    (other,) = samplers(1, 1, 100)
    whole = list(other)
    other.load_state_dict(state)
    assert [i for batch in first for i in batch] + list(other) == whole
    with pytest.raises(ValueError, match="used must be from 0 to the"):
        s.state_dict(used=1000)


def test_an_iterator_that_was_left_counts_no_more():
    (s,) = samplers(1, 1, 20)
    left = iter(s)
    next(left)
    now = iter(s)
    next(now)
    next(left)
    assert s.state_dict()["given"] == 1
    s.set_epoch(1)
    next(now)
    assert s.state_dict()["given"] == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"length": 31}, "expected length=30, got 31"),
        ({"groups": 4}, "expected groups=3, got 4"),
        ({"seed": 1}, "expected seed=0, got 1"),
        ({"order": "flipflop"}, "expected order='random', got 'flipflop'"),
        ({"given": 11}, "given must be from 0 to 10, got 11"),
        ({"epoch": None}, "expected an epoch, got None"),
    ],
)
def test_a_state_of_something_else_is_refused(change, message):
    s = samplers(9, 3, 30)[0]
    state = {**s.state_dict(), **change}
    before = s.state_dict()
    with pytest.raises(ValueError, match=message):
        s.load_state_dict(state)
    assert s.state_dict() == before


def test_groups_load_no_torch():
    code = (
        "import sys; from mpisign.detox import Groups; Groups.of(9, 0); "
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
