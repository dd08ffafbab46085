"""torch's MultiheadAttention with thin projections."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from mpisign.lowrank.layers import LowRankLinear

#: What of an nn.MultiheadAttention stays as it is.
_SAME = """embed_dim kdim vdim num_heads head_dim dropout batch_first add_zero_attn
_qkv_same_embed_dim training""".split()


class LowRankAttention(nn.MultiheadAttention):
    """An attention whose projections are factorized: q, k and v each of its own, and out_proj.

    With ``need_weights=False``, as torch's transformer layers call it, projections are two thin
    products each. Elsewhere (weights asked for, unbatched or nested input, bias_k and bias_v,
    add_zero_attn) torch's own code runs on products of the factors: the same result, without the
    saving. So does torch's fused path of a TransformerEncoderLayer in evaluation, which reads
    ``in_proj_weight``.

    Args:
        layer: the attention, whose biases and options it takes over.
        q, k, v: factors (U, V) of the projections, (embed_dim, rank) and (rank, embed_dim).
        out_proj: of the output: a LowRankLinear, or ``layer``'s own.

    Example:
        >>> import torch
        >>> from mpisign.lowrank import LowRankAttention
        >>> layer, pair = torch.nn.MultiheadAttention(4, 2), (torch.ones(4, 1), torch.ones(1, 4))
        >>> LowRankAttention(layer, pair, pair, pair, layer.out_proj).in_proj_weight.shape
        torch.Size([12, 4])
    """

    def __init__(
        self,
        layer: nn.MultiheadAttention,
        q: tuple[torch.Tensor, torch.Tensor],
        k: tuple[torch.Tensor, torch.Tensor],
        v: tuple[torch.Tensor, torch.Tensor],
        out_proj: nn.Module,
    ) -> None:
        nn.Module.__init__(self)  # its own makes the full weights
        for name in _SAME:
            setattr(self, name, getattr(layer, name))
        self.q, self.k, self.v = LowRankLinear(*q), LowRankLinear(*k), LowRankLinear(*v)
        self.in_proj_bias = layer.in_proj_bias
        self.out_proj: Any = out_proj
        self.bias_k, self.bias_v = layer.bias_k, layer.bias_v

    @property
    def in_proj_weight(self) -> torch.Tensor | None:  # type: ignore[override]
        """The products of q's, k's and v's factors, one below the other; None if widths differ."""
        if not self._qkv_same_embed_dim:
            return None
        return torch.cat([self.q.weight, self.k.weight, self.v.weight])

    @property
    def q_proj_weight(self) -> torch.Tensor | None:  # type: ignore[override]
        """The product of q's factors where widths differ, else None."""
        return None if self._qkv_same_embed_dim else self.q.weight

    @property
    def k_proj_weight(self) -> torch.Tensor | None:  # type: ignore[override]
        """The product of k's factors where widths differ, else None."""
        return None if self._qkv_same_embed_dim else self.k.weight

    @property
    def v_proj_weight(self) -> torch.Tensor | None:  # type: ignore[override]
        """The product of v's factors where widths differ, else None."""
        return None if self._qkv_same_embed_dim else self.v.weight

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        key_padding_mask: torch.Tensor | None = None,
        need_weights: bool = True,
        attn_mask: torch.Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The same as ``torch.nn.MultiheadAttention``.

        Args:
            query, key, value: (n, length, width) with ``batch_first``, else (length, n, width).
            key_padding_mask: (n, key length); True or -inf: not looked at.
            need_weights: return the attention's weights too.
            attn_mask: (length, key length), or (n * heads, length, key length).
            average_attn_weights: over heads.
            is_causal: ``attn_mask`` is the causal mask.

        Returns:
            The output, of query's shape, and the weights or None.
        """
        usual = not need_weights and query.dim() == 3 and not query.is_nested
        if self.bias_k is not None or self.add_zero_attn or (is_causal and attn_mask is None):
            usual = False  # the last is an error of theirs
        if not usual:
            return super().forward(
                query,
                key,
                value,
                key_padding_mask=key_padding_mask,
                need_weights=need_weights,
                attn_mask=attn_mask,
                average_attn_weights=average_attn_weights,
                is_causal=is_causal,
            )
        if not self.batch_first:
            query, key, value = (x.transpose(0, 1) for x in (query, key, value))
        n, length = query.shape[:2]
        causal = is_causal and key_padding_mask is None
        biases: Any = (None,) * 3 if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
        thin = zip((self.q, self.k, self.v), (query, key, value), biases, strict=True)
        q, k, v = (self._heads(F.linear(F.linear(x, p.v), p.u, b)) for p, x, b in thin)
        out = F.scaled_dot_product_attention(
            q,
            k,
            v,
            None if causal else self._mask(attn_mask, key_padding_mask, q),
            self.dropout if self.training else 0.0,
            is_causal=causal,
        )
        out = self.out_proj(out.transpose(1, 2).reshape(n, length, self.embed_dim))
        return (out if self.batch_first else out.transpose(0, 1)), None

    def _heads(self, x: torch.Tensor) -> torch.Tensor:
        """(n, length, width) to (n, heads, length, width of a head)."""
        return x.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)

    def _mask(
        self, mask: torch.Tensor | None, padding: torch.Tensor | None, like: torch.Tensor
    ) -> torch.Tensor | None:
        """What is added to the scores: of both masks, broadcast to (n, heads, length, length)."""
        if mask is not None:
            mask = _added(mask, like)
            if mask.dim() == 3:
                mask = mask.unflatten(0, (-1, self.num_heads))
        if padding is None:
            return mask
        padding = _added(padding, like)[:, None, None, :]
        return padding if mask is None else mask + padding


def _added(mask: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    if mask.dtype is not torch.bool:
        return mask.to(like.dtype)
    return torch.zeros(mask.shape, dtype=like.dtype, device=mask.device).masked_fill(
        mask, float("-inf")
    )
