"""The ports of a design: the bits of each element, and hexadecimal words for test benches."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Port:
    """Elements of one width packed into a port, the first in the lowest bits.

    Attributes:
        names: names of the elements, unique and valid in Verilog and VHDL.
        formats: (k, i, f) of each element, whose k + i + f bits are part of its place in the port.
    """

    names: tuple[str, ...]
    formats: tuple[tuple[int, int, int], ...]

    @classmethod
    def of(cls, prefix: str, formats: Iterable[tuple[int, int, int]], shape: tuple[int, ...], last: Sequence[str] = ()) -> "Port":
        """Return the port of values of a shape, each named by its index; ``last`` has names along the last axis, or is empty."""
        labels = list(last) if shape and len(last) == shape[-1] else [str(at) for at in range(shape[-1] if shape else 1)]
        names = ["_".join((prefix, *map(str, place[:-1]), labels[place[-1]])) for place in np.ndindex(shape or (1,))]
        return cls(tuple(_unique([identifier(name) for name in names])), tuple((int(k), int(i), int(f)) for k, i, f in formats))

    @property
    def elements(self) -> int:
        """The number of elements."""
        return len(self.formats)

    @property
    def bits(self) -> int:
        """Bits of the place of each element."""
        return int(np.max(np.asarray(self.formats), axis=0).sum())

    @property
    def f(self) -> int:
        """Fractional bits of each place: its value is an integer times 2^-f."""
        return max(f for _, _, f in self.formats)

    @property
    def width(self) -> int:
        """Bits of the whole port."""
        return self.elements * self.bits

    def rows(self) -> list[dict[str, Any]]:
        """Return, for each element, its name, whether it is signed, its bits and fractional bits, and its place.

        The place is the first and last bit of the element in the port, and the number of extra bits that the port has above and below them. An
        element without bits is a constant 0 and has one bit.
        """
        rows = []
        for at, (name, (k, i, f)) in enumerate(zip(self.names, self.formats, strict=True)):
            k, i, f = (k, i, f) if k + i + f > 0 else (0, 1 - self.f, self.f)
            first, start = at * self.bits + self.f - f, at * self.bits
            last = first + k + i + f - 1
            places = {"from": first, "to": last, "above": start + self.bits - 1 - last, "below": first - start}
            rows.append({"name": name, "signed": bool(k), "bits": k + i + f, "f": f, **places})
        return rows

    def words(self, n: np.ndarray, f: int) -> list[str]:
        """Return one hexadecimal word per row of integers n with values n * 2^-f; axes after the first are flattened."""
        rows = n.reshape(len(n), -1)
        whole = rows << (self.f - f) if self.f >= f else rows >> (f - self.f)
        mask = (1 << self.bits) - 1
        digits = (self.width + 3) // 4
        return [f"{sum((int(value) & mask) << (self.bits * at) for at, value in enumerate(row)):0{digits}x}" for row in whole]


def identifier(text: str) -> str:
    """Return a valid name in Verilog and VHDL: letters, digits and single underscores, with a letter first and no underscore last."""
    return re.sub(r"_+", "_", re.sub(r"[^a-z0-9]", "_", text.lower())).strip("_")


def _unique(names: list[str]) -> list[str]:
    seen: dict[str, int] = {}
    result = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        result.append(name if names.count(name) == 1 else f"{name}_n{seen[name]}")
    return result
