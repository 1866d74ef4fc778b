"""Conversion of the finetuning section to sweep expressions of Hydra's sweeper: the resolvers of ``conf/hydra/sweeper/study.yaml``."""

import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from hydra.core.override_parser.types import Quote, QuotedString

from pquant.finetuning.finetuning import HyperparameterSearch

PLAIN = re.compile(r"[A-Za-z_][\w./-]*")
KEYWORDS = {"true", "false", "null", "nan", "inf"}


def search_expressions(search: Mapping[str, Any], sampler: Mapping[str, Any]) -> dict[str, str]:
    """Return a sweep expression for each field of the search, and for each field of a grid sampler's ``search_space``.

    Raises:
        ConfigError: a value that is not a range or a list of choices.
    """
    given = HyperparameterSearch(**search)
    grid = HyperparameterSearch(categorical=sampler["params"].get("search_space") or {}).categorical
    numerical = {name: range_expression(*values) for name, values in given.numerical.items() if values is not None}
    categorical = {name: choice_expression(values) for name, values in (given.categorical | grid).items() if values is not None}
    return numerical | categorical


def range_expression(low: float, high: float, step: float | str) -> str:
    """Return the expression of the values low, low + step, ... up to and including ``high``; a step "log" gives a continuous logarithmic range."""
    integers = isinstance(low, int) and isinstance(high, int)
    if step == "log":
        interval = f"interval({low},{high})"
        return f"tag(log,{f'int({interval})' if integers else interval})"
    if integers and isinstance(step, int):
        return f"range({low},{high + 1},{step})"
    start, width = Decimal(str(low)), Decimal(str(step))
    steps = (Decimal(str(high)) - start) // width
    return f"range({float(low)!r},{start + (steps + Decimal('0.5')) * width:f},{width:f})"


def choice_expression(values: list[Any]) -> str:
    """Return the expression of a choice among the values; Hydra's grammar supports null only in the short form."""
    listed = ",".join(map(literal, values))
    return listed if None in values else f"choice({listed})"


def literal(value: Any) -> str:
    """Return a value in Hydra's override grammar, so that Hydra reads it back with its type."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return repr(float(f"{value:.12g}"))
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{literal(str(key))}:{literal(item)}" for key, item in value.items()) + "}"
    if isinstance(value, str):
        return value if PLAIN.fullmatch(value) and value.lower() not in KEYWORDS else QuotedString(value, Quote.single).with_quotes()
    return str(value) if isinstance(value, int) else "[" + ",".join(map(literal, value)) + "]"


def optuna_object(module: str, chosen: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the node that builds ``optuna.<module>.<type>`` with its params, as a partial. The ``search_space`` of a grid sampler is left out."""
    if chosen["type"] is None:
        return None
    params = {name: value for name, value in chosen["params"].items() if name != "search_space"}
    return {"_target_": f"optuna.{module}.{chosen['type']}", "_partial_": True, **params}
