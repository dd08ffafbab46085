"""Kernels of robust rules, bit for bit against NumPy: flags, distances, mixtures, order."""

from __future__ import annotations

import numpy as np
import pytest
import samples
import torch
from fused_arrays import BF16, isa, isa_restored

from mpisign.backend import threads
from mpisign.robust import expressions, rows

assert isa and isa_restored  # fixtures
pytestmark = pytest.mark.filterwarnings("ignore:.*encountered:RuntimeWarning")

LENGTHS = [0, 1, 7, 8, 15, 16, 17, 31, 32, 33, 127, 128, 129, 151, 4095, 4096, 4097]
DTYPES = [np.float32, np.float64, np.float16, BF16]
COUNTS = [1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 20, 31, 32, 33, 64, 100]


def made(n, d, dtype=np.float32, seed=0):
    """Rows with equal values, zeros of both signs, subnormals and huge values among them."""
    rng = np.random.default_rng([seed, n, d])
    x = rng.standard_normal((n, d)) * 10.0 ** rng.integers(-3, 3, (n, d))
    kind = rng.random((n, d))
    x[kind < 0.1] = 0.0
    x[(kind >= 0.1) & (kind < 0.2)] = -0.0
    x[(kind >= 0.2) & (kind < 0.4)] = 1.5
    if dtype != np.float16:
        x[(kind >= 0.4) & (kind < 0.5)] = 1e-40
        x[(kind >= 0.5) & (kind < 0.55)] = -1e38
        x[(kind >= 0.55) & (kind < 0.6)] = 3e38
    return x.astype(dtype)


def rounded(wide, dtype):
    """As the kernels: 16-bit floats by way of fp32."""
    return wide.astype(np.float32 if np.dtype(dtype).itemsize == 2 else dtype).astype(dtype)


def expected_pairs(x):
    """Squared distances in the kernel's order: eight sums a chunk, chunks one after the other."""
    n, d = x.shape
    wide = np.vstack([x.astype(np.float64), np.zeros((1, d))])
    part_of_64 = -(-d // 64)
    chunk = max(8192, -(-part_of_64 // 64) * 64)
    first, second = np.triu_indices(n + 1, 1)
    total = np.zeros(len(first))
    for at in range(0, d, chunk):
        part = np.zeros((n + 1, -(-min(chunk, d - at) // 8) * 8))
        part[:, : min(chunk, d - at)] = wide[:, at : at + chunk]
        apart = part[first] - part[second]
        s = np.cumsum((apart * apart).reshape(len(first), -1, 8), axis=1)[:, -1]
        s = s.T
        total += ((s[0] + s[4]) + (s[2] + s[6])) + ((s[1] + s[5]) + (s[3] + s[7]))
    return total


def expected_mix(a, x):
    out = np.zeros((len(a), x.shape[1]))
    for i, weights in enumerate(a):
        used = np.flatnonzero(weights)
        equal = len(set(weights[used])) == 1
        for place, j in enumerate(used):
            product = x[j].astype(np.float64) * (1 if equal else weights[j])
            out[i] = out[i] + product if place else product
        if equal:
            out[i] *= weights[used[0]]
    return rounded(out, x.dtype)


def expected_sorted_mean(x, low, high):
    total = np.zeros(x.shape[1])
    for row in np.sort(x.astype(np.float64), axis=0)[low:high]:
        total = total + row
    return rounded(total / (high - low), x.dtype)


def expected_nearest(x, k):
    s, n = np.sort(x.astype(np.float64), axis=0), len(x)
    median = (s[(n - 1) // 2] + s[n // 2]) * 0.5
    start = (s[k:] - median < median - s[: n - k]).sum(axis=0)
    total = np.zeros(x.shape[1])
    for slot in range(k):
        total = total + np.take_along_axis(s, (start + (slot - start) % k)[None], axis=0)[0]
    return rounded(total / k, x.dtype)


def same(a, b):
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def check_all(x, n_weights=3):
    """Every function on these rows, NumPy or torch."""
    host = x if isinstance(x, np.ndarray) else _numpy(x)
    n, d = host.shape
    first, second = np.triu_indices(n + 1, 1)
    squared = rows.squared_distances(x)
    assert same(squared[first, second], expected_pairs(host)) and same(squared, squared.T.copy())
    assert not np.diagonal(squared).any()
    assert same(rows.squared_norms(x), squared[:n, n].copy())
    for m in {1, n_weights}:
        a = np.random.default_rng([n, m]).standard_normal((m, n))
        a[np.random.default_rng([m, n]).random((m, n)) < 0.3] = 0
        assert same(_numpy(rows.mix(a, x)), expected_mix(a, host))
        a[:] = (a != 0) / 3
        assert same(_numpy(rows.mix(a, x)), expected_mix(a, host))
    for low, high in {((n - 1) // 2, n // 2 + 1), (0, n), (n // 4, n - n // 4), (n - 1, n)}:
        result = rows.sorted_mean(x, low, high)
        assert same(_numpy(result), expected_sorted_mean(host, low, high)), (low, high)
    for k in {1, n // 3 + 1, n - n // 4, n}:
        assert same(_numpy(rows.nearest_to_median(x, k)), expected_nearest(host, k)), k
    assert rows.finite(x).all()


def _numpy(x):
    if isinstance(x, np.ndarray):
        return x
    x = x.detach()
    return x.view(torch.int16).numpy().view(BF16) if x.dtype == torch.bfloat16 else x.numpy()


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: np.dtype(d).name)
def test_all_lengths(isa, dtype):
    for d in LENGTHS:
        check_all(made(5, d, dtype))
    check_all(made(2, 20_001, dtype))


@pytest.mark.parametrize("n", COUNTS)
def test_all_numbers_of_rows(isa, n):
    for d in (1, 77, 200):
        check_all(made(n, d), n if n < 50 else 3)
    check_all(made(n, 130, np.float64), 2)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n", [2, 3, 5, 8, 11, 16])
def test_networks_sort_all_zeros_and_ones(isa, n, dtype):
    """A network that sorts every sequence of zeros and ones sorts everything (Knuth 5.3.4, Z)."""
    columns = (np.arange(2**n) >> np.arange(n)[:, None] & 1).astype(dtype)
    ones = columns.sum(axis=0)
    for i in range(n):
        assert (rows.sorted_mean(columns, i, i + 1) == (ones >= n - i)).all()


@pytest.mark.parametrize("n", [17, 20, 32, 33, 49, 65])
def test_every_order_statistic_of_many_rows(isa, n):
    rng = np.random.default_rng(n)
    columns = np.tile(np.repeat([0, 1], n)[np.add.outer(np.arange(n), np.arange(n + 1))], 20)
    columns = rng.permuted(columns, axis=0).astype(np.float32)
    expected = np.sort(columns, axis=0)
    for i in range(n):
        assert same(rows.sorted_mean(columns, i, i + 1), expected[i])


def test_nearest_to_median_is_what_it_says(isa):
    x = np.random.default_rng(4).permuted(np.tile(np.arange(9.0) ** 2, (50, 1)), axis=1).T.copy()
    s = np.sort(x, axis=0)
    for k in range(1, 10):
        order = np.argsort(abs(s - np.median(s, axis=0)), axis=0, kind="stable")[:k]
        assert np.allclose(
            rows.nearest_to_median(x, k), np.take_along_axis(s, order, axis=0).mean(axis=0)
        )


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: np.dtype(d).name)
def test_the_number_of_threads_changes_nothing(isa, dtype, monkeypatch):
    x, results = made(6, 70_001, dtype), []
    a = np.random.default_rng(1).standard_normal((3, 6))
    for count in (1, 2, 3, 7):
        monkeypatch.setattr(threads, "for_work", lambda amount, count=count: count)
        flags = np.zeros(6, dtype=bool)
        found = [rows.squared_distances(x, flags=flags), rows.squared_norms(x), rows.mix(a, x)]
        found += [rows.mix(a[:1], x), rows.sorted_mean(x, 2, 4), rows.nearest_to_median(x, 4)]
        results.append([y.tobytes() for y in [*found, flags, rows.finite(x)]])
    assert all(r == results[0] for r in results) and flags.all()


def test_rows_anywhere(isa):
    whole = made(12, 300)
    unaligned = np.empty(12 * 300 * 4 + 3, np.uint8)[3:].view(np.float32).reshape(12, 300)
    unaligned[:] = whole
    for x in (
        whole[::2],
        whole[::-1],
        whole[3:, 5:250],
        whole[:, ::3],
        whole[:, ::-1],
        whole.T[:40],
        np.broadcast_to(whole[2], (4, 300)),
        unaligned,
    ):
        check_all(x)
    t = torch.from_numpy(whole)
    for x in (t, t[1::3, 7:], t.T[:9], t[:, ::2], t.clone().requires_grad_(), t.bfloat16()):
        check_all(x)


def test_chunks_that_grow_with_the_length(isa):
    check_all(made(2, 64 * 8192 + 65), 1)


def test_subnormals_stay_where_torch_flushes_them(isa):
    x = np.full((3, 200), 1e-40, np.float32)
    x[1] = 2e-40
    torch.set_flush_denormal(True)
    try:
        found = [
            rows.squared_distances(x),
            rows.mix([[1, 0.5, 0]], x),
            rows.sorted_mean(x, 0, 3),
            rows.nearest_to_median(x, 2),
        ]
    finally:
        torch.set_flush_denormal(False)
    expected = [
        rows.squared_distances(x),
        expected_mix(np.array([[1, 0.5, 0]]), x),
        expected_sorted_mean(x, 0, 3),
        expected_nearest(x, 2),
    ]
    assert all(same(a, b) and b.any() for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: np.dtype(d).name)
def test_rows_that_are_not_finite_are_told_and_go_nowhere(isa, dtype):
    for d, at in ((1, 0), (70, 69), (5000, 4096), (40_000, 39_999), (300, 17)):
        x = made(7, d, dtype)
        x[1, at], x[4, at], x[6, at] = np.nan, np.inf, -np.inf
        finite_rows = np.array([True, False, True, True, False, True, False])
        assert (rows.finite(x) == finite_rows).all() and rows.finite(x).dtype == bool
        flags = np.zeros((6, 7), dtype=bool)
        rows.squared_distances(x, flags=flags[0])
        rows.squared_norms(x, flags=flags[1])
        rows.mix(np.full((1, 7), 0.5), x, flags=flags[2])
        rows.mix(np.full((5, 7), 0.5), x, flags=flags[3])
        rows.sorted_mean(x, 3, 4, flags=flags[4])
        rows.nearest_to_median(x, 5, flags=flags[5])
        assert (flags == finite_rows).all()
        a = np.random.default_rng(d).standard_normal((4, 7)) * finite_rows
        for weights in (a, a[:1]):
            assert same(rows.mix(weights, x, flags=flags[0]), expected_mix(weights, x))
            assert flags[0].all()


def test_float64_rows_too_large_for_squares(isa):
    x = np.zeros((4, 100))
    x[0, 99], x[1, 3], x[2, 64], x[3, 0] = 2.0**480, np.nextafter(2.0**480, 0), -(2.0**1000), 1e-310
    assert rows.finite(x).tolist() == [False, True, False, True]
    assert np.isfinite(rows.squared_distances(x[1::2])).all()
    assert rows.finite(np.full((1, 9), 3.4e38, np.float32)).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: np.dtype(d).name)
@pytest.mark.parametrize("framework", ["numpy", "torch"])
def test_expressions_for_devices_say_the_same(dtype, framework, monkeypatch):
    """What runs on a GPU, here on host memory of the same framework; several blocks of columns."""
    monkeypatch.setattr(expressions, "_BLOCK", 800)
    for n, d in ((1, 30), (6, 301), (9, 1000), (4, 0)):
        x = np.random.default_rng(n).standard_normal((n, d)).astype(dtype)
        x[:, ::7] = -0.0
        if framework == "torch":
            of = torch.from_numpy(x.view(np.int16) if dtype == BF16 else x)
            x = of.view(torch.bfloat16) if dtype == BF16 else of
        squared = expressions.squared_distances(x)
        assert np.allclose(squared, rows.squared_distances(x), rtol=1e-12)
        assert np.allclose(expressions.squared_norms(x), squared[:n, n], rtol=1e-12)
        a = np.random.default_rng(d).standard_normal((3, n))
        a[:, 0] = 0
        for name, *arguments in (
            ("sorted_mean", (n - 1) // 2, n // 2 + 1),
            ("sorted_mean", 0, n),
            ("nearest_to_median", 1),
            ("nearest_to_median", n // 2 + 1),
        ):
            out = rows.sorted_mean(x, 0, n)
            getattr(expressions, name)(x, *arguments, out)
            assert close(out, getattr(rows, name)(x, *arguments))
        out = rows.mix(a, x)
        expressions.mix(a, x, out)
        assert close(out, rows.mix(a, x))
        assert expressions.finite(x).all()
        if d:
            x[n - 1, d - 1] = float("nan")
            assert expressions.finite(x).tolist() == [True] * (n - 1) + [False]
            expressions.mix(a * (np.arange(n) < n - 1), x, out)
            assert np.isfinite(_numpy(out).astype(np.float64)).all()
    assert expressions.finite(np.array([[2.0**480], [2.0**479]])).tolist() == [False, True]


def close(a, b):
    """Within a rounding of the dtype, signs of zeros included."""
    a, b = (_numpy(y).astype(np.float64) for y in (a, b))
    return np.allclose(a, b, rtol=1e-2, atol=1e-6) and (np.signbit(a) == np.signbit(b)).all()


X = np.zeros((3, 4), np.float32)


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda: rows.finite([[1.0]]), TypeError, "finite: X must be a NumPy array"),
        (lambda: rows.finite(X.astype(int)), TypeError, "finite: X must have dtype .* got int64"),
        (lambda: rows.squared_distances(X[0]), ValueError, r"X must have shape \(n, d\), got \(4,"),
        (lambda: rows.mix(np.ones((2, 4)), X), ValueError, r"A must have shape \(m, 3\), got \(2"),
        (lambda: rows.mix(np.ones(3), X), ValueError, r"A must have shape \(m, 3\), got \(3,\)"),
        (lambda: rows.mix([[1, np.nan, 0]], X), ValueError, "mix: A must be finite"),
        (lambda: rows.sorted_mean(X, 2, 2), ValueError, "low < high <= 3 rows, got 2 and 2"),
        (lambda: rows.sorted_mean(X, -1, 2), ValueError, "got -1 and 2"),
        (lambda: rows.sorted_mean(X, 0, 4), ValueError, "got 0 and 4"),
        (lambda: rows.nearest_to_median(X, 0), ValueError, "k must be 1 to 3 rows, got 0"),
        (lambda: rows.nearest_to_median(X, 4), ValueError, "k must be 1 to 3 rows, got 4"),
        (
            lambda: rows.squared_norms(X, flags=np.ones(2, bool)),
            ValueError,
            r"squared_norms: flags must be contiguous bool \(3,\), got bool \(2,\)",
        ),
    ],
)
def test_errors_name_function_argument_expected_and_got(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_no_rows_and_no_coordinates(isa):
    none = np.zeros((0, 5), np.float32)
    assert rows.finite(none).shape == (0,) and rows.squared_distances(none).shape == (1, 1)
    assert rows.mix(np.zeros((2, 0)), none).tolist() == [[0.0] * 5] * 2
    assert rows.mix(np.zeros((0, 3)), X).shape == (0, 4)
    assert same(rows.mix(np.zeros((1, 3)), X), np.zeros((1, 4), np.float32))
    assert samples.same(rows.sorted_mean(X[:, :0], 0, 3), np.zeros(0, np.float32))
