"""The options of ``mpisign train``, declared once: defaults, help, and the cells they mean."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from mpisign import attacks, policies, robust
from mpisign.compressors import COMPRESSORS, Lion, Muon, Sign, Signum
from mpisign.detox import Groups
from mpisign.detox.worst_case import worst_case
from mpisign.experiments import compression
from mpisign.experiments.cell import GROUPED, Cell
from mpisign.experiments.errors import SettingsError
from mpisign.experiments.variants import VARIANTS

if TYPE_CHECKING:
    from mpisign.communicator import Communicator
    from mpisign.experiments.data import Dataset

Placement = Literal["spread", "packed", "worst"]
Order = Literal["random", "flipflop"]

#: The default learning rate of votes.
VOTE_LR = 2e-3
#: How long a training is by default: so many epochs, or so many steps where those are fewer.
EPOCHS = 15
MOST_STEPS = 2000
_EVALUATIONS = 25
#: The variants that average, --detox, --rule; and what must hear where epochs end.
_OTHERWISE = ("none", GROUPED, "robust", "accordion")


def option(default: Any, help: str, type: str = "", metavar: str = "", **more: Any) -> Any:
    """A field that is also a command-line option, see ``cli.parser.add_fields``."""
    given = {"help": help, "type": type, "metavar": metavar, **more}
    return field(default=default, metadata={k: v for k, v in given.items() if v})


_hostile = partial(option, group="hostile ranks")
_defence = partial(option, group="what holds them off")


@dataclass(frozen=True)
class Settings:
    """The options, resolved. ``batch_size`` is per rank; ``steps`` wins over ``epochs``."""

    ways: tuple[str, ...] = option((), "these ways only, separated by commas", "ways", "A,B")
    data: Path | None = option(
        None,
        "fashion-mnist, as Debian's package dataset-fashion-mnist installs it, or Fashion-MNIST "
        "(IDX, gzipped or not) or CIFAR-10 (binary or Python version) in DIR (default: "
        "scikit-learn's digits)",
        metavar="DIR",
    )
    epochs: int | None = option(
        None,
        f"passes over the data (default: {EPOCHS}, but no more than {MOST_STEPS} steps)",
        "positive",
    )
    steps: int | None = option(None, "steps, instead of --epochs", "positive")
    batch_size: int = option(16, "per rank", "positive")
    compression: str = option(
        "signum",
        "what the ways that vote send: %(choices)s",
        metavar="NAME",
        choices=tuple(n for n in COMPRESSORS if n not in _OTHERWISE),
    )
    lr: float | None = option(
        None,
        f"of votes (default: {VOTE_LR}; where updates are of a gradient's size, --fp32-lr / "
        "(1 - momentum): averages have SGD's momentum)",
        "rate",
    )
    fp32_lr: float = option(0.1, "of averaging", "rate")
    momentum: float = option(0.9, "of all", "momentum")
    seed: int = option(0, "of model and batches", "seed")
    zeros: policies.Zeros = option(
        policies.DEFAULT_ZEROS, "what an exact zero votes", choices=policies.ZEROS
    )
    ties: policies.Ties = option(policies.DEFAULT_TIES, "what a tie becomes", choices=policies.TIES)
    algorithm: policies.Algorithm = option(  # bytes are compared: auto goes by time
        "alltoall", "of mpi-vote and torch-vote", choices=policies.ALGORITHMS
    )
    adversaries: int = _hostile(0, "make the last K ranks hostile", "count", "K")
    attack: str = _hostile(
        "reverse",
        "what they do, see below (default: %(default)s, which sends -100 g)",
        "attack",
        "NAME",
    )
    suspects: bool | None = _hostile(
        None, "list who differs from its group, with --detox (default: if anybody is conspicuous)"
    )
    detox: int | None = _defence(
        None,
        "groups of R ranks, odd, that get the same batches; each votes first, then the groups",
        "positive",
        "R",
    )
    placement: Placement = _defence(
        "spread",
        "a group's members on different nodes, on one, or ceil(R / 2) hostile ranks to a "
        "group: the worst that can happen",
        choices=get_args(Placement),
    )
    reshuffle_every: int = _defence(
        1,
        "epochs after which spread groups are drawn anew, 0: never; for some tens of steps "
        "afterwards members' momenta differ, and so do honest votes",
        "count",
        "E",
    )
    order: Order = _defence(
        "random",
        "of batches in groups; flipflop: every second epoch backwards",
        choices=get_args(Order),
    )
    rule: str | None = _defence(
        None,
        "the ways that vote send whole gradients instead, in fp32, and this rule aggregates "
        "them, see below; with --detox it goes over one gradient of each group",
        "rule",
        "NAME",
    )
    rule_f: int | None = _defence(
        None,
        "hostile gradients that the rule must tolerate (default: as many as --adversaries can "
        "send, or own by a group's majority)",
        "count",
        "F",
    )
    byzantine_f: int = _defence(
        0, "votes tolerate F ranks that send false tallies too", "count", "F"
    )
    json: Path | None = option(None, "write everything measured to FILE", metavar="FILE")
    plot: Path | None = option(None, "draw the training curves into FILE", metavar="FILE.png")
    tensorboard: Path | None = option(
        None,
        "write curves of loss, accuracy, bytes, seconds, margins of votes and suspects for "
        "TensorBoard to DIR, a folder for each way: tensorboard --logdir DIR",
        metavar="DIR",
    )
    markdown: Path | None = option(
        None,
        "write the table in Markdown, with the command, the date and the machine, to a new FILE, "
        "or between two lines of FILE that read <!-- mpisign train -->",
        metavar="FILE",
    )

    def groups(self, comm: Communicator) -> Groups | None:
        """The groups of DETOX, drawn for epoch 0; ValueError for those that cannot be."""
        if self.detox is None:
            return None
        if self.placement == "worst":
            hostile = range(comm.size - self.adversaries, comm.size)
            partition = worst_case(comm.size, self.detox, hostile)
            return Groups(comm, self.detox, partition, seed=self.seed)
        drawn = self.placement == "spread" and self.reshuffle_every > 0
        every = self.reshuffle_every if drawn else None
        return Groups(comm, self.detox, self.placement, reshuffle_every=every, seed=self.seed)

    def faulty_rows(self) -> int:
        """The rows that ``rule`` must tolerate: ``rule_f``, or as many as adversaries can own."""
        if self.rule_f is not None:
            return self.rule_f
        return self.adversaries // (1 if self.detox is None else self.detox // 2 + 1)

    def cell(self, votes: bool, size: int, steps: int | None = None) -> Cell:
        """The training of ``size`` ranks that vote, or average by a library's allreduce."""
        name, options = self._compression()
        # In groups the momenta of ranks would start from zero after every draw.
        averages = not votes or (self.rule is not None and not options["momentum"])
        if averages:
            lr = self.lr if votes and self.lr is not None else self.fp32_lr
        elif self.lr is not None:
            lr = self.lr
        else:  # SGD's momentum sums gradients up to 1 / (1 - momentum) times their size
            made = compression.compressor(Cell("images", name, 0.0, compressor_options=options))
            lr = VOTE_LR if made.unit == "sign" else self.fp32_lr / (1 - self.momentum)
        if votes and self.detox is not None:
            inner = {"compressor": name, **options}
            name, options = GROUPED, {"redundancy": self.detox, "inner": inner}
        return Cell(
            task="images",
            compressor=name if votes else "none",
            compressor_options=options if votes else {},
            lr=lr,
            optimizer_options={"momentum": self.momentum if averages else 0.0},
            ranks=size,
            batch_size=self.batch_size,
            seed=self.seed,
            steps=steps or self.steps,
            epochs=self.epochs,
            adversaries=self.adversaries,
            attack=self.attack if self.adversaries else None,
            schedule="cosine",
            evaluations=_EVALUATIONS,
            skip="auto",
            byzantine_f=self.byzantine_f if votes else 0,
            algorithm=self.algorithm,
        )

    def _compression(self) -> tuple[str, dict[str, Any]]:
        """The name and the options of what ranks that vote send."""
        if self.rule is not None:
            momentum = self.momentum if self.detox is None else 0.0
            return "robust", {"rule": self.rule, "f": self.faulty_rows(), "momentum": momentum}
        kind = COMPRESSORS[self.compression]
        options: dict[str, Any] = {}
        if kind in (Sign, Signum, Lion, Muon):
            options = {"zeros": self.zeros, "ties": self.ties}
        if kind is Signum:
            options["momentum"] = self.momentum
        return self.compression, options


def check(settings: Settings, size: int, dataset: Dataset) -> None:
    """Raises SettingsError for what ``size`` ranks cannot do, or not with ``dataset``."""
    for problem in _problems(settings, size, dataset):
        raise SettingsError(problem)


def _problems(s: Settings, size: int, dataset: Dataset) -> Iterator[str]:
    if s.adversaries >= size and s.adversaries:
        yield f"--adversaries must be below the number of ranks, got {s.adversaries} of {size}"
    for name in s.ways:
        if lacking := VARIANTS[name].lacks(s):
            yield f"{name} does not go with {lacking}"
    if s.detox is None:
        for option in ("placement", "order", "reshuffle_every"):
            if getattr(s, option) != getattr(Settings, option):
                yield f"--{option.replace('_', '-')} needs --detox: it is of groups"
        if s.suspects:
            yield "--suspects needs --detox: ranks are compared in groups"
    elif s.detox % 2 == 0:
        yield f"--detox must be odd, so that no group ties, got {s.detox}: take {s.detox + 1}"
    elif size < 2 * s.detox > 2:
        needs = f"--detox {s.detox} needs {2 * s.detox} ranks at least"
        yield f"{needs}, so that there are groups to vote, got {size}"
    option = f"--compression {s.compression}"
    if s.rule is not None:
        if s.compression != Settings.compression:
            yield f"--rule {s.rule} is of gradients in full precision: leave out {option}"
        option = f"--rule {s.rule} with f={s.faulty_rows()} (--rule-f)"
    elif s.rule_f is not None:
        yield "--rule-f needs --rule"
    try:
        aggregate = compression.compressor(s.cell(True, size)).aggregate
        if s.rule is not None:
            robust.by_name(s.rule, s.faulty_rows()).check(size // (s.detox or 1))
    except ValueError as error:
        cause: BaseException = error
        while isinstance(cause, SettingsError) and cause.__cause__ is not None:
            cause = cause.__cause__
        yield f"{option}: {cause}"
    if s.adversaries:
        try:
            attack = attacks.by_name(s.attack, s.adversaries)
            attack.check(size - s.adversaries)
            attack.batch(dataset.train_images[:1], dataset.train_labels[:1])
        except ValueError as error:
            yield f"--attack {s.attack}: {error}"
    if s.byzantine_f:
        if s.rule is not None or aggregate != "vote":
            yield f"--byzantine-f is of votes: {s.rule or s.compression} takes none"
        if s.algorithm not in ("auto", "alltoall"):
            yield f"--byzantine-f needs --algorithm alltoall or auto, got {s.algorithm}"
        if 2 * s.byzantine_f + 1 > size:
            needs = f"{2 * s.byzantine_f + 1} ranks at least"
            yield f"--byzantine-f {s.byzantine_f} needs {needs}, got {size}"
