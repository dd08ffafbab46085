"""A Linear and a Conv2d as two thin ones."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F


class LowRankLinear(nn.Module):
    """x V' U' + bias in place of x W' + bias.

    ``weight``, the product U V, is there for what reads it, such as torch's fused transformer
    layers in evaluation; it is no parameter.

    Args:
        u: the factor (out_features, rank).
        v: the factor (rank, in_features).
        bias: (out_features), or None.

    Example:
        >>> import torch
        >>> from mpisign.lowrank import LowRankLinear
        >>> layer = LowRankLinear(torch.ones(3, 1), torch.ones(1, 2))
        >>> layer(torch.tensor([[1.0, 2.0]])).tolist()
        [[3.0, 3.0, 3.0]]
    """

    bias: nn.Parameter | None

    def __init__(self, u: torch.Tensor, v: torch.Tensor, bias: nn.Parameter | None = None) -> None:
        super().__init__()
        self.u, self.v = nn.Parameter(u), nn.Parameter(v)
        self.register_parameter("bias", bias)
        self.out_features, self.rank = u.shape
        self.in_features = v.shape[1]

    @property
    def weight(self) -> torch.Tensor:
        """The product U V, (out_features, in_features)."""
        return self.u @ self.v

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Two thin products.

        Args:
            x: (..., in_features).

        Returns:
            (..., out_features).
        """
        return F.linear(F.linear(x, self.v), self.u, self.bias)

    def extra_repr(self) -> str:
        """What is printed of it."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"rank={self.rank}, bias={self.bias is not None}"
        )


class LowRankConv2d(nn.Module):
    """A k x k convolution to ``rank`` channels, then one of 1 x 1, in place of ``layer``.

    Args:
        layer: the Conv2d, whose stride, padding, dilation, padding mode and bias it takes over.
        u: the factor (out_channels, rank).
        v: the factor (rank, in_channels k k).

    Example:
        >>> import torch
        >>> from mpisign.lowrank import LowRankConv2d
        >>> conv = torch.nn.Conv2d(2, 4, 3, padding=1)
        >>> thin = LowRankConv2d(conv, torch.ones(4, 1), torch.ones(1, 18))
        >>> thin.v.shape, thin.u.shape, thin(torch.ones(1, 2, 5, 5)).shape
        (torch.Size([1, 2, 3, 3]), torch.Size([4, 1, 1, 1]), torch.Size([1, 4, 5, 5]))
    """

    bias: nn.Parameter | None

    def __init__(self, layer: nn.Conv2d, u: torch.Tensor, v: torch.Tensor) -> None:
        super().__init__()
        self.rank = u.shape[1]
        self.in_channels, self.out_channels = layer.in_channels, layer.out_channels
        self.kernel_size, self.stride = layer.kernel_size, layer.stride
        self.padding, self.dilation = layer.padding, layer.dilation
        self.padding_mode = layer.padding_mode
        self._around = layer._reversed_padding_repeated_twice
        self.u = nn.Parameter(u.reshape(self.out_channels, self.rank, 1, 1))
        self.v = nn.Parameter(v.reshape(self.rank, self.in_channels, *self.kernel_size))
        self.register_parameter("bias", layer.bias)  # type: ignore[arg-type]

    @property
    def weight(self) -> torch.Tensor:
        """The product of the factors, (out_channels, in_channels, k, k)."""
        return (self.u.flatten(1) @ self.v.flatten(1)).view(-1, *self.v.shape[1:])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Two thin convolutions.

        Args:
            x: (n, in_channels, height, width), or without n.

        Returns:
            What the Conv2d's would be, with ``weight``.
        """
        padding: Any = self.padding
        if self.padding_mode != "zeros":
            x, padding = F.pad(x, self._around, mode=self.padding_mode), 0
        x = F.conv2d(x, self.v, None, self.stride, padding, self.dilation)
        return F.conv2d(x, self.u, self.bias)

    def extra_repr(self) -> str:
        """What is printed of it."""
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, "
            f"stride={self.stride}, padding={self.padding}, rank={self.rank}"
        )
