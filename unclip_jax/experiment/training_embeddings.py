"""The embeddings that a stage trains on: of one data set, or of every set of a mixture."""

import math
import shlex
from collections.abc import Iterator, Sequence
from typing import Any

from unclip_jax.core import storage
from unclip_jax.core.checks import UserError
from unclip_jax.core.stage import Rows, Stage
from unclip_jax.core.storage import Url
from unclip_jax.core.types import HostBatch
from unclip_jax.data import remote_embeddings
from unclip_jax.data.embeddings import EmbeddingSource
from unclip_jax.experiment.config import Experiment
from unclip_jax.handoff.manifest import Manifest

_BLOCK = 8192  # rows that are read at a time


def open_all(experiment: Experiment, split: str, *, mixed: int) -> list[EmbeddingSource]:
    """Opens the embeddings of `config.data.path`, then those of `mixed` sets of the mixture.

    Raises:
        UserError: as `open_embeddings`; or they are not of one CLIP.
    """
    opened = [open_embeddings(experiment, split, number=number) for number in range(1 + mixed)]
    first = opened[0]
    for other in opened[1:]:
        if describe(other) != describe(first):
            raise UserError(
                f"embeddings in {other.directory} are of {describe(other) or 'an unknown CLIP'}, "
                f"those in {first.directory} of {describe(first) or 'an unknown CLIP'}; compute "
                "those of all sets of config.data.mixture with one CLIP."
            )
    return opened


def open_embeddings(experiment: Experiment, split: str, *, number: int = 0) -> EmbeddingSource:
    """Opens the embeddings of one split, of the dimension that the model takes.

    Args:
        experiment: its settings.
        split: its name.
        number: of the data set: 0 is `config.data.path`, then come those of the mixture.

    Raises:
        UserError: missing, half-written, or of another CLIP's dimension.
    """
    place = (experiment.data.embeddings, *experiment.data.mixture_embeddings)[number]
    folder = storage.location(place) / split
    if not (isinstance(folder, Url) or folder.is_dir()):
        command = how_to_embed(experiment, number=number)
        raise UserError(f"no embeddings in {folder}; compute them with {command}.")
    source = remote_embeddings.open_embeddings(folder)
    spec = experiment.build_stage().batch_spec
    (size,) = next(spec[name].shape for name in ("z_img", "z_txt") if name in spec)
    if source.dim("z_img") != size:
        raise UserError(
            f"embeddings in {source.directory} have {source.dim('z_img')} dimensions; the model "
            f"takes {size}. Embed with the CLIP of this size or change config.model."
        )
    return source


def how_to_embed(experiment: Experiment, *, number: int = 0) -> str:
    """Returns the command that computes the embeddings which `experiment` reads.

    In the folders of `launch/cascade`, its command for all steps up to the embeddings is added.
    """
    data, run = experiment.data, f"runs/{experiment.size}"
    clip = data.clip or str(storage.location(data.embeddings).parent / "clip" / "export")
    path = (data.path, *data.mixture)[number]
    out = (data.embeddings, *data.mixture_embeddings)[number]
    options = {"clip": clip, "data": path, "out": out}
    words = [f"--{name}={shlex.quote(value)}" for name, value in options.items()]
    command = f"`{' '.join(['python -m unclip_jax.embed', *words])}`"
    if list(options.values()) == [f"{run}/{x}" for x in ("clip/export", "data", "embeddings")]:
        command += f" (or all before them too: `launch/cascade {experiment.size} --until=embed`)"
    return command


def describe(embeddings: EmbeddingSource) -> str:
    """Returns the CLIP that computed embeddings, and their form where it is not of norm 1."""
    info = embeddings.info()
    return " ".join(str(info[name]) for name in ("clip_id", "embedding") if info.get(name))


def rows(experiment: Experiment) -> Rows:
    """Returns a function that opens a pass over the training embeddings.

    Those of a mixture have the shares that they have in training: rows of sets that are too small
    for theirs come several times.
    """

    def open_rows(most: int) -> Iterator[HostBatch]:
        data = experiment.data
        opened = open_all(experiment, data.train_split, mixed=len(data.mixture))
        for source in opened:
            source.dim("z_txt")  # rejects embeddings of images alone
        if len(opened) == 1:
            return opened[0].blocks(most)
        sizes = [len(source) for source in opened]
        counts = counts_of(sizes, shares(data.weights, len(opened)), most)
        return (block for pair in zip(opened, counts, strict=True) for block in _repeated(*pair))

    return open_rows


def shares(weights: Sequence[float], count: int) -> list[float]:
    """Returns the shares of the sets of a mixture, whose sum is 1; without weights equal ones."""
    weights = weights or [1.0] * count
    return [weight / sum(weights) for weight in weights]


def counts_of(sizes: Sequence[int], parts: Sequence[float], most: int) -> list[int]:
    """Returns how many rows to take of sets of these sizes and shares, `most` together at most.

    They suffice for one pass over every set where `most` allows it.
    """
    total = min(most, max(math.ceil(n / share) for n, share in zip(sizes, parts, strict=True)))
    return [max(int(total * share), 1) for share in parts]


def _repeated(source: EmbeddingSource, count: int) -> Iterator[HostBatch]:
    """Yields `count` rows, fewer by a few where they are read in blocks; as often as necessary."""
    while count > 0:
        most = min(count, len(source))
        yield from source.blocks(most, size=most // -(-most // _BLOCK))
        count -= most


def facts(experiment: Experiment, stage: Stage, tokenizer_hash: str | None) -> dict[str, Any]:
    """Returns the CLIP of the training embeddings and statistics of z_img, for the manifest.

    Those of a mixture are weighted as in training.

    Raises:
        UserError: embeddings that the stage cannot be trained on.
    """
    data = experiment.data
    opened = open_all(experiment, data.train_split, mixed=len(data.mixture))
    shares_ids = "text_seq" in stage.batch_spec
    for number, source in enumerate(opened):
        command = how_to_embed(experiment, number=number)
        _check_origin(source, tokenizer_hash if shares_ids else None, command=command)
        _check_norm(source.info(), stage, source)
    stats = [source.stats("z_img") for source in opened]
    norms = zip(shares(data.weights, len(opened)), stats, strict=True)
    return {
        "clip_id": opened[0].info().get("clip_id"),
        "embed_stats": {
            "mean_norm": sum(share * each.norm_mean for share, each in norms),
            "count": sum(each.count for each in stats),
        },
    }


def check_clip(experiment: Experiment, clip_id: str | None, *, export: Manifest) -> None:
    """Rejects embeddings of another CLIP than that of an export.

    Args:
        experiment: names the embeddings.
        clip_id: of the embeddings; None = the stage reads none.
        export: manifest of the export.

    Raises:
        UserError: they differ.
    """
    if clip_id is not None and clip_id != export.clip_id:
        raise UserError(
            f"this {export.stage} was trained on embeddings of CLIP {str(export.clip_id)[:12]}; "
            f"{experiment.data.embeddings} holds those of {clip_id[:12]}. Give the embeddings that "
            "it was trained on."
        )


def _check_norm(info: dict[str, Any], stage: Stage, source: EmbeddingSource) -> None:
    """Rejects embeddings of norm 1 for stages that take them as CLIP computes them."""
    if stage.describe.get("embedding") == "raw" and info.get("embedding") != "raw":
        raise UserError(
            f"this {stage.name} takes embeddings as CLIP computes them, but those in "
            f"{source.directory} have norm 1; compute them with `python -m unclip_jax.embed --raw`."
        )


def _check_origin(source: EmbeddingSource, tokenizer_hash: str | None, *, command: str) -> None:
    """Rejects embeddings of an unknown CLIP, or of other token ids; None = the stage reads none."""
    info = source.info()
    if not info.get("clip_id"):
        raise UserError(
            f"embeddings in {source.directory} do not name their CLIP; move them away and "
            f"compute them with {command}."
        )
    others = info.get("tokenizer_hash")
    if tokenizer_hash and others and tokenizer_hash != others:
        raise UserError(
            f"embeddings in {source.directory} were computed with tokenizer {others[:12]}, the "
            f"data has {tokenizer_hash[:12]}; embed again or set config.data.tokenizer."
        )
