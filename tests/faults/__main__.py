"""``scripts/check-faults``: draws jobs, runs them one after another, and tells how each ended."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path

from faults import launch, plan
from faults.kinds import ENDS, FRONTS, known
from faults.plan import Job
from faults.verdict import WELL, WORDS, Record, Verdict, judge

_DESCRIPTION = """\
Run jobs of two to four real ranks, in each of which one rank does something wrong: it dies, stops,
comes late, calls something else, sends garbage, ... Each job must end within its time, leave no
process, give no wrong result, and any error must name the rank, on all ranks."""

_EPILOG = f"""\
outcomes:
  ended well    as it had to, see --list
  wrong result  a rank has other results than it should, or none and no error
  hang          it had to be killed
  orphan        a process of it lives on
  names nobody  an error that does not name the rank, or names another

front ends: {", ".join(FRONTS)}
A job's line names kind, front end and wire. A bad one is printed with the command that runs it
again alone, and with what it printed; ranks then print what they come to.

examples:
  scripts/check-faults                              150 jobs, 20 to 25 minutes on 2 cores
  scripts/check-faults --short                      ten, a minute
  scripts/check-faults --only stopped --jobs 5      one kind, five places and sizes
  scripts/check-faults --only 'late ddp torch' --jobs 1
  scripts/check-faults --list                       all kinds
  scripts/check-faults --self-test                  planted faults, all of which must be found

exit status: 0 all ended well; 1 some did not; 2 wrong arguments; 130 interrupted"""


def arguments() -> argparse.Namespace:
    """Of the command line."""
    parser = argparse.ArgumentParser(
        prog="scripts/check-faults",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--seed", type=int, default=0, help="of the drawing (default: 0)")
    parser.add_argument("--jobs", type=int, default=150, help="how many (default: 150)")
    parser.add_argument("--skip", type=int, default=0, help="leave out the first SKIP of them")
    parser.add_argument("--only", metavar="KIND", help="of one kind, or 'KIND FRONT WIRE'")
    parser.add_argument("--short", action="store_true", help="the ten of CI")
    parser.add_argument("--self-test", action="store_true", help="planted faults")
    parser.add_argument("--list", action="store_true", help="print all kinds and how they must end")
    about = "seconds that ranks wait for each other; more where cores are busy (default: 4)"
    parser.add_argument("--timeout", type=int, default=4, metavar="S", help=about)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every job's outcome")
    args = parser.parse_args()
    if args.only is not None:
        name, *place = args.only.split()
        if name not in known():
            parser.error(f"--only: no kind {name!r}: see --list")
        if place and (len(place) != 2 or not known()[name].fits(*place)):
            parser.error(f"--only: {name} is not done at {' '.join(place)!r}")
    launch.SETTINGS["MPISIGN_TIMEOUT"] = str(args.timeout)
    if args.jobs < 1 or args.timeout < 2:
        parser.error("--jobs must be at least 1, and --timeout at least 2")
    return args


def listed() -> None:
    """Prints all kinds."""
    for end, about in ENDS.items():
        print(f"{end}: {about}")
        for kind in known().values():
            if kind.ends == end and not kind.planted:
                print(f"  {kind.name:38} {kind.about}")


def drawn(args: argparse.Namespace) -> list[Job]:
    """The jobs that were asked for."""
    found = launch.wires()
    for wire, missing in found.items():
        if missing:
            print(f"check-faults: no jobs over {wire}: {missing} is not here", file=sys.stderr)
    wires = [wire for wire, missing in found.items() if not missing]
    if args.self_test:
        return plan.planted(args.seed)
    if args.short:
        return plan.short(args.seed, wires)
    return plan.plan(args.seed, args.jobs, wires, args.only)[args.skip :]


def one(job: Job) -> tuple[Verdict, launch.Ended]:
    """Runs a job and judges it."""
    with tempfile.TemporaryDirectory(prefix="check-faults-") as folder:
        ended = launch.run(job, Path(folder))
        records = [Record.read(Path(folder) / f"rank-{r}") for r in range(job.ranks)]
    return judge(job, known()[job.kind], ended, records), ended


def tell(job: Job, verdict: Verdict, ended: launch.Ended) -> None:
    """What a person needs of a job that ended badly."""
    print(f"    {verdict.why}\n    {launch.shown(job)}")
    for line in ended.output.splitlines()[-12:]:
        print(f"    | {line[:200]}")


def table(results: list[tuple[Job, Verdict, float]]) -> None:
    """Kinds against outcomes."""
    counts = Counter((job.kind, verdict.word) for job, verdict, _ in results)
    print(f"\n{'':38}" + "".join(f"{word:>14}" for word in WORDS))
    for kind in dict.fromkeys(job.kind for job, _, _ in results):
        print(f"{kind:38}" + "".join(f"{counts[kind, w] or '':>14}" for w in WORDS))
    total = Counter(verdict.word for _, verdict, _ in results)
    print(f"{f'{len(results)} jobs':38}" + "".join(f"{total[w]:>14}" for w in WORDS))


def main() -> int:
    """The exit status."""
    args = arguments()
    if args.list:
        try:
            listed()
            sys.stdout.flush()
        except BrokenPipeError:  # by head or a pager
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 0
    jobs, results, began = drawn(args), [], time.monotonic()
    try:
        for number, job in enumerate(jobs, 1):
            print(f"{number:3} of {len(jobs)}: {job.name}, {job.ranks} ranks", end="", flush=True)
            verdict, ended = one(job)
            results.append((job, verdict, ended.seconds))
            print(f": {verdict.word}, {ended.seconds:.1f} s", flush=True)
            if verdict.word != WELL and not args.self_test:
                tell(job, verdict, ended)
    except KeyboardInterrupt:
        print("\ncheck-faults: interrupted", file=sys.stderr)
        return 130
    finally:
        if args.json is not None:
            rows = [
                {**asdict(job), "outcome": v.word, "why": v.why, "seconds": s, "command": c}
                for job, v, s in results
                for c in [launch.shown(job)]
            ]
            args.json.write_text(json.dumps(rows, indent=1) + "\n")
    table(results)
    minutes = (time.monotonic() - began) / 60
    bad = [job.name for job, verdict, _ in results if verdict.word != WELL]
    if args.self_test:
        missed = [job.name for job, verdict, _ in results if verdict.word == WELL]
        print(f"planted faults not found: {', '.join(missed) or 'none'}")
        return bool(missed)
    print(f"seed {args.seed}, {minutes:.1f} minutes: {len(bad)} of {len(jobs)} ended badly")
    return bool(bad)


if __name__ == "__main__":
    sys.exit(main())
