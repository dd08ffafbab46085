"""Every code block of README and docs: Python runs, commands parse, data files are valid."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from functools import cache

import launchers
import pytest
from page_blocks import PAGES, ROOT, Block, blocks, setting

RUNNER = launchers.RANKS / "run_pages.py"
BLOCKS = [block for page in PAGES for block in blocks(page)]
SHELL = ("indented", "sh", "bash", "console")
#: Scripts of the reader's own.
THEIRS = {"train.py", "script.py", "bench.py", "prepare.py"}
#: Programs of a cluster, a container or the system, whose options are theirs.
OTHERS = set(
    "git cd export source module sbatch salloc scancel squeue sinfo qsub bsub flux ssh tar curl "
    "sudo apt-get docker podman apptainer conda mamba tensorboard nsys ip bash env ulimit cat nsight"
    .split()
)
LAUNCHERS = {"mpirun", "mpiexec", "torchrun", "horovodrun", "srun", "jsrun"}
#: Options of launchers that take no value, and those that take two.
_FLAGS = {"--oversubscribe", "--standalone", "--gloo", "--mpi", "--no-python", "--allow-run-as-root"}
_PAIRS = {"--mca", "--prtemca"}


def start(launcher: str, pages: list[str]) -> str:
    job = [RUNNER, *pages]
    env = launchers.with_tests()
    if launcher == "mpirun":
        return launchers.on_ranks(3, *job, timeout=200)
    if launcher == "torchrun":
        command = [launchers.find("torchrun"), "--standalone", "--nproc-per-node=2", *job]
        return launchers.run(command, timeout=200, env=env).stdout
    command = [launchers.find("horovodrun"), "-np", "2", "--gloo", sys.executable, *job]
    return launchers.run(command, timeout=200, env=env).stdout


@pytest.mark.mpi
@pytest.mark.parametrize("launcher", ["mpirun", "torchrun", "horovodrun"])
def test_python_blocks_run(launcher):
    """One job for the pages of a launcher: most of its time is the start of Python and torch."""
    pytest.importorskip("torch", reason='pip install "mpisign[torch]"')
    pages, left_out = [], []
    for page in sorted({block.page for block in BLOCKS if block.kind == "python"}):
        if setting(page, "ranks", "mpirun") != launcher:
            continue
        needs = re.findall(r"[\w.]+", setting(page, "needs"))
        missing = [name for name in needs if importlib.util.find_spec(name) is None]
        name = str(page.relative_to(ROOT))
        if missing:
            left_out.append(f"{name} needs {', '.join(missing)}")
        else:
            pages.append(name)
    if pages:
        output = start(launcher, pages)
        assert [page for page in pages if f"blocks of {page} in" not in output] == []
    if left_out:
        pytest.skip(f"ran {len(pages)} pages; {'; '.join(left_out)}")


def test_every_launcher_is_known():
    assert {setting(p, "ranks", "mpirun") for p in PAGES} == {"mpirun", "torchrun", "horovodrun"}


def test_data_files_are_valid():
    wrong = []
    for block in BLOCKS:
        try:
            if block.kind == "json":
                json.loads(block.code)
            elif block.kind == "toml":
                tomllib.loads(block.code)
            elif block.kind not in (*SHELL, "python", "run", "text", "ini", "dockerfile"):
                wrong.append(f"{block.place}: no test knows what {block.kind!r} is")
        except ValueError as error:
            wrong.append(f"{block.place}: {error}")
    assert not wrong, "\n".join(wrong)


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
    if program in LAUNCHERS:
        rest, ranks = program_behind(words)
        if not rest:
            raise ValueError(f"{program} starts nothing")
        python = ["python"] if rest[0].endswith(".py") and program == "torchrun" else []
        check([*python, *rest], folder, ranks)
    elif program in ("scripts/netlab", "scripts/check-faults") and "--" in words:
        check_script(words[: words.index("--")])
        inner = words[words.index("--") + 1 :]
        if inner[0] in LAUNCHERS and not program_behind(inner)[0]:
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
    elif program not in OTHERS:
        raise ValueError(f"no test knows the program {program!r}: see tests/test_code_blocks.py")


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
    elif words[0] not in THEIRS and not (ROOT / words[0]).is_file():
        raise ValueError(f"no file {words[0]}")


def check_pip(words: list[str]) -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = re.findall(r"(?:^|\s)(?:mpisign|\.)\[([\w,-]+)\]", " ".join(words))
    unknown = {e for names in named for e in names.split(",")} - set(extras)
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


def test_commands_can_be_typed(tmp_path, capsys):
    for needed in ("torch", "sklearn", "rich"):
        pytest.importorskip(needed, reason='pip install "mpisign[train]"')
    wrong, checked = [], 0
    for block in BLOCKS:
        if block.kind not in SHELL or block.not_run:
            continue
        code = block.code if block.kind != "console" else ""
        bash = subprocess.run(["bash", "-n"], input=code, capture_output=True, text=True)
        wrong += [f"{block.place}: {bash.stderr}"] if bash.returncode else []
        try:
            found = commands(block)
        except ValueError as error:
            wrong.append(f"{block.place}: {error}")
            continue
        for place, words in found:
            try:
                check(words, tmp_path)
                checked += 1
            except (Exception, SystemExit) as error:
                said = capsys.readouterr().err.strip().splitlines()[-1:]
                wrong.append(f"{place}: {' '.join(words)[:80]}: {error} {' '.join(said)}")
    assert not wrong, "\n".join(wrong)
    assert checked > 60


def test_a_wrong_block_is_named_with_page_and_line(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# A\n\n<!-- run\nx = 1\n-->\n```python\nassert x == 1\nx.no\n```\n")
    code = "import run_pages, page_blocks, pathlib, sys\n"
    code += "run_pages.ROOT = page_blocks.ROOT = pathlib.Path(sys.argv.pop(1))\nrun_pages.main()"
    command = [sys.executable, "-c", code, tmp_path, "page.md"]
    done = launchers.run(command, check=False, env=launchers.with_tests())
    assert done.returncode and "page.md:8: AttributeError" in done.stdout, done.stdout


@pytest.mark.parametrize(
    "words",
    ["mpisign train --no-such-option", "mpirun -n 4", "pip install .[nothing]", "nosuchprogram"]
    + ["python none.py", "scripts/setup --none", "python -m pytest tests/none.py"],
)
def test_wrong_commands_are_found(words, tmp_path):
    with pytest.raises((ValueError, SystemExit)):
        check(words.split(), tmp_path)
