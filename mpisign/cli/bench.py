"""``mpisign bench``: what this machine, and the wire between its ranks, can do."""

from __future__ import annotations

from typing import Any

from mpisign.cli import bench_collectives, bench_detox, bench_kernels, bench_robust, bench_training


def add_parser(commands: Any) -> None:
    """Adds ``bench`` to the subparsers ``commands``."""
    bench = commands.add_parser(
        "bench",
        help="measure this machine: kernels, collectives, robust rules, DETOX, training",
        description="Measure what mpisign does on this machine.",
        epilog="mpisign bench WHAT --help tells more about each.",
    )
    kinds = bench.add_subparsers(metavar="WHAT", required=True)
    for kind in (bench_kernels, bench_collectives, bench_robust, bench_detox, bench_training):
        kind.add_parser(kinds)
