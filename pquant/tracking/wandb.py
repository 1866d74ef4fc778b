"""The Weights & Biases tracker, in addition to the local files."""

import logging
import netrc
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from pquant.errors import ConfigError
from pquant.settings import Settings, schema
from pquant.tracking.panels import log_panels
from pquant.tracking.session import Session
from pquant.tracking.tracker import artifacts

if TYPE_CHECKING:
    from wandb import Run

log = logging.getLogger(__name__)

EXIT_CODES = {"finished": 0, "failed": 1, "interrupted": 255}


@schema("tracker", "wandb")
@dataclass(frozen=True)
class WandbTracker(Settings):
    """Sends the metrics of a run to Weights & Biases, or keeps them in the run's folder for a later ``wandb sync``.

    Without a login a run is offline; W&B never prompts. If W&B fails, the tracker logs one warning and the run continues without it.

    Args:
        project: W&B's project.
        group: W&B's group, null for none; the trials of a study share one.
        name: the name of the run; null: W&B chooses one.
        mode: "auto" (``$WANDB_MODE``, else online for a user who is logged in) or a mode of W&B.
    """

    project: str = "pquant"
    group: str | None = None
    name: str | None = None
    mode: Literal["auto", "online", "offline", "disabled"] = "auto"

    def start(self, folder: Path, config: dict[str, Any]) -> None:
        """Begin a W&B run whose files lie in ``folder/wandb``.

        Raises:
            ConfigError: wandb cannot be imported.
        """
        try:
            from wandb import Settings as RunSettings
            from wandb import init
        except Exception as error:
            raise ConfigError(f"tracker=wandb cannot import wandb ({error}): install it, or use tracker=none") from error
        self._session.begin(
            folder,
            lambda: init(
                project=self.project,
                group=self.group,
                name=self.name,
                dir=folder,
                config=config,
                mode=self._resolved_mode(RunSettings().base_url),
                reinit="finish_previous",
                settings=RunSettings(console="off", silent=True),
            ),
        )

    def log(self, row: Mapping[str, Any]) -> None:
        """Log an epoch's metrics at step ``row["epoch"]``."""
        self._session.do_in_background(lambda run: run.log(dict(row), step=row["epoch"]))

    def summary(self, metrics: Mapping[str, Any]) -> None:
        """Set the summary of the W&B run; log its report, its layers and histograms as panels, and its files as an artifact."""
        self._session.do(lambda run: run.summary.update(dict(metrics)))
        if self._session.folder and artifacts(self._session.folder):
            self._session.do(lambda run: log_panels(run, self._session.folder))

    def finish(self, status: str) -> None:
        """End the W&B run with the exit code of its status."""
        self._session.end(lambda run: run.finish(exit_code=EXIT_CODES[status]))

    @cached_property
    def _session(self) -> "Session[Run]":
        return Session("Weights & Biases")

    def _resolved_mode(self, server: str) -> Literal["online", "offline", "disabled"]:
        match os.environ.get("WANDB_MODE") if self.mode == "auto" else self.mode:
            case "offline" | "disabled" as asked:
                return asked
        if logged_in(server):
            return "online"
        if self.mode == "online":
            log.warning("no login for Weights & Biases, so the run stays offline; see wandb login, $WANDB_API_KEY and $WANDB_BASE_URL")
        return "offline"


def logged_in(server: str) -> bool:
    """Return whether the environment or the netrc file has a key for W&B; asks neither the user nor the network.

    ``$WANDB_BASE_URL`` names a private server; without it, ``server`` is W&B's default URL.
    """
    if os.environ.get("WANDB_API_KEY"):
        return True
    own = os.environ.get("WANDB_BASE_URL")
    hosts = [urlsplit(url).netloc for url in ([own] if own else [server, "https://api.wandb.ai"])]
    candidates = [os.environ["NETRC"]] if os.environ.get("NETRC") else ["~/.netrc", "~/_netrc"]
    path = next((path for path in map(os.path.expanduser, candidates) if os.path.isfile(path)), None)
    try:
        known = netrc.netrc(path).hosts if path else {}
    except (OSError, netrc.NetrcParseError):
        return False
    return any(known[host][2] for host in hosts if host in known)
