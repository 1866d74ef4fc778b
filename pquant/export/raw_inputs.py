"""A first layer that does the preprocessing of raw inputs in hardware, if fixed-point arithmetic can do it exactly."""

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from pquant.data.splits import Preprocessing, Splits
from pquant.errors import ConfigError
from pquant.export.formats import Constants, Format
from pquant.export.recording import record
from pquant.export.replay import input_format
from pquant.layers.base import NO_QUANTIZATION, Call
from pquant.layers.norm import ChannelAffine
from pquant.quantization.quantizer import FixedPointQuantizer, FoldedQuantizer, NoQuantizer

NAME = "raw_inputs"


class RawInputs(ChannelAffine):
    """(raw - offset) / scale by channel, for raw inputs with their own format; it is exact, since scales are powers of two.

    Args:
        form: format of the raw inputs, in the shape of one input.
        offset: offset of each channel, (channels,).
        scale: scale of each channel, (channels,), powers of two.
    """

    def __init__(self, form: Format, offset: Tensor, scale: Tensor) -> None:
        nn.Module.__init__(self)
        shape = (1, *form.f.shape)
        self.calls = (Call(shape, shape),)
        self.name, self.quantization, self.sources, self.regularization = NAME, NO_QUANTIZATION, {}, None
        self.counting = NO_QUANTIZATION.counting(NAME)
        bits = tuple(torch.from_numpy(one.astype(np.float32)) for one in (form.k, form.i, form.f))
        self.input_quantizer = FixedPointQuantizer.of(bits, form.round_mode, form.overflow_mode)  # type: ignore[arg-type]
        self.output_quantizer = NoQuantizer()
        self.weight = nn.Parameter((1 / scale).float(), requires_grad=False)
        self.bias = nn.Parameter((-offset / scale).float(), requires_grad=False)
        self.weight_quantizer, self.bias_quantizer = (_constant(values) for values in (self.weight, self.bias))
        self.eval()


def deployed(model: nn.Module, splits: Splits, raw_inputs: bool) -> tuple[nn.Module, Splits]:
    """Return the finalized model and the data of an export; with ``raw_inputs`` the inputs of both are raw.

    The format of raw inputs is that of :func:`raw_format`.

    Raises:
        ConfigError: offsets and scales that are not exact in fixed-point arithmetic, or a model that already has a layer of this name.
    """
    if not raw_inputs:
        return model, splits
    shape = tuple(splits.input_shape)
    offset, scale = check_raw_inputs(splits)
    columns = (-1, *(1,) * (len(shape) - 1))
    form = raw_format(input_format(record(model, shape)).expand(shape), *(one.reshape(columns).expand(shape).numpy() for one in (offset, scale)))
    layer = RawInputs(form, offset, scale)
    given = splits.preprocessing
    assert given is not None
    done = replace(given, offset=torch.zeros(()), scale=torch.ones(()), note=f"inputs are raw: layer '{NAME}' shifts and scales them")
    return _with_first_layer(model, layer), replace(splits, test=_Raw(splits.test, given), preprocessing=done)


def check_raw_inputs(splits: Splits) -> tuple[Tensor, Tensor]:
    """Return the offset and scale of each channel, float64 (channels,).

    Raises:
        ConfigError: the data source does not state them, does more than shift and scale, or they are not exact in fixed-point arithmetic.
    """
    done = splits.preprocessing
    if done is None:
        raise ConfigError("export.raw_inputs needs a data source that states its offsets and scales: Splits.preprocessing is None")
    if done.note:
        raise ConfigError(f"export.raw_inputs needs a data source that only shifts and scales: {done.note}")
    offset, scale = (_by_channel(values, splits.input_shape) for values in (done.offset, done.scale))
    exact = torch.frexp(scale).mantissa == 0.5
    if not exact.all():
        at = int((~exact).nonzero()[0])
        name = f"'{done.features[at]}'" if len(done.features) == len(scale) else str(at)
        found = f"feature {name} is divided by {float(scale[at]):.6g}, which no fixed-point arithmetic does exactly"
        raise ConfigError(f"export.raw_inputs: {found}: train with data.standardize=power_of_two")
    return offset, scale


def raw_format(form: Format, offset: np.ndarray, scale: np.ndarray) -> Format:
    """Return the format of raw inputs for a format of the model's inputs, and offsets and scales, all in one shape.

    It holds all values of the model's inputs. For rounding half up (RND) it also holds half steps: lower bits can then be truncated (TRN), and the
    model rounds the truncated value as it would round the full value. Rounding modes other than RND and TRN do not change.
    """
    exponent = np.frexp(scale)[1] - 1
    own = np.array([Constants.from_floats(np.array([value])).f for value in offset.ravel()]).reshape(offset.shape)
    f = form.f - exponent + (form.round_mode == "RND")
    f = np.where(offset == 0, f, np.maximum(f, own))
    low, high = (offset + limit * scale for limit in form.limits())
    mantissa, i = np.frexp(np.maximum(high + np.ldexp(1.0, -f), -low))
    used = form.width > 0
    k, i, f = (np.where(used, bits, 0).astype(np.int64) for bits in (low < 0, i - (mantissa == 0.5), f))
    return Format(k, i, f, "TRN" if form.round_mode == "RND" else form.round_mode, "SAT")


def _with_first_layer(model: nn.Module, layer: RawInputs) -> nn.Module:
    """Return a copy of a model with ``layer`` before its first layer; the other layers keep their names."""
    if hasattr(model, NAME):
        raise ConfigError(f"export.raw_inputs adds a layer '{NAME}', which the model has already")
    whole = copy.deepcopy(model)
    if isinstance(whole, nn.Sequential):  # it calls all its modules in order
        children = dict(whole.named_children())
        whole._modules.clear()
        whole._modules.update({NAME: layer} | children)
    else:
        whole.add_module(NAME, layer)
        whole.register_forward_pre_hook(_through_first_layer)
    return whole


def _through_first_layer(model: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
    return getattr(model, NAME)(*inputs)


class _Raw(Dataset[tuple[Tensor, ...]]):
    """A dataset with the preprocessing of its inputs undone."""

    def __init__(self, data: Any, done: Preprocessing) -> None:
        self.data, self.done = data, done

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        x, *rest = self.data[index]
        return ((x.double() * self.done.scale + self.done.offset).float(), *rest)


def _by_channel(values: Tensor, shape: torch.Size) -> Tensor:
    flat = values.double().expand(shape).reshape(shape[0], -1)
    if not bool((flat == flat[:, :1]).all()):
        raise ConfigError("export.raw_inputs needs one offset and scale for each channel of an input, or inputs of one axis (data.flatten=true)")
    return flat[:, 0].clone()


def _constant(values: Tensor) -> FoldedQuantizer:
    """Return the format of constants, with enough fractional bits for all of them."""
    constants = Constants.from_floats(values.detach().double().numpy())
    bits = int(np.abs(constants.n).max(initial=0)).bit_length()
    return FoldedQuantizer(*(torch.tensor(float(number)) for number in (1, bits - constants.f, constants.f)))
