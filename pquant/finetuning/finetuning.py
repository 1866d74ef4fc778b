"""The finetuning section: a study over any field of the configuration."""

from dataclasses import dataclass
from typing import Any

from pquant.errors import ConfigError, NotAvailableError
from pquant.settings import Settings, schema, setting


@dataclass(frozen=True)
class Sampler(Settings):
    """An Optuna sampler by its class name, with its arguments."""

    type: str = "TPESampler"
    params: dict[str, Any] = setting({})


@dataclass(frozen=True)
class HyperparameterSearch(Settings):
    """The space: ``numerical`` maps a field to [low, high, step], ``categorical`` to its choices."""

    numerical: dict[str, Any] = setting({})
    categorical: dict[str, Any] = setting({})

    def __post_init__(self) -> None:
        """Check that every range is [low, high, step] and every list of choices has one."""
        super().__post_init__()
        for name, values in self.numerical.items():
            if not (isinstance(values, list) and len(values) == 3 and values[0] <= values[1] and values[2] > 0):
                raise ConfigError(f"HyperparameterSearch.numerical['{name}'] must be [low, high, step] with low <= high and step > 0, got {values!r}")
        for name, values in self.categorical.items():
            if not (isinstance(values, list) and values):
                raise ConfigError(f"HyperparameterSearch.categorical['{name}'] must be a list of choices, got {values!r}")


@schema("finetuning", "finetuning")
@dataclass(frozen=True)
class FineTuning(Settings):
    """A study of ``num_trials`` trials; 0 means a single run.

    Raises:
        ConfigError: a value out of range.
        NotAvailableError: ``num_trials`` is above 0; studies are not part of this version.
    """

    experiment_name: str = "experiment_1"
    model_name: str = "resnet18"
    sampler: Sampler = Sampler(type="GridSampler")
    num_trials: int = setting(0, ge=0)
    hyperparameter_search: HyperparameterSearch = HyperparameterSearch()

    def __post_init__(self) -> None:
        """Check the fields."""
        super().__post_init__()
        if self.num_trials:
            raise NotAvailableError("FineTuning.num_trials: studies are not available yet; use finetuning=none")
