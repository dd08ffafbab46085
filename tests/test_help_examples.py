"""Every example of every --help: the options parse, and all that a run checks first passes."""

from __future__ import annotations

import argparse
import dataclasses
import re
import shlex

import pytest

import mpisign.cli as cli
from mpisign.cli import bench, main
from mpisign.cli import predict as predict_command
from mpisign.cli import train as train_command
from mpisign.cli.parser import RankParser

for needed in ("torch", "sklearn", "rich"):
    pytest.importorskip(needed, reason='pip install "mpisign[train]"')

_RANKS = re.compile(r"(?:-n|-np|--nproc-per-node)[ =](\d+)")


def parsers():
    """Every parser of the command, by its name."""
    made = []

    class Noted(RankParser):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            made.append(self)

    original, cli.RankParser = cli.RankParser, Noted
    try:
        with pytest.raises(SystemExit):
            main(["--version"])
    finally:
        cli.RankParser = original
    return made


def examples():
    """(the arguments behind ``mpisign``, ranks that the launcher starts) of each example."""
    for parser in parsers():
        lines = iter((parser.epilog or "").splitlines())
        if not any(line == "examples:" for line in lines):
            continue
        first = ""
        for line in lines:
            if not line.startswith("  "):
                break
            if line.startswith("   "):
                continue  # of a comment
            command = re.split(r" {2,}", line.strip())[0]
            if command.startswith("... "):
                command = f"{first} {command[4:]}"
            elif parser.prog not in first:
                first = command
            launcher, _, rest = command.partition("mpisign ")
            assert rest, f"{parser.prog}: {line}"
            yield rest, int((_RANKS.findall(launcher) or [1])[-1])


EXAMPLES = list(dict.fromkeys(examples()))


def parsed(words):
    """The options of ``mpisign`` + words, with nothing run."""
    found = []
    original = argparse.ArgumentParser.parse_args

    def parse(self, *args):
        found.append(original(self, *args))
        found[0].run = lambda args: 0
        return found[0]

    argparse.ArgumentParser.parse_args = parse
    try:
        assert main(words) == 0
    finally:
        argparse.ArgumentParser.parse_args = original
    return found[0]


def check_train(args, ranks):
    from mpisign.experiments import data
    from mpisign.experiments.settings import Settings, check

    names = {f.name for f in dataclasses.fields(Settings)}
    ways, _ = train_command._chosen(args)
    given = {k: v for k, v in vars(args).items() if k in names}
    check(Settings(**{**given, "ways": ways}), ranks, data.load(None))


def check_study(args, ranks, folder):
    from mpisign.experiments import file, plan, study

    if args.study == "my-own.toml":
        path = folder / "my-own.toml"
        path.write_text(file.source("batch-sizes"))
        args.study = str(path)
    selected = study._selected(args)
    if getattr(args, "real", False):
        selected = plan.of_ranks(selected, ranks)
    study.check_methods(plan.groups(selected))


def check_bench(args):
    given = {f.name: getattr(args, f.name) for f in dataclasses.fields(args.kind) if f.name in args}
    resolve = {"kernels": bench._kernels, "robust": bench._robust, "detox": bench._detox}
    resolve["training"] = bench._training
    if args.kind.NAME in resolve:
        resolve[args.kind.NAME](args, given)
    more = {"started": "mpi", "rank": 0} if issubclass(args.kind, bench.s.Job) else {}
    given.update(more)
    if args.kind is bench.s.CollectivesSettings:
        given["via"] = args.via or ("mpi",)
    args.kind(**given)


def test_there_are_examples():
    told = {words.split()[0] for words, _ in EXAMPLES}
    commands = {"train", "bench", "predict", "study", "doctor", "completion"}
    assert told == commands and len(EXAMPLES) > 40
    kinds = {words.split()[1] for words, _ in EXAMPLES if words.startswith("bench")}
    assert kinds == {kind.NAME for kind in bench._BENCHES}


def test_every_example_can_be_run(tmp_path):
    wrong = []
    for words, ranks in EXAMPLES:
        try:
            args = parsed(shlex.split(words))
            if words.startswith("train") and "--data" not in words:
                check_train(args, ranks)
            elif words.startswith("study ") and " list" not in words:
                check_study(args, ranks, tmp_path)
            elif words.startswith("bench"):
                check_bench(args)
            elif words.startswith("predict"):
                predict_command.settings_of(args)
        except (Exception, SystemExit) as error:
            wrong.append(f"mpisign {words}: {error}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("words", ["study list", "study show batch-sizes --toml"])
def test_the_quick_ones_run(words, capsys):
    assert words in {w for w, _ in EXAMPLES}
    assert main(words.split()) == 0 and "batch" in capsys.readouterr().out
