"""The exported stages of a run directory, and folders that appear only when complete."""

import contextlib
import pathlib
import shutil
from collections.abc import Iterator
from typing import NamedTuple

from unclip_jax.core import config as typed
from unclip_jax.core.checks import UserError
from unclip_jax.core.types import Params
from unclip_jax.handoff import load
from unclip_jax.handoff.manifest import Link, Manifest, check_chain
from unclip_jax.stages.registry import folder_entry, run_folders


class ExportedStage(NamedTuple):
    """One export: its path and its manifest."""

    path: pathlib.Path
    card: Manifest

    def params(self, shapes: Params) -> Params:
        """Reads its parameters in their stored type."""
        return load.read_params(self.path, abstract=shapes)


def find(run_dir: pathlib.Path) -> dict[str, ExportedStage]:
    """Returns the stages of a run directory by folder.

    Raises:
        UserError: there are none, or they do not fit each other.
    """
    places = load.find_stages(run_dir, names=run_folders())
    if not places:
        load.find_stages(run_dir, names=run_folders(), required=("clip",))
    stages = {name: ExportedStage(path, load.read_manifest(path)) for name, path in places.items()}
    check_chain([_link(name, stage.card) for name, stage in stages.items()])
    return stages


def _link(name: str, card: Manifest) -> Link:
    entry = folder_entry(name)
    return Link(card, entry.shared_fields(typed.build(entry.config, card.config, where=name)))


@contextlib.contextmanager
def draft(out: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields a folder beside `out` that is renamed to it when it is complete.

    Raises:
        UserError: `out` exists and is not empty, or cannot be written.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists and is not empty; give a new folder.")
    folder = out.with_name(f"{out.name}.tmp")
    shutil.rmtree(folder, ignore_errors=True)
    try:
        folder.mkdir(parents=True)
        yield folder
        if out.is_dir():
            out.rmdir()
        folder.rename(out)
    except OSError as error:
        raise UserError(f"cannot write {out}: {error}; choose another place.") from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)
