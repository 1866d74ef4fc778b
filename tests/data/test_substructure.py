from itertools import combinations

import numpy as np
import pytest

from pquant.data.substructure import NAMES, features


def expected(all_pt: np.ndarray, pt: np.ndarray, rapidity: np.ndarray, phi: np.ndarray, mass: float) -> dict[str, float]:
    """Return the features by the definitions, particle by particle."""
    z = pt / pt.sum()
    turn = 2 * np.pi
    angle = {
        (i, j): np.hypot(rapidity[i] - rapidity[j], min((phi[i] - phi[j]) % turn, (phi[j] - phi[i]) % turn))
        for i, j in combinations(range(len(z)), 2)
    }
    e2 = {beta: sum(z[i] * z[j] * angle[i, j] ** beta for i, j in angle) for beta in (0, 1, 2)}
    e3 = {(angles, beta): 0.0 for angles in (1, 2, 3) for beta in (1, 2)}
    for i, j, k in combinations(range(len(z)), 3):
        sides = sorted((angle[i, j], angle[i, k], angle[j, k]))
        for angles, beta in e3:
            e3[angles, beta] += z[i] * z[j] * z[k] * np.prod(sides[:angles]) ** beta
    shares = all_pt / all_pt.sum()
    found = {"zlogz": sum(share * np.log(share) for share in shares), "mass_mmdt": mass, "multiplicity": len(all_pt), "c1_b0": e2[0]}
    found |= {"d2_a1_b1": e3[3, 1] / e2[1] ** 3, "d2_a1_b2": e3[3, 1] / e2[2] ** 1.5}
    for beta in (1, 2):
        found |= {f"c1_b{beta}": e2[beta], f"c2_b{beta}": e3[3, beta] / e2[beta] ** 2, f"d2_b{beta}": e3[3, beta] / e2[beta] ** 3}
        found |= {f"m2_b{beta}": e3[1, beta] / e2[beta], f"n2_b{beta}": e3[2, beta] / e2[beta] ** 2}
    return found


@pytest.mark.parametrize("count", [3, 4, 17, 30])
def test_features_follow_from_the_definitions_also_across_the_turn_of_phi(count: int) -> None:
    random = np.random.default_rng(count)
    pt, rapidity, phi = random.exponential(5, count) + 0.1, random.normal(0, 0.2, count), random.normal(0, 0.2, count) % (2 * np.pi)
    jet = np.append(pt, [0.3, 0.2]), pt, rapidity, phi, 91.2
    found, wanted = features(*jet), expected(*jet)
    assert set(NAMES) == set(wanted) and len(NAMES) == 16
    np.testing.assert_allclose(found, [wanted[name] for name in NAMES], rtol=1e-9)


def test_three_particles_on_a_line_by_hand() -> None:
    found = dict(zip(NAMES, features(np.ones(3), np.ones(3), np.array([0.0, 1.0, 3.0]), np.zeros(3), 5.0), strict=True))
    assert found["c1_b1"] == pytest.approx((1 + 2 + 3) / 9) and found["c1_b2"] == pytest.approx((1 + 4 + 9) / 9)
    assert found["m2_b1"] == pytest.approx(1 / 27 / (6 / 9)) and found["n2_b1"] == pytest.approx(1 * 2 / 27 / (6 / 9) ** 2)
    assert found["d2_b1"] == pytest.approx(1 * 2 * 3 / 27 / (6 / 9) ** 3) and found["zlogz"] == pytest.approx(-np.log(3))
    assert found["c1_b0"] == pytest.approx(3 / 9) and found["mass_mmdt"] == 5 and found["multiplicity"] == 3
