"""Attention built from layers that ``compress`` replaces one by one: A. Vaswani et al., "Attention Is All You Need", arXiv 1706.03762."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from pquant.layers.composite import Composite, dense
from pquant.layers.constant import Constant
from pquant.layers.merge import Merge
from pquant.layers.softmax import ScaledSoftmax


class ScaledDotProductAttention(Composite):
    """softmax(scale * query @ key^T + mask) @ value, as ``torch.nn.functional.scaled_dot_product_attention`` computes it.

    Its layers are ``scores``, ``softmax`` (with the scale), ``dropout`` and ``context``.

    Args:
        scale: factor of the scores, usually 1 / sqrt(number of features of a key).
        dropout: fraction of the attention weights that is set to 0 in training.
    """

    def __init__(self, scale: float, dropout: float = 0.0) -> None:
        nn.Module.__init__(self)
        self.scores, self.softmax, self.context = Merge("matmul"), ScaledSoftmax(-1, scale), Merge("matmul")
        self.dropout, self.scale = nn.Dropout(dropout), scale

    def weights(self, query: Tensor, key: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return the attention weights (..., targets, sources) of queries (..., targets, features) and keys (..., sources, features).

        ``mask`` broadcasts with the weights. A boolean mask is true where a target may attend to a source. A float mask is added
        to the scaled scores.
        """
        scores = self.scores(query, key.transpose(-2, -1))
        if mask is not None:
            scores = scores.masked_fill(mask.logical_not(), -torch.inf) if mask.dtype == torch.bool else scores + mask / self.scale
        weights = self.softmax(scores)
        return weights if mask is None else weights.masked_fill((scores == -torch.inf).all(-1, keepdim=True), 0)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """Return the context (..., targets, features of the values). With ``is_causal`` target t attends to the sources 0 to t only."""
        if is_causal:
            mask = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool, device=query.device).tril()
        return self.context(self.dropout(self.weights(query, key, mask)), value)


class PQMultiheadAttention(Composite):
    """``nn.MultiheadAttention`` with a dense layer for each projection: ``q_proj``, ``k_proj``, ``v_proj`` and ``out_proj``.

    The child ``attention`` is a :class:`ScaledDotProductAttention`. The float module computes what torch's layer computes, and loads its state dict.
    """

    float_class = nn.MultiheadAttention
    batch_first: bool
    num_heads: int
    head_dim: int
    add_zero_attn: bool
    q_proj: nn.Linear
    k_proj: nn.Linear
    v_proj: nn.Linear
    bias_k_constant: Constant | None
    bias_v_constant: Constant | None

    def take(self, layer: Any) -> None:
        """Build the float layers from the parameters of ``layer``."""
        self.take_settings(layer)
        self.bias_k, self.bias_v = layer.bias_k, layer.bias_v
        packed = layer.in_proj_weight is not None
        weights = layer.in_proj_weight.chunk(3) if packed else (layer.q_proj_weight, layer.k_proj_weight, layer.v_proj_weight)
        biases = (None,) * 3 if layer.in_proj_bias is None else layer.in_proj_bias.chunk(3)
        for name, weight, bias in zip("qkv", weights, biases, strict=True):
            setattr(self, f"{name}_proj", dense(weight, bias))
        for own in ("bias_k", "bias_v"):
            parameter = getattr(layer, own)
            setattr(self, f"{own}_constant", None if parameter is None else Constant(tuple(parameter.shape), own))
        self.attention = ScaledDotProductAttention(1 / math.sqrt(layer.head_dim), layer.dropout)
        self.out_proj = dense(layer.out_proj.weight, layer.out_proj.bias)
        # torch's transformer layers read these two attributes. With these values they call this module instead of a fused kernel.
        self.in_proj_weight = self.in_proj_bias = None
        self._qkv_same_embed_dim = False

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Return (output, attention weights or None); arguments, shapes and masks are those of ``nn.MultiheadAttention``."""
        if is_causal and attn_mask is None:
            raise RuntimeError("MultiheadAttention: is_causal=True only states that attn_mask is causal, so attn_mask must be given")
        batched = query.ndim == 3
        if not batched:
            query, key, value = query.unsqueeze(0), key.unsqueeze(0), value.unsqueeze(0)
        elif not self.batch_first:
            query, key, value = query.transpose(0, 1), key.transpose(0, 1), value.transpose(0, 1)
        heads = [self._heads(x) for x in (self.q_proj(query), *self._sources(self.k_proj(key), self.v_proj(value)))]
        mask = self._mask(attn_mask, key_padding_mask, heads[1].shape[2] - key.shape[1], query)
        weights = self.attention.dropout(self.attention.weights(heads[0], heads[1], mask))
        context = self.attention.context(weights, heads[2])
        output = self.out_proj(context.transpose(1, 2).flatten(2))
        shown = None if not need_weights else weights.mean(1) if average_attn_weights else weights
        if not batched:
            return output.squeeze(0), None if shown is None else shown.squeeze(0)
        return output if self.batch_first else output.transpose(0, 1), shown

    def _sources(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys and values, (batch, sources, features), extended by ``bias_k`` and ``bias_v`` and, with ``add_zero_attn``, by zeros."""
        if self.bias_k_constant is not None and self.bias_v_constant is not None:
            own = (self.bias_k_constant(self.bias_k), self.bias_v_constant(self.bias_v))
            key, value = (torch.cat((x, last.expand(len(x), -1, -1)), 1) for x, last in zip((key, value), own, strict=True))
        if self.add_zero_attn:
            key, value = (torch.cat((x, x.new_zeros(len(x), 1, x.shape[2])), 1) for x in (key, value))
        return key, value

    def _heads(self, x: Tensor) -> Tensor:
        """Return (batch, length, heads * features) as (batch, heads, length, features)."""
        return x.unflatten(2, (self.num_heads, self.head_dim)).transpose(1, 2)

    def _mask(self, attn_mask: Tensor | None, key_padding_mask: Tensor | None, added: int, query: Tensor) -> Tensor | None:
        """Return the sum of both masks, which broadcasts with scores (batch, heads, targets, sources), or None; 0 for the ``added`` sources."""
        total: Tensor | None = None
        for mask, padding in ((attn_mask, False), (key_padding_mask, True)):
            if mask is None:
                continue
            values = query.new_zeros(mask.shape).masked_fill(mask, -torch.inf) if mask.dtype == torch.bool else mask.to(query)
            if padding:
                values = values.reshape(-1, 1, 1, values.shape[-1])
            elif values.ndim == 3:
                values = values.unflatten(0, (-1, self.num_heads))
            total = values if total is None else total + values
        return total if total is None or not added else nn.functional.pad(total, (0, added))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        for name in ("weight", "bias"):
            if (packed := state_dict.pop(f"{prefix}in_proj_{name}", None)) is not None:
                state_dict.update({f"{prefix}{which}_proj.{name}": part for which, part in zip("qkv", packed.chunk(3), strict=True)})
        for which in "qkv":
            if (weight := state_dict.pop(f"{prefix}{which}_proj_weight", None)) is not None:
                state_dict[f"{prefix}{which}_proj.weight"] = weight
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
