"""Compressors: what a rank sends of a gradient, and their state. One algorithm a file."""

from __future__ import annotations

from mpisign.compressors.accordion import Accordion
from mpisign.compressors.base import COMPRESSORS, Compressor, PackContext, State, resolve
from mpisign.compressors.detox import Detox
from mpisign.compressors.ef_sign import EFSign
from mpisign.compressors.ef_sparsign import EFSparsign
from mpisign.compressors.lion import Lion, LionAvg
from mpisign.compressors.muon import Muon, MuonAvg
from mpisign.compressors.names import Compression
from mpisign.compressors.noisy import NoisySign, StochasticSign
from mpisign.compressors.onebit import OneBit
from mpisign.compressors.robust import Robust
from mpisign.compressors.sign import Sign
from mpisign.compressors.signum import Signum
from mpisign.compressors.sparsign import Sparsign
from mpisign.compressors.terngrad import QSGD, TernGrad
from mpisign.compressors.uncompressed import BF16Mean, Uncompressed

__all__ = [
    "COMPRESSORS",
    "QSGD",
    "Accordion",
    "Compression",
    "Compressor",
    "Detox",
    "EFSign",
    "EFSparsign",
    "BF16Mean",
    "Lion",
    "LionAvg",
    "Muon",
    "MuonAvg",
    "NoisySign",
    "OneBit",
    "PackContext",
    "Robust",
    "Sign",
    "Signum",
    "Sparsign",
    "State",
    "StochasticSign",
    "TernGrad",
    "Uncompressed",
    "resolve",
]
