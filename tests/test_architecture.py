"""The package's structure: imports go downwards, class names are unique, prose is plain."""

from __future__ import annotations

import ast
import functools
import io
import re
import tokenize
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "mpisign"

#: From the lowest floor to the highest. The longest prefix that fits a module decides.
FLOORS: list[tuple[str, list[str]]] = [
    (
        "basics",
        ["errors", "policies", "stats", "launcher", "forks", "partition", "stopping"]
        + ["tracing", "census", "prometheus", "_kernels", "kernels"],
    ),
    ("backend", ["backend"]),
    ("planes", ["planes"]),
    ("transports", ["transports"]),
    ("engine", ["engine"]),
    ("collectives", ["collectives", "robust"]),
    ("communicator", ["connect", "communicator", "functions", "simulation"]),
    ("exchange", ["compressors", "detox", "exchange"]),
    (
        "front ends",
        ["optimizer", "ddp", "fsdp", "horovod", "attacks", "checkpoint", "log", "optim"]
        + ["lightning", "accelerate", "transformers", "accordion", "lowrank", "federated"],
    ),
    ("experiments", ["experiments"]),
    ("tools", ["bench", "doctor", "predict"]),
    ("command", ["cli", "__main__"]),
]

#: Class names that two public modules share, and why.
SHARED_NAMES = {
    "Compression": "mpisign's, and the one that Horovod's users expect, of mpisign.horovod",
    "MajorityVoteState": "the state of a hook, of mpisign.ddp and of mpisign.fsdp",
}

#: Phrases that a reader stumbles over. Docstrings and comments of mpisign/ and scripts/ lack them.
PHRASES = [
    r"told at (its|their|the) end",
    r"what never came",
    r"by the same stairs",
    r"bears? nobody",
    r"have the same luck",
    r"dearest rank",
    r"of no more use",
    r"ways? of travelling",
    r"\bwho is there\b",
    r"[Tt]here is nothing to",
    r"^It is\.$",
    r"for all to hear",
    r"[Nn]obody (else )?(hears|waits|came|knows)",
    r"\btold to the others\b",
    r"\bwhat came of\b",
]
#: Words that are fine now and then: how often they may stand in docstrings and comments.
SELDOM = {r"\btold\b": 40, r"\bways?\b": 120}


@functools.cache
def modules() -> dict[str, Path]:
    """Every module of the package, by its full name."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@functools.cache
def tree(module: str) -> ast.Module:
    return ast.parse(modules()[module].read_text())


def nodes(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes but those under ``if TYPE_CHECKING``."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            for other in child.orelse:
                yield from nodes(other)
            continue
        yield child
        yield from nodes(child)


@functools.cache
def bound(module: str) -> dict[str, str]:
    """The names that a package's __init__ takes from modules, and from which."""
    names = {}
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names |= {a.asname or a.name: node.module for a in node.names}
    return names | lazy(module)


def lazy(module: str) -> dict[str, str]:
    for node in tree(module).body:
        targets = node.targets if isinstance(node, ast.Assign) else ()
        if any(isinstance(t, ast.Name) and t.id == "_LAZY" for t in targets):
            table = ast.literal_eval(node.value)
            return {k: v for k, v in table.items() if isinstance(v, str)}
    return {}


def named(node: ast.AST) -> str:
    """``name`` or the last part of ``a.name``."""
    return getattr(node, "id", "") or getattr(node, "attr", "")


def source_of(module: str, name: str) -> str:
    """The module behind ``from module import name``."""
    if module != "mpisign":
        inner = f"{module}.{name}"
        return inner if inner in modules() and name not in bound(module) else module
    return bound("mpisign").get(name, f"mpisign.{name}")


@functools.cache
def imports(module: str) -> dict[str, int]:
    """{module of this package: line} of what a module imports, also within functions."""
    found: dict[str, int] = {}
    package = module if modules()[module].name == "__init__.py" else module.rpartition(".")[0]
    whole = False
    for node in nodes(tree(module)):
        line = getattr(node, "lineno", 0)
        if isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = package.split(".")
                base = ".".join([*parts[: len(parts) - node.level + 1], *filter(None, [base])])
            if base.partition(".")[0] == "mpisign":
                for alias in node.names:
                    found.setdefault(source_of(base, alias.name), line)
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith("mpisign."):
                    found.setdefault(alias.name, line)
                whole = whole or alias.name == "mpisign"
        elif isinstance(node, ast.Call) and named(node.func) == "import_module":
            value = node.args[0].value if isinstance(node.args[0], ast.Constant) else ""
            if str(value).startswith("mpisign."):
                found.setdefault(value, line)
    if whole:  # import mpisign: what is used of it
        for node in nodes(tree(module)):
            if isinstance(node, ast.Attribute) and named(node.value) == "mpisign":
                found.setdefault(source_of("mpisign", node.attr), node.lineno)
    for name in lazy(module).values():
        found.setdefault(name, 0)
    return {m: line for m, line in found.items() if m in modules() and m not in (module, "mpisign")}


def floor(module: str) -> int:
    name, best, number = module.removeprefix("mpisign."), "", -1
    for i, (_, prefixes) in enumerate(FLOORS):
        for prefix in prefixes:
            fits = name == prefix or name.startswith(prefix + ".")
            if fits and len(prefix) > len(best):
                best, number = prefix, i
    return number


def importers() -> list[str]:
    return [m for m in modules() if m != "mpisign"]


def test_every_module_has_a_floor():
    assert [m for m in importers() if floor(m) < 0] == []


def test_imports_go_downwards():
    wrong = [
        f"{m}:{line} ({FLOORS[floor(m)][0]}) imports {other} ({FLOORS[floor(other)][0]})"
        for m in importers()
        for other, line in imports(m).items()
        if 0 <= floor(m) < floor(other)
    ]
    assert not wrong, "\n".join(wrong)


def circles() -> list[list[str]]:
    """Strongly connected components of more than one module (Tarjan)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found = []

    def visit(m: str) -> None:
        index[m] = low[m] = len(index)
        stack.append(m)
        for other in imports(m):
            if other not in index:
                visit(other)
                low[m] = min(low[m], low[other])
            elif other in stack:
                low[m] = min(low[m], index[other])
        if low[m] == index[m]:
            found.append(stack[stack.index(m) :])
            del stack[stack.index(m) :]

    for m in importers():
        if m not in index:
            visit(m)
    return [sorted(c) for c in found if len(c) > 1]


def test_no_import_circle():
    wrong = [
        f"circle of {len(circle)}:\n"
        + "\n".join(
            f"  {m}:{line} imports {other}"
            for m in circle
            for other, line in imports(m).items()
            if other in circle
        )
        for circle in circles()
    ]
    assert not wrong, "\n".join(wrong)


def test_class_names_are_unique():
    places = defaultdict(list)
    for module in modules():
        for node in ast.walk(tree(module)):
            if isinstance(node, ast.ClassDef):
                places[node.name].append(f"{module}:{node.lineno}")
    known = {n for n in places if n.startswith("_") or n in SHARED_NAMES}
    twice = {n: p for n, p in places.items() if len(p) > 1 and n not in known}
    assert not twice, "\n".join(f"{n}: {', '.join(p)}" for n, p in sorted(twice.items()))
    stale = [n for n in SHARED_NAMES if len(places[n]) < 2]
    assert not stale, f"no longer shared: {stale}"


def prose() -> Iterator[tuple[str, str]]:
    """(file:line, text on one line) of every docstring and comment."""
    scripts = [p for p in (ROOT / "scripts").rglob("*") if p.is_file() and is_python(p)]
    for path in [*modules().values(), *scripts]:
        name, text = path.relative_to(ROOT), path.read_text()
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
                if doc := ast.get_docstring(node):
                    yield f"{name}:{getattr(node, 'lineno', 1)}", " ".join(doc.split())
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type == tokenize.COMMENT:
                yield f"{name}:{token.start[0]}", token.string


def is_python(path: Path) -> bool:
    if path.suffix:
        return path.suffix == ".py"
    return "python" in path.read_text(errors="replace").partition("\n")[0]


def test_prose_is_plain():
    texts = list(prose())
    phrase = re.compile("|".join(PHRASES))
    found = [f"{at}: {m.group()!r}" for at, text in texts for m in phrase.finditer(text)]
    for word, most in SELDOM.items():
        count = sum(len(re.findall(word, text)) for _, text in texts)
        if count > most:
            found.append(f"{word} {count} times, at most {most}")
    assert not found, "\n".join(found)
