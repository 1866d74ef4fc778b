"""Dense autoencoders."""

import math
from collections.abc import Sequence

from torch import Tensor, nn

from pquant.errors import ConfigError
from pquant.models.particles import WIDEST, check_count, dense_relu


class Autoencoder(nn.Module):
    """Dense layers down to a few latent values and back up to the input, which the output reconstructs.

    An autoencoder that is trained on common events reconstructs unusual events badly. E. Govorkova et al. use this to detect new physics in a
    trigger, "Autoencoders on FPGAs for real-time, unsupervised new physics detection at 40 MHz at the Large Hadron Collider", arXiv 2108.03986. The
    targets of the data must be its features: ``data.reconstruct=true``.

    Args:
        input_shape: shape of one input; inputs of more than one axis are flattened.
        num_outputs: the number of outputs that the data needs, which must be the number of features.
        hidden: widths of the dense layers of the encoder, each followed by a ReLU; those of the decoder are the same, in reverse.
        latent: the number of values between encoder and decoder; no activation follows them.

    Raises:
        ConfigError: data whose targets are not its features, or widths that are not positive.
    """

    def __init__(self, input_shape: Sequence[int], num_outputs: int, hidden: Sequence[int] = (32, 16), latent: int = 3) -> None:
        super().__init__()
        features = math.prod(input_shape)
        if num_outputs != features:
            raise ConfigError(
                f"Autoencoder needs targets that are the {features} features, the data needs {num_outputs} outputs: try data.reconstruct=true"
            )
        check_count("Autoencoder.latent", latent, WIDEST)
        self.encoder = dense_relu("Autoencoder.hidden", features, hidden).append(nn.Linear(hidden[-1], latent))
        self.decoder = dense_relu("Autoencoder.hidden", latent, hidden[::-1]).append(nn.Linear(hidden[0], features))

    def forward(self, x: Tensor) -> Tensor:
        """Return the reconstructed inputs, flattened: (batch, features)."""
        return self.decoder(self.encoder(x.flatten(1) if x.ndim > 2 else x))
