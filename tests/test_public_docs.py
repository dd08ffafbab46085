"""Every public name has a docstring with its arguments, its result and an example that runs."""

from __future__ import annotations

import doctest
import functools
import importlib
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent

PUBLIC = [
    "mpisign",
    "mpisign.planes",
    "mpisign.compressors",
    "mpisign.robust",
    "mpisign.detox",
    "mpisign.attacks",
    "mpisign.checkpoint",
    "mpisign.lowrank",
    "mpisign.log",
    "mpisign.optim",
    "mpisign.federated",
    "mpisign.ddp",
    "mpisign.fsdp",
    "mpisign.horovod",
]
#: In the site's reference too; tests/ranks/frameworks*.py run their examples.
FRAMEWORKS = ["mpisign.lightning", "mpisign.accelerate", "mpisign.transformers"]


def public() -> Iterator[tuple[str, Any]]:
    """(full name, function or class) of what users import; each object once."""
    seen = set()
    for module_name in PUBLIC:
        try:
            module = importlib.import_module(module_name)
        except ImportError as error:
            if "mpisign" in str(error.name):
                raise
            continue
        own = [n for n, x in vars(module).items() if getattr(x, "__module__", "") == module_name]
        for name in getattr(module, "__all__", [n for n in own if not n.startswith("_")]):
            x = getattr(module, name)
            documented = inspect.isfunction(x) or inspect.isclass(x)
            ours = str(getattr(x, "__module__", "")).startswith("mpisign")
            if documented and ours and id(x) not in seen:
                seen.add(id(x))
                yield f"{module_name}.{name}", x


def parameters(x: Any) -> list[str]:
    try:
        signature = inspect.signature(x)
    except ValueError:
        return []
    named = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [
        n
        for n, p in signature.parameters.items()
        if n not in ("self", "cls") and not n.startswith("_") and p.kind not in named
    ]


def lacks(x: Any, names: list[str]) -> list[str]:
    """The sections that the docstring of a function or class should have and has not."""
    doc = inspect.getdoc(x) or ""
    if not doc:
        return ["a docstring"]
    missing = []
    sections = re.findall(r"^(?:Args|Attributes):\n((?: +.*\n|\n)*)", doc + "\n", re.M)
    # An entry may stand for several arguments: "zeros, nan, ties: ..".
    entries = re.findall(r"^ {4}(\w+(?:, \w+)*):", "".join(sections), re.M)
    documented = {n for entry in entries for n in entry.split(", ")}
    if names and not sections:
        missing.append("Args")
    elif names:
        missing += [f"Args.{n}" for n in names if n not in documented]
    returned = inspect.signature(x).return_annotation if inspect.isroutine(x) else None
    if returned not in (None, "None", "NoReturn", inspect.Signature.empty):
        if not re.search(r"^(Returns|Yields):|^Returns? ", doc, re.M):
            missing.append("Returns")
    return missing


def overrides(kind: type, name: str) -> bool:
    return any(name in vars(base) for base in kind.__mro__[1:])


def members(kind: type) -> Iterator[tuple[str, Any]]:
    """Public methods and properties that a class defines itself."""
    for name, x in vars(kind).items():
        if not name.startswith("_"):
            if isinstance(x, (staticmethod, classmethod)):
                x = x.__func__
            if inspect.isfunction(x) or isinstance(x, (property, functools.cached_property)):
                yield name, x


def test_public_names_are_documented():
    wrong = []
    for name, x in public():
        missing = lacks(x, parameters(x))
        if ">>>" not in (inspect.getdoc(x) or ""):
            missing.append("an example")
        if missing:
            wrong.append(f"{name}: {', '.join(missing)}")
        for member, m in members(x) if inspect.isclass(x) else ():
            function = inspect.isfunction(m)
            known = getattr(x, member) if function else m  # a docstring may be inherited
            missing = lacks(known, parameters(m) if function else [])
            if overrides(x, member):  # the base class documents the interface
                missing = [m for m in missing if m == "a docstring"]
            if missing:
                wrong.append(f"{name}.{member}: {', '.join(missing)}")
    assert not wrong, "\n".join(wrong)


def run_doctests() -> int:
    """Runs the examples of all public names and their members; the number of failures."""
    finder, options = doctest.DocTestFinder(), doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    runner = doctest.DocTestRunner(optionflags=options)
    for module_name in PUBLIC:
        module = sys.modules.get(module_name)
        for test in finder.find(module, module_name, module=False) if module else ():
            if test.name == module_name:
                runner.run(test)
    for name, x in public():
        home = sys.modules[x.__module__]
        for test in finder.find(x, name, module=home, globs=dict(vars(home))):
            runner.run(test)
    print(f"{runner.tries} examples, {runner.failures} failures")
    return runner.failures


def test_examples_run():
    command = [sys.executable, str(Path(__file__).resolve()), "doctests"]
    done = subprocess.run(command, cwd=ROOT, timeout=200, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]


if __name__ == "__main__":
    if sys.argv[1:] != ["doctests"]:
        sys.exit(pytest.main([__file__, *sys.argv[1:]]))
    sys.exit(run_doctests() > 0)
