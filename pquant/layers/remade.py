"""What layers keep of quantized activations for backward: nothing, where a trained quantizer keeps the values it has made them from.

The gradient of a trained bit width needs the values before the quantizer, that of a weight those after it. The latter are made again when backward
gets there, so that each activation lies in memory once, as in a plain network.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from pquant.quantization.hgq import again, source_of

NOTHING = nullcontext()
WORTH_IT = 2**14
"""Number of values from which on it costs little time to make them again."""


def remade(x: Tensor) -> AbstractContextManager[Any]:
    """Return a context in which what is computed from ``x`` keeps only how to make it again, where ``x`` is large and just quantized to trained bits.

    Raises:
        RuntimeError: in backward, when something that was kept has been changed in place since.
    """
    size, node = x.numel(), None
    if size >= WORTH_IT and not torch.compiler.is_compiling():
        node = source_of(x)
    if node is None:
        return NOTHING
    where = x.data_ptr()

    def pack(kept: Tensor) -> Any:
        same = kept.data_ptr() == where and kept.numel() == size and kept.is_contiguous()
        return kept.shape if same else (kept, kept._version)

    def unpack(packed: Any) -> Tensor:
        if isinstance(packed, torch.Size):
            return again(node).view(packed)
        kept, version = packed
        if kept._version != version:
            raise RuntimeError(f"a tensor of shape {tuple(kept.shape)} was changed in place between forward and backward, which needs its values")
        return kept

    return saved_tensors_hooks(pack, unpack)
