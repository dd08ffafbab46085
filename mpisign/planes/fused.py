"""Gradients to planes through what a compressor does first: momentum, or a coin for each sign."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Unpack

from mpisign import policies
from mpisign.planes import keys, layout

_MOMENTUM_DTYPES = ("float32", "bfloat16")
_FLOAT32_TINY = 1.401298464324817e-45


def pack_signum(
    grads: Any,
    momenta: Any,
    *,
    beta: float = 0.9,
    offsets: Sequence[int] | None = None,
    out: Any = None,
    **policy: Unpack[keys.Policy],
) -> tuple[Any, Any, Any]:
    """Updates m = beta m + (1 - beta) g in place and packs sign(m), in one pass over memory.

    Args:
        grads: One array or a list: float32, float16, bfloat16 or float64, any shape; copied if not
            C-contiguous.
        momenta: One C-contiguous array for each, float32 or bfloat16. A coordinate whose result is
            NaN keeps its momentum and does not vote.
        beta: Decay in [0, 1].
        offsets: First byte of each array in the planes, default one array after the other.
        out: uint8 planes to write to, (B,) or (2, B).
        **policy: ``zeros``, ``nan``, ``seed``, ``step``, ``rank``, ``offset`` of ``pack``.

    Returns:
        (planes, zeros, NaNs) as ``pack_census``, the counts over what was packed. Arithmetic is
        fp32, each operation rounded.

    Raises:
        TypeError, ValueError: An argument does not fit. NaN never raises.

    Source: Bernstein et al. 2019, signSGD with majority vote, Algorithm 1.

    Example:
        >>> import numpy as np
        >>> from mpisign import planes
        >>> m = np.array([1.0, -1.0], dtype=np.float32)
        >>> planes.pack_signum(np.array([-10.0, 1.0]), m, beta=0.5)[0], m
        (array([1], dtype=uint8), array([-4.5,  0. ], dtype=float32))
    """
    b = keys.fp32("pack_signum", "beta", beta, 0.0, 1.0)
    rule = (layout.SIGNUM, (b, 1.0 - b, 0.0, 0.0))
    return _pack_with_momentum("pack_signum", rule, grads, momenta, offsets, out, **policy)


def pack_lion(
    grads: Any,
    momenta: Any,
    *,
    beta1: float = 0.9,
    beta2: float = 0.99,
    offsets: Sequence[int] | None = None,
    out: Any = None,
    **policy: Unpack[keys.Policy],
) -> tuple[Any, Any, Any]:
    """Packs sign(beta1 m + (1 - beta1) g), then updates m = beta2 m + (1 - beta2) g in place.

    Args:
        grads: One array or a list, as ``pack_signum`` takes them.
        momenta: One array for each, as ``pack_signum`` takes them.
        beta1: Weight of the momentum in the vote, in [0, 1].
        beta2: Decay of the momentum, in [0, 1].
        offsets: First byte of each array in the planes.
        out: uint8 planes to write to.
        **policy: As ``pack_signum``.

    Returns:
        (planes, zeros, NaNs) as ``pack_signum``.

    Raises:
        TypeError, ValueError: As ``pack_signum``.

    Source: Chen et al. 2023, Symbolic discovery of optimization algorithms, Algorithm 2; Liu et
    al. 2024, Distributed Lion.

    Example:
        >>> import numpy as np
        >>> from mpisign import planes
        >>> planes.pack_lion(np.array([-1.0, 1.0]), np.zeros(2, dtype=np.float32))
        (array([1], dtype=uint8), 0, 0)
    """
    b1 = keys.fp32("pack_lion", "beta1", beta1, 0.0, 1.0)
    b2 = keys.fp32("pack_lion", "beta2", beta2, 0.0, 1.0)
    rule = (layout.LION, (b1, 1.0 - b1, b2, 1.0 - b2))
    return _pack_with_momentum("pack_lion", rule, grads, momenta, offsets, out, **policy)


def pack_sparsign(
    grads: Any,
    *,
    budget: float,
    offsets: Sequence[int] | None = None,
    out: Any = None,
    **key: Unpack[keys.Key],
) -> tuple[Any, Any, Any]:
    """Packs sign(g) with probability min(1, budget |g|); other coordinates abstain.

    Args:
        grads: One array or a list, as ``pack_signum`` takes them. A zero or NaN never votes.
        budget: Positive, in units of 1 / |g|.
        offsets: First byte of each array in the planes.
        out: uint8 planes (2, B) to write to.
        **key: ``seed``, ``step``, ``rank``, ``offset`` of ``pack``: 16 random bits a coordinate
            (Philox4x32-10), 24 more where those do not decide, so that probabilities are exact to
            2**-40.

    Returns:
        (planes (2, B), zeros, NaNs) as ``pack_signum``.

    Raises:
        TypeError, ValueError: An argument does not fit.

    Source: Jin et al. 2023, Magnitude matters: fixing SIGNSGD through magnitude-aware
    sparsification in the presence of data heterogeneity, Definition 1.

    Example:
        >>> import numpy as np
        >>> from mpisign import planes
        >>> planes.pack_sparsign(np.array([5.0, -5.0, 0.0]), budget=1.0)[0].tolist()
        [[2], [3]]
    """
    function = "pack_sparsign"
    if not budget > 0:
        raise ValueError(f"{function}: budget must be positive, got {budget!r}")
    budget = keys.fp32(function, "budget", budget, _FLOAT32_TINY, keys.FLOAT32_MAX)
    policy = (policies.ZEROS.index("abstain"), True, keys.random(function, **key))
    views, parameters = layout.gradients(function, "grads", grads), (budget, 0.0, 0.0, 0.0)
    return layout.pack_views(
        function, layout.SPARSIGN, parameters, views, None, policy, offsets, out
    )


def _pack_with_momentum(
    function: str,
    rule: tuple[int, tuple[float, float, float, float]],
    grads: Any,
    momenta: Any,
    offsets: Sequence[int] | None,
    out: Any,
    **policy: Unpack[keys.Policy],
) -> tuple[Any, Any, Any]:
    checked = keys.policy(function, **policy)
    views, many = layout.gradients(function, "grads", grads), layout.listed(momenta)
    if len(many) != len(views):
        raise ValueError(
            f"{function}: momenta must be one for each of {len(views)} gradients, got {len(many)}"
        )
    named = isinstance(momenta, (list, tuple))
    states = [
        layout.output(function, f"momenta[{i}]" if named else "momenta", m, v, _MOMENTUM_DTYPES)
        for i, (v, m) in enumerate(zip(views, many, strict=True))
    ]
    return layout.pack_views(function, *rule, views, states, checked, offsets, out)
