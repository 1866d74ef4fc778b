"""The list of layers for hls4ml, and the types in them."""

import re
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from pquant.errors import ConfigError
from pquant.export.formats import Constants, Format
from pquant.export.hls4ml import precision
from pquant.export.hls4ml.layout import Order, same, transposition

LARGEST_RANK = 4


@dataclass(frozen=True)
class Value:
    """The result of a layer of the project.

    Attributes:
        layer: name of the layer.
        order: order of the values.
        bounds: the values in integer arithmetic, in torch's shape; only their bounds are used.
        form: the known format of the values, if any, in torch's shape.
        castable: whether the result type of the layer may still be set to the format of a quantizer.
        constants: the values, if they do not depend on the model's input; there is no layer then.
    """

    layer: str
    order: Order
    bounds: Any
    form: Format | None = None
    castable: bool = False
    constants: Constants | None = None


@dataclass(frozen=True)
class Target:
    """The target of a project.

    Attributes:
        backend: hls4ml's name of the HLS tool.
        stream: whether values flow one position at a time, in hls4ml's io_stream.
        resource: names of layers whose multipliers are shared.
    """

    backend: str = "Vitis"
    stream: bool = False
    resource: frozenset[str] = frozenset()

    @property
    def amd(self) -> bool:
        """Whether the HLS tool is from AMD; hls4ml has the most layers for these."""
        return self.backend in ("Vitis", "Vivado")


@dataclass
class Project:
    """Layers in order, their types, the step of each layer, and the layers that only move values, whose strategy is never changed."""

    target: Target = Target()
    layers: list[dict[str, Any]] = field(default_factory=list)
    types: dict[str, dict[str, str]] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)
    moving: set[str] = field(default_factory=set)

    def add(self, kind: str, name: str, inputs: list[Value], value: Value, types: dict[str, str], **attributes: Any) -> Value:
        """Append a layer with the result ``value``; return ``value`` with the name of the layer.

        Args:
            kind: hls4ml's class of layer.
            name: name of the step, from which the name of the layer is made.
            inputs: inputs of the layer, without constants.
            value: result of the layer.
            types: types of the layer, at least that of its ``result``.
            attributes: arguments of hls4ml's class.
        """
        for one in inputs:
            self.type_of(one)
        layer = self._unused(name)
        self.origins[layer] = name
        wired = {"inputs": [one.layer for one in inputs]} if inputs else {}
        self.layers.append({"class_name": kind, "name": layer, **wired, "data_format": "channels_last", **attributes})
        self.types[layer] = types
        return replace(value, layer=layer)

    def cast(self, name: str, value: Value, form: Format | None) -> Value:
        """Return a value quantized to a format.

        Raises:
            ConfigError: formats that differ in a stream.
        """
        if form is None:
            return value
        form = form.expand(value.bounds.shape)
        if value.constants is not None:
            fixed = value.bounds.quantize(form)
            return replace(value, bounds=fixed, constants=Constants.from_floats(fixed.floats()[0]))
        if value.form is not None and _equal(form, value.form):
            return value
        made = replace(value, bounds=value.bounds.quantize(form), form=form, castable=False)
        shared = precision.uniform(form)
        if shared is not None and value.castable:
            self.types[value.layer]["result"] = shared
            return made
        if shared is not None:
            return self.add("Activation", name, [value], made, {"result": shared}, activation="linear", n_in=value.order.size)
        if self.target.stream or not self.target.amd:
            raise ConfigError("its data has several formats, or no bits, which hls4ml takes for Vitis and Vivado only, with io_type=parallel")
        low, high = form.bounds()
        width = np.where(low == high, 0, form.width)
        masks = [bits.ravel()[value.order][None] for bits in (form.k, width, form.k + form.i)]
        modes = {"RND": form.round_mode, "SAT": form.overflow_mode}
        types = {"result": precision.of_values(made.bounds)}
        return self.add("FixedPointQuantizer", name, [value], made, types, mask_kbi=tuple(masks), **modes, overrides={}, fusible=False)

    def arrange(self, name: str, value: Value, wanted: Order) -> Value:
        """Return a value in another order.

        Raises:
            ConfigError: the order needs more than a reshape or one transposition.
        """
        if not same(value.order, wanted):
            found = transposition(value.order, wanted)
            if found is None or len(found[0]) > LARGEST_RANK:
                raise ConfigError("its input would have to be reordered by more than one transposition")
            shape, axes = found
            if self.target.stream and not self.target.amd and (len(shape) > 2 or self.target.backend == "Catapult"):
                raise ConfigError(f"its input would have to be transposed, which hls4ml does not do in a stream for {self.target.backend}")
            value = self.reshape(name, value, value.order.reshape(shape))
            value = self._moved("Transpose", name, value, value.order.transpose(axes), perm=list(axes))
        return self.reshape(name, value, wanted)

    def reshape(self, name: str, value: Value, wanted: Order) -> Value:
        """Return a value in another shape, its sequence unchanged."""
        if value.order.shape == wanted.shape:
            return value
        return self._moved("Reshape", name, value, wanted, target_shape=list(wanted.shape))

    def _moved(self, kind: str, name: str, value: Value, order: Order, **attributes: Any) -> Value:
        types = {"result": self.type_of(value)}
        return self.add(kind, name, [value], replace(value, order=order, castable=False), types, **attributes)

    def type_of(self, value: Value) -> str:
        """Return the type of a value.

        Raises:
            ConfigError: the value is a constant, which is not the result of a layer.
        """
        if value.constants is not None:
            raise ConfigError("hls4ml takes constants in sums and products only")
        return self.types[value.layer]["result"]

    def _unused(self, name: str) -> str:
        base = "layer_" + re.sub(r"\W+", "_", name).strip("_").lower()
        return next(one for one in (base, *(f"{base}_{number}" for number in range(2, len(self.types) + 3))) if one not in self.types)


def _equal(form: Format, other: Format) -> bool:
    bits = all(np.array_equal(getattr(form, part), getattr(other, part)) for part in "kif")
    return bits and form.overflow_mode == other.overflow_mode
