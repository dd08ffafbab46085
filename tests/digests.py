"""Digests of every result, state and counted byte, to compare two versions of this package.

    python tests/digests.py --all FOLDER [--starts mpi-2,torch-3]    a JSON file for each launcher
    mpirun -n P python -m mpi4py tests/digests.py --out FILE   one launcher; also torchrun
    python tests/digests.py --threads P --out FILE             ranks that are threads
    python tests/digests.py --compare A B                      files or folders; exits 1 if unlike

``--only TEXT`` runs the cases whose names contain it. The script uses names that users import, and
no others, so that it runs unchanged on both versions; PYTHONPATH says which one.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import digest_cases
import numpy as np
import torch

import mpisign

STARTS = "mpi-1,mpi-2,mpi-3,mpi-4,torch-2,torch-3,threads-1,threads-5"


@dataclass
class World:
    """The ranks of a case. ``kind``: "mpi", "torch" or "threads"."""

    comm: mpisign.Communicator
    kind: str
    renew: Any = None  # another communicator, after an error that broke this one

    @property
    def rank(self) -> int:
        return self.comm.rank

    @property
    def size(self) -> int:
        return self.comm.size


def update(digest: Any, x: Any) -> None:
    """Feeds arrays, tensors, containers and plain values, with dtypes and shapes, to a hash."""
    if isinstance(x, torch.Tensor):
        x = x.full_tensor() if hasattr(x, "full_tensor") else x
        digest.update(f"{x.dtype}{tuple(x.shape)}".encode())
        flat = x.detach().reshape(-1).clone(memory_format=torch.contiguous_format)
        digest.update(flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b"")
    elif isinstance(x, np.ndarray):
        digest.update(f"{x.dtype}{x.shape}".encode() + np.ascontiguousarray(x).tobytes())
    elif isinstance(x, dict):
        for key in sorted(x, key=str):
            digest.update(repr(key).encode())
            update(digest, x[key])
    elif isinstance(x, (list, tuple)):
        digest.update(f"{len(x)}:".encode())
        for item in x:
            update(digest, item)
    else:
        digest.update(repr(x).encode())


def digest_of(x: Any) -> str:
    digest = hashlib.blake2b(digest_size=8)
    update(digest, x)
    return digest.hexdigest()


def moved() -> list[list[int]]:
    """Bytes sent and received by stage: pack, exchange, vote, unpack."""
    return [[int(s["sent"]), int(s["received"])] for s in mpisign.stats().as_dict().values()]


def attempt(case: Any, world: World) -> str:
    renew = world.renew
    try:
        return digest_of(case(world))
    except Exception as error:
        if world.renew and "broke off earlier" in str(error):  # an earlier case's error
            world.comm, world.renew = world.renew(), None
            found = attempt(case, world)
            world.renew = renew
            return found
        return f"{type(error).__name__}: {error}"


def run_all(world: World, gather: Any, only: str) -> dict[str, Any]:
    """{case: {"digests": a rank's each, or one; "bytes": likewise}} on rank 0."""
    table: dict[str, Any] = {}
    for name, case in digest_cases.cases(world.kind, world.size):
        if only in name:
            mpisign.stats().reset()
            own = attempt(case, world)
            table[name] = own, moved()
            if ":" in own and world.rank == 0 and os.environ.get("DIGESTS_VERBOSE"):
                print(name, own, flush=True)
    ranks = gather(table)
    if world.rank:
        return {}
    return {name: entry([r[name] for r in ranks]) for name in table}


def entry(of_ranks: list[tuple[str, Any]]) -> dict[str, Any]:
    digests, counted = [d for d, _ in of_ranks], [b for _, b in of_ranks]
    return {
        "digests": digests[0] if len(set(digests)) == 1 else digests,
        "bytes": counted[0] if all(b == counted[0] for b in counted) else counted,
    }


def in_threads(size: int, only: str) -> dict[str, Any]:
    try:
        from mpisign import simulation
    except ImportError:  # the tree of before: its digests are compared with these
        from mpisign.transports import threads as simulation

    table = {}
    for name, case in digest_cases.cases("threads", size):
        if only in name:
            mpisign.stats().reset()
            nodes = digest_cases.nodes_of(size)
            found = simulation.run(
                size, lambda comm, case=case: attempt(case, World(comm, "threads")), nodes=nodes
            )
            table[name] = entry([(d, moved()) for d in found])
    return table


def launched(only: str) -> dict[str, Any]:
    """The cases of the launcher that started this process."""
    import torch.distributed as dist

    if "TORCHELASTIC_RUN_ID" in os.environ:
        dist.init_process_group("gloo")
        size = dist.get_world_size()

        def renew() -> Any:
            return mpisign.Communicator("torch", nodes=digest_cases.nodes_of(size))

        def gather(x: Any) -> list[Any]:
            ranks = [None] * size
            dist.all_gather_object(ranks, x)
            return ranks

        table = run_all(World(renew(), "torch", renew), gather, only)
    else:
        from mpi4py import MPI

        world = MPI.COMM_WORLD
        folder = world.bcast(tempfile.mkdtemp() if world.rank == 0 else None)
        store = dist.FileStore(f"{folder}/store", world.size)
        dist.init_process_group("gloo", store=store, rank=world.rank, world_size=world.size)

        def renew() -> Any:
            return mpisign.Communicator(world, nodes=digest_cases.nodes_of(world.size))

        table = run_all(World(renew(), "mpi", renew), world.allgather, only)
    dist.barrier()
    dist.destroy_process_group()
    return table


def every_launcher(folder: Path, names: list[str], only: str) -> int:
    folder.mkdir(parents=True, exist_ok=True)
    here, status = str(Path(__file__).resolve()), 0
    bins = str(Path(sys.executable).parent)
    env = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
    env |= {"PATH": f"{bins}{os.pathsep}{env['PATH']}", "MPISIGN_TIMEOUT": "60"}
    env |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    for name in names:
        launcher, n = name.split("-")
        command = {
            "mpi": ["mpirun", "-n", n, "--oversubscribe", "--bind-to", "none", sys.executable],
            "torch": ["torchrun", "--nproc-per-node", n],
            "threads": [sys.executable],
        }[launcher]
        command += {"mpi": ["-m", "mpi4py", here], "torch": [here]}.get(
            launcher, [here, "--threads", n]
        )
        more = ["--out", str(folder / f"{name}.json"), "--only", only]
        try:
            rc = subprocess.run([*command, *more], env=env, timeout=1800).returncode
        except subprocess.TimeoutExpired:
            rc = 124
        print(f"{name}: {'ok' if rc == 0 else f'exit status {rc}'}", flush=True)
        status = status or rc
    return status


def compare(a: Path, b: Path) -> int:
    """Prints what differs; 1 if anything does."""
    if a.is_dir():
        names = sorted({p.name for p in [*a.glob("*.json"), *b.glob("*.json")]})
        return max([compare(a / name, b / name) for name in names], default=1)
    tables = [json.loads(p.read_text()) if p.exists() else {} for p in (a, b)]
    unlike = 0
    for name in sorted({*tables[0], *tables[1]}):
        one, other = (t.get(name, {}) for t in tables)
        for what in ("digests", "bytes"):
            if one.get(what) != other.get(what):
                unlike += 1
                print(f"{a.name} {name} {what}: {one.get(what)} != {other.get(what)}")
    print(f"{a.name}: {len(tables[0])} and {len(tables[1])} cases, {unlike} differences")
    return int(unlike > 0 or not tables[0])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--all", type=Path, metavar="FOLDER")
    parser.add_argument("--starts", default=STARTS)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--only", default="")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--compare", nargs=2, type=Path)
    args = parser.parse_args()
    if args.compare:
        return compare(*args.compare)
    if args.all:
        return every_launcher(args.all, args.starts.split(","), args.only)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    table = in_threads(args.threads, args.only) if args.threads else launched(args.only)
    if table and args.out:
        args.out.write_text(json.dumps(table, indent=0, sort_keys=True) + "\n")
    elif table:
        print(json.dumps(table, indent=0, sort_keys=True))
    return 0


if __name__ == "__main__":
    sys.exit(main())
