"""The data loaders of an `Experiment`, and the checks that they fit the model."""

import dataclasses
import functools
import logging
import math
import pathlib
import shlex
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax

from unclip_jax.core.checks import UserError
from unclip_jax.core.stage import Rows, Stage
from unclip_jax.core.types import Params
from unclip_jax.data import examples, loader, sources
from unclip_jax.data.dataset import FeatureKeys, Source, content_digest
from unclip_jax.data.degrade import DegradeConfig
from unclip_jax.data.loader import Finish, Loader, LoaderConfig
from unclip_jax.experiment import frozen_clip, frozen_dvae, frozen_text, training_embeddings
from unclip_jax.experiment.config import Experiment
from unclip_jax.handoff import load as handoff
from unclip_jax.pairs import matching
from unclip_jax.parallel.mesh import batch_shards, make_mesh
from unclip_jax.tokenization import caption_tokenizer
from unclip_jax.tokenization.caption_tokenizer import Tokenizer

log = logging.getLogger(__name__)


class Inputs(NamedTuple):
    """The inputs of one run.

    Attributes:
        train: endless shuffled batches.
        held_out: opens a finite pass over the evaluation split; None without one.
        tokenizer: of the text fields; None for stages without text.
        tokenizer_dir: its folder.
        facts: manifest fields about the data: clip_id, tokenizer_hash, embed_stats, data, inputs.
    """

    train: Loader
    held_out: Any
    tokenizer: Tokenizer | None
    tokenizer_dir: pathlib.Path | None
    facts: dict[str, Any]


class Records(NamedTuple):
    """The opened records of one split.

    Attributes:
        split: its name.
        source: its records, with their embeddings where the stage reads them.
        mixed: other data sets that are mixed with it.
        origin: digests of what is read; see `loader.make_loader`.
    """

    split: str
    source: Source
    mixed: list[Source]
    origin: dict[str, str]


def open_inputs(experiment: Experiment, stage: Stage) -> Inputs:
    """Opens everything that `experiment` reads.

    Raises:
        UserError: a data set, embeddings or tokenizer that is missing, half-written or does not
            fit the model.
    """
    folder = _tokenizer_dir(experiment, stage) if "tokens" in stage.batch_spec else None
    tokenizer = caption_tokenizer.load(folder) if folder else None
    if tokenizer:
        _check_tokenizer(experiment, tokenizer)
        _check_vocabulary(tokenizer, stage, experiment)
    facts = _facts(experiment, stage, tokenizer)
    if "text_features" in stage.batch_spec:  # of token ids that the stage does not see
        tokenizer = caption_tokenizer.load(
            handoff.tokenizer_dir(pathlib.Path(experiment.data.text_encoder))
        )
    records = _open_records(experiment, stage, experiment.data.train_split, tokenizer=tokenizer)
    finish = _finish(experiment, stage)
    train = _batches(experiment, stage, records, tokenizer=tokenizer, finish=finish)
    facts["inputs"] = train.origin

    @functools.cache
    def held_out_records() -> Records:
        split = experiment.data.eval_split
        return _open_records(experiment, stage, split, tokenizer=tokenizer, endless=False)

    def held_out() -> Loader:
        opened = held_out_records()
        return _batches(
            experiment, stage, opened, tokenizer=tokenizer, finish=finish, endless=False
        )

    has_eval = bool(experiment.data.eval_split)
    if experiment.entry.paired and not experiment.data.splits:
        has_eval = has_eval and experiment.data.eval_share > 0
    return Inputs(train, held_out if has_eval else None, tokenizer, folder, facts)


def _open_records(
    experiment: Experiment,
    stage: Stage,
    split: str,
    *,
    tokenizer: Tokenizer | None,
    endless: bool = True,
) -> Records:
    """Opens one split, with those that endless training mixes with it, and its embeddings."""
    source, *mixed = _sources(experiment, stage, split, endless=endless)
    origin = _origin((source, *mixed), tokenizer)
    if "codes" in stage.batch_spec:
        origin["dvae"] = frozen_dvae.origin(experiment.data, split)
        source = frozen_dvae.with_codes(source, experiment.data, split)
    if stage.batch_spec.keys() & {"z_img", "z_txt"}:
        opened = training_embeddings.open_all(experiment, split, mixed=len(mixed))
        origin["embeddings"] = training_embeddings.describe(opened[0])
        joined: list[Source] = [
            sources.JoinedSource(part, embeddings, fields=[*stage.batch_spec])
            for part, embeddings in zip((source, *mixed), opened, strict=True)
        ]
        source, *mixed = joined
    if "text_features" in stage.batch_spec:
        origin["text_encoder"] = frozen_text.identity(experiment.data)
    return Records(split, source, mixed, origin)


def _batches(
    experiment: Experiment,
    stage: Stage,
    records: Records,
    *,
    tokenizer: Tokenizer | None,
    finish: Finish | None,
    endless: bool = True,
) -> Loader:
    """Makes batches of one split: endless, shuffled and mixed, or one pass in order."""
    data, train = experiment.data, experiment.train
    size, count = train.batch_size, len(records.source)
    if not endless and count < size:  # all examples, equally many for every device
        unit = math.lcm(batch_shards(make_mesh(experiment.mesh)), jax.process_count())
        size = count // unit * unit
        if not size:
            raise UserError(
                f"split {records.split!r} has {count} examples, but a batch is split over {unit} "
                "devices; give it at least as many."
            )
    config = LoaderConfig(
        batch_size=size,
        shuffle=endless,
        num_epochs=None if endless else 1,
        seed=train.seed,
        group=data.group if endless else 1,
        weights=data.weights if endless else (),
        **{name: getattr(data, name) for name in ("workers", "processes", "prefetch")},
        cache_mb=data.cache_mb if endless and not experiment.entry.paired else 0,
    )
    example = _example(experiment, stage, captions=not endless)
    if tokenizer is not None and tokenizer.start is None:
        example = dataclasses.replace(example, specials=1)
    return loader.make_loader(
        records.source,
        example=example,
        config=config,
        tokenizer=tokenizer,
        mixed=records.mixed,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        finish=finish,
        origin=records.origin,
    )


def _origin(parts: Sequence[Source], tokenizer: Tokenizer | None) -> dict[str, str]:
    """Returns the digests of the records and of the tokenizer that a run reads."""
    digests = {"data": " + ".join(content_digest(part) for part in parts)}
    return {**digests, "tokenizer": tokenizer.hash} if tokenizer else digests


def check_held_out(experiment: Experiment, inputs: Inputs) -> None:
    """Checks before the first step that the evaluation split can be read and fills a batch.

    Raises:
        UserError: it cannot, or does not.
    """
    train, split = experiment.train, experiment.data.eval_split
    if inputs.held_out is None or not (train.eval_every or train.sample_every):
        return
    try:
        inputs.held_out()
    except UserError as error:
        raise UserError(
            f"the evaluation split cannot be used: {error} config.data.eval_split is {split!r}; "
            "name another split, or none to train without evaluation (--config.data.eval_split=)."
        ) from error


def _sources(experiment: Experiment, stage: Stage, split: str, *, endless: bool) -> list[Source]:
    """Opens the data set, then those that training mixes with it."""
    data = experiment.data
    if experiment.entry.paired:
        return [matching.open_pairs(data.pairs).open_split(split, stage.batch_spec)]
    paths = (data.path, *(data.mixture if endless else ()))
    return [sources.open_source(path, split=split, keys=_keys(experiment)) for path in paths]


def resolve(experiment: Experiment) -> Experiment:
    """Returns `experiment` with the part of its model that follows from the training data.

    Raises:
        UserError: the data are missing, or need a larger model; or no caption is empty, but the
            sampling is guided away from the empty caption.
    """
    entry, model = experiment.entry, _with_empty_captions(experiment)
    if entry.resolve_fields is not None and not experiment.init_from:
        model = entry.resolve_fields(model, matching.open_pairs(experiment.data.pairs).fields())
        experiment = dataclasses.replace(experiment, model=model)
    if entry.resolve is not None:
        model = entry.resolve(model, _rows(experiment))
    return dataclasses.replace(experiment, model=model)


def _with_empty_captions(experiment: Experiment) -> Any:
    """Returns the model with the share of empty captions that it is trained on, if it states one.

    Training on from an export without any leaves the share of that export.
    """
    model, share = experiment.model, experiment.data.empty_captions
    text = getattr(getattr(model, "model", None), "text", None)
    if getattr(text, "null", "") != "empty" or not hasattr(model, "empty_captions"):
        return model
    if experiment.init_from and not share:
        return model
    return dataclasses.replace(model, empty_captions=share)


def fit_params(experiment: Experiment, stage: Stage) -> Callable[[], Params] | None:
    """Returns a function that fits parameters to the training data; None if all are learned."""
    fit = stage.fit
    if fit is None:
        return None

    def compute() -> Params:
        result = fit(_rows(experiment))
        log.info("%s: %s", stage.name, result.note)
        return result.params

    return compute


def _rows(experiment: Experiment) -> Rows:
    """Returns a function that opens a pass over the training embeddings, or pairs."""
    if experiment.entry.paired:
        fields = experiment.build_stage().batch_spec
        split = experiment.data.train_split
        return matching.open_pairs(experiment.data.pairs).open_split(split, fields).blocks
    return training_embeddings.rows(experiment)


def _example(experiment: Experiment, stage: Stage, *, captions: bool) -> examples.ExampleConfig:
    """Returns the fields of an example; training crops if the stage's images are smaller."""
    spec, data = stage.batch_spec, experiment.data
    if experiment.entry.paired:
        return examples.ExampleConfig(fields=tuple(spec), arrays=tuple(spec))
    degrade, patch = None, None
    if "low_res" in spec:
        factor = spec["image"].shape[0] // spec["low_res"].shape[0]
        name, share = ("bsr", data.bsr) if data.bsr else ("blur", data.blur)
        share = share if not captions else 0.0  # clean at inference (unCLIP, section 2.1)
        degrade = DegradeConfig(factor=factor, name=name, probability=share)
        patch = spec["image"].shape[0]
    length = next((spec[n].shape[0] for n in ("tokens", "text_features") if n in spec), 2)
    computed = {  # by `_finish`, of these fields
        "text_seq": (),
        "text_features": ("tokens",),
        "text_mask": ("token_mask",),
        "codes": ("codes",) if data.codes else ("image",),
        "label": ("caption",),
    }
    fields = tuple(field for name in spec for field in computed.get(name, (name,)))
    return examples.ExampleConfig(
        fields=(*fields, "caption") if captions else fields,
        image_size=data.load_size,
        flip=data.flip and not captions,
        fast_decode=data.fast_decode,
        patch=patch,
        length=length,
        degrade=degrade,
        empty_captions=0.0 if captions else data.empty_captions,
        bpe_dropout=0.0 if captions or "tokens" not in spec else data.bpe_dropout,
        captions="first" if captions else "any",
    )


def _finish(experiment: Experiment, stage: Stage) -> Finish | None:
    """Returns a function that adds what is computed of a batch: features, codes or labels."""
    if "label" in stage.batch_spec:
        labels = experiment.model.labels
        return lambda batch: {**batch, "label": labels(list(batch["caption"]))}
    if "codes" in stage.batch_spec:
        return frozen_dvae.finish(experiment.data)
    if "text_features" in stage.batch_spec:
        context, width = stage.batch_spec["text_features"].shape
        return frozen_text.finish(experiment.data, context=context, width=width)
    if "text_seq" not in stage.batch_spec:
        return None
    context, width = stage.batch_spec["text_seq"].shape
    return frozen_clip.reader(pathlib.Path(experiment.data.clip), context=context, width=width)


def _tokenizer_dir(experiment: Experiment, stage: Stage) -> pathlib.Path:
    """Returns the folder of the configured tokenizer, or of the one beside the data.

    Raises:
        UserError: there is neither, or no data.
    """
    if experiment.data.tokenizer:
        return pathlib.Path(experiment.data.tokenizer)
    dataset = sources.open_dataset(experiment.data.path, keys=_keys(experiment))
    if dataset.tokenizer_dir is not None:
        return dataset.tokenizer_dir
    if dataset.prepared_dir is None:
        raise UserError(
            f"data set {experiment.data.path!r} has no tokenizer of its own; set "
            "config.data.tokenizer to the folder of one, for example of CLIP's."
        )
    raise UserError(
        f"the data set at {dataset.prepared_dir} has no tokenizer; `python -m unclip_jax.prepare "
        f"--out={shlex.quote(str(dataset.prepared_dir))} --vocab-size={_vocabulary(stage)}` adds "
        "one, or set config.data.tokenizer to the folder of another."
    )


def _check_tokenizer(experiment: Experiment, tokenizer: Tokenizer) -> None:
    """Rejects a tokenizer beside the data that is not the one stated in their manifest."""
    if experiment.data.tokenizer:
        return
    stated = sources.open_dataset(experiment.data.path, keys=_keys(experiment)).tokenizer_hash
    if stated and stated != tokenizer.hash:
        raise UserError(
            f"the tokenizer beside {experiment.data.path} has hash {tokenizer.hash[:12]}, the "
            f"manifest of the data states {stated[:12]}; restore it, or set config.data.tokenizer "
            "to the folder of the one to use."
        )


def _keys(experiment: Experiment) -> FeatureKeys:
    return FeatureKeys(experiment.data.image_key, experiment.data.caption_key)


def _vocabulary(stage: Stage) -> int:
    """Returns the number of token ids that the stage reads, one for each entry of a tokenizer."""
    return int(stage.batch_spec["tokens"].high or 0) + 1


def _check_vocabulary(tokenizer: Tokenizer, stage: Stage, experiment: Experiment) -> None:
    """Rejects a tokenizer with more entries than the token table has rows for."""
    size, most = tokenizer.vocab_size, _vocabulary(stage)
    if size <= most:
        return
    spare = getattr(experiment.model.model, "vocab_size", most) - most
    mask = f", {spare} of them for the mask" if spare else ""
    raise UserError(
        f"the tokenizer has {size} entries, the model's token table {most + spare} rows{mask}; set "
        f"config.model.model.vocab_size to {size + spare} or more."
    )


def _facts(experiment: Experiment, stage: Stage, tokenizer: Tokenizer | None) -> dict[str, Any]:
    if experiment.entry.paired:
        config = experiment.data.pairs
        count = len(matching.open_pairs(config).rows)
        return {"data": f"{count} pairs of {config.x} and {config.y}"}
    paths = " + ".join((experiment.data.path, *experiment.data.mixture))
    facts: dict[str, Any] = {"data": f"{paths} ({experiment.data.train_split})"}
    if tokenizer:
        facts["tokenizer_hash"] = tokenizer.hash
    if "codes" in stage.batch_spec:
        sizes = {name: stage.describe[name] for name in ("grid", "code_count")}
        facts |= frozen_dvae.facts(experiment.data, **sizes)
    if "text_features" in stage.batch_spec:
        facts["text_encoder_id"] = frozen_text.identity(experiment.data)
        if experiment.init_from:
            frozen_text.check_initial(experiment.data, pathlib.Path(experiment.init_from))
    if stage.batch_spec.keys() & {"z_img", "z_txt"}:
        facts |= training_embeddings.facts(experiment, stage, facts.get("tokenizer_hash"))
        if "text_seq" in stage.batch_spec:
            frozen_clip.check(pathlib.Path(experiment.data.clip), clip_id=facts["clip_id"])
    return facts
