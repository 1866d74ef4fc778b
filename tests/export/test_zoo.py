"""The table of networks and targets says what the exporters do."""

import pytest

from tests.layers.zoo import names

from .zoo import PAGE, row

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", names())
def test_the_page_says_which_targets_take_a_network(name: str) -> None:
    library = name.split()[0]
    if library != "physics":
        pytest.importorskip(library)
    for package in ("alkaid", "qonnx", "hls4ml"):
        pytest.importorskip(package)
    assert row(name) in PAGE.read_text(encoding="utf-8").splitlines()
