"""Construction of the float model from the configuration: a module, or a function that returns one for the data."""

from collections.abc import Callable
from functools import partial
from inspect import signature

from torch import nn

from pquant.data.splits import Splits
from pquant.errors import ConfigError, blaming

Model = nn.Module | Callable[..., nn.Module]
"""A module, or a function that returns one."""


def build_model(model: Model, splits: Splits, section: str = "model") -> nn.Module:
    """Return the float model for the data; see :func:`model_for`."""
    return model_for(model, tuple(splits.input_shape), splits.num_outputs, section)


def model_for(model: Model, input_shape: tuple[int, ...], num_outputs: int, section: str = "model") -> nn.Module:
    """Return the float model for inputs of a shape, without the batch axis; a callable with parameters ``input_shape`` and ``num_outputs`` gets them.

    Raises:
        ConfigError: the model cannot be built; the message names the ``section``.
    """
    if isinstance(model, nn.Module):
        return model
    offered = {"input_shape": input_shape, "num_outputs": num_outputs}
    taken = signature(model.func if isinstance(model, partial) else model).parameters
    with blaming(section):
        try:
            made = model(**{name: value for name, value in offered.items() if name in taken})
        except (ConfigError, TypeError, ValueError):
            raise
        except Exception as error:
            raise ConfigError(f"{section}: cannot be built: {type(error).__name__}: {' '.join(str(error).split())[:200]}") from error
    if not isinstance(made, nn.Module):
        raise ConfigError(f"{section} must be a torch.nn.Module, or a function that returns one, got {type(made).__name__}")
    return made
