"""What every trial needs, imported once by the process that joblib's workers are forked from: a worker then starts in no time."""

import jinja2  # noqa: F401
import matplotlib.figure  # noqa: F401
import sklearn.datasets  # noqa: F401
import sklearn.model_selection  # noqa: F401
import torch._dynamo  # noqa: F401  (which an optimizer imports when it is made)

import pquant.config  # noqa: F401
import pquant.finetuning.trial  # noqa: F401
