import torch
from torch import nn

import pquant
from pquant.pruning import Magnitude
from pquant.quantization import Quantization
from pquant.reporting.weights import BINS, histogram_plots, weight_histograms


def test_histograms_count_every_weight_as_trained_and_as_finalized():
    eighths = Quantization(default_weight_keep_negatives=True, default_weight_integer_bits=0, default_weight_fractional_bits=3)
    model = pquant.compress(nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2)), Magnitude(sparsity=0.5), eighths)
    with torch.no_grad():
        model[0].weight.copy_(torch.linspace(-0.5, 0.5, 64).view(8, 8))
    first, last = weight_histograms(model)
    assert (first.name, first.limit, last.name) == ("0", 0.5, "2")
    assert sum(first.trained) == sum(first.finalized) == 64
    assert max(first.trained) == 2 and sum(count > 0 for count in first.finalized) == 9
    assert first.trained == [int(count) for count in torch.histc(model[0].weight, BINS, -0.5, 0.5)]


def test_weights_that_are_all_zero_or_not_finite_still_have_a_plot():
    model = pquant.compress(nn.Linear(2, 2))
    with torch.no_grad():
        model.weight.zero_()
    assert weight_histograms(model)[0].limit == 1.0
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[torch.nan, torch.inf], [1.0, 2.0]]))
    found = weight_histograms(model)
    assert found[0].limit == 2.0 and sum(found[0].trained) == 2
    assert histogram_plots(found)[0].svg.count("<polyline") == 1
