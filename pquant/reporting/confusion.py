"""The confusion matrix of a classifier."""

from typing import Any

import torch
from torch import Tensor

CLASSES_SHOWN, PAIRS_SHOWN = 20, 20


class Confusion:
    """Counts over all batches how often the model predicts class ``column`` for an example of class ``row``."""

    def __init__(self, classes: int, device: torch.device) -> None:
        self.classes = classes
        self.counts = torch.zeros(classes * classes, dtype=torch.long, device=device)

    def add(self, output: Tensor, target: Tensor) -> None:
        """Count the logits (batch, classes) and targets (batch,) of a batch."""
        self.counts += torch.bincount(target * self.classes + output.argmax(1), minlength=len(self.counts))

    def table(self) -> list[list[int]]:
        """Return the counts, one row per true class."""
        return self.counts.view(self.classes, self.classes).tolist()


def confusion_cells(table: list[list[int]]) -> list[list[dict[str, Any]]]:
    """Return each count with its ``share`` of the examples of its class; [] if there are too many classes to show."""
    if len(table) > CLASSES_SHOWN:
        return []
    return [[{"count": count, "share": count / max(sum(row), 1)} for count in row] for row in table]


def confused_pairs(table: list[list[int]]) -> list[tuple[int, int, int]]:
    """Return the (true class, predicted class, count) of the most frequent mistakes."""
    pairs = [(true, predicted, count) for true, row in enumerate(table) for predicted, count in enumerate(row) if count and true != predicted]
    return sorted(pairs, key=lambda pair: -pair[2])[:PAIRS_SHOWN]
