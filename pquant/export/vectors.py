"""Test inputs of a model: edges of its input range, examples of the data, and random values."""

import numpy as np
import torch
from torch.utils.data import Dataset

from pquant.export.formats import Format

CORNERS = 32
BEYOND = 4.0


def test_vectors(data: Dataset, form: Format, count: int, seed: int = 0) -> np.ndarray:
    """Return float32 (count, *shape): edges first, then examples of ``data``, then random values over and beyond the input's range.

    The edges are all-lowest, all-highest, zero, the steps next to zero, values far beyond the range, and random corners of it.

    Args:
        data: dataset whose examples begin with an input.
        form: format of the input, in its shape.
        count: number of vectors; at least 48 to contain all edges.
        seed: seed of the random values.
    """
    random = np.random.default_rng(seed)
    low, high = form.limits()
    step = np.where(form.width > 0, np.ldexp(1.0, -form.f), 0.0)
    edges = [low, high, 0 * low, step, -step, step / 2, -step / 2, low - step, high + step, BEYOND * low - 1, BEYOND * high + 1]
    corners = np.where(random.random((CORNERS, *low.shape)) < 0.5, low, high)
    fixed = np.concatenate([np.stack(edges), corners])[:count]
    wanted = min(count - len(fixed), len(data))  # type: ignore[arg-type]
    examples = [data[index][0] for index in range(wanted)]
    rest = count - len(fixed) - wanted
    anywhere = low + (high - low) * (1.5 * random.random((rest, *low.shape)) - 0.25)
    seen = torch.stack(examples).double().numpy() if examples else np.zeros((0, *low.shape))
    return np.concatenate([fixed, seen, anywhere]).astype(np.float32)
