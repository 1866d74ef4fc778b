"""Networks of others train in every stage, are finalized bit for bit and saved; the table of the page says what of them is quantized."""

import pytest
import torch
from torch import Tensor, nn

import pquant

from .test_layers import at_each_stage
from .zoo import PAGE, SETTINGS, make, names, row

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def libraries(request: pytest.FixtureRequest) -> None:
    library = request.node.callspec.params["name"].split()[0]
    if library != "physics":
        pytest.importorskip(library)


@torch.no_grad()
def evaluated(model: nn.Module, x: Tensor) -> Tensor:
    """Return the output in evaluation mode, without gradients, as some networks keep what they compute."""
    model.eval()
    return model(x)


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("name", names())
def test_a_network_trains_and_is_finalized_at_any_stage(name: str, settings: str) -> None:
    model, x = make(name)
    compressed = pquant.compress(model, *SETTINGS[settings], x)
    for stage in at_each_stage(compressed, x, rate=1e-4):
        y = evaluated(compressed, x)
        final = pquant.finalize(compressed)
        assert torch.equal(evaluated(final, x), y) and bool(y.isfinite().all()), stage
    fresh = pquant.compress(make(name)[0], *SETTINGS[settings], x)
    fresh.load_state_dict(compressed.state_dict())
    assert torch.equal(evaluated(fresh, x), y)
    again = pquant.finalize(fresh)
    again.load_state_dict(final.state_dict())
    assert torch.equal(evaluated(again, x), y)
    assert pquant.ebops(compressed) == pquant.ebops(final) > 0 and pquant.sparsity(compressed) > 0


@pytest.mark.parametrize("name", names())
def test_the_page_says_what_is_quantized(name: str) -> None:
    assert row(name) in PAGE.read_text(encoding="utf-8").splitlines()
