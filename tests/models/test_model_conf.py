from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

CONF = Path(__file__).parents[2] / "conf"
SHAPES = {"mlp": (64,), "jet_tagger": (16,), "cnn": (1, 8, 8), "resnet20": (3, 32, 32), "autoencoder": (5,)} | dict.fromkeys(
    ("deep_sets", "interaction_network", "jedi_linear", "particle_transformer", "conv1d"), (16, 3)
)


def test_every_model_file_is_here() -> None:
    assert {file.stem for file in (CONF / "model").glob("*.yaml")} == {*SHAPES, "torch", "torchvision", "timm"}


@pytest.mark.parametrize(("name", "shape"), SHAPES.items())
def test_each_model_file_waits_for_the_shape_of_the_data(name: str, shape: tuple[int, ...]) -> None:
    with initialize_config_dir(str(CONF)):
        config = compose(f"model/{name}").model
    build = instantiate(config, _convert_="all", _execution_whitelist_=("pquant.*",))
    assert build(input_shape=shape, num_outputs=5)(torch.zeros(2, *shape)).shape == (2, 5)
