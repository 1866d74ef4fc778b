"""MDMM proto"""

import logging
import math
import os
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from pquant.pruning.masks import global_budget, keep_largest, uniform_budget
from pquant.pruning.method import Pruner, PruningMethod
from pquant.settings import schema, setting
from pquant.training.stage import Stage

log = logging.getLogger(__name__)
KERNEL = os.environ.get("KERNEL", "gauss")
WIDTH = os.environ.get("WIDTH", "rms")
BUDGET = os.environ.get("BUDGET", "uniform")
C = float(os.environ.get("C", "1"))


class MDMMPruner(Pruner):
    state = ("target",)
    multiplier: Tensor

    def __init__(self, method, weight):
        super().__init__(method, weight)
        self.method = method
        self.target = method.target
        self.register_buffer("multiplier", weight.new_zeros(()))

    def sizes(self, weight):
        return weight.abs()

    def width(self, s):
        if WIDTH == "rms":
            return C * s.square().mean().sqrt()
        if WIDTH == "mean":
            return C * s.mean()
        if WIDTH == "quant":
            k = max(1, min(s.numel(), round(self.target * s.numel()) + 1))
            return (C * s.flatten().kthvalue(k).values).clamp(min=2 * self.method.epsilon)
        return torch.tensor(C)

    def kernel(self, s):
        x = s / self.width(s.detach())
        if KERNEL == "gauss":
            return torch.exp(-x * x)
        if KERNEL == "exp":
            return torch.exp(-x)
        if KERNEL == "cauchy":
            return 1 / (1 + x * x)
        if KERNEL == "tukey":
            return (1 - x * x).clamp(min=0) ** 2
        if KERNEL == "epan":
            return (1 - x * x).clamp(min=0)
        if KERNEL == "tri":
            return (1 - x).clamp(min=0)
        if KERNEL == "l1":
            return 1 - x

    def share(self, weight):
        s = self.sizes(weight)
        if self.method.l0_mode == "smooth":
            return torch.exp(-((s / (C * s.detach().square().mean().sqrt())) ** 2)).mean()
        if KERNEL == "trim":
            k = max(1, round(self.target * s.numel()))
            d = s.detach()
            out = d > d.flatten().kthvalue(k).values
            soft = -s.square().masked_fill(out, 0).sum() / d.square().sum()
        elif KERNEL == "trim1":
            k = max(1, round(self.target * s.numel()))
            d = s.detach()
            out = d > d.flatten().kthvalue(k).values
            soft = -s.masked_fill(out, 0).sum() / d.sum()
        else:
            soft = self.kernel(s).mean()
        if self.method.l0_mode == "smooth":
            return soft
        hard = (s <= self.method.epsilon).float().mean()
        return soft + (hard - soft).detach()

    def loss(self, weight):
        h = self.share(weight) - self.target
        m = self.method
        n = weight.numel() if m.scale_mode == "sum" else 1
        return m.scale * n * (self.multiplier * h + m.damping * h * h / 2)

    @torch.no_grad()
    def on_batch_end(self, weight):
        if self.stage is Stage.TRAIN:
            self.multiplier += self.method.constraint_lr * self.method.scale * (self.share(weight) - self.target)

    def soft_weight(self, weight):
        return weight

    def select(self, weight):
        s = self.sizes(weight)
        live = s > self.method.epsilon
        if not self.method.project:
            return live
        gap = (1 - live.float().mean() - self.target).abs()
        return torch.where(gap < 0.05, keep_largest(s, round(self.target * s.numel())), live)

    def freeze(self, weight):
        if self.stage is Stage.TRAIN:
            hard = 1 - (self.sizes(weight) > self.method.epsilon).float().mean()
            self.rep = (float(hard), self.target, float(self.multiplier))
        return super().freeze(weight)


@schema("pruning", "mdmm")
@dataclass(frozen=True)
class MDMM(PruningMethod):
    pruning_method: Literal["mdmm"] = "mdmm"
    constraint_type: Literal["Equality", "LessThanOrEqual", "GreaterThanOrEqual"] = "Equality"
    target_value: float = setting(0.0, ge=0, le=1)
    metric_type: Literal["UnstructuredSparsity", "StructuredSparsity"] = "UnstructuredSparsity"
    target_sparsity: float = setting(0.9, ge=0, le=1)
    rf: int = setting(1, ge=1)
    epsilon: float = setting(1e-3, ge=0)
    scale: float = setting(10.0, ge=0)
    damping: float = setting(1.0, ge=0)
    use_grad: bool = False
    l0_mode: Literal["coarse", "smooth"] = "coarse"
    scale_mode: Literal["mean", "sum"] = "mean"
    constraint_lr: float = setting(1e-3, ge=0)
    project: bool = True

    @property
    def target(self):
        return self.target_value or self.target_sparsity

    def pruner(self, weight, layer_type):
        return MDMMPruner(self, weight)

    def prepare(self, layers):
        if BUDGET == "global":
            counts = global_budget(layers, self.target)
        elif BUDGET == "lamp":
            sc = {}
            for name, (p, w) in layers.items():
                s, idx = w.detach().abs().flatten().sort()
                c = s.square().flip(0).cumsum(0).flip(0)
                sc[name] = (p, s.square() / c)
            counts = global_budget(sc, self.target)
        elif BUDGET == "fan":
            counts = global_budget({n: (p, w.detach() * math.sqrt(w[0].numel())) for n, (p, w) in layers.items()}, self.target)
        elif BUDGET == "rms":
            counts = global_budget({n: (p, w.detach() / w.detach().std()) for n, (p, w) in layers.items()}, self.target)
        else:
            counts = uniform_budget(layers, self.target)
        for name, (p, w) in layers.items():
            p.target = counts[name] / w.numel()
