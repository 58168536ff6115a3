"""Configs from the command line: an experiment file, its size, and overrides of any key.

    --config=prior:shapes --config.optim.learning_rate=3e-4

Every key that an experiment can have may be overridden, even if its file does not mention it; the
value is read as the type that the key has. A file without a model takes that of the export that
`init_from` names, whose stage it trains on (experiments/finetune.py).
"""

import dataclasses
import pathlib
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_dict, config_flags

from unclip_jax.core.checks import UserError, suggest
from unclip_jax.experiment import files
from unclip_jax.experiment.config import Experiment, from_config, unchecked
from unclip_jax.handoff import load as handoff
from unclip_jax.handoff import remote
from unclip_jax.handoff.export import TOKENIZER
from unclip_jax.handoff.manifest import Manifest
from unclip_jax.inference.load import stage_config
from unclip_jax.stages.registry import folder_entry, stage_entry

INIT = "--config.init_from="


def read(spec: str, *, overrides: Sequence[str] = ()) -> Experiment:
    """Returns the experiment that `spec` names, with overrides applied.

    Args:
        spec: NAME, FILE.py, NAME:SIZE or FILE.py:SIZE (see files.py).
        overrides: arguments of the form --config.KEY.KEY=VALUE.

    Raises:
        UserError: no such file, size or key, or a value of the wrong type.
    """
    return from_config(read_config(spec, overrides=overrides))


def list_keys(spec: str, *, overrides: Sequence[str] = ()) -> list[str]:
    """Returns every key of an experiment with its value, as it would be overridden.

    Raises:
        UserError: as `read`.
    """
    return list(_lines(read_config(spec, overrides=overrides).to_dict(), "--config"))


def _lines(tree: Mapping[str, Any], prefix: str) -> Iterator[str]:
    for name, value in sorted(tree.items()):
        if isinstance(value, Mapping):
            yield from _lines(value, f"{prefix}.{name}")
        else:
            yield f"{prefix}.{name}={'' if value is None else value}"


def read_config(spec: str, *, overrides: Sequence[str] = ()) -> ConfigDict:
    """The config of `read`, with every key that the experiment can have.

    Raises:
        UserError: as `read`.
    """
    config = files.get_config(spec)
    if "model" not in config:
        folder_entry(config.to_dict().get("name", ""))
        config = trained_on(config, _init_from(config, overrides, spec), spec=spec)
    config = completed(unchecked(config))
    for argument in overrides:
        _check_key(argument, config)
    values = flags.FlagValues()
    config_flags.DEFINE_config_dict(
        "config", config, flag_values=values, sys_argv=["unclip_jax", *overrides]
    )
    try:
        values(["unclip_jax", *overrides])
    except (flags.Error, ValueError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{reason}; give a value of the key's type.") from None
    return values.config


def trained_on(config: ConfigDict, export: pathlib.Path, *, spec: str) -> ConfigDict:
    """Returns `config` with the settings of an exported stage, and the data as that stage reads it.

    Raises:
        UserError: there is no export, or it is of another stage than that of the run's folder.
    """
    plain, manifest = config.to_dict(), handoff.read_manifest(export)
    entry = folder_entry(plain["name"])
    if manifest.stage != entry.name:
        raise UserError(
            f"{export} is a {manifest.stage}, but {spec} trains a {entry.name}; give the export "
            "of such a stage, or name the stage after the colon."
        )
    data = {**plain["data"], **_data_of(manifest, export)}
    facts = {"stage": entry.name, "model": manifest.config, "init_from": str(export)}
    return ConfigDict({**plain, **facts, "data": data})


def _data_of(manifest: Manifest, export: pathlib.Path) -> dict[str, Any]:
    """Returns the keys of `data` that follow from an exported stage."""
    entry, tokenizer = stage_entry(manifest.stage), handoff.locate(export) / TOKENIZER
    if tokenizer.is_dir():
        handoff.tokenizer_dir(export)  # compares its digests
    model = stage_config(export, manifest, entry)
    spec = entry.make(model).batch_spec
    keys: dict[str, Any] = {"tokenizer": str(tokenizer)} if tokenizer.is_dir() else {}
    if (side := entry.training_side(model)) is not None:
        keys["load_size"] = side
    if not spec.keys() & {"z_img", "z_txt"}:
        keys["embeddings"] = ""
    if "codes" in spec:  # of the discrete VAE of the same run
        dvae = export.parent.parent / "dvae" / "export"
        side = handoff.read_manifest(dvae).image_size
        keys |= {"dvae": str(dvae), "load_size": side}
    if "text_seq" in spec:  # of the CLIP of the same run
        keys["clip"] = str(export.parent.parent / "clip" / "export")
    if "text_features" in spec:
        keys["text_encoder"] = str(export.parent.parent / "text_encoder" / "export")
    return keys


def _init_from(config: ConfigDict, overrides: Sequence[str], spec: str) -> pathlib.Path:
    """Returns the export to train on from; the last override counts."""
    values = [item.removeprefix(INIT) for item in overrides if item.startswith(INIT)]
    export = values[-1] if values else config.to_dict().get("init_from")
    if not export:
        raise UserError(
            f"{spec} has no model of its own; name the export to train on with "
            "--config.init_from=RUN/STAGE/export."
        )
    return remote.local_export(str(export))


def completed(experiment: Experiment) -> ConfigDict:
    """Returns a config with every key that the experiment can have, defaults included."""
    return ConfigDict(_tree(experiment))


def _tree(record: Any) -> dict[str, Any]:
    """Returns the fields of a dataclass as ConfigDict values; None becomes a typed placeholder."""
    hints = typing.get_type_hints(type(record))
    tree = {}
    for field in dataclasses.fields(record):
        value = getattr(record, field.name)
        if dataclasses.is_dataclass(value):
            tree[field.name] = _tree(value)
        elif value is None:
            tree[field.name] = config_dict.placeholder(_inner(hints[field.name]))
        elif type(None) in typing.get_args(hints[field.name]):
            reference = config_dict.placeholder(_inner(hints[field.name]))
            reference.set(value)
            tree[field.name] = reference
        else:
            tree[field.name] = value
    return tree


def _inner(hint: Any) -> type:
    """Returns the type beside None in an optional."""
    (inner,) = [option for option in typing.get_args(hint) if option is not type(None)]
    return inner


def _check_key(argument: str, config: ConfigDict) -> None:
    """Rejects a key that does not exist, and suggests the nearest that does."""
    path, equals, _ = argument.removeprefix("--").partition("=")
    if not equals:
        raise UserError(f"{argument} has no value; write {argument}=VALUE.")
    group: Any = config
    names = path.split(".")[1:]
    for depth, name in enumerate(names):
        where = ".".join(["config", *names[:depth]])
        if not isinstance(group, Mapping | ConfigDict):
            raise UserError(
                f"{where} is a value, not a group; it has no key {name!r}. Override {where}."
            )
        if name not in group:
            raise UserError(f"{where} has no key {name!r}.{suggest(name, list(group))}")
        group = group[name]
    if isinstance(group, ConfigDict):
        raise UserError(f"{path} is a group of keys ({', '.join(group)}); override one of them.")
