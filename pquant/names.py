"""Layer names in settings: an exact dotted name or a glob."""

from collections.abc import Iterable
from fnmatch import fnmatchcase

from pquant.errors import ConfigError, unknown


def matches(pattern: str, name: str) -> bool:
    """Return whether ``name`` is the pattern itself or fits it as a glob (``features.*``)."""
    return name == pattern or fnmatchcase(name, pattern)


def check_patterns(field: str, patterns: Iterable[str], names: Iterable[str]) -> None:
    """Raise a ConfigError for the first pattern of ``field`` that matches none of the layer ``names``."""
    names = list(names)
    for pattern in patterns:
        if not any(matches(pattern, name) for name in names):
            raise ConfigError(f"{field}: {unknown('layer', pattern, names)}")
