"""Settings check types and ranges when they are built, in Python and in composed configurations alike."""

import copy
import math
import pickle
from dataclasses import FrozenInstanceError, dataclass, fields
from typing import Any, Literal

import pytest
from hydra.core.config_store import ConfigStore
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException, ValidationError

from pquant.errors import ConfigError, did_you_mean, unknown
from pquant.names import check_patterns, matches
from pquant.pruning import DST, NoPruning, Wanda
from pquant.quantization import Quantization
from pquant.settings import Settings, schema, setting
from pquant.training import Training


@dataclass(frozen=True)
class Inner(Settings):
    depth: int = setting(1, ge=1)


@schema("tests", "sample")
@dataclass(frozen=True)
class Sample(Settings):
    """Of every kind of field one."""

    count: int = setting(3, ge=1)
    share: float = setting(0.5, ge=0, le=1)
    rate: float = setting(0.1, gt=0, lt=1)
    level: float = 1.5
    floor: float = setting(0.0, gt=-1)
    ceiling: float = setting(0.0, le=2)
    on: bool = False
    name: str = "x"
    mode: Literal["slow", "fast"] = "slow"
    bits: int | Literal["auto"] = setting("auto", le=8)
    most: int | None = None
    names: list[str] = setting([])
    table: list[list[float]] = setting([[0, 1]])
    options: dict[str, Any] = setting({})
    inner: Inner = setting(Inner())
    anything: Any = None


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("count", 0, "in [1, inf), got 0"),
        ("count", 2.5, "an integer, got 2.5"),
        ("count", True, "an integer, got True"),
        ("count", "3", "an integer, got '3'"),
        ("count", None, "an integer, got None"),
        ("share", 1.7, "in [0, 1], got 1.7"),
        ("share", -1e-9, "in [0, 1], got -1e-09"),
        ("share", math.nan, "in [0, 1], got nan"),
        ("share", math.inf, "in [0, 1], got inf"),
        ("share", False, "a number, got False"),
        ("share", "half", "a number, got 'half'"),
        ("rate", 0, "in (0, 1), got 0.0"),
        ("rate", 1, "in (0, 1), got 1.0"),
        ("rate", math.nan, "in (0, 1), got nan"),
        ("level", math.nan, "finite, got nan"),
        ("level", -math.inf, "finite, got -inf"),
        ("floor", -1.0, "in (-1, inf), got -1.0"),
        ("floor", math.inf, "in (-1, inf), got inf"),
        ("ceiling", 2.5, "in (-inf, 2], got 2.5"),
        ("ceiling", -math.inf, "in (-inf, 2], got -inf"),
        ("on", 2, "true or false, got 2"),
        ("on", 1.0, "true or false, got 1.0"),
        ("on", "true", "true or false, got 'true'"),
        ("name", 3, "a string, got 3"),
        ("mode", "fats", "one of 'slow', 'fast', got 'fats': did you mean 'fast'?"),
        ("mode", 1, "one of 'slow', 'fast', got 1"),
        ("mode", ["slow"], "one of 'slow', 'fast', got ['slow']"),
        ("bits", "autos", "an integer or 'auto', got 'autos': did you mean 'auto'?"),
        ("bits", 9, "in (-inf, 8], got 9"),
        ("bits", False, "an integer or 'auto', got False"),
        ("most", 1.5, "an integer or null, got 1.5"),
        ("names", "abc", "a list of a string, got 'abc'"),
        ("names", ["a", 1], "a list of a string, got ['a', 1]"),
        ("table", [[1, "2"]], "a list of a list of a number, got [[1, '2']]"),
        ("options", [1], "a dictionary, got [1]"),
        ("inner", 3, "Inner, got 3"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(field: str, value: Any, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Sample(**{field: value})
    assert str(caught.value) == f"Sample.{field} must be {message}"


@pytest.mark.parametrize(
    ("field", "value", "kept"),
    [
        ("count", 1, 1),
        ("count", 2**62, 2**62),
        ("share", 0, 0.0),
        ("share", 1, 1.0),
        ("share", -0.0, 0.0),
        ("rate", 5e-324, 5e-324),
        ("level", -(2**60), -(2.0**60)),
        ("on", 1, True),
        ("on", 0, False),
        ("bits", "auto", "auto"),
        ("bits", -100, -100),
        ("most", None, None),
        ("most", 4, 4),
        ("names", ("a", "b"), ["a", "b"]),
        ("table", [(0, 1), [2, 3.5]], [[0.0, 1.0], [2.0, 3.5]]),
        ("options", {"a": [1]}, {"a": [1]}),
        ("inner", {"depth": 4}, Inner(4)),
        ("anything", len, len),
    ],
)
def test_what_fits_is_kept_as_the_type_declared(field: str, value: Any, kept: Any) -> None:
    held = getattr(Sample(**{field: value}), field)
    assert held is kept or held == kept
    assert type(held) is type(kept)


def test_the_published_examples() -> None:
    for build, message in [
        (lambda: Wanda(sparsity=1.7), "Wanda.sparsity must be in [0, 1], got 1.7"),
        (lambda: DST(max_pruning_pct=0), "DST.max_pruning_pct must be in (0, 1], got 0.0"),
        (lambda: DST(alpha=math.nan), "DST.alpha must be in [0, inf), got nan"),
        (lambda: DST(threshold_init=math.inf), "DST.threshold_init must be finite, got inf"),
        (lambda: Training(epochs=2.5), "Training.epochs must be an integer, got 2.5"),
        (lambda: Quantization(round_mode="RND_CNV"), "got 'RND_CNV': did you mean 'RND_CONV'?"),
        (lambda: Quantization(default_weight_integer_bits=40), "Quantization.default_weight_integer_bits must be in [-32, 32], got 40"),
        (lambda: NoPruning(threshold_decay=0.1), "NoPruning.threshold_decay must be 0, as the method trains no threshold, got 0.1"),
    ]:
        with pytest.raises(ConfigError) as caught:
            build()
        assert message in str(caught.value)


def test_objects_are_frozen_values_that_share_nothing() -> None:
    one, other = Sample(), Sample()
    with pytest.raises(FrozenInstanceError):
        one.count = 5  # type: ignore[misc]
    assert one == other and one.names is not other.names and one.options is not other.options
    assert pickle.loads(pickle.dumps(one)) == one == copy.deepcopy(one)


def test_errors_are_value_errors() -> None:
    assert issubclass(ConfigError, ValueError)


def node() -> DictConfig:
    return copy.deepcopy(ConfigStore.instance().load("schema/tests/sample.yaml").node)


def test_a_schema_has_the_fields_the_defaults_and_the_target() -> None:
    registered = node()
    assert set(registered) == {field.name for field in fields(Sample)} | {"_target_"}
    assert registered._target_ == f"{Sample.__module__}.Sample"
    plain = OmegaConf.to_container(registered)
    del plain["_target_"]
    assert Sample(**plain) == Sample()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("count", 1.5),
        ("count", "many"),
        ("count", None),
        ("share", "half"),
        ("on", "maybe"),
        ("on", "False"),
        ("on", "true"),
        ("on", "1"),
        ("on", 2),
        ("mode", "fats"),
        ("bits", "automatic"),
        ("most", "none"),
        ("names", 3),
        ("inner", {"depth": "deep"}),
    ],
)
def test_a_schema_enforces_types(field: str, value: Any) -> None:
    with pytest.raises(ValidationError):
        OmegaConf.update(node(), field, value)
    with pytest.raises(OmegaConfBaseException):
        OmegaConf.merge(node(), {field: value})


def test_a_schema_takes_what_fits_and_converts_what_a_command_line_gives() -> None:
    config = OmegaConf.merge(
        node(), OmegaConf.from_dotlist(["count=5", "share=1", "on=true", "bits=4", "most=2", "mode=fast", "names=[a,b]", "inner.depth=3"])
    )
    built = {key: value for key, value in OmegaConf.to_container(config).items() if key != "_target_"}
    assert Sample(**built) == Sample(5, 1.0, on=True, bits=4, most=2, mode="fast", names=["a", "b"], inner=Inner(3))


def test_a_schema_refuses_keys_that_no_field_has_except_in_dictionaries() -> None:
    config = node()
    OmegaConf.set_struct(config, True)
    with pytest.raises(ConfigKeyError):
        OmegaConf.merge(config, {"cuont": 1})
    with pytest.raises(ConfigKeyError):
        OmegaConf.merge(config, {"inner": {"dpeth": 1}})
    assert OmegaConf.merge(config, {"options": {"new.key": {"f": 1}}}).options == {"new.key": {"f": 1}}


@pytest.mark.parametrize("convert", ["none", "partial", "object", "all"])
def test_a_composed_config_builds_the_object_and_its_ranges_are_checked(convert: str) -> None:
    stored = ConfigStore.instance().load("schema/quantization/quantization.yaml").node
    rules = {"layers.0": {"weight": {"f": 3}}}
    given = {"_target_": "pquant.quantization.Quantization", "layer_specific": rules, "hgq_beta_schedule": [[0, 1]]}
    config = OmegaConf.merge(stored, given)
    built = instantiate(config, _convert_=convert, _execution_whitelist_=("pquant.*",))
    assert built == Quantization(layer_specific=rules, hgq_beta_schedule=[[0, 1]])
    assert type(built.layer_specific["layers.0"]) is dict and type(built.hgq_beta_schedule[0]) is list
    with pytest.raises(Exception, match=r"Quantization.hgq_gamma must be in \[0, inf\), got -1.0"):
        instantiate(OmegaConf.merge(config, {"hgq_gamma": -1}), _convert_=convert, _execution_whitelist_=("pquant.*",))


def test_extra_keys_where_a_section_is_open() -> None:
    section = copy.deepcopy(ConfigStore.instance().load("schema/training/training.yaml").node)
    assert OmegaConf.merge(section, {"warmup": 3}).warmup == 3
    with pytest.raises(ValidationError):
        OmegaConf.merge(section, {"epochs": "many"})


@pytest.mark.parametrize(
    ("given", "options", "answer"),
    [
        ("wnda", ["dst", "wanda"], ": did you mean 'wanda'?"),
        ("zzz", ["dst", "wanda"], ""),
        ("", ["dst"], ""),
        ("a", [], ""),
        ("3", [3, 4], ": did you mean '3'?"),
    ],
)
def test_the_nearest_name(given: str, options: list[Any], answer: str) -> None:
    assert did_you_mean(given, options) == answer


def test_unknown_names_list_what_there_is() -> None:
    assert unknown("layer", "fc", ["fc1", "head"]) == "unknown layer 'fc': did you mean 'fc1'? valid: fc1, head"
    assert unknown("layer", "zzz", iter(["fc1"])) == "unknown layer 'zzz'; valid: fc1"
    assert unknown("layer", "x", []) == "unknown layer 'x'; valid: none"


@pytest.mark.parametrize(
    ("pattern", "name", "fits"),
    [
        ("features.0", "features.0", True),
        ("features.*", "features.0", True),
        ("features.*", "features.0.conv", True),
        ("features.*", "features", False),
        ("*.conv?", "block.conv1", True),
        ("*", "", True),
        ("Features.*", "features.0", False),
        ("features.[01]", "features.1", True),
        ("a[0]", "a[0]", True),
    ],
)
def test_patterns(pattern: str, name: str, fits: bool) -> None:
    assert matches(pattern, name) is fits


def test_patterns_that_fit_nothing() -> None:
    check_patterns("X.rules", ["a", "b.*"], ["a", "b.0"])
    check_patterns("X.rules", [], [])
    with pytest.raises(ConfigError, match=r"X\.rules: unknown layer 'b': did you mean 'b.0'\? valid: a, b.0"):
        check_patterns("X.rules", ["a", "b"], iter(["a", "b.0"]))


def test_text_from_the_environment_is_no_truth_value_unless_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWITCH", "False")
    assert OmegaConf.merge(node(), {"on": "${oc.decode:${oc.env:SWITCH}}"}).on is False
    with pytest.raises(OmegaConfBaseException, match="must be true or false"):
        _ = OmegaConf.merge(node(), {"on": "${oc.env:SWITCH}"}).on
