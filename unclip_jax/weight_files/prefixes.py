"""Names of tensors as trainers and compilers change them, and a model's own among them.

    module.                      DataParallel, DeepSpeed, open_clip's trainer
    model., net., clip_model.    Lightning and other wrappers
    state_dict., model_state_dict.   dicts in training checkpoints
    _orig_mod., _fsdp_wrapped_module., _checkpoint_wrapped_module.   anywhere in a name
    ema., model_ema., ...        averages of the weights

The prefix is whatever precedes a tensor that the model must have, so that no list of prefixes has
to be complete. Averages are preferred to the weights that they are averages of; every choice and
every tensor that is left out is reported.
"""

import dataclasses
import re
import sys
from collections.abc import Sequence

from unclip_jax.core.checks import UserError, listed
from unclip_jax.weight_files.tensor_source import TensorSource

WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
AVERAGED = re.compile(r"(^|[._])(ema|swa|averaged?|shadow)([._\d]|$)|ema_?model", re.IGNORECASE)


def stripped(source: TensorSource, anchors: Sequence[str]) -> TensorSource:
    """Returns the tensors of one model under its own names.

    Args:
        source: tensors of a file, perhaps under a prefix and among others.
        anchors: names of tensors, one of which the model has; the first that occurs counts.

    Returns:
        The source below the prefix, or `source` where no anchor occurs.

    Raises:
        UserError: there are several models, or two names that differ by a wrapper alone.
    """
    source = _unwrapped(source)
    for anchor in anchors:
        names = [n for n in source.shapes if n == anchor or n.endswith(f".{anchor}")]
        if names:
            return _below(source, sorted(name[: -len(anchor)] for name in names))
    return source


def _unwrapped(source: TensorSource) -> TensorSource:
    """Returns the source without the wrappers' parts of names."""
    names = {name: name for name in source.shapes}
    for wrapper in WRAPPERS:
        names = {name: re.sub(rf"(^|\.){wrapper}\.", r"\1", short) for name, short in names.items()}
    if all(name == short for name, short in names.items()):
        return source
    places = {short: name for name, short in names.items()}
    if len(places) < len(names):
        twice = sorted({short for name, short in names.items() if places[short] != name})
        raise UserError(
            f"{source.where} holds tensors twice, with and without a compiler's prefix: "
            f"{listed(twice)}. Save one of them alone."
        )
    shapes = {short: source.shapes[name] for short, name in places.items()}
    return dataclasses.replace(source, shapes=shapes, read=lambda name: source.read(places[name]))


def _below(source: TensorSource, prefixes: list[str]) -> TensorSource:
    """Returns the tensors below the one of the prefixes to take."""
    prefix = prefixes[0] if len(prefixes) == 1 else _averaged(source.where, prefixes)
    others = [other for other in prefixes if other != prefix]
    part = source.below(prefix).without(
        name
        for name in source.shapes
        if any(other.startswith(prefix) and (prefix + name).startswith(other) for other in others)
    )
    if others:
        _say(f"{source.where} holds several sets of weights; the average, {prefix}*, is taken.")
    elif len(part.shapes) < len(source.shapes):
        left = sorted(name for name in source.shapes if not name.startswith(prefix))
        _say(
            f"{source.where}: {len(left)} tensors that are not of the model, {prefix}*, are left "
            f"out: {listed(left, most=3)}."
        )
    return part


def _averaged(where: str, prefixes: list[str]) -> str:
    """Returns the only one of two prefixes that names an average.

    Raises:
        UserError: there are more, or none is an average.
    """
    averages = [prefix for prefix in prefixes if AVERAGED.search(prefix)]
    if len(averages) != 1 or len(prefixes) != 2:
        names = listed([prefix or "no prefix" for prefix in prefixes], separator=", ")
        raise UserError(
            f"{where} holds {len(prefixes)} sets of weights, under {names}; save the one to "
            "convert alone."
        )
    return averages[0]


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")
