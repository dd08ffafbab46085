"""What is voted on, and the state it keeps: one compressor a file."""

from __future__ import annotations

from mpisign.compressors.base import Compressor, resolve
from mpisign.compressors.sign import Sign
from mpisign.compressors.signum import Signum

__all__ = ["Compressor", "Sign", "Signum", "resolve"]
