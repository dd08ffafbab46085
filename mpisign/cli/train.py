"""``mpisign train``: a classifier by fp32 averaging and by majority vote, side by side."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from pathlib import Path
from typing import Any

from mpisign import launcher, policies
from mpisign.cli import guard
from mpisign.compressors import COMPRESSORS
from mpisign.training.errors import missing
from mpisign.training.settings import ATTACKS, VOTE_LR, Settings

_NAMES = (
    "mpi-fp32",
    "mpi-vote",
    "torch-fp32",
    "torch-vote",
    "horovod-fp32",
    "horovod-counters",
    "horovod-planes",
)

_DESCRIPTION = """\
Train one classifier several ways on the same data and compare: accuracy, bytes, time.

Each rank learns from its own shard. fp32 averages gradients, 32 bits a coordinate; a vote sends
the sign of each rank's momentum, 1 bit, and every rank moves with the majority."""

_EPILOG = """\
ways (--ways takes any of them; --via mpi, torch or horovod those of one transport):
  mpi-fp32          gradients averaged in fp32 by MPI's allreduce
  mpi-vote          majority vote of signs over MPI: mpisign.DistributedOptimizer
  torch-fp32        the same two over torch.distributed, on Gloo
  torch-vote
  horovod-fp32      hvd.DistributedOptimizer as it comes
  horovod-counters  ... with compression=mpisign.horovod.Compression.signum()
  horovod-planes    ... with compression=mpisign.horovod.Compression.signum(named_parameters)

examples:
  mpirun -n 4 mpisign train                                the digits, 4 ranks
  mpirun -n 4 mpisign train --compression ef_sign          another compressor
  mpirun -n 4 mpisign train --via all --plot curves.png    every way, and a picture
  mpirun -n 4 mpisign train --adversaries 1                one rank of four sends -100 g
  mpirun -n 7 mpisign train --adversaries 3 --attack sign-flip
  mpirun --mca pml ob1 --mca btl tcp,self -n 4 mpisign train    bytes measured on the wire too
  horovodrun -np 4 --gloo mpisign train                    through Horovod, without MPI
  torchrun --nproc-per-node 4 --no-python mpisign train        through torch.distributed, on Gloo
  srun -n 4 --mpi=pmix mpisign train                       under Slurm
  mpirun -n 4 mpisign train --data ~/fashion-mnist --epochs 2
(more ranks than cores: mpirun --oversubscribe --bind-to none)

the table:
  sent, received   bytes that mpisign.stats() booked on a rank, its own part not counted; an
                   allreduce is booked as the ring that it is at best
  times fewer      than the fp32 row of the same transport
  on wire          what the kernel counted on the loopback device, per rank, headers and all; only
                   where all traffic is TCP on one machine (Gloo, or btl tcp,self)
  time             gradient, exchange and update, without evaluation; then its stages on this side
                   of the transport (what Horovod's own thread exchanges is not told)"""


def add_parser(commands: Any) -> None:
    """Adds ``train`` to the subparsers ``commands``."""
    d = Settings()
    parser = commands.add_parser(
        "train",
        help="train a classifier by fp32 averaging and by majority vote, and compare",
        description=_DESCRIPTION,
        epilog=_EPILOG,
    )
    add = parser.add_argument
    add(
        "--via",
        choices=("mpi", "torch", "horovod", "all"),
        help="transports (default: mpi; torch under torchrun, horovod under horovodrun --gloo)",
    )
    add("--ways", metavar="A,B", type=_ways, help="these ways only, separated by commas")
    add(
        "--data",
        metavar="DIR",
        type=Path,
        help="Fashion-MNIST (IDX, gzipped or not) or CIFAR-10 (binary or Python version) "
        "in DIR (default: scikit-learn's digits)",
    )
    add("--epochs", type=_positive, help=f"passes over the data (default: {d.epochs})")
    add("--steps", type=_positive, help="steps, instead of --epochs")
    add(
        "--batch-size", type=_positive, default=d.batch_size, help="per rank (default: %(default)s)"
    )
    add(
        "--compression",
        choices=tuple(n for n in COMPRESSORS if n != "none"),
        default=d.compression,
        metavar="NAME",
        help="what the ways that vote send: %(choices)s (default: %(default)s)",
    )
    add(
        "--lr",
        type=_rate,
        help=f"of votes (default: {VOTE_LR}; where updates are of a gradient's size, --fp32-lr / "
        "(1 - momentum): averages have SGD's momentum)",
    )
    add("--fp32-lr", type=_rate, default=d.fp32_lr, help="of averaging (default: %(default)s)")
    add("--momentum", type=_momentum, default=d.momentum, help="of all (default: %(default)s)")
    add("--seed", type=_seed, default=d.seed, help="of model and batches (default: %(default)s)")
    add(
        "--zeros",
        choices=policies.ZEROS,
        default=d.zeros,
        help="what an exact zero votes (default: %(default)s)",
    )
    add(
        "--ties",
        choices=policies.TIES,
        default=d.ties,
        help="what a tie becomes (default: %(default)s)",
    )
    add(
        "--algorithm",
        choices=policies.ALGORITHMS,
        default=d.algorithm,
        help="of mpi-vote and torch-vote (default: %(default)s)",
    )
    add(
        "--adversaries",
        metavar="K",
        type=_count,
        default=0,
        help="make the last K ranks hostile (default: %(default)s)",
    )
    add(
        "--attack",
        choices=tuple(ATTACKS),
        default=d.attack,
        help="what they send: -g or -100 g (default: %(default)s)",
    )
    add("--json", metavar="FILE", type=Path, help="write everything measured to FILE")
    add("--plot", metavar="FILE.png", type=Path, help="draw the training curves into FILE")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Trains; the exit status."""
    guard.end_on_signals(speaker=not launcher.rank())

    def job() -> int:
        try:
            from mpisign.training import job  # torch: not for --help
        except ModuleNotFoundError as e:
            if not launcher.rank():
                print(f"mpisign: {missing(e.name or 'a package', e)}", file=sys.stderr)
            return 2
        ways, note = _chosen(args)
        options = {
            k: v
            for k, v in vars(args).items()
            if k not in ("via", "run", "command") and v is not None
        }
        return job.run(Settings(**{**options, "ways": ways}), note)

    return guard.abort_on_error(job, launcher.rank)


def _chosen(args: argparse.Namespace) -> tuple[tuple[str, ...], str]:
    """The names of the ways, and a note on those left out."""
    if args.ways:
        return args.ways, ""
    from mpisign.training.world import started_by_gloo, started_by_torch

    own = "torch" if started_by_torch() else "horovod" if started_by_gloo() else "mpi"
    via = args.via or own
    if via == "all" and importlib.util.find_spec("horovod") is None:
        left = tuple(n for n in _NAMES if not n.startswith("horovod"))
        return left, "Horovod is not installed: its ways are left out"
    return tuple(n for n in _NAMES if via == "all" or n.startswith(via)), ""


def _ways(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    for name in names:
        if name not in _NAMES:
            raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(_NAMES)}")
    return tuple(n for n in _NAMES if n in names)


def _number(text: str, kind: type, low: float, high: float, what: str) -> Any:
    try:
        value = kind(text)
    except ValueError:
        value = None
    if value is None or not low <= value < high:
        raise argparse.ArgumentTypeError(f"{text!r} is not {what}")
    return value


def _positive(text: str) -> Any:
    return _number(text, int, 1, 1 << 62, "a positive number")


def _count(text: str) -> Any:
    return _number(text, int, 0, 1 << 62, "a number from 0")


def _seed(text: str) -> Any:
    return _number(text, int, 0, 1 << 63, "a number from 0 to 2**63 - 1")


def _rate(text: str) -> Any:
    return _number(text, float, 0.0, float("inf"), "a learning rate")


def _momentum(text: str) -> Any:
    return _number(text, float, 0.0, 1.0, "a number from 0 to below 1")
