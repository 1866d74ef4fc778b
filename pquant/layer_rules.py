"""The bits of every layer as settings to edit: ``pquant layers model=cnn data=mnist > conf/quantization/mine.yaml``, then ``quantization=mine``."""

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from torch import nn

from pquant.config import build_experiment, check_complete
from pquant.data.splits import examples
from pquant.installation import CONF
from pquant.layers.base import QuantizedLayer
from pquant.layers.convert import compress
from pquant.own_classes import without_foreign_fields
from pquant.quantization.quantization import LayerFormats, Quantization

HEAD = """# The bits of every layer: k keeps negatives, i integer and f fractional bits. As conf/quantization/<name>.yaml it is quantization=<name>.
"""


def main(words: Sequence[str]) -> None:
    """Print a choice of the section ``quantization`` with a rule for each layer of the model.

    ``words`` are the overrides of a job, which compose the model and the data.

    Raises:
        ConfigError: an invalid override, or a model that does not fit the data.
    """
    with initialize_config_dir(config_dir=str(CONF)):
        config = compose("config", overrides=list(words), return_hydra_config=True)
    choice = config.hydra.runtime.choices.quantization
    config = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
    check_complete(config)
    experiment = build_experiment(without_foreign_fields(config, words))
    splits = experiment.data.load(experiment.seed)
    model = compress(experiment.build_model(splits), None, experiment.quantization, examples(splits))
    rules = {"defaults": [choice, "_self_"], "layer_specific": layer_rules(model, experiment.quantization)}
    print(HEAD + yaml.safe_dump(rules, sort_keys=False, default_flow_style=None, width=1000), end="")


def layer_rules(model: nn.Module, quantization: Quantization) -> dict[str, dict[str, Any]]:
    """Return ``quantization.layer_specific`` for a compressed model: the format of each tensor of each layer, by dotted name."""
    layers = [module for module in model.modules() if isinstance(module, QuantizedLayer)]
    return {layer.name: _rule(layer, quantization.formats(layer.name)) for layer in layers}


def _rule(layer: QuantizedLayer, formats: LayerFormats) -> dict[str, Any]:
    own = {name.removesuffix("_quantizer") for name, _ in layer.named_children()} - ({"bias"} if getattr(layer, "bias", None) is None else set())
    tensors = {field.name: getattr(formats, field.name) for field in fields(LayerFormats) if field.name in own}
    return {name: {"k": one.k, "i": one.i, "f": one.f} if one.enable else {"enable": False} for name, one in tensors.items()}
