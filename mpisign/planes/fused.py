"""Gradients to planes through what a compressor does first: momentum, or a coin for each sign."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mpisign import policies
from mpisign.backend import arrays
from mpisign.planes import layout

_MOMENTUM_DTYPES = ("float32", "bfloat16")
_FLOAT32_MAX = 3.4028234663852886e38
_FLOAT32_TINY = 1.401298464324817e-45


def pack_signum(
    grads: Any,
    momenta: Any,
    *,
    beta: float = 0.9,
    zeros: policies.Zeros = policies.DEFAULT_ZEROS,
    nan: policies.Nan = policies.DEFAULT_NAN,
    seed: int = 0,
    step: int = 0,
    rank: int = 0,
    offset: int = 0,
    offsets: Sequence[int] | None = None,
    out: Any = None,
) -> tuple[Any, Any, Any]:
    """m = beta m + (1 - beta) g in place, and the planes of sign(m), in one pass over memory.

    ``grads``: one array or a list, float32, float16, bfloat16 or float64, of any shape; one that is
    not C-contiguous is copied first. ``momenta``: one for each, float32 or bfloat16, C-contiguous.
    ``offsets``: the byte of the planes that each array starts at, default one after the other, each
    at a byte of its own (as in mpisign.exchange.buckets.Bucket). Returns (planes (B,) or (2, B) as ``pack``
    does, zeros, NaNs), the counts over what was voted on; never raises on NaN: such a coordinate
    keeps its momentum and does not vote. Arithmetic is fp32, each operation rounded. Policies,
    seed, step, rank, offset, out: see ``pack``.

    Raises TypeError, ValueError for arguments that do not fit. Source: Bernstein et al. 2019,
    signSGD with majority vote, Algorithm 1.
    """
    b = layout.fp32("pack_signum", "beta", beta, 0.0, 1.0)
    parameters = (b, 1.0 - b, 0.0, 0.0)
    keys = layout.random("pack_signum", seed, step, rank, offset)
    policy = ("pack_signum", layout.SIGNUM, parameters, zeros, nan, keys)
    return _pack_with_momentum(policy, grads, momenta, offsets, out)


def pack_lion(
    grads: Any,
    momenta: Any,
    *,
    beta1: float = 0.9,
    beta2: float = 0.99,
    zeros: policies.Zeros = policies.DEFAULT_ZEROS,
    nan: policies.Nan = policies.DEFAULT_NAN,
    seed: int = 0,
    step: int = 0,
    rank: int = 0,
    offset: int = 0,
    offsets: Sequence[int] | None = None,
    out: Any = None,
) -> tuple[Any, Any, Any]:
    """The planes of sign(beta1 m + (1 - beta1) g), then m = beta2 m + (1 - beta2) g in place.

    Arguments, returns and errors as ``pack_signum``'s. Source: Chen et al. 2023, Symbolic discovery
    of optimization algorithms, Algorithm 2; Liu et al. 2024, Distributed Lion.
    """
    b1 = layout.fp32("pack_lion", "beta1", beta1, 0.0, 1.0)
    b2 = layout.fp32("pack_lion", "beta2", beta2, 0.0, 1.0)
    parameters = (b1, 1.0 - b1, b2, 1.0 - b2)
    keys = layout.random("pack_lion", seed, step, rank, offset)
    policy = ("pack_lion", layout.LION, parameters, zeros, nan, keys)
    return _pack_with_momentum(policy, grads, momenta, offsets, out)


def pack_sparsign(
    grads: Any,
    *,
    budget: float,
    seed: int = 0,
    step: int = 0,
    rank: int = 0,
    offset: int = 0,
    offsets: Sequence[int] | None = None,
    out: Any = None,
) -> tuple[Any, Any, Any]:
    """sign(g) with probability min(1, budget |g|), else no vote: (planes (2, B), zeros, NaNs).

    A zero or a NaN never votes. Random numbers are Philox4x32-10 keyed by seed, counter
    (coordinate, step, rank): 16 bits a coordinate, 24 more where those do not decide; the
    probability is exact to 2^-40. ``budget``: positive. The rest as ``pack_signum``.

    Source: Jin et al. 2023, Magnitude matters: fixing SIGNSGD through magnitude-aware
    sparsification in the presence of data heterogeneity, Definition 1.
    """
    function = "pack_sparsign"
    if not budget > 0:
        raise ValueError(f"{function}: budget must be positive, got {budget!r}")
    budget = layout.fp32(function, "budget", budget, _FLOAT32_TINY, _FLOAT32_MAX)
    keys = layout.random(function, seed, step, rank, offset)
    views = layout.gradients(function, "grads", grads)
    starts, nbytes = layout.places(function, views, offsets)
    planes = layout.planes_out(function, out, nbytes, True, offsets is not None, views[0])
    abstain = policies.ZEROS.index("abstain")
    parameters = (budget, 0.0, 0.0, 0.0)
    return layout.pack_views(
        layout.SPARSIGN, parameters, views, None, planes, starts, abstain, keys
    )


def _pack_with_momentum(
    policy: tuple[Any, ...], grads: Any, momenta: Any, offsets: Sequence[int] | None, out: Any
) -> tuple[Any, Any, Any]:
    function, rule, parameters, zeros, nan, keys = policy
    zeros_code = policies.code(function, "zeros", zeros, policies.ZEROS)
    policies.code(function, "nan", nan, policies.NAN)
    views = layout.gradients(function, "grads", grads)
    many = layout.listed(momenta)
    if len(many) != len(views):
        raise ValueError(
            f"{function}: momenta must be one for each of {len(views)} gradients, got {len(many)}"
        )
    kept: list[arrays.View] = []
    for i, (v, m) in enumerate(zip(views, many, strict=True)):
        name = f"momenta[{i}]" if isinstance(momenta, (list, tuple)) else "momenta"
        kept.append(layout.in_place(function, name, m, v, _MOMENTUM_DTYPES))
    starts, nbytes = layout.places(function, views, offsets)
    two = policies.planes_up(zeros, nan) == 2
    planes = layout.planes_out(function, out, nbytes, two, offsets is not None, views[0])
    return layout.pack_views(rule, parameters, views, kept, planes, starts, zeros_code, keys)
