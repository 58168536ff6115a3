"""Writer of compact run directories: every stage's parameters in one safetensors file.

The result is a run directory like any other. The models that are installed with the package
(`handoff.shipped`) have this form.
"""

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from unclip_jax.convert import default_sampling, run_stages
from unclip_jax.convert.model_card import run_card
from unclip_jax.convert.run_stages import ExportedStage
from unclip_jax.core import json_text
from unclip_jax.core.checks import UserError
from unclip_jax.core.files import read_small
from unclip_jax.handoff import load, sidecar
from unclip_jax.handoff.export import TOKENIZER, write_export
from unclip_jax.handoff.manifest import Manifest
from unclip_jax.stages.registry import folder_entry

EVALUATION = "evaluation.json"  # written by `evaluate` and quoted in the card


def write(
    run_dir: pathlib.Path,
    out: pathlib.Path,
    *,
    dtype: str = "float32",
    licence: str = "",
    sampling: Sequence[str] = (),
) -> list[str]:
    """Writes OUT/STAGE/export with `params.safetensors`, and a model card; returns the stages.

    Args:
        run_dir: the run directory; its `evaluation.json`, if any, is copied, unless there is new
            `sampling`.
        out: a new folder.
        dtype: type of the stored parameters, "float32" or "bfloat16"; networks compute in the type
            of their config.
        licence: terms of the parameters, for manifests without any.
        sampling: new sampling defaults, see `default_sampling.change`.

    Raises:
        UserError: stages do not fit each other, a sampling default is invalid, `evaluation.json`
            has another form, `out` exists, or the disk is full.
    """
    stages = default_sampling.change(run_stages.find(run_dir), sampling)
    with run_stages.draft(out) as draft:
        cards = {
            name: _write_stage(stage, draft / name / "export", name, dtype=dtype, licence=licence)
            for name, stage in stages.items()
        }
        evaluation = {} if sampling else _evaluation(run_dir)
        if evaluation:
            text = json.dumps(evaluation, indent=1) + "\n"
            (draft / EVALUATION).write_text(text, encoding="utf-8")
        try:
            card = run_card(cards, evaluation=evaluation, dtype=dtype)
        except (AttributeError, KeyError, TypeError):
            raise UserError(
                f"{run_dir / EVALUATION} is not a result of `evaluate`; evaluate the run again, or "
                "remove the file."
            ) from None
        (draft / "README.md").write_text(card, encoding="utf-8")
    return list(stages)


def _write_stage(
    stage: ExportedStage, out: pathlib.Path, name: str, *, dtype: str, licence: str
) -> Manifest:
    """Writes one export with its tokenizer and additional files."""
    path = stage.path
    has_tokenizer = (load.locate(path) / TOKENIZER).is_dir()
    card = write_export(
        out,
        params=stage.params(load.stored_shapes(path)),
        manifest=dataclasses.replace(stage.card, licence=stage.card.licence or licence),
        tokenizer_dir=load.tokenizer_dir(path) if has_tokenizer else None,
        dtype=dtype,
        layout="safetensors",
    )
    for file, _ in folder_entry(name).sidecars.values():
        if (value := sidecar.read(path, file)) is not None:
            sidecar.write(out, file, value)
    return card


def _evaluation(run_dir: pathlib.Path) -> Mapping[str, Any]:
    path = run_dir / EVALUATION
    if not path.is_file():
        return {}
    return json_text.parse_object(read_small(path), where=str(path), advice="evaluate again.")
