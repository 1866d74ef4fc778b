"""Jets of five classes, simulated with Pythia 8 and clustered and groomed with FastJet.

Proton-proton collisions at 13 TeV with a hard scattering of about 1 TeV, multi-parton interactions, showers and hadronization, without a detector.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from pquant.data.splitting import Array
from pquant.data.substructure import NAMES, features

QUARKS = "1 2 3 4 5"
PROCESSES = {
    "g": ("HardQCD:gg2gg", "HardQCD:qqbar2gg"),
    "q": ("HardQCD:qq2qq", "HardQCD:qqbar2qqbarNew", "HardQCD:gg2qqbar"),
    "t": ("Top:gg2ttbar", "Top:qqbar2ttbar"),
    "w": ("WeakDoubleBoson:ffbar2WW",),
    "z": ("WeakDoubleBoson:ffbar2gmZgmZ",),
}
"""The hard processes of Pythia for each class."""
SETTINGS = (
    *("Print:quiet = on", "Beams:eCM = 13000", "PhaseSpace:pTHatMin = 985", "PhaseSpace:pTHatMax = 1015", "WeakZ0:gmZmode = 2"),
    *(f"{boson}:{setting}" for boson in (23, 24) for setting in ("onMode = off", f"onIfAny = {QUARKS}")),
)
RADIUS, RADIUS_OF_ALL, TO_PARTON = 0.8, 10.0, 0.4
"""Radius of the jets, a radius that contains all particles of a jet, and the largest distance between a jet and its parton."""
LOWEST_PT, HIGHEST_PT, HIGHEST_ETA = 800.0, 1600.0, 5.0
"""Lowest and highest transverse momentum of jets in GeV, and highest absolute pseudorapidity of particles."""
LEADING, Z_CUT, FEWEST, PARTICLES = 2, 0.1, 3, 16
"""Leading jets considered per collision, z_cut of the grooming, fewest particles after grooming, and hardest particles kept per jet."""
GENERATOR = (PROCESSES, SETTINGS, RADIUS, RADIUS_OF_ALL, TO_PARTON, LOWEST_PT, HIGHEST_PT, HIGHEST_ETA, LEADING, Z_CUT, FEWEST, PARTICLES)
"""All constants that determine the jets of a seed, besides the versions of Pythia and FastJet and the code of this file."""
Jet = tuple[Array, Array]


def simulate(counts: dict[str, int], seed: int, on_jet: Callable[[], None] = lambda: None) -> dict[str, Array]:
    """Return ``counts[name]`` jets of each class, shuffled: features ``x`` (N, 16), particles ``constituents`` (N, 16, 3) and classes ``y`` (N,).

    The features of a particle are its fraction of the jet's transverse momentum, and its rapidity and azimuth relative to the jet axis. Rows of 0 are
    padding. ``seed`` seeds Pythia for each class, and the order. ``on_jet`` is called after each jet.
    """
    found: list[Jet] = []
    for name, count in counts.items():
        jets = _jets(name, seed)
        for _ in range(count):
            found.append(next(jets))
            on_jet()
    order = np.random.default_rng(seed).permutation(len(found))
    x, constituents = (np.array([found[place][part] for place in order], np.float32) for part in (0, 1))
    y = np.repeat(list(counts), list(counts.values()))[order]
    return {"x": x, "constituents": constituents, "y": y, "features": np.array(NAMES)}


def _jets(name: str, seed: int) -> Iterator[Jet]:
    """Yield the features and the hardest particles of jets of a class, indefinitely."""
    pythia = _pythia(name, seed)
    while True:
        if pythia.next():
            partons = [pythia.process[place] for place in (5, 6)]
            for jet in clustered(_visible(pythia.event)):
                if any(_distance(jet, parton.y(), parton.phi()) < TO_PARTON for parton in partons):
                    groomed = mmdt(jet)
                    if len(groomed.constituents()) >= FEWEST:
                        yield features(kinematics(jet)[0], *kinematics(groomed), groomed.m()), hardest(jet)


def _pythia(name: str, seed: int) -> Any:
    from pythia8mc import Pythia

    pythia = Pythia("", False)
    for line in (*SETTINGS, *(f"{process} = on" for process in PROCESSES[name]), "Random:setSeed = on", f"Random:seed = {seed}"):
        if not pythia.readString(line):
            raise RuntimeError(f"Pythia does not take '{line}'")
    if not pythia.init():
        raise RuntimeError(f"Pythia cannot start the processes of class '{name}'")
    return pythia


def _visible(event: Any) -> list[Any]:
    from fastjet import PseudoJet

    seen = (particle for particle in event if particle.isFinal() and particle.isVisible() and abs(particle.eta()) < HIGHEST_ETA)
    return [PseudoJet(particle.px(), particle.py(), particle.pz(), particle.e()) for particle in seen]


def clustered(particles: list[Any]) -> list[Any]:
    """Return the leading anti-kt jets, at most two, whose transverse momentum is in the allowed range."""
    from fastjet import ClusterSequence, JetDefinition, antikt_algorithm, sorted_by_pt

    sequence = ClusterSequence(particles, JetDefinition(antikt_algorithm, RADIUS))
    leading = list(sorted_by_pt(sequence.inclusive_jets(LOWEST_PT)))[:LEADING]
    kept = [jet for jet in leading if jet.pt() <= HIGHEST_PT]
    for jet in kept:
        jet.sequence = sequence  # the sequence holds the particles of the jet, so the jet keeps a reference to it
    return kept


def mmdt(jet: Any) -> Any:
    """Return a jet after grooming with the modified mass-drop tagger (M. Dasgupta et al., arXiv 1307.0007).

    The jet is clustered again by angle, and the clustering is undone step by step. The softer of two parts is dropped as long as it has less than
    ``z_cut`` of the sum of both transverse momenta.
    """
    from fastjet import ClusterSequence, JetDefinition, PseudoJet, cambridge_algorithm

    sequence = ClusterSequence(list(jet.constituents()), JetDefinition(cambridge_algorithm, RADIUS_OF_ALL))
    (groomed,) = sequence.inclusive_jets()
    one, two = PseudoJet(), PseudoJet()
    while groomed.has_parents(one, two):
        harder, softer = (one, two) if one.pt() > two.pt() else (two, one)
        if softer.pt() > Z_CUT * (harder.pt() + softer.pt()):
            break
        groomed, one, two = harder, PseudoJet(), PseudoJet()
    groomed.sequence = sequence
    return groomed


def kinematics(jet: Any) -> tuple[Array, Array, Array]:
    """Return transverse momentum in GeV, rapidity and azimuth (N,) of the particles of a jet."""
    pt, rapidity, phi = np.array([(particle.pt(), particle.rap(), particle.phi()) for particle in jet.constituents()]).T
    return pt, rapidity, phi


def hardest(jet: Any) -> Array:
    """Return the hardest particles of a jet: their fraction of its transverse momentum, and rapidity and azimuth relative to its axis."""
    pt, rapidity, phi = kinematics(jet)
    order = np.argsort(-pt)[:PARTICLES]
    particles = np.zeros((PARTICLES, 3))
    across = np.remainder(phi - jet.phi() + np.pi, 2 * np.pi) - np.pi
    particles[: len(order)] = np.stack([pt / jet.pt(), rapidity - jet.rap(), across], 1)[order]
    return particles


def _distance(jet: Any, rapidity: float, phi: float) -> float:
    across = abs(jet.phi() - phi) % (2 * np.pi)
    return float(np.hypot(jet.rap() - rapidity, min(across, 2 * np.pi - across)))
