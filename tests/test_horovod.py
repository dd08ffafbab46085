"""Votes under the unmodified Horovod optimizer, started by both of its launchers."""

from __future__ import annotations

import itertools
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from launchers import RANKS, TCP, find, mpirun, run, with_tests

pytest.importorskip("horovod.torch", reason="Horovod is not installed: run scripts/setup")

from mpisign.errors import DisagreementError, NaNError, WireError
from mpisign.horovod import roll_call

pytestmark = pytest.mark.horovod

ENV = with_tests(HOROVOD_GLOO_IFACE="lo")


def start(controller, n, script, *arguments, timeout=240, network=(), env=ENV):
    command = [sys.executable, RANKS / f"{script}.py", *arguments]
    if controller == "mpi":
        mca = TCP if network else ()
        if not network:
            return mpirun(n, *command, env=env, timeout=timeout).stdout
        more = ["--oversubscribe", "--bind-to", "none", *mca]
        command = [*network, find("mpirun"), "-n", str(n), *more, *command]
    else:
        command = [*network, find("horovodrun"), "-np", str(n), "--gloo", *command]
    return run(command, env=env, timeout=timeout).stdout


def show(output):
    print(*(line for line in output.splitlines() if "ok " in line or "wire" in line), sep="\n")


@pytest.mark.slow
@pytest.mark.parametrize(
    "controller, n, long",
    [
        pytest.param("mpi", 2, "", marks=pytest.mark.many),
        ("gloo", 2, "short"),
        pytest.param("gloo", 3, "long", marks=pytest.mark.many),
        ("mpi", 3, ""),
        pytest.param("mpi", 4, "long", marks=pytest.mark.many),
    ],
)
def test_votes(controller, n, long):
    """Values, orders, unused layers, operations, groups, process sets, states, replicas."""
    show(start(controller, n, "horovod_votes", str(n), long))


@pytest.mark.slow
@pytest.mark.parametrize(
    "controller, n, checks",
    [
        pytest.param("mpi", 2, ["every_compressor", "under_horovods"], marks=pytest.mark.many),
        ("mpi", 3, []),
        ("gloo", 2, ["orders", "errors", "broadcasts", "sparse", "two_optimizers"]),
    ],
)
def test_what_users_rely_on(controller, n, checks):
    """Of mpisign.horovod.DistributedOptimizer, and every compressor under Horovod's: values,
    orders, errors, states, process sets, replicas. See the script."""
    show(start(controller, n, "horovod_optimizer", str(n), *checks))


@pytest.mark.slow
@pytest.mark.parametrize("controller", [pytest.param("mpi", marks=pytest.mark.many), "gloo"])
def test_errors_and_joins(controller):
    """What raises does so on every rank, with the same text, and no rank is left waiting."""
    show(start(controller, 3, "horovod_errors"))


@pytest.mark.slow
def test_parameters():
    """Of other kinds, embeddings, later ones, warm-up: every way to use Horovod."""
    show(start("mpi", 3, "horovod_parameters"))


def test_one_process():
    """Horovod calls no compression then; the rank trains on votes all the same."""
    show(run([sys.executable, RANKS / "horovod_alone.py"], env=ENV).stdout)


@pytest.mark.slow
@pytest.mark.parametrize("then", ["", pytest.param("dies", marks=pytest.mark.many)])
def test_a_rank_that_comes_later(tmp_path, then):
    """horovodrun's elastic mode, from two ranks to three, and back to two: every way."""
    hosts, discover = tmp_path / "hosts", tmp_path / "discover"
    hosts.write_text("localhost:2\n")
    discover.write_text(f"#!/bin/sh\ncat {hosts}\n")
    discover.chmod(0o755)
    command = [find("horovodrun"), "--gloo", "-np", "2", "--min-np", "2", "--max-np", "3"]
    command += ["--network-interface", "lo", "--host-discovery-script", str(discover)]
    script = [sys.executable, RANKS / "horovod_elastic.py", str(hosts), then]
    output = run([*command, *script], env=ENV, timeout=150).stdout
    show(output)
    for size in (3, 2) if then else (3,):
        for way in ("counters", "planes", "ours", "shared"):
            assert f"ok {way}: replicas of {size}" in output
        assert f"ok shared: residuals of {size}" in output
        assert f"ok ours: steps of {size}" in output


def own_network():
    """A prefix that gives a command a loopback device of its own, nothing where not permitted."""
    unshare = shutil.which("unshare")
    if unshare is None or subprocess.run([unshare, "-n", "true"], capture_output=True).returncode:
        return ["env"]
    return [unshare, "-n", sys.executable, RANKS / "own_network.py"]


@pytest.mark.slow
@pytest.mark.alone  # ranks that come late to a cycle cost bytes
@pytest.mark.parametrize("controller", ["mpi", pytest.param("gloo", marks=pytest.mark.many)])
def test_bytes_on_the_wire(controller):
    """Four ranks, a million parameters, TCP over lo: the kernel's count, headers and all."""
    # Horovod's ranks ask each other for work every cycle, 1 ms, idle or not: on a slow machine that
    # alone would be most of what is counted.
    env = {**ENV, "HOROVOD_CYCLE_TIME": "5"}
    output = start(controller, 4, "horovod_wire", network=own_network(), env=env)
    show(output)
    found = re.findall(r"wire (\S+) booked_up=(\S+) booked_down=(\S+) lo=(\S+)", output)
    bits = {name: tuple(map(float, values)) for name, *values in found}
    up, down, lo = bits["planes"]
    assert up <= 2.2 and down <= 2.2 and lo <= 2.2
    assert bits["fp32"][2] >= 8 * bits["counters"][2]
    for up, down, lo in bits.values():
        assert up == down and up * 0.99 < lo < up * 1.05 + 0.3


def scaled(rows, alpha):
    """What a reduction makes of some ranks' roll calls."""
    return np.sum(rows, axis=0) * alpha


def answers(size, ranks, nan=(), creed="same"):
    rows = []
    for r in ranks:
        row = np.empty(roll_call.n_words(size))
        text = creed if isinstance(creed, str) else creed[r]
        roll_call.write(row, r, size, clock=5, config_digest=text, nan=r in nan)
        rows.append(row)
    return rows


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5])
def test_a_roll_call_tells_sum_from_average(size):
    """Whoever has joined, and whichever of the two Horovod was asked for."""
    for k in range(1, size + 1):
        for voters in itertools.combinations(range(size), k):
            nan = voters[:1]
            for alpha, unscale in ((1.0, 1.0), (1.0 / size, float(size))):
                words = scaled(answers(size, voters, nan), alpha)
                roll = roll_call.read(words, size, "test")
                assert roll.voters == voters and roll.nans == nan and roll.agreed
                assert roll.unscale == unscale or size == 1
                assert roll.clock == 5 * k
                assert set(roll.joined) == set(range(size)) - set(voters)


def test_a_roll_call_of_many_ranks():
    for size in (31, 32, 33, 64, 200):
        voters = tuple(r for r in range(size) if r % 7)
        for alpha in (1.0, 1.0 / size):
            roll = roll_call.read(scaled(answers(size, voters, (33,)), alpha), size, "test")
            assert roll.voters == voters
            assert roll.nans == ((33,) if 33 in voters and size > 33 else ())


def test_a_process_set_that_was_not_told():
    """Averages of fewer ranks than the compression believes there are."""
    for size in (3, 4, 5, 8):
        for k in range(2, size):
            for members in itertools.combinations(range(size), k):
                with pytest.raises(WireError, match="process_set"):
                    roll_call.read(scaled(answers(size, members), 1.0 / k), size, "test")


@pytest.mark.parametrize("reduce", [np.max, np.min, np.prod])
def test_other_operations(reduce):
    for size in (2, 3, 4, 8):
        words = reduce(np.stack(answers(size, range(size))), axis=0)
        with pytest.raises(WireError, match="neither a Sum nor an Average"):
            roll_call.read(words, size, "test")


def test_what_a_roll_call_says_against_a_vote():
    roll = roll_call.read(scaled(answers(4, range(4), (1, 3)), 1.0), 4, "test")
    with pytest.raises(NaNError, match="on ranks 5, 9 "):
        roll_call.check(roll, "test", [4, 5, 6, 9])
    for creed in (["a", "b", "c"], ["a", "a", "b"]):
        roll = roll_call.read(scaled(answers(3, range(3), creed=creed), 1 / 3), 3, "test")
        with pytest.raises(DisagreementError, match="ranks disagree"):
            roll_call.check(roll, "test", [0, 1, 2])
    for words in (np.full(6, np.nan), np.zeros(6), np.full(6, 0.3), np.zeros(3)):
        with pytest.raises(WireError):
            roll_call.read(words, 4, "test")


def test_settings_are_checked_at_the_door():
    from mpisign.horovod import Compression

    with pytest.raises(ValueError, match="zeros must be one of"):
        Compression.sign(zeros="maybe")
    with pytest.raises(ValueError, match="seed must be in"):
        Compression.signum(seed=-1)
    with pytest.raises(TypeError, match=r"\(name, parameter\) pairs"):
        Compression.sign([1, 2])
    with pytest.raises(ValueError, match="uniquely named"):
        Compression.sign([])


def test_a_state_waits_for_its_parameter():
    """Loaded before the first step, found by name, checked against the shape."""
    import torch

    from mpisign.horovod import Compression

    p = torch.nn.Parameter(torch.zeros(3))
    saved = {"w": {"momentum": torch.ones(3)}, "mpisign": {"step": 7}}
    named = Compression.signum([("w", p)])
    named.load_state_dict(saved)
    late = Compression.signum(momentum=0.5)
    late.load_state_dict(saved)
    for compression in (named, late):
        state = compression.state_dict()
        assert state["mpisign"] == {"step": 7} and torch.equal(
            state["w"]["momentum"], torch.ones(3)
        )
    with pytest.raises(ValueError, match=r"momentum of 'w' must have shape \(3,\), got \(4,\)"):
        named.load_state_dict({"w": {"momentum": torch.ones(4)}})


def test_without_horovod_the_error_says_what_to_install(tmp_path):
    (tmp_path / "horovod").mkdir()
    (tmp_path / "horovod" / "__init__.py").write_text("raise ImportError('no')")
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = run(
        [sys.executable, "-c", "import mpisign.horovod"], check=False, env={"PYTHONPATH": path}
    )
    assert "ImportError: mpisign.horovod needs torch and horovod 0.28.1" in done.stdout
