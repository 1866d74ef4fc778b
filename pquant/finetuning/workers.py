"""The imports of every trial. The process from which joblib forks its workers makes them once, so that workers start quickly."""

import jinja2  # noqa: F401
import matplotlib.figure  # noqa: F401

import pquant.config  # noqa: F401
import pquant.finetuning.trial  # noqa: F401
