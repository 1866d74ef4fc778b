"""What one forward of a model does: shapes by layer, and the calls that no layer stands for."""

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from pquant.layers.base import Calls, QuantizedLayer

Example = Tensor | tuple[Tensor, ...]

# Functions that move values without changing them, or add them exactly: nothing to quantize.
EXACT = frozenset(
    "add __add__ __radd__ __iadd__ add_ sub __sub__ __rsub__ __isub__ sub_ neg __neg__ cat concat stack view reshape flatten ravel unflatten "
    "permute transpose movedim t squeeze unsqueeze expand expand_as repeat chunk split narrow select index_select __getitem__ __get__ "
    "__set__ size dim numel stride contiguous clone detach to float type max_pool1d max_pool2d max_pool3d _max_pool1d _max_pool2d "
    "_max_pool3d boolean_dispatch fn dropout dropout1d dropout2d dropout3d pad is_floating_point __len__ __bool__ __repr__ has_names".split()
)


class Trace(TorchFunctionMode):
    """One evaluation-mode forward of ``model`` on an example input; the model is left as it was.

    Attributes:
        calls: for each layer (childless module) the (input, output) shapes of its calls, without the batch axis.
        order: those modules in the order of their first calls.
        feeds: for each layer the layer whose output it is given as it is, or None when that differs by call or is no layer's.
        functions: "relu in 'block1'"-like descriptions of calls made outside layers that change values.
    """

    def __init__(self, model: nn.Module, example: Example) -> None:
        super().__init__()
        self.calls: dict[nn.Module, Calls] = defaultdict(tuple)
        self.order: list[nn.Module] = []
        self.feeds: dict[nn.Module, nn.Module | None] = {}
        self.functions: list[str] = []
        self._made: dict[int, tuple[nn.Module, Tensor, int]] = {}
        self._inside: list[str] = []
        self._leaf_depth = 0
        handles = [handle for name, module in model.named_modules() for handle in self._watch(name, module)]
        modes = {module: module.training for module in model.modules()}
        try:
            with torch.no_grad(), torch.random.fork_rng(devices=[]), self:
                model.eval()(*(example if isinstance(example, tuple) else (example,)))
        finally:
            for handle in handles:
                handle.remove()
            for module, mode in modes.items():
                module.training = mode

    def _watch(self, name: str, module: nn.Module) -> list[Any]:
        leaf = isinstance(module, QuantizedLayer) or next(module.children(), None) is None

        def enter(*_: Any) -> None:
            self._inside.append(name)
            self._leaf_depth += leaf

        def leave(_: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            self._inside.pop()
            self._leaf_depth -= leaf
            if leaf and inputs and isinstance(inputs[0], Tensor) and isinstance(output, Tensor):
                self._note(module, inputs[0], output, feed[-1])

        feed: list[nn.Module | None] = []
        return [
            module.register_forward_pre_hook(enter),
            module.register_forward_pre_hook(lambda _, inputs: feed.append(self._maker(inputs))),
            module.register_forward_hook(leave),
        ]

    def _maker(self, inputs: tuple[Any, ...]) -> nn.Module | None:
        """Return the layer that made the first input, provided that nothing wrote into it since."""
        module, made, version = self._made.get(id(inputs[0]), (None, None, 0)) if inputs else (None, None, 0)
        return module if made is not None and made._version == version else None

    def _note(self, module: nn.Module, x: Tensor, y: Tensor, feed: nn.Module | None) -> None:
        if module not in self.calls:
            self.order.append(module)
            self.feeds[module] = feed
        elif self.feeds[module] is not feed:
            self.feeds[module] = None
        self.calls[module] += ((tuple(x.shape[1:]), tuple(y.shape[1:])),)
        self._made[id(y)] = (module, y, y._version)

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run ``func``, and note it when it changes values outside any layer."""
        name = getattr(func, "__name__", str(func))
        if self._leaf_depth == 0 and self._inside and name not in EXACT:
            description = f"{name} in '{self._inside[-1] or 'model'}'"
            if description not in self.functions:
                self.functions.append(description)
        return func(*args, **(kwargs or {}))
