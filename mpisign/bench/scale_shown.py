"""Tables and the picture of ``mpisign bench scale``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from mpisign.bench import plot
from mpisign.bench.report import Shown
from mpisign.bench.table import Table, amount, coordinates, grouped

_COLOURS = {
    "allgather": plot.AMBER,
    "alltoall": plot.BLUE,
    "hierarchical, nodes": plot.GREEN,
    "hierarchical, racks": plot.PURPLE,
}
_MARKERS = dict(zip(_COLOURS, "so^D", strict=True))
_ARENA = 64 << 20


def _tables(record: Any) -> Iterator[Table]:
    yield _table(record, "messages that the busiest rank sends", lambda t: f"{t.sends:,}")
    yield _table(record, "bytes that it sends", lambda t: amount(t.sent))
    yield _table(record, "memory of its buffers", lambda t: amount(t.memory), _most)
    of_agreement: dict[int, list[str]] = {}
    for row in record.rows:
        if row.size == record.rows[0].size and row.label in ("alltoall", "hierarchical, nodes"):
            t = row.traffic
            cells = f"{t.agreement_sends:,}", amount(t.agreement_sent)
            of_agreement.setdefault(row.ranks, [f"{row.ranks:,}"]).extend(cells)
    size = coordinates(record.settings.sizes[0])
    title = f"agreement: what every rank sends besides, {size} coordinates"
    heads = (
        "ranks",
        "allgather and alltoall, messages",
        "bytes",
        "hierarchical, messages",
        "bytes",
    )
    yield Table(title, heads, list(of_agreement.values()))
    for (network,), choices in grouped(record.choices, "network").items():
        lines = [
            (f"{ranks:,}", _switches(of_ranks))
            for (ranks,), of_ranks in grouped(choices, "ranks").items()
        ]
        yield Table(f"what auto takes: {network}", ("ranks", "note"), lines)


def _table(
    record: Any, title: str, cell: Callable[[Any], str], last: Callable[[int], str] | None = None
) -> Table:
    heads = ["coordinates", "ranks", *_COLOURS, *(["at most"] if last else [])]
    rows = []
    for (size, ranks), of in grouped(record.rows, "size", "ranks").items():
        cells = {row.label: cell(row.traffic) for row in of}
        more = [last(size)] if last else []
        rows.append([coordinates(size), f"{ranks:,}", *(cells[name] for name in _COLOURS), *more])
    return Table(title, heads, rows)


def _most(size: int) -> str:
    return amount(3 * (-(-size // 8)) + _ARENA)


def _switches(choices: Sequence[Any]) -> str:
    parts = [f"{c.label} to {coordinates(_round(c.last))}" for c in choices[:-1]]
    return "; ".join([*parts, choices[-1].label + (" beyond" if parts else "")])


def _round(length: int) -> int:
    """Two digits."""
    digits = 10 ** max(0, len(str(length)) - 2)
    return length // digits * digits


def _notes(record: Any) -> Iterator[str]:
    s = record.settings
    yield (
        f"Nodes of {s.node} ranks, racks of {s.rack} nodes; one plane up, one down; messages of "
        "about 48 KiB where a vote is long enough. Rounds that a chunk waits for: allgather 1, "
        "alltoall 2, hierarchical 4 with nodes and 6 with racks. The figures are of calls after "
        "the first of their kind, by mpisign.vote_traffic: for allgather and alltoall from the "
        "sizes by which a vote cuts its memory, for hierarchical from its own generator, run "
        "without ranks."
    )
    yield (
        "A node has one link of so many Gbit/s; an exchange between nodes takes so many us, and "
        "each message so many. Within a node auto reckons with 2 us, 0.3 us a message and 10 GB/s."
        if s.costs is None
        else ""
    )


def _draw(record: Any) -> Any:
    """Messages, memory, and what auto takes, over ranks."""
    plot.measured(record.rows)
    s = record.settings
    size = s.sizes[len(s.sizes) // 2]
    figure = plot.figure(13, 8, "What the busiest rank sends and holds, and what auto takes")
    columns = 1 + -(-len(record.costs) // 2)
    axes = figure.subplots(2, columns, squeeze=False)
    of_size = [row for row in record.rows if row.size == size]
    messages, memory = axes[:, 0]
    _lines(messages, of_size, lambda t: t.sends)
    messages.set_title(f"messages, {coordinates(size)} coordinates", fontsize=9, loc="left")
    _lines(memory, of_size, lambda t: t.memory / 1e6)
    most = (3 * size / 8 + _ARENA) / 1e6
    memory.axhline(most, color=plot.GREY, linewidth=1, linestyle=":")
    memory.annotate(
        "3 planes + 64 MiB", (s.ranks[0], most), (0, -10), textcoords="offset points", fontsize=8,
        color=plot.GREY,
    )  # fmt: skip
    memory.set_title(f"MB of buffers, {coordinates(size)} coordinates", fontsize=9, loc="left")
    maps = axes[:, 1:].T.reshape(-1) if columns > 2 else axes[:, 1]
    for axis in maps[len(record.costs) :]:
        axis.set_axis_off()
    for axis, network in zip(maps, record.costs, strict=False):
        _map(axis, [c for c in record.choices if c.network == network])
        ranks, _, wire = network.partition(", ")
        axis.set_title(f"auto, {ranks},\n{wire}", fontsize=9, loc="left")
    handles, labels = messages.get_legend_handles_labels()
    figure.legend(handles, labels, **plot.SMALL, loc="outside lower center", ncols=len(labels))
    return figure


def _lines(axis: Any, rows: Sequence[Any], value: Callable[[Any], float]) -> None:
    for label, colour in _COLOURS.items():
        mine = [row for row in rows if row.label == label]
        axis.plot(
            [row.ranks for row in mine], [value(row.traffic) for row in mine], color=colour,
            marker=_MARKERS[label], markersize=5, linewidth=1.5, label=label,
        )  # fmt: skip
    axis.set_yscale("log")
    _of_ranks(axis, [row.ranks for row in rows])


def _map(axis: Any, choices: Sequence[Any]) -> None:
    """A bar for each number of ranks, coloured by what is taken at each length."""
    ranks = sorted({c.ranks for c in choices})
    for choice in choices:
        left, right = choice.ranks / 2**0.5, choice.ranks * 2**0.5
        height = choice.last - choice.first
        colour = _COLOURS[choice.label]
        axis.bar(left, height, right - left, choice.first, align="edge", color=colour)
    axis.set_yscale("log")
    axis.set_ylim(min(c.first for c in choices), max(c.last for c in choices))
    axis.set_ylabel("coordinates", fontsize=8)
    _of_ranks(axis, ranks)


def _of_ranks(axis: Any, ranks: Sequence[int]) -> None:
    axis.set_xscale("log")
    axis.minorticks_off()
    shown = sorted(set(ranks))
    axis.set_xticks(shown, [str(p) for p in shown], fontsize=8, rotation=45)
    axis.set_xlabel("ranks", fontsize=8)
    plot.finish(axis)


SHOWN = Shown(_tables, _notes, _draw)
