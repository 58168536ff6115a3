"""A trained prior between two embedding spaces: arrays in, arrays out."""

import dataclasses
import functools
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from unclip_jax.core import rng, trees
from unclip_jax.core.checks import UserError, in_range, short
from unclip_jax.core.files import check_local
from unclip_jax.core.types import Keys, Params
from unclip_jax.handoff import export
from unclip_jax.handoff.manifest import Manifest
from unclip_jax.inference import load
from unclip_jax.models.condition_encoder import EncoderConfig
from unclip_jax.models.condition_tokens import ConditionConfig
from unclip_jax.objectives.gaussian import SamplingConfig
from unclip_jax.pairs.subject_labels import layer_numbers
from unclip_jax.stages import embedding_prior, pair_inputs
from unclip_jax.stages.embedding_prior_config import SUBJECT, EmbeddingPriorStageConfig

Rows = np.ndarray | Sequence[np.ndarray] | Sequence[str]
BATCH = 256  # samples per batch


@dataclasses.dataclass(frozen=True, repr=False)
class EmbeddingPriorModel:
    """A trained prior, or a regression that was trained by the same command.

    Attributes:
        cfg: conditions, target and default sampling.
        params: its averaged parameters.
        manifest: the manifest of its export.
    """

    cfg: EmbeddingPriorStageConfig
    params: Params
    manifest: Manifest

    def __repr__(self) -> str:
        """Method, conditions and target with their shapes, size and step, in one line."""
        names = [f"{one.name} {list(one.shape)}" for one in self.cfg.model.conditions]
        names += ["subject"] * (SUBJECT in embedding_prior.batch_spec(self.cfg))
        return (
            f"EmbeddingPriorModel({self.cfg.method}: {', '.join(names)} -> "
            f"{list(self.cfg.model.target)}, {trees.count(self.params):,} parameters, step "
            f"{self.manifest.step})"
        )

    @classmethod
    def open(cls, path: str | pathlib.Path) -> "EmbeddingPriorModel":
        """Opens an export, or the workdir of a run that has one.

        Raises:
            UserError: there is no export, or it is of another stage.
        """
        check_local("the path of a prior", path)
        folder = pathlib.Path(path)
        folder = folder / "export" if (folder / "export").is_dir() else folder
        return cls(*load.load_embedding_prior(folder))

    def save(self, path: str | pathlib.Path, *, overwrite: bool = False) -> None:
        """Writes an export, which `open` reads.

        Args:
            path: its folder.
            overwrite: True replaces an existing export.

        Raises:
            UserError: the folder contains an export, without `overwrite`, or other files; or it
                cannot be written.
        """
        check_local("the path of a prior", path)
        folder = pathlib.Path(path)
        if (folder / export.MANIFEST).is_file() and not overwrite:
            raise UserError(
                f"{folder} holds an export already; give another folder, or overwrite=True."
            )
        export.write_export(folder, params=self.params, manifest=self.manifest, tokenizer_dir=None)

    def sample(
        self,
        x: Rows | Mapping[str, Any],
        *,
        num: int = 1,
        guidance: float | None = None,
        steps: str | None = None,
        sampler: str | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
        seed: int = 0,
        batch: int = BATCH,
    ) -> np.ndarray:
        """Samples targets for conditions, [rows num *target] in float32.

        Sample j of row i depends on the seed, i and j alone, not on the batch.

        Args:
            x: rows of the only condition, or of several by name; some may be left out where
                training dropped single ones (config.model.drop_each). Sequences of different
                lengths are a list of arrays. A model with layers per subject also needs "subject",
                the label of every row.
            num: samples per row; those of a regression are equal.
            guidance: scale; None = the trained default, 1 = off.
            steps: grid of timesteps; None = the trained default.
            sampler: name of a sampler; None = the trained default.
            temperature: temperature of an autoregressive prior's codes; None = the trained default.
            top_p: probability of the nucleus of its codes; None = the trained default.
            seed: seed of the noise.
            batch: samples per batch.

        Raises:
            UserError: conditions that the model does not have, that are missing or of another
                shape, or settings of another method.
        """
        options = {"guidance": guidance, "steps": steps, "sampler": sampler}
        codes = {"temperature": temperature, "top_p": top_p}
        settings: dict[str, Any] = {**options, **codes, "seed": seed, "batch": batch}
        return np.concatenate([*self.sample_blocks(x, num=num, **settings)])

    def sample_blocks(
        self,
        x: Rows | Mapping[str, Any],
        *,
        num: int = 1,
        guidance: float | None = None,
        steps: str | None = None,
        sampler: str | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
        seed: int = 0,
        batch: int = BATCH,
    ) -> Iterator[np.ndarray]:
        """Yields the result of `sample` in blocks of consecutive rows; memory holds one block.

        Raises:
            UserError: as `sample`, before the first block.
        """
        in_range("num", num, 1, 2**20)
        conditions, size = conditions_of(self.cfg, x)
        _check_left_out(self.cfg, conditions)
        chain = {"steps": steps, "sampler": sampler}
        codes = {"temperature": temperature, "top_p": top_p}
        _check_method(self.cfg, {"diffusion": chain, "autoregressive": codes})
        cfg = dataclasses.replace(self.cfg, **_set(codes))
        sampling = dataclasses.replace(cfg.sampling, **_set({"guidance_scale": guidance, **chain}))
        key, total, start = jax.random.key(seed), size * num, 0
        pending = np.zeros((0, *cfg.model.target), np.float32)
        for numbers in _batches(total, min(batch, total)):
            rows = {name: value[numbers // num] for name, value in conditions.items()}
            keys = rng.per_example(key, jnp.asarray(numbers))
            samples = jax.device_get(_sample(cfg, sampling, self.params, rows, keys))
            pending = np.concatenate([pending, samples[: total - start]])
            start += len(numbers)
            whole = len(pending) // num * num
            if whole:
                yield pending[:whole].reshape(-1, num, *cfg.model.target)
                pending = pending[whole:]

    def linear(self, x: Rows | Mapping[str, Any]) -> np.ndarray:
        """Returns the prediction of the ridge regression in this model, [rows *target].

        Raises:
            UserError: the model has no ridge regression, or conditions do not fit or are missing.
        """
        return np.concatenate([*self.linear_blocks(x)])

    def linear_blocks(self, x: Rows | Mapping[str, Any]) -> Iterator[np.ndarray]:
        """Yields the result of `linear` in blocks of consecutive rows."""
        if not self.cfg.fits_ridge:
            raise UserError(
                "this model has no ridge regression; train one with config.model.model.ridge."
            )
        conditions, size = conditions_of(self.cfg, x)
        names = [one.name for one in self.cfg.model.conditions]
        missing = [name for name in names if name not in conditions]
        if missing:
            raise UserError(f"the ridge regression needs {', '.join(missing)} too; give all of x.")
        for numbers in _batches(size, min(BATCH, size)):
            rows = {name: value[numbers] for name, value in conditions.items()}
            block = jax.device_get(_linear(self.cfg, self.params["fitted"], rows))
            yield block[: size - numbers[0]]

    def mean(self) -> np.ndarray | None:
        """Returns the mean of the training targets; None if the model does not contain it.

        With scaling "raw" only the ridge regression of vectors contains it, as its bias.
        """
        latent = jnp.zeros((1, *self.cfg.model.target))
        if self.cfg.scaling == "raw":
            features = [one for one in self.cfg.model.conditions if not one.vocab_size]
            if not self.cfg.fits_ridge or any(one.sequence for one in features):
                return None
            bias = jnp.asarray(self.params["fitted"]["ridge"]["bias"])
            latent = bias.reshape(latent.shape)
        return np.asarray(pair_inputs.from_latent(self.cfg, self.params, latent))[0]


def _check_left_out(cfg: EmbeddingPriorStageConfig, fields: Mapping[str, np.ndarray]) -> None:
    """Rejects conditions that are left out, unless single ones were dropped in training.

    Raises:
        UserError: naming them.
    """
    missing = [one.name for one in cfg.model.conditions if one.name not in fields]
    dropped = cfg.generative and cfg.drop_each and len(missing) < len(cfg.model.conditions)
    if missing and not dropped:
        names = ", ".join(missing)
        raise UserError(
            f"the condition {names} is missing, and this prior was not trained without it "
            f"(config.model.drop_each={cfg.drop_each:g}); give rows of {names}."
        )


def _set(options: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the options that are not None."""
    return {name: value for name, value in options.items() if value is not None}


def _check_method(cfg: EmbeddingPriorStageConfig, options: Mapping[str, Mapping[str, Any]]) -> None:
    """Rejects options of sampling that the method of a model does not have.

    Args:
        cfg: the model.
        options: method -> its options, None = not given.

    Raises:
        UserError: naming the option.
    """
    for method, of_method in options.items():
        if method != cfg.method and (names := [*_set(of_method)]):
            raise UserError(
                f"{names[0]} is for method {method!r}, not for {cfg.method!r}; leave it out."
            )


@functools.partial(jax.jit, static_argnums=(0, 1))
def _sample(
    cfg: EmbeddingPriorStageConfig,
    sampling: SamplingConfig,
    params: Params,
    rows: dict[str, Any],
    keys: Keys,
) -> jax.Array:
    return embedding_prior.sample(cfg, params, rows, keys=keys, sampling=sampling)


@functools.partial(jax.jit, static_argnums=0)
def _linear(cfg: EmbeddingPriorStageConfig, fitted: Params, rows: dict[str, Any]) -> jax.Array:
    return pair_inputs.predict_linearly(cfg, {"fitted": fitted}, rows)


def _batches(count: int, size: int) -> Iterator[np.ndarray]:
    """Yields numbers 0..count in batches of `size`; the last is padded with the last number."""
    for start in range(0, count, size):
        yield np.minimum(np.arange(start, start + size), count - 1)


def conditions_of(
    cfg: EmbeddingPriorStageConfig, x: Rows | Mapping[str, Any]
) -> tuple[dict[str, np.ndarray], int]:
    """Returns the batch fields of conditions, and their number of rows.

    Raises:
        UserError: as `EmbeddingPriorModel.sample`, or rows that are not finite.
    """
    conditions = {one.name: one for one in cfg.model.conditions}
    field = embedding_prior.batch_spec(cfg).get(SUBJECT)
    if not isinstance(x, Mapping):
        if len(conditions) > 1:
            raise UserError(
                f"this prior has the conditions {', '.join(conditions)}; give them by name, as in "
                f"{{{next(iter(conditions))!r}: array}}."
            )
        x = {next(iter(conditions)): x}
    unknown = sorted({*x} - {*conditions} - ({SUBJECT} if field is not None else set()))
    if unknown or not x:
        others = ", ".join(unknown) or "none"
        raise UserError(
            f"this prior has the conditions {', '.join(conditions)}, not {others}; give those."
        )
    if field is not None and SUBJECT not in x:
        raise UserError(
            f"this prior has layers per subject; give {SUBJECT!r}, one label per row (--subjects "
            "of `embed prior`)."
        )
    for name, rows in x.items():
        _check_rows(name, rows, None if name == SUBJECT else conditions[name])
    counts = {name: len(rows) for name, rows in x.items()}
    if len(set(counts.values())) > 1 or not min(counts.values()):
        listed = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise UserError(
            f"conditions have different numbers of rows, or none ({listed}); give the same number, "
            "at least 1, for each."
        )
    fields: dict[str, np.ndarray] = {}
    for name, rows in x.items():
        if name == SUBJECT:
            fields[name] = _subjects(rows, cfg.encoder)
        else:
            fields |= _filled(conditions[name], rows)
    return fields, next(iter(counts.values()))


def _subjects(rows: Rows, encoder: EncoderConfig) -> np.ndarray:
    """Returns the numbers of the layers that labels name.

    Raises:
        UserError: the model has no such subject.
    """
    labels = encoder.labels or tuple(map(str, range(encoder.subjects)))
    return layer_numbers(np.asarray(rows).reshape(-1), labels)


def _check_rows(name: str, rows: Any, one: ConditionConfig | None) -> None:
    """Rejects a single row, or a single label, where several are expected.

    Args:
        name: name of the condition.
        rows: as a user gives them.
        one: the condition; None for labels.

    Raises:
        UserError: naming the condition.
    """
    if isinstance(rows, str) or not hasattr(rows, "__len__") or getattr(rows, "ndim", 1) == 0:
        kind = "label" if one is None else "array"
        raise UserError(f"{name} is {short(rows)}; give one {kind} per row, in a list.")
    if one is not None and len(rows) and np.ndim(rows[0]) == len(one.shape) - 1:
        raise UserError(
            f"{name} is a single row; this prior takes rows of shape {list(one.shape)}. Give an "
            "array of rows, such as x[None] of a single one."
        )


def _filled(one: ConditionConfig, rows: Rows) -> dict[str, np.ndarray]:
    """Returns one condition as batch fields, with its mask if lengths differ."""
    dtype = np.int32 if one.vocab_size else np.float32
    lengths = np.array([len(row) for row in rows])
    longest = int(lengths.max(initial=0))
    shapes = {np.shape(row)[1:] for row in rows}
    fits = shapes == {one.shape[1:]} and (
        longest <= one.shape[0] if one.ragged else set(lengths.tolist()) == {one.shape[0]}
    )
    if not fits:
        raise UserError(
            f"{one.name} has rows of shape {[longest, *next(iter(shapes))]}; this prior takes "
            f"{list(one.shape)}{' at most' if one.ragged else ''}. Give rows of that shape."
        )
    array = np.zeros((len(rows), *one.shape), dtype)
    for i, row in enumerate(rows):
        array[i, : len(row)] = row
    bad = np.flatnonzero(~np.isfinite(array.reshape(len(rows), -1)).all(axis=1))
    if len(bad):
        raise UserError(
            f"{len(bad)} rows of {one.name} hold NaN or inf, first row {bad[0]}; correct them, or "
            "leave them out."
        )
    if not one.ragged:
        return {one.name: array}
    return {one.name: array, f"{one.name}_mask": np.arange(one.shape[0])[None] < lengths[:, None]}
