"""A picture of the backdoor's edge cases: ``python -m mpisign.attacks.picture OUT.png``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

from mpisign.attacks.backdoor import Backdoor
from mpisign.attacks.edge_cases import digits_split, edge_cases, from_mean

_COLUMNS = 13


def write(path: Path, backdoor: Backdoor | None = None) -> None:
    """Writes usual images of the source and the target, and edge cases trained on and held out."""
    from matplotlib.figure import Figure

    attack = Backdoor() if backdoor is None else backdoor
    edges = edge_cases(attack.source, attack.share)
    train_images, train_labels, test_images, test_labels = digits_split()
    images = np.concatenate([train_images, test_images])
    labels = np.concatenate([train_labels, test_labels])
    rows = [
        (f"usual {attack.source}", _usual(images[labels == attack.source])),
        ("edge cases, trained on", edges.train),
        ("edge cases, held out", edges.test),
        (f"usual {attack.target}", _usual(images[labels == attack.target])),
    ]
    figure = Figure(figsize=(7.5, 2.3), dpi=100, layout="constrained")
    panels = figure.subplots(len(rows), _COLUMNS)
    for (text, shown), line in zip(rows, panels, strict=True):
        line[0].set_ylabel(text, rotation=0, ha="right", va="center", fontsize=8)
        for panel, image in zip(line, shown[:_COLUMNS], strict=False):
            panel.imshow(image[0], cmap="gray_r", vmin=0, vmax=1)
        for panel in line:
            panel.set(xticks=[], yticks=[])
            panel.set_frame_on(False)
    figure.savefig(path)


def _usual(images: Any) -> Any:
    return images[np.argsort(from_mean(images), kind="stable")[:_COLUMNS]]


if __name__ == "__main__":
    write(Path(sys.argv[1]))
