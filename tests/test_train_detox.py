"""``mpisign train`` with groups, rules, attacks and suspects."""

from __future__ import annotations

import numpy as np
import pytest
from test_train import mpirun, train  # skips all where what train needs is missing

import mpisign
from mpisign import cli, simulation
from mpisign.attacks import ATTACKS
from mpisign.compressors import Detox
from mpisign.detox import Groups, GroupSampler
from mpisign.experiments import compare, compression, data, suspects
from mpisign.experiments.cell import Cell
from mpisign.experiments.errors import SettingsError
from mpisign.experiments.hostile import Hostile
from mpisign.experiments.settings import Settings, check
from mpisign.experiments.tasks.images import Images

torch = pytest.importorskip("torch")


@pytest.mark.mpi
def test_the_hostile_rank_is_held_off_and_told(tmp_path):
    """Fourteen steps to an epoch, groups drawn in each: whoever it meets, it is the odd one out."""
    options = ["--detox", "3", "--adversaries", "1", "--attack", "sign-flip", "--order", "flipflop"]
    few = ["--batch-size", "48", "--steps", "70", "--ways", "mpi-vote"]
    ways, result, output = train(mpirun(6), *options, *few, folder=tmp_path, timeout=300)
    (way,) = ways.values()
    assert way["accuracy"] > 0.8 and way["label"] == "DETOX, signum, MPI"
    assert [s["rank"] for s in way["suspects"]] == list(range(6))
    verdicts = [s["verdict"] for s in way["suspects"]]
    assert verdicts[5] == "suspect" and "suspect" not in verdicts[:5], output
    told = way["suspects"][5]
    assert told["draws"] == 5 and told["odd"] >= 4 and 0.2 < told["share"] < 1
    # alltoall-vote: each coordinate is tallied once, by its owner; tensors fill up their last byte
    assert told["coordinates"] == pytest.approx(70 * way["parameters"], rel=1e-3)
    assert told["tallies"] == 6 * 70
    assert told["differing"] / told["coordinates"] == pytest.approx(told["share"], abs=0.1)
    assert result["settings"]["detox"] == 3 and result["settings"]["attack"] == "sign-flip"
    assert "in 2 groups drawn every epoch, the last 1 hostile (sign-flip)" in " ".join(
        output.split()
    )
    assert "suspects, DETOX, signum, MPI: 5" in output
    row = next(line for line in output.splitlines() if line.split()[:1] == ["5"])
    assert row.split()[-2:] == ["suspect", "hostile"]


def members_of(size, r, draws, seed=0):
    groups = Groups.of(size, 0, r, reshuffle_every=1, seed=seed)
    for draw in range(draws):
        groups.set_epoch(draw)
        yield groups.members


def odd_in(members, hostile, size):
    """Who is the odd one out where hostile ranks say one thing and honest ones another."""
    odd = np.zeros(size, dtype=bool)
    for group in members:
        bad = [r for r in group if r in hostile]
        minority = bad if 2 * len(bad) < len(group) else [r for r in group if r not in hostile]
        if len(minority) == 1:
            odd[minority] = True
    return odd


@pytest.mark.parametrize(
    ("size", "hostile", "draws"), [(9, [], 5), (9, [8], 1), (9, [7, 8], 15), (15, [3, 9, 14], 8)]
)
@pytest.mark.parametrize("seed", range(5))
def test_suspects_are_who_is_hostile(size, hostile, draws, seed):
    """Also where two of them met in a group, in which the honest one was the odd one out."""
    members = list(members_of(size, 3, draws, seed))
    odd = np.array([odd_in(m, hostile, size) for m in members])
    verdicts = [suspects.verdict(s) for s in suspects.weigh(odd, members)]
    assert [r for r, v in enumerate(verdicts) if v == "suspect"] == hostile


def test_a_hostile_majority_of_one_draw_makes_the_honest_odd():
    members = [((0, 1, 2), (3, 4, 5))]
    odd = np.array([odd_in(members[0], [1, 2], 6)])
    assert suspects.weigh(odd, members).tolist() == [1, 0, 0, 0, 0, 0]


@pytest.mark.parametrize(
    ("shares", "odd"),
    [
        ([0.0, 0.0, 0.04, 0.0, 0.0, 0.0], []),  # rounding, or a tie's last bit
        ([0.0, 0.0, 0.06, 0.0, 0.0, 0.0], [2]),
        ([0.10, 0.10, 0.18, 0.10, 0.10, 0.10], []),  # momenta of other groups
        ([0.10, 0.10, 0.30, 0.10, 0.10, 0.10], [2]),
        ([0.01, 0.25, 0.30, 0.01, 0.01, 0.01], []),  # which of two?
        ([0.30, 0.10, 0.10, 0.01, 0.01, 0.40], [0, 5]),
    ],
)
def test_the_odd_one_out(shares, odd):
    found = suspects.odd_ones(shares, ((0, 1, 2), (3, 4, 5)))
    assert [rank for rank, is_odd in enumerate(found) if is_odd] == odd
    assert not any(suspects.odd_ones([0.0, 0.9], ((0, 1),)))
    assert not any(suspects.odd_ones([0.0, 0.0, 0.04], ((0, 1, 2),)))


class OneWorld:
    """Ranks of which ``tell`` says what the others gather."""

    def __init__(self, tell):
        self.size, self._tell = 3, tell

    def gather(self, values):
        return np.stack([self._tell(reporter, values) for reporter in range(3)])


def test_one_who_tells_lies_of_the_others_changes_little():
    groups = Groups.of(3, 0, 3)
    mpisign.stats().reset()
    watch = suspects.Watch(groups)
    for _ in range(10):
        mpisign.stats().add_distances(groups.members, 100, [0, 0, 40])
        watch.step()

    def lying(reporter, values):
        counts = values.reshape(3, -1)  # a row a rank: all it says of rank 2 it says of rank 0
        return (counts if reporter < 2 else counts[[2, 0, 1]]).reshape(-1)

    found = watch.gather(OneWorld(lying))
    mpisign.stats().reset()
    assert [s.verdict for s in found] == ["inconspicuous", "inconspicuous", "suspect"]
    assert found[2].share == pytest.approx(0.4) and found[2].odd == found[2].draws == 1
    assert suspects.Watch(groups).gather(OneWorld(lambda _, values: values)) is None


def test_the_first_half_of_a_draw_does_not_count():
    groups = Groups.of(9, 0, 3, reshuffle_every=1)
    mpisign.stats().reset()
    watch = suspects.Watch(groups)
    for epoch in range(3):
        groups.set_epoch(epoch)
        for step in range(300):
            newcomer = 50 if step < 140 else 0  # rank 4 brings a momentum; rank 8 is hostile
            own = [newcomer if r == 4 else 60 if r == 8 else 0 for g in groups.members for r in g]
            mpisign.stats().add_distances(groups.members, 100, own)
            watch.step()
    found = watch.gather(OneWorld(lambda _, values: values))
    mpisign.stats().reset()
    assert [s.odd for s in found] == [0] * 8 + [3] and found[0].draws == 3
    assert found[4].share == pytest.approx(0.5 * 140 / 300)


def test_a_group_learns_from_the_same_images():
    dataset = data.load()
    settings = Settings(detox=3, batch_size=16)
    feeds, groups = [], [Groups.of(9, rank, 3, reshuffle_every=1) for rank in range(9)]
    for g in groups:
        sampler = GroupSampler(range(len(dataset.train_labels)), g)
        feeds.append(data.group_batches(dataset, sampler, settings.batch_size))
    epoch = compare.steps_of(Settings(detox=3, epochs=1), dataset, 9)
    assert epoch == 1348 // 3 // 16
    for _ in range(2 * epoch):
        batches = [next(feed) for feed in feeds]
        assert groups[0].draw == groups[8].draw
        for g in groups:
            same = np.array_equal(batches[g.rank][0], batches[0][0])
            assert same == (g.group == groups[0].group)
    assert groups[0].draw == 1


@pytest.mark.parametrize("attack", ["sign-flip", "alie", "inf", "label-flip", "omniscient"])
def test_every_way_is_attacked_alike(attack):
    """Horovod sends gradients while backward() runs: its hooks are handed the false ones too."""
    cell = Cell("images", "none", 0.1, ranks=3, adversaries=1, attack=attack)

    def run(comm):
        results = []
        for eager in (False, True):
            net = torch.nn.Linear(5, 10)
            with torch.no_grad():
                for i, p in enumerate(net.parameters()):
                    p.copy_(torch.linspace(-1, 1, p.numel()).view(p.shape) + i)
            handed = {}
            for name, p in net.named_parameters():
                p.register_post_accumulate_grad_hook(
                    lambda p, name=name, told=handed: told.update({name: p.grad.clone()})
                )
            rng = np.random.default_rng(comm.rank)
            batch = rng.random((4, 5), dtype=np.float32), rng.integers(0, 10, 4)
            task = Images(net, iter([batch]), 1, batch)
            Hostile(cell, comm, task, eager=eager).backward(task, 0)
            final = {name: p.grad.clone() for name, p in net.named_parameters()}
            results.append((final, handed))
        return results

    for rank, ((plain, before), (eager, handed)) in enumerate(simulation.run(3, run)):
        for name in plain:
            assert torch.equal(plain[name], eager[name])
            assert torch.equal(handed[name], eager[name])
            changed = not torch.equal(before[name], plain[name])
            assert changed == (rank == 2 and attack != "label-flip")


def test_what_is_made_of_the_options():
    def made(groups=None, **options):
        cell = Settings(**options).cell(votes=True, size=9)
        return compression.compressor(cell, groups), cell.lr, cell.optimizer_options["momentum"]

    groups = Groups.of(9, 0, 3)
    assert made(groups, detox=3)[0] == Detox(inner=made()[0], groups=groups)
    assert made()[1:] == (2e-3, 0.0)
    rule, *rates = made(rule="multi_krum", adversaries=4)
    assert rule.f == 4 and rule.momentum == 0.9 and rates == [pytest.approx(1.0), 0.0]
    # Members are compared bit for bit: the momentum is put on afterwards.
    grouped, *rates = made(groups, rule="multi_krum", adversaries=4, detox=3)
    assert grouped.inner.f == 2 and grouped.inner.momentum == 0
    averaged = Settings(detox=3).cell(votes=False, size=9)
    assert rates == [averaged.lr, averaged.optimizer_options["momentum"]] == [0.1, 0.9]
    assert averaged.compressor == "none"
    worst = simulation.run(
        9, lambda comm: Settings(detox=3, placement="worst", adversaries=4).groups(comm)
    )
    owned = [sum(r >= 5 for r in g) for g in worst[0].members]
    assert sorted(owned) == [0, 2, 2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"detox": 2}, "--detox must be odd, so that no group ties, got 2: take 3"),
        (
            {"detox": 5},
            "--detox 5 needs 10 ranks at least, so that there are groups to vote, got 9",
        ),
        ({"placement": "worst"}, "--placement needs --detox"),
        ({"order": "flipflop"}, "--order needs --detox"),
        ({"reshuffle_every": 0}, "--reshuffle-every needs --detox"),
        ({"suspects": True}, "--suspects needs --detox"),
        ({"detox": 3, "compression": "ef_sign"}, "--compression ef_sign: Detox: inner must be"),
        ({"rule": "median", "compression": "sign"}, "leave out --compression sign"),
        ({"rule": "krum", "adversaries": 5, "attack": "inf"}, r"--rule krum with f=5 \(--rule-f\)"),
        ({"rule_f": 1}, "--rule-f needs --rule"),
        ({"adversaries": 8, "attack": "alie"}, "--attack alie: "),
        ({"adversaries": 9}, "--adversaries must be below the number of ranks, got 9 of 9"),
        ({"byzantine_f": 5}, "--byzantine-f 5 needs 11 ranks at least, got 9"),
        ({"byzantine_f": 1, "algorithm": "allgather"}, "needs --algorithm alltoall or auto"),
        ({"byzantine_f": 1, "rule": "median"}, "--byzantine-f is of votes: median takes none"),
        ({"detox": 3, "ways": ("horovod-counters",)}, "horovod-counters does not go with --detox"),
        ({"rule": "mean", "ways": ("horovod-counters",)}, "does not go with --rule"),
        ({"byzantine_f": 1, "ways": ("horovod-planes",)}, "does not go with --byzantine-f"),
    ],
)
def test_what_cannot_be_is_told_before_anything_is_trained(options, message):
    with pytest.raises(SettingsError, match=message):
        check(Settings(**options), 9, data.load())


def test_a_backdoor_of_digits_goes_with_digits_alone():
    images = np.zeros((2, 1, 28, 28), np.float32)
    labels = np.zeros(2, np.int64)
    fashion = data.Dataset("fashion-mnist", images, labels, images, labels)
    with pytest.raises(SettingsError, match="--attack backdoor: .* 8 x 8"):
        check(Settings(adversaries=1, attack="backdoor"), 9, fashion)


def test_what_can_be():
    for options in (
        {"detox": 3, "placement": "worst", "order": "flipflop", "suspects": True},
        {"detox": 1, "reshuffle_every": 0},
        {"rule": "nnm+krum", "rule_f": 2},
        {"byzantine_f": 2, "detox": 3},
        *({"adversaries": 2, "attack": name} for name in ATTACKS),
    ):
        check(Settings(**options), 9, data.load())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--attack", "alice"], "'alice' is not an attack (did you mean 'alie'?)"),
        (["--rule", "medain"], "'medain' is not a rule (did you mean 'median'?)"),
        (["--rule", "mmn+krum"], "'mmn' is not what may stand before a rule"),
        (["--detox", "three"], "'three' is not a positive number"),
        (["--placement", "best"], "invalid choice: 'best'"),
    ],
)
def test_what_is_mistyped(options, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        cli.main(["train", *options])
    assert message in capsys.readouterr().err


def test_help_names_all_attacks_and_rules(capsys):
    from mpisign.robust import RULES

    with pytest.raises(SystemExit, match="0"):
        cli.main(["train", "--help"])
    text = capsys.readouterr().out
    for needed in (*ATTACKS, *RULES, "--detox R", "--placement worst", "odd one out"):
        assert needed in text
