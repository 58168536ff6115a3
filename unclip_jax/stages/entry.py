"""The declaration of a stage: its role, its conditions, and the functions that build and sample it.

A chain is a list of stages in the order of their roles. Each reads conditions by name and yields
others:

    caption ─► clip ─► z_txt, clip_text ─► prior ─► z_img ─► decoder ─► image ─► upsampler ─► image
    caption ─► text_encoder ─► text_features ─► text_base ─► image ─► upsampler ─► image   (Imagen)
    caption ─────────────────────────────► dalle ─► codes ─► dvae ────► image

A guide is in no chain: its gradient acts on a decoder.

Exports, loading, sampling, planning and training read these declarations; stages are listed nowhere
else.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from jaxtyping import Array

from unclip_jax.core.batch import BatchSpec
from unclip_jax.core.checks import one_of
from unclip_jax.core.stage import Rows, Stage
from unclip_jax.core.types import Batch, Params
from unclip_jax.diffusion.guidance import Denoiser

# In the order of a chain. A chain has one stage per role, except for encoders (of captions) and
# upsamplers, of which it may have several. Guides are in no chain.
ROLES = ("encoder", "prior", "decoder", "upsampler", "guide")
# Condition -> manifest fields that a stage which reads it must have. "caption" is token
# ids of the stage's own tokenizer and context length; "clip_text" is CLIP's features of a caption,
# "text_features" those of a language model; "low_res" is the image of the stage before. Other
# conditions need no field.
CONDITION_FIELDS: Mapping[str, tuple[str, ...]] = {
    "caption": ("tokenizer_hash",),
    "clip_text": ("clip_id", "tokenizer_hash"),
    "text_features": ("text_encoder_id", "text_width"),
    "z_txt": ("clip_id", "embed_dim"),
    "z_img": ("clip_id", "embed_dim"),
    "low_res": ("low_res_size",),
    "codes": ("grid", "code_count"),
}
# Condition -> its batch fields, if not one of the same name.
CONDITION_INPUTS: Mapping[str, tuple[str, ...]] = {
    "caption": ("tokens", "token_mask"),
    "clip_text": ("token_mask", "z_txt", "text_seq"),
    "text_features": ("text_features", "text_mask"),
}
# Manifest fields that stages of one chain must agree on, if they state them. Tokenizers must agree
# only where a stage reads the token ids of another.
SHARED = ("clip_id", "embed_dim", "z_scale", "embedding", "text_encoder_id", "text_width")
SHARED += ("dvae_id", "grid", "code_count")
SHARED_TOKENS = ("tokenizer_hash",)


# (config, params, conditions by name, *, keys, sampling=None) -> the conditions that it yields, by
# name; sampling None = as the config says.
ChainSampler = Callable[..., dict[str, Any]]
# (config, params, conditions by name, *, keys, scale) -> denoiser, guided by `scale`, for timesteps
# that may differ between examples.
ChainDenoiser = Callable[..., Denoiser]


@dataclasses.dataclass(frozen=True, kw_only=True)
class StageEntry:
    """A stage in the registry.

    Attributes:
        name: kind of the stage, as in manifests and experiment files.
        role: place in a chain, one of `ROLES`.
        config: dataclass that types its config.
        make: builds the stage from its config.
        reads: names of the conditions that a stage with this config reads when it samples.
        yields: names of the conditions that it produces.
        sample: runs it in a chain, on the conditions by name.
        sample_fields: batch fields of these conditions, for planning; None = those of training.
        load_size: side of its training images when loaded; None = that of its batches.
        resolve: fills in the part of the config that follows from the training data.
        resolve_fields: fills in the part of the config that follows from the batch fields of the
            data, for stages that are trained on pairs of arrays of any shape; None for others.
        requires: manifest fields that later stages rely on, beyond those of its conditions.
        identity: manifest field of the identity of its parameters, which later stages must match.
        sidecars: condition -> file name in the export and type of its content, for conditions that
            are measured after training.
        denoiser: builds its denoiser from conditions; None = it does not diffuse.
        latent: (config, params, batch) -> the clean samples of a training batch as they are
            diffused; None = it does not diffuse.
        chain: name of the chain that it belongs to, "" for guides; encoders and upsamplers belong
            to all.
        folders: its folders in a run, each with the experiment file of the same name; () = `name`.
    """

    name: str
    role: str
    config: type
    make: Callable[[Any], Stage]
    reads: Callable[[Any], tuple[str, ...]]
    yields: tuple[str, ...]
    sample: ChainSampler
    sample_fields: Callable[[Any], BatchSpec] | None = None
    load_size: Callable[[Any], int] | None = None
    resolve: Callable[[Any, Rows], Any] | None = None
    resolve_fields: Callable[[Any, BatchSpec], Any] | None = None
    requires: tuple[str, ...] = ()
    identity: str | None = None
    sidecars: Mapping[str, tuple[str, type]] = dataclasses.field(default_factory=dict)
    denoiser: ChainDenoiser | None = None
    latent: Callable[[Any, Params, Batch], Array] | None = None
    chain: str = "unclip"
    folders: tuple[str, ...] = ()

    def __post_init__(self):
        one_of("role of a stage", self.role, ROLES)
        if not self.folders:
            object.__setattr__(self, "folders", (self.name,))

    @property
    def paired(self) -> bool:
        """True if it is trained on pairs of arrays, False if on captioned images."""
        return self.resolve_fields is not None

    def required_fields(self, cfg: Any) -> tuple[str, ...]:
        """Returns the manifest fields without which an export cannot be used in a chain."""
        fields = [field for name in self.reads(cfg) for field in CONDITION_FIELDS.get(name, ())]
        return tuple(dict.fromkeys([*fields, *self.requires]))

    def shared_fields(self, cfg: Any) -> tuple[str, ...]:
        """Returns the manifest fields that must agree with those of the other stages of a chain."""
        ids = "clip_text" in (*self.yields, *self.reads(cfg))
        return (*SHARED, *SHARED_TOKENS) if ids else SHARED

    def sample_spec(self, cfg: Any) -> BatchSpec:
        """Returns the batch fields that hold the conditions that it reads."""
        if self.sample_fields is not None:
            return self.sample_fields(cfg)
        spec = self.make(cfg).batch_spec
        names = (field for name in self.reads(cfg) for field in CONDITION_INPUTS.get(name, (name,)))
        return {name: spec[name] for name in names}

    def context(self, cfg: Any) -> int | None:
        """Returns the length of the captions that it reads as its own token ids, if it does."""
        spec = self.make(cfg).batch_spec
        reads = "caption" in self.reads(cfg) and "tokens" in spec
        return spec["tokens"].shape[0] if reads else None

    def training_side(self, cfg: Any) -> int | None:
        """Returns the side to which training images are resized; None if it reads no images."""
        if self.load_size is not None:
            return self.load_size(cfg)
        spec = self.make(cfg).batch_spec
        return spec["image"].shape[0] if "image" in spec else None
