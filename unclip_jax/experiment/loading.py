"""From the command line to a config: an experiment file, its size, and overrides of any key.

    --config=experiments/prior.py:shapes --config.optim.learning_rate=3e-4

Every key that an experiment can have may be overridden, whether its file mentions it or not; the
value is read as the type that the key has. A file without a model takes the one of the export that
`init_from` names (experiments/finetune.py).
"""

import argparse
import dataclasses
import importlib.util
import pathlib
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_dict, config_flags

from unclip_jax.core.checks import UserError, suggest
from unclip_jax.core.config import build
from unclip_jax.experiment.config import Experiment, from_config
from unclip_jax.handoff import load as handoff
from unclip_jax.handoff.export import TOKENIZER
from unclip_jax.handoff.manifest import Manifest
from unclip_jax.stages.registry import stage_entry

INIT = "--config.init_from="


def parse_known(
    parser: argparse.ArgumentParser, argv: Sequence[str]
) -> tuple[argparse.Namespace, list[str]]:
    """A command's own arguments, and overrides of its config.

    Raises:
        UserError: an argument that is neither.
    """
    args, rest = parser.parse_known_args(argv)
    for argument in rest:
        if not argument.startswith("--config."):
            raise UserError(f"unknown argument {argument!r}; overrides begin with --config.")
    return args, rest


def read(spec: str, *, overrides: Sequence[str] = ()) -> Experiment:
    """The experiment that `spec` names, with overrides applied.

    Args:
        spec: FILE.py or FILE.py:SIZE.
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
    config = load(spec)
    if "model" not in config:
        config = trained_on(config, _init_from(config, overrides, spec), spec=spec)
    config = completed(from_config(config))
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


def load(spec: str) -> ConfigDict:
    """Run the `get_config` of an experiment file.

    Raises:
        UserError: no such file, or it is no experiment.
    """
    name, _, size = spec.partition(":")
    path = pathlib.Path(name)
    if not path.is_file():
        near = suggest(path.name, [each.name for each in path.parent.glob("*.py")])
        raise UserError(f"there is no experiment file {name!r}.{near}")
    found = importlib.util.spec_from_file_location(f"experiment_{path.stem}", path)
    if found is None or found.loader is None:
        raise UserError(f"{name} is not a Python file; give one like experiments/prior.py.")
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    if not hasattr(module, "get_config"):
        raise UserError(f"{name} defines no get_config(size); see experiments/prior.py.")
    return module.get_config(size) if size else module.get_config()


def trained_on(config: ConfigDict, export: pathlib.Path, *, spec: str) -> ConfigDict:
    """`config` with the settings of an exported stage, and pictures and captions as it reads them.

    Raises:
        UserError: no export there, or one of another kind of stage.
    """
    plain, card = config.to_dict(), handoff.read_manifest(export)
    if card.stage != plain["stage"]:
        raise UserError(
            f"{export} is a {card.stage}, but {spec} trains a {plain['stage']}; give the export "
            "of such a stage, or name the stage after the colon."
        )
    data = {**plain["data"], **_as_read(card, export)}
    return ConfigDict({**plain, "model": card.config, "data": data, "init_from": str(export)})


def _as_read(card: Manifest, export: pathlib.Path) -> dict[str, Any]:
    """Keys of `data` that say how an exported stage reads pictures and captions."""
    entry, tokenizer = stage_entry(card.stage), handoff.locate(export) / TOKENIZER
    model = build(entry.config, card.config, where=f"{export}/manifest.json config")
    spec = entry.make(model).batch_spec
    found: dict[str, Any] = {"tokenizer": str(tokenizer)} if tokenizer.is_dir() else {}
    if card.stage == "upsampler":  # which is trained on crops
        found["load_size"] = model.model.unet.image_size
    elif "image" in spec:
        found["load_size"] = spec["image"].shape[0]
    if "text_seq" in spec:  # of the CLIP beside it
        found["clip"] = str(export.parent.parent / "clip" / "export")
    return found


def _init_from(config: ConfigDict, overrides: Sequence[str], spec: str) -> pathlib.Path:
    """The export to train on from; the last override speaks."""
    given = [each.removeprefix(INIT) for each in overrides if each.startswith(INIT)]
    place = given[-1] if given else config.to_dict().get("init_from")
    if not place:
        raise UserError(
            f"{spec} has no model of its own; name the export to train on with "
            "--config.init_from=RUN/STAGE/export."
        )
    return pathlib.Path(str(place))


def completed(experiment: Experiment) -> ConfigDict:
    """A config with every key that the experiment can have, defaults included."""
    return ConfigDict(_tree(experiment))


def _tree(record: Any) -> dict[str, Any]:
    """Fields of a dataclass as ConfigDict values; a None stays open for its type."""
    hints = typing.get_type_hints(type(record))
    tree = {}
    for field in dataclasses.fields(record):
        value = getattr(record, field.name)
        if dataclasses.is_dataclass(value):
            tree[field.name] = _tree(value)
        elif value is None:
            tree[field.name] = config_dict.placeholder(_inner(hints[field.name]))
        elif isinstance(hints[field.name], types.UnionType):
            reference = config_dict.placeholder(_inner(hints[field.name]))
            reference.set(value)
            tree[field.name] = reference
        else:
            tree[field.name] = value
    return tree


def _inner(hint: Any) -> type:
    """The type beside None in an optional."""
    (inner,) = [option for option in typing.get_args(hint) if option is not type(None)]
    return inner


def _check_key(argument: str, config: ConfigDict) -> None:
    """Refuse a key that does not exist, with the nearest that does."""
    path, equals, _ = argument.removeprefix("--").partition("=")
    if not equals:
        raise UserError(f"{argument} has no value; write {argument}=VALUE.")
    group: Any = config
    names = path.split(".")[1:]
    for depth, name in enumerate(names):
        where = ".".join(["config", *names[:depth]])
        if not isinstance(group, Mapping | ConfigDict):
            raise UserError(f"{where} is a value, not a group; it has no key {name!r}.")
        if name not in group:
            raise UserError(f"{where} has no key {name!r}.{suggest(name, list(group))}")
        group = group[name]
    if isinstance(group, ConfigDict):
        raise UserError(f"{path} is a group of keys ({', '.join(group)}); override one of them.")
