"""Compressors by name: ``compression="signum"``, ``Compression.signum(momentum=0.9)``."""

from __future__ import annotations

from typing import Final

from mpisign.compressors.base import Compressor
from mpisign.compressors.detox import Detox
from mpisign.compressors.ef_sign import EFSign
from mpisign.compressors.ef_sparsign import EFSparsign
from mpisign.compressors.lion import Lion, LionAvg
from mpisign.compressors.noisy import NoisySign, StochasticSign
from mpisign.compressors.onebit import OneBit
from mpisign.compressors.robust import Robust
from mpisign.compressors.sign import Sign
from mpisign.compressors.signum import Signum
from mpisign.compressors.sparsign import Sparsign
from mpisign.compressors.terngrad import QSGD, TernGrad
from mpisign.compressors.uncompressed import Uncompressed
from mpisign.robust.names import hint


class Compression:
    """Every compressor under its name; ``none`` is the plain average.

    Example:
        >>> Compression.signum(momentum=0.5)
        Signum(zeros='random', nan='raise', ties='random', momentum=0.5, momentum_dtype='float32')
    """

    none = Uncompressed
    sign = Sign
    signum = Signum
    lion = Lion
    lion_avg = LionAvg
    ef_sign = EFSign
    onebit = OneBit
    sparsign = Sparsign
    ef_sparsign = EFSparsign
    noisy_sign = NoisySign
    stochastic_sign = StochasticSign
    terngrad = TernGrad
    qsgd = QSGD
    robust = Robust
    detox = Detox


#: Names to classes, in the order of the documentation.
COMPRESSORS: Final[dict[str, type[Compressor]]] = {
    name: kind for name, kind in vars(Compression).items() if isinstance(kind, type)
}


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
    names = ", ".join(repr(n) for n in COMPRESSORS)
    raise ValueError(
        f"{function}: compression must be a Compressor or one of {names}, got {compression!r}"
        f"{hint(compression, COMPRESSORS)}"
    )
