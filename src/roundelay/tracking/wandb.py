"""Runs in Weights & Biases, through its extra.

Whether runs go to its server or wait in the run folder is the package's own affair: WANDB_MODE, ``wandb login``,
``wandb offline``.
"""

import json
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from roundelay.errors import optional
from roundelay.files import save_atomically

KEPT = "wandb.json"
"""The file of the run folder that keeps the run's id."""


def package() -> Any:  # Any: the package, which may not be there
    """Return the package.

    Raises:
        MissingExtra: it is not installed.
    """
    with optional("wandb", "wandb"):
        import wandb
    return wandb


class WandB:
    """One run in a project, "project" or "entity/project", with the job as its config. The x axis is the round.

    The run's id is kept in the run folder, so that a resumed run is the same one there. Offline, what came before is
    not known: a resumed run writes all rounds into a folder of its own, and the last one is what to sync.
    """

    def __init__(self, project: str, folder: Path, settings: Mapping[str, Any]) -> None:  # Any: what TOML holds
        wandb = package()
        entity, _, name = project.rpartition("/")
        self._run = wandb.init(
            project=name, entity=entity or None, id=_id(folder / KEPT), resume="allow", name=folder.name,
            config=dict(settings), dir=str(folder), reinit="create_new",
            settings=wandb.Settings(console="off"),
        )  # fmt: skip
        self._last_round = int(self._run.summary.get("round") or 0)
        self._clients: set[str] = set()
        self._run.define_metric("round")
        self._run.define_metric("*", step_metric="round")

    def append(self, row: Mapping[str, Any]) -> None:  # Any: a row holds names, numbers and text
        if row["round"] > self._last_round:
            self._run.log({name: value for name, value in row.items() if isinstance(value, int | float)})
            self._last_round = row["round"]

    def append_scalar(self, client: str, name: str, value: float, step: int) -> None:
        """Write a number that a client logged, below the client's name, over its own steps."""
        if client not in self._clients:
            self._run.define_metric(f"{client}/*", step_metric=f"{client}/step")
            self._clients.add(client)
        self._run.log({f"{client}/{name}": value, f"{client}/step": step})

    def close(self, state: str) -> None:
        self._run.finish(exit_code=0 if state in ("finished", "stopped") else 1)


def _id(file: Path) -> str:
    if not file.exists():
        text = json.dumps({"id": secrets.token_hex(5)})
        save_atomically(file, lambda opened: opened.write(text.encode()))
    kept: str = json.loads(file.read_text())["id"]
    return kept
