"""What layers share: quantizers around every layer, and the compressed weight of those that have one."""

from typing import Any, Self

import torch
from torch import Tensor, nn

from pquant.errors import ConfigError
from pquant.layers.remade import remade
from pquant.pruning.method import NoPruner, NoPruning, Pruner, PruningMethod
from pquant.quantization.hgq import HGQQuantizer
from pquant.quantization.quantization import Quantization
from pquant.quantization.quantizer import NoQuantizer, Quantizer
from pquant.training.stage import Horizon, Stage
from pquant.watched import Watched, changes

Shape = tuple[int, ...]
Calls = tuple[tuple[Shape, Shape], ...]
Acting = tuple[Quantizer | None, Quantizer | None, bool]
NOT_FOUND: tuple[Acting, int] = ((None, None, False), -1)
NO_PRUNING = NoPruning()
NO_QUANTIZATION = Quantization(enable_quantization=False)


class QuantizedLayer(Watched):
    """A layer with a quantizer before and one after it; a subclass, mixed with the torch layer it replaces, gives ``compute``.

    ``name`` is the layer's dotted name in the model; ``calls`` the shapes, without the batch axis, of the (input, output) of each of its calls in
    one forward of the model, once an example input was seen. ``source`` holds the quantizer that made the layer's input, where one is known.
    """

    input_quantizer: Quantizer
    output_quantizer: Quantizer
    name: str
    quantization: Quantization
    calls: Calls
    source: tuple[Quantizer, ...] = ()
    price: Tensor
    train_epochs: Tensor

    def __init__(self, *args: Any, pruning: PruningMethod | None = None, quantization: Quantization | None = None, name: str = "", **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._equip(name, pruning or NO_PRUNING, quantization or NO_QUANTIZATION, ())

    @classmethod
    def from_float(cls, layer: nn.Module, name: str, pruning: PruningMethod, quantization: Quantization, calls: Calls = ()) -> Self:
        """Return the compressed layer that takes over everything ``layer`` has, its parameters included (shared, not copied)."""
        new = cls.__new__(cls)
        new.__dict__.update({key: value.copy() if isinstance(value, dict) else value for key, value in layer.__dict__.items()})
        new._equip(name, pruning, quantization, calls)
        return new

    def _equip(self, name: str, pruning: PruningMethod, quantization: Quantization, calls: Calls) -> None:
        self.name, self.calls, self.quantization = name, calls, quantization
        if quantization.prices_bits:
            self.register_buffer("price", torch.zeros(2))
            self.register_buffer("train_epochs", torch.tensor(-1))
        formats = quantization.formats(name)
        try:
            self.input_quantizer = quantization.data_quantizer(formats.input, [inputs for inputs, _ in calls])
            self.output_quantizer = quantization.data_quantizer(formats.output, [outputs for _, outputs in calls])
        except ConfigError as error:
            raise ConfigError(f"layer '{name}': {error}") from error

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output for ``x``, both quantized as set."""
        before, after, trained = self._acting()
        if before is not None:
            x = before(x if x.dtype is torch.float32 else _widened(x))
        if trained and self.training:
            with remade(x):
                y = self.compute(x)
        else:
            y = self.compute(x)
        return y if after is None else after(_widened(y))

    def _acting(self) -> Acting:
        """Return the input's quantizer, where the source left it anything to do, the output's, if any, and whether the bits of what the layer
        computes with are trained; kept until a module changes.
        """
        if torch.compiler.is_compiling():
            return self._find_acting()
        found, when = self.__dict__.get("acting", NOT_FOUND)
        if when != changes():
            found = self._find_acting()
            self.__dict__["acting"] = found, changes()
        return found

    def _find_acting(self) -> Acting:
        kept = bool(self.source) and self.input_quantizer.keeps(self.source[0])
        passes = type(self.input_quantizer).forward is NoQuantizer.forward
        before, after = None if kept or passes else self.input_quantizer, None if self.output_quantizer.is_float else self.output_quantizer
        return before, after, isinstance(self.operand(), HGQQuantizer)

    def output_source(self) -> Quantizer | None:
        """Return the quantizer whose values the layer gives out, or None when it gives others."""
        return None if self.output_quantizer.is_float else self.output_quantizer

    def operand(self) -> Quantizer:
        """Return the quantizer that says which bits the layer computes with: the one that made its input, unless its own takes bits away."""
        passes = self.source and (self.input_quantizer.is_float or self.input_quantizer.keeps(self.source[0]))
        return self.source[0] if passes else self.input_quantizer

    def connect(self, source: Quantizer) -> None:
        """Take note of the quantizer that makes the layer's input. One that is trained serves as the layer's own where that is of the same kind."""
        self.source = (source,)
        if self.input_quantizer.twin_of(source):
            self.input_quantizer = NoQuantizer()

    def deployed(self) -> tuple[Tensor, Tensor | None] | None:
        """Return the (weight, bias) of the layer if it were deployed now; None for one that has none."""
        return None

    def compute(self, x: Tensor) -> Tensor:
        """Return the layer's output for a quantized input."""
        raise NotImplementedError

    def on_stage_start(self, stage: Stage) -> None:
        """Follow the change to another stage: bits have a price from the train stage on."""
        if stage is Stage.TRAIN and self.quantization.prices_bits:
            self._set_price(0)

    def on_epoch_end(self) -> None:
        """Follow one epoch: the price may have a schedule."""
        if self.quantization.prices_bits and self.train_epochs >= 0:
            self._set_price(int(self.train_epochs) + 1)

    def _set_price(self, epoch: int) -> None:
        self.train_epochs.fill_(epoch)
        self.price.copy_(torch.tensor(self.quantization.prices(epoch)))

    def finalized(self) -> nn.Module:
        """Turn this layer into what is deployed and return it: quantized weights, masks applied, nothing left to train with."""
        for buffer in ("price", "train_epochs"):
            self._buffers.pop(buffer, None)
        self.input_quantizer, self.output_quantizer = self.input_quantizer.deployed(), self.output_quantizer.deployed()
        return self


def _widened(x: Tensor) -> Tensor:
    """Return values of reduced precision as float32, in which formats are exact."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


class CompressedLayer(QuantizedLayer):
    """A layer whose weight is pruned and quantized; a subclass gives ``linear_map``.

    ``prunable`` says whether the layer takes part in pruning; it still does after finalize. ``baked`` says whether the parameters are what is
    deployed, ``ready`` holds the effective ones while the model computes them for all layers together.
    """

    weight: Tensor
    bias: Any
    pruner: Pruner
    weight_quantizer: Quantizer
    bias_quantizer: Quantizer
    pruning_first: bool
    prunable: bool
    baked: bool = False
    ready: tuple[Tensor, Tensor | None] | None

    def _equip(self, name: str, pruning: PruningMethod, quantization: Quantization, calls: Calls) -> None:
        super()._equip(name, pruning, quantization, calls)
        formats = quantization.formats(name)
        self.pruning_first, self.ready = quantization.pruning_first, None
        self.weight_quantizer = quantization.weight_quantizer(formats.weight, self.weight.shape)
        self.bias_quantizer = NoQuantizer() if self.bias is None else quantization.weight_quantizer(formats.bias, self.bias.shape)
        self.prunable = pruning.prunes(name)
        if self.prunable and pruning.rescales and not self.pruning_first and formats.weight.enable:
            raise ConfigError(
                f"layer '{name}': Quantization.pruning_first must be true with {type(pruning).__name__}, which rescales the weights it keeps"
            )
        try:
            self.pruner = pruning.pruner(self.weight, type(self)) if self.prunable else NoPruner()
        except ConfigError as error:
            raise ConfigError(f"layer '{name}': {error}") from error

    def share(self, other: "CompressedLayer") -> None:
        """Use the pruner and weight quantizer of a layer whose weight is the same parameter."""
        self.pruner, self.weight_quantizer, self.prunable = other.pruner, other.weight_quantizer, other.prunable

    def effective(self) -> tuple[Tensor, Tensor | None]:
        """Return the (weight, bias) that the layer computes with."""
        if self.baked:
            return self.weight, self.bias
        seen = self.weight if self.pruning_first else self.weight_quantizer(self.weight)
        weight = self.weight_quantizer(self.pruner(seen)) if self.pruning_first else self.pruner(seen)
        return weight, None if self.bias is None else self.pruner.prune_bias(self.bias_quantizer(self.bias), seen)

    @torch.no_grad()
    def deployed(self) -> tuple[Tensor, Tensor | None]:
        """Return the (weight, bias) of the layer if it were deployed now, whatever mode it is in."""
        was_training = self.training
        if was_training:
            self.eval()
        weight, bias = self.effective()
        if was_training:
            self.train()
        return weight.detach(), None if bias is None else bias.detach()

    def linear_map(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return the layer's output for a quantized input and the given parameters."""
        raise NotImplementedError

    def compute(self, x: Tensor) -> Tensor:
        """Return the layer's output for a quantized input, and show the pruner what it needs to see."""
        y = self.linear_map(x, *(self.ready or self.effective()))
        if self.training and self.pruner.needs and self.pruner.stage is Stage.TRAIN:
            for needed, values in (("input", x), ("output", y)):
                if needed in self.pruner.needs:
                    self.pruner.observe(values.detach())
        return y

    @torch.no_grad()
    def start_pruner(self, stage: Stage, horizon: Horizon | None) -> None:
        """Bring the pruner into a stage; at fine-tuning its mask is frozen and what it bakes is written into the weight."""
        if stage is Stage.FINETUNE:
            self.weight.copy_(self.pruner.freeze(self.weight if self.pruning_first else self.weight_quantizer(self.weight)))
        else:
            self.pruner.on_stage_start(stage, horizon)

    @torch.no_grad()
    def finalized(self) -> nn.Module:
        """Write mask and quantized values into the parameters."""
        super().finalized()
        weight, bias = self.deployed()
        self.weight.copy_(weight).requires_grad_(False)
        if self.bias is not None and bias is not None:
            self.bias.copy_(bias).requires_grad_(False)
        self.pruner, self.baked = NoPruner(), True
        self.weight_quantizer, self.bias_quantizer = self.weight_quantizer.baked(), self.bias_quantizer.baked()
        return self


def weight_layers(model: nn.Module) -> dict[str, CompressedLayer]:
    """Return the model's compressed layers by dotted name, one of those that share a weight."""
    layers = {name: module for name, module in model.named_modules() if isinstance(module, CompressedLayer)}
    weights = {name: layer.weight for name, layer in layers.items()}
    first = {id(weight): name for name, weight in reversed(weights.items())}
    return {name: layer for name, layer in layers.items() if first[id(weights[name])] == name}


def pruned_layers(model: nn.Module) -> dict[str, CompressedLayer]:
    """Return the layers that take part in pruning, by dotted name, one of those that share a weight."""
    return {name: layer for name, layer in weight_layers(model).items() if not isinstance(layer.pruner, NoPruner)}
