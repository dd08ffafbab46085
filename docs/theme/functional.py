"""A griffe extension: what the API reference needs to know of mpisign's docstrings.

The functions that mpisign.functions makes of Communicator's methods have signatures and docstrings
only when the module runs, so this one module is imported; all others are read as text.
"""

from __future__ import annotations

import re
import sys
from typing import Any

import griffe

MODULE = "mpisign.functions"


def with_examples(obj: griffe.Object) -> None:
    """Calls a section Example what griffe knows: Examples."""
    if obj.docstring is not None:
        obj.docstring.value = re.sub(r"(?m)^Example:$", "Examples:", obj.docstring.value)


class Functional(griffe.Extension):
    """Replaces the attributes of mpisign.functions by the functions that they are."""

    def on_instance(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        with_examples(obj)

    def on_package(self, *, pkg: griffe.Module, **kwargs: Any) -> None:
        if pkg.name != "mpisign":
            return
        module = pkg["functions"]
        paths = [module.filepath.parents[1], *sys.path]
        made = griffe.inspect(MODULE, filepath=module.filepath, import_paths=paths)
        for name, member in list(module.members.items()):
            if not member.is_alias and member.is_attribute and not name.startswith("_"):
                with_examples(made[name])
                module.set_member(name, made[name])
