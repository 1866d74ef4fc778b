"""One thread for torch: the tensors of tests are small, and threads that wait for each other are most of the time otherwise.

Hypothesis sets no deadline: the first call of an operation pays for loading it.
"""

import torch
from hypothesis import settings

torch.set_num_threads(1)
settings.register_profile("pquant", deadline=None)
settings.load_profile("pquant")
