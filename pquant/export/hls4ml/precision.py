"""hls4ml's type strings for values and constants."""

import re

import numpy as np

from pquant.export.fixed import Fixed
from pquant.export.formats import Constants, Format


def text(signed: bool, width: int, integer: int, *modes: str) -> str:
    """Return hls4ml's string for a type; ``width`` and ``integer`` include the sign."""
    return f"{'' if signed else 'u'}fixed<{','.join(map(str, (width, integer, *modes)))}>"


def of_integers(low: int, high: int, f: int) -> str:
    """Return the narrowest type of the values n * 2^-f, low <= n <= high."""
    signed = low < 0
    width = max(max(high, -low - 1).bit_length(), 1 - signed) + signed
    return text(signed, width, width - f)


def of_values(value: Fixed) -> str:
    """Return the narrowest type that holds values for any input."""
    return of_integers(int(value.low.min(initial=0)), int(value.high.max(initial=0)), value.f)


def of_sum(value: Fixed) -> str:
    """Return the type of an accumulator that holds all partial sums."""
    largest = max(value.peak, value.largest)
    return of_integers(-largest, largest, value.f)


def of_constants(constants: Constants) -> str:
    """Return the narrowest type that holds constants."""
    return of_integers(int(constants.n.min(initial=0)), int(constants.n.max(initial=0)), constants.f)


def signed(kind: str) -> str:
    """Return the signed type that holds the values of an unsigned one."""
    width, integer = map(int, kind.removeprefix("ufixed<").removesuffix(">").split(","))
    return text(True, width + 1, integer + 1)


def parsed(kind: str) -> tuple[bool, int, int]:
    """Return (is signed, width, integer bits) of a type; both numbers of bits include the sign."""
    found = re.match(r"(u?)fixed<(\d+),(-?\d+)", kind)
    assert found is not None
    return not found[1], int(found[2]), int(found[3])


def union(*kinds: str) -> str:
    """Return the narrowest type that holds the values of all types."""
    each = [parsed(kind) for kind in kinds]
    any_signed = any(one for one, _, _ in each)
    integer = max(whole + (any_signed and not one) for one, _, whole in each)
    return text(any_signed, integer + max(width - whole for _, width, whole in each), integer)


def uniform(form: Format) -> str | None:
    """Return the type of a format that all values share, with its modes; None if they differ, or have no bits."""
    k, i, f = (np.unique(bits) for bits in (form.k, form.i, form.f))
    if max(map(len, (k, i, f))) > 1 or not form.width.all():
        return None
    return text(bool(k[0]), int(form.width.max()), int(k[0] + i[0]), form.round_mode, form.overflow_mode)
