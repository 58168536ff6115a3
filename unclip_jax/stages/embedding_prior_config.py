"""The configuration of the prior between two embedding spaces, and its batch fields."""

import dataclasses
import math

from unclip_jax.core.batch import BatchSpec, Field
from unclip_jax.core.checks import UserError, in_range, one_of
from unclip_jax.discrete.categorical import CodeSamplingConfig
from unclip_jax.fitting import linear_fit
from unclip_jax.models.condition_encoder import EncoderConfig
from unclip_jax.models.condition_tokens import ConditionConfig
from unclip_jax.models.embedding_prior import EmbeddingPriorConfig
from unclip_jax.objectives import gaussian
from unclip_jax.objectives.gaussian import DiffusionConfig, SamplingConfig

METHODS = ("diffusion", "autoregressive", "mlp", "ridge")
SCALINGS = ("unit", "standardised", "raw")
TARGET = "y"
SUBJECT = "subject"
ENCODED = "encoded"  # name of the condition of the encoder's output


@dataclasses.dataclass(frozen=True)
class EmbeddingPriorStageConfig:
    """A prior between two embedding spaces and the settings of its training and sampling.

    Attributes:
        model: conditions, target and network.
        diffusion: chain and prediction target.
        sampling: default sampling; "autoregressive" reads guidance_scale alone.
        method: "diffusion"; "autoregressive", which samples codes of principal components (unCLIP,
            section 2.2); or a baseline, "mlp" or "ridge".
        scaling: form of the target: "unit" (norm 1, as CLIP's embeddings are compared), centred and
            divided by one deviation; "standardised" per dimension; or "raw".
        encoder: encodes the vector conditions to more tokens for the prior.
        drop_all: fraction of examples whose conditions are all dropped, for guidance.
        drop_each: fraction of examples that drop a condition, for each one if there are several.
        temperature: divides the logits of codes; 0 = always the most probable.
        top_p: codes outside the smallest set with this probability are never sampled; 1 = all.
    """

    model: EmbeddingPriorConfig
    diffusion: DiffusionConfig = DiffusionConfig(target="x_0")
    sampling: SamplingConfig = SamplingConfig()
    method: str = "diffusion"
    scaling: str = "unit"
    encoder: EncoderConfig = EncoderConfig()
    drop_all: float = 0.1
    drop_each: float = 0.0
    temperature: float = 1.0
    top_p: float = 1.0

    def __post_init__(self):
        one_of("config.model.method", self.method, METHODS)
        one_of("config.model.scaling", self.scaling, SCALINGS)
        for name in ("drop_all", "drop_each"):
            in_range(f"config.model.{name}", getattr(self, name), 0.0, 1.0)
        if self.method == "ridge" and not self.model.ridge:
            raise UserError(
                "config.model.method is 'ridge', but config.model.model.ridge is False; set it to "
                "True, or choose another method."
            )
        if self.method != "mlp" and self.model.ridge:
            linear_fit.check_size(self.features, math.prod(self.model.target))
        if self.scaling == "unit" and len(self.model.target) != 1:
            raise UserError(
                "config.model.scaling is 'unit', which is for vectors; use 'standardised' or 'raw' "
                "for sequences."
            )
        if self.encoder.width and (not self.generative or self.model.dalle2_pytorch is not None):
            raise UserError(
                "config.model.encoder is for methods 'diffusion' and 'autoregressive' and networks "
                "of this project; set config.model.encoder.width to 0."
            )
        if self.encoder.width and not self.encoded_features:
            raise UserError(
                "config.model.encoder encodes vectors, and no condition is a vector; set "
                "config.model.encoder.width to 0."
            )
        if self.method == "autoregressive":
            self._check_codes()
        self.check_guidance(self.sampling)

    def _check_codes(self) -> None:
        """Rejects targets that have no codes."""
        count, dim = self.model.codec.components, math.prod(self.model.target)
        if (
            self.model.ragged
            or self.model.dalle2_pytorch is not None
            or dim > linear_fit.MOST_FEATURES
        ):
            raise UserError(
                f"config.model.method is 'autoregressive', which takes targets of one length and "
                f"at most {linear_fit.MOST_FEATURES:,} numbers, here "
                f"{'ragged ' if self.model.ragged else ''}{list(self.model.target)}, and the "
                "network of this project; use 'diffusion'."
            )
        if count > dim:
            raise UserError(
                f"config.model.model.codec.components is {count}, but targets have {dim} "
                f"dimensions; keep at most {dim}."
            )
        self.code_sampling(self.sampling)

    def code_sampling(self, sampling: SamplingConfig) -> CodeSamplingConfig:
        """Returns the settings of sampling codes, with the guidance of `sampling`."""
        return CodeSamplingConfig(
            guidance_scale=sampling.guidance_scale, temperature=self.temperature, top_p=self.top_p
        )

    @property
    def generative(self) -> bool:
        """True if it samples, False if it is a regression."""
        return self.method in ("diffusion", "autoregressive")

    @property
    def encoded_features(self) -> int:
        """Number of features of all vector conditions."""
        return sum(one.shape[0] for one in self.model.conditions if not one.sequence)

    @property
    def network(self) -> EmbeddingPriorConfig:
        """Config of the network, which reads the tokens of the encoder as one more condition."""
        if not self.encoder.width:
            return self.model
        tokens = ConditionConfig(ENCODED, (self.encoder.tokens, self.encoder.width))
        return dataclasses.replace(self.model, conditions=(*self.model.conditions, tokens))

    @property
    def fits_ridge(self) -> bool:
        """True if a ridge regression is part of the model."""
        return self.model.ridge and self.method != "mlp"

    @property
    def features(self) -> int:
        """Number of features of the ridge regression."""
        return sum(ridge_width(one) for one in self.model.conditions)

    def check_guidance(self, sampling: SamplingConfig) -> None:
        """Rejects guidance without drops, or of a regression.

        Raises:
            UserError: `drop_all` is 0 and the scale is not 1, or the method is a regression.
        """
        if not self.generative and sampling.guidance_scale != 1.0:
            raise UserError(
                f"guidance_scale is for priors, not for method {self.method!r}; leave it out."
            )
        self.diffusion.check_sampling(sampling)
        gaussian.check_guidance(
            sampling.guidance_scale, drops={"config.model.drop_all": self.drop_all}
        )


def batch_spec(cfg: EmbeddingPriorStageConfig) -> BatchSpec:
    """Returns the batch fields: all conditions, the target "y", and masks of ragged sequences."""
    spec: dict[str, Field] = {}
    for one in cfg.model.conditions:
        ids = (one.shape, "int32", -1, one.vocab_size - 1)
        spec[one.name] = Field(*ids) if one.vocab_size else Field(one.shape, "float32")
        if one.ragged:
            spec[f"{one.name}_mask"] = Field(one.shape[:1], "bool")
    if cfg.encoder.width and cfg.encoder.subjects > 1:
        spec[SUBJECT] = Field((), "int32", 0, cfg.encoder.subjects - 1, cfg.encoder.labels)
    spec[TARGET] = Field(cfg.model.target, "float32")
    if cfg.model.ragged:
        spec[f"{TARGET}_mask"] = Field(cfg.model.target[:1], "bool")
    return spec


def resolve_fields(cfg: EmbeddingPriorStageConfig, fields: BatchSpec) -> EmbeddingPriorStageConfig:
    """Returns `cfg` with the conditions and the target that a data set has.

    Args:
        cfg: config, with a network of any shape.
        fields: fields of the data set.
    """
    conditions = tuple(
        ConditionConfig(
            name=name,
            shape=tuple(field.shape),
            vocab_size=int(field.high or 0) + 1 if field.dtype == "int32" else 0,
            ragged=f"{name}_mask" in fields,
        )
        for name, field in fields.items()
        if name not in (TARGET, SUBJECT) and not name.endswith("_mask")
    )
    model = dataclasses.replace(
        cfg.model,
        conditions=conditions,
        target=tuple(fields[TARGET].shape),
        ragged=f"{TARGET}_mask" in fields,
    )
    encoder = cfg.encoder
    if SUBJECT in fields and encoder.width:
        subjects, labels = int(fields[SUBJECT].high or 0) + 1, fields[SUBJECT].labels
        encoder = dataclasses.replace(encoder, subjects=subjects, labels=labels)
    return dataclasses.replace(cfg, model=model, encoder=encoder)


def is_flat(one: ConditionConfig) -> bool:
    """True if the tokens of a sequence are separate features of the ridge regression."""
    return not one.ragged and math.prod(one.shape) <= linear_fit.MOST_FEATURES


def ridge_width(one: ConditionConfig) -> int:
    """Returns the number of features of a condition in the ridge."""
    if one.vocab_size:
        return 0
    return math.prod(one.shape) if is_flat(one) or not one.sequence else one.shape[-1]
