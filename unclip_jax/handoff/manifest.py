"""The manifest of an exported stage, and the check that the stages of a chain fit together.

Stages are trained apart and may come from different people and months. A prior that was trained for
another CLIP would sample nonsense without any error; the manifests make it an error that names the
field. Which fields a stage needs and shares is declared by the stage and passed in by the caller.
"""

import dataclasses
import datetime
import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from unclip_jax.core import config as typed
from unclip_jax.core import digests, json_text
from unclip_jax.core.checks import UserError
from unclip_jax.version import __version__

FORMAT_VERSION = 2
READABLE = (1, 2)  # version 1 had no digests
# Entries of the file beside the fields of `Manifest`: the digest of every other file of the export
# by its path, and the digest of all entries of the manifest but itself.
FILES, DIGEST = "files", "digest"
TOKENIZED = "+"  # joins the identities of parameters and of the tokenizer that they read through
ADVICE = "copy the export again, or export the stage again."


@dataclasses.dataclass(frozen=True, kw_only=True)
class Manifest:
    """The contents of an export, and the facts that other stages must match.

    Attributes:
        stage: kind of stage, a name in the registry of stages.
        size: name of the experiment's size, such as "shapes" or "paper".
        step: optimiser steps behind these parameters.
        config: JSON-ready typed configs of the stage (model, diffusion, drops, sampling).
        clip_id: identity of the CLIP whose latents the stage uses; a CLIP export's own identity.
        embed_dim: length z of a CLIP embedding.
        embed_stats: statistics of the embeddings trained on, such as {"mean_norm": 1.0}.
        tokenizer_hash: identity of the tokenizer whose ids the stage reads.
        z_scale: factor on unit-norm embeddings as the prior diffuses them (17.2 at z = 1024).
        z_scale_in: factor that a decoder applies to unit-norm z_img; independent of `z_scale`.
        embedding: form of z_img between prior and decoder: "unit" (norm 1) or "raw" (as CLIP
            computes it).
        text_encoder_id: identity of the language model whose features the stage reads; a text
            encoder's own identity. It is that of the parameters, "+", and `tokenizer_hash`, which
            covers what is done to captions first (lower case, stripping); of the parameters alone
            in exports of earlier versions.
        text_width: width of these features.
        image_size: side in pixels of the images that the stage generates; None = it generates none.
        low_res_size: side in pixels of the images that it enlarges; None = it enlarges none.
        dvae_id: identity of the discrete VAE whose codes the stage uses; a discrete VAE's own.
        grid: side of its grid of codes.
        code_count: number of codes.
        data: the training data, in words.
        inputs: digests of what the stage was trained on: the records ("data"), the tokenizer, the
            CLIP behind the embeddings.
        licence: terms of these parameters, where the user states them.
        parameters: number of scalars; `write_export` fills it in.
        code_version: version of unclip_jax that wrote the export.
        created: ISO date.
        format_version: version of this format.
    """

    stage: str
    size: str
    step: int
    config: dict[str, Any]
    clip_id: str | None = None
    embed_dim: int | None = None
    embed_stats: dict[str, Any] | None = None
    tokenizer_hash: str | None = None
    z_scale: float | None = None
    z_scale_in: float | None = None
    embedding: str | None = None
    text_encoder_id: str | None = None
    text_width: int | None = None
    image_size: int | None = None
    low_res_size: int | None = None
    dvae_id: str | None = None
    grid: int | None = None
    code_count: int | None = None
    data: str = ""
    inputs: dict[str, Any] | None = None
    licence: str = ""
    parameters: int = 0
    code_version: str = __version__
    created: str = dataclasses.field(default_factory=lambda: datetime.date.today().isoformat())
    format_version: int = FORMAT_VERSION


def require(manifest: Manifest, fields: Sequence[str]) -> None:
    """Rejects a manifest that leaves required fields open.

    Args:
        manifest: of an export that is written or read.
        fields: the names that its stage requires.

    Raises:
        UserError: naming the fields that are None.
    """
    absent = [name for name in fields if getattr(manifest, name) is None]
    if absent:
        raise UserError(
            f"the manifest of a {manifest.stage} lacks {', '.join(absent)}; "
            "later stages rely on it, so export the stage again with it set."
        )


def to_json(manifest: Manifest, files: Mapping[str, str] | None = None) -> str:
    """Returns the manifest as indented JSON text with its digest, ending in a newline.

    Args:
        manifest: the manifest.
        files: digest of every other file of the export, by its path.

    Raises:
        UserError: `config` or `embed_stats` holds a value that JSON cannot express.
    """
    fields = {**typed.as_dict(manifest), FILES: dict(files or {})}
    fields["format_version"] = FORMAT_VERSION
    try:
        sealed = {**fields, DIGEST: digests.of_json(fields)}
        return json.dumps(sealed, indent=2, allow_nan=False) + "\n"
    except (TypeError, ValueError) as error:
        raise UserError(
            f"the manifest of this {manifest.stage} is not plain JSON ({error}); "
            "config and embed_stats may hold only strings, finite numbers, lists and dicts."
        ) from None


def from_json(text: str | bytes, *, where: str) -> Manifest:
    """Reads a manifest; `where` names the file in messages.

    Raises:
        UserError: broken JSON, another format version, an unknown or missing field, or entries
            that were changed after the export.
    """
    fields = _entries(text, where=where)
    facts = {name: value for name, value in fields.items() if name not in (FILES, DIGEST)}
    return typed.build(Manifest, facts, where=where)


def file_digests(text: str | bytes, *, where: str) -> dict[str, str] | None:
    """Returns the digest of every file that a manifest lists; None for version 1, which has none.

    Raises:
        UserError: as `from_json`, or the list is damaged.
    """
    fields = _entries(text, where=where)
    if FILES not in fields and fields["format_version"] == 1:
        return None
    files = fields.get(FILES)
    if not isinstance(files, dict) or not all(isinstance(x, str) for x in files.values()):
        raise UserError(f"{where} has no digests of its files; {ADVICE}")
    return files


def _entries(text: str | bytes, *, where: str) -> dict[str, Any]:
    """Parses a manifest and compares its digest."""
    fields = json_text.parse_object(text, where=where, advice=ADVICE)
    version = fields.get("format_version")
    if type(version) is not int or version not in READABLE:
        raise UserError(
            f"{where} has format_version {version!r}; this unclip_jax {__version__} reads "
            f"{' and '.join(map(str, READABLE))}. Use the version that wrote it "
            f"({fields.get('code_version')!r}) or export the stage again."
        )
    if DIGEST in fields or version > 1:
        covered = {name: value for name, value in fields.items() if name != DIGEST}
        if not digests.skipped() and fields.get(DIGEST) != digests.of_json(covered):
            raise UserError(
                f"{where} is damaged or was changed: its digest does not fit its entries; {ADVICE}"
            )
    return fields


def with_tokenizer(params_id: str, tokenizer_hash: str | None) -> str:
    """Returns the identity of parameters that read the token ids of one tokenizer."""
    return f"{params_id}{TOKENIZED}{tokenizer_hash}" if tokenizer_hash else params_id


def same_identity(one: Any, other: Any) -> bool:
    """Returns True if two values of a manifest field agree.

    An identity without a tokenizer, from an earlier version, agrees with those of the same
    parameters.
    """
    if (
        isinstance(one, str)
        and isinstance(other, str)
        and (TOKENIZED in one) != (TOKENIZED in other)
    ):
        return one.partition(TOKENIZED)[0] == other.partition(TOKENIZED)[0]
    return one == other


def short_identity(identity: Any) -> str:
    """Returns the beginnings of an identity's parts, for messages."""
    return TOKENIZED.join(part[:12] for part in str(identity).split(TOKENIZED))


class Link(NamedTuple):
    """One stage of a chain.

    Attributes:
        manifest: of its export.
        shared: fields that must agree with those of every other stage that shares them.
    """

    manifest: Manifest
    shared: Sequence[str]


def check_chain(chain: Sequence[Link]) -> None:
    """Rejects a chain of stages (in the order in which they run) unless all fit together.

    Every pair is compared, not only neighbours: a CLIP and a decoder must agree even if the prior
    between them does not state a field. Fields that one of a pair leaves open (None) are not
    compared. Images pass from each stage that generates them to the next one that enlarges them.

    Raises:
        UserError: naming the first field that differs and both values.
    """
    for upstream, downstream in itertools.combinations(chain, 2):
        _check_shared(upstream, downstream)
    generators = [link.manifest for link in chain if link.manifest.image_size is not None]
    for upstream, downstream in itertools.pairwise(generators):
        _check_sizes(upstream, downstream)


def _check_shared(upstream: Link, downstream: Link) -> None:
    first, second = upstream.manifest, downstream.manifest
    for name in upstream.shared:
        values = getattr(first, name), getattr(second, name)
        if name in downstream.shared and None not in values and not same_identity(*values):
            raise UserError(
                f"the {first.stage} and the {second.stage} do not fit: {name} is {values[0]!r} "
                f"in the {first.stage} and {values[1]!r} in the {second.stage}; use exports "
                f"of one cascade or train the {second.stage} again on this {first.stage}."
            )


def _check_sizes(upstream: Manifest, downstream: Manifest) -> None:
    size, expected = upstream.image_size, downstream.low_res_size
    if size != expected:
        raise UserError(
            f"the {upstream.stage} generates image_size {size} but the {downstream.stage} takes "
            f"low_res_size {expected}; use an upsampler trained from {size} px."
        )
