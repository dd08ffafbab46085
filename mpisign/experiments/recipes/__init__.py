"""How a cell is trained: one file a recipe, ``train(comm, cell)``.

A recipe trains this rank's replica and returns what it ended with, and the bits of the messages
that this rank sent, one copy, without headers. Collective: all ranks of ``comm`` call it. Replicas
end with the same bits.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING

from mpisign.experiments.errors import SettingsError

if TYPE_CHECKING:
    from mpisign.communicator import Communicator
    from mpisign.experiments.cell import Cell
    from mpisign.experiments.loop import Trained

#: Names, known without torch; each is a module of this package.
RECIPES = ("exchange", "federated", "optim", "pufferfish")

Recipe = Callable[["Communicator", "Cell"], "tuple[Trained, int]"]


def named(name: str) -> Recipe:
    """The recipe of that name; SettingsError for an unknown one."""
    if name not in RECIPES:
        raise SettingsError(f"recipe: expected one of {', '.join(RECIPES)}, got {name!r}")
    recipe: Recipe = importlib.import_module(f"{__name__}.{name}").train
    return recipe
