"""The models of this package; any torch module works as well."""

from pquant.models.autoencoder import Autoencoder
from pquant.models.cnn import CNN
from pquant.models.cnn1d import CNN1d
from pquant.models.deep_sets import DeepSets
from pquant.models.interaction_network import InteractionNetwork
from pquant.models.jedi_linear import JEDILinear
from pquant.models.libraries import timm_model, torchvision_model
from pquant.models.mlp import MLP
from pquant.models.particle_transformer import ParticleTransformer
from pquant.models.resnet import ResNet20

__all__ = [
    "CNN",
    "MLP",
    "Autoencoder",
    "CNN1d",
    "DeepSets",
    "InteractionNetwork",
    "JEDILinear",
    "ParticleTransformer",
    "ResNet20",
    "timm_model",
    "torchvision_model",
]
