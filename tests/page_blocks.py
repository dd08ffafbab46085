"""The code blocks of README and docs, and what HTML comments say about them.

Before or after any block a comment may hold Python that runs at its place, in the page's namespace:

    <!-- run
    model = torch.nn.Linear(4, 2)
    -->

Other comments: ``<!-- not run: REASON -->`` above a block; once in a page ``<!-- ranks: torchrun
-->`` (mpirun is the default; horovodrun, python) and ``<!-- needs: MODULE, ... -->``. A page's
Python blocks run in order, in one namespace, in an empty folder.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted(
    [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "scripts" / "lab" / "README.md"]
    + [ROOT / "tests" / "README.md", *(ROOT / "docs").rglob("*.md")]
)
_OPENS = re.compile(r"( *)```(\w*)")
_NOT_RUN = re.compile(r" *<!-- not run: (.+?) -->")
_SETTING = r"^<!-- {}: (.+?) -->$"


@dataclass(frozen=True)
class Block:
    """``kind``: the fence's word, "run" for hidden Python, "indented"; ``line``: of its code."""

    page: Path
    line: int
    kind: str
    code: str
    not_run: str = ""

    @property
    def place(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(page: Path) -> Iterator[Block]:
    """All code blocks of a page, hidden ones too, in its order."""
    lines = page.read_text().splitlines()
    i, reason = 0, ""
    while i < len(lines):
        line = lines[i]
        fence = _OPENS.fullmatch(line)
        if said := _NOT_RUN.fullmatch(line):
            reason = said[1]
            i += 1
            continue
        if line == "<!-- run":
            end = lines.index("-->", i)
            yield Block(page, i + 2, "run", "\n".join(lines[i + 1 : end]) + "\n")
            i = end
        elif fence:
            indent = fence[1]
            end = lines.index(f"{indent}```", i + 1)
            code = [x.removeprefix(indent) for x in lines[i + 1 : end]]
            yield Block(page, i + 2, fence[2], "\n".join(code) + "\n", reason)
            i = end
        elif line.startswith("    ") and not lines[i - 1].strip() and not _in_list(lines, i):
            end = i
            while end < len(lines) and (lines[end].startswith("    ") or not lines[end].strip()):
                end += 1
            code = [x.removeprefix("    ") for x in lines[i:end]]
            yield Block(page, i + 1, "indented", "\n".join(code).rstrip() + "\n", reason)
            i = end - 1
        if line.strip():
            reason = ""
        i += 1


def _in_list(lines: list[str], i: int) -> bool:
    """Whether the text that line i continues is an item of a list."""
    while i and (not lines[i].strip() or lines[i].startswith(" ")):
        i -= 1
    return bool(re.match(r"(-|\d+\.) ", lines[i]))


def setting(page: Path, name: str, default: str = "") -> str:
    """What ``<!-- name: ... -->`` says."""
    found = re.search(_SETTING.format(name), page.read_text(), re.MULTILINE)
    return found[1] if found else default
