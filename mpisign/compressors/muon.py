"""SignMuon: the signs of a momentum that was made orthogonal, matrix by matrix."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, ClassVar, Final

from mpisign.compressors.base import Compressor, State, resolve
from mpisign.compressors.checks import check_positive, check_whole
from mpisign.compressors.lion import Lion, LionAvg
from mpisign.compressors.newton_schulz import check_bounded, exact_polar, orthogonalize
from mpisign.compressors.signum import Momentum, MomentumDtype, Signum

if TYPE_CHECKING:
    import torch

#: What output layers are called, outside of numbered blocks.
OUTPUT_LAYERS: Final = (
    "head", "lm_head", "out", "output", "classifier", "decoder", "fc", "embed_out",
    "output_projection", "to_logits",
)  # fmt: skip


@dataclass(frozen=True)
class Muon(Momentum):
    """m = b m + (1 - b) g; U = the polar factor of m; sign(U), by majority vote: SignMuon.

    The vote V moves x -= lr (V + wd x), which torch's SGD does with ``weight_decay``. U is found by
    ``steps`` of Newton-Schulz (``orthogonalize``), which is each rank's own work before the vote.

    Matrices are voted on so: parameters of two dimensions and more, as (out, in k k), both sides
    longer than 1. The rest goes by ``others``, with the same learning rate: vectors; embeddings, as
    ``skip="auto"`` finds them; output layers, known by the last part of their module's name
    (``OUTPUT_LAYERS``; "lm_head", "transformer.head", but not "blocks.0.attention.out", which has a
    number in it); and what ``others_for`` names. It needs whole matrices: FSDP's shards are none.

    State: ``momentum``, as ``Signum``, whatever else is sent. A NaN votes once, by the policies;
    NaN and infinity do not enter the momentum. Source: Mishra et al. 2026, SignMuon
    (arXiv 2605.16311); Newton-Schulz: Jordan et al. 2024, Muon.

    Args:
        momentum: b, in [0, 1).
        steps: Iterations of Newton-Schulz.
        coefficients: Its (a, b, c), Muon's; (1.5, -0.5, 0) is the cubic one.
        eps: Added to the Frobenius norm by which m is divided.
        nesterov: Whether b m + (1 - b) g takes the place of m, after m was updated.
        polar: Whether V becomes sqrt(max(out, in k k)) times its polar factor, of entries of size
            1 in the mean (RMS) as a vote's, the same bits on all ranks: x -= lr P.
        others: "lion", "signum", or one of them with settings of its own.
        others_for: More parameters that go by ``others``: patterns of names, as ``fnmatch``'s.
        momentum_dtype: "float32" or "bfloat16".
        zeros, nan, ties: As ``Compressor``; also of ``others`` that is given by name.

    Raises:
        ValueError: A value does not fit.

    Example:
        >>> import torch
        >>> u = Muon(momentum=0.0).compress(torch.tensor([[3.0, 2.0], [2.0, -1.0]]), {})
        >>> u.sign()
        tensor([[ 1.,  1.],
                [ 1., -1.]])
    """

    momentum: float = 0.95
    steps: int = 5
    coefficients: tuple[float, float, float] = (3.4445, -4.7750, 2.0315)
    eps: float = 1e-7
    nesterov: bool = False
    polar: bool = False
    others: Compressor | str = "lion"
    others_for: tuple[str, ...] = ()
    momentum_dtype: MomentumDtype = "float32"

    density: ClassVar[None] = None
    #: Classes of ``others`` by name.
    kinds: ClassVar[dict[str, type[Momentum]]] = {"lion": Lion, "signum": Signum}

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check("momentum")
        check_whole(self, "steps", 1, "a number of iterations from 1")
        check_positive(self, "eps")
        self._become("coefficients", "three numbers", (int, float), float)
        if len(self.coefficients) != 3:
            self._refuse("coefficients", "three numbers")
        check_bounded(self)
        self._become("others_for", "patterns of names", str, str)
        object.__setattr__(self, "others", self._others())

    def _become(self, name: str, words: str, kind: Any, make: Callable[[Any], Any]) -> None:
        """The field, a sequence of ``kind``, becomes a tuple, as a value must be."""
        given: Any = getattr(self, name)
        listed = isinstance(given, (tuple, list))
        if not listed or not all(isinstance(x, kind) for x in given):
            self._refuse(name, words)
        object.__setattr__(self, name, tuple(map(make, given)))

    def _refuse(self, name: str, words: str) -> None:
        kind = type(self).__name__
        raise ValueError(f"{kind}: {name} must be {words}, got {getattr(self, name)!r}")

    def _others(self) -> Compressor:
        if isinstance(self.others, str) and self.others in self.kinds:
            policy = {name: getattr(self, name) for name in ("zeros", "nan", "ties")}
            kind: Any = self.kinds[self.others]
            return kind(momentum_dtype=self.momentum_dtype, **policy)  # type: ignore[no-any-return]
        if not isinstance(self.others, (Lion, Signum)):
            self._refuse("others", "'lion', 'signum', or a Compressor of these classes")
        return resolve(type(self).__name__, self.others)

    @property
    def aggregate(self) -> str:  # type: ignore[override]
        """ "vote", or "polar_vote" with the polar step."""
        return "polar_vote" if self.polar else "vote"

    def of_parameter(
        self, name: str, parameter: torch.Tensor, is_embedding: Callable[[], bool]
    ) -> Compressor:
        rest = (
            not is_matrix(parameter)
            or is_output_layer(name)
            or any(fnmatchcase(name, pattern) for pattern in self.others_for)
            or is_embedding()
        )
        assert isinstance(self.others, Compressor)
        return self.others if rest else self

    def _pack(self, grads: Any, states: Any, context: Any, keys: Any) -> Any:
        return Compressor._pack(self, grads, states, context, keys)  # no kernel knows matrices

    def compress(self, grad: torch.Tensor, state: State) -> torch.Tensor:
        import torch

        m, new = self._remember(grad, state)
        voted = m.float()
        if self.nesterov:
            ahead = voted * self.momentum + grad.detach().float() * (1.0 - self.momentum)
            voted = torch.where(ahead.isfinite(), ahead, voted)
        return self._polar_of(voted).masked_fill(new.isnan(), float("nan"))

    def _remember(self, grad: torch.Tensor, state: State) -> tuple[torch.Tensor, torch.Tensor]:
        """The momentum, updated, and b m + (1 - b) g as it was before what is not finite left."""
        m = self._momentum(state, grad)
        new = m.float() * self.momentum + grad.detach().float() * (1.0 - self.momentum)
        stored = new.to(m.dtype)
        m.copy_(stored.where(stored.isfinite(), m))
        return m, new

    def _polar_of(self, x: torch.Tensor) -> torch.Tensor:
        if x.dim() < 2:
            raise ValueError(
                f"{type(self).__name__}: gradient must be that of a whole matrix, got shape "
                f"{tuple(x.shape)}: vectors go by others={self.others!r}, flat shards by none"
            )
        rows = x.reshape(x.shape[0], -1)
        return orthogonalize(rows, self.steps, self.coefficients, self.eps).reshape(x.shape)

    def compress_missing(self, parameter: torch.Tensor, state: State) -> torch.Tensor:
        if state.get("momentum") is None:
            return super().compress_missing(parameter, state)
        return self._polar_of(state["momentum"].float())

    def warm_up(self, grad: torch.Tensor | None, mean: torch.Tensor, state: State) -> None:
        if grad is not None:
            self._remember(grad, state)

    def step_of(self, vote: torch.Tensor) -> torch.Tensor:
        """What takes the place of ``vote`` with the polar step, float64, the same on all ranks.

        Args:
            vote: +1, -1 and 0, of the parameter's shape.

        Example:
            >>> import torch
            >>> Muon(polar=True, coefficients=(1.5, -0.5, 0), steps=20).step_of(
            ...     torch.tensor([[1.0, 1.0], [1.0, -1.0]])
            ... ).float()
            tensor([[ 1.0000,  1.0000],
                    [ 1.0000, -1.0000]])
        """
        rows = vote.detach().reshape(vote.shape[0], -1)
        polar = exact_polar(rows, self.steps, self.coefficients, self.eps)
        return (polar * float(max(rows.shape)) ** 0.5).reshape(vote.shape)


@dataclass(frozen=True)
class MuonAvg(Muon):
    """``Muon`` with the mean of the ranks' signs: x -= lr ((1/p) sum of sign(U) + wd x).

    ``others="lion"`` is ``LionAvg``. Each rank receives ceil(log2(p + 1)) planes instead of one.

    Args:
        momentum, steps, coefficients, eps, nesterov, others_for, momentum_dtype: As ``Muon``.
        polar: False: a mean is not a vote.
        others: As ``Muon``; "lion" is ``LionAvg``.
        zeros, nan, ties: As ``Muon``.

    Raises:
        ValueError: A value does not fit.

    Example:
        >>> MuonAvg().aggregate, type(MuonAvg().others).__name__
        ('mean_of_signs', 'LionAvg')
    """

    kinds: ClassVar[dict[str, type[Momentum]]] = {"lion": LionAvg, "signum": Signum}
    aggregate: ClassVar[str] = "mean_of_signs"  # type: ignore[misc]

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.polar:
            self._refuse("polar", "False: it is a step after a vote")


def is_matrix(parameter: torch.Tensor) -> bool:
    """Whether a parameter, as (out, in k k), has two sides longer than 1.

    Args:
        parameter: Any tensor.

    Example:
        >>> import torch
        >>> is_matrix(torch.ones(8, 1, 3, 3)), is_matrix(torch.ones(8, 1)), is_matrix(torch.ones(8))
        (True, False, False)
    """
    if parameter.dim() < 2:
        return False
    rows = parameter.shape[0]
    return rows > 1 and parameter.numel() > rows


def is_output_layer(name: str) -> bool:
    """Whether a parameter's name is that of an output layer; see ``Muon``.

    Args:
        name: As ``model.named_parameters()`` has it.

    Example:
        >>> is_output_layer("transformer.lm_head.weight"), is_output_layer("blocks.0.out.weight")
        (True, False)
    """
    *modules, _ = name.split(".")
    numbered = any(part.isdigit() for part in modules)
    return bool(modules) and modules[-1] in OUTPUT_LAYERS and not numbered
