"""``mpisign predict``: will a vote pay on a cluster?"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from typing import Any

from mpisign import launcher
from mpisign.cli import bench, guard
from mpisign.predict.settings import PredictSettings

_DESCRIPTION = """\
Predict the seconds of a training step on a cluster: fp32 and fp16 ring allreduce, votes by
allgather, alltoall and over nodes (hierarchical), ef_sign, PowerSGD. Says where a vote pays, where
it does not, by how much, and why.

The model is that of Agarwal et al. 2021 (arXiv 2103.00543). Its quantities are measured on this
machine in some seconds, or read from results of mpisign bench; only the shapes of the models'
parameters are built in."""

_EPILOG = """\
what is measured:
  kernels      packing, counting, unpacking, casts, sums, PowerSGD's work: on --device; by all ranks
               at once where a launcher started several
  network      latency and bandwidth between the nodes of the job; without a launcher the latency
               of this machine's loopback, and bandwidths are those asked for
  the step     --script: runs FILE on one process until its fourth optimizer.step() and takes the
               median of the last three steps, and backward from the first gradient to the last.
               The script needs no change; it must train with a torch optimizer, with the batch of
               one rank. Or --compute-ms

the tables:
  x fp16       times less time than the 16-bit ring, the baseline
  gain         of the best vote, than the faster of the two rings
  computes     packing, counting, unpacking; casts and sums
  wire         the network's time; hidden: what --overlap covers by backward
  sent         by a rank, in a step

examples:
  mpisign predict --model resnet50 --compute-ms 120 --bandwidth 1gbit,10gbit --latency 30us
  mpisign predict --model llama-8b --ranks 16,64,256 --ranks-per-node 8 --bandwidth 400gbit
  mpisign predict --model 350M --ranks 32 --compute-ms 400 --overlap --plot steps.png
  mpisign predict --script 'train.py --batch-size 32' --ranks 4,16 --bandwidth 1gbit
  mpirun -n 4 mpisign predict --model bert-large          between the nodes of your own job
  mpisign bench kernels --json kernels.json
  mpirun -n 4 mpisign bench collectives --sizes 6.5M --json network.json
  mpisign predict --from kernels.json --from network.json --json steps.json --markdown steps.md

How well it predicts, and its limits: docs/performance.md. mpisign bench predict compares it with
measured steps.

exit status: 0; 2 for what you can put right"""


def add_parser(commands: Any) -> None:
    """Adds ``predict`` to the subparsers ``commands``."""
    parser = commands.add_parser(
        "predict",
        help="will a vote pay on your cluster: seconds per step, and why",
        description=_DESCRIPTION,
        epilog=_EPILOG,
    )
    bench.add_options(parser, PredictSettings)
    parser.set_defaults(run=run, parser=parser)


def run(args: argparse.Namespace) -> int:
    """Measures and predicts; the exit status."""
    settings = settings_of(args)
    if settings.started:
        guard.end_on_signals(speaker=not settings.rank)
        return guard.abort_on_error(lambda: _run(settings, args.command), bench.rank)
    from mpisign.experiments.errors import SettingsError

    try:
        return _run(settings, args.command)
    except KeyboardInterrupt:
        print("\nmpisign: interrupted", file=sys.stderr)
        return 130
    except SettingsError as error:
        return int(args.parser.error(str(error)))


def settings_of(args: argparse.Namespace) -> PredictSettings:
    """The options; the parser's error for those that exclude each other."""
    given = {f.name: getattr(args, f.name) for f in dataclasses.fields(PredictSettings)
             if f.name in args}  # fmt: skip
    for option in ("model", "compute_ms", "backward_ms"):
        if args.script and given[option] is not None:
            name = f"--{option.replace('_', '-')}"
            args.parser.error(f"argument {name}: not allowed with --script, which measures it")
    if args.backward_ms is not None and args.backward_ms > (args.compute_ms or 0.0):
        args.parser.error("argument --backward-ms: must be at most --compute-ms, of which it is")
    several = (launcher.launched_size() or 1) > 1 or bench.started_by() == "torch"
    started = (bench.started_by() or "") if several else ""
    return PredictSettings(**given, started=started, rank=bench.rank() or 0)


def _run(settings: PredictSettings, command: str) -> int:
    from mpisign.predict.run import run as predict

    return predict(settings, command)
