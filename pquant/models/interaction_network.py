"""Interaction networks: P. Battaglia et al., "Interaction Networks for Learning about Objects, Relations and Physics", arXiv 1612.00222."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pquant.errors import ConfigError
from pquant.models.particles import classifier, dense_relu, particle_shape


class InteractionNetwork(nn.Module):
    """An interaction network on the graph of all ordered pairs of particles, as in the jet tagger of E. Moreno et al., "JEDI-net", arXiv 1908.05318.

    The edge network takes the features of the receiving and the sending particle. Each particle sums the results of its incoming edges; the node
    network takes the features of the particle and this sum. The classifier takes the sum over the particles. The output does not depend on the order
    of the particles. The cost is quadratic in their number. There is no mask: a particle of zeros counts like any other.

    Args:
        input_shape: shape of one input, (particles, features).
        num_outputs: the number of outputs that the data needs.
        edge: widths of the dense layers for each pair, each followed by a ReLU; f_R in JEDI-net.
        node: widths of the dense layers for each particle, each followed by a ReLU; f_O in JEDI-net.
        head: widths of the dense layers of the classifier, each followed by a ReLU; one more dense layer computes the outputs; phi_C in JEDI-net.

    Raises:
        ConfigError: inputs are not particles, or a single one; widths that are not positive.
    """

    receivers: Tensor
    senders: Tensor

    def __init__(
        self,
        input_shape: Sequence[int],
        num_outputs: int,
        edge: Sequence[int] = (16, 8),
        node: Sequence[int] = (32, 16),
        head: Sequence[int] = (32,),
    ) -> None:
        super().__init__()
        self.particles, features = particle_shape("InteractionNetwork", input_shape)
        if self.particles < 2:
            raise ConfigError(f"InteractionNetwork needs at least 2 particles, the data has {tuple(input_shape)}")
        receivers, senders = (~torch.eye(self.particles, dtype=torch.bool)).nonzero(as_tuple=True)
        self.register_buffer("receivers", receivers, persistent=False)
        self.register_buffer("senders", senders, persistent=False)
        self.edge = dense_relu("InteractionNetwork.edge", 2 * features, edge)
        self.node = dense_relu("InteractionNetwork.node", features + edge[-1], node)
        self.head = classifier("InteractionNetwork.head", node[-1], head, num_outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs (batch, num_outputs) for particles (batch, particles, features)."""
        pairs = torch.cat((x.index_select(1, self.receivers), x.index_select(1, self.senders)), -1)
        received = self.edge(pairs).unflatten(1, (self.particles, self.particles - 1)).sum(2)
        return self.head(self.node(torch.cat((x, received), -1)).sum(1))
