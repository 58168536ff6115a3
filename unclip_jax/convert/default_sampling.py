"""Sampling defaults of exported stages, changed while a run is written again."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

from unclip_jax.convert.run_stages import ExportedStage
from unclip_jax.core import config as typed
from unclip_jax.core.checks import UserError, suggest
from unclip_jax.objectives import gaussian
from unclip_jax.stages.registry import folder_entry

FLAG = "--sampling"


def change(
    stages: Mapping[str, ExportedStage], settings: Sequence[str]
) -> dict[str, ExportedStage]:
    """Returns the stages with other sampling defaults.

    Args:
        stages: stages by folder.
        settings: "STAGE.FIELD=VALUE", such as "decoder.steps=trailing8"; FIELD is a field of the
            stage's config.model.sampling.

    Raises:
        UserError: a setting has another form, names no stage or field, or the stage cannot be
            sampled with its new settings.
    """
    changes: dict[str, dict[str, Any]] = {}
    for setting in settings:
        stage, field, text = _parts(setting)
        if stage not in stages:
            raise UserError(
                f"{FLAG}={setting}: the run has no stage {stage!r}.{suggest(stage, stages)}"
            )
        defaults = _defaults(stage, stages[stage])
        if field not in defaults:
            raise UserError(
                f"{FLAG}={setting}: the sampling of {stage} has no setting {field!r}."
                f"{suggest(field, defaults)}"
            )
        changes.setdefault(stage, {})[field] = _value(text, like=defaults[field])
    return {name: _changed(name, stage, changes.get(name, {})) for name, stage in stages.items()}


def _defaults(name: str, stage: ExportedStage) -> dict[str, Any]:
    """Returns the sampling defaults of a stage, with those that older manifests omit."""
    cfg = typed.build(folder_entry(name).config, stage.card.config, where=name)
    return typed.as_dict(cfg).get("sampling") or {}


def _parts(setting: str) -> tuple[str, str, str]:
    name, _, value = setting.partition("=")
    stage, _, field = name.partition(".")
    if not (stage and field and value):
        raise UserError(
            f"{FLAG} is {setting!r}; expected STAGE.FIELD=VALUE, such as decoder.steps=trailing8."
        )
    return stage, field, value


def _value(text: str, *, like: Any) -> Any:
    """Parses a value; the present one shows whether it is text."""
    if isinstance(like, str):
        return text
    try:
        return json.loads(text)
    except ValueError:
        return text  # the config rejects it with the name of its field


def _changed(name: str, stage: ExportedStage, values: Mapping[str, Any]) -> ExportedStage:
    if not values:
        return stage
    sampling = {**stage.card.config["sampling"], **values}
    config = {**stage.card.config, "sampling": sampling}
    _check(
        typed.check_limits(typed.build(folder_entry(name).config, config, where=name), where=name)
    )
    return stage._replace(card=dataclasses.replace(stage.card, config=config))


def _check(cfg: Any) -> None:
    """Plans the chain of a stage that diffuses, so that an invalid grid is reported.

    Raises:
        UserError: the stage cannot be sampled with these settings.
    """
    if hasattr(cfg, "diffusion"):
        # Which steps a variance table has is checked when it is read.
        sampling = cfg.sampling
        variance = "small" if sampling.variance == "table" else sampling.variance
        gaussian.solver_and_plan(cfg.diffusion, dataclasses.replace(sampling, variance=variance))
