"""The rows that follow from what the ranks of this job say of themselves."""

from __future__ import annotations

import os
from collections import defaultdict
from typing import Any

from mpisign.doctor.children import ask
from mpisign.doctor.examine import Finding
from mpisign.doctor.ranks import COMPARED, differences, spans

Ranks = list[dict[str, Any]]

#: The start of the variable that a launcher sets -> the launcher.
_LAUNCHERS = {
    "HOROVOD_": "horovodrun", "OMPI_": "Open MPI's mpirun", "MV2_": "MVAPICH's mpirun",
    "MVP_": "MVAPICH's mpirun", "PMIX_": "a launcher with PMIx", "PMI_": "a launcher with PMI",
    "JSM_": "jsrun", "FLUX_": "flux", "SLURM_": "srun", "RANK": "torchrun",
}  # fmt: skip


def ask_ranks(seconds: float) -> tuple[Ranks, Finding]:
    """The facts of every rank, and the row of the launcher. Collective among the job's ranks.

    In a child, which has this process's rank: starting MPI under a launcher of another one may
    end the process.
    """
    answer = ask("job", seconds=seconds)
    if answer["state"] != "ok":
        found, _, advice = answer["found"].removeprefix("LauncherError: ").partition(": ")
        if not answer["found"].startswith("LauncherError"):
            found, advice = answer["found"], "look at the launcher, and at MPI above"
            if found.startswith("no answer"):  # MPI does not start before all ranks have
                advice = "a rank hangs, did not start, or is slower than --seconds; else " + advice
            if "SLURM_PROCID" in os.environ:
                advice = (
                    "srun --mpi=pmix, for MPICH --mpi=pmi2; srun --mpi=list tells what there is"
                )
        return [], Finding("launcher", "broken", found, advice, answer["details"])
    ranks: Ranks = answer["details"]["ranks"]
    first = ranks[0]
    if first["transport"] == "alone":
        return ranks, Finding("launcher", "ok", "none: one process, alone")
    name = next((n for v, n in _LAUNCHERS.items() if (first["launcher"] or "").startswith(v)), "")
    if "SLURM_PROCID" in os.environ and name != "srun":
        name += " in Slurm"
    hosts = by_host(ranks)
    text = f"{name or 'unknown'}: {first['launched'] or len(ranks)} processes, and "
    text += f"{len(ranks)} ranks over {first['transport']}, on {len(hosts)} host"
    return ranks, Finding("launcher", "ok", text + "s" * (len(hosts) > 1))


def by_host(ranks: Ranks) -> dict[str, list[int]]:
    """{host: its ranks}."""
    found: dict[str, list[int]] = {}
    for number, rank in enumerate(ranks):
        found.setdefault(rank["host"], []).append(number)
    return found


def rows_of_ranks(ranks: Ranks) -> list[Finding]:
    """Devices, cores, the kernel cache, and how ranks differ."""
    rows = [_devices(ranks), _cores(ranks), _cache(ranks)]
    if len(ranks) > 1:
        rows.append(_differences(ranks))
    return rows


def _devices(ranks: Ranks) -> Finding:
    name = "device of each rank"
    if all(rank["device"] is None for rank in ranks):
        return Finding(name, "ok", "the CPU: no GPU is seen")
    places, owners = defaultdict(list), defaultdict(list)
    for number, rank in enumerate(ranks):
        device = rank["device"]
        gpu = "the CPU" if device is None else f"GPU {device} ({rank['gpus'][device]})"
        places[gpu].append(number)
        if device is not None:
            owners[rank["host"], rank["device_id"]].append(number)
    what = "rank" if len(ranks) == 1 else "ranks"
    text = ", ".join(f"{what} {spans(of)}: {gpu}" for gpu, of in places.items())
    shared = [f"ranks {spans(of)} of {host}" for (host, _), of in owners.items() if len(of) > 1]
    if shared:
        advice = "NCCL refuses two ranks on one GPU: start as many ranks a node as it has GPUs"
        return Finding(name, "doubtful", f"{text}; one GPU for {', '.join(shared)}", advice)
    return Finding(name, "ok", text)


def _cores(ranks: Ranks) -> Finding:
    """Threads of all ranks of a host against the cores that these may use together."""
    crowded, shown = [], []
    for host, numbers in by_host(ranks).items():
        here = [ranks[n] for n in numbers]
        cores = len({core for rank in here for core in rank["affinity"]}) or here[0]["cores"]
        threads = sum(rank["threads"] for rank in here)
        counts = ((len(here), "rank"), (threads, "thread"), (cores, "core"))
        text = ", ".join(f"{n} {what}{'s' * (n != 1)}" for n, what in counts)
        shown.append(text)
        if threads > cores or len(here) > cores:
            crowded.append(host)
    text = "; ".join(dict.fromkeys(shown))
    if not crowded:
        return Finding("cores", "ok", text)
    advice = "fewer ranks a node, or MPISIGN_NUM_THREADS=1 and OMP_NUM_THREADS=1; "
    advice += "where mpirun gives all ranks the same core: --bind-to none"
    return Finding("cores", "doubtful", f"{text}: ranks wait for each other", advice)


def _cache(ranks: Ranks) -> Finding:
    places = list(dict.fromkeys(rank["cache"] for rank in ranks))
    text = "; ".join(places)
    if not any(rank["cupy"] for rank in ranks):
        return Finding("kernel cache", "ok", f"{text}; unused without CuPy")
    if any(rank["cache_on_network"] for rank in ranks):
        advice = (
            "slow, and ranks wait for each other's locks: export CUPY_CACHE_DIR=/tmp/$USER-cupy"
        )
        return Finding("kernel cache", "doubtful", text, advice)
    return Finding("kernel cache", "ok", text)


def _differences(ranks: Ranks) -> Finding:
    different = differences(ranks)
    name = "ranks' differences"
    if not different:
        text = f"none: {len(COMPARED)} facts are the same on all {len(ranks)} ranks"
        return Finding(name, "ok", text)
    parts = [
        f"{fact}: " + "; ".join(f"{value} (ranks {who})" for who, value in values.items())
        for fact, values in different.items()
    ]
    advice = "give every node the same environment, or say in a bug report that they differ"
    return Finding(name, "doubtful", " | ".join(parts), advice, {"differences": different})
