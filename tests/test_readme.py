"""README and docs: links and anchors resolve, figures are those of docs/results."""

import re

import pytest
from page_blocks import PAGES, ROOT

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#{1,6} +(.+?) *$", re.MULTILINE)


def _prose(page):
    return _FENCE.sub("", re.sub(r"<!--.*?-->", "", page.read_text(), flags=re.DOTALL))


def _slug(heading):
    """The anchor that GitHub makes of a heading."""
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
    return re.sub(r"[^\w\- ]", "", text).replace(" ", "-")


def _anchors(page):
    seen, anchors = {}, set()
    for heading in _HEADING.findall(_prose(page)):
        slug = _slug(heading)
        count = seen[slug] = seen.get(slug, -1) + 1
        anchors.add(f"{slug}-{count}" if count else slug)
    return anchors


def broken_links(page):
    """Relative links of a page that lead nowhere."""
    broken = []
    for target in _LINK.findall(re.sub(r"`[^`\n]*`", "", _prose(page))):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.exists() or (anchor and anchor not in _anchors(file)):
            broken.append(target)
    return broken


def rows(page):
    """The rows of a page's tables as {first cell: cells}, without bold and code marks."""
    lines = [x for x in page.read_text().splitlines() if x.startswith("|")]
    cells = [[c.strip().strip("*`") for c in x.strip("|").split("|")] for x in lines]
    return {row[0]: row for row in reversed(cells)}  # of a label, the first


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_and_anchors_resolve(page):
    assert broken_links(page) == []


def test_broken_links_are_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "# A `b`: c=d\n[x](#a-b-cd) [x](#a) [x](no.md) [x](https://example.org)\n```\n[x](y)\n```\n"
    )
    assert broken_links(page) == ["#a", "no.md"]


def test_one_learning_rate_to_start_with():
    """README, pages, examples and ``mpisign train`` once had four of them."""
    from mpisign.experiments.settings import VOTE_LR

    code = [code for page in PAGES for _, code in _FENCE.findall(page.read_text())]
    code += [p.read_text() for p in (ROOT / "docs" / "examples").glob("*.py")]
    others = ("ef_sign", "onebit", "muon")  # whose rates are others, and said where they stand
    votes = [text for text in code if not any(name in text for name in others)]
    rates = re.findall(r"optim\.SGD\([\w.]+\(\), lr=([\d.e-]+)", "\n".join(votes))
    assert len(rates) >= 9 and {float(rate) for rate in rates} == {VOTE_LR}
    said = (ROOT / "docs" / "compressors.md").read_text()
    assert re.findall(r"\*\*Start at ([\d.e-]+)\*\*", said) == [
        f"{VOTE_LR:.0e}".replace("e-0", "e-")
    ]


def test_readme_is_short_and_installs_first():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 100
    headings = _HEADING.findall(_prose(ROOT / "README.md"))
    assert headings[1] == "Install"
    assert text.count("![") == 1


def test_readme_has_the_figures_of_the_demo():
    """The figures that were once copied by hand, and differed from what the program prints."""
    measured = rows(ROOT / "docs" / "results" / "demo.md")
    shown = {k: v for k, v in rows(ROOT / "README.md").items() if re.search(r"average,|vote,", k)}
    assert len(shown) == 7
    for label, cells in shown.items():
        assert label in measured, f"docs/results/demo.md has no row {label!r}"
        missing = [c for c in cells if c and c not in measured[label]]
        assert not missing, f"{label}: README has {missing}, docs/results/demo.md {measured[label]}"


@pytest.mark.parametrize(
    "bullet, source, unit",
    [("Time", "collectives.md", r"\d[\d.]* m?s\b"), ("Hostile ranks", "hostile.md", r"[\d.]+%")],
)
def test_figures_in_the_text_are_measured(bullet, source, unit):
    text = (ROOT / "README.md").read_text().split(f"- **{bullet}**", 1)[1].split("\n- **")[0]
    figures = re.findall(unit, text)
    assert len(figures) >= 2
    measured = (ROOT / "docs" / "results" / source).read_text()
    missing = [x for x in figures if x not in measured]
    assert not missing, f"README, {bullet}: {missing} not in docs/results/{source}"


def test_pages_that_the_code_names_exist():
    named = re.compile(r"(?<![\w/])docs/[\w./-]+\.(?:md|png|py|jsonl)\b")
    missing = {
        f"{file.relative_to(ROOT)}: {path}"
        for folder in ("mpisign", "tests", "scripts")
        for file in (ROOT / folder).rglob("*")
        if file.is_file() and (file.suffix == ".py" or not file.suffix)
        for path in named.findall(file.read_text(errors="ignore"))
        if "cache" not in str(file) and not (ROOT / path).exists()
    }
    assert not missing, "\n".join(sorted(missing))


def test_every_picture_and_page_is_linked():
    """No page or picture that no other page shows."""
    linked = set()
    for page in PAGES:
        for target in _LINK.findall(_prose(page)):
            linked.add((page.parent / target.partition("#")[0]).resolve())
    files = [f for f in (ROOT / "docs").rglob("*") if f.suffix in (".md", ".png")]
    orphans = [str(f.relative_to(ROOT)) for f in files if f.resolve() not in linked]
    assert orphans == []


def test_citation_is_valid():
    yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0"
    assert {"message", "title", "authors", "version", "license"} <= set(citation)
    project = (ROOT / "pyproject.toml").read_text()
    assert f'version = "{citation["version"]}"' in project
    assert f'license = "{citation["license"]}"' in project
