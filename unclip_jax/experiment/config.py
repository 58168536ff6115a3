"""A ConfigDict as one frozen, typed `Experiment`; no other module reads a ConfigDict.

A misspelt key raises with a suggestion. All checks that involve more than one group of keys are
here.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

from ml_collections import ConfigDict

from unclip_jax.core import storage
from unclip_jax.core.checks import UserError, divisible, in_range, positive
from unclip_jax.core.config import as_dict, build
from unclip_jax.core.files import check_local
from unclip_jax.core.stage import Stage
from unclip_jax.pairs.config import PairsConfig
from unclip_jax.parallel.mesh import MeshConfig
from unclip_jax.stages import distillation
from unclip_jax.stages.distillation import DistillConfig
from unclip_jax.stages.entry import StageEntry
from unclip_jax.stages.registry import stage_entry
from unclip_jax.training.config import TrainConfig
from unclip_jax.training.differentiation import check_split
from unclip_jax.training.optimizer import OptimConfig

_PATHS = ("path", "mixture", "embeddings", "tokenizer")  # fields of DataConfig
_EXPORTS = ("clip", "dvae", "text_encoder")
_MAY_BE_URLS = ("path", "mixture", "embeddings", "mixture_embeddings", *_EXPORTS)
_FOLDERS = ("text_features", "codes", "mixture_embeddings")
PAIR_FIELDS = tuple(field.name for field in dataclasses.fields(PairsConfig))
_PAIR_PATHS = ("x", "y", "groups", "subjects", "splits")


@dataclasses.dataclass(frozen=True)
class DataConfig(PairsConfig):
    """The data that batches are read from: pairs of arrays, or captioned images.

    Attributes:
        path: a folder written by `unclip_jax.prepare` or its URL, or SCHEME:LOCATION, such as
            "tfds:NAME" for any TFDS data set; data/sources.py has the schemes.
        mixture: further such data sets; training takes equally many examples from each, while
            validation and the tokenizer are those of `path`.
        mixture_embeddings: folders with their embeddings, in the order of `mixture`, for stages
            that read `embeddings`; all of one CLIP.
        weights: shares of `path` and of each of `mixture` in training, in this order; () = equal.
        train_split: split to train on.
        eval_split: split for the validation loss; "" = none.
        embeddings: folder written by `unclip_jax.embed`; "" for stages that need none.
        clip: export of the CLIP that computed them, for stages that read its token features.
        dvae: export of the discrete VAE, for the stage that is trained on its codes.
        codes: folder with these codes, from `embed codes`; "" = computed for each batch.
        text_encoder: export of the text encoder whose features the stage reads, if it does.
        text_features: folder with these features, from `embed text`; "" = computed for each batch.
        tokenizer: folder with a tokenizer; "" = the one beside the prepared data.
        image_key: TFDS feature with the image.
        caption_key: TFDS feature with the caption.
        load_size: side to which images are resized; an upsampler crops from it.
        flip: mirror half of the images; wrong for captions that name sides.
        empty_captions: share of training captions replaced by the empty one, for stages that read
            frozen features of captions and have no other null.
        bpe_dropout: probability with which merges of a training caption's tokens are skipped, so
            that it is segmented otherwise in every epoch (10 % in DALL-E).
        fast_decode: decode JPEGs at a fraction of their size where that is large enough, in less
            than half of the time; changes pixels a little, and exports state it.
        blur: share of low-res images that are blurred (kernel 3, sigma 0.6).
        group: neighbouring records that stay together when shuffled (hard negatives for CLIP).
        bsr: share of low-res images that go through the BSR degradation instead.
        workers: threads that read and decode, as many examples at once; 16 or more for storage that
            answers slowly.
        processes: decoding processes with `workers` threads each; 0 = none.
        prefetch: batches that are read ahead.
        cache_mb: memory for decoded images, so that a small data set is decoded once.
    """

    path: str = ""
    load_size: int = 64
    train_split: str = "train"
    eval_split: str = "validation"
    embeddings: str = ""
    clip: str = ""
    dvae: str = ""
    codes: str = ""
    text_encoder: str = ""
    text_features: str = ""
    tokenizer: str = ""
    image_key: str = "image"
    caption_key: str = "caption"
    flip: bool = False
    fast_decode: bool = False
    blur: float = 0.5
    group: int = 1
    bsr: float = 0.0
    workers: int = 2
    processes: int = 0
    prefetch: int = 4
    cache_mb: int = 1024
    mixture: tuple[str, ...] = ()
    weights: tuple[float, ...] = ()
    mixture_embeddings: tuple[str, ...] = ()
    empty_captions: float = 0.0
    bpe_dropout: float = 0.0

    def __post_init__(self):
        super().__post_init__()
        positive("config.data.load_size", self.load_size)
        positive("config.data.group", self.group)
        in_range("config.data.blur", self.blur, 0.0, 1.0)
        in_range("config.data.bsr", self.bsr, 0.0, 1.0)
        in_range("config.data.empty_captions", self.empty_captions, 0.0, 1.0)
        in_range("config.data.bpe_dropout", self.bpe_dropout, 0.0, 1.0)
        if self.codes and self.flip:
            raise UserError(
                "config.data.flip is on, but config.data.codes are those of images as they are; "
                "turn one of them off."
            )
        if self.codes and self.mixture:
            raise UserError(
                f"config.data.codes is {self.codes!r}, codes of the images of one data set, but "
                f"config.data.mixture is {list(self.mixture)}; leave codes out, so that they are "
                "computed for each batch, or leave the mixture empty."
            )
        if self.blur and self.bsr:
            raise UserError(
                f"config.data.blur is {self.blur} and config.data.bsr is {self.bsr}; low-res "
                "images are corrupted in one way, so set one of them to 0."
            )

    @property
    def pairs(self) -> PairsConfig:
        """The location and treatment of pairs."""
        return PairsConfig(**{name: getattr(self, name) for name in PAIR_FIELDS})


@dataclasses.dataclass(frozen=True)
class Experiment:
    """One run of one stage.

    Attributes:
        stage: name in `registry.STAGES`.
        name: name of the run's folder and of the export ("upsampler_256").
        size: name of the size in the experiment file.
        model: the stage's own typed config.
        data: where batches come from.
        optim: the optimiser.
        train: lengths, intervals, batch size, seed.
        mesh: devices along each mesh axis.
        rules: sharding table, "dp", "fsdp" or "fsdp_tp".
        init_from: an export whose parameters training starts from; "" = from scratch.
        distill: distillation of `init_from` instead of training on the data alone; None = none.
    """

    stage: str
    name: str
    size: str
    model: Any
    data: DataConfig
    optim: OptimConfig
    train: TrainConfig
    mesh: MeshConfig
    rules: str = "fsdp"
    init_from: str = ""
    distill: DistillConfig | None = None

    @property
    def entry(self) -> StageEntry:
        """The declaration of the stage."""
        return stage_entry(self.stage)

    def build_stage(self) -> Stage:
        """Returns the `Stage` of this experiment."""
        if self.distill is not None:
            return distillation.make(self.entry, self.model, self.distill)
        return self.entry.make(self.model)

    def with_local_exports(self, local_export: Callable[[str], pathlib.Path]) -> "Experiment":
        """Returns this experiment with local copies of the exports that it names by their URLs."""

        def copied(place: str) -> str:
            return str(local_export(place)) if storage.is_url(place) else place

        exports = {name: copied(getattr(self.data, name)) for name in _EXPORTS}
        data = dataclasses.replace(self.data, **exports)
        return dataclasses.replace(self, data=data, init_from=copied(self.init_from))

    def identity(self) -> dict[str, Any]:
        """Returns the facts of the settings that make two runs the same run.

        These are all but devices, lengths, paths and sampling; what lies at the paths belongs to
        the identity by its content, which `training_run.identity` adds.
        """
        facts = {name: as_dict(getattr(self, name)) for name in ("stage", "name", "model", "optim")}
        facts = _without_later(facts, self.stage)
        facts["model"].pop("sampling", None)
        facts["model"].pop("empty_captions", None)  # that of the data
        if self.distill is not None:
            facts["distill"] = as_dict(self.distill)
        data, train = as_dict(self.data), as_dict(self.train)
        free = ("workers", "processes", "prefetch", "cache_mb", "clip", "dvae")
        free += ("codes", "text_encoder", "text_features", "mixture_embeddings")
        free += (*_PATHS, *_PAIR_PATHS)
        paired = self.entry.paired  # other fields do not concern the stage
        facts["data"] = {
            name: value
            for name, value in data.items()
            if name not in free and (name in PAIR_FIELDS) == paired
        }
        for later in (
            "bpe_dropout",
            "weights",
            "fast_decode",
        ):  # which earlier versions did not have
            if not getattr(self.data, later):
                facts["data"].pop(later, None)
        facts["train"] = {k: train[k] for k in ("batch_size", "accumulate", "ema_decay", "seed")}
        return facts

    def identity_by_paths(self) -> dict[str, Any]:
        """Returns the identity that version 0.1.0 wrote, in which inputs are named by paths."""
        facts, data = self.identity(), as_dict(self.data)
        paths = {name: data[name] for name in _PATHS}
        return {**facts, "init_from": self.init_from, "data": {**facts["data"], **paths}}


# Settings that earlier versions did not have, with the values that they behaved by; a run of theirs
# is still the same run.
LATER = {
    "topology": "adm",
    "activation": "silu",
    "attention": "joint",
    "context_norm": "none",
    "residual_scale": 1.0,
    "attention_width": 1,
    "text": None,
    "at": "low_res",
    "schedule": None,
    "adafactor_scale": True,
    "sam_cached": False,
    "decay_steps": 0,
    "diffusion": None,
    "reads_time": False,
    "vqgan": None,
    "start_of_image": True,
    "image_positions": "grid",
    "pad_token": None,
    "head_bias": True,
    "distillation": None,
}


def _without_later(facts: Any, stage: str) -> Any:
    """Returns settings without those of `LATER` that have the value given there."""
    if not isinstance(facts, dict):
        return facts
    later = {**LATER, "drop_text": 0.0} if stage == "upsampler" else LATER
    return {
        name: _without_later(value, stage)
        for name, value in facts.items()
        if name not in later or value != later[name]
    }


def from_config(config: ConfigDict | Mapping[str, Any]) -> Experiment:
    """Types a whole config and runs the checks that involve more than one group of keys.

    Args:
        config: a ConfigDict or a nested mapping as returned by an experiment file.

    Raises:
        UserError: unknown, missing or mistyped keys, or values that do not fit together.
    """
    experiment = unchecked(config)
    _check(experiment)
    return experiment


def unchecked(config: ConfigDict | Mapping[str, Any]) -> Experiment:
    """Types a whole config without the checks that involve more than one group of keys.

    Raises:
        UserError: unknown, missing or mistyped keys.
    """
    plain = config.to_dict() if isinstance(config, ConfigDict) else dict(config)
    if "stage" not in plain:
        raise UserError("config.stage is missing; give it in the experiment file.")
    entry = stage_entry(plain["stage"])
    model = build(entry.config, plain.pop("model", {}), where="config.model")
    return build(Experiment, {**plain, "model": model}, where="config")


def _check_pairs(experiment: Experiment) -> None:
    """Rejects pairs without locations, and labels of subjects that the model does not read."""
    data, model = experiment.data, experiment.model
    data.named()
    if not data.subjects or model.encoder.width or data.repeats == "mean":
        return
    advice = "set config.model.encoder.width, such as to 512, or leave subjects out"
    if not model.generative:
        advice = f"config.model.method {model.method!r} has none, so leave subjects out"
    raise UserError(
        f"config.data.subjects is {data.subjects!r}, but this model has no layers per subject; "
        f"{advice}."
    )


def _check(experiment: Experiment) -> None:
    """Cross-field checks, and those of paths."""
    train, data = experiment.train, experiment.data
    storage.location(experiment.init_from)
    for name in (*_PATHS, *_EXPORTS, *_FOLDERS, *_PAIR_PATHS):
        value = getattr(data, name)
        for part in value.split(",") if isinstance(value, str) else value:
            if name in _MAY_BE_URLS:
                storage.location(part)
            else:
                check_local(f"config.data.{name}", part.partition("=")[2] or part)
    divisible(
        "config.train.batch_size",
        train.batch_size,
        train.accumulate,
        "config.train.accumulate must divide the batch.",
    )
    _check_teacher(experiment)
    stage = experiment.build_stage()
    check_split(stage, accumulate=train.accumulate, optim=experiment.optim)
    if experiment.entry.paired:
        _check_pairs(experiment)
        return
    if not experiment.data.path:
        raise UserError(
            "config.data.path is empty; give a folder that `python -m unclip_jax.prepare` wrote, "
            "or SCHEME:LOCATION."
        )
    needs = {"z_img", "z_txt"} & stage.batch_spec.keys()
    if needs and not experiment.data.embeddings:
        raise UserError(
            f"config.data.embeddings is empty, but stage {experiment.stage!r} needs "
            f"{sorted(needs)}; give the folder that `python -m unclip_jax.embed` wrote, such as "
            "runs/shapes/embeddings of `launch/cascade shapes`."
        )
    if "codes" in stage.batch_spec and not (data.dvae or data.codes):
        raise UserError(
            f"config.data.dvae is empty, but stage {experiment.stage!r} is trained on the codes of "
            "a discrete VAE; give its export, such as runs/shapes/dvae/export, or the folder of "
            "`python -m unclip_jax.embed codes` as config.data.codes."
        )
    if "text_seq" in stage.batch_spec and not experiment.data.clip:
        raise UserError(
            f"config.data.clip is empty, but this {experiment.stage} reads token features of the "
            "frozen CLIP; give its export, such as runs/shapes/clip/export."
        )
    if "text_features" in stage.batch_spec and not experiment.data.text_encoder:
        raise UserError(
            f"config.data.text_encoder is empty, but this {experiment.stage} reads the features of "
            "a frozen text encoder; give its export, from `python -m unclip_jax.convert T5 "
            "--out=RUN` or experiments/text_encoder.py."
        )
    _check_stored_features(experiment)
    frozen = {"text_seq", "text_features"} & stage.batch_spec.keys()
    if experiment.data.empty_captions and not frozen:
        raise UserError(
            f"config.data.empty_captions is {experiment.data.empty_captions}, but this "
            f"{experiment.stage} does not read CLIP's token features, so z_txt would still tell "
            "the caption; set it to 0 and use the stage's own config.model.drop_text."
        )
    if needs and len(data.mixture) != len(data.mixture_embeddings):
        raise UserError(
            f"config.data.mixture names {len(data.mixture)} data sets, and "
            f"config.data.mixture_embeddings {len(data.mixture_embeddings)} folders, but stage "
            f"{experiment.stage!r} reads embeddings of every set; give one folder for each."
        )
    side, load = experiment.entry.training_side(experiment.model), experiment.data.load_size
    if side is not None and load != side:
        raise UserError(f"config.data.load_size is {load}; the model takes {side}-pixel images.")


def _check_stored_features(experiment: Experiment) -> None:
    """Rejects stored text features, which end with the caption, where all slots are read."""
    text = getattr(getattr(experiment.model, "model", None), "text", None)
    if experiment.data.text_features and getattr(text, "padding", "") == "seen":
        raise UserError(
            f"config.data.text_features is {experiment.data.text_features!r}, features of real "
            "tokens alone, but text.padding is 'seen': this model reads the text encoder's outputs "
            "behind the caption too. Leave text_features out, so that they are computed for each "
            "batch."
        )


def _check_teacher(experiment: Experiment) -> None:
    """Rejects distillation without a teacher."""
    if experiment.distill is not None and not experiment.init_from:
        raise UserError(
            "config.distill is set, but config.init_from, its teacher, is empty; give the export "
            "to distil."
        )
