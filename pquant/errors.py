"""The errors that users see before any training starts, and their suggestions for misspelt names."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches


class ConfigError(ValueError):
    """An invalid setting; the message has the value, what was expected and the nearest valid name, in one line."""

    def __str__(self) -> str:
        """Return the message, with line breaks, which names from a file may contain, replaced by spaces."""
        return " ".join(super().__str__().splitlines())


class ExportError(RuntimeError):
    """An export whose outputs differ from the model's; the message names the first difference."""


class ConstantOutputError(ConfigError):
    """A trained model whose output ignores its input; the message names the first layer whose output does not depend on the input."""


class StoppedEarly(Exception):  # noqa: N818
    """A run that is ended on purpose before its last epoch."""


class DivergedError(RuntimeError):
    """Raised if data, the loss, gradients or weights are not finite."""


class LostProcessError(RuntimeError):
    """Raised if another of the processes that train one model has ended."""


@contextmanager
def blaming(section: str) -> Iterator[None]:
    """Turn an error of a section's constructor into a ``ConfigError`` that names the section.

    Raises:
        ConfigError: a ``TypeError`` or ``ValueError`` inside.
    """
    try:
        yield
    except ConfigError:
        raise
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{section}: {str(error).splitlines()[0]}") from error


def did_you_mean(name: str, options: Iterable[object]) -> str:
    """Return ``": did you mean 'x'?"`` for the option nearest to ``name``, or an empty string."""
    close = get_close_matches(str(name), [str(option) for option in options], n=1, cutoff=0.5)
    return f": did you mean '{close[0]}'?" if close else ""


def unknown(what: str, name: str, options: Iterable[object]) -> str:
    """Return the message for a ``name`` that is none of the ``options``: the nearest one, then all of them."""
    names = [str(option) for option in options]
    return f"unknown {what} '{name}'{did_you_mean(name, names) or ';'} valid: {', '.join(names) or 'none'}"
