"""The imports of every trial, made once by the process that joblib forks its workers from, so that workers start at once."""

import jinja2  # noqa: F401
import matplotlib.figure  # noqa: F401

import pquant.config  # noqa: F401
import pquant.finetuning.trial  # noqa: F401
