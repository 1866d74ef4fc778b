"""The installation of this copy of the package: its configuration, its command, and the command that installs an extra."""

import json
import logging
import sys
from importlib import metadata
from pathlib import Path

VERSION = "0.1.0"
DISTRIBUTION = "pquant-hydra"
"""The name of this package on an index."""
SAME_IMPORT_NAME = "pquant-ml"
"""Another distribution whose package is also called ``pquant``."""
PACKAGE = Path(__file__).parent
IS_CHECKOUT = not (PACKAGE / "conf").is_dir()
"""Whether this copy runs from a checkout of the repository; a wheel holds ``conf/`` inside the package."""
ROOT = PACKAGE.parent if IS_CHECKOUT else PACKAGE
CONF = ROOT / "conf"
PROGRAM = ("python", "run.py") if IS_CHECKOUT else ("pquant",)
"""The command that runs a job."""

SCRIPTS = {"pquant": ("pquant",), "__main__.py": ("python", "-m", "pquant")}
"""The commands that have started a process, by the name of its script."""

log = logging.getLogger(__name__)


def program() -> tuple[str, ...]:
    """Return the command that has started this process."""
    return SCRIPTS.get(Path(sys.argv[0]).name, ("python", sys.argv[0]))


def extra(name: str) -> str:
    """Return the command that installs the extra ``name`` into the environment of this copy."""
    own = _distribution(DISTRIBUTION)
    by_pip = own is not None and _text(own, "INSTALLER") == "pip"
    if IS_CHECKOUT:
        return f"pip install -e '.[{name}]'" if by_pip else f"uv sync --extra {name}"
    origin = json.loads(_text(own, "direct_url.json") or "{}") if own else {}
    return f"{'pip' if by_pip or own is None else 'uv pip'} install '{DISTRIBUTION}[{name}]{_source(origin)}'"


def warn_of_other_package() -> None:
    """Log a warning if another distribution in this environment installs a package of the same name."""
    if _distribution(SAME_IMPORT_NAME):
        log.warning(
            "%s is installed in this environment, and its package is called pquant, too: this is %s, in %s; give each an environment of its own",
            SAME_IMPORT_NAME,
            DISTRIBUTION,
            PACKAGE,
        )


def _source(origin: dict[str, object]) -> str:
    """Return the source of a distribution, as pip writes it after the name; "" for an index."""
    if "url" not in origin:
        return ""
    version_control = origin.get("vcs_info")
    if isinstance(version_control, dict):
        return f" @ {version_control['vcs']}+{origin['url']}@{version_control['commit_id']}"
    return f" @ {origin['url']}"


def _distribution(name: str) -> metadata.Distribution | None:
    try:
        return metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return None


def _text(distribution: metadata.Distribution, file: str) -> str:
    return (distribution.read_text(file) or "").strip()
