"""Jet substructure: the 16 high-level features of the jet benchmark, from all particles of a jet and from those after grooming.

Energy correlators and their ratios: I. Moult, L. Necib, J. Thaler, "New angles on energy correlation functions", arXiv 1609.07483. The choice of
features: E. Coleman et al., arXiv 1709.08705; J. Duarte et al., arXiv 1804.06913.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pquant.data.splitting import Array

NAMES = (
    *("zlogz", "c1_b0", "c1_b1", "c1_b2", "c2_b1", "c2_b2", "d2_b1", "d2_b2", "d2_a1_b1", "d2_a1_b2"),
    *("m2_b1", "m2_b2", "n2_b1", "n2_b2", "mass_mmdt", "multiplicity"),
)
"""The features in the order of their columns."""


@dataclass(frozen=True)
class Correlators:
    """The energy correlators for one power of the angles: 1e2 of pairs, and 1e3, 2e3 and 3e3 of triplets with the 1, 2 or 3 smallest angles."""

    e2: float
    e3_1: float
    e3_2: float
    e3_3: float


def angles(rapidity: Array, phi: Array) -> Array:
    """Return the angular distances (N, N) in rapidity and azimuth between particles at (N,) positions."""
    across = np.abs(phi[:, None] - phi)
    return np.hypot(rapidity[:, None] - rapidity, np.minimum(across, 2 * np.pi - across))


def correlators(share: Array, distances: Array, powers: Sequence[float]) -> list[Correlators]:
    """Return the correlators for each power of the angles, from the fractions (N,) of the transverse momentum and the angular distances (N, N)."""
    first, second = np.triu_indices(len(share), 1)
    of_pair, weight = distances[first, second], share[first] * share[second]
    sums = np.zeros((len(powers), 3))
    for low in range(len(share) - 2):
        later = np.searchsorted(first, low, side="right")  # pairs are in the order of their first particle
        sides = distances[low, first[later:]], distances[low, second[later:]], of_pair[later:]
        smallest, largest = (choose(choose(*sides[:2]), sides[2]) for choose in (np.minimum, np.maximum))
        middle = np.maximum(np.minimum(*sides[:2]), np.minimum(np.maximum(*sides[:2]), sides[2]))
        for place, power in enumerate(powers):
            one, two = smallest**power, (smallest * middle) ** power
            sums[place] += share[low] * (weight[later:] @ np.stack([one, two, two * largest**power], 1))
    return [Correlators(float(weight @ of_pair**power), *map(float, each)) for power, each in zip(powers, sums, strict=True)]


def features(all_pt: Array, pt: Array, rapidity: Array, phi: Array, mass: float) -> Array:
    """Return the features (16,) of a jet.

    ``_b0``, ``_b1`` and ``_b2`` in a name are the power 0, 1 or 2 of the angles. C1 = 1e2; C2 = 3e3 / 1e2^2; D2 = 3e3 / 1e2^3; M2 = 1e3 / 1e2;
    N2 = 2e3 / 1e2^2. D2 with power a in 3e3 and b in 1e2 is 3e3(a) / 1e2(b)^(3 a / b), so that ``d2_a1_b1`` is ``d2_b1``. These features and the mass
    are computed from the groomed jet; multiplicity and zlogz = sum z ln z, with z the fractions of the transverse momentum, from the whole jet.

    Args:
        all_pt: transverse momentum of the particles of the jet, (M,).
        pt: transverse momentum of the particles after grooming, (N,), N at least 3.
        rapidity: rapidity of the particles after grooming, (N,).
        phi: azimuth of the particles after grooming, (N,).
        mass: mass of the groomed jet, in GeV.
    """
    of_all, z = all_pt / all_pt.sum(), pt / pt.sum()
    one, two = correlators(z, angles(rapidity, phi), (1, 2))
    d2 = one.e3_3 / one.e2**3
    ratios = [one.e3_3 / one.e2**2, two.e3_3 / two.e2**2, d2, two.e3_3 / two.e2**3, d2, one.e3_3 / two.e2**1.5]
    ratios += [one.e3_1 / one.e2, two.e3_1 / two.e2, one.e3_2 / one.e2**2, two.e3_2 / two.e2**2]
    return np.array([(of_all * np.log(of_all)).sum(), (1 - (z**2).sum()) / 2, one.e2, two.e2, *ratios, mass, len(of_all)])
