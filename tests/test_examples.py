"""The scripts of docs/examples run as a user would start them, each by its own launcher."""

import sys

import launchers
import pytest

EXAMPLES = launchers.ROOT / "docs" / "examples"
PATH = {"PYTHONPATH": str(launchers.ROOT), "OMP_NUM_THREADS": "1"}

pytest.importorskip("torch", reason='pip install "mpisign[train]"')
pytest.importorskip("sklearn", reason='pip install "mpisign[train]"')


def _one_job(*names):
    """tests/ranks/several.py and the examples: starting ranks takes longer than they do."""
    jobs = [word for name in names for word in ("+", EXAMPLES / name)]
    return [launchers.RANKS / "several.py", *jobs[1:]]


def _learned(output, said):
    (line,) = [line for line in output.splitlines() if said in line]
    assert float(line.split("accuracy ")[1].split("%")[0]) > 80


@pytest.mark.mpi
def test_those_over_mpi_train_digits_name_the_hostile_rank_and_resume_at_the_same_bits():
    program = [sys.executable, "-m", "mpi4py"]
    job = _one_job("plain.py", "checkpoint_resume.py", "detox.py")
    output = launchers.mpirun(3, *program, *job, timeout=240, env=PATH).stdout
    plain, detox = output.split("stopped at step 25 and resumed: bit-identical on 3 ranks")
    _learned(plain, "3 replicas are bit-identical")
    _learned(detox, "3 replicas are bit-identical")


# Not in one job: a second init_process_group may find what is left of the first.
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("ddp.py", "2 replicas are bit-identical"),
        ("fsdp.py", "2 ranks gather bit-identical parameters"),
    ],
)
def test_those_over_gloo_train_digits_on_two_ranks(name, said):
    command = [launchers.find("torchrun"), "--standalone", "--nproc-per-node=2"]
    output = launchers.run([*command, EXAMPLES / name], timeout=240, env=PATH).stdout
    _learned(output, said)


@pytest.mark.horovod
def test_horovod_trains_digits_on_two_ranks():
    pytest.importorskip("horovod", reason="run scripts/setup")
    command = [launchers.find("horovodrun"), "-np", "2", "--gloo", sys.executable]
    script = EXAMPLES / "horovod_optimizer.py"
    output = launchers.run([*command, script], timeout=240, env=PATH).stdout
    _learned(output, "2 replicas are bit-identical")


def test_examples_are_short_and_say_how_to_start_them():
    scripts = sorted(EXAMPLES.glob("*.py"))
    assert len(scripts) == 13
    for script in scripts:
        text = script.read_text()
        assert 40 <= len(text.splitlines()) <= 80, script.name
        assert f"docs/examples/{script.name}\n" in text, f"{script.name} has no command"
        compile(text, script, "exec")
