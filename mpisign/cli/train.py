"""``mpisign train``: a classifier by fp32 averaging and by majority vote, side by side."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from pathlib import Path
from typing import Any

from mpisign import launcher, policies
from mpisign.cli import guard, numbers, train_hostile
from mpisign.compressors import COMPRESSORS
from mpisign.training.errors import missing
from mpisign.training.settings import VOTE_LR, Settings
from mpisign.training.ways import WAYS

_NAMES = tuple(WAYS)

_OTHERWISE = ("none", "detox", "robust")  # the ways that average, --detox, --rule

_DESCRIPTION = """\
Train one classifier several ways on the same data and compare: accuracy, bytes, time.

Each rank learns from its own shard. fp32 averages gradients, 32 bits a coordinate; a vote sends
the sign of each rank's momentum, 1 bit, and every rank moves with the majority.

Ranks can be made hostile (--adversaries, --attack), and held off: by the vote itself, by groups
that compute the same and filter each other (--detox), by robust rules on whole gradients
(--rule)."""

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
  mpirun -n 9 mpisign train --adversaries 2 --attack alie --detox 3
                                                           groups of 3 get the same batches: who
                                                           is hostile is seen, and told
  mpirun -n 9 mpisign train --adversaries 2 --attack alie --detox 3 --placement worst
                                                           both in one group
  mpirun -n 9 mpisign train --adversaries 2 --attack ipm --rule multi_krum
  mpirun -n 9 mpisign train --adversaries 2 --attack ipm --rule median --detox 3
  mpirun --mca pml ob1 --mca btl tcp,self -n 4 mpisign train    bytes measured on the wire too
  horovodrun -np 4 --gloo mpisign train                    through Horovod, without MPI
  torchrun --nproc-per-node 4 --no-python mpisign train        through torch.distributed, on Gloo
  srun -n 4 --mpi=pmix mpisign train                       under Slurm
  mpirun -n 4 mpisign train --data ~/fashion-mnist --epochs 2
(more ranks than cores: mpirun --oversubscribe --bind-to none)

the table:
  back door        how often the attack's images get the attack's label; with --attack backdoor...
  sent, received   bytes that mpisign.stats() booked on a rank, its own part not counted; an
                   allreduce is booked as the ring that it is at best
  times fewer      than the fp32 row of the same transport
  on wire          what the kernel counted on the loopback device, per rank, headers and all; only
                   where all traffic is TCP on one machine (Gloo, or btl tcp,self)
  time             gradient, exchange and update, without evaluation and attacks; then its stages on
                   this side of the transport (what Horovod's own thread exchanges is not told)"""


def add_parser(commands: Any) -> None:
    """Adds ``train`` to the subparsers ``commands``."""
    d = Settings()
    parser = commands.add_parser(
        "train",
        help="train a classifier by fp32 averaging and by majority vote, and compare",
        description=_DESCRIPTION,
        epilog=f"{_EPILOG}\n\n{train_hostile.epilog()}",
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
    add("--epochs", type=numbers.positive, help=f"passes over the data (default: {d.epochs})")
    add("--steps", type=numbers.positive, help="steps, instead of --epochs")
    add(
        "--batch-size",
        type=numbers.positive,
        default=d.batch_size,
        help="per rank (default: %(default)s)",
    )
    add(
        "--compression",
        choices=tuple(n for n in COMPRESSORS if n not in _OTHERWISE),
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
    train_hostile.add_options(parser)
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
    names = tuple(n for n in _NAMES if via == "all" or n.startswith(via))
    notes = []
    if via == "all" and importlib.util.find_spec("horovod") is None:
        names = tuple(n for n in names if not n.startswith("horovod"))
        notes.append("Horovod is not installed: its ways are left out")
    asked = Settings(detox=args.detox, rule=args.rule, byzantine_f=args.byzantine_f)
    for name in names:
        if lacking := WAYS[name].lacks(asked):
            notes.append(f"{name} does not go with {lacking}: left out")
    return tuple(n for n in names if not WAYS[n].lacks(asked)), "\n".join(notes)


def _ways(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    for name in names:
        if name not in _NAMES:
            raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(_NAMES)}")
    return tuple(n for n in _NAMES if n in names)


def _seed(text: str) -> Any:
    return numbers.bounded(text, int, 0, 1 << 63, "a number from 0 to 2**63 - 1")


def _rate(text: str) -> Any:
    return numbers.bounded(text, float, 0.0, float("inf"), "a learning rate")


def _momentum(text: str) -> Any:
    return numbers.bounded(text, float, 0.0, 1.0, "a number from 0 to below 1")
