"""The models of this package; any torch module works as well."""

from pquant.models.cnn import CNN
from pquant.models.mlp import MLP
from pquant.models.resnet import ResNet20

__all__ = ["CNN", "MLP", "ResNet20"]
