"""Every code block of README and docs: Python runs, commands parse, data files are valid."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
import tomllib

import launchers
import pytest
from page_blocks import PAGES, ROOT, blocks, setting
from page_commands import check, commands

RUNNER = launchers.RANKS / "run_pages.py"
BLOCKS = [block for page in PAGES for block in blocks(page)]
LAUNCHERS = ("mpirun", "torchrun", "horovodrun", "python")
SHELL = ("indented", "sh", "bash", "console")


def start(launcher: str, pages: list[str]) -> str:
    job = [RUNNER, *pages]
    env = launchers.with_tests()
    if launcher == "mpirun":
        return launchers.on_ranks(3, *job, timeout=200)
    if launcher == "python":
        return launchers.run([sys.executable, *job], timeout=200, env=env).stdout
    if launcher == "torchrun":
        command = [launchers.find("torchrun"), "--standalone", "--nproc-per-node=2", *job]
        return launchers.run(command, timeout=200, env=env).stdout
    command = [launchers.find("horovodrun"), "-np", "2", "--gloo", sys.executable, *job]
    return launchers.run(command, timeout=200, env=env).stdout


@pytest.mark.mpi
@pytest.mark.parametrize("launcher", LAUNCHERS)
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
    assert {setting(page, "ranks", "mpirun") for page in PAGES} <= set(LAUNCHERS)


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
