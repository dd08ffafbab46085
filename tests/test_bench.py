"""``mpisign bench kernels``: what it tells, and that it compares like with like. No timings."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from launchers import ROOT, environment

from mpisign import cli, planes
from mpisign.bench import _limits
from mpisign.bench.kernels import cuda, run
from mpisign.bench.kernels.case import Case
from mpisign.bench.kernels.cases import cases
from mpisign.bench.kernels.host import Host
from mpisign.bench.kernels.stock import Stock, torch_there
from mpisign.bench.peers import expressions as plain
from mpisign.bench.settings import KERNELS
from mpisign.bench.table import coordinates
from mpisign.cli.numbers import size as read_size

QUICK = ["--runs", "2", "--warm"]


def bench(*options):
    return cli.main(["bench", "kernels", *map(str, options)])


def ident(value):
    return f"{value.kernel}-{value.variant}-{value.n}" if isinstance(value, Case) else None


@pytest.fixture(scope="module")
def short(tmp_path_factory):
    """All kernels, two sizes, all reports."""
    folder = tmp_path_factory.mktemp("bench")
    files = {option: folder / option for option in ("json", "plot", "markdown")}
    files["plot"] = folder / "plot.png"
    options = [part for option, path in files.items() for part in (f"--{option}", path)]
    assert bench(*QUICK, "--sizes", "1k,24k", "--threads", "1,2", *options) == 0
    return json.loads(files["json"].read_text()), files


def test_every_kernel_is_measured(short):
    document, _ = short
    assert {row["kernel"] for row in document["rows"]} | {"calls"} == set(KERNELS)
    assert [row["error"] for row in document["rows"] if row["error"]] == []
    assert {row["kernel"] for row in document["rows"] if row["size"] == 1000} | {"calls"} == set(
        KERNELS
    ), "a kernel without a main case"
    assert {row["n"] for row in document["rows"] if row["variant"] == "ties positive"} >= {
        2, 3, 4, 5, 7, 8, 15, 16, 31, 32, 64, 128,
    }  # fmt: skip
    assert len(document["calls"]) == 4


def test_the_figures_agree_with_each_other(short):
    document, _ = short
    for row in document["rows"]:
        times = row["time"]
        assert 0 < times["low"] <= times["median"] <= times["high"] and times["runs"] == 2
        assert row["bytes_per_second"] == pytest.approx(row["moved"] / times["median"])
        assert (row["ratio"] is None) == (row["size"] < Host.small)
        if row["ratio"] is not None:
            assert row["ratio"] > 0 and row["limit_time"]["runs"] == 2
        assert row["scaling"] is None, "so few coordinates are one thread's"
        for way in row["plain"]:
            slower = way["time"]["median"] / times["median"]
            assert way["times_slower"] == pytest.approx(slower)
    pack = next(r for r in document["rows"] if r["kernel"] == "pack" and r["size"] == 24_000)
    assert pack["moved"] == 24_000 * 4 + 3000 and pack["limit"] == "read"
    majority = next(r for r in document["rows"] if r["n"] == 5 and r["size"] == 24_000)
    assert majority["moved"] == 6 * 3000


def test_the_reports(short, capsys):
    document, files = short
    assert document["device"]["cpu"] and document["device"]["isa"]
    assert (
        document["command"].startswith("mpisign bench kernels --") and document["settings"]["warm"]
    )
    assert document["versions"]["numpy"] == np.__version__ and document["host"]["cores"]
    assert files["plot"].read_bytes().startswith(b"\x89PNG")
    table = files["markdown"].read_text()
    assert "| majority | ties random | 16 |" in table and "### 24k coordinates, 2 threads" in table
    today = f"Measured on {document['time'][:10]} "
    assert today in table and f"{document['host']['cores']} cores" in table
    assert "GiB of memory, kernels for " in table and f"numpy {np.__version__}" in table


def test_markdown_goes_between_its_marks(tmp_path, capsys):
    path, mark = tmp_path / "page.md", "<!-- mpisign bench kernels -->"
    path.write_text(f"before\n{mark}\nold\n{mark}\nafter\n")
    for _ in range(2):
        assert bench(*QUICK, "--sizes", "1k", "--only", "tally", "--markdown", path) == 0
    page = path.read_text()
    assert page.startswith(f"before\n{mark}\n\n    mpisign bench kernels --") and page.endswith(
        f"\n{mark}\nafter\n"
    )
    assert page.count("### 1k coordinates") == 1 and "old" not in page
    new = tmp_path / "new.md"
    for _ in range(2):
        assert bench(*QUICK, "--sizes", "1k", "--only", "tally", "--markdown", new) == 0
    assert new.read_text().count(mark) == 2
    page = f"see {mark} in the text\n{mark}\n"
    path.write_text(page)
    with pytest.raises(SystemExit):
        bench("--markdown", path)
    assert path.read_text() == page and "not two lines" in capsys.readouterr().err


def test_only_some(capsys):
    assert bench(*QUICK, "--sizes", "24k", "--only", "tally,calls") == 0
    output = capsys.readouterr().out
    names = {line.split()[0] for line in output.splitlines() if line[:1].islower()}
    assert "tally" in names and "unpack" in names, "unpack is one of the calls"
    assert "\x1b" not in output, "escape sequences in what is no terminal"
    assert not names & {"majority,", "update", "pack_many"}


def test_what_does_not_fit_is_told_and_not_tried(capsys):
    assert bench(*QUICK, "--sizes", "2^40", "--only", "update") == 0
    assert "needs 4" in capsys.readouterr().out


@pytest.mark.parametrize(
    "options, message",
    [
        (["--sizes", "1k,many"], "'many' is not a number from 8"),
        (["--sizes", "0"], "'0' is not a number from 8"),
        (["--sizes", "1.5"], "'1.5' is not a number from 8"),
        (["--only", "pack,cat"], "'cat' is none of pack, "),
        (["--threads", "0"], "'0' is not a number of threads"),
        (["--runs", "-1"], "expected one argument|'-1' is not a number of runs"),
        (["--json", "/no/such/folder/x"], "--json /no/such/folder/x: not a file in an existing"),
        (["--device", "cuda", "--threads", "2"], "--threads is of the CPU"),
        (["--isa", "mmx"], "invalid choice: 'mmx'"),
        (["--sizes", "1.5e0"], "'1.5e0' is not a number from 8"),
        (["--plot", "x.doc"], "--plot x.doc: the name must end in one of .*, .png, "),
        (["--plot", "x"], "--plot x: the name must end in one of .*, .png, "),
        (["--plot", "x.png", "--sizes", "8,9k"], "sizes below 10,000 have no limit .* 1k,1M"),
        (["--plot", "x.png", "--only", "calls"], "calls have no limit to be drawn against"),
        (["--markdown", "README.md"], "README.md: has text but not two lines reading <!-- "),
        (
            ["--markdown", "docs/results/demo.png"],
            "--markdown docs/results/demo.png: .*codec can't decode",
        ),
    ],
)
def test_bad_input_is_one_line_and_status_2(options, message, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(run, "_measure", None)  # all is refused before
    with pytest.raises(SystemExit) as ended:
        bench(*QUICK, *options)
    assert ended.value.code == 2
    *_, last = capsys.readouterr().err.splitlines()
    assert last.startswith("mpisign bench kernels: error: ") and re.search(message, last)


def test_no_gpu_is_told(capsys):
    if cuda._driver():
        pytest.skip("there is a GPU, or at least its driver")
    with pytest.raises(SystemExit) as ended:
        bench(*QUICK, "--device", "cuda")
    assert ended.value.code == 2
    assert "error: --device cuda: no NVIDIA GPU on this machine" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["json", "markdown", "plot"])
def test_a_full_disk_is_one_line_after_the_table(option, tmp_path, capsys):
    path = tmp_path / "full.png"
    path.symlink_to("/dev/full")
    with pytest.raises(SystemExit) as ended:
        bench(*QUICK, "--sizes", "24k", "--only", "update", f"--{option}", path)
    assert ended.value.code == 2
    output, errors = capsys.readouterr()
    assert "24k coordinates, 1 thread" in output
    assert errors.endswith(f"error: --{option} {path}: No space left on device\n")


def test_under_a_launcher_one_says_to_run_it_alone(capsys, monkeypatch):
    monkeypatch.setattr(run, "_measure", None)
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", "1")
    assert bench() == 0 and capsys.readouterr().err == ""
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", "0")
    with pytest.raises(SystemExit) as ended:
        bench()
    assert ended.value.code == 2 and "run it alone" in capsys.readouterr().err


def test_columns_are_told_where_they_are_shown(capsys):
    assert bench(*QUICK, "--sizes", "1k", "--only", "pack") == 0
    output = capsys.readouterr().out
    heads = next(line for line in output.splitlines() if line.startswith("kernel"))
    assert heads.endswith("GB/s  faster than") and "+-" not in output
    assert re.search(r"\d+x DeepSpeed's code|x packbits\(x < 0\)", output)
    assert "faster than: how many times longer" in " ".join(output.split())
    assert "of limit" not in output
    assert bench("--runs", "3", "--warm", "--sizes", "24k", "--only", "pack") == 0
    output = " ".join(capsys.readouterr().out.split())
    assert "of limit: its speed" in output and "+- half the quartiles' distance" in output


def test_ctrl_c_leaves_a_clean_message_and_the_json(tmp_path):
    command = [sys.executable, "-m", "mpisign.cli", "bench", "kernels", "--sizes", "1M"]
    process = subprocess.Popen(
        [*command, "--runs", "1000", "--only", "pack", "--json", tmp_path / "part.json"],
        cwd=ROOT,
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A job in the background of a script ignores SIGINT, and so would its children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert process.stderr and "pack" in process.stderr.readline()
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=30)
    assert process.returncode == 130, errors
    assert "mpisign: interrupted" in errors and "Traceback" not in errors + output
    assert "Interrupted" in json.loads((tmp_path / "part.json").read_text())["notes"][-1]


@pytest.mark.parametrize("case", list(cases(np)), ids=ident)
def test_bytes_held_are_those_that_arguments_take(case):
    """``Case.read``, ``written`` and ``again`` agree with what is laid out."""
    if case.needs_torch and not torch_there():
        pytest.skip("torch is not installed")
    length, taken = 64 * 161 * 8, []

    class Counting(Stock):
        def _take(self, nbytes):
            taken.append(nbytes)
            return super()._take(nbytes)

    stock = Counting(np, "cpu")
    stock.reserve(2 * case.held(length) + (64 << 10))
    case.build(stock, length)
    assert sum(taken) == pytest.approx(case.held(length), rel=0.01)


def test_the_plain_ways_compute_what_the_kernels_do():
    length, stock = 8 * 1003, Stock(np, "cpu")
    stock.reserve(1 << 20)
    x, stack = stock.floats(length), stock.planes(length, 15)
    same = np.array_equal
    assert same(plain.pack(np, x), planes.pack(x, zeros="positive"))
    assert same(plain.pack_abstain(np, x), planes.pack(x, zeros="abstain"))
    for n in (4, 15):
        vote = planes.majority(stack[:n], length=length, ties="positive")
        assert same(plain.majority(np, stack[:n], length), vote)
    for group in (3, 5):
        counted = planes.group_distances(stack, group=group, length=length)
        assert same(plain.group_distances(np, stack, length, group), counted)
    both = stock.planes(length, 4, 2)
    vote = planes.majority(both, length=length, ties="positive")
    assert same(plain.majority_masked(np, both, length), vote)
    assert same(plain.signs(np, stack[0], length, "float32"), planes.unpack(stack[0], length))
    sparse = stock.sparse(length, 0.05)
    assert 300 < np.unpackbits(sparse[1]).sum() < 500 and not (sparse[0] & ~sparse[1]).any()
    at, signs = plain.positions(sparse)
    assert same(plain.planes_of_positions(at, signs, length), sparse)
    assert same(planes.decode(planes.encode(sparse, length=length), length), sparse)


def test_a_stock_is_random_and_its_own():
    stock = Stock(np, "cpu")
    stock.reserve(1 << 22)
    x, y = stock.floats(100_000), stock.floats(100_000, "float16", zeros=0.5)
    assert abs(x.mean()) < 0.02 and abs(x.std() - 1) < 0.02 and (y == 0).mean() > 0.48
    assert x.ctypes.data % 64 == 0 and not np.shares_memory(x, y)
    rows = stock.planes(1001, 5)
    assert len({row.tobytes() for row in rows}) == 5 and (rows[:, -1] >> 1 == 0).all()
    with pytest.raises(MemoryError):
        stock.floats(1 << 22)


@pytest.mark.parametrize("streaming", [0, 1])
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_limits_move_what_they_say(streaming, threads):
    raw = np.zeros(64 * 40, np.uint8)
    at = -raw.ctypes.data % 64
    a, b = raw[at : at + 64 * 19], raw[at + 64 * 19 : at + 64 * 38]
    b[:] = 7
    _limits.move(a.ctypes.data, b.ctypes.data, 64 * 19, streaming, threads)
    assert (a == 7).all()
    assert _limits.move(0, a.ctypes.data, 64 * 19, 0, threads)
    a[:], b[:] = 0, 0
    assert not _limits.move(0, a.ctypes.data, 64 * 19, 0, threads)
    a[-64] = 1
    assert _limits.move(0, a.ctypes.data, 64 * 19, 0, threads)
    _limits.move(a.ctypes.data, 0, 64 * 19, streaming, threads)
    assert a.reshape(-1, 4).any(axis=1).sum() >= 152 and not b.any()
    with pytest.raises(ValueError, match="multiples of 64"):
        _limits.move(a.ctypes.data, b.ctypes.data, 63, streaming, threads)


@pytest.mark.parametrize(
    "text, size",
    [
        ("8", 8), ("1k", 1000), ("25.6M", 25_600_000), ("1G", 10**9), ("2^28", 1 << 28),
        ("1e6", 10**6), ("2.5E+3", 2500),
    ],
)  # fmt: skip
def test_sizes_are_read_and_written_as_people_do(text, size):
    assert read_size(text) == size
    names = {1 << 28: "268,435,456", 10**6: "1M", 2500: "2.5k"}
    assert coordinates(size) == names.get(size, text)
