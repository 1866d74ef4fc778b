"""Networks of others, and those of physics: what of them is quantized. ``python tests/layers/zoo.py`` writes the table of docs/coverage.md.

Inputs are small, so that each network takes seconds; what is quantized does not depend on them.
"""

import json
import sys
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import pquant
from pquant import models
from pquant.pruning import DST, PruningMethod, Wanda
from pquant.quantization import Quantization

PAGE = Path(__file__).parents[2] / "docs" / "coverage.md"
BITS = {
    "default_data_keep_negatives": True,
    "default_data_integer_bits": 3,
    "default_data_fractional_bits": 6,
    "default_weight_keep_negatives": True,
    "default_weight_fractional_bits": 7,
    "quantize_output": False,
    "use_relu_multiplier": False,
}
SETTINGS: dict[str, tuple[PruningMethod, Quantization]] = {
    "DST, fixed bits": (DST(threshold_init=0.02, threshold_type="layerwise"), Quantization(**BITS)),
    "Wanda, trained bits": (
        Wanda(sparsity=0.3, t_delta=2, t_start_collecting_batch=0),
        Quantization(**BITS, use_hgq=True, hgq_beta=1e-9, granularity="per_channel"),
    ),
}
TORCHVISION = {
    "alexnet": 224,
    "vgg11": 32,
    "resnet18": 64,
    "resnext50_32x4d": 64,
    "squeezenet1_1": 64,
    "densenet121": 64,
    "inception_v3": 96,
    "googlenet": 64,
    "shufflenet_v2_x0_5": 64,
    "mobilenet_v2": 64,
    "mobilenet_v3_small": 64,
    "mnasnet0_5": 64,
    "regnet_y_400mf": 64,
    "efficientnet_b0": 64,
    "efficientnet_v2_s": 64,
    "convnext_tiny": 64,
    "vit_b_32": 64,
    "swin_t": 64,
    "swin_v2_t": 64,
    "maxvit_t": 224,
}
TIMM = (
    "vit_tiny_patch16_224 deit_tiny_patch16_224 resnet10t mobilenetv3_small_050 mobilenetv4_conv_small lcnet_050 tinynet_e efficientnet_lite0 "
    "ghostnet_050 repvgg_a0 hardcorenas_a mobilevit_xxs edgenext_xx_small efficientvit_b0 levit_128s poolformer_s12 convnext_atto "
    "pit_ti_224 mixer_s32_224 resmlp_12_224 gmlp_ti16_224 xcit_nano_12_p16_224 coat_lite_tiny crossvit_tiny_240 tiny_vit_5m_224"
).split()
SIZED = "coat_lite_tiny vit_tiny_patch16_224 deit_tiny_patch16_224 mixer_s32_224 resmlp_12_224 gmlp_ti16_224 xcit_nano_12_p16_224".split()
"""Those of timm that take another image size by an argument; the rest takes any, or its own."""
OWN_SIZE = {"crossvit_tiny_240": 240, "pit_ti_224": 224, "levit_128s": 224, "tiny_vit_5m_224": 224, "mobilevit_xxs": 64}


class VAE(nn.Module):
    """A variational autoencoder, D. Kingma, M. Welling, arXiv 1312.6114; it gives the mean of its latent values in evaluation."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(16, 32), nn.ReLU())
        self.mean, self.log_variance = nn.Linear(32, 4), nn.Linear(32, 4)
        self.decoder = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 16))

    def forward(self, x: Tensor) -> Tensor:
        y = self.encoder(x)
        mean, deviation = self.mean(y), torch.exp(0.5 * self.log_variance(y))
        return self.decoder(mean + deviation * torch.randn_like(mean) if self.training else mean)


class Recurrent(nn.Module):
    """A tagger that reads particles one by one."""

    def __init__(self, kind: type[nn.Module]) -> None:
        super().__init__()
        self.layer, self.head = kind(3, 20, batch_first=True), nn.Linear(20, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x)[0][:, -1])


PARTICLES, JETS = (16, 3), (16,)
PHYSICS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "jet MLP": (partial(models.MLP, [16, 64, 32, 32, 5], JETS, 5), JETS),
    "deep sets": (partial(models.DeepSets, PARTICLES, 5), PARTICLES),
    "interaction network": (partial(models.InteractionNetwork, PARTICLES, 5), PARTICLES),
    "particle transformer": (partial(models.ParticleTransformer, PARTICLES, 5), PARTICLES),
    "JEDI-linear": (partial(models.JEDILinear, PARTICLES, 5), PARTICLES),
    "conv1d": (partial(models.CNN1d, PARTICLES, 5), PARTICLES),
    "autoencoder": (partial(models.Autoencoder, JETS, 16), JETS),
    "VAE": (VAE, JETS),
    "LSTM": (partial(Recurrent, nn.LSTM), PARTICLES),
    "GRU": (partial(Recurrent, nn.GRU), PARTICLES),
}


def names() -> list[str]:
    """Return the names of all networks, with the library that has them."""
    return [*(f"torchvision {name}" for name in TORCHVISION), *(f"timm {name}" for name in TIMM), *(f"physics {name}" for name in PHYSICS)]


def make(name: str) -> tuple[nn.Module, Tensor]:
    """Return a network without trained weights, and a batch for it."""
    torch.manual_seed(0)
    library, _, name = name.partition(" ")
    if library == "physics":
        factory, shape = PHYSICS[name]
        return factory(), torch.randn(4, *shape)
    if library == "timm":
        import timm

        size = OWN_SIZE.get(name, 64)
        return timm.create_model(name, num_classes=10, **({"img_size": size} if name in SIZED else {})), torch.randn(4, 3, size, size)
    import torchvision

    options: dict[str, Any] = {"image_size": 64} if name == "vit_b_32" else {}
    options |= {"aux_logits": False} if name in ("googlenet", "inception_v3") else {}
    options |= {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    size = TORCHVISION[name]
    return getattr(torchvision.models, name)(weights=None, num_classes=10, **options), torch.randn(4, 3, size, size)


def row(name: str) -> str:
    """Return the row of the table for a network."""
    model, x = make(name)
    compressed = pquant.compress(model, None, SETTINGS["DST, fixed bits"][1], x)
    shares = " | ".join(f"{100 * share:.1f}" for share in pquant.coverage(compressed).values())
    return f"| {name} | {shares} | {'; '.join(pquant.unconverted(compressed, x))} |"


def main() -> None:
    """Write the table between the marks of the page."""
    warnings.filterwarnings("ignore")
    known = json.loads(sys.argv[1]) if len(sys.argv) > 1 else names()
    rows = [row(name) for name in known]
    head = ["| network | parameters % | multiplications % | activations % | stays float |", "|---|---:|---:|---:|---|"]
    before, _, rest = PAGE.read_text(encoding="utf-8").partition("<!-- zoo -->\n")
    after = rest.partition("<!-- /zoo -->")[2]
    PAGE.write_text(f"{before}<!-- zoo -->\n" + "\n".join([*head, *rows]) + f"\n<!-- /zoo -->{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
