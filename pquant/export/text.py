"""Text files from templates."""

from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined


def render(template: str, **values: Any) -> str:
    """Return the template of this name, filled with ``values``."""
    environment = Environment(
        loader=PackageLoader("pquant.export"), undefined=StrictUndefined, keep_trailing_newline=True, trim_blocks=True, autoescape=False
    )  # noqa: S701
    return environment.get_template(template).render(values)
