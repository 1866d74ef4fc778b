"""What every trial needs, imported once by the process that joblib's workers are forked from: a worker then starts in no time."""

import jinja2  # noqa: F401
import matplotlib.figure  # noqa: F401

import pquant.config  # noqa: F401
import pquant.finetuning.trial  # noqa: F401
