import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset

from pquant.data import TensorBatches, batches


class Squares(Dataset[tuple[Tensor, int]]):
    """A dataset that is not in memory."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if index >= self.count:
            raise IndexError(index)
        return torch.tensor([float(index)]), index**2


def in_memory(count: int) -> TensorDataset:
    return TensorDataset(torch.arange(float(count))[:, None], torch.arange(count) ** 2)


KINDS = [in_memory, Squares]


@pytest.mark.parametrize("make", KINDS)
@given(count=st.integers(1, 40), size=st.integers(1, 12), drop_last=st.booleans(), seed=st.none() | st.integers(0, 99))
def test_each_example_comes_once_with_its_target(make: type[Squares], count: int, size: int, drop_last: bool, seed: int | None) -> None:
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    loader = batches(make(count), size, generator, drop_last)
    drawn = list(loader)
    left = count % size
    assert len(drawn) == len(loader)
    assert [len(x) for x, _ in drawn] == [size] * (count // size) + [left] * (left > 0 and not drop_last)
    assert all(isinstance(batch, tuple) for batch in drawn)
    xs = [value for x, _ in drawn for value in x[:, 0].tolist()]
    assert [value for _, y in drawn for value in y.tolist()] == [value**2 for value in xs]
    assert xs == list(range(len(xs))) if seed is None else len(set(xs)) == len(xs)


@pytest.mark.parametrize("make", KINDS)
def test_shuffled_anew_each_pass_and_resumed_from_the_generators_state(make: type[Squares]) -> None:
    def order(loader: object) -> list[int]:
        return [value for _, y in loader for value in y.tolist()]  # type: ignore[attr-defined]

    generator = torch.Generator().manual_seed(5)
    loader = batches(make(50), 8, generator)
    first, state = order(loader), generator.get_state()
    second = order(loader)
    assert sorted(first) == sorted(second) == [index**2 for index in range(50)]
    assert first != second
    assert first == order(batches(make(50), 8, torch.Generator().manual_seed(5)))
    resumed = torch.Generator()
    resumed.set_state(state)
    assert second == order(batches(make(50), 8, resumed))


@pytest.mark.parametrize("make", KINDS)
def test_global_random_numbers_are_left_alone(make: type[Squares]) -> None:
    before = torch.get_rng_state()
    list(batches(make(10), 4))
    list(batches(make(10), 4, torch.Generator()))
    assert torch.equal(before, torch.get_rng_state())


def test_changing_a_batch_leaves_the_data() -> None:
    dataset = in_memory(10)
    for x, _ in batches(dataset, 4):
        x.zero_()
    assert dataset.tensors[0].flatten().tolist() == list(range(10))


def test_only_a_plain_tensor_dataset_takes_the_fast_path() -> None:
    class Doubled(TensorDataset):
        def __getitem__(self, index: int) -> tuple[Tensor, ...]:
            return tuple(2 * tensor[index] for tensor in self.tensors)

    assert isinstance(batches(in_memory(4), 2), TensorBatches)
    x, _ = next(iter(batches(Doubled(torch.arange(4.0), torch.arange(4)), 4)))
    assert x.tolist() == [0, 2, 4, 6]
