"""The settings of the quantization section, which choose the format of each tensor of each layer."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from pquant.errors import ConfigError, unknown
from pquant.names import check_patterns, matches
from pquant.quantization.budget import ebops_for
from pquant.quantization.dynamic import DynamicQuantizer
from pquant.quantization.fixed_point import OverflowMode, RoundMode
from pquant.quantization.hgq import HGQQuantizer, scheduled
from pquant.quantization.quantizer import FixedPointQuantizer, Granularity, NoQuantizer, Quantizer, TensorFormat, bits_shape
from pquant.settings import Settings, schema, setting

DATA_FORGET = 0.01
"""Bits by which the tracked integer bits of data may fall in one batch (HGQ2's value)."""

COUNTING = ("ebops_factor", "parallelization")
"""Keys of a ``layer_specific`` rule that change how EBOPs are counted."""
NEEDS_HGQ = "use quantization=hgq, or fitcompress=on with fitcompress.compression_goal, which searches fixed bits for a size"


@dataclass(frozen=True)
class LayerFormats:
    """The formats of one layer's tensors.

    ``exponential`` and ``reciprocal`` are the formats of the tables inside a softmax or a norm. Their values lie in [0, 1], so that the formats have
    one integer bit and no sign. An exponential has as many bits as data. A reciprocal has twice as many, since it multiplies many values.
    """

    weight: TensorFormat
    bias: TensorFormat
    input: TensorFormat
    output: TensorFormat
    exponential: TensorFormat
    reciprocal: TensorFormat


@dataclass(frozen=True)
class Counting(Settings):
    """How the EBOPs of one layer are counted.

    Args:
        ebops_factor: factor of the layer's EBOPs, in the loss and in all metrics.
        parallelization: number of positions that the hardware computes at the same time; only these count. null or -1: all positions.
    """

    ebops_factor: float = setting(1.0, ge=0)
    parallelization: int | None = setting(None, ge=-1)

    def __post_init__(self) -> None:
        """Check the fields."""
        super().__post_init__()
        if self.parallelization == 0:
            raise self.error("parallelization", "at least 1, or null or -1 for all positions")

    def built(self, positions: int) -> float:
        """Return the fraction of the positions of a call that hardware computes at the same time."""
        return min(self.at_once, positions) / max(positions, 1) if self.limits else 1.0

    @property
    def limits(self) -> bool:
        """Whether ``parallelization`` limits the positions that hardware computes at the same time."""
        return self.at_once > 0

    @property
    def at_once(self) -> int:
        """The number of positions that hardware computes at the same time; -1 for all."""
        return -1 if self.parallelization is None else self.parallelization


@schema("quantization", "quantization")
@dataclass(frozen=True)
class Quantization(Settings):
    """Fixed-point or high-granularity quantization of all layers.

    Bits are k (keep negatives), i (integer, without the sign), f (fractional); see :mod:`pquant.quantization.fixed_point`. The defaults of the
    specification give every tensor zero bits: set them, or use the presets ``quantization=fixed`` and ``quantization=hgq``. With ``use_hgq`` the bits
    are trained (:mod:`pquant.quantization.hgq`), starting from these; the loss then has ``hgq_beta`` times the EBOPs plus ``hgq_gamma`` times the sum
    of all bit widths, in the train and fine-tuning stages.

    ``layer_specific`` for example::

        layer_specific:
          layers.0: {input: {k: true, i: 4}, weight: {f: 5}, output: {enable: false}}
          "features.*": {enable_quantization: false}
          head: {ebops_factor: 0.5, parallelization: 1}

    With ``target_ebops`` a controller sets beta instead, see :mod:`pquant.quantization.budget`.

    Args:
        default_data_keep_negatives: k of the inputs and outputs of layers: whether they have a sign.
        default_data_integer_bits: i of the inputs and outputs of layers: integer bits without the sign; "auto": chosen from the data when training
            starts.
        default_data_fractional_bits: f of the inputs and outputs of layers: fractional bits; may be negative.
        default_weight_keep_negatives: k of weights and biases: whether they have a sign.
        default_weight_integer_bits: i of weights and biases: integer bits without the sign; "auto": chosen from the weights when training starts.
        default_weight_fractional_bits: f of weights and biases: fractional bits; may be negative.
        quantize_input: whether the inputs of layers are quantized.
        quantize_output: whether the outputs of layers are quantized.
        enable_quantization: whether anything is quantized; false keeps the whole network float.
        hgq_gamma: regularization weight of the sum of all bit widths in the loss.
        hgq_beta: regularization weight of EBOPs in the loss: a higher weight gives smaller networks.
        layer_specific: maps the name of a layer, or a glob, to settings for it: formats of single tensors (weight, bias, input, output, and for a
            softmax or norm exponential, reciprocal), or how its EBOPs are counted (ebops_factor, parallelization: :class:`Counting`). The first rule
            that matches wins.
        use_hgq: whether bit widths are trained.
        use_real_tanh: whether a tanh stays a tanh; else it becomes a hard tanh, which needs no table in hardware.
        overflow_mode_data: how inputs and outputs outside the range of their format are represented.
        overflow_mode_parameters: how weights and biases outside the range of their format are represented.
        round_mode: how a value between two steps of the format is rounded.
        use_relu_multiplier: whether each ReLU has a trained factor, a power of 2 (a shift in hardware).
        hgq_beta_schedule: [epoch, value] pairs that replace ``hgq_beta``. Epochs count from 0 in the train stage; values between are log-linear.
        target_ebops: EBOPs of the final model. A controller sets the regularization weight of EBOPs, starting from ``hgq_beta``. null: no target.
        target_luts: look-up tables of the final model, instead of ``target_ebops``. They are converted by a fit to the published HGQ models of the
            jet data (LUTs = 0.704 EBOPs - 69). Your network and synthesis tool may need other numbers: export the model to compare.
        target_share: fraction of the train stage after which the target is to be reached; the EBOPs then stay there until the end of the run.
        hgq_lr: learning rate of the bit widths; null: that of the weights. Bit widths change by whole units, so they need a larger learning rate than
            weights.
        granularity: which weights share a bit width.
        data_granularity: which inputs and outputs share a bit width.
        min_frac_bits: fewest fractional bits that training may choose, for trained bits and for dynamic data; null: any number.
        dynamic_data_quantization: for fixed bits: whether the binary point of inputs and outputs follows the range of each training batch. The width
            k + i + f stays. When training is over, one pass over the training data chooses the final format
            (:mod:`pquant.quantization.dynamic`).
        pruning_first: true: weights are pruned, then quantized. false: weights are quantized, then pruned, which needs a method that does not change
            the remaining weights.

    Raises:
        ConfigError: a value out of range, or an unknown key in ``layer_specific``.
    """

    default_data_keep_negatives: bool = False
    default_data_integer_bits: int | Literal["auto"] = setting(0, ge=-32, le=32)
    default_data_fractional_bits: int = setting(0, ge=-32, le=32)
    default_weight_keep_negatives: bool = False
    default_weight_integer_bits: int | Literal["auto"] = setting(0, ge=-32, le=32)
    default_weight_fractional_bits: int = setting(0, ge=-32, le=32)
    quantize_input: bool = True
    quantize_output: bool = True
    enable_quantization: bool = True
    hgq_gamma: float = setting(0.0, ge=0)
    hgq_beta: float = setting(0.0, ge=0)
    layer_specific: dict[str, Any] = setting({})
    use_hgq: bool = False
    use_real_tanh: bool = False
    overflow_mode_data: OverflowMode = "SAT"
    overflow_mode_parameters: OverflowMode = "SAT"
    round_mode: RoundMode = "RND"
    use_relu_multiplier: bool = True
    hgq_beta_schedule: list[list[float]] = setting([])
    target_ebops: int | None = setting(None, ge=1)
    target_luts: int | None = setting(None, ge=1)
    target_share: float = setting(0.7, gt=0, le=1)
    hgq_lr: float | None = setting(None, gt=0)
    granularity: Granularity = "per_tensor"
    data_granularity: Granularity = "per_tensor"
    min_frac_bits: int | None = setting(None, ge=-32, le=32)
    dynamic_data_quantization: bool = False
    pruning_first: bool = True

    def __post_init__(self) -> None:
        """Check the fields and every rule of ``layer_specific``."""
        super().__post_init__()
        epochs = [point[0] for point in self.hgq_beta_schedule if len(point) == 2 and all(0 <= value < math.inf for value in point)]
        if len(epochs) < len(self.hgq_beta_schedule) or epochs != sorted({int(epoch) for epoch in epochs}):
            raise self.error("hgq_beta_schedule", "a list of [epoch, value] pairs, none negative, with whole epochs that rise from pair to pair")
        self._check_target()
        self._check_dynamic()
        for pattern in self.layer_specific:
            self._overridden(pattern)
            self._counting(pattern)

    def _check_target(self) -> None:
        name = "target_ebops" if self.target_luts is None else "target_luts"
        if self.budget is None:
            return
        if not self.use_hgq:
            raise self.error(name, f"null for fixed bits, which are not trained: {NEEDS_HGQ}")
        if self.target_ebops is not None and self.target_luts is not None:
            raise self.error("target_luts", f"null beside target_ebops = {self.target_ebops}, since both are targets")
        if self.hgq_beta_schedule:
            raise self.error("hgq_beta_schedule", f"empty with {name}, whose controller sets beta; hgq_beta is the first value")

    def _check_dynamic(self) -> None:
        if self.dynamic_data_quantization and self.use_hgq:
            raise self.error("dynamic_data_quantization", "false with use_hgq, which trains the integer bits of data")
        if self.dynamic_data_quantization and self.default_data_integer_bits == "auto":
            raise self.error("default_data_integer_bits", "a number with dynamic_data_quantization, whose width is k + i + f")
        chosen = {"data": self.use_hgq or self.dynamic_data_quantization, "weight": self.use_hgq}
        for tensor in (tensor for tensor, by_training in chosen.items() if by_training and self.min_frac_bits is not None):
            if getattr(self, name := f"default_{tensor}_fractional_bits") < self.min_frac_bits:
                raise self.error(name, f"at least min_frac_bits = {self.min_frac_bits}")

    @property
    def budget(self) -> float | None:
        """The target for the EBOPs of the model; None without a target."""
        return self.target_ebops if self.target_luts is None else ebops_for(self.target_luts)

    def formats(self, name: str) -> LayerFormats:
        """Return the formats of the layer called ``name``."""
        pattern = next((pattern for pattern in self.layer_specific if matches(pattern, name)), None)
        return self._default_formats(self.enable_quantization) if pattern is None else self._overridden(pattern)

    def counting(self, name: str) -> Counting:
        """Return the settings by which the EBOPs of the layer called ``name`` are counted."""
        pattern = next((pattern for pattern in self.layer_specific if matches(pattern, name)), None)
        return Counting() if pattern is None else self._counting(pattern)

    def _counting(self, pattern: str) -> Counting:
        rule = self.layer_specific[pattern]
        try:
            return Counting(**{key: rule[key] for key in COUNTING if key in rule})
        except ConfigError as error:
            raise ConfigError(f"Quantization.layer_specific['{pattern}']: {error}") from error

    def rule(self, name: str) -> dict[str, Any]:
        """Return the rule of ``layer_specific`` for the layer called ``name``; empty when no rule matches."""
        return next((rule for pattern, rule in self.layer_specific.items() if matches(pattern, name)), {})

    def check_names(self, names: list[str]) -> None:
        """Raise a ConfigError when a rule of ``layer_specific`` matches none of the layer names."""
        check_patterns("Quantization.layer_specific", self.layer_specific, names)

    def warnings(self, trains: bool = True) -> list[str]:
        """Return one message per setting without effect, with the reason; ``trains`` says whether the train stage has any epoch."""
        trained = {
            name: getattr(self, name)
            for name in ("hgq_beta", "hgq_gamma", "hgq_beta_schedule", "hgq_lr", "target_ebops", "target_luts")
            if getattr(self, name)
        }
        needed = "quantization.use_hgq" if not self.use_hgq else "" if self.enable_quantization or self.layer_specific else "enable_quantization"
        found = [f"quantization.{name} = {value} has no effect without {needed}=true" for name, value in trained.items() if needed]
        if not needed and not trains:
            idle = {name: value for name, value in trained.items() if name != "hgq_lr"}
            found += [f"quantization.{name} = {value} has no effect without training.epochs" for name, value in idle.items()]
        if self.use_hgq and not self.enable_quantization and not self.layer_specific:
            found.append("quantization.use_hgq has no effect, as quantization.enable_quantization is false")
        dynamic = self.dynamic_data_quantization and bool(self.enable_quantization or self.layer_specific)
        if self.dynamic_data_quantization and not dynamic:
            found.append("quantization.dynamic_data_quantization has no effect, as quantization.enable_quantization is false")
        if self.min_frac_bits is not None and not self.use_hgq and not dynamic:
            found.append(f"quantization.min_frac_bits = {self.min_frac_bits} has no effect without use_hgq or dynamic_data_quantization")
        if self.hgq_beta and self.hgq_beta_schedule:
            found.append(f"quantization.hgq_beta = {self.hgq_beta} has no effect beside hgq_beta_schedule, which replaces it")
        return found

    def check_tensors(self, tensors: Mapping[str, Sequence[str]]) -> None:
        """Check the tensor names in each rule of ``layer_specific``; ``tensors`` are the tensor names of each layer, by dotted name.

        Raises:
            ConfigError: a rule names a tensor that none of its layers has.
        """
        for pattern, rule in self.layer_specific.items():
            following = {name: own for name, own in tensors.items() if self.rule(name) is rule}
            for tensor in rule:
                if tensor not in (*COUNTING, "enable_quantization") and following and not any(tensor in own for own in following.values()):
                    name, own = next(iter(following.items()))
                    raise ConfigError(
                        f"Quantization.layer_specific['{pattern}'].{tensor} has no effect: layer '{name}' has only {', '.join(own)} to quantize"
                    )

    def check_positions(self, positions: Mapping[str, int]) -> None:
        """Check that each ``parallelization`` limits a layer; ``positions`` is the largest number in a call of each layer, by dotted name.

        Raises:
            ConfigError: a rule's ``parallelization`` is at least the number of positions of each of its layers.
        """
        for pattern, rule in self.layer_specific.items():
            following = {name: count for name, count in positions.items() if self.rule(name) is rule}
            limit = self._counting(pattern).at_once
            if limit > 0 and following and limit >= max(following.values()):
                name = max(following, key=lambda name: following[name])
                raise ConfigError(
                    f"Quantization.layer_specific['{pattern}'].parallelization = {limit} has no effect: layer '{name}' has {following[name]} position"
                    f"{'s' * (following[name] != 1)}, which are all built at once; give fewer, or leave it out"
                )

    def weight_quantizer(self, settings: TensorFormat, shape: tuple[int, ...]) -> Quantizer:
        """Return the quantizer of a weight or bias of ``shape``, whose first axis is the output channels."""
        return self._quantizer(settings, bits_shape(settings.granularity, shape), forget=math.inf)

    def data_quantizer(self, settings: TensorFormat, calls: Sequence[tuple[tuple[int, ...], int | None]]) -> Quantizer:
        """Return the quantizer of a layer's input or output.

        Args:
            settings: format of the tensor.
            calls: for each call the shape of the tensor, with a batch axis of size 1 or without it, and its channel axis, or None without one. Empty
                if the calls are not known.

        Raises:
            ConfigError: bits per channel or value for data of unknown shape, or of several shapes.
        """
        shapes = dict.fromkeys(bits_shape(settings.granularity, *call) for call in calls)
        if settings.enable and settings.granularity != "per_tensor" and len(shapes) != 1:
            advice = (
                f"is called with {', '.join(str(shape) for shape, _ in calls)}: use one layer for each, or granularity per_tensor there"
                if calls
                else "give compress an example_input"
            )
            raise ConfigError(f"data quantized {settings.granularity} needs one shape: {advice}")
        return self._quantizer(settings, next(iter(shapes), ()), forget=DATA_FORGET)

    def _quantizer(self, settings: TensorFormat, shared: tuple[int, ...], forget: float) -> Quantizer:
        if not settings.enable:
            return NoQuantizer()
        if settings.dynamic:
            return DynamicQuantizer(settings, shared, forget)
        return HGQQuantizer(settings, shared, forget, self.hgq_lr) if self.use_hgq else FixedPointQuantizer(settings, shared)

    @property
    def regularizes_ebops(self) -> bool:
        """Whether the loss has an EBOPs regularization."""
        return self.use_hgq and bool(self.hgq_beta or self.hgq_beta_schedule or self.budget)

    @property
    def regularizes_bits(self) -> bool:
        """Whether the loss has a regularization of EBOPs or bit widths."""
        return self.regularizes_ebops or self.use_hgq and bool(self.hgq_gamma)

    def regularization(self, epoch: int) -> tuple[float, float]:
        """Return (beta, gamma) at an epoch of the train stage; epochs count from 0."""
        return scheduled(self.hgq_beta, self.hgq_beta_schedule, epoch), self.hgq_gamma

    def _default_formats(self, enable: bool) -> LayerFormats:
        weight = TensorFormat(
            k=self.default_weight_keep_negatives,
            i=self.default_weight_integer_bits,
            f=self.default_weight_fractional_bits,
            round_mode=self.round_mode,
            overflow_mode=self.overflow_mode_parameters,
            granularity=self.granularity,
            enable=enable,
            min_f=self.min_frac_bits if self.use_hgq else None,
        )
        data = TensorFormat(
            k=self.default_data_keep_negatives,
            i=self.default_data_integer_bits,
            f=self.default_data_fractional_bits,
            round_mode=self.round_mode,
            overflow_mode=self.overflow_mode_data,
            granularity=self.data_granularity,
            min_f=self.min_frac_bits if self.use_hgq or self.dynamic_data_quantization else None,
            dynamic=self.dynamic_data_quantization,
        )
        bits = data.k + data.f + (data.i if isinstance(data.i, int) else 0)
        table = replace(data, k=False, i=1, f=min(max(bits - 1, -32), 32), granularity="per_tensor", enable=enable, min_f=None, dynamic=False)
        return LayerFormats(
            weight=weight,
            bias=weight,
            input=replace(data, enable=enable and self.quantize_input),
            output=replace(data, enable=enable and self.quantize_output),
            exponential=table,
            reciprocal=replace(table, f=min(max(2 * bits - 1, -32), 32)),
        )

    def _overridden(self, pattern: str) -> LayerFormats:
        """Return the formats with one rule applied; ``enable_quantization`` in the rule overrides that of the section."""
        rule, where = self.layer_specific[pattern], f"Quantization.layer_specific['{pattern}']"
        tensors = [field.name for field in fields(LayerFormats)]
        if not isinstance(rule, dict):
            raise ConfigError(f"{where} must be a dictionary, got {rule!r}")
        for key in rule:
            if key not in (known := [*tensors, "enable_quantization", *COUNTING]):
                raise ConfigError(f"{where}: {unknown('setting', key, known)}")
        enable = rule.get("enable_quantization", self.enable_quantization)
        if not isinstance(enable, bool):
            raise ConfigError(f"{where}.enable_quantization must be true or false, got {enable!r}")
        defaults = self._default_formats(enable)
        formats = {tensor: _changed(getattr(defaults, tensor), rule.get(tensor, {}), f"{where}.{tensor}") for tensor in tensors}
        for tensor, format in formats.items():
            if format.dynamic and (self.use_hgq or tensor not in ("input", "output")):
                raise ConfigError(f"{where}.{tensor}.dynamic must be false: only inputs and outputs with fixed bits follow their range, got true")
        return LayerFormats(**formats)


def _changed(tensor: TensorFormat, changes: Any, where: str) -> TensorFormat:
    """Return the format of a tensor with the changes of a rule; ``where`` names the rule in error messages."""
    if not isinstance(changes, dict):
        raise ConfigError(f"{where} must be a dictionary, got {changes!r}")
    options = [field.name for field in fields(TensorFormat)]
    for option in changes:
        if option not in options:
            raise ConfigError(f"{where}: {unknown('setting', option, options)}")
    try:
        return replace(tensor, **changes)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error
