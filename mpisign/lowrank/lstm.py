"""torch's LSTM with factors in place of its large weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

#: What of an nn.LSTM stays as it is.
_SAME = """mode input_size hidden_size num_layers bias batch_first dropout bidirectional proj_size
training _flat_weights_names _all_weights""".split()


class LowRankLSTM(nn.LSTM):
    """An LSTM whose gates have a pair of factors each, for the input and for the hidden state.

    The factors of a weight's four gates lie in two parameters, u_NAME (4, hidden, rank) and v_NAME
    (4, rank, width). In each forward pass torch's own LSTM runs on their products: gradients are
    those of the factors, the time is that of the full LSTM.

    Args:
        layer: the LSTM, whose options, biases and other weights it takes over.
        factors: (U, V) by the names of the weights that they replace.

    Example:
        >>> import torch
        >>> from mpisign.lowrank import LowRankLSTM
        >>> layer = torch.nn.LSTM(8, 6)
        >>> thin = LowRankLSTM(layer, {"weight_hh_l0": (torch.ones(4, 6, 1), torch.ones(4, 1, 6))})
        >>> thin.weight_hh_l0.shape, thin(torch.ones(5, 2, 8))[0].shape
        (torch.Size([24, 6]), torch.Size([5, 2, 6]))
    """

    def __init__(
        self, layer: nn.LSTM, factors: Mapping[str, tuple[torch.Tensor, torch.Tensor]]
    ) -> None:
        nn.Module.__init__(self)  # its own makes the full weights
        for name in _SAME:
            setattr(self, name, getattr(layer, name))
        self._thin = frozenset(factors)
        self._flat_weights: list[Any] = []
        self._flat_weight_refs: list[Any] = []
        for name, p in layer.named_parameters():
            if name in factors:
                for letter, factor in zip("uv", factors[name], strict=True):
                    self.register_parameter(f"{letter}_{name}", nn.Parameter(factor))
            else:
                self.register_parameter(name, p)

    def __getattr__(self, name: str) -> Any:
        if name in self.__dict__.get("_thin", ()):
            u, v = getattr(self, f"u_{name}"), getattr(self, f"v_{name}")
            return (u @ v).flatten(0, 1)
        return super().__getattr__(name)

    def forward(self, input: Any, hx: Any = None) -> Any:
        """The same as ``torch.nn.LSTM``.

        Args:
            input: the sequence, or a PackedSequence.
            hx: hidden state and cell state, zeros by default.

        Returns:
            The output, and the last hidden and cell states.
        """
        self._flat_weights = [getattr(self, name) for name in self._flat_weights_names]
        try:
            return super().forward(input, hx)
        finally:
            self._flat_weights = []  # of a graph, which can neither be copied nor saved

    # torch keeps a list of an RNN's weights up to date: here it is made in each forward pass.
    def _update_flat_weights(self) -> None: ...
    def _init_flat_weights(self) -> None: ...
    def flatten_parameters(self) -> None:
        """Does nothing: cuDNN's one block of memory would be of products."""
