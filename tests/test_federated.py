"""mpisign.federated: units are matched as the papers say, and rounds are the same on all ranks."""

from __future__ import annotations

import copy
import importlib
import subprocess
import sys
from types import SimpleNamespace

import launchers
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason='pip install "mpisign[train]"')
pytest.importorskip("scipy", reason='pip install "mpisign[federated]"')

from ranks import federated_rounds  # noqa: E402
from reference import federated as reference  # noqa: E402
from torch import nn  # noqa: E402

from mpisign import simulation  # noqa: E402
from mpisign.compressors import Sign, Sparsign  # noqa: E402
from mpisign.errors import CollectiveError, DisagreementError, NaNError, WireError  # noqa: E402
from mpisign.federated import FedAvg, FedMA, matched_average, matching  # noqa: E402

SETTINGS = {"sigma": 0.7, "sigma0": 1.3, "gamma": 0.8}


def atoms(seed, *sizes, d=4):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal((n, d)) for n in sizes]


def test_costs_are_those_of_the_paper():
    first, second, third = atoms(0, 3, 2, 4)
    third[1] = 0.0
    pool = matching.GlobalUnits(4, 3, **SETTINGS)
    pool.add(first, np.array([0, 1, 2]))
    pool.add(second, np.array([3, 1]))
    others = [[first[0]], [first[1], second[1]], [first[2]], [second[0]]]
    expected = reference.cost(third, others, 3, **SETTINGS)
    assert np.allclose(pool.costs(third), expected, rtol=1e-12, atol=1e-12)
    assert pool.remove(first, np.array([0, 1, 2])).tolist() == [-1, 0, -1, 1]
    alone = reference.cost(third, [[second[1]], [second[0]]], 3, **SETTINGS)
    assert np.allclose(pool.costs(third), alone, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_matching_is_the_best_of_all_assignments(seed):
    """Three clients of unequal widths; a unit of zeros; with seed 3 one client has a unit twice."""
    clients = atoms(seed, 2, 3, 2, d=3)
    clients[2] = clients[1][[2, 0]] + 0.1 * clients[2]
    clients[0][1] = 0.0
    if seed == 3:
        clients[1][1] = clients[1][0]
    found = matching.match(clients, **SETTINGS, iterations=2)
    expected = reference.match(clients, **SETTINGS, iterations=2)
    assert [p.tolist() for p in found] == expected
    weights = [1.0, 2.0, 3.0]
    models = [nn.Sequential(nn.Linear(2, len(c)), nn.ReLU(), nn.Linear(len(c), 1)) for c in clients]
    with torch.no_grad():
        for m, c in zip(models, clients, strict=True):
            m[0].weight.copy_(torch.from_numpy(c[:, :2]))
            m[0].bias.copy_(torch.from_numpy(c[:, 2]))
    rounded = [c.astype(np.float32).astype(np.float64) for c in clients]
    got = matched_average(models, weights, **SETTINGS, iterations=2, relative=False)
    mean = reference.average(rounded, expected, weights).astype(np.float32)
    assert [p[0].tolist() for p in got.permutations] == expected
    assert np.array_equal(got.model[0].weight.detach().numpy(), mean[:, :2])
    assert np.array_equal(got.model[0].bias.detach().numpy(), mean[:, 2])
    # A weight to a unit that a client lacks counts as 0.
    wide = np.zeros((3, len(mean)))
    for row, m, places in zip(wide, models, expected, strict=True):
        row[places] = m[2].weight.detach().numpy()[0]
    out = (np.array(weights) @ wide / 6).astype(np.float32)
    assert np.allclose(got.model[2].weight.detach().numpy()[0], out, rtol=1e-6)


def picture_net(*widths, bias=True):
    a, b, c = widths
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(1, a, 3, padding=1, bias=bias), nn.ReLU(), nn.MaxPool2d(2)),
        nn.Conv2d(a, b, 3, padding=1, bias=bias),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(b * 16, c, bias=bias),
        nn.Tanh(),
        nn.Linear(c, 3, bias=bias),
    )


def shuffled(net, seed):
    """The same function with hidden units in another order, and the orders."""
    made, rng, orders = copy.deepcopy(net), np.random.default_rng(seed), []
    found = [m for m in made.modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
    with torch.no_grad():
        for m, after in zip(found, found[1:], strict=False):
            order = rng.permutation(len(m.weight))
            orders.append(order)
            m.weight.copy_(m.weight[order])
            if m.bias is not None:
                m.bias.copy_(m.bias[order])
            blocks = after.weight.view(len(after.weight), len(order), -1)[:, order]
            after.weight.copy_(blocks.reshape(after.weight.shape))
    return made, orders


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("twins", [True, False])
def test_copies_in_other_orders_are_matched_back(bias, twins):
    """Their plain average computes something else; the matched one is the network.

    Of two channels that are the same it does not matter which is which, and later units that read
    them may find no match; what the network computes stays.
    """
    torch.manual_seed(0)
    net, x = picture_net(4, 6, 7, bias=bias), torch.randn(5, 1, 8, 8)
    with torch.no_grad():
        net[1].weight[2] = 0.0  # a channel of zeros
        if twins:
            net[1].weight[4] = net[1].weight[3]
        if bias:
            net[1].bias[2] = 0.0
            net[1].bias[4] = net[1].bias[3]
    copies = [shuffled(net, seed) for seed in range(3)]
    models = [net, *(m for m, _ in copies)]
    found = matched_average(models, [1.0, 2.0, 3.0, 4.0])
    assert [len(p) for p in found.permutations[0]] == [4, 6, 7]
    assert torch.allclose(found.model(x), net(x), rtol=1e-5, atol=1e-6)
    if not twins:
        assert all(map(torch.equal, found.model.parameters(), net.parameters()))
        for own, (_, orders) in zip(found.permutations[1:], copies, strict=True):
            assert [p.tolist() for p in own] == [order.tolist() for order in orders]
    plain = copy.deepcopy(net)
    with torch.no_grad():
        for p, *others in zip(*(m.parameters() for m in [plain, *models]), strict=True):
            p.copy_(sum(others) / len(others))
    assert (plain(x) - net(x)).abs().max() > 100 * (found.model(x) - net(x)).abs().max()


def test_one_client_is_left_as_it_is():
    net = picture_net(2, 3, 4)
    found = matched_average([net])
    assert all(map(torch.equal, found.model.parameters(), net.parameters()))
    assert [p.tolist() for p in found.permutations[0]] == [[0, 1], [0, 1, 2], [0, 1, 2, 3]]


def test_unlike_units_are_added_and_classes_averaged_by_labels():
    def client(units, out):
        net = nn.Sequential(nn.Linear(3, len(units)), nn.ReLU(), nn.Linear(len(units), 2))
        with torch.no_grad():
            net[0].weight.copy_(torch.tensor(units))
            net[0].bias.zero_()
            net[2].weight.copy_(torch.tensor(out))
            net[2].bias.zero_()
        return net

    a = client([[8.0, 0.0, 0.0], [0.0, 8.0, 0.0]], [[1.0, 2.0], [3.0, 4.0]])
    b = client([[0.0, 8.0, 0.0], [0.0, 0.0, 8.0], [8.0, 0.0, 0.0]], [[5.0, 6.0, 7.0]] * 2)
    found = matched_average([a, b], label_counts=[[1, 0], [3, 0]])
    assert [p[0].tolist() for p in found.permutations] == [[0, 1], [1, 2, 0]]
    assert found.model[0].out_features == found.model[2].in_features == 3
    # Class 0: a quarter of a and three of b; class 1, which nobody has: half of each.
    expected = [[0.25 + 0.75 * 7, 0.5 + 0.75 * 5, 0.75 * 6], [1.5 + 3.5, 2 + 2.5, 3.0]]
    assert found.model[2].weight.tolist() == expected


WRONG = {
    "a class of its own": (lambda: nn.Linear(2, 2), TypeError, "an nn.Sequential"),
    "batch norm": (
        lambda: nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)),
        ValueError,
        "leave normalization layers out",
    ),
    "an unknown layer": (
        lambda: nn.Sequential(nn.Linear(2, 2), nn.Softmax(dim=1)),
        ValueError,
        "1, a Softmax, may mix units",
    ),
    "no flatten": (
        lambda: nn.Sequential(nn.Conv2d(1, 2, 3), nn.Linear(4, 2)),
        ValueError,
        "there must be a Flatten",
    ),
    "groups": (lambda: nn.Sequential(nn.Conv2d(4, 4, 3, groups=2)), ValueError, "groups=1"),
    "widths": (
        lambda: nn.Sequential(nn.Linear(2, 3), nn.Flatten(), nn.Linear(6, 2)),
        ValueError,
        "must have 3 inputs",
    ),
    "float64": (lambda: nn.Sequential(nn.Linear(2, 3)).double(), TypeError, "float32"),
}


@pytest.mark.parametrize("name", WRONG)
def test_models_that_are_no_chain_are_refused(name):
    make, kind, text = WRONG[name]
    with pytest.raises(kind, match=text):
        matched_average([make()])


def test_settings_that_do_not_fit_are_refused():
    net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    for wrong, text in (
        ({"sigma": 0.0}, "sigma must be a positive number, got 0.0"),
        ({"gamma": float("nan")}, "gamma must be"),
        ({"iterations": -1}, "iterations must be"),
        ({"weights": [1.0, 2.0]}, "weights must be 1"),
        ({"weights": [0.0]}, "weight must be a positive number"),
        ({"label_counts": [[1, 2]]}, "label_counts must be"),
    ):
        with pytest.raises(ValueError, match=text):
            matched_average([net], **wrong)
    with pytest.raises(ValueError, match="at least one"):
        matched_average([])
    other = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1))
    with pytest.raises(ValueError, match="of model 1"):
        matched_average([net, other])
    with torch.no_grad():
        other[0].weight[0, 0] = float("inf")
    with pytest.raises(ValueError, match="model 0 holds a number that is not finite"):
        matched_average([other])


def test_importing_needs_no_scipy_and_the_error_says_what_to_install(monkeypatch):
    code = "import mpisign.federated, sys; assert 'scipy' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, env=launchers.with_tests())
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    with pytest.raises(ImportError, match=r'pip install "mpisign\[federated\]"'):
        matched_average([nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))])
    net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))

    def refused(comm):
        with pytest.raises(CollectiveError, match=r"rank 0: scipy is not installed.*\[federated\]"):
            FedMA(net, lambda model, layer: None, comm).round()

    simulation.run(2, refused)


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_rounds(size):
    """As ranks/federated_rounds.py says; the same digests by ranks of a real launcher below."""
    found = simulation.run(size, federated_rounds.play)
    assert len({tuple(map(tuple, own)) for own in found}) == 1  # all global models are equal
    if size == 3:
        program = str(launchers.RANKS / "federated_rounds.py")
        env = launchers.with_tests()
        output = launchers.mpirun(3, sys.executable, program, env=env).stdout
        assert output.split() == [text for own in found[0] for text in own]


def test_a_round_is_what_the_papers_say():
    """One round of FedMA by hand: match, freeze, widen, train on, average."""
    nets = [federated_rounds.net(rank, 3 + rank) for rank in range(2)]

    def play(comm):
        train = federated_rounds.trainer(comm.rank)
        clients = FedMA(nets[comm.rank], train, comm, weight=1.0 + comm.rank, sigma=0.8)
        report = clients.round()
        return clients.model, report, (clients.up, clients.down), clients._client()

    (model, report, counted, own), (_, _, _, other) = simulation.run(2, play)
    locals_ = [copy.deepcopy(net) for net in nets]
    trains = [federated_rounds.trainer(rank) for rank in range(2)]
    for net, train in zip(locals_, trains, strict=True):
        train(net, 0)
    rows = [
        np.hstack([m[0].weight.detach().numpy(), m[0].bias.detach().numpy()[:, None]])
        for m in locals_
    ]
    rows = [r.astype(np.float64) for r in rows]
    unit = np.sqrt(np.mean(np.concatenate([r.ravel() for r in rows]) ** 2))
    settings = {"sigma": 0.8 * unit, "sigma0": unit, "gamma": 1.0}
    places = matching.match(rows, **settings, iterations=5)
    merged = torch.from_numpy(reference.average(rows, places, [1.0, 2.0]).astype(np.float32))
    for net, p in zip(locals_, places, strict=True):
        wide = nn.Sequential(nn.Linear(2, len(merged)), nn.Tanh(), nn.Linear(len(merged), 2))
        with torch.no_grad():
            wide[0].weight.copy_(merged[:, :2])
            wide[0].bias.copy_(merged[:, 2])
            wide[2].weight.zero_()
            wide[2].weight[:, p] = net[2].weight
            wide[2].bias.copy_(net[2].bias)
        wide[0].requires_grad_(False)
        trains[len(net[0].weight) - 3](wide, 1)
        net[2] = wide[2]
    assert torch.equal(model[0].weight, merged[:, :2])
    mean = (locals_[0][2].weight.double() + 2 * locals_[1][2].weight.double()) / 3
    assert torch.allclose(model[2].weight, mean.float(), rtol=1e-6, atol=1e-7)
    assert report.widths == (len(merged), 2) and counted == (report.up, report.down)
    assert report.up == 4 * 3 * 3 + 16 + 4 * 2 * (len(merged) + 1) + 16
    assert report.down == 4 * 3 * len(merged) + 4 * 3 + 8 + 4 * 2 * (len(merged) + 1) + 4 * 2 + 8
    # The next round begins with the units that the client's own were matched to.
    assert torch.equal(own[0].weight, model[0].weight[places[0]])
    assert torch.equal(other[2].weight, model[2].weight[:, places[1]])


def test_a_round_of_convolutions():
    """Clients that hold one network in other orders have it in common, and so in the next round."""
    torch.manual_seed(1)
    net, x = picture_net(3, 4, 5), torch.randn(4, 1, 8, 8)

    def play(comm):
        own, seen = shuffled(net, comm.rank)[0], []

        def train(model, layer):
            frozen = [not p.requires_grad for p in model.parameters()]
            assert frozen == [True] * 2 * layer + [False] * (8 - 2 * layer)
            seen.append((model(x) - net(x)).abs().max().item())

        clients = FedMA(own, train, comm)
        widths = [clients.round().widths for _ in range(2)]
        return widths, max(seen), (clients.model(x) - net(x)).abs().max().item()

    for widths, while_training, after in simulation.run(3, play):
        assert widths == [(3, 4, 5, 3)] * 2
        assert max(while_training, after) < 1e-5


def test_a_cell_of_a_study():
    """The recipe: the same bits from ranks that are threads each time, and errors in words."""
    pytest.importorskip("sklearn")
    from mpisign.experiments.cell import Cell
    from mpisign.experiments.errors import SettingsError
    from mpisign.experiments.run import simulated

    def result(compressor="none", lr=0.3, **options):
        how = {"ranks": 2, "batch_size": 8, "dirichlet": 0.5, "steps": 2, "evaluations": 2}
        how["task_options"] = {"hidden": [8]}
        options = {"local_steps": 3, **options}
        cell = Cell("digits", compressor, lr, recipe="federated", recipe_options=options, **how)
        return simulated(cell)

    first, again = (result(method="fedma", by_label=True, own_start=True) for _ in range(2))
    assert first["digest"] == again["digest"]
    hidden, outputs = first["widths"]
    assert hidden >= 8 and outputs == 10 and [step for step, *_ in first["curve"]] == [1, 2]
    assert first["bits"] >= 32 and result()["bits"] == 32
    assert 0 < result("sparsign", 0.1, local_rate=0.3)["bits"] < 1.6
    with pytest.raises(SettingsError, match="unknown are sigma"):
        result(sigma=1.0)
    with pytest.raises(SettingsError, match="method fedavg or fedma"):
        result(method="fedprox")


def test_clients_that_do_not_fit_raise_on_all_ranks():
    def unlike(comm):
        act = nn.Tanh() if comm.rank else nn.ReLU()
        net = nn.Sequential(nn.Linear(2, 3), act, nn.Linear(3, 2))
        with pytest.raises(DisagreementError):
            FedMA(net, lambda model, layer: None, comm).round()

    def broken(comm):
        def train(model, layer):
            if comm.rank == 1 and layer == 1:
                torch.nn.init.constant_(model[2].bias, float("nan"))

        with pytest.raises(NaNError, match="layer 1 must be finite, .* 2 on rank 1"):
            FedMA(federated_rounds.net(0, 3), train, comm).round()

    def average(comm):
        def train(model, layer):
            torch.nn.init.constant_(model[2].bias, float("inf") if comm.rank else 1.0)

        with pytest.raises(NaNError, match="2 on rank 1"):
            FedAvg(federated_rounds.net(0, 3), train, comm).round()

    for play in (unlike, broken, average):
        simulation.run(2, play)


def test_what_a_lying_server_sends_is_refused(monkeypatch):
    server = importlib.import_module("mpisign.federated.server")
    serve = server._serve

    def play(comm, change):
        def lying(wire, units, counts, columns, decide, weights):
            return serve(wire, units, counts, columns, lambda *x: change(*decide(*x)), weights)

        monkeypatch.setattr(server, "_serve", lying)
        with pytest.raises(Exception) as error:  # rank 0's own error, or the other's notice
            FedMA(federated_rounds.net(0, 3), lambda model, layer: None, comm).round()
        return type(error.value), str(error.value)

    for change, text in (
        (lambda units, places: (units, [p * 0 for p in places]), "places of units"),
        (lambda units, places: (units, [p + 3 for p in places]), "places of units"),
        (lambda units, places: (np.vstack([units] * 3), places), "made 9 units"),
        (lambda units, places: (units[:1], places), "made 1 units"),
    ):
        kind, said = simulation.run(2, play, change)[1]
        assert issubclass(kind, WireError) and said.startswith("FedMA: rank 0"), (kind, said)
        assert text in said


def test_a_client_of_a_thousand_million_units_is_refused_before_memory_is_taken():
    server = importlib.import_module("mpisign.federated.server")

    class Wire:
        """Rank 1 announces more than a layer may have."""

        size, rank, others = 2, 0, (1,)

        def allgather(self, send, rows):
            rows[0][...] = send
            rows[1][...] = np.array([10**9, 0], "<u8").view(np.uint8)
            return SimpleNamespace()

    steps = server._counts(Wire(), np.zeros((3, 2), "<f4"), "FedMA", 1)
    next(steps)
    with pytest.raises(WireError, match="rank 1 announced 1000000000 units of layer 1"):
        next(steps)


def test_fedavg_is_the_average_by_weight_and_votes_are_votes():
    start = federated_rounds.net(0, 3)

    def play(comm, compression, lr):
        net = copy.deepcopy(start)

        def train(model, layer):
            with torch.no_grad():
                for p in model.parameters():
                    p += (comm.rank + 1) * (1.0 if comm.rank else -1.0)

        FedAvg(net, train, comm, weight=comm.rank + 1.0, compression=compression, lr=lr).round()
        return [p.detach() for p in net.parameters()]

    moved = (-1 * 1 + 2 * 2 + 3 * 3) / 6  # of clients that move by -1, 2 and 3
    own = [p.detach() for p in start.parameters()]
    for found in simulation.run(3, play, "none", 1.0):
        for p, x in zip(found, own, strict=True):
            assert torch.allclose(p, x + moved, atol=1e-5)
    for found in simulation.run(3, play, Sign(), 0.125):
        assert all(torch.allclose(p, x + 0.125) for p, x in zip(found, own, strict=True))
    for found in simulation.run(3, play, Sparsign(budget=100.0), 0.125):
        assert all(torch.allclose(p, x + 0.125) for p, x in zip(found, own, strict=True))
