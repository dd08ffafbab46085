"""Which parameters do not travel as the others do: ``skip=`` of every front end."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final, Literal

from mpisign.compressors.accordion import Accordion
from mpisign.compressors.base import Compressor
from mpisign.compressors.uncompressed import BF16Mean
from mpisign.exchange.embeddings import Embeddings

if TYPE_CHECKING:
    import torch

How = Literal["16bit", "abstain"]
Rule = Callable[[str, "torch.Tensor"], How | None]
HOWS: Final = (None, "16bit", "abstain")

_SMALL = 1024  # coordinates, up to which the bytes do not matter


def rule_for(function: str, skip: str | Rule | None, compressor: Compressor) -> Rule:
    """The rule that ``skip`` stands for: "auto", None (skip nothing), or itself.

    "auto": embeddings (``embeddings.py``) abstain where their gradient is zero, so that rows that
    nobody looked up, and padding rows, stay as they are. For compressors that hand over something
    of a gradient's size: vectors (biases, norms) and tensors of up to 1,024 coordinates travel in
    16 bits, which costs next to nothing and loses nothing. For averages, and for what is aggregated
    by a robust rule, which a mean beside it would lay open: nothing.
    """
    if skip is None or compressor.aggregate in ("average", "halves") or compressor.whole:
        return lambda name, p: None
    if skip == "auto":
        embeddings, votes = Embeddings(), compressor.unit == "sign"
        return lambda name, p: _auto(embeddings, votes, name, p)
    if not callable(skip):
        raise TypeError(
            f"{function}: skip must be 'auto', None or a function of a parameter's name and "
            f"itself that returns '16bit', 'abstain' or None, got {skip!r}"
        )
    return skip


def _auto(embeddings: Embeddings, votes: bool, name: str, p: torch.Tensor) -> How | None:
    if not votes and (p.dim() < 2 or p.numel() <= _SMALL):
        return "16bit"
    return "abstain" if embeddings.has(name, p) else None


def variant(function: str, how: object, compressor: Compressor) -> Compressor:
    """The compressor of a parameter for which a rule said ``how``."""
    if how not in HOWS:
        raise ValueError(f"{function}: skip must return '16bit', 'abstain' or None, got {how!r}")
    if how is None:
        return compressor
    if how == "16bit":
        if isinstance(compressor, Accordion):
            return compressor.in_16_bits()
        return BF16Mean(nan=compressor.nan, signs=compressor.unit == "sign")
    return compressor.abstaining()
