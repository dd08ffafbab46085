"""mpisign.checkpoint: whole or not at all, agreed by all ranks.

Ranks are threads here, but where one is killed. All front ends: ranks/promises_state.py.
"""

from __future__ import annotations

import json
import sys
import warnings

import launchers
import pytest

torch = pytest.importorskip("torch", reason='pip install "mpisign[train]"')

import numpy as np  # noqa: E402

import mpisign  # noqa: E402
from mpisign import checkpoint, simulation  # noqa: E402
from mpisign.checkpoint import agreement  # noqa: E402
from mpisign.errors import CollectiveError, WireError  # noqa: E402


class Run:
    """A model with a batch norm, whose buffers differ from rank to rank, and its optimizer."""

    def __init__(self, comm, seed=0, compression="ef_sign"):
        self.comm = comm
        torch.manual_seed(seed)
        layers = torch.nn.Linear(5, 7), torch.nn.BatchNorm1d(7), torch.nn.Linear(7, 3)
        self.model = torch.nn.Sequential(*layers)
        sgd = torch.optim.SGD(self.model.parameters(), lr=0.05)
        how = {"comm": comm, "compression": compression, "skip": None}
        self.optimizer = mpisign.DistributedOptimizer(sgd, self.model.named_parameters(), **how)
        self.schedule = torch.optim.lr_scheduler.MultiStepLR(self.optimizer, [3, 5])
        self.state = {n: getattr(self, n) for n in ("model", "optimizer", "schedule")}

    def train(self, *steps):
        for step in steps:
            seeded = torch.Generator().manual_seed(100 * step + self.comm.rank)
            self.optimizer.zero_grad()
            self.model(torch.randn(4, 5, generator=seeded)).square().mean().backward()
            self.optimizer.step()
            self.schedule.step()

    def bits(self):
        """Everything of this rank."""
        model, optimizer = self.model.state_dict(), self.optimizer.state_dict()
        votes = optimizer["mpisign"]["state"]
        kept = [
            x for k in sorted(votes) for _, x in sorted(votes[k].items()) if hasattr(x, "double")
        ]
        tensors = [x.double().reshape(-1) for x in (*model.values(), *kept)]
        return torch.cat(tensors).numpy().tobytes() + str(optimizer["param_groups"]).encode()


def saved(comm, folder, *steps, **options):
    """A run that saved after each of ``steps``."""
    run, taken = Run(comm, **options), 0
    for step in steps:
        run.train(*range(taken, step))
        checkpoint.save(folder, step, run.state, comm=comm)
        taken = step
    return run


def error_of(function, *args, **options):
    with pytest.raises(CollectiveError) as caught:
        function(*args, **options)
    return str(caught.value)


def resumes(comm, folder, compression):
    run = saved(comm, folder, 2, 3, 4, compression=compression)
    run.train(4, 5, 6)
    again = Run(comm, 1, compression)
    assert checkpoint.load(folder, again.state, comm=comm) == 4
    again.train(4, 5, 6)
    assert again.bits() == run.bits()
    third = Run(comm, 2, compression)
    assert checkpoint.load(folder, third.state, comm=comm, step=3) == 3
    third.train(3, 4, 5, 6)
    assert third.bits() == run.bits()
    # An earlier step than the last one saved would never be loaded.
    assert "step 4 already" in error_of(checkpoint.save, folder, 3, run.state, comm=comm)
    checkpoint.save(folder, 4, run.state, comm=comm)
    return checkpoint.complete_steps(folder)


@pytest.mark.parametrize(("ranks", "compression"), [(2, "ef_sign"), (3, "signum"), (1, "onebit")])
def test_resumes_at_the_same_bits_and_keeps_the_last_two(ranks, compression, tmp_path):
    found = simulation.run(ranks, resumes, tmp_path / "new" / "run", compression, timeout=30)
    assert found == [[3, 4]] * ranks
    names = {p.name for p in (tmp_path / "new" / "run").rglob("*")}
    files = {f"rank-{r}.pt" for r in range(ranks)} | {"shared.pt", "manifest.json"}
    assert names == {"step-0000000003", "step-0000000004"} | files


def test_shared_is_what_is_equal_on_all_ranks(tmp_path):
    simulation.run(3, saved, tmp_path, 2)
    place = tmp_path / "step-0000000002"
    shared = torch.load(place / "shared.pt", weights_only=True)
    own = [torch.load(place / f"rank-{r}.pt", weights_only=True) for r in range(3)]
    model = {f"model['{n}']" for n in Run(mpisign.Communicator()).model.state_dict()}
    norms = {"model['1.running_mean']", "model['1.running_var']"}
    assert {k for k in shared["tensors"] if k.startswith("model")} == model - norms
    for rank in own:
        assert norms < rank["tensors"].keys()
        assert any("residual" in k or "'error'" in k for k in rank["tensors"]), list(
            rank["tensors"]
        )
    assert "schedule" in shared["trees"]


def cut_off(folder):
    path = folder / "step-0000000002" / "rank-1.pt"
    path.write_bytes(path.read_bytes()[:-100])
    return "step-0000000002/rank-1.pt has"


def one_byte_changed(folder):
    path = folder / "step-0000000002" / "shared.pt"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    return "step-0000000002/shared.pt is damaged"


def missing(folder):
    (folder / "step-0000000002" / "rank-0.pt").unlink()
    return "step-0000000002/rank-0.pt cannot be read (No such file or directory)"


def no_manifest_at_all(folder):
    (folder / "step-0000000002" / "manifest.json").write_text('{"format": 1')
    return "manifest.json is damaged"


def pickled(folder):
    """What would run code if it were unpickled, under a digest that fits."""
    path = folder / "step-0000000002" / "rank-1.pt"
    torch.save({"trees": {}, "tensors": {}, "evil": print}, path)
    manifest = path.with_name("manifest.json")
    content = json.loads(manifest.read_text())
    content["files"]["rank-1.pt"] = checkpoint.folder.entry(path)
    manifest.write_text(json.dumps(content))
    return "Weights only load failed"


@pytest.mark.parametrize("spoil", [cut_off, one_byte_changed, missing, no_manifest_at_all, pickled])
def test_a_damaged_file_is_the_same_error_on_every_rank(spoil, tmp_path):
    simulation.run(2, saved, tmp_path, 1, 2)
    text = spoil(tmp_path)

    def load(comm):
        run = Run(comm)
        before = run.bits()
        raised = error_of(checkpoint.load, tmp_path, run.state, comm=comm)
        assert run.bits() == before, "something was loaded"
        # The one before is whole.
        return raised, checkpoint.load(tmp_path, run.state, comm=comm, step=1)

    (first, second) = simulation.run(2, load, timeout=20)
    assert first == second
    assert text in first[0]
    assert first[1] == 1


def test_another_number_of_ranks(tmp_path):
    runs = simulation.run(3, saved, tmp_path, 2)

    def load(comm):
        run = Run(comm, seed=1)
        raised = error_of(checkpoint.load, tmp_path, run.state, comm=comm)
        # What all ranks share fits any number; a batch norm's buffers are each rank's own.
        linear = torch.nn.Linear(5, 7)
        more = {"schedule": run.schedule}
        assert checkpoint.load(tmp_path, more, comm=comm) == 2
        return raised, linear

    (text, _), *_ = simulation.run(2, load, timeout=20)
    assert "saved by 3 ranks and here are 2" in text
    assert "'model'" in text
    assert runs[0].schedule.last_epoch == 2


BAD = {
    "no dict": ([1], "state must be a dict"),
    "no state": ({"model": 3}, "state['model'] must have state_dict()"),
    "an array": ({"more": {"x": [np.zeros(3)]}}, "more['x'][0] is a numpy.ndarray"),
    "an object": ({"more": {"x": print}}, "tensors, numbers and strings only"),
    "sparse": ({"more": {"x": torch.eye(2).to_sparse()}}, "must be a dense tensor"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_one_rank_cannot_save_all_ranks_raise(name, tmp_path):
    bad, text = BAD[name]

    def save(comm):
        run = saved(comm, tmp_path, 1)
        state = bad if comm.rank == 1 else run.state
        raised = error_of(checkpoint.save, tmp_path, 2, state, comm=comm)
        run.train(2)  # and goes on
        checkpoint.save(tmp_path, 2, run.state, comm=comm)
        return raised

    found = simulation.run(2, save, timeout=20)
    assert len(set(found)) == 1
    assert text in found[0]
    assert "rank 1" in found[0]
    assert checkpoint.complete_steps(tmp_path) == [1, 2]


def test_misfits_steps_and_folders(tmp_path):
    (tmp_path / "file").write_text("")

    def wrong(comm):
        run = saved(comm, tmp_path / "run", 1)
        other = torch.nn.Linear(2, 2)
        folder = tmp_path / "run"
        calls = {
            "size mismatch|Missing key": lambda: checkpoint.load(
                folder, {"model": other}, comm=comm
            ),
            "holds no 'votes', but .*model": lambda: checkpoint.load(
                folder, {"votes": {}}, comm=comm
            ),
            "no complete checkpoint of step 7, but of": lambda: checkpoint.load(
                folder, run.state, step=7, comm=comm
            ),
            "step must be a number of steps": lambda: checkpoint.save(
                folder, -1, run.state, comm=comm
            ),
            "load: .*step must be a number of steps": lambda: checkpoint.load(
                folder, run.state, step="1" if comm.rank else 1, comm=comm
            ),
            "keep must be": lambda: checkpoint.save(folder, 2, run.state, keep=0, comm=comm),
            "disagree on step": lambda: checkpoint.save(
                folder, 2 + comm.rank, run.state, comm=comm
            ),
            "Not a directory|File exists|exist": lambda: checkpoint.save(
                tmp_path / "file", 1, run.state, comm=comm
            ),
        }
        texts = {}
        for pattern, call in calls.items():
            with pytest.raises(CollectiveError, match=pattern) as caught:
                call()
            texts[pattern] = str(caught.value)
        assert checkpoint.load(tmp_path / "none", run.state, comm=comm) == 0
        return texts

    first, second = simulation.run(2, wrong, timeout=20)
    assert first == second


def test_a_save_of_the_same_step_that_breaks_off_leaves_the_one_before(tmp_path, monkeypatch):
    run = saved(mpisign.Communicator(), tmp_path, 2)
    place = tmp_path / "step-0000000002"

    def dies(folder, target):  # between the two renames
        if folder.name.endswith(".partial"):
            raise KeyboardInterrupt
        return rename(folder, target)

    rename = type(tmp_path).rename
    with monkeypatch.context() as patch:
        patch.setattr(type(tmp_path), "rename", dies)
        with pytest.raises(KeyboardInterrupt):
            checkpoint.save(tmp_path, 2, run.state)
    assert not place.exists()
    assert checkpoint.load(tmp_path, Run(run.comm, 1).state) == 2
    checkpoint.save(tmp_path, 2, run.state)
    assert list(tmp_path.iterdir()) == [place]


class Announced(bytes):
    """Says that it is longer than memory."""

    def __len__(self):
        return 1 << 50


def test_a_length_beyond_all_checkpoints_is_an_error_and_no_memory():
    def share(comm):
        engine = mpisign.functions.engine_of("checkpoint.save", comm)
        with pytest.raises(WireError) as caught:
            agreement.share(engine, "checkpoint.save", Announced if comm.rank == 1 else bytes)
        return str(caught.value)

    first, second = simulation.run(2, share, timeout=20)
    assert first == second
    assert f"rank 1 announced {1 << 50} bytes" in first


def test_a_large_file_takes_longer_than_votes_may():
    def share(comm, **options):
        engine = mpisign.functions.engine_of("checkpoint.save", comm)

        def write():
            if comm.rank == 0:
                engine.transport.sleep(1.0)
            return b"%d" % comm.rank

        return agreement.share(engine, "checkpoint.save", write, **options)

    assert simulation.run(2, share, timeout=0.3) == [[b"0", b"1"]] * 2
    with pytest.raises(CollectiveError, match="gave up|did not come"):
        simulation.run(2, lambda comm: share(comm, files=False), timeout=0.3)


def test_the_random_bits_of_votes_do_not_depend_on_saving(tmp_path):
    """A save takes no number of a call: the default step of votes."""

    def votes(comm, saves):
        found = []
        for step in range(3):
            x = np.zeros(64, np.float32)
            found.append(comm.majority_vote(x, zeros="random").tobytes())
            if saves:
                checkpoint.save(tmp_path, step, {"more": {"step": step}}, comm=comm)
        return found

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert simulation.run(2, votes, True) == simulation.run(2, votes, False)


@pytest.mark.mpi
def test_a_rank_killed_during_a_save_leaves_the_checkpoint_before(tmp_path):
    """In two jobs of 3 ranks: one is killed half way through its file, the next resumes."""
    script = [sys.executable, "-m", "mpi4py", launchers.RANKS / "checkpoint_killed.py", tmp_path]
    env = launchers.with_tests(MPISIGN_TIMEOUT="20")
    killed = launchers.mpirun(3, *script, "kill", env=env, check=False)
    assert killed.returncode != 0, killed.stdout
    left = {p.name for p in (tmp_path / "step-0000000008.partial").iterdir()}
    assert "rank-1.pt" in left and "manifest.json" not in left
    assert checkpoint.complete_steps(tmp_path) == [2, 5]
    output = launchers.mpirun(3, *script, "resume", env=env).stdout
    assert "resumed at 5, bits equal on 3 ranks" in output, output
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-0000000005", "step-0000000008"]
