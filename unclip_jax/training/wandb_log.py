"""Metrics in Weights & Biases, besides metrics.jsonl, for runs that request it.

The extra `wandb` installs the library. With WANDB_MODE=offline it writes only to the workdir;
otherwise it sends the metrics to its server.
"""

import importlib
import json
import math
import pathlib
import uuid
from collections.abc import Mapping
from typing import Any

import jax

from unclip_jax.core import json_text
from unclip_jax.core.checks import UserError
from unclip_jax.core.files import read_small, write_atomically

FILE = "wandb.json"  # the id of the W&B run, which a resumed run continues


class WandbLog:
    """A run in Weights & Biases; does nothing without a project and in processes other than 0."""

    def __init__(self, folder: pathlib.Path, *, project: str, name: str, facts: Mapping[str, Any]):
        """Starts a run in W&B, or continues that of the workdir.

        Args:
            folder: the workdir.
            project: PROJECT or ENTITY/PROJECT; "" = none.
            name: name of the run.
            facts: JSON-ready settings that are shown with it.

        Raises:
            UserError: the library is missing, or cannot start a run.
        """
        self._run: Any = None
        if not project or jax.process_index() > 0:
            return
        try:
            wandb: Any = importlib.import_module("wandb")
        except ImportError:
            raise UserError(
                f"config.train.wandb is {project!r}, but the library is missing; pip install "
                "'unclip_jax[wandb]', or leave the setting empty."
            ) from None
        entity, _, project = project.rpartition("/")
        options = {"project": project, "entity": entity or None, "name": name, "dir": folder}
        options |= {"id": _identity(folder), "resume": "allow", "config": dict(facts)}
        try:
            self._run = wandb.init(**options, settings=wandb.Settings(console="off"))
        except wandb.errors.Error as error:
            reason = str(error).strip().split("\n")[0].rstrip(".")
            raise UserError(
                f"cannot start a run in Weights & Biases ({reason}); log in with `wandb login`, or "
                "set WANDB_MODE=offline."
            ) from error
        self._run.define_metric("*", step_metric="step")  # a continued run repeats some steps

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Writes the finite numbers of one step."""
        if self._run is not None:
            finite = {name: float(x) for name, x in values.items() if math.isfinite(x)}
            self._run.log({"step": step, **finite})

    def close(self) -> None:
        """Ends the run."""
        if self._run is not None:
            self._run.finish()


def _identity(folder: pathlib.Path) -> str:
    """Returns the id of the workdir's run in W&B, which is chosen once."""
    path = folder / FILE
    if not path.exists():
        write_atomically(path, json.dumps({"id": uuid.uuid4().hex[:12]}))
    advice = "delete it to start another run there."
    stored = json_text.parse_object(read_small(path), where=str(path), advice=advice)
    if not isinstance(stored.get("id"), str):
        raise UserError(f"{path} holds no id of a run; {advice}")
    return stored["id"]
