"""The next character of Python's own documentation, or of the Bible, by a small transformer."""

from __future__ import annotations

import math
import subprocess

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from mpisign.experiments import data, model
from mpisign.experiments.cell import Cell
from mpisign.experiments.errors import SettingsError
from mpisign.experiments.tasks.base import Task

#: Printable ASCII and the line's end; what is neither is read as "?".
ALPHABET = "\n" + "".join(map(chr, range(32, 127)))
_BLOCK = 4096  # characters; of 20 blocks one is for choosing rates, one for testing
_CHECKED = 16384  # characters that an evaluation reads
_STREAM = 3
#: Where Debian's bible-kjv-text is, and what is read of it.
_BIBLE, _VERSES, _LINES = "/usr/lib", "gen1:1-rev22:21", 31102


@data.once
def read(name: str = "pydoc") -> npt.NDArray[np.uint8]:
    """A text, numbers into ``ALPHABET``: 465,000 of "pydoc", 4,138,000 of "bible"."""
    found = {"pydoc": _pydoc, "bible": _bible}.get(name)
    if found is None:
        raise SettingsError(f"corpus: expected pydoc or bible, got {name!r}")
    text = found()
    known = np.full(128, ALPHABET.index("?"), dtype=np.uint8)
    known[[ord(c) for c in ALPHABET]] = range(len(ALPHABET))
    return known[np.frombuffer(text.encode("ascii", "replace"), dtype=np.uint8)]


def _pydoc() -> str:
    """The language reference that help() reads: ``pydoc_data.topics``."""
    try:
        from pydoc_data import topics
    except ImportError as error:
        raise SettingsError(f"the task text needs Python's module pydoc_data: {error}") from error
    return "\n".join(topics.topics[name] for name in sorted(topics.topics))


def _bible() -> str:
    """All verses of the King James Version, one a line, by the program that unpacks Debian's."""
    needs = 'corpus = "bible" needs Debian\'s bible: apt-get install bible-kjv'
    try:
        said = subprocess.run(
            ["bible", "-f", "-p", _BIBLE, _VERSES],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=True,
            timeout=60,
        ).stdout.decode("ascii", "replace")
    except (OSError, subprocess.SubprocessError) as error:
        raise SettingsError(f"{needs} ({error})") from error
    lines = said.splitlines()
    if len(lines) != _LINES or not lines[0].startswith("Ge1:1 "):
        raise SettingsError(f"{needs} (expected {_LINES:,} verses, got {len(lines):,} lines)")
    return "\n".join(line.partition(" ")[2] for line in lines)


def split(text: npt.NDArray[np.uint8]) -> tuple[npt.NDArray[np.uint8], ...]:
    """Training, validation and test: of every 20 blocks the 7th and the 17th are held out."""
    place = np.arange(len(text)) // _BLOCK % 20
    return text[(place != 6) & (place != 16)], text[place == 6], text[place == 16]


class Text(Task):
    """Each rank reads a stretch of its own of the training part, ``context`` characters a time."""

    def __init__(
        self,
        cell: Cell,
        rank: int,
        context: int = 64,
        width: int = 64,
        layers: int = 2,
        heads: int = 4,
        corpus: str = "pydoc",
    ) -> None:
        train, *held_out = split(read(corpus))
        length = len(train) // cell.ranks
        self._train = torch.from_numpy(train[rank * length : (rank + 1) * length].astype(np.int64))
        self._held_out = [_windows(part, context) for part in held_out]
        self._rng = np.random.default_rng([cell.seed, rank, _STREAM])
        self._context, self._batch_size = context, cell.batch_size
        seen = context * cell.batch_size
        self.steps = cell.steps or (cell.epochs or 1) * max(1, length // seen)
        self.net = model.seeded(cell.seed, lambda: Transformer(context, width, layers, heads))
        self.named = list(self.net.named_parameters())

    def loss(self, step: int) -> torch.Tensor:
        starts = self._rng.integers(len(self._train) - self._context - 1, size=self._batch_size)
        windows = torch.stack([self._train[s : s + self._context + 1] for s in starts.tolist()])
        return self._loss(windows)

    @torch.no_grad()
    def evaluate(self) -> tuple[float, float]:
        validation, test = (
            float(np.mean([float(self._loss(w)) for w in windows.split(64)])) / math.log(2)
            for windows in self._held_out
        )
        return validation, test

    def _loss(self, windows: torch.Tensor) -> torch.Tensor:
        logits = self.net(windows[:, :-1])
        return nn.functional.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())


def _windows(part: npt.NDArray[np.uint8], context: int) -> torch.Tensor:
    """Windows of ``context`` + 1 characters, spread evenly over ``part``; 64 a batch, all full."""
    many = max(1, _CHECKED // context // 64) * 64
    starts = np.linspace(0, len(part) - context - 1, many).astype(np.int64)
    return torch.from_numpy(part.astype(np.int64)[starts[:, None] + np.arange(context + 1)])


class Transformer(nn.Module):
    """Characters (n, t), int64, to logits (n, t, 96): what comes next."""

    def __init__(self, context: int, width: int, layers: int, heads: int) -> None:
        super().__init__()
        self.characters = nn.Embedding(len(ALPHABET), width)
        self.places = nn.Embedding(context, width)
        for table in (self.characters, self.places):
            nn.init.normal_(table.weight, std=0.02)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width,
                heads,
                4 * width,
                dropout=0.0,
                activation="gelu",
                batch_first=True,
                norm_first=True,
            )
            for _ in range(layers)
        )
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, len(ALPHABET))
        mask = nn.Transformer.generate_square_subsequent_mask(context)
        self.mask: torch.Tensor
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, characters: torch.Tensor) -> torch.Tensor:
        t = characters.shape[1]
        x = self.characters(characters) + self.places.weight[:t]
        for block in self.blocks:
            x = block(x, src_mask=self.mask[:t, :t], is_causal=True)
        logits: torch.Tensor = self.out(self.norm(x))
        return logits
