"""``mpisign train``: a classifier by fp32 averaging and by majority vote, compared."""

from __future__ import annotations

import argparse
import importlib.util
import sys
import textwrap
from collections.abc import Iterable
from typing import Any

from mpisign import launcher, robust
from mpisign.attacks import ATTACKS
from mpisign.cli import guard
from mpisign.cli.parser import add_fields
from mpisign.experiments.errors import missing
from mpisign.experiments.settings import Settings
from mpisign.experiments.variants import VARIANTS
from mpisign.experiments.world import started_by_gloo, started_by_torch

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
  mpirun -n 4 mpisign train --tensorboard runs             curves for tensorboard --logdir runs
  mpirun -n 4 mpisign train --adversaries 1                one rank of four sends -100 g
  mpirun -n 7 mpisign train --adversaries 3 --attack sign-flip
  mpirun -n 9 mpisign train --adversaries 2 --attack alie --detox 3
                                                           groups of 3 get the same batches, and
                                                           the table of suspects says who is bad
  mpirun -n 9 mpisign train --adversaries 2 --attack alie --detox 3 --placement worst
                                                           both in one group
  mpirun -n 9 mpisign train --adversaries 2 --attack ipm --rule multi_krum
  mpirun -n 9 mpisign train --adversaries 2 --attack ipm --rule median --detox 3
  mpirun --mca pml ob1 --mca btl tcp,self -n 4 mpisign train    bytes measured on the wire too
  horovodrun -np 4 --gloo mpisign train                    through Horovod, without MPI
  torchrun --nproc-per-node 4 --no-python mpisign train        through torch.distributed, on Gloo
  srun -n 4 --mpi=pmix mpisign train                       under Slurm
  mpirun -n 4 mpisign train --data fashion-mnist           apt-get install dataset-fashion-mnist
  mpirun -n 4 mpisign train --data ~/cifar-10 --epochs 2   published files in a folder
(more ranks than cores: mpirun --oversubscribe --bind-to none)

the table:
  back door        how often the attack's images get the attack's label; with --attack backdoor...
  sent, received   bytes that mpisign.stats() counts on a rank, without its own part; an
                   allreduce counts as the ring that it is at best
  times fewer      than the fp32 row of the same transport
  on wire          what the kernel counted on the loopback device, per rank, headers and all; only
                   where all traffic is TCP on one machine (Gloo, or btl tcp,self)
  time             gradient, exchange and update, without evaluation and attacks; then its stages on
                   this side of the transport (Horovod's own thread is not measured)

the table of suspects (--detox; docs/detox.md):
  differs          how many of its votes were not its group's
  flagged          in how many tallies it was far from its group and nobody else of it was
  odd one out      in how many draws of the groups that held for the second half of the draw
  verdict          suspect: in over half of its draws, of which those count less that it shared with
                   other suspects; unclear: in over a third
  in truth         who was made hostile

attacks (--attack; docs/trust.md):
%s

rules (--rule; docs/trust.md), also joined, as nnm+krum:
%s"""


_ALONE = """\
Training of one rank, as no launcher started this: there is nobody to vote with. Several ranks:
    mpirun -n 4 mpisign train    (or torchrun, horovodrun, srun: see --help)"""


def add_parser(commands: Any) -> None:
    """Adds ``train`` to the subparsers ``commands``."""
    parser = commands.add_parser(
        "train",
        help="train a classifier by fp32 averaging and by majority vote, and compare",
        description=_DESCRIPTION,
        epilog=_EPILOG % (_listed(ATTACKS), _listed([*robust.MIXINGS, *robust.RULES])),
    )
    parser.add_argument(
        "--via",
        choices=("mpi", "torch", "horovod", "all"),
        help="transports (default: mpi; torch under torchrun, horovod under horovodrun --gloo)",
    )
    add_fields(parser, Settings)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Trains; the exit status."""
    signals = guard.end_on_signals(speaker=not launcher.rank())

    def job() -> int:
        try:
            from mpisign.experiments import compare  # torch: not for --help
        except ModuleNotFoundError as e:
            if not launcher.rank():
                print(f"mpisign: {missing(e.name or 'a package', e)}", file=sys.stderr)
            return 2
        ways, note = _chosen(args)
        options = {k: v for k, v in vars(args).items() if k not in ("via", "run", "command")}
        if launcher.launched_size() is None:
            note = "\n".join(filter(None, [note, _ALONE]))
        settings = Settings(**{**options, "ways": ways})
        return compare.run(settings, note, args.command, signals)

    return guard.abort_on_error(job, launcher.rank, signals)


def _chosen(args: argparse.Namespace) -> tuple[tuple[str, ...], str]:
    """The names of the variants, and a note on those left out."""
    if args.ways:
        return args.ways, ""
    own = "torch" if started_by_torch() else "horovod" if started_by_gloo() else "mpi"
    via = args.via or own
    names = [n for n in VARIANTS if via == "all" or n.startswith(via)]
    notes = []
    if via == "all" and importlib.util.find_spec("horovod") is None:
        names = [n for n in names if not n.startswith("horovod")]
        notes.append("Horovod is not installed: its ways are left out")
    asked = Settings(detox=args.detox, rule=args.rule, byzantine_f=args.byzantine_f)
    lacking = {n: VARIANTS[n].lacks(asked) for n in names}
    notes += [f"{n} does not go with {what}: left out" for n, what in lacking.items() if what]
    return tuple(n for n in names if not lacking[n]), "\n".join(notes)


def _listed(names: Iterable[str]) -> str:
    return textwrap.fill(
        ", ".join(names), 98, initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False
    )
