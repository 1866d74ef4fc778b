"""The training steps of PQuantML for ``step_time.py``: a process that takes a few of the steps named on each line of its input and prints their mean
seconds.

python benchmarks/pquant_ml.py mlp|resnet20 <threads> <method,method,...>
"""

import json
import os
import sys
from pathlib import Path

from burst import burst

os.environ["KERAS_BACKEND"] = "torch"
sys.path = [entry for entry in sys.path if Path(entry or ".").resolve() not in (Path(__file__).parent, Path(__file__).parents[1])]

import torch  # noqa: E402
from pquant.core.torch.layers import post_epoch_functions, post_pretrain_functions, pre_epoch_functions  # noqa: E402
from torch import nn  # noqa: E402

import pquant  # noqa: E402  (PQuantML's)

CONFIGS = {
    "dst": pquant.dst_config,
    "wanda": pquant.wanda_config,
    "autosparse": pquant.autosparse_config,
    "cs": pquant.cs_config,
    "pdp": pquant.pdp_config,
    "mdmm": pquant.mdmm_config,
    "activation_pruning": pquant.ap_config,
}
BITS = {"off": (False, False, "per_tensor"), "fixed": (True, False, "per_tensor")}
BITS |= {f"hgq {granularity.replace('_', ' ')}": (True, True, granularity) for granularity in ("per_tensor", "per_weight")}


class Block(nn.Module):
    """Two convolutions with a shortcut that subsamples and pads channels."""

    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs)
        self.relu1, self.relu2 = nn.ReLU(), nn.ReLU()
        self.stride, self.more = stride, outputs - inputs

    def forward(self, x):
        """Return the sum of both ways, rectified."""
        y = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        short = nn.functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.more // 2, self.more - self.more // 2))
        return self.relu2(y + short)


def network(name):
    """Return the networks of step_time.py, a batch and labels."""
    if name == "mlp":
        layers = [nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 5)]
        return nn.Sequential(*layers), torch.randn(1024, 16), torch.randint(0, 5, (1024,))
    blocks = [Block(a, b, s) for a, b, s in [(16, 16, 1)] * 3 + [(16, 32, 2)] + [(32, 32, 1)] * 2 + [(32, 64, 2)] + [(64, 64, 1)] * 2]
    head = [nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    tail = [nn.AvgPool2d(8), nn.Flatten(), nn.Linear(64, 10)]
    return nn.Sequential(*head, *blocks, *tail), torch.randn(64, 3, 32, 32), torch.randint(0, 10, (64,))


def compressed(model, x, method, bits):
    """Return PQuantML's model in its training stage."""
    config = CONFIGS[method]()
    enable, hgq, granularity = BITS[bits]
    wanted = {"enable_quantization": enable, "use_high_granularity_quantization": hgq, "granularity": granularity, "use_relu_multiplier": False}
    wanted |= {"default_data_keep_negatives": 1.0, "default_data_integer_bits": 3.0, "default_data_fractional_bits": 4.0, "quantize_output": False}
    for key, value in wanted.items():
        setattr(config.quantization_parameters, key, value)
    model = pquant.add_compression_layers(model, config, tuple(x.shape))
    model.train()
    post_pretrain_functions(model, config)
    pre_epoch_functions(model, 0, 1000)
    return model


def step(model, x, y):
    """Return a training step."""
    optimizer = torch.optim.Adam(model.parameters(), 1e-3, fused=True)

    def call():
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        pquant.get_model_losses(model, loss).backward()
        optimizer.step()

    return call


def inference(model, x):
    """Return an inference of the finished model."""
    model.eval()
    pquant.apply_final_compression(model)

    def call():
        with torch.no_grad():
            model(x)

    return call


def main():
    """Build all, say their names, and serve."""
    name, threads, methods = sys.argv[1], int(sys.argv[2]), [method for method in sys.argv[3].split(",") if method in CONFIGS]
    torch.set_num_threads(threads)
    calls = {}
    for method in methods:
        for bits in BITS:
            for kind in ("step", "finalized"):
                model, x, y = network(name)
                model = compressed(model, x, method, bits)
                post_epoch = step(model, x, y)
                post_epoch()
                post_epoch_functions(model, 0, 1000)
                calls[f"{kind}: {method}, {bits}"] = post_epoch if kind == "step" else inference(model, x)
    print(json.dumps(list(calls)), flush=True)
    for line in sys.stdin:
        print(burst(calls[line.rstrip("\n")]), flush=True)


if __name__ == "__main__":
    main()
