import pytest

from pquant.errors import ConfigError
from pquant.finetuning.objectives import directions, validation_metric


def test_directions_of_known_figures() -> None:
    names = ["val/accuracy", "val/rmse", "test/loss", "ebops", "sparsity", "size_bytes", "weight_bits", "wall_seconds"]
    assert directions(names) == ["maximize", "minimize", "minimize", "minimize", "maximize", "minimize", "minimize", "minimize"]


def test_given_directions_win() -> None:
    assert directions(["mine", "ebops"], ["maximize", "maximize"]) == ["maximize", "maximize"]


@pytest.mark.parametrize(("names", "given"), [([], []), (["mine"], []), (["ebops"], ["up"]), (["ebops"], ["minimize", "minimize"])])
def test_what_is_unclear_is_refused(names: list[str], given: list[str]) -> None:
    with pytest.raises(ConfigError):
        directions(names, given)


def test_the_metric_of_the_task() -> None:
    assert validation_metric({"val/loss": 1.0, "val/rmse": 0.5}) == 0.5
    assert validation_metric({}) is None
