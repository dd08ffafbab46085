"""The commands of a page's shell blocks, and whether a reader could type them.

Nothing is started: options are parsed, and what a command names must exist.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import subprocess
import tomllib
from functools import cache

from page_blocks import ROOT, Block

#: Scripts of the reader's own.
_THEIRS = {"train.py", "script.py", "bench.py", "prepare.py"}
#: Programs of a cluster, a container or the system, whose options are theirs.
_OTHERS = {
    *("git", "cd", "cp", "mkdir", "export", "source", "env", "ulimit", "bash", "cat", "ip", "ssh"),
    *("curl", "jq", "rattler-build", "cibuildwheel"),
    *("module", "sbatch", "salloc", "scancel", "squeue", "sinfo", "scontrol", "qsub", "qdel"),
    *("qstat", "bsub", "bjobs", "bkill", "flux", "docker", "podman", "apptainer", "conda", "mamba"),
    *("sudo", "apt-get", "tensorboard", "nsys"),
}
_LAUNCHERS = {"mpirun", "mpiexec", "torchrun", "horovodrun", "srun", "jsrun"}
#: Options of launchers that take no value, and those that take two.
_FLAGS = {"--oversubscribe", "--standalone", "--gloo", "--mpi", "--no-python", "--exclusive"}
_PAIRS = {"--mca", "--prtemca"}


def commands(block: Block) -> list[tuple[str, list[str]]]:
    """(page:line, words) of each simple command of a shell block."""
    found = []
    line, text = block.line, ""
    for number, part in enumerate(block.code.splitlines(), block.line):
        line = number if not text else line
        if block.kind == "console" and not text:
            if not part.startswith("$ "):
                continue  # what a command printed
            part = part[2:]
        if part.endswith("\\"):
            text += part[:-1] + " "
            continue
        inner = re.sub(r'eval "\$\((.*)\)"', r"\1", text + part)
        lexer = shlex.shlex(inner, posix=True, punctuation_chars=True)
        lexer.commenters, lexer.whitespace_split = "#", True
        words: list[str] = []
        for word in [*lexer, ";"]:
            if word in ("&&", "||", ";", "|", "&"):
                if words:
                    found.append((f"{block.page.relative_to(ROOT)}:{line}", words))
                words = []
            else:
                words.append(word)
        text = ""
    return found


def program_behind(words: list[str]) -> tuple[list[str], int]:
    """What a launcher starts, and on how many ranks."""
    ranks, i = 1, 1
    while i < len(words) and words[i].startswith("-"):
        option, _, value = words[i].partition("=")
        steps = 0 if value or option in _FLAGS else 2 if option in _PAIRS else 1
        if option in ("-n", "-np", "--nproc-per-node", "--ntasks", "--nproc_per_node"):
            ranks = int(value or words[i + 1])
        i += 1 + steps
    return words[i:], ranks


@cache
def help_of(script: str, *subcommand: str) -> str:
    command = [ROOT / script, *subcommand, "--help"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    return done.stdout + done.stderr


def check(words: list[str], folder, ranks: int = 1) -> None:
    """Raises if a command cannot be what a reader should type."""
    while re.match(r"[A-Z_]+=", words[0]):
        words = words[1:]
    words = [w for i, w in enumerate(words) if w != ">" and (i == 0 or words[i - 1] != ">")]
    program = words[0]
    if program in _LAUNCHERS:
        rest, ranks = program_behind(words)
        if not rest:
            raise ValueError(f"{program} starts nothing")
        python = ["python"] if rest[0].endswith(".py") and program == "torchrun" else []
        check([*python, *rest], folder, ranks)
    elif program in ("scripts/netlab", "scripts/check-faults") and "--" in words:
        check_script(words[: words.index("--")])
        inner = words[words.index("--") + 1 :]
        if inner[0] in _LAUNCHERS and not program_behind(inner)[0]:
            raise ValueError("netlab starts nothing")
        check(inner, folder, ranks)
    elif program.startswith("scripts/"):
        check_script(words)
    elif program in ("python", "python3") or program.endswith(".venv/bin/python"):
        check_python(words[1:], folder, ranks)
    elif program == "mpisign" or program.endswith("/mpisign"):
        check_mpisign(words[1:], folder, ranks)
    elif program == "pip":
        check_pip(words)
    elif program not in _OTHERS:
        raise ValueError(f"no test knows the program {program!r}: see tests/page_commands.py")


def check_script(words: list[str]) -> None:
    if not os.access(ROOT / words[0], os.X_OK):
        raise ValueError(f"{words[0]} is no script")
    options = [w.partition("=")[0] for w in words[1:] if w.startswith("--")]
    subcommand = words[1:2] if words[0] == "scripts/netlab" else []
    unknown = [o for o in options if o not in help_of(words[0], *subcommand)]
    if unknown and words[0] not in ("scripts/demo", "scripts/test"):  # which pass options on
        raise ValueError(f"{words[0]} --help lacks {', '.join(unknown)}")


def check_python(words: list[str], folder, ranks: int) -> None:
    while words[:2] == ["-m", "mpi4py"]:
        words = words[2:]
    if not words or words[0] == "-c":
        return
    if words[0] == "-m":
        if words[1] == "pip":
            check_pip(["pip", *words[2:]])
        elif words[1] == "pytest":
            files = [w.partition("::")[0] for w in words[2:] if w.startswith("tests/")]
            missing = [f for f in files if not (ROOT / f).exists()]
            if missing:
                raise ValueError(f"no file {', '.join(missing)}")
        elif importlib.util.find_spec(words[1]) is None:
            raise ValueError(f"no module {words[1]}")
    elif words[0].endswith("mpisign"):
        check_mpisign(words[1:], folder, ranks)
    elif words[0] not in _THEIRS and not (ROOT / words[0]).is_file():
        raise ValueError(f"no file {words[0]}")


def check_pip(words: list[str]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = re.findall(r"(?:^|\s)(?:mpisign|\.)\[([\w,-]+)\]", " ".join(words))
    unknown = {e for names in named for e in names.split(",")} - set(
        project["optional-dependencies"]
    )
    if unknown:
        raise ValueError(f"pyproject.toml has no extra {', '.join(sorted(unknown))}")


def check_mpisign(words: list[str], folder, ranks: int) -> None:
    import test_help_examples as examples

    if not words or words[0].startswith("-"):
        return
    args = examples.parsed(words)
    if words[0] == "train" and not getattr(args, "data", None):
        examples.check_train(args, ranks)
    elif words[0] == "study" and "list" not in words and not words[2].endswith(".toml"):
        examples.check_study(args, ranks, folder)
    elif words[0] == "bench":
        examples.check_bench(args)
