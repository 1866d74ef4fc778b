from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

import pquant.data

CONF = Path(__file__).parents[2] / "conf"
SOURCES = {"digits": "Digits", "mnist": "Mnist", "cifar10": "Cifar10", "jets": "Jets", "jets_simulated": "JetsSimulated"}
SOURCES |= {"constituents": "Constituents", "table": "Table", "images": "Images", "arrays": "Arrays"}


def test_every_data_file_is_here() -> None:
    assert {file.stem for file in (CONF / "data").glob("*.yaml")} == set(SOURCES)


@pytest.mark.parametrize(("name", "cls"), SOURCES.items())
def test_each_data_file_gives_its_source_with_the_defaults_of_the_class(name: str, cls: str) -> None:
    with initialize_config_dir(str(CONF)):
        config = compose(f"data/{name}").data
    source = getattr(pquant.data, cls)
    assert instantiate(config, _convert_="all", _execution_whitelist_=("pquant.*",)) == source()
