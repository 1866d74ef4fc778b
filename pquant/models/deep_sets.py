"""Deep sets: M. Zaheer et al., "Deep Sets", arXiv 1703.06114."""

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

from pquant.errors import ConfigError, unknown
from pquant.models.particles import classifier, dense_relu, particle_shape


class DeepSets(nn.Module):
    """rho(sum of phi(x_i)): a network phi for each particle, the sum or mean over the particles, and a network rho for the jet.

    The output does not depend on the order of the particles. For jets this is the particle flow network of P. Komiske, E. Metodiev, J. Thaler,
    "Energy Flow Networks: Deep Sets for Particle Jets", arXiv 1810.05165. There is no mask: a particle of zeros counts like any other.

    Args:
        input_shape: shape of one input, (particles, features).
        num_outputs: the number of outputs that the data needs.
        phi: widths of the dense layers for each particle, each followed by a ReLU.
        rho: widths of the dense layers after the sum, each followed by a ReLU; one more dense layer computes the outputs.
        pool: "sum" or "mean" over the particles.

    Raises:
        ConfigError: inputs are not particles, widths that are not positive, or an unknown pool.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        num_outputs: int,
        phi: Sequence[int] = (32, 32, 32),
        rho: Sequence[int] = (32,),
        pool: Literal["sum", "mean"] = "mean",
    ) -> None:
        super().__init__()
        _, features = particle_shape("DeepSets", input_shape)
        if pool not in ("sum", "mean"):
            raise ConfigError(f"DeepSets.pool: {unknown('pool', pool, ('sum', 'mean'))}")
        self.pool = pool
        self.phi = dense_relu("DeepSets.phi", features, phi)
        self.rho = classifier("DeepSets.rho", phi[-1], rho, num_outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs (batch, num_outputs) for particles (batch, particles, features)."""
        y = self.phi(x)
        return self.rho(y.sum(1) if self.pool == "sum" else y.mean(1))
