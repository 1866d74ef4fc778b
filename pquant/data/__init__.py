"""Data sources. Each returns the same splits for the same seed."""

from pquant.data.arrays import Arrays
from pquant.data.batches import Batches, TensorBatches, batches
from pquant.data.constituents import Constituents
from pquant.data.digits import Digits
from pquant.data.images import Cifar10, Images, Mnist
from pquant.data.jets import Jets
from pquant.data.jets_simulated import JetsSimulated
from pquant.data.splits import DataSource, Preprocessing, Splits
from pquant.data.table import Table

__all__ = [
    "Arrays",
    "Batches",
    "Cifar10",
    "Constituents",
    "DataSource",
    "Digits",
    "Images",
    "Jets",
    "JetsSimulated",
    "Mnist",
    "Preprocessing",
    "Splits",
    "Table",
    "TensorBatches",
    "batches",
]
