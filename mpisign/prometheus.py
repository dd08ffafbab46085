"""``mpisign.stats()`` in Prometheus' text format, version 0.0.4."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mpisign.stats import Stats

Sample = tuple[str, Mapping[str, Any], float]  # what is added to the name, labels, value


def text(stats: Stats, labels: Mapping[str, Any]) -> str:
    """All metrics; ``labels`` are added to each."""
    stages, votes, suspects = stats.as_dict(), stats.votes.copy(), dict(stats.suspects)
    lines: list[str] = []

    def add(name: str, kind: str, help: str, samples: Iterable[Sample]) -> None:
        lines.append(f"# HELP mpisign_{name} {help}")
        lines.append(f"# TYPE mpisign_{name} {kind}")
        for more, own, value in samples:
            pairs = ",".join(f'{k}="{_escaped(v)}"' for k, v in {**labels, **own}.items())
            shown = "{" + pairs + "}" if pairs else ""
            lines.append(f"mpisign_{name}{more}{shown} {value!r}")

    def count(name: str, help: str, samples: Iterable[Sample]) -> None:
        add(name, "counter", help, samples)

    for key, what in (("calls", "Calls of a stage."), ("seconds", "Seconds in a stage.")):
        of_stages = [("", {"stage": name}, s[key]) for name, s in stages.items()]
        count(f"stage_{key}_total", what, of_stages)
    for key, what in (("sent", "to"), ("received", "from")):
        count(
            f"{key}_bytes_total",
            f"Payload bytes {what} other ranks.",
            [("", {}, sum(s[key] for s in stages.values()))],
        )
    if votes.samples:
        for name, help, value in (
            ("coordinates", "Coordinates of votes that were looked at.", votes.coordinates),
            ("cast", "Votes cast on them, by all ranks.", votes.votes),
            ("abstentions", "Votes not cast on them.", votes.abstentions),
            ("ties", "Coordinates that tied.", votes.ties),
            ("unanimous", "Coordinates without a vote against.", votes.unanimous),
        ):
            count(f"vote_sampled_{name}_total", help, [("", {}, value)])
        add("vote_margin", "histogram", "Votes for + minus votes for -.", _histogram(votes.margins))
        count(
            "vote_sampled_against_total",
            "Votes of a rank that were not the majority's.",
            [("", {"voter": r}, n) for r, n in sorted(votes.against.items())],
        )
    if votes.gradients:
        for name, help, value in (
            ("total", "Coordinates of gradients that were looked at.", votes.gradients),
            ("zeros_total", "Those that were exactly zero.", votes.zeros),
        ):
            count(f"gradient_sampled_{name}", help, [("", {}, value)])
    for key in ("coordinates", "differing", "flagged") if suspects else ():
        count(
            f"group_vote_{key}_total",
            f"{key.capitalize()} of a rank, compared with the vote of its group.",
            [("", {"voter": r}, getattr(d, key)) for r, d in sorted(suspects.items())],
        )
    return "\n".join(lines) + "\n"


def _histogram(margins: Mapping[int, int]) -> Iterable[Sample]:
    seen = 0
    for margin, n in sorted(margins.items()):
        seen += n
        yield "_bucket", {"le": f"{float(margin)}"}, seen
    yield "_bucket", {"le": "+Inf"}, seen
    yield "_sum", {}, sum(margin * n for margin, n in margins.items())
    yield "_count", {}, seen


def _escaped(value: Any) -> str:
    return str(value).replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
