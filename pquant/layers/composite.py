"""Base class of modules built from layers that ``compress`` replaces one by one."""

from typing import ClassVar, Self

from torch import Tensor, nn

from pquant.layers.base import NO_PRUNING, NO_QUANTIZATION
from pquant.layers.replacements import REPLACEMENTS
from pquant.pruning.method import PruningMethod
from pquant.quantization.quantization import Quantization


class Composite(nn.Module):
    """A module whose arithmetic is done by layers inside it. Its own code only moves, selects, adds or masks values.

    A subclass replaces a ``float_class`` of torch. ``of`` builds the float layers that compute the same as a module of that class. ``compress`` then
    replaces these layers, so that each has its own name, formats and pruner. The constructor of a subclass takes the arguments of ``float_class``
    and, by keyword, ``pruning``, ``quantization`` (method objects) and ``name``; without these the layers stay float.
    """

    float_class: ClassVar[type[nn.Module]]

    def __init__(
        self, *args: object, pruning: PruningMethod | None = None, quantization: Quantization | None = None, name: str = "", **kwargs: object
    ):
        super().__init__()
        self.take(self.float_class(*args, **kwargs))
        if pruning is not None or quantization is not None:
            self._replace_layers(name, pruning or NO_PRUNING, quantization or NO_QUANTIZATION)

    @classmethod
    def of(cls, layer: nn.Module) -> Self:
        """Return the module of float layers that computes the same as ``layer``, with the parameters of ``layer``."""
        new = cls.__new__(cls)
        nn.Module.__init__(new)
        new.take(layer)
        return new.train(layer.training)

    def take(self, layer: nn.Module) -> None:
        """Build the float layers from the parameters of ``layer``."""
        raise NotImplementedError

    def take_settings(self, layer: nn.Module) -> None:
        """Copy the attributes of ``layer`` that are numbers, booleans or strings, since other code may read them."""
        self.__dict__.update(
            {name: value for name, value in vars(layer).items() if isinstance(value, (int, float, str)) and not name.startswith("_")}
        )

    def _replace_layers(self, name: str, pruning: PruningMethod, quantization: Quantization) -> None:
        for inner, layer in list(self.named_modules()):
            if type(layer) in REPLACEMENTS:
                parent, _, attribute = inner.rpartition(".")
                own = f"{name}.{inner}" if name else inner
                setattr(self.get_submodule(parent), attribute, REPLACEMENTS[type(layer)].from_float(layer, own, pruning, quantization))


def dense(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """Return a dense layer with a weight (outputs, inputs) and a bias (outputs,) or None; slices of a parameter are copied."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta")
    for name, values in (("weight", weight), ("bias", bias)):
        if values is not None:
            own = values if isinstance(values, nn.Parameter) else nn.Parameter(values.detach().clone(), requires_grad=values.requires_grad)
            setattr(layer, name, own)
    return layer
