"""Trains a large compressed model, in one process or as one of those that torchrun starts, and saves its weights.

python large_model.py FILE            a vision transformer of 1.8 million parameters
python large_model.py FILE compiled   an MLP of 1.1 million parameters, whose steps are compiled
"""

import sys
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import ConstantLR
from torch.utils.data import Subset

import pquant
from pquant.data import Digits
from pquant.data.splits import Splits
from pquant.pruning import DST
from pquant.quantization import Quantization
from pquant.training import Training, distributed
from pquant.training.seed import seed_everything
from pquant.training.trainer import Trainer

WIDTH = 192
EIGHT_BITS = Quantization(
    default_weight_keep_negatives=True,
    default_weight_fractional_bits=7,
    default_data_keep_negatives=True,
    default_data_integer_bits=3,
    default_data_fractional_bits=4,
)


class ViT(nn.Module):
    """A vision transformer for digits of 8 x 8 pixels, given as (batch, 64)."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, WIDTH, 2, stride=2)
        layer = partial(nn.TransformerEncoderLayer, WIDTH, 4, 4 * WIDTH, dropout=0.0, batch_first=True, norm_first=True)
        self.layers = nn.ModuleList(layer() for _ in range(4))
        self.head = nn.Linear(WIDTH, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return (batch, 10) logits."""
        tokens = self.patches(x.reshape(-1, 1, 8, 8)).flatten(2).transpose(1, 2)
        for layer in self.layers:
            tokens = layer(tokens)
        return self.head(tokens.mean(1))


def mlp() -> nn.Module:
    """Return an MLP for digits, which compiles faster than a transformer."""
    return nn.Sequential(nn.Linear(64, 1024), nn.ReLU(), nn.Linear(1024, 1024), nn.ReLU(), nn.Linear(1024, 10))


def main(file: Path, compiled: bool) -> None:
    """Train for three stages of one epoch."""
    splits: Splits = Digits().load(seed=0)
    splits = Splits(**{**vars(splits), "train": Subset(splits.train, range(300))})
    with distributed.joined(torch.device("cpu")):
        seed_everything(0)
        model = pquant.compress(mlp() if compiled else ViT(), DST(alpha=1e-3), EIGHT_BITS, splits.validation[0][0][None])
        training = Training(pretraining_epochs=1, epochs=1, fine_tuning_epochs=1, batch_size=100, compile=compiled, threads=1)
        sgd, constant = partial(torch.optim.SGD, lr=0.05), partial(ConstantLR, factor=1.0)
        trainer = Trainer(model, splits, training, sgd, constant, torch.device("cpu"), seed=0)
        trainer.fit(lambda row: print(row) if distributed.leads() else None)
        assert isinstance(trainer.overlapping, DistributedDataParallel) == (distributed.count() > 1)
        if distributed.leads():
            save_file({name: parameter.detach().contiguous() for name, parameter in trainer.model.named_parameters()}, file)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), "compiled" in sys.argv[2:])
