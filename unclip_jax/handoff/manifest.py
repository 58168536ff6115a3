"""The identity card of an exported stage, and the check that cards fit together.

Stages are trained apart and may come from different people and months. A prior made for another
CLIP would sample without any error and draw nonsense; the manifest is what turns that into a
refusal that names the field.
"""

import dataclasses
import datetime
import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any

from unclip_jax.core import config as typed
from unclip_jax.core.checks import UserError, one_of
from unclip_jax.version import __version__

FORMAT_VERSION = 1

# Kind of stage -> the fields its export cannot do without, because a later stage relies on them.
REQUIRED: Mapping[str, tuple[str, ...]] = {
    "clip": ("embed_dim", "tokenizer_hash"),
    "prior": ("clip_id", "embed_dim", "tokenizer_hash", "z_scale"),
    "prior_ar": ("clip_id", "embed_dim", "tokenizer_hash"),
    "decoder": ("clip_id", "embed_dim", "tokenizer_hash", "image_size"),
    "upsampler": ("image_size", "low_res_size"),
}
# Fields that must agree between any two stages that both state them.
SHARED = ("clip_id", "embed_dim", "tokenizer_hash", "z_scale", "embedding")
# Kinds whose output is an image that an upsampler may take.
DRAWS = ("decoder", "upsampler")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Manifest:
    """What an export holds and what it fits.

    Attributes:
        stage: kind of stage: "clip", "prior", "prior_ar", "decoder" or "upsampler".
        size: name of the experiment's size, such as "shapes" or "paper".
        step: optimiser steps behind these parameters.
        config: JSON-ready typed configs of the stage (model, diffusion, drops, sampling).
        clip_id: identity of the CLIP whose latents the stage uses; a CLIP export's own identity.
        embed_dim: length z of a CLIP embedding.
        embed_stats: statistics of the embeddings trained on, such as {"mean_norm": 1.0}.
        tokenizer_hash: identity of the tokenizer whose ids the stage reads.
        z_scale: factor on unit-norm embeddings as the prior diffuses them (17.2 at z = 1024).
        z_scale_in: factor that a decoder puts on the unit-norm z_img it is handed; its own affair,
            so it need not be the prior's.
        embedding: how a prior gives z_img and a decoder takes it: "unit" (norm 1) or "raw" (as CLIP
            gives it).
        image_size: side of the images the stage draws, in pixels.
        low_res_size: side of the images an upsampler starts from, in pixels.
        data: what it was trained on, in words.
        licence: terms of these parameters, where the user states them.
        parameters: number of scalars; `write_export` fills it in.
        code_version: version of unclip_jax that wrote the export.
        created: ISO date.
        format_version: version of this record.
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
    image_size: int | None = None
    low_res_size: int | None = None
    data: str = ""
    licence: str = ""
    parameters: int = 0
    code_version: str = __version__
    created: str = dataclasses.field(default_factory=lambda: datetime.date.today().isoformat())
    format_version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        one_of("stage", self.stage, REQUIRED)
        absent = [name for name in REQUIRED[self.stage] if getattr(self, name) is None]
        if absent:
            raise UserError(
                f"the manifest of a {self.stage} lacks {', '.join(absent)}; "
                "later stages rely on it, so export the stage again with it set."
            )


def to_json(manifest: Manifest) -> str:
    """The manifest as indented JSON text, ending in a newline.

    Raises:
        UserError: `config` or `embed_stats` holds something JSON cannot say.
    """
    try:
        return json.dumps(typed.as_dict(manifest), indent=2, allow_nan=False) + "\n"
    except (TypeError, ValueError) as error:
        raise UserError(
            f"the manifest of this {manifest.stage} is not plain JSON ({error}); "
            "config and embed_stats may hold only strings, finite numbers, lists and dicts."
        ) from None


def from_json(text: str, *, where: str) -> Manifest:
    """Read a manifest; `where` names the file in messages.

    Raises:
        UserError: broken JSON, another format version, an unknown or missing field.
    """
    try:
        fields = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{where} is not valid JSON ({error}); export the stage again.") from None
    if not isinstance(fields, dict):
        raise UserError(f"{where} holds {type(fields).__name__}; expected an object of fields.")
    version = fields.get("format_version")
    if version != FORMAT_VERSION:
        raise UserError(
            f"{where} has format_version {version!r}; this unclip_jax {__version__} reads "
            f"{FORMAT_VERSION}. Use the version that wrote it ({fields.get('code_version')!r}) "
            "or export the stage again."
        )
    return typed.build(Manifest, fields, where=where)


def check_pair(upstream: Manifest, downstream: Manifest) -> None:
    """Refuse two stages of which the first feeds the second, unless they fit.

    Fields that either of them leaves open (None) are not compared, except that image sizes are
    compared exactly where pixels are handed over.

    Raises:
        UserError: naming the field that differs and both values.
    """
    _check_shared(upstream, downstream)
    if upstream.stage in DRAWS and downstream.stage == "upsampler":
        _check_sizes(upstream, downstream)


def check_chain(manifests: Sequence[Manifest]) -> None:
    """Refuse a chain of stages (in the order in which they feed each other) unless all fit.

    Every pair is compared, not only neighbours: a CLIP and a decoder must agree even when the
    prior between them is silent about something. Pixels pass only between drawing neighbours.

    Raises:
        UserError: naming the first field that differs and both values.
    """
    ranks = [list(REQUIRED).index(manifest.stage) for manifest in manifests]
    if ranks != sorted(ranks):
        names = ", ".join(manifest.stage for manifest in manifests)
        raise UserError(f"stages come in the order {names}; expected {', '.join(REQUIRED)}.")
    for upstream, downstream in itertools.combinations(manifests, 2):
        _check_shared(upstream, downstream)
    drawing = [manifest for manifest in manifests if manifest.stage in DRAWS]
    for upstream, downstream in itertools.pairwise(drawing):
        _check_sizes(upstream, downstream)


def _check_shared(upstream: Manifest, downstream: Manifest) -> None:
    for name in SHARED:
        ours, theirs = getattr(upstream, name), getattr(downstream, name)
        if None not in (ours, theirs) and ours != theirs:
            raise UserError(
                f"the {upstream.stage} and the {downstream.stage} do not fit: {name} is {ours!r} "
                f"in the {upstream.stage} and {theirs!r} in the {downstream.stage}; use exports "
                f"of one cascade or train the {downstream.stage} again on this {upstream.stage}."
            )


def _check_sizes(upstream: Manifest, downstream: Manifest) -> None:
    drawn, taken = upstream.image_size, downstream.low_res_size
    if drawn != taken:
        raise UserError(
            f"the {upstream.stage} draws image_size {drawn} but the upsampler takes low_res_size "
            f"{taken}; use an upsampler trained from {drawn} px."
        )
