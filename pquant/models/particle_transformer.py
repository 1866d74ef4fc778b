"""Transformers of particles: H. Qu, C. Li, S. Qian, "Particle Transformer for Jet Tagging", arXiv 2202.03772."""

from collections.abc import Sequence

from torch import Tensor, nn

from pquant.errors import ConfigError
from pquant.models.particles import WIDEST, check_count, particle_shape

MOST_BLOCKS = 1024


class ParticleAttention(nn.Module):
    """A particle attention block, (batch, particles, width) -> the same: attention, then two dense layers with GELU, each added to its input.

    Layer norm stands before and after the attention, before the dense layers and between them.
    """

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.dense = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, hidden), nn.GELU(), nn.LayerNorm(hidden), nn.Linear(hidden, width))

    def forward(self, x: Tensor) -> Tensor:
        """Return the particles after both additions."""
        z = self.norm1(x)
        x = x + self.norm2(self.attention(z, z, z, need_weights=False)[0])
        return x + self.dense(x)


class ParticleTransformer(nn.Module):
    """An embedding of each particle, particle attention blocks, the mean over the particles, and a dense layer.

    Two parts of the paper are left out: the input of pair features, whose invariant masses and angles need four-momenta, and class attention, which
    the mean over the particles replaces. The output does not depend on the order of the particles. There is no mask: a particle of zeros
    counts like any other.

    Args:
        input_shape: shape of one input, (particles, features).
        num_outputs: the number of outputs that the data needs.
        width: features of an embedded particle; a multiple of ``heads``.
        heads: heads of each attention.
        hidden: width between the two dense layers of a block.
        blocks: particle attention blocks.

    Raises:
        ConfigError: inputs are not particles, or sizes that are not positive or do not fit each other.
    """

    def __init__(self, input_shape: Sequence[int], num_outputs: int, width: int = 32, heads: int = 4, hidden: int = 64, blocks: int = 2) -> None:
        super().__init__()
        _, features = particle_shape("ParticleTransformer", input_shape)
        for name, value, most in (("width", width, WIDEST), ("hidden", hidden, WIDEST), ("blocks", blocks, MOST_BLOCKS), ("heads", heads, width)):
            check_count(f"ParticleTransformer.{name}", value, most)
        if width % heads:
            raise ConfigError(f"ParticleTransformer.width must be a multiple of heads = {heads}, got {width}")
        self.embedding = nn.Sequential(nn.Linear(features, width), nn.GELU(), nn.LayerNorm(width), nn.Linear(width, width), nn.GELU())
        self.blocks = nn.Sequential(*(ParticleAttention(width, heads, hidden) for _ in range(blocks)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, num_outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs (batch, num_outputs) for particles (batch, particles, features)."""
        return self.head(self.norm(self.blocks(self.embedding(x))).mean(1))
