import pytest
import torch
from torch import nn

from pquant.errors import ConfigError
from pquant.models import MLP


def test_widths_at_the_ends_come_from_the_data() -> None:
    model = MLP([None, 64, 32, 32, None], input_shape=(16,), num_outputs=5)
    shapes = {name: tuple(value.shape) for name, value in model.named_parameters() if name.endswith("weight")}
    assert shapes == {"layers.0.weight": (64, 16), "layers.2.weight": (32, 64), "layers.4.weight": (32, 32), "layers.6.weight": (5, 32)}
    assert model(torch.zeros(7, 16)).shape == (7, 5)


def test_fixed_widths_that_fit_give_the_same_network() -> None:
    assert str(MLP([16, 8, 5], input_shape=(16,), num_outputs=5)) == str(MLP([None, 8, None], input_shape=(16,), num_outputs=5))


def test_a_linear_model_is_two_widths() -> None:
    assert [type(layer) for layer in MLP([None, None], input_shape=(4,), num_outputs=2).layers] == [nn.Linear]


@pytest.mark.parametrize(("name", "kind"), [("relu", nn.ReLU), ("tanh", nn.Tanh)])
def test_activations_and_batch_norms_are_modules_of_their_own(name: str, kind: type[nn.Module]) -> None:
    model = MLP([None, 8, 6, None], input_shape=(4,), num_outputs=2, activation=name, batch_norm=True)  # type: ignore[arg-type]
    expected = [nn.Linear, nn.BatchNorm1d, kind, nn.Linear, nn.BatchNorm1d, kind, nn.Linear]
    assert [type(layer) for layer in model.layers] == expected
    assert len(set(model.layers)) == len(expected)


def test_images_are_flattened() -> None:
    model = MLP([None, 8, None], input_shape=(1, 8, 8), num_outputs=10)
    x = torch.randn(3, 1, 8, 8)
    assert torch.equal(model(x), model(x.flatten(1)))


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ([20, 8, 5], r"null or 16 as its first, since the data has 16 features, got \[20, 8, 5\]"),
        ([16, 8, 4], r"null or 5 as its last, since the data has 5 outputs, got \[16, 8, 4\]"),
        ([16], r"at least two positive widths, null only at the ends, got \[16\]"),
        ([], r"at least two positive widths"),
        ([None, None, None], r"at least two positive widths"),
        ([None, 0, None], r"at least two positive widths"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(sizes: list[int | None], message: str) -> None:
    with pytest.raises(ConfigError, match=f"MLP.sizes must.*{message}"):
        MLP(sizes, input_shape=(16,), num_outputs=5)


def test_unknown_activation_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"MLP.activation: unknown activation 'rellu': did you mean 'relu'\?"):
        MLP([None, None], input_shape=(4,), num_outputs=2, activation="rellu")  # type: ignore[arg-type]
