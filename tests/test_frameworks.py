"""mpisign under Lightning, Accelerate, Trainer, torchrun's restarts and torch's checkpoints."""

from __future__ import annotations

import importlib.util
import sys

import pytest
from launchers import ONE_THREAD, RANKS, ROOT, find, run, with_tests

EXAMPLES = ROOT / "docs" / "examples"
ENV = {**ONE_THREAD, "GLOO_SOCKET_IFNAME": "lo", "PYTHONPATH": str(ROOT)}


def needs(*packages):
    for package in packages:
        if importlib.util.find_spec(package) is None:
            pytest.skip(f'{package} is not installed: pip install "mpisign[frameworks]"')


def suites(*modules):
    """The modules of tests/ranks, in one job: importing a framework takes longer than they do."""
    env = with_tests(GLOO_SOCKET_IFNAME="lo")
    env["PYTHONPATH"] = env["PYTHONPATH"].replace(f"{ROOT / 'tests' / 'quick'}:", "")
    script = [sys.executable, RANKS / "frameworks.py", *modules]
    output = run(script, timeout=280, env=env).stdout
    for module in modules:
        assert f"{module}.check on 2 ranks: passed" in output, output
        assert f"{module}.three_ranks_continue on 3 ranks: passed" in output, output
    return output


@pytest.mark.slow  # imports of seconds
def test_lightning_votes_as_ddp_does_saves_every_rank_and_names_mistakes():
    needs("lightning")
    assert "2 replicas are bit-identical, resumed too" in suites("frameworks_lightning")


@pytest.mark.slow  # imports of seconds
def test_accelerate_and_trainer_vote_as_ddp_does_save_every_rank_and_name_mistakes():
    needs("accelerate", "transformers")
    output = suites("frameworks_accelerate", "frameworks_trainer")
    assert output.count("replicas are bit-identical") == 2, output


def test_torchrun_restarts_a_job_that_lost_a_rank_and_it_ends_at_the_same_bits(tmp_path):
    pytest.importorskip("sklearn", reason='pip install "mpisign[train]"')
    options = ["--standalone", "--nproc-per-node=2", "--max-restarts=1"]
    env = {**ENV, "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    script = EXAMPLES / "elastic.py"
    output = run([find("torchrun"), *options, script, tmp_path], env=env, timeout=200).stdout
    assert "exitcode: -9" in output and output.count("resumes at step 20") == 2, output
    assert "2 replicas are bit-identical, as if no rank had died" in output, output


def test_one_folder_of_torchs_checkpoints_has_every_ranks_state():
    pytest.importorskip("sklearn", reason='pip install "mpisign[train]"')
    output = suites("frameworks_checkpoint")
    assert "stopped at step 20 and resumed: bit-identical on 2 ranks" in output, output


MISSING = """
import importlib, sys
import mpisign.ddp
names = "lightning", "accelerate", "transformers"
assert not {*names} & {*sys.modules}, "a framework is imported unasked"
sys.modules.update(dict.fromkeys(names))
for name in names:
    try:
        importlib.import_module(f"mpisign.{name}")
    except ImportError as error:
        print(error)
"""


def test_a_missing_framework_says_what_to_install():
    output = run([sys.executable, "-c", MISSING], env=ENV).stdout
    for package in ("lightning", "accelerate", "transformers"):
        assert f'pip install "{package}' in output, output
