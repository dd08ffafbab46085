"""Everything that was measured, between which ranks: the JSON that programs read."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mpisign.bench.training.results import Row
from mpisign.bench.training.settings import Settings
from mpisign.bench.wire.goals import Goal
from mpisign.bench.wire.nodes import Nodes
from mpisign.bench.wire.record import heading


@dataclass
class Record:
    """One run of ``mpisign bench training``. ``parameters``: what the model really has."""

    command: str
    nodes: Nodes
    settings: Settings
    parameters: int
    rows: list[Row] = field(default_factory=list)
    goals: list[Goal] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """The document of ``--json``."""
        return {
            **heading(self.command, self.settings.as_dict(), self.nodes),
            "parameters": self.parameters,
            "rows": [row.as_dict() for row in self.rows],
            "goals": [goal.as_dict() for goal in self.goals],
            "notes": self.notes,
        }

    def write(self, path: Path) -> None:
        """Writes the JSON."""
        path.write_text(json.dumps(self.as_dict(), indent=1, allow_nan=False) + "\n")
