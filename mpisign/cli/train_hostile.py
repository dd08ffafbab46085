"""What ``mpisign train`` is told of hostile ranks: who attacks how, and what holds them off."""

from __future__ import annotations

import argparse
import difflib
import textwrap
from collections.abc import Iterable
from typing import Any

from mpisign import attacks, robust
from mpisign.cli import numbers
from mpisign.training.settings import ORDERS, PLACEMENTS, Settings

_EPILOG = """\
the table of suspects (--detox; docs/detox.md):
  differs          how many of its votes were not its group's
  flagged          in how many tallies it was far from its group and nobody else of it was
  odd one out      in how many draws of the groups that held for the second half of the draw
  verdict          suspect: in over half of its draws, of which those count less that it shared with
                   other suspects; unclear: in over a third
  in truth         who was made hostile

attacks (--attack; docs/attacks.md):
%s

rules (--rule; docs/robust.md), also joined, as nnm+krum:
%s"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of groups, rules and hostile ranks."""
    d = Settings()
    _add_attacks(parser.add_argument_group("hostile ranks"), d)
    _add_defences(parser.add_argument_group("what holds them off"), d)


def epilog() -> str:
    """What the options' help has no room for."""
    return _EPILOG % (_listed(attacks.ATTACKS), _listed([*robust.MIXINGS, *robust.RULES]))


def _add_attacks(group: Any, d: Settings) -> None:
    add = group.add_argument
    add(
        "--adversaries",
        metavar="K",
        type=numbers.count,
        default=0,
        help="make the last K ranks hostile (default: %(default)s)",
    )
    add(
        "--attack",
        type=_attack,
        metavar="NAME",
        default=d.attack,
        help="what they do, see below (default: %(default)s, which sends -100 g)",
    )
    add(
        "--suspects",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="tell who differs from its group, with --detox (default: if anybody is conspicuous)",
    )


def _add_defences(group: Any, d: Settings) -> None:
    add = group.add_argument
    add(
        "--detox",
        metavar="R",
        type=numbers.positive,
        help="groups of R ranks, odd, that get the same batches; each votes first, then the groups",
    )
    add(
        "--placement",
        choices=PLACEMENTS,
        default=d.placement,
        help="a group's members on different nodes, on one, or ceil(R / 2) hostile ranks to a "
        "group: the worst that can happen (default: %(default)s)",
    )
    add(
        "--reshuffle-every",
        metavar="E",
        type=numbers.count,
        default=d.reshuffle_every,
        help="epochs after which spread groups are drawn anew, 0: never; for some tens of steps "
        "afterwards members' momenta differ, and so do honest votes (default: %(default)s)",
    )
    add(
        "--order",
        choices=ORDERS,
        default=d.order,
        help="of batches in groups; flipflop: every second epoch backwards (default: %(default)s)",
    )
    add(
        "--rule",
        metavar="NAME",
        type=_rule,
        help="the ways that vote send whole gradients instead, in fp32, and this rule aggregates "
        "them, see below; with --detox it goes over one gradient of each group",
    )
    add(
        "--rule-f",
        metavar="F",
        type=numbers.count,
        help="hostile gradients that the rule is to stand (default: as many as --adversaries can "
        "send, or own by a group's majority)",
    )
    add(
        "--byzantine-f",
        metavar="F",
        type=numbers.count,
        default=d.byzantine_f,
        help="votes stand F ranks that lie about tallies too (default: %(default)s)",
    )


def _listed(names: Iterable[str]) -> str:
    return textwrap.fill(
        ", ".join(names), 98, initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False
    )


def _attack(text: str) -> str:
    return _known(text, tuple(attacks.ATTACKS), "an attack")


def _rule(text: str) -> str:
    *mixings, last = text.split("+")
    for name in mixings:
        _known(name, tuple(robust.MIXINGS), "what may stand before a rule")
    _known(last, tuple(robust.RULES), "a rule")
    return text


def _known(text: str, names: tuple[str, ...], what: str) -> str:
    if text not in names:
        near = difflib.get_close_matches(text, names, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else f": {', '.join(names)}"
        raise argparse.ArgumentTypeError(f"{text!r} is not {what}{hint}")
    return text
