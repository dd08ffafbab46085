"""Rules by name: "median", "krum", "nnm+krum"."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any, Final

from mpisign.robust.base import Mixing, Rule
from mpisign.robust.bulyan import Bulyan
from mpisign.robust.centered_clipping import CenteredClipping
from mpisign.robust.coordinate import Meamed, Mean, Median, TrMean
from mpisign.robust.geometric_median import GeometricMedian
from mpisign.robust.krum import Krum, MultiKrum
from mpisign.robust.mixing import NNM, Bucketing, Clipping
from mpisign.robust.pipeline import Pipeline

#: Names to classes, in the order of the documentation.
RULES: Final[dict[str, type[Rule]]] = {
    "mean": Mean,
    "median": Median,
    "trimmed_mean": TrMean,
    "meamed": Meamed,
    "geometric_median": GeometricMedian,
    "centered_clipping": CenteredClipping,
    "krum": Krum,
    "multi_krum": MultiKrum,
    "bulyan": Bulyan,
}

#: Mixings that may precede a rule, with "+".
MIXINGS: Final[dict[str, type[Mixing]]] = {"nnm": NNM, "bucketing": Bucketing, "clipping": Clipping}


def by_name(name: str, f: int = 0) -> Rule:
    """The rule of a name, with its defaults.

    Args:
        name: A name of ``RULES``, after any of ``MIXINGS`` with "+": "krum", "nnm+krum".
            "bucketing" has s = 2, as Karimireddy et al. 2022; its own default of 1 mixes nothing.
        f: Hostile rows, for all steps that have an f.

    Returns:
        The rule; a ``Pipeline`` if mixings precede it.

    Raises:
        ValueError: The name is unknown; the message lists the names.

    Example:
        >>> by_name("nnm+median", f=1)
        Pipeline(mixings=(NNM(f=1),), rule=Median())
    """
    *before, last = name.split("+") if isinstance(name, str) else [name]
    steps = [_made(MIXINGS, part, f, name) for part in before]
    rule = _made(RULES, last, f, name)
    return Pipeline(*steps, rule) if steps else rule


def _made(known: dict[str, Any], part: Any, f: int, name: Any) -> Rule:
    if part not in known:
        raise ValueError(
            f"by_name: name must be one of {', '.join(RULES)}, after any of "
            f"{', '.join(f'{m}+' for m in MIXINGS)}, got {name!r}{hint(part, known)}"
        )
    kind = known[part]
    if kind is Bucketing:
        return Bucketing(2)
    made: Rule = kind(f) if kind.has_f else kind()
    return made


def hint(value: object, known: Iterable[str]) -> str:
    """The end of a message: a known name that is close to ``value``, if there is one."""
    near = difflib.get_close_matches(str(value), list(known), n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""
