"""One thread for torch: the tensors of tests are small, and threads that wait for each other are most of the time otherwise."""

import torch

torch.set_num_threads(1)
