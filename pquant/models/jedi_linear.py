"""Interaction networks whose cost is linear in the number of particles.

Z. Que et al., "JEDI-linear: Fast and Efficient Graph Neural Networks for Jet Tagging on FPGAs", arXiv 2508.15468.
"""

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from pquant.models.particles import check_widths, classifier, particle_shape


class LinearInteraction(nn.Module):
    """Interaction of each particle with all particles, (batch, particles, before) -> (batch, particles, after).

    For a linear edge function A x_i + B x_j + b, the mean over the senders j is A x_i + B mean(x) + b. This takes one dense layer for each
    particle and one for the mean of the particles, instead of one for each pair.
    """

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.own, self.all = nn.Linear(before, after), nn.Linear(before, after, bias=False)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Return relu(A x_i + B mean(x) + b) for each particle i."""
        return self.relu(self.own(x) + self.all(x.mean(1, keepdim=True)))


class JEDILinear(nn.Module):
    """A sequence of linear interactions, the mean over the particles, and a classifier.

    The output does not depend on the order of the particles. There is no mask: a particle of zeros counts like any other.

    Args:
        input_shape: shape of one input, (particles, features).
        num_outputs: the number of outputs that the data needs.
        interactions: width of each interaction.
        head: widths of the dense layers of the classifier, each followed by a ReLU; one more dense layer computes the outputs.

    Raises:
        ConfigError: inputs are not particles, or widths that are not positive.
    """

    def __init__(self, input_shape: Sequence[int], num_outputs: int, interactions: Sequence[int] = (32, 32, 32), head: Sequence[int] = (32,)) -> None:
        super().__init__()
        _, features = particle_shape("JEDILinear", input_shape)
        check_widths("JEDILinear.interactions", interactions)
        self.interactions = nn.Sequential(*(LinearInteraction(*pair) for pair in pairwise((features, *interactions))))
        self.head = classifier("JEDILinear.head", interactions[-1], head, num_outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs (batch, num_outputs) for particles (batch, particles, features)."""
        return self.head(self.interactions(x).mean(1))
