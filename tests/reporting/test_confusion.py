import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import confusion_matrix

from pquant.reporting.confusion import CLASSES_SHOWN, Confusion, confused_pairs, confusion_cells

ANSWERS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=30)


@given(ANSWERS, st.integers(1, 7))
def test_the_table_is_that_of_scikit_learn_however_the_batches_are_cut(predictions: list[tuple[int, int]], size: int) -> None:
    true, predicted = torch.tensor(predictions).T
    confusion = Confusion(4, torch.device("cpu"))
    for y, x in zip(true.split(size), predicted.split(size), strict=True):
        confusion.add(torch.nn.functional.one_hot(x, 4).float(), y)
    assert confusion.table() == confusion_matrix(true, predicted, labels=range(4)).tolist()


def test_shares_are_of_the_true_class_and_a_class_without_examples_has_none() -> None:
    assert confusion_cells([[3, 1], [0, 0]]) == [[{"count": 3, "share": 0.75}, {"count": 1, "share": 0.25}], [{"count": 0, "share": 0.0}] * 2]


def test_many_classes_give_the_most_frequent_mistakes_instead() -> None:
    table = [[0] * (CLASSES_SHOWN + 1) for _ in range(CLASSES_SHOWN + 1)]
    table[3][5], table[7][1], table[2][2] = 4, 9, 100
    assert confusion_cells(table) == [] and confused_pairs(table) == [(7, 1, 9), (3, 5, 4)]
