"""Three steps of a person's own training script, measured in a process of its own."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mpisign.doctor.children import environment
from mpisign.experiments.errors import SettingsError
from mpisign.predict.models import ModelShapes

#: Steps that count, after one that does not.
STEPS = 3


@dataclass(frozen=True)
class ScriptSteps:
    """``step``: median seconds from one optimizer.step()'s end to the next.

    ``backward``: of it, from the first gradient to the last.
    """

    model: ModelShapes
    step: float
    backward: float


def measure_script(text: str) -> ScriptSteps:
    """Runs a script as ``python FILE ARGS`` would, until its fourth ``optimizer.step()``.

    The script needs no change. It must train with a torch optimizer, on one process. What it prints
    goes to standard error.

    Args:
        text: the file and its arguments, as in a shell.

    Returns:
        ScriptSteps.

    Raises:
        SettingsError: there is no such file, the script failed, it made fewer than four steps, or
            its optimizer trains nothing.
    """
    try:
        words = shlex.split(text)
    except ValueError as error:  # a quote that is not closed
        raise SettingsError(f"--script {text}: {error}") from error
    if not words or not Path(words[0]).is_file():
        raise SettingsError(f"--script {text}: no such file")
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "steps.json"
        child = [sys.executable, "-m", "mpisign.predict.script_steps", str(result), *words]
        # Without what a launcher set: the script runs on one rank.
        done = subprocess.run(child, stdout=sys.stderr, env=environment(in_job=True))
        if not result.exists():
            raise SettingsError(f"--script {text}: failed, exit status {done.returncode}")
        return steps_of(json.loads(result.read_text()), text)


def steps_of(found: dict[str, Any], text: str) -> ScriptSteps:
    """What ``script_steps`` wrote of the script ``text``.

    Args:
        found: its document.
        text: for errors, and the name.

    Returns:
        ScriptSteps.

    Raises:
        SettingsError: there were fewer than four steps, or no parameters with gradients.
    """
    if found["steps"] < STEPS + 1:
        raise SettingsError(
            f"--script {text}: needs {STEPS + 1} steps of a torch optimizer, made {found['steps']}"
        )
    if not found["shapes"]:
        raise SettingsError(f"--script {text}: no parameter of its optimizer requires a gradient")
    shapes = tuple(tuple(shape) for shape in found["shapes"])
    name = Path(shlex.split(text)[0]).name
    return ScriptSteps(ModelShapes(name, shapes), found["step"], found["backward"])
