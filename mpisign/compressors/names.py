"""Compressors by name: ``compression="signum"``, ``Compression.signum(momentum=0.9)``."""

from __future__ import annotations

from mpisign.compressors.accordion import Accordion
from mpisign.compressors.base import COMPRESSORS
from mpisign.compressors.detox import Detox
from mpisign.compressors.ef_sign import EFSign
from mpisign.compressors.ef_sparsign import EFSparsign
from mpisign.compressors.lion import Lion, LionAvg
from mpisign.compressors.muon import Muon, MuonAvg
from mpisign.compressors.noisy import NoisySign, StochasticSign
from mpisign.compressors.onebit import OneBit
from mpisign.compressors.robust import Robust
from mpisign.compressors.sign import Sign
from mpisign.compressors.signum import Signum
from mpisign.compressors.sparsign import Sparsign
from mpisign.compressors.terngrad import QSGD, TernGrad
from mpisign.compressors.uncompressed import Uncompressed


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
    muon = Muon
    muon_avg = MuonAvg
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
    accordion = Accordion


COMPRESSORS.update({n: kind for n, kind in vars(Compression).items() if isinstance(kind, type)})
