"""A recorded finalized model as an ONNX graph with quantizer nodes: Quant nodes of QONNX, or QuantizeLinear."""

import numpy as np

from pquant.export.fixed import Real
from pquant.export.formats import Constants, Format
from pquant.export.onnx.graph import PlainGraph
from pquant.export.onnx.values import Node
from pquant.export.onnx.writer import GENERAL

# qonnx's rounding modes for values of any sign, and those that are equal for values that are not negative.
ROUNDING = {"TRN": "FLOOR", "TRN_ZERO": "DOWN", "RND_CONV": "ROUND", "RND_INF": "HALF_UP", "RND_ZERO": "HALF_DOWN"}
UNSIGNED = ROUNDING | {"RND": "HALF_UP", "RND_MIN_INF": "HALF_DOWN"}


class QonnxGraph(PlainGraph):
    """Quant nodes of QONNX for weights and data, if a Quant node can express the quantizer; otherwise standard operators.

    A Quant node saturates, has one number of bits (at least two if signed), and rounds halves to even, or up or down in magnitude. A signed RND
    (halves up) is therefore a truncation to half steps, an addition of half a step, and another truncation. To round halves up or down, qonnx adds a
    half, and float32 may round this sum; so these modes are not used for values that are not fixed-point numbers yet.
    """

    def quantizer(self, x: Node, form: Format) -> str:
        """Return the name of ``x`` in a format."""
        bits = {(int(k), int(i), int(f)) for k, i, f in zip(form.k.ravel(), form.i.ravel(), form.f.ravel(), strict=True)}
        k, i, f = next(iter(bits))
        modes = UNSIGNED if k == 0 else ROUNDING
        if len(bits) > 1 or k + i + f < 1 + k or not form.overflow_mode.startswith("SAT"):
            return super().quantizer(x, form)
        narrow = form.overflow_mode == "SAT_SYM"
        mode = modes.get(form.round_mode)
        if mode is not None and not (mode.startswith("HALF") and isinstance(x.range, Real)):
            return self.quant(x.name, (k, i, f), narrow, mode)
        if form.round_mode != "RND":
            return super().quantizer(x, form)
        halves = self.quant(x.name, (k, i, f + 1), False, "FLOOR")
        return self.quant(self.op("Add", halves, self.constant(2.0 ** (-f - 1))), (k, i, f), narrow, "FLOOR")

    def weight(self, weight: Constants, form: Format | None) -> str:
        """Return a weight after a Quant node with enough bits for all its values."""
        plain = super().weight(weight, form)
        k, i, f = (0, 0, 0) if form is None else (int(bits.max()) for bits in (form.k, form.i, form.f))
        return self.quant(plain, (k, i, f), False, "ROUND") if k + i + f > 1 else plain

    def quant(self, x: str, bits: tuple[int, int, int], narrow: bool, mode: str) -> str:
        """Return ``x`` after a Quant node of k, i, f bits."""
        k, i, f = bits
        operands = (self.constant(2.0**-f), self.constant(0.0), self.constant(float(k + i + f)))
        return self.op("Quant", x, *operands, domain=GENERAL, signed=k, narrow=int(narrow and k), rounding_mode=mode)


class QdqGraph(PlainGraph):
    """QuantizeLinear and DequantizeLinear around data of at most 8 bits; they round halves to even, so only RND_CONV quantizers use them."""

    def quantizer(self, x: Node, form: Format) -> str:
        """Return the name of ``x`` in a format."""
        whole = form.f.size == form.k.size == 1 and form.width.max() <= 8 and form.overflow_mode.startswith("SAT")
        if not whole or form.round_mode != "RND_CONV":
            return super().quantizer(x, form)
        low, high = form.limits()
        y = self.op("Min", self.op("Max", x.name, self.constant(low)), self.constant(high))
        scale, zero = self.constant(np.ldexp(1.0, -form.f).reshape(())), self.constant(0, np.int8 if form.k.any() else np.uint8)
        return self.op("DequantizeLinear", self.op("QuantizeLinear", y, scale, zero), scale, zero)
