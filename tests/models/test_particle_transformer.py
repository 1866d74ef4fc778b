from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pquant.errors import ConfigError
from pquant.models import ParticleTransformer
from pquant.models.particle_transformer import ParticleAttention


def test_a_block_by_hand() -> None:
    torch.manual_seed(0)
    block, x = ParticleAttention(width=4, heads=2, hidden=6), torch.randn(3, 5, 4)
    z = F.layer_norm(x, (4,))
    q, k, v = F.linear(z, block.attention.in_proj_weight, block.attention.in_proj_bias).unflatten(-1, (3, 2, 2)).permute(2, 0, 3, 1, 4)
    heads = (q @ k.transpose(-1, -2) / 2**0.5).softmax(-1) @ v
    after = x + F.layer_norm(block.attention.out_proj(heads.transpose(1, 2).flatten(2)), (4,))
    hidden = F.layer_norm(F.gelu(block.dense[1](F.layer_norm(after, (4,)))), (6,))
    assert torch.allclose(block(x), after + block.dense[4](hidden), atol=1e-5)


def test_its_parts_are_modules_that_can_be_replaced() -> None:
    net = ParticleTransformer(input_shape=(5, 3), num_outputs=4, blocks=3)
    counts = {kind: sum(type(layer) is kind for layer in net.modules()) for kind in (nn.MultiheadAttention, nn.LayerNorm, nn.GELU)}
    assert counts == {nn.MultiheadAttention: 3, nn.LayerNorm: 14, nn.GELU: 5}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"width": 30}, r"ParticleTransformer.width must be a multiple of heads = 4, got 30"),
        ({"heads": 0}, r"ParticleTransformer.heads must be an integer from 1 to 32, got 0"),
        ({"heads": 64}, r"ParticleTransformer.heads must be an integer from 1 to 32, got 64"),
        ({"blocks": 0}, r"ParticleTransformer.blocks must be an integer from 1 to 1024, got 0"),
        ({"blocks": 1.5}, r"ParticleTransformer.blocks must be an integer from 1 to 1024, got 1.5"),
        ({"width": 0}, r"ParticleTransformer.width must be an integer from 1 to 65536, got 0"),
        ({"hidden": "a"}, r"ParticleTransformer.hidden must be an integer from 1 to 65536, got 'a'"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ParticleTransformer(input_shape=(5, 3), num_outputs=4, **fields)
