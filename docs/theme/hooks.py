"""MkDocs's hooks: the API reference, the list of tables, and links that leave docs/.

The pages under docs/ are written for GitHub too, where ``../CONTRIBUTING.md`` and ``results/`` lead
somewhere. On the site they lead to the repository.
"""

from __future__ import annotations

import ast
import os
import re
from pathlib import Path
from typing import Any

import griffe
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent.parent
DOCS = ROOT / "docs"
_LINK = re.compile(r"(\]\()([^)\s#]+)((?:#[^)\s]*)?\))")
_HIDDEN = re.compile(r"^ *<!--.*?-->\n", re.MULTILINE | re.DOTALL)


def public_modules() -> list[str]:
    """The modules that users import from, as tests/test_public_docs.py lists them."""
    tree = ast.parse((ROOT / "tests" / "test_public_docs.py").read_text())
    lists = {
        ast.unparse(node.targets[0]): node.value
        for node in tree.body
        if isinstance(node, ast.Assign)
    }
    return [*ast.literal_eval(lists["PUBLIC"]), *ast.literal_eval(lists["FRAMEWORKS"])]


def public_names(module: griffe.Module) -> list[str]:
    """``__all__``, or what a module defines itself."""
    if module.exports is not None:
        return sorted(str(name) for name in module.exports)
    own = module.members.items()
    return [n for n, x in own if not x.is_alias and not n.startswith("_") and x.has_docstring]


def api_pages(package: griffe.Module) -> dict[str, str]:
    """{path: Markdown} of the API reference: one page for each module, each object once."""
    pages: dict[str, str] = {}
    shown: dict[str, str] = {}
    for name in public_modules():
        inner = name.partition(".")[2]
        module = package[inner] if inner else package
        lines = [f"# {name}", ""]
        if module.docstring:
            lines += [module.docstring.value, ""]
        for member in public_names(module):
            path, home = f"{name}.{member}", home_of(module, member)
            if home in shown:
                page = shown[home].rpartition(".")[0]
                link = f"[`{shown[home]}`]({page}.md#{shown[home]})"
                lines += [f"[](){{#{path}}}`{path}` is {link}.", ""]
                continue
            shown[home] = path
            lines += [f"[](){{#{path}}}", f"::: {home}", "    options:"]
            lines += [f"        heading: {path}", f"        toc_label: {member}", ""]
        pages[f"api/{name}.md"] = "\n".join(lines)
    return pages


def home_of(module: griffe.Module, member: str) -> str:
    """Where a public name is defined; mpisign.planes.pack is a function of a module pack."""
    found = module[member]
    path: str = found.canonical_path
    return f"{path}.{member}" if found.is_module and member in found.members else path


def result_pages() -> list[Path]:
    """What commands wrote: the tables of measurements, then those of studies."""
    folder = DOCS / "results"
    return [*sorted(folder.glob("*.md")), *sorted(folder.glob("*/*.md"))]


def title(page: Path) -> str:
    """The first heading."""
    return next(x[2:] for x in page.read_text().splitlines() if x.startswith("# "))


def on_config(config: Any) -> Any:
    tables = [{title(path): str(path.relative_to(DOCS))} for path in result_pages()]
    (results,) = [part["Results"] for part in config.nav if "Results" in part]
    results.append({"Tables": tables})
    modules = [{name: f"api/{name}.md"} for name in public_modules()]
    config.nav.append({"API reference": modules})
    return config


def on_files(files: Files, config: Any) -> Files:
    handler = config.plugins["mkdocstrings"].get_handler("python")
    package = handler.collect("mpisign", handler.get_options({}))  # which it keeps for the pages
    for path, text in api_pages(package).items():
        files.append(File.generated(config, path, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    if page.file.src_uri.startswith("results/"):
        page.meta["search"] = {"exclude": True}  # figures, not words
    folder = (DOCS / page.file.src_uri).parent

    def outside(link: re.Match[str]) -> str:
        start, target, rest = link.groups()
        if re.match(r"[a-z]+:", target):
            return link.group()
        path = Path(os.path.normpath(folder / target))
        if path.is_dir() or not path.is_relative_to(DOCS):
            kind = "tree" if path.is_dir() else "blob"
            return f"{start}{config.repo_url}/{kind}/main/{path.relative_to(ROOT)}{rest}"
        return link.group()

    return _LINK.sub(outside, _HIDDEN.sub("", markdown))
