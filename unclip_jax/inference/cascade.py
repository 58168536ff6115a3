"""A cascade as data: the stages of one chain in sampling order, each with its typed config.

    caption ─► clip ─► z_txt, clip_text ─► prior ─► z_img ─► decoder ─► image ─► upsampler ─► image
    caption ─► text_encoder ─► text_features ─► imagen_base ─► image ─► upsampler ─► image

Every stage names the conditions that it reads and yields (`stages.entry`), so a chain may have any
encoders, or none: GLIDE is a decoder of captions with upsamplers. A caption is a condition of each
stage that reads token ids, tokenised by that stage's own tokenizer.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp

from unclip_jax.conditioning.captions import TokenIds
from unclip_jax.core.arrays import unit
from unclip_jax.core.checks import UserError
from unclip_jax.core.types import Embedding, Params
from unclip_jax.stages import registry
from unclip_jax.stages.clip import ClipStageConfig
from unclip_jax.stages.entry import StageEntry
from unclip_jax.stages.upsampler import UpsamplerStageConfig
from unclip_jax.tokenization.caption_tokenizer import Tokenizer

# Condition -> the value of a chain that supplies it, where their names differ.
VALUES = {"low_res": "image"}
# Stage -> tokenised captions, for the stages that read token ids.
Captions = dict[str, TokenIds]


@dataclasses.dataclass(frozen=True)
class CascadeStage:
    """One stage of a cascade.

    Attributes:
        name: its folder in a run, and the key of its parameters and captions.
        config: its typed config.
        measurements: conditions from files beside its parameters, such as a variance table, and
            whether its tokenizer has a start token.
    """

    name: str
    config: Any
    measurements: tuple[tuple[str, Any], ...] = ()

    @property
    def entry(self) -> StageEntry:
        """Its declaration in the registry."""
        return registry.folder_entry(self.name)

    @property
    def reads(self) -> tuple[str, ...]:
        """Names of the conditions that it reads."""
        return self.entry.reads(self.config)


@dataclasses.dataclass(frozen=True)
class Cascade:
    """The stages of one chain, in the order in which they sample.

    Raises:
        UserError: a stage reads a condition that no stage before it yields.
    """

    stages: tuple[CascadeStage, ...]

    def __post_init__(self):
        values = {"caption"}
        if not self.has("decoder"):
            values.add("image")  # of the caller, for upsamplers alone
        for stage in self.stages:
            for name in stage.reads:
                if VALUES.get(name, name) not in values:
                    raise UserError(
                        f"the {stage.name} reads {name}, which no stage before it yields (stages: "
                        f"{', '.join(other.name for other in self.stages)}); add the stage that "
                        "does, or use the order of the cascade."
                    )
            values |= set(stage.entry.yields)

    @classmethod
    def of(cls, **configs: Any) -> "Cascade":
        """Returns the cascade of the stages with these configs, in sampling order."""
        return cls(tuple(CascadeStage(name, config) for name, config in configs.items()))

    def replace(self, **configs: Any) -> "Cascade":
        """Returns a copy with other configs for some stages, by name; None removes a stage."""
        stages = (
            dataclasses.replace(stage, config=configs.get(stage.name, stage.config))
            for stage in self.stages
        )
        return Cascade(tuple(stage for stage in stages if stage.config is not None))

    def without_upsamplers(self) -> "Cascade":
        """Returns the cascade up to the decoder."""
        return self.replace(**{stage.name: None for stage in self.of_role("upsampler")})

    def of_role(self, role: str) -> tuple[CascadeStage, ...]:
        """Returns the stages of one role, in order."""
        return tuple(stage for stage in self.stages if stage.entry.role == role)

    def stage(self, role: str) -> CascadeStage:
        """Returns the first stage of a role, or the stage of that name.

        Raises:
            UserError: the cascade has none.
        """
        for stage in self.stages:
            if role in (stage.entry.role, stage.name):
                return stage
        raise UserError(
            f"this cascade has no {role}, which is needed here; its stages are "
            f"{', '.join(stage.name for stage in self.stages)}. Use a run that has one."
        )

    def has(self, role: str) -> bool:
        """Returns True if a stage has this role or name."""
        return any(role in (stage.entry.role, stage.name) for stage in self.stages)

    @property
    def prior_name(self) -> str | None:
        """Name of the prior ("prior" or "prior_ar"); None in a chain without one."""
        return self.stage("prior").name if self.has("prior") else None

    @property
    def clip(self) -> ClipStageConfig:
        """Config of the CLIP."""
        return self.stage("clip").config

    @property
    def prior(self) -> Any:
        """Config of the prior, of its own kind."""
        return self.stage("prior").config

    @property
    def decoder(self) -> Any:
        """Config of the decoder, of its own kind."""
        return self.stage("decoder").config

    @property
    def decoder_sampling(self) -> Any:
        """Exported sampling of the decoder; None for one that decodes codes."""
        return getattr(self.stage("decoder").config, "sampling", None)

    @property
    def base_size(self) -> int:
        """Side of the decoder's images in pixels."""
        return _image_size(self.stage("decoder").config)

    @property
    def upsamplers(self) -> tuple[UpsamplerStageConfig, ...]:
        """Configs of the upsamplers, in order."""
        return tuple(stage.config for stage in self.of_role("upsampler"))

    @property
    def decoder_reads_clip(self) -> bool:
        """True if the decoder reads CLIP's token features."""
        return "clip_text" in self.stage("decoder").reads

    @property
    def decoder_reads_embedding(self) -> bool:
        """True if the decoder reads an embedding of CLIP, which prior and `condition` determine."""
        return bool({"z_img", "z_txt"} & set(self.stage("decoder").reads))

    @property
    def image_size(self) -> int:
        """Side of the final image in pixels."""
        return _image_size(self.stages[-1].config)

    def embedding(self, z: Embedding) -> Embedding:
        """Returns a raw CLIP embedding in the form in which prior and decoder exchange it."""
        decoders = self.of_role("decoder")
        raw = any(getattr(own.config, "embedding", "unit") == "raw" for own in decoders)
        return z if raw else unit(z)

    def upsampler_params(self, params: Mapping[str, Params]) -> list[Params]:
        """Returns the parameters of the upsamplers, in order."""
        return [params[stage.name] for stage in self.of_role("upsampler")]


def _image_size(config: Any) -> int:
    """Returns the side of the images that a stage generates."""
    return getattr(config.model, "unet", config.model).image_size


def check_slots(cascade: Cascade) -> None:
    """Rejects stages that read another number of text features than the text encoder computes.

    Raises:
        UserError: naming the first, and both numbers.
    """
    feature = "text_features"
    encoders = [stage for stage in cascade.stages if feature in stage.entry.yields]
    for stage in cascade.stages:
        if feature not in stage.reads:
            continue
        own = stage.entry.sample_spec(stage.config)[feature].shape[0]
        for encoder in encoders:
            if (context := encoder.entry.context(encoder.config)) != own:
                raise UserError(
                    f"the {encoder.name} computes {context} features per caption, but the "
                    f"{stage.name} reads {own}; convert the text encoder again with "
                    f"--context={own}, or use that of the run that the stage was trained in."
                )


class PlannedStage(NamedTuple):
    """A stage of a chain that has to run, as part of a `plan`.

    Attributes:
        stage: the stage.
        address: labels of its random keys: its role, and its number if it is an upsampler.
        inputs: each condition that it reads -> the value of the chain that supplies it.
        outputs: the values that later stages, or the caller, read.
    """

    stage: CascadeStage
    address: tuple[str | int, ...]
    inputs: Mapping[str, str]
    outputs: tuple[str, ...]


def plan(cascade: Cascade, *, condition: str = "prior", goal: str = "image") -> list[PlannedStage]:
    """Returns the stages that must run to compute a value of the chain, in order.

    Args:
        cascade: the stages.
        condition: origin of the decoder's embedding, as in `SampleOptions`.
        goal: name of the value.
    """
    needed, steps = {goal}, []
    numbers = {stage.name: i for i, stage in enumerate(cascade.of_role("upsampler"))}
    for stage in reversed(cascade.stages):
        if condition == "z_img":
            needed -= {"z_img"}  # the caller has it
        outputs = tuple(name for name in stage.entry.yields if name in needed)
        if not outputs:
            continue
        inputs = {name: VALUES.get(name, name) for name in stage.reads if name != "caption"}
        if stage.entry.role == "decoder" and condition != "prior":
            embeddings = {"z_img", "z_txt"} & inputs.keys()
            inputs |= dict.fromkeys(embeddings, condition)
        needed = needed - set(outputs) | set(inputs.values())
        number = (numbers[stage.name],) if stage.name in numbers else ()
        steps.append(PlannedStage(stage, (stage.entry.role, *number), inputs, outputs))
    return steps[::-1]


def tokenise(
    cascade: Cascade, tokenizers: Mapping[str, Tokenizer], captions: Sequence[str]
) -> Captions:
    """Returns the token ids of captions for each stage that reads them.

    Args:
        cascade: the stages, with their context lengths.
        tokenizers: by name of the stage.
        captions: the texts.
    """
    tokens: Captions = {}
    for stage in cascade.stages:
        if (length := stage.entry.context(stage.config)) is not None:
            ids, mask = tokenizers[stage.name].encode(captions, length=length)
            tokens[stage.name] = TokenIds(jnp.asarray(ids), jnp.asarray(mask))
    return tokens
