"""The interface between front ends and compressors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Final

from mpisign import planes, policies
from mpisign.partition import Partition
from mpisign.robust.names import hint

if TYPE_CHECKING:
    import torch

State = dict[str, Any]


@dataclass(frozen=True, slots=True)
class PackContext:
    """What ``Compressor.pack`` needs besides the gradients.

    Args:
        seed: Seed of the random bits, the same on all ranks.
        step: Number of the step, the same on all ranks.
        rank: This rank; the number of its group where members must draw the same bits.
        rates: Learning rate of each gradient. None: 1 for all.
        scales: float32 array that ``pack`` fills, ``scales_of`` entries per gradient in order. Only
            for compressors with ``scaled``.

    Example:
        >>> PackContext(seed=1, step=0, rank=2).keys
        {'seed': 1, 'step': 0, 'rank': 2}
    """

    seed: int
    step: int
    rank: int
    rates: Sequence[float] | None = None
    scales: Any = None

    @property
    def keys(self) -> dict[str, Any]:
        """The arguments of ``mpisign.planes`` that key the random bits."""
        return {"seed": self.seed, "step": self.step, "rank": self.rank}


@dataclass(frozen=True)
class Compressor:
    """How a gradient becomes planes of bits and how the ranks' aggregate becomes an update.

    A compressor is an immutable value. Its state per parameter is a dict of tensors that the front
    end owns, saves, loads and broadcasts. Subclasses override ``compress``, or ``_pack`` where a
    fused kernel packs a whole bucket.

    Args:
        zeros: Vote of an exact zero: "random", "positive" or "abstain".
        nan: "raise" stops all ranks on a NaN, "abstain" leaves the coordinate out.
        ties: Result of a tie: "random", "positive" or "zero".

    Attributes:
        aggregate: What the ranks compute of their planes: "vote", "polar_vote", "mean_of_signs",
            "gathered_vote", "gathered_mean", "compressed_mean", "robust", "average" or "halves".
        scaled: Whether float32 scales are sent with the planes.
        shared: Keys of the state that are equal on all ranks; a rank that joins receives them.
        unit: What the optimizer receives: "sign" (magnitude 1) or "gradient".
        whole: Whether all parameters form one bucket, whatever its size.
        remembers: Whether it sends more than a zero where the gradient is zero, from a momentum, a
            residual or noise. Front ends silence it there for parameters that ``abstain``.

    Raises:
        ValueError: A policy is not one of those listed.

    Example:
        >>> from mpisign.compressors import Sign
        >>> Sign(nan="abstain").abstaining()
        Sign(zeros='abstain', nan='abstain', ties='zero')
    """

    zeros: policies.Zeros = policies.DEFAULT_ZEROS
    nan: policies.Nan = policies.DEFAULT_NAN
    ties: policies.Ties = policies.DEFAULT_TIES

    aggregate: ClassVar[str] = "vote"
    whole: ClassVar[bool] = False
    scaled: ClassVar[bool] = False
    shared: ClassVar[tuple[str, ...]] = ()
    unit: ClassVar[str] = "sign"
    remembers: ClassVar[bool] = False

    def __post_init__(self) -> None:
        name = type(self).__name__
        policies.code(name, "zeros", self.zeros, policies.ZEROS)
        policies.code(name, "nan", self.nan, policies.NAN)
        policies.code(name, "ties", self.ties, policies.TIES)

    def groups_of(self, size: int, nodes: Sequence[Sequence[int]] | None) -> Partition | None:
        """The groups that the ranks form.

        Args:
            size: The number of ranks.
            nodes: The ranks of each node; None: one node.

        Returns:
            The ranks of each group; None without groups.
        """
        return None

    def of_parameter(
        self, name: str, parameter: torch.Tensor, is_embedding: Callable[[], bool]
    ) -> Compressor:
        """The compressor of one of a model's parameters, where they do not all have the same.

        Args:
            name: The parameter's name.
            parameter: The parameter.
            is_embedding: Whether an embedding holds it; asked only where that matters.

        Returns:
            This compressor, or the one that takes its place. Equal parameters of all ranks must
            get equal ones.

        Example:
            >>> import torch
            >>> from mpisign.compressors import Muon
            >>> Muon().of_parameter("bias", torch.ones(3), lambda: False).aggregate
            'vote'
        """
        return self

    def abstaining(self) -> Compressor:
        """Returns a copy whose zeros abstain and whose ties are 0."""
        return replace(self, zeros="abstain", ties="zero")

    @property
    def local_steps(self) -> int:
        """Steps per exchange; a rank takes all but the last one alone."""
        return 1

    @property
    def block(self) -> int | None:
        """Coordinates of a tensor that share a scale. None: the whole tensor."""
        return None

    def scales_of(self, length: int) -> int:
        """Returns the number of scales sent for a tensor.

        Args:
            length: Coordinates of the tensor.

        Example:
            >>> from mpisign.compressors import EFSign
            >>> EFSign().scales_of(1000), EFSign(block=256).scales_of(1000)
            (1, 4)
        """
        return -(-length // (self.block or max(1, length))) if self.scaled else 0

    def compress(self, grad: torch.Tensor, state: State) -> torch.Tensor:
        """The tensor whose signs this rank sends.

        Args:
            grad: The gradient, any shape, float32, float64, float16 or bfloat16.
            state: The parameter's state; updated in place.

        Returns:
            A tensor of ``grad``'s shape; possibly ``grad`` itself or a tensor of ``state``, so read
            only.

        Raises:
            NotImplementedError: The compressor sends more than signs; use ``pack``.

        Example:
            >>> import torch
            >>> from mpisign.compressors import Signum
            >>> Signum(momentum=0.5).compress(torch.tensor([2.0, -4.0]), {})
            tensor([ 1., -2.])
        """
        raise NotImplementedError(
            f"{type(self).__name__} sends more than the signs of a tensor: take pack"
        )

    def pre_sign(self, x: torch.Tensor, context: PackContext, place: int) -> torch.Tensor:
        """The tensor whose sign is taken, given that of ``compress``: the same, or with noise.

        Args:
            x: The tensor of ``compress``; not written to.
            context: Keys of the random bits.
            place: Coordinates before ``x`` in its bucket.

        Returns:
            A tensor of ``x``'s shape; possibly ``x``.
        """
        return x

    def pack(
        self,
        grads: Sequence[torch.Tensor],
        states: Sequence[State],
        out: Any,
        offsets: Sequence[int],
        context: PackContext,
    ) -> Any:
        """Packs gradients into the planes of one bucket.

        Args:
            grads: The gradients, on one device.
            states: One state per gradient; updated in place.
            out: uint8 (B,), or (2, B), sign and mask, if a coordinate may abstain. Bytes outside
                the gradients' ranges keep their value.
            offsets: First byte of each gradient in a plane.
            context: Seed, step, rank, and learning rates and scales where used.

        Returns:
            The number of NaNs, which never vote: an int, on a GPU an int64 scalar there.
            NaNs do not raise here under either policy.

        Raises:
            ValueError: Arguments do not fit together, or ``context.scales`` is missing.

        Example:
            >>> import numpy as np, torch
            >>> from mpisign.compressors import PackContext, Sign
            >>> g, out = torch.tensor([-1.0, 2.0, -3.0]), np.zeros(1, np.uint8)
            >>> Sign().pack([g], [{}], out, [0], PackContext(seed=0, step=0, rank=0))
            0
            >>> np.unpackbits(out, count=3, bitorder="little").tolist()  # 1 is minus
            [1, 0, 1]
        """
        if not grads:
            return 0
        keys = {**context.keys, "offsets": offsets, "out": out}
        nans = self._pack(grads, states, context, keys)
        # On a GPU a device scalar: int() would drain the stream, within backward.
        return nans if grads[0].is_cuda else int(nans)

    def _pack(self, grads: Any, states: Any, context: PackContext, keys: Any) -> Any:
        """Packs at least one gradient; ``keys`` go to the function of ``planes``. The NaNs."""
        voted = [
            self.pre_sign(self.compress(g, state), context, 8 * start)
            for g, state, start in zip(grads, states, keys["offsets"], strict=True)
        ]
        return planes.pack_many(voted, zeros=self.zeros, nan=self.nan, **keys)[2]

    def compress_missing(self, parameter: torch.Tensor, state: State) -> torch.Tensor:
        """What this rank sends for a parameter whose gradient only other ranks have.

        Args:
            parameter: The parameter.
            state: Its state; not changed.

        Returns:
            A tensor of the parameter's shape, zeros by default; read only.

        Example:
            >>> import torch
            >>> from mpisign.compressors import Sign
            >>> Sign().compress_missing(torch.ones(2), {})
            tensor([0., 0.])
        """
        import torch

        # Not of the parameter's dtype: a frozen one may have any.
        return torch.zeros((), device=parameter.device).expand(parameter.shape)

    def initial_state(self, parameter: torch.Tensor) -> State:
        """The state before the first step, from which a missing one starts.

        Args:
            parameter: The parameter.

        Returns:
            Its tensors by key, zeros; empty for a compressor without state.

        Example:
            >>> import torch
            >>> from mpisign.compressors import Signum
            >>> Signum().initial_state(torch.ones(2))
            {'momentum': tensor([0., 0.])}
        """
        return {}

    def now(self, state: State) -> Compressor:
        """What travels for a parameter of this state: the compressor itself, or one that it holds.

        Args:
            state: The parameter's state; not changed.

        Returns:
            The compressor of the parameter's next step.

        Example:
            >>> from mpisign.compressors import Sign
            >>> Sign().now({})
            Sign(zeros='random', nan='raise', ties='random')
        """
        return self

    def owed(self, state: State, rate: float) -> torch.Tensor | None:
        """What a residual still owes the parameter, in units of the gradient.

        Args:
            state: The parameter's state; not changed.
            rate: The parameter's learning rate.

        Returns:
            A tensor of the parameter's shape, read only; None if nothing can be paid now.

        Example:
            >>> import torch
            >>> from mpisign.compressors import EFSign
            >>> EFSign().owed({"residual": torch.tensor([0.5])}, rate=0.1)
            tensor([5.])
        """
        return None

    def warm_up(self, grad: torch.Tensor | None, mean: torch.Tensor, state: State) -> None:
        """Sees a step in which the ranks exchange plain averages; see ``warmup_steps``.

        Momenta take the gradients in, as they would by votes. Residuals stay zero: what travels
        uncompressed leaves no error.

        Args:
            grad: This rank's gradient, None where only other ranks have one.
            mean: The ranks' mean, float32, the parameter's shape, in host memory.
            state: The parameter's state; updated in place.

        Example:
            >>> import torch
            >>> from mpisign.compressors import Signum
            >>> state = {}
            >>> Signum(momentum=0.5).warm_up(torch.tensor([2.0]), torch.tensor([9.0]), state)
            >>> state["momentum"]
            tensor([1.])
        """

    def decompress(self, mean: torch.Tensor, state: State, rate: float) -> torch.Tensor:
        """The gradient for the optimizer, from the ranks' mean; not called for votes.

        Args:
            mean: The mean of what all ranks sent, float32, the parameter's shape; may be changed.
            state: The parameter's state; updated in place.
            rate: The parameter's learning rate.

        Returns:
            A tensor of ``mean``'s shape, the same on every rank; possibly ``mean`` itself.

        Example:
            >>> import torch
            >>> from mpisign.compressors import EFSign
            >>> EFSign().decompress(torch.tensor([0.5]), {}, rate=0.1)
            tensor([5.])
        """
        return mean


class Scaled(Compressor):
    """A compressor that sends scaled signs of each tensor; ranks average them."""

    aggregate: ClassVar[str] = "gathered_mean"
    scaled: ClassVar[bool] = True
    unit: ClassVar[str] = "gradient"

    def _pack(self, grads: Any, states: Any, context: PackContext, keys: Any) -> Any:
        if context.scales is None:
            raise ValueError(
                f"{type(self).__name__}.pack: scales must be given: signs are not all it sends"
            )
        rates = [1.0] * len(grads) if context.rates is None else context.rates
        at = nans = 0
        for g, state, start, rate in zip(grads, states, keys["offsets"], rates, strict=True):
            end = at + self.scales_of(g.numel())
            part = keys["out"][..., start : start + planes.plane_bytes(g.numel())]
            random = {**context.keys, "offset": 8 * start}
            nans += int(self._pack_one(g, state, rate, part, context.scales[at:end], random))
            at = end
        return nans

    def _pack_one(
        self, g: torch.Tensor, state: State, rate: float, out: Any, scales: Any, keys: Any
    ) -> Any:
        """Packs ``g`` into ``out`` and fills its ``scales``; the NaNs."""
        raise NotImplementedError


def get_or_init(state: State, key: str, like: torch.Tensor, dtype: str = "float32") -> torch.Tensor:
    """The tensor of ``dtype`` under ``key`` of a state, of ``like``'s shape; zeros at first."""
    import torch

    wanted = getattr(torch, dtype)
    x: torch.Tensor | None = state.get(key)
    if x is None:
        x = state[key] = torch.zeros(like.shape, dtype=wanted, device=like.device)
    elif x.dtype != wanted or not x.is_contiguous():  # saved by another version, or loaded so
        x = state[key] = x.to(wanted).contiguous()
    return x


#: Names to classes, in the order of the documentation. compressors/names.py fills it.
COMPRESSORS: Final[dict[str, type[Compressor]]] = {}


#: Other names of the same, for the hint of an error.
_MEANT = {"signmuon": "muon", "signsgd": "sign", "efsignsgd": "ef_sign"}
_OPTIMIZERS = {name.lower(): name for name in ("OneBitAdam", "ZeroOneAdam", "OneBitLamb")}


def resolve(function: str, compression: object) -> Compressor:
    """A compressor from its name, its class or itself.

    Args:
        function: Name of the caller, for error messages.
        compression: A name of ``COMPRESSORS``, a subclass of ``Compressor`` or a ``Compressor``.

    Returns:
        The compressor, with default settings unless it was given.

    Raises:
        ValueError: It is none of these; the message lists the names.

    Example:
        >>> resolve("train", "sign")
        Sign(zeros='random', nan='raise', ties='random')
    """
    if isinstance(compression, Compressor):
        return compression
    if isinstance(compression, type) and issubclass(compression, Compressor):
        return compression()
    if isinstance(compression, str) and compression in COMPRESSORS:
        return COMPRESSORS[compression]()
    names, given = ", ".join(repr(n) for n in COMPRESSORS), str(compression).lower()
    meant = hint(_MEANT.get(given, compression), COMPRESSORS)
    if given in _OPTIMIZERS:
        meant = f" (mpisign.optim.{_OPTIMIZERS[given]} is an optimizer, to be used as it is)"
    raise ValueError(
        f"{function}: compression must be a Compressor or one of {names}, got {compression!r}"
        f"{meant}"
    )
