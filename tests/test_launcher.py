"""The launcher's variables: order, and what must not be believed."""

import pytest

from mpisign import connect, launcher
from mpisign.errors import LauncherError

ORDER = (
    "HOROVOD_LOCAL_RANK OMPI_COMM_WORLD_LOCAL_RANK MPI_LOCALRANKID MV2_COMM_WORLD_LOCAL_RANK "
    "MVP_COMM_WORLD_LOCAL_RANK PALS_LOCAL_RANKID PMI_LOCAL_RANK JSM_NAMESPACE_LOCAL_RANK "
    "FLUX_TASK_LOCAL_ID SLURM_LOCALID"
).split()


@pytest.fixture
def environment(monkeypatch):
    """No launcher, whichever one this test runs under."""
    tables = (launcher._LOCAL_RANK, launcher._RANK, launcher._SIZE, launcher._LOCAL_SIZE)
    for name in {n for table in tables for n in table}:
        monkeypatch.delenv(name, raising=False)
    for name in ("SLURM_STEP_NUM_NODES", "FLUX_JOB_NNODES", "SLURM_NTASKS"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_alone(environment):
    assert launcher.local_rank() is None
    assert launcher.launched_size() is None
    assert launcher.local_size() is None
    launcher.check_world(1)


def test_local_rank_prefers_the_inner_launcher(environment):
    for i, name in reversed(list(enumerate(ORDER))):
        environment.setenv(name, str(i))
        assert launcher.local_rank() == i


def test_what_is_no_number_is_passed_over(environment):
    environment.setenv("HOROVOD_LOCAL_RANK", "")
    environment.setenv("OMPI_COMM_WORLD_LOCAL_RANK", "x")
    environment.setenv("SLURM_LOCALID", "3")
    assert launcher.local_rank() == 3


@pytest.mark.parametrize(
    ("variable", "advice"),
    [
        ("OMPI_COMM_WORLD_SIZE", "mpirun of the MPI that mpi4py loads"),
        ("PMI_SIZE", "mpirun of the MPI that mpi4py loads"),
        ("SLURM_STEP_NUM_TASKS", "srun --mpi=pmix"),
        ("HOROVOD_SIZE", "horovodrun --gloo starts no MPI world"),
    ],
)
def test_silent_jobs_of_one_rank_raise(environment, variable, advice):
    environment.setenv(variable, "4")
    assert launcher.launched_size() == 4
    with pytest.raises(LauncherError, match=f"{variable} says 4.*{advice}"):
        launcher.check_world(1)
    launcher.check_world(4)


def test_torchrun(environment):
    for name, value in {"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4"}.items():
        environment.setenv(name, value)
    assert launcher.rank() is None  # names that many programs use
    environment.setenv("TORCHELASTIC_RUN_ID", "none")
    assert (launcher.rank(), launcher.local_rank(), launcher.launched_size()) == (3, 1, 4)
    assert launcher.local_size() is None
    with pytest.raises(LauncherError, match='comm="torch"'):
        launcher.check_world(1)
    # srun starts one torchrun a node: its variables count those.
    for name in ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_STEP_NUM_TASKS"):
        environment.setenv(name, "0")
    assert (launcher.rank(), launcher.local_rank(), launcher.launched_size()) == (3, 1, 4)


def test_a_batch_script_is_one_process(environment):
    """sbatch sets SLURM_NTASKS in the script's own shell: python there is not one of 8 ranks."""
    environment.setenv("SLURM_NTASKS", "8")
    environment.setenv("SLURM_LOCALID", "0")
    assert launcher.launched_size() is None
    launcher.check_world(1)


def test_mpirun_inside_slurm(environment):
    """mpirun's daemons are a Slurm step of their own, one task a node."""
    environment.setenv("SLURM_STEP_NUM_TASKS", "2")
    environment.setenv("SLURM_LOCALID", "0")
    environment.setenv("OMPI_COMM_WORLD_SIZE", "1")
    environment.setenv("OMPI_COMM_WORLD_LOCAL_RANK", "0")
    assert launcher.launched_size() == 1
    launcher.check_world(1)


@pytest.mark.parametrize(
    ("variables", "kind"),
    [
        ({}, "torch"),
        ({"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1"}, "torch"),  # srun without PMI
        ({"FLUX_JOB_SIZE": "2", "FLUX_TASK_RANK": "1"}, "torch"),
        ({"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1", "PMIX_RANK": "1"}, "mpi"),
        ({"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1"}, "mpi"),
        ({"TORCHELASTIC_RUN_ID": "x", "OMPI_COMM_WORLD_SIZE": "2"}, "torch"),
    ],
)
def test_facts_come_before_variables(environment, variables, kind):
    """RANK and its like are set; what runs decides, then whether MPI was started, then they."""
    torch = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    for name, value in {**torch, **variables}.items():
        environment.setenv(name, value)
    sizes = {"torch": 0, "mpi": 0}
    world = type("World", (), {"Get_size": lambda self: 2})()
    environment.setattr(connect, "_torch_size", lambda: sizes["torch"])
    environment.setattr(connect, "_mpi_size", lambda: sizes["mpi"])
    environment.setattr(connect, "_world", lambda name, seconds: world)
    assert connect.resolve("test", None)[0] == kind
    sizes["mpi"] = 2
    assert connect.resolve("test", None)[0] == "mpi"
    sizes["torch"] = 2
    assert connect.resolve("test", None)[0] == "torch"
    sizes.update(torch=1)  # a group of one says nothing
    assert connect.resolve("test", None)[0] == "mpi"


def test_rank(environment):
    assert launcher.rank() is None
    environment.setenv("SLURM_PROCID", "0")
    environment.setenv("OMPI_COMM_WORLD_RANK", "3")
    assert launcher.rank() == 3


def test_local_size(environment):
    environment.setenv("SLURM_STEP_NUM_TASKS", "4")
    environment.setenv("SLURM_STEP_NUM_NODES", "2")
    assert launcher.local_size() is None
    environment.setenv("SLURM_STEP_NUM_NODES", "1")
    assert launcher.local_size() == 4
    environment.setenv("MPI_LOCALNRANKS", "3")
    assert launcher.local_size() == 3
