"""What a resumed run must find: a checkpoint, and the settings that the run was started with."""

from pathlib import Path
from typing import Any

from pquant.errors import ConfigError
from pquant.tracking.environment import difference
from pquant.tracking.files import plain

CHECKPOINT = "checkpoint.pt"
SECTIONS_THAT_MAY_DIFFER = ("resume", "progress", "tracker", "export", "finetuning", "dry_run", "from_run", "from_epoch")
TRAINING_FIELDS_THAT_MAY_DIFFER = ("threads", "device")


def fixed_settings(config: dict[str, Any]) -> dict[str, Any]:
    """Return the part of a configuration that must not change when a run resumes."""
    fixed = {key: value for key, value in plain(config).items() if key not in SECTIONS_THAT_MAY_DIFFER}
    if isinstance(fixed.get("training"), dict):
        fixed["training"] = {key: value for key, value in fixed["training"].items() if key not in TRAINING_FIELDS_THAT_MAY_DIFFER}
    return fixed


def check_same_settings(folder: Path, earlier: dict[str, Any], now: dict[str, Any]) -> None:
    """Compare the fixed settings of the run in ``folder`` with those of the run that resumes it.

    Raises:
        ConfigError: they differ; the message names the first field that does.
    """
    if earlier != now:
        key, before, after = difference(earlier, now)
        raise ConfigError(
            f"the run in {folder} was started with other settings, {key} = {before!r} instead of {after!r}; "
            "give the same with resume=auto, or another hydra.run.dir"
        )
