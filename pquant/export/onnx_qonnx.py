"""A recorded finalized model as a QONNX graph."""

from pquant.export.fixed import Constants, Format, Real
from pquant.export.onnx_graph import GENERAL, Operand, PlainGraph


class QonnxGraph(PlainGraph):
    """Quant nodes of QONNX for weights and data, if one can express the quantizer; otherwise standard operators.

    A Quant saturates, has one number of bits and at least two of them when signed, and rounds halves to even, up or down in size: a signed RND
    (halves up) is a truncation to half steps, half a step added, and another truncation. qonnx adds a half to round halves up or down, which float32
    may round, so values that are no fixed-point numbers yet are not given to those modes.
    """

    # Modes of qonnx for values of any sign, and those that are the same for values that are not negative.
    ROUNDING = {"TRN": "FLOOR", "TRN_ZERO": "DOWN", "RND_CONV": "ROUND", "RND_INF": "HALF_UP", "RND_ZERO": "HALF_DOWN"}
    UNSIGNED = ROUNDING | {"RND": "HALF_UP", "RND_MIN_INF": "HALF_DOWN"}

    def quantize(self, x: Operand, form: Format) -> str:
        """Return ``x`` in a format."""
        bits = {(int(k), int(i), int(f)) for k, i, f in zip(form.k.ravel(), form.i.ravel(), form.f.ravel(), strict=True)}
        k, i, f = next(iter(bits))
        modes = self.UNSIGNED if k == 0 else self.ROUNDING
        if len(bits) > 1 or k + i + f < 1 + k or not form.overflow_mode.startswith("SAT"):
            return super().quantize(x, form)
        narrow = form.overflow_mode == "SAT_SYM"
        adds_half = modes.get(form.round_mode, "HALF").startswith("HALF") and (isinstance(x[1], Real) or form.round_mode not in modes)
        if not adds_half:
            return self.quant(x[0], (k, i, f), narrow, modes[form.round_mode])
        return self.rounded_up(x[0], (k, i, f), narrow) if form.round_mode == "RND" else super().quantize(x, form)

    def rounded_up(self, x: str, bits: tuple[int, int, int], narrow: bool) -> str:
        """Return ``x`` with halves rounded up."""
        k, i, f = bits
        halves = self.quant(x, (k, i, f + 1), False, "FLOOR")
        return self.quant(self.op("Add", halves, self.constant(2.0 ** (-f - 1))), bits, narrow, "FLOOR")

    def weight(self, weight: Constants, form: Format | None) -> str:
        """Return a weight after a Quant node with enough bits for all its values."""
        assert form is not None
        k, i, f = (int(bits.max()) for bits in (form.k, form.i, form.f))
        plain = super().weight(weight, form)
        return self.quant(plain, (k, i, f), False, "ROUND") if k + i + f > 1 else plain

    def quant(self, x: str, bits: tuple[int, int, int], narrow: bool, mode: str) -> str:
        """Return ``x`` after a Quant node of k, i, f bits."""
        k, i, f = bits
        operands = (self.constant(2.0**-f), self.constant(0.0), self.constant(float(k + i + f)))
        return self.op("Quant", x, *operands, domain=GENERAL, signed=k, narrow=int(narrow and k), rounding_mode=mode)
