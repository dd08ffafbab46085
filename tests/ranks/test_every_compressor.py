"""DistributedOptimizer with every compressor, against all ranks' equations in NumPy."""

from __future__ import annotations

import dataclasses
import io

import numpy as np
import pytest
import reference as ref
import samples
import torch
from worlds import SIZE, WORLD

import mpisign
from mpisign import compressors as c
from mpisign import simulation
from mpisign.errors import CollectiveError, NaNError

WORLDS = ["mpi"] if SIZE > 1 else [1, 2, 3]
SEED = 9
MEMBERS = [((3, 7), "float32"), ((65,), "bfloat16"), ((), "float32"), ((4, 150), "float32")]
MEMBERS += [((9,), "float64"), ((5, 3), "float16")]
LENGTHS = [int(np.prod(s)) for s, _ in MEMBERS]
RATES = [0.1, 0.1, 0.02, 0.0, 0.3, 0.3]  # of the steps
CASES = [
    c.Sign(zeros="abstain", ties="zero"),
    c.Signum(momentum=0.7),
    c.Lion(),
    c.Lion(zeros="abstain", ties="zero", nan="abstain"),
    c.LionAvg(),
    c.LionAvg(zeros="abstain"),
    c.EFSign(),
    c.EFSign(block=256, zeros="abstain"),
    c.EFSign(nan="abstain"),
    c.OneBit(),
    c.OneBit(block=None, nan="abstain"),
    c.OneBit(block=256, zeros="abstain"),
    c.Sparsign(budget=0.4),
    c.Sparsign(budget=0.4, ties="random", nan="abstain"),
    c.EFSparsign(budget_local=2.0, budget_global=0.5),
    c.NoisySign(scale=0.5),
    c.StochasticSign(bound=3.0),
    c.TernGrad(),
    c.QSGD(nan="abstain"),
    c.Signum(momentum=0.7, density=0.3),
    c.Lion(density=0.05, nan="abstain"),
]
#: A case of each way to aggregate without some of the ranks.
SHARED = [
    c.Signum(momentum=0.7),
    c.Sign(zeros="abstain", ties="zero"),
    c.LionAvg(),
    c.EFSign(block=256),
    c.Sparsign(budget=0.4, ties="random"),
    c.EFSparsign(budget_local=2.0, budget_global=0.5),
    c.TernGrad(),
]
if SIZE > 1:  # one of a kind: threads run them all
    CASES = [CASES[i] for i in (4, 7, 9, 12, 14, 17, 19)]


def on_ranks(world, function):
    if world == "mpi":
        return function(mpisign.Communicator(WORLD.Dup()))
    return simulation.run(world, function, timeout=20)


def size_of(world):
    return SIZE if world == "mpi" else world


def gradients(p, step, with_nan):
    """[rank][member]: torch tensors, some missing; zeros, -0.0, subnormals; one not contiguous."""
    made = []
    for r in range(p):
        made.append([])
        for i, (shape, dtype) in enumerate(MEMBERS):
            x = samples.awkward(LENGTHS[i], [r, i, step], np.float32).reshape(shape)
            g = torch.from_numpy(np.where(np.isinf(x), 2, x)).to(getattr(torch, dtype))
            made[r].append(g)
        made[r][3] = made[r][3].t().contiguous().t()
        if with_nan and step % 2:
            made[r][3][1, r] = float("nan")
    if step == 1:
        made[0][1] = None  # on one rank
    if step == 2:
        for grads in made:
            grads[3] = None  # on all
    return made


def parameters():
    return [
        torch.nn.Parameter(torch.full(shape, 0.5, dtype=getattr(torch, dtype)))
        for shape, dtype in MEMBERS
    ]


def started(ps, comm, compressor, **options):
    optimizer = torch.optim.SGD(ps, lr=RATES[0], weight_decay=0.01)
    options = {"seed": SEED, "skip": None} | options
    mpisign.DistributedOptimizer(optimizer, comm=comm, compression=compressor, **options)
    return optimizer


def reference_of(compressor, p):
    (name,) = [name for name, kind in c.COMPRESSORS.items() if kind is type(compressor)]
    return ref.Ranks(name, p, LENGTHS, SEED, **dataclasses.asdict(compressor))


def numpy_of(g):
    return None if g is None else g.double().numpy()


def take(optimizer, ps, grads, rate):
    for p, g in zip(ps, grads, strict=True):
        p.grad = None if g is None else g.clone(memory_format=torch.preserve_format)
    optimizer.param_groups[0]["lr"] = rate
    optimizer.step()


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("compressor", CASES, ids=repr)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_every_step_is_its_equation(world, compressor):
    p = size_of(world)
    reference = reference_of(compressor, p)
    all_grads, results = [], []
    for step, rate in enumerate(RATES):
        all_grads.append(gradients(p, step, compressor.nan == "abstain"))
        numbers = [[numpy_of(g) for g in grads] for grads in all_grads[-1]]
        results.append(reference.step(numbers, step, [rate] * len(MEMBERS)))

    def train(comm):
        ps = parameters()
        optimizer = started(ps, comm, compressor)
        for step, rate in enumerate(RATES):
            if step == 4:  # killed, and resumed from a checkpoint
                file = io.BytesIO()
                torch.save(optimizer.state_dict(), file)
                ps = [torch.nn.Parameter(x.detach().clone()) for x in ps]
                optimizer = started(ps, comm, compressor)
                saved = io.BytesIO(file.getvalue())
                optimizer.load_state_dict(torch.load(saved, weights_only=True))
            grads = all_grads[step][comm.rank]
            take(optimizer, ps, grads, rate)
            for x, expected, g in zip(ps, results[step], grads, strict=True):
                if expected is None:
                    assert x.grad is None and g is None
                    continue
                expected = torch.from_numpy(expected).to(x.dtype).view(x.shape)
                assert x.grad.dtype == x.dtype and torch.equal(x.grad, expected), step
        return [x.detach().float().numpy() for x in ps]

    replicas = on_ranks(world, train)
    if world == "mpi":
        replicas = WORLD.allgather(replicas)
    assert all(samples.same_lists(replicas[0], rest) for rest in replicas)
    assert all((x != 0.5).any() for x in replicas[0])


@pytest.mark.parametrize("world", [*WORLDS[:3], 4] if SIZE == 1 else WORLDS)
@pytest.mark.parametrize("compressor", SHARED, ids=repr)
def test_a_share_of_the_ranks(world, compressor):
    """The others change nothing, whatever they hold; their states wait, and they step as all do."""
    p = size_of(world)
    reference, all_grads, results, drawn = reference_of(compressor, p), [], [], []
    for step, rate in enumerate(RATES):
        there = ref.participants(0.5, SEED, step, p)
        assert len(there) == (p + 1) // 2
        grads = gradients(p, step, False)
        for r in set(range(p)) - set(there):
            bad = [torch.full_like(x, torch.nan) for x in gradients(1, 0, False)[0]]
            grads[r] = bad if step % 2 else [None] * len(MEMBERS)
        numbers = [[numpy_of(g) for g in of] for of in grads]
        results.append(reference.step(numbers, step, [rate] * len(MEMBERS), there))
        all_grads.append(grads)
        drawn.append(there)
    assert p == 1 or len(set(map(tuple, drawn))) > 1

    def train(comm):
        ps = parameters()
        optimizer = started(ps, comm, compressor, participation=0.5)
        for step, rate in enumerate(RATES):
            if step == 4:
                saved = optimizer.state_dict()
                optimizer = started(ps, comm, compressor, participation=0.5)
                optimizer.load_state_dict(saved)
            assert mpisign.takes_part(optimizer) == (comm.rank in drawn[step])
            before = optimizer.state_dict()["mpisign"]["state"]
            take(optimizer, ps, all_grads[step][comm.rank], rate)
            for x, expected in zip(ps, results[step], strict=True):
                if expected is None:
                    assert x.grad is None
                    continue
                expected = torch.from_numpy(expected).to(x.dtype).view(x.shape)
                assert torch.equal(x.grad, expected), (compressor, step)
            if comm.rank not in drawn[step] and not compressor.shared:
                after = optimizer.state_dict()["mpisign"]["state"]
                assert after.keys() == before.keys()
                for name, state in before.items():
                    assert all(torch.equal(state[k], after[name][k]) for k in state)
        return [x.detach().float().numpy() for x in ps]

    replicas = on_ranks(world, train)
    replicas = WORLD.allgather(replicas) if world == "mpi" else replicas
    assert all(samples.same_lists(replicas[0], rest) for rest in replicas), compressor


@pytest.mark.parametrize("world", [*WORLDS[:3], 4] if SIZE == 1 else WORLDS)
@pytest.mark.parametrize("rate, share", [(None, 1.0), (0.0625, 1.0), (0.0625, 0.5)])
def test_a_round_of_local_steps(world, rate, share):
    """``rate``: of local steps. Ranks that are absent stay where the round began."""
    p, steps, lr = size_of(world), 3, 0.25
    compressor = c.EFSparsign(budget_local=0.5, budget_global=0.3, local_steps=steps, local_lr=rate)
    reference = reference_of(compressor, p)
    grads = [gradients(p, step, False) for step in (0, 3, 4, 5, 6, 7)]
    x = [np.full(n, 0.5, np.float32) for n in LENGTHS]
    expected = []
    for number in range(2):
        part = range(steps * number, steps * (number + 1))
        there = ref.participants(share, SEED, number, p)
        sums = [
            [
                ref.local_steps(
                    [numpy_of(grads[step][r][i]) for step in part],
                    0.5,
                    **{"seed": SEED + 1 + i, "step": part.start, "rank": r},
                )
                for i in range(len(MEMBERS))
            ]
            for r in range(p)
        ]
        at = [list(x) for _ in range(p)]
        for step in range(steps - 1):
            for r in there:
                moves = [s[step] - s[step - 1] if step else s[0] for s in sums[r]]
                at[r] = [a - np.float32(rate or lr) * v for a, v in zip(at[r], moves, strict=True)]
            expected.append([list(of) for of in at])
        last = [[s[-1] for s in of] for of in sums]
        out = reference.step(last, number, [lr] * len(MEMBERS), there)
        x = [a - np.float32(lr) * o for a, o in zip(x, out, strict=True)]
        expected.append([x] * p)

    def train(comm):
        ps = parameters()
        optimizer = started(ps, comm, compressor, participation=share)
        optimizer.param_groups[0]["weight_decay"] = 0.0
        for step in range(2 * steps):
            if step == 4:  # resumed in the middle of a round
                saved = io.BytesIO()
                torch.save(optimizer.state_dict(), saved)
                optimizer = started(ps, comm, compressor, participation=share)
                optimizer.load_state_dict(torch.load(io.BytesIO(saved.getvalue())))
                optimizer.param_groups[0]["weight_decay"] = 0.0
            # A schedule moves the rate of the exchange alone, if local steps have one of their own.
            last = step % steps == steps - 1
            take(optimizer, ps, grads[step][comm.rank], lr if last or rate is None else 7.0)
            for q, x in zip(ps, expected[step][comm.rank], strict=True):
                same = q.detach().double().numpy().reshape(-1)
                if q.dtype == torch.float32:
                    assert np.array_equal(same, x), step
                else:
                    assert np.allclose(same, x, 0, 1e-6 if q.dtype == torch.float64 else 0.02)
        return ps

    on_ranks(world, train)


@pytest.mark.parametrize("world", WORLDS[1:4] or WORLDS)
def test_nan_raises_on_all_ranks_and_leaves_no_trace(world):
    p, last = size_of(world), 4
    cases = [c.EFSign(), c.OneBit(block=256), c.EFSparsign(), c.QSGD(), c.LionAvg()]

    def train(comm, compressor, spoil):
        ps = parameters()
        optimizer = started(ps, comm, compressor)
        for step in (0, 3, 4):
            grads = gradients(p, step, False)[comm.rank]
            if spoil and step == 4:
                before = [x.detach().clone() for x in ps]
                bad = [g.clone() for g in grads]
                if comm.rank == p - 1:
                    bad[last][2] = float("nan")
                with pytest.raises(NaNError, match=f"step: .* 1 on rank {p - 1}"):
                    take(optimizer, ps, bad, 0.1)
                assert all(torch.equal(a, b) for a, b in zip(before, ps, strict=True))
            take(optimizer, ps, grads, 0.1)
        return [x.detach().double().numpy() for x in ps]

    for compressor in cases:
        runs = [on_ranks(world, lambda comm, s=s, c=compressor: train(comm, c, s)) for s in (0, 1)]
        for one, other in zip(*([run] if world == "mpi" else run for run in runs), strict=True):
            if compressor.aggregate == "mean_of_signs":
                continue  # its momentum saw the gradients of the step that failed
            assert samples.same_lists(one, other)


@pytest.mark.parametrize("world", WORLDS[1:3] or WORLDS)
def test_what_cannot_be_aggregated_so_is_refused(world):
    def train(comm):
        ps = parameters()
        optimizer = started(ps, comm, c.LionAvg(), algorithm="hierarchical")
        with pytest.raises(CollectiveError, match="algorithm must be one of .* 'hierarchical'"):
            take(optimizer, ps, [torch.ones_like(x) for x in ps], 0.1)

    on_ranks(world, train)


def test_by_name_in_many_buckets(monkeypatch):
    """Every result is compared by the digests of the next headers; a resumed run goes on alike."""
    monkeypatch.setenv("MPISIGN_CHECK_EVERY", "1")

    def train(comm, name):
        runs = []
        for resumed in (False, True):
            ps = parameters()
            optimizer = started(ps, comm, name, bucket_size=100, skip="auto")
            for step in (0, 3, 1, 4):
                if resumed and step == 1:
                    saved = optimizer.state_dict()
                    optimizer = started(ps, comm, name, bucket_size=100, skip="auto")
                    optimizer.load_state_dict(saved)
                take(optimizer, ps, gradients(comm.size, step, False)[comm.rank], 0.1)
            runs.append([x.detach().double().numpy() for x in ps])
        assert samples.same_lists(*runs)
        return runs[0]

    # Threads go through them all.
    for name in c.COMPRESSORS if SIZE == 1 else ("signum", "onebit", "qsgd", "robust"):
        world = "mpi" if SIZE > 1 else 3
        replicas = on_ranks(world, lambda comm, name=name: train(comm, name))
        for rest in WORLD.allgather(replicas) if SIZE > 1 else replicas:
            first = replicas if SIZE > 1 else replicas[0]
            assert samples.same_lists(first, rest), name


def test_residuals_of_onebit_when_ranks_leave():
    """Own residuals and the momentum stay; owners start again."""
    if SIZE > 1:
        pytest.skip("ranks are threads here")
    kept = {}

    def begin(comm):
        ps = parameters()
        optimizer = started(ps, comm, c.OneBit(block=256))
        for step in (0, 3):
            take(optimizer, ps, gradients(3, step, False)[comm.rank], 0.1)
        kept[comm.rank] = optimizer.state_dict()

    def go_on(comm):
        ps = parameters()
        optimizer = started(ps, comm, c.OneBit(block=256))
        saved = kept[comm.rank + 1]  # rank 0 left
        assert saved["mpisign"]["state"]["0"]["owner_of"] == [comm.rank + 1, 3, sum(LENGTHS), 256]
        optimizer.load_state_dict(saved)
        grads = gradients(2, 4, False)
        reference = reference_of(c.OneBit(block=256), 2)
        for r in range(2):
            states = kept[r + 1]["mpisign"]["state"]
            e = [states[str(i)]["residual"].numpy().reshape(-1) for i in range(len(MEMBERS))]
            reference.mean.residuals[r] = np.concatenate(e)
            m = [states[str(i)]["momentum"].numpy().reshape(-1) for i in range(len(MEMBERS))]
            reference.shared = m
        numbers = [[numpy_of(g) for g in of] for of in grads]
        results = reference.step(numbers, 2, [0.1] * len(MEMBERS))
        take(optimizer, ps, grads[comm.rank], 0.1)
        for x, expected in zip(ps, results, strict=True):
            assert torch.equal(x.grad, torch.from_numpy(expected).to(x.dtype).view(x.shape))

    simulation.run(3, begin, timeout=20)
    simulation.run(2, go_on, timeout=20)
