"""Sizes, distances and formats of compression space, and the search in it against all configurations of a small network."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pquant.fitcompress.search import State, search
from pquant.fitcompress.space import CompressionSpace, Format, SearchedLayer, best_format, fit, global_masks
from pquant.quantization.fixed_point import fixed_point
from pquant.quantization.quantizer import FixedPointQuantizer, NoQuantizer, TensorFormat

WIDTHS = (32.0, 8.0, 4.0, 3.0)
EIGHT = FixedPointQuantizer(TensorFormat(k=True, i=0, f=7))


def layer(weight: Tensor, widths: tuple[float, ...] = WIDTHS, prunable: bool = True, overflow: str = "SAT") -> SearchedLayer:
    return SearchedLayer(weight, widths, EIGHT, 1, "RND", overflow, prunable)  # type: ignore[arg-type]


def net(*sizes: int, widths: tuple[float, ...] = WIDTHS, prunable: bool = True) -> dict[str, SearchedLayer]:
    generator = torch.Generator().manual_seed(len(sizes))
    weights = [torch.randn(size, generator=generator) * 0.3 for size in sizes]
    return {f"layer{index}": layer(weight, widths, prunable) for index, weight in enumerate(weights)}


def steep(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return a Fisher diagonal that depends on the weights, and grows from layer to layer."""
    return {name: (1 + index) * (0.1 + weight.square().flip(0)) for index, (name, weight) in enumerate(weights.items())}


def space(layers: dict[str, SearchedLayer], shares: tuple[float, ...] = (0.0, 0.4, 0.8), approximate: bool = True) -> CompressionSpace:
    return CompressionSpace(layers, shares, steep, approximate)


def every_state(one: CompressionSpace) -> list[State]:
    levels = [range(len(searched.widths)) for searched in one.layers.values()]
    return list(itertools.product(range(len(one.shares)), *levels))


def test_the_start_is_the_dense_float_network() -> None:
    one = space(net(7, 5))
    assert one.start == (0, 0, 0) and one.compression(one.start) == 1.0
    assert all(torch.equal(one.weights(one.start)[name], searched.weight) for name, searched in one.layers.items())
    assert one.predicted_loss(one.start) == {"layer0": 0.0, "layer1": 0.0}
    assert one.formats(one.start) == {"layer0": None, "layer1": None}


def test_neighbours_take_one_step_each_and_end_with_the_schedules() -> None:
    one = space(net(4, 4))
    assert list(one.neighbours((0, 0, 0))) == [(1, 0, 0), (0, 1, 0), (0, 0, 1)]
    assert list(one.neighbours((2, 3, 1))) == [(2, 3, 2)]
    assert list(one.neighbours((2, 3, 3))) == []


def test_compression_is_bits_over_32_times_what_is_kept() -> None:
    one = space(net(10, 30, prunable=False), shares=(0.0,))
    assert one.compression((0, 1, 1)) == 8 / 32
    assert one.compression((0, 2, 1)) == pytest.approx((10 * 4 + 30 * 8) / (32 * 40))
    pruned = space(net(10, 30), shares=(0.0, 0.25))
    assert pruned.compression((1, 0, 0)) == 0.75
    zeros = sum(int((weights == 0).sum()) for weights in pruned.weights((1, 3, 3)).values())
    assert zeros > 10 and pruned.compression((1, 3, 3)) == pytest.approx(3 / 32 * (40 - zeros) / 40)


def test_weights_that_cannot_be_pruned_count_though_they_round_to_zero() -> None:
    weight = torch.tensor([1.0, 0.01, 0.0, -1.0])
    for prunable, kept in ((True, 2), (False, 4)):
        one = space({"only": layer(weight, (32.0, 3.0), prunable)}, shares=(0.0,))
        assert int(one.weights((0, 1))["only"].count_nonzero()) == 2
        assert one.compression((0, 1)) == kept * 3 / (4 * 32)


def test_distances_are_square_roots_of_fit_with_the_fisher_information_of_the_pruned_weights() -> None:
    one = space(net(6, 9))
    for state in every_state(one):
        assert one.to_nothing(state) == pytest.approx(_by_hand(one, state, None, (state[0], 0, 0)), rel=1e-6)
        for neighbour in one.neighbours(state):
            assert one.distance(state, neighbour) == pytest.approx(_by_hand(one, state, neighbour, (state[0], 0, 0)), rel=1e-6)


def test_the_exact_distance_takes_the_fisher_information_of_the_rounded_weights() -> None:
    exact, approximate = (space(net(6, 9), approximate=flag) for flag in (False, True))
    for state in every_state(exact):
        for neighbour in exact.neighbours(state):
            assert exact.distance(state, neighbour) == pytest.approx(_by_hand(exact, state, neighbour, state), rel=1e-6)
    assert exact.distance((1, 3, 1), (1, 3, 2)) != approximate.distance((1, 3, 1), (1, 3, 2))


def _by_hand(one: CompressionSpace, state: State, neighbour: State | None, measured: State) -> float:
    information, before = steep(one.weights(measured)), one.weights(state)
    after = {name: 0 * weight for name, weight in before.items()} if neighbour is None else one.weights(neighbour)
    return math.sqrt(sum(float((information[name] * (before[name] - after[name]) ** 2).sum()) for name in before))


def test_one_estimate_a_share_is_enough_when_approximate() -> None:
    asked: list[int] = []

    def count(weights: dict[str, Tensor]) -> dict[str, Tensor]:
        asked.append(1)
        return steep(weights)

    one = CompressionSpace(net(6, 9), (0.0, 0.4, 0.8), count)
    for state in every_state(one):
        for neighbour in one.neighbours(state):
            assert one.distance(state, neighbour) >= 0 and one.to_nothing(state) >= 0
    assert len(asked) == 3


@pytest.mark.parametrize("f_lambda", [0.0, 1.0, 30.0])
@pytest.mark.parametrize("approximate", [True, False])
def test_the_full_search_finds_the_best_of_all_configurations(f_lambda: float, approximate: bool) -> None:
    one = space(net(12, 20, widths=(32.0, 8.0, 4.0)), approximate=approximate)
    for goal in (0.3, 0.1, 0.05):
        lengths: dict[State, float] = {}
        for state in sorted(every_state(one)):
            before = [other for other in lengths if state in one.neighbours(other)]
            lengths[state] = min((lengths[other] + one.distance(other, state) for other in before), default=0.0)
        best = min(length for state, length in lengths.items() if one.compression(state) <= goal)
        found = search(one, one.start, goal, f_lambda, greedy=False)
        assert found.shortest and found.length == pytest.approx(best, rel=1e-12)
        assert best <= search(one, one.start, goal, f_lambda, greedy=True).length + 1e-12


def test_pruning_takes_the_weights_of_least_fisher_times_square_over_all_layers() -> None:
    one = space(net(6, 9))
    scores = torch.cat([steep({"a": s.weight})["a"] * (1 + i) * s.weight**2 for i, s in enumerate(one.layers.values())])
    gone = torch.cat([weight == 0 for weight in one.weights((1, 0, 0)).values()])
    assert int(gone.sum()) == round(0.4 * 15)
    assert scores[gone].max() <= scores[~gone].min()


@given(st.floats(0, 1), st.integers(0, 5))
def test_global_masks_drop_the_exact_share(share: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = {name: torch.randint(0, 4, (size,), generator=generator).float() for name, size in (("a", 13), ("b", 8))}
    kept = torch.cat(list(global_masks(scores, share).values()))
    values = torch.cat(list(scores.values()))
    assert int((~kept).sum()) == round(share * 21)
    assert kept.all() or not kept.any() or values[~kept].max() <= values[kept].min()


def test_layers_that_cannot_be_pruned_keep_all_and_are_not_in_the_share() -> None:
    layers = {"a": layer(torch.arange(1.0, 11)), "b": layer(torch.full((10,), 0.001), prunable=False)}
    weights = space(layers, shares=(0.0, 0.5)).weights((1, 0, 0))
    assert int((weights["a"] == 0).sum()) == 5 and torch.equal(weights["b"], layers["b"].weight)


def test_a_layer_with_one_width_keeps_its_own_format() -> None:
    one = space({"fixed": layer(torch.tensor([0.3001, 2.0]), widths=(8.0,)), "free": layer(torch.ones(2), widths=(32.0, 8.0))}, shares=(0.0,))
    assert torch.equal(one.weights(one.start)["fixed"], EIGHT(torch.tensor([0.3001, 2.0])))
    assert one.compression(one.start) == (8 + 32) / 64
    floats = SearchedLayer(torch.tensor([0.3001]), (32.0,), NoQuantizer(), 1, "RND", "SAT", False)
    assert torch.equal(space({"float": floats}, shares=(0.0,)).weights((0, 0))["float"], floats.weight)


@given(st.integers(2, 9), st.integers(0, 20), st.floats(-12, 4), st.sampled_from(["SAT", "SAT_SYM", "WRAP"]))
def test_the_format_has_the_bits_asked_for_and_no_worse_an_error_than_one_that_holds_every_weight(
    bits: int, seed: int, scale: float, overflow: str
) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(50, generator=generator) * 2**scale
    importance = torch.rand(50, generator=generator)
    one = layer(weight, overflow=overflow)
    format, values = best_format(one, weight, importance, bits)
    assert format.k + format.i + format.f == bits and format.k == 1
    assert torch.equal(values, fixed_point(weight, format.k, format.i, format.f, "RND", overflow))  # type: ignore[arg-type]
    whole = math.ceil(math.log2(float(weight.abs().max())))
    assert fit(importance, weight, values) <= fit(importance, weight, fixed_point(weight, 1, whole, bits - 1 - whole, "RND", overflow)) * (1 + 1e-6)  # type: ignore[arg-type]


def test_a_format_saturates_the_few_that_matter_little() -> None:
    weight = torch.cat([torch.full((30,), 0.1), torch.tensor([3.0])])
    many, all_alike = torch.cat([torch.ones(30), torch.tensor([1e-9])]), torch.ones(31)
    assert best_format(layer(weight), weight, many, 4)[0].i < best_format(layer(weight), weight, all_alike, 4)[0].i == 2


def test_layers_of_zeros_and_of_tiny_weights_have_formats() -> None:
    zeros = torch.zeros(5)
    format, values = best_format(layer(zeros), zeros, torch.ones(5), 4)
    assert torch.equal(values, zeros) and format == Format(1, 0, 3)
    one = space({"zeros": layer(zeros), "rest": layer(torch.ones(5))})
    assert one.compression((0, 1, 1)) == 8 / 32 / 2
    tiny = torch.full((3,), 1e-14)
    assert best_format(layer(tiny), tiny, torch.ones(3), 4)[0].f <= 32


def test_predicted_loss_is_half_of_fit_by_layer_with_the_dense_fisher_information() -> None:
    one = space(net(6, 9))
    information, dense = steep(one.weights(one.start)), one.weights(one.start)
    for name, loss in one.predicted_loss((2, 3, 1)).items():
        assert loss == pytest.approx(fit(information[name], dense[name], one.weights((2, 3, 1))[name]) / 2)


def test_fit_is_zero_for_the_same_and_symmetric() -> None:
    information, a, b = torch.rand(8), torch.randn(8), torch.randn(8)
    assert fit(information, a, a) == 0
    assert fit(information, a, b) == fit(information, b, a) > 0
