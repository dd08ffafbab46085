"""The scripts of docs/examples run as a user would start them, each by its own launcher."""

import sys

import launchers
import pytest

EXAMPLES = launchers.ROOT / "docs" / "examples"
PATH = {"PYTHONPATH": str(launchers.ROOT), "OMP_NUM_THREADS": "1"}

pytest.importorskip("torch", reason='pip install "mpisign[train]"')
pytest.importorskip("sklearn", reason='pip install "mpisign[train]"')


def _mpirun(n, name):
    script = EXAMPLES / name
    return launchers.mpirun(n, sys.executable, "-m", "mpi4py", script, timeout=240, env=PATH)


def _torchrun(n, name):
    command = [launchers.find("torchrun"), "--standalone", f"--nproc-per-node={n}"]
    return launchers.run([*command, EXAMPLES / name], timeout=240, env=PATH)


def _accuracy(output):
    return float(output.split("accuracy ")[1].split("%")[0])


@pytest.mark.mpi
def test_plain_trains_digits_on_two_ranks():
    output = _mpirun(2, "plain.py").stdout
    assert "2 replicas are bit-identical" in output
    assert _accuracy(output) > 80


def test_ddp_trains_digits_on_two_ranks():
    output = _torchrun(2, "ddp.py").stdout
    assert "2 replicas are bit-identical" in output
    assert _accuracy(output) > 80


def test_fsdp_trains_digits_on_two_ranks():
    output = _torchrun(2, "fsdp.py").stdout
    assert "2 ranks gather bit-identical parameters" in output
    assert _accuracy(output) > 80


@pytest.mark.horovod
def test_horovod_trains_digits_on_two_ranks():
    pytest.importorskip("horovod", reason="run scripts/setup")
    command = [launchers.find("horovodrun"), "-np", "2", "--gloo", sys.executable]
    script = EXAMPLES / "horovod_optimizer.py"
    output = launchers.run([*command, script], timeout=240, env=PATH).stdout
    assert "2 replicas are bit-identical" in output
    assert _accuracy(output) > 80


@pytest.mark.mpi
def test_detox_names_the_hostile_rank_of_three():
    output = _mpirun(3, "detox.py").stdout
    assert "3 replicas are bit-identical" in output
    assert _accuracy(output) > 80


@pytest.mark.mpi
def test_a_resumed_run_ends_at_the_same_bits():
    output = _mpirun(2, "checkpoint_resume.py").stdout
    assert "stopped at step 25 and resumed: bit-identical on 2 ranks" in output


def test_examples_are_short_and_say_how_to_start_them():
    scripts = sorted(EXAMPLES.glob("*.py"))
    assert len(scripts) == 6
    for script in scripts:
        text = script.read_text()
        assert 40 <= len(text.splitlines()) <= 80, script.name
        assert f"docs/examples/{script.name}\n" in text, f"{script.name} has no command"
        compile(text, script, "exec")
