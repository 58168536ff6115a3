"""Embeds whole data sets with a frozen CLIP, shard by shard, in one process or many.

A shard contains the embeddings of SHARD_SIZE consecutive records. Every process embeds whole shards
on its own devices, without communication, so the rows are bitwise equal for any number of
processes. An interrupted run continues with the shards that have no report.
"""

import pathlib
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from unclip_jax.core.checks import UserError
from unclip_jax.core.picture import to_float
from unclip_jax.core.storage import Location, Url
from unclip_jax.data import loader, sources
from unclip_jax.data.dataset import FeatureKeys, Source, content_digest, without_image
from unclip_jax.data.embedding_writer import EmbeddingFolder
from unclip_jax.data.embeddings import EmbeddingSource, read_stats
from unclip_jax.data.examples import ExampleConfig
from unclip_jax.data.loader import LoaderConfig
from unclip_jax.data.records import Record
from unclip_jax.handoff import load as handoff
from unclip_jax.inference.load import load_clip
from unclip_jax.models.clip import Clip
from unclip_jax.parallel import place
from unclip_jax.parallel.mesh import batch_sharding, replicated, sampling_mesh, traced_on
from unclip_jax.parallel.multihost import gather
from unclip_jax.tokenization import caption_tokenizer
from unclip_jax.tokenization.caption_tokenizer import Tokenizer

SHARD_SIZE = 16_384  # records

Encode = Callable[[Any, Any, Any, Any], tuple[jax.Array, jax.Array]]


class BatchEncoder(NamedTuple):
    """A frozen CLIP and the batches it reads.

    Attributes:
        encode: batch fields -> (z_img, z_txt), each [b z].
        example: fields of an example and their sizes.
        tokenizer: tokenizer of the captions.
        batch_size: examples per batch.
        mesh: devices of this process, over which a batch is split.
        workers: threads that read records.
    """

    encode: Callable[..., tuple[jax.Array, jax.Array]]
    example: ExampleConfig
    tokenizer: Tokenizer
    batch_size: int
    mesh: Mesh
    workers: int


def embed_dataset(
    data: str,
    *,
    clip: pathlib.Path,
    out: Location,
    splits: Sequence[str] = (),
    keys: FeatureKeys | None = None,
    batch_size: int = 256,
    raw: bool = False,
    all_captions: bool = False,
    dtype: str = "float16",
    workers: int = 8,
    share: tuple[int, int] = (0, 1),
) -> None:
    """Writes OUT/SPLIT for every split of a data set, or continues there.

    The process that writes the last shard of a split completes it with its statistics.

    Args:
        data: path of the data set (`sources.open_dataset`).
        clip: export of a CLIP.
        out: folder or URL to write.
        splits: names; () = all.
        keys: names of image and caption in data sets of other formats.
        batch_size: examples per batch.
        raw: True writes embeddings as CLIP computes them, not normalised.
        all_captions: a row for every caption of an image, instead of its first.
        dtype: type of the stored embeddings, "float16" or "float32".
        workers: threads that read records.
        share: (I, N) embeds every N-th shard from number I; several processes divide these
            among themselves.

    Raises:
        UserError: no such data set, split or export; tokenised for another CLIP; or `out` holds
            embeddings of another origin.
    """
    dataset = sources.open_dataset(data, keys=keys)
    encoder, info = load_encoder(
        clip,
        tokenizer_hash=dataset.tokenizer_hash,
        batch_size=batch_size,
        raw=raw,
        workers=workers,
    )
    for split in splits or dataset.splits:
        source = dataset.open_split(split)
        origin = {"data": split, "data_digest": content_digest(source)}
        origin |= {"captions": "all"} if all_captions else {}
        folder = _folder(out / split, {**info, **origin}, source, dtype)
        embed_split(source, encoder, folder=folder, share=share, all_captions=all_captions)


def load_encoder(
    clip: pathlib.Path, *, tokenizer_hash: str, batch_size: int, raw: bool, workers: int
) -> tuple[BatchEncoder, dict[str, Any]]:
    """Loads a CLIP onto the devices of this process; returns it and its description for embeddings.

    Raises:
        UserError: no such export, or data with `tokenizer_hash` were tokenised for another CLIP.
    """
    mesh, batch_size = sampling_mesh(batch_size, local=True)
    cfg, params, manifest = load_clip(clip)
    tokenizer = caption_tokenizer.load(handoff.tokenizer_dir(clip))
    _check_tokenizer(tokenizer_hash, tokenizer.hash)
    encode = compile_encoder(Clip(cfg.model), mesh=mesh, raw=raw)
    params = place.replicate(params, mesh)
    example = ExampleConfig(
        fields=("image", "tokens", "token_mask"),
        image_size=cfg.model.image_size,
        length=cfg.model.context,
    )
    encoder = BatchEncoder(
        lambda *fields: encode(params, *fields), example, tokenizer, batch_size, mesh, workers
    )
    info = {
        "clip_id": manifest.clip_id,
        "tokenizer_hash": tokenizer.hash,
        "image_size": cfg.model.image_size,
        **({"embedding": "raw"} if raw else {}),
    }
    return encoder, info


def compile_encoder(module: Clip, *, mesh: Mesh, raw: bool = False) -> Encode:
    """Compiles the frozen CLIP: (params, images, tokens, mask) -> (z_img, z_txt), raw or of norm 1.

    Images are uint8. A batch is split over `mesh`; every device gets the whole result.
    """

    def encode(params, pixels, tokens, token_mask):
        images = to_float(pixels)
        if raw:
            inputs = ({"params": params}, images, tokens, token_mask)
            both: Any = module.apply(*inputs, method=Clip.run)
            return both[0], both[1].pooled
        out: Any = module.apply({"params": params}, images, tokens, token_mask)
        return out.z_img, out.z_txt

    whole, split = replicated(mesh), batch_sharding(mesh)
    places = (whole, split, split, split)
    return jax.jit(traced_on(mesh, encode), in_shardings=places, out_shardings=whole)


def embed_split(
    source: Source,
    encoder: BatchEncoder,
    *,
    folder: EmbeddingFolder,
    share: tuple[int, int],
    all_captions: bool,
) -> None:
    """Embeds the shards of this process that are not written, and completes the folder if it can.

    Raises:
        UserError: the processes do not share the folder.
    """
    count = -(-len(source) // SHARD_SIZE)
    first, step = share[0] * jax.process_count() + jax.process_index(), share[1]
    own = range(first, count, step * jax.process_count())
    indices = [] if folder.finished else folder.missing(own)
    bar = tqdm(
        total=None if all_captions else sum(len(_records(source, index)) for index in indices),
        desc=f"embed {folder.directory.name}",
        unit="example",
        disable=jax.process_index() > 0,
    )
    for index in indices:
        numbers = _records(source, index)
        counts = _caption_counts(source, numbers, encoder.workers) if all_captions else None
        part = _Part(source, numbers, counts)
        z_img, z_txt = _embedded(part, encoder, bar.update)
        vectors = {"z_img": z_img, "z_txt": z_txt}
        folder.write(index, keys=part.keys, captions=part.captions, vectors=vectors)
    bar.close()
    complete_together(folder, count, alone=step == 1)


@runtime_checkable
class ShardedFolder(Protocol):
    """A folder that is written shard by shard."""

    def complete(self, count: int, *, partial: bool = False) -> None:
        """Completes the folder of `count` shards; with `partial`, not before all are written."""
        ...


def complete_together(folder: ShardedFolder, count: int, *, alone: bool) -> None:
    """Waits for all processes; the first completes a folder, unless other jobs still write to it.

    Raises:
        UserError: in all processes, if the folder cannot be completed.
    """
    gather("written")  # a barrier: all processes wait for the last
    problem = ""
    if jax.process_index() == 0:
        try:
            folder.complete(count, partial=not alone)
        except UserError as error:
            problem = str(error)
    if problem := gather(problem)[0]:
        raise UserError(problem)


def _records(source: Source, index: int) -> range:
    """Returns the numbers of the records of a shard."""
    return range(index * SHARD_SIZE, min((index + 1) * SHARD_SIZE, len(source)))


def embed_records(
    source: Source, numbers: Sequence[int] | np.ndarray, encoder: BatchEncoder
) -> list[np.ndarray]:
    """Returns z_img and z_txt of some records."""
    part = _Part(source, [int(number) for number in numbers])
    return _embedded(part, encoder, lambda count: None)


def _embedded(
    part: "_Part", encoder: BatchEncoder, progress: Callable[[int], Any]
) -> list[np.ndarray]:
    """Returns z_img and z_txt of all rows of a shard; `progress` is called with row counts."""
    config = LoaderConfig(
        batch_size=encoder.batch_size,
        shuffle=False,
        num_epochs=1,
        remainder="pad",
        workers=encoder.workers,
    )
    batches = loader.make_loader(
        part, example=encoder.example, config=config, tokenizer=encoder.tokenizer
    )

    def results() -> Iterator[tuple[jax.Array, jax.Array]]:
        for batch in batches:
            fields = [batch[name] for name in ("image", "tokens", "token_mask")]
            yield encoder.encode(*place.spread(fields, encoder.mesh))
            progress(int(batch["valid"].sum()))

    rows = zip(*place.fetch_all(results()), strict=True)
    return [np.concatenate(each)[: len(part)] for each in rows]


def _folder(
    directory: Location, info: dict[str, Any], source: Source, dtype: str
) -> EmbeddingFolder:
    """Opens the folder of a split.

    Embeddings of version 0.1.0 contain no digest of their records; they are complete if their
    keys and captions are the source's.
    """
    stored = {} if isinstance(directory, Url) else read_stats(directory).get("info", {})
    if stored and "data_digest" not in stored and _has_rows_of(directory, source):
        info = {name: value for name, value in info.items() if name != "data_digest"}
    return EmbeddingFolder(directory, info=info, dtype=dtype)


def _has_rows_of(directory: Location, source: Source) -> bool:
    """True if the rows on disk have the keys and captions of the records of `source`."""
    if not read_stats(directory).get("finished", True):
        return False
    rows = EmbeddingSource(str(directory), verify=False)
    return len(rows) == len(source) and all(
        rows[index][name] == source[index][name]
        for index in range(len(rows))
        for name in ("key", "caption")
    )


class _Part:
    """The records of one shard; `keys` and `captions` are those of the records read so far."""

    def __init__(self, source: Source, numbers: Sequence[int], counts: Sequence[int] | None = None):
        """Takes `counts[i]` captions of record `numbers[i]`; None = one of each."""
        self._source, self._numbers = source, numbers
        repeats = [1] * len(numbers) if counts is None else counts
        self._starts = np.concatenate([[0], np.cumsum(repeats, dtype=np.int64)])
        self.keys, self.captions = [""] * len(self), [""] * len(self)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, index: int) -> Record:
        if not 0 <= index < len(self):
            raise IndexError(index)
        number = int(np.searchsorted(self._starts, index, side="right")) - 1
        record = self._source[self._numbers[number]]
        position = index - int(self._starts[number])
        caption = record["captions"][position] if position else record["caption"]
        self.keys[index], self.captions[index] = str(record["key"]), str(caption)
        return {**record, "caption": caption}


def _caption_counts(source: Source, numbers: Sequence[int], workers: int) -> list[int]:
    """Returns the number of captions of some records, whose images are not read."""
    with futures.ThreadPoolExecutor(workers) as pool:
        records = pool.map(lambda number: without_image(source, number), numbers)
        return [len(record.get("captions", [""])) for record in records]


def _check_tokenizer(data: str, clip: str) -> None:
    if data and data != clip:
        raise UserError(
            f"the data set has tokenizer {data[:12]}, the CLIP export {clip[:12]}; prepare the "
            "data with the CLIP's tokenizer (--tokenizer=EXPORT/tokenizer)."
        )
