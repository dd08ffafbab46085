"""The site: built without warnings, complete, and of pages that open without server or network."""

import os
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote

import pytest
import test_public_docs

ROOT = Path(__file__).resolve().parent.parent
NEEDS = 'pip install "mpisign[docs]"'
_TAG = re.compile(r"<(script|link|img|iframe|source|a)\b[^>]*?\b(?:src|href)=\"?([^\s\">]+)")
_ID = re.compile(r"\bid=\"?([^\s\">]+)")

pytest.importorskip("material", reason=NEEDS)
pytest.importorskip("mkdocstrings_handlers.python", reason=NEEDS)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """All pages, by path; one build for all tests, some 10 seconds."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-d", str(folder)]
    env = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=env, timeout=250, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return {path: path.read_text() for path in folder.rglob("*.html")}


def test_pages_open_without_server_and_network(site):
    wrong = []
    for page, text in site.items():
        for kind, target in _TAG.findall(text):
            outside = re.match(r"[a-z]+:|//", target)
            if outside and kind != "a":
                wrong.append(f"{page.name} loads {target}")
            elif not outside and page.name != "404.html":
                file = page.parent / unquote(re.split("[#?]", target)[0])
                if not file.is_file() and not target.startswith("#"):
                    wrong.append(f"{page.name}: {target} is no file")
    assert not wrong, "\n".join(wrong)
    (folder,) = {page.parent for page in site if page.name == "404.html"}
    styles = "".join(path.read_text() for path in folder.rglob("*.css"))
    assert not re.findall(r"url\(['\"]?(?:https?:)?//[^)]*", styles)
    assert (folder / "search" / "search_index.js").stat().st_size > 100_000


def test_every_public_name_is_in_the_reference(site):
    ids = {page.stem: set(_ID.findall(text)) for page, text in site.items()}
    missing = []
    for module in test_public_docs.PUBLIC:
        names = {n for n, _ in test_public_docs.public() if n.rpartition(".")[0] == module}
        names |= {f"{module}.{n}" for n in getattr(sys.modules.get(module), "__all__", ())}
        missing += sorted(names - ids.get(module, set()))
    assert not missing, f"not in the API reference: {missing}"


def test_what_only_tests_run_is_not_shown(site):
    assert not [page.name for page, text in site.items() if "<!-- run" in text]
