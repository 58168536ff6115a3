"""Stages in files of another layout, and their conversion to exports.

All stages are checked before the first is read. Each is read, written and released before the next,
so the largest determines the peak of memory.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from unclip_jax.core import config
from unclip_jax.core.checks import UserError
from unclip_jax.core.types import Params
from unclip_jax.handoff.export import write_export
from unclip_jax.handoff.manifest import Manifest
from unclip_jax.weight_files import tensor_table
from unclip_jax.weight_files.tensor_source import TensorSource
from unclip_jax.weight_files.tensor_table import Entry


@dataclasses.dataclass(frozen=True)
class ConvertedStage:
    """One stage of another layout, ready to be read.

    Attributes:
        name: name of its folder in a run, such as "upsampler_256".
        stage: kind of stage.
        config: the stage's config as plain data.
        facts: further fields of its manifest.
        source: its tensors.
        entries: the table from tensors to parameters.
        abstract: shapes of the parameters.
        requires: fields that its manifest must contain.
        identity: manifest field that identifies its parameters.
    """

    name: str
    stage: str
    config: Mapping[str, Any]
    facts: Mapping[str, Any]
    source: TensorSource
    entries: Sequence[Entry]
    abstract: Params
    requires: Sequence[str] = ()
    identity: str | None = None

    def check(self) -> None:
        """Checks that the tensors match the parameters of the stage exactly.

        Raises:
            UserError: they do not; lists every tensor that differs.
        """
        tensor_table.check(self.source, self.entries, self.abstract)

    def params(self, dtype: str = "float32") -> dict[str, Any]:
        """Reads all parameters."""
        return tensor_table.fill(self.source, self.entries, self.abstract, dtype=dtype)


@dataclasses.dataclass(frozen=True)
class Provenance:
    """Origin and terms of weights, for the manifests.

    Attributes:
        data: names of the files, and the training data if known.
        licence: terms of the weights, which remain the authors'.
        size: name of the size.
    """

    data: str
    licence: str
    size: str = "imported"


def write_run(
    parts: Sequence[ConvertedStage],
    out: pathlib.Path,
    *,
    tokenizer_dir: pathlib.Path,
    tokenizer_hash: str,
    origin: Provenance,
    clip_id: str | None = None,
    dtype: str = "float32",
    begin: Callable[[str], None] = lambda name: None,
) -> dict[str, Manifest]:
    """Writes one export per stage into a run directory: OUT/NAME/export.

    Args:
        parts: stages in the order of the cascade.
        out: the run directory.
        tokenizer_dir: folder of the tokenizer that they share.
        tokenizer_hash: hash of that tokenizer.
        origin: origin and terms of the weights.
        clip_id: identity of the CLIP that the stages belong to, if none of them is a CLIP.
        dtype: "float32" or "bfloat16".
        begin: called with the name of every stage before it is read.

    Returns:
        The manifests by name.

    Raises:
        UserError: tensors do not fit (before anything is written), a folder cannot be written, or
            stages lack their CLIP.
    """
    for part in parts:
        part.check()
    written: dict[str, Manifest] = {}
    identities: dict[str, str | None] = {"text_encoder_id": None, "dvae_id": None}
    for part in parts:
        if clip_id is None and "clip_id" in part.requires:
            raise UserError(
                f"the {part.stage} comes without its CLIP; give the CLIP's export with --clip."
            )
        begin(part.name)
        text = "tokenizer_hash" in part.requires
        shared = {"tokenizer_hash": tokenizer_hash, "clip_id": clip_id} if text else {}
        if "text_encoder_id" in part.requires and identities["text_encoder_id"] is None:
            raise UserError(
                f"the {part.name} comes without its text encoder; leave text_encoder among the "
                "stages to convert."
            )
        shared |= {name: value for name, value in identities.items() if name in part.requires}
        card = Manifest(
            stage=part.stage,
            size=origin.size,
            step=0,
            config=config.as_dict(part.config),
            data=origin.data,
            licence=origin.licence,
            **{**shared, **part.facts},
        )
        manifest = write_export(
            out / part.name / "export",
            params=part.params(dtype),
            manifest=card,
            tokenizer_dir=tokenizer_dir if text else None,
            identity=part.identity,
            dtype=dtype,
        )
        clip_id = manifest.clip_id or clip_id
        identities = {name: getattr(manifest, name) or i for name, i in identities.items()}
        written[part.name] = manifest
    return written
