"""Embeds whole data sets with a frozen CLIP, resumably, in one process or several."""

import operator
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from unclip_jax.core.checks import UserError
from unclip_jax.data import loader, sources, text
from unclip_jax.data.dataset import FeatureKeys, Source, content_digest
from unclip_jax.data.embedding_writer import EmbeddingWriter
from unclip_jax.data.embeddings import read_stats, stored_tables
from unclip_jax.data.examples import ExampleConfig
from unclip_jax.data.loader import LoaderConfig
from unclip_jax.data.text import Tokenizer
from unclip_jax.handoff import load as handoff
from unclip_jax.inference.load import load_clip
from unclip_jax.models.clip import Clip
from unclip_jax.parallel import place
from unclip_jax.parallel.mesh import batch_sharding, replicated, sampling_mesh, traced_on
from unclip_jax.parallel.multihost import gather

SHARD_SIZE = 16_384  # rows between two points at which an interrupted run continues

Encode = Callable[[Any, Any, Any, Any], tuple[jax.Array, jax.Array]]


class BatchEncoder(NamedTuple):
    """A frozen CLIP and the batches it reads.

    Attributes:
        encode: batch fields -> (z_img, z_txt), each [b z].
        example: fields of an example and their sizes.
        tokenizer: of the captions.
        batch_size: examples at once.
        mesh: devices over which a batch is split.
    """

    encode: Callable[..., tuple[jax.Array, jax.Array]]
    example: ExampleConfig
    tokenizer: Tokenizer
    batch_size: int
    mesh: Mesh


def embed_dataset(
    data: str,
    *,
    clip: pathlib.Path,
    out: pathlib.Path,
    splits: Sequence[str] = (),
    keys: FeatureKeys | None = None,
    batch_size: int = 256,
    raw: bool = False,
    all_captions: bool = False,
) -> None:
    """Writes OUT/SPLIT for every split of a data set, or continues there.

    Args:
        data: path of the data set (`sources.open_dataset`).
        clip: export of a CLIP.
        out: folder to write.
        splits: names; () = all.
        keys: names of image and caption in data sets of other formats.
        batch_size: examples at once, rounded up to a multiple of the devices.
        raw: as CLIP computes them, not of norm 1.
        all_captions: a row for every caption of an image, not for the first alone.

    Raises:
        UserError: no such data set, split or export; tokenised for another CLIP; or `out` holds
            embeddings of another origin.
    """
    mesh, batch_size = sampling_mesh(batch_size)
    cfg, params, manifest = load_clip(clip)
    tokenizer = text.load(handoff.tokenizer_dir(clip))
    dataset = sources.open_dataset(data, keys=keys)
    _check_tokenizer(dataset.tokenizer_hash, tokenizer.hash)
    encode = compile_encoder(Clip(cfg.model), mesh=mesh, raw=raw)
    params = place.copied(params, mesh)
    example = ExampleConfig(
        fields=("image", "tokens", "token_mask"),
        image_size=cfg.model.image_size,
        length=cfg.model.context,
    )
    encoder = BatchEncoder(
        lambda *fields: encode(params, *fields), example, tokenizer, batch_size, mesh
    )
    for split in splits or dataset.splits:
        source = dataset.open_split(split)
        info = {
            "clip_id": manifest.clip_id,
            "tokenizer_hash": tokenizer.hash,
            "data": split,
            "data_digest": content_digest(source),
            "image_size": cfg.model.image_size,
            **({"embedding": "raw"} if raw else {}),
            **({"captions": "all"} if all_captions else {}),
        }
        source = _EveryCaption(source) if all_captions else source
        embed_split(source, encoder, writer=_writer(out / split, info, source), name=split)


def compile_encoder(module: Clip, *, mesh: Mesh, raw: bool = False) -> Encode:
    """Compiles the frozen CLIP: (params, images, tokens, mask) -> (z_img, z_txt), raw or of norm 1.

    A batch is split over `mesh`; every device gets the whole result.
    """

    def encode(params, images, tokens, token_mask):
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
    source: Source, encoder: BatchEncoder, *, writer: EmbeddingWriter | None, name: str
) -> None:
    """Embeds the records that `writer` does not hold yet, in order, one batch ahead of the device.

    Of several processes each embeds a part of every batch; `writer` is None in all but the first.
    """
    written = gather(writer.written if writer else 0)[0]
    records = _Tail(source, written)
    bar = tqdm(
        total=len(source),
        initial=written,
        desc=f"embed {name}",
        unit="example",
        disable=writer is None,
    )
    pending = None
    for index, batch in enumerate(_batches(records, encoder)):
        fields = {name: batch[name] for name in ("image", "tokens", "token_mask")}
        vectors = encoder.encode(*place.global_batch(fields, encoder.mesh).values())
        if pending is not None:
            bar.update(_store(writer, *pending))
        start = index * encoder.batch_size
        rows = range(start, min(start + encoder.batch_size, len(records)))
        pending = (records, rows, vectors)
    if pending is not None:
        bar.update(_store(writer, *pending))
    bar.close()
    if writer is not None:
        writer.finish()
    gather(name)  # a barrier: all processes wait until the first has written


def _batches(records: "_Tail", encoder: BatchEncoder) -> Any:
    """Returns one padded pass over the records, this process's part of every batch."""
    if not len(records):
        return ()
    return loader.make_loader(
        records,
        example=encoder.example,
        config=LoaderConfig(
            batch_size=encoder.batch_size, shuffle=False, num_epochs=1, remainder="pad"
        ),
        tokenizer=encoder.tokenizer,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )


def _writer(
    directory: pathlib.Path, info: dict[str, Any], source: Source
) -> EmbeddingWriter | None:
    """Returns the writer of the first process; None in the others.

    Embeddings of version 0.1.0 do not state the digest of their records; those whose keys and
    captions are the source's are continued.
    """
    if jax.process_index() > 0:
        return None
    stored = read_stats(directory).get("info", {})
    if stored and "data_digest" not in stored and _has_rows_of(directory, source):
        info = {name: value for name, value in info.items() if name != "data_digest"}
    return EmbeddingWriter(directory, info=info, shard_size=SHARD_SIZE)


def _has_rows_of(directory: pathlib.Path, source: Source) -> bool:
    """True if the rows on disk have the keys and captions of the first records of `source`."""
    rows = [row for table in stored_tables(directory) for row in table.to_pylist()]
    fields = operator.itemgetter("key", "caption")
    return len(rows) <= len(source) and all(
        fields(row) == fields(source[index]) for index, row in enumerate(rows)
    )


def _store(writer: EmbeddingWriter | None, records: "_Tail", rows: range, vectors: Any) -> int:
    """Adds one batch to the writer, without its padding; returns the number of rows."""
    if writer is not None:
        z_img, z_txt = (np.asarray(z)[: len(rows)] for z in vectors)
        batch = [records[row] for row in rows]
        keys, captions = ([str(each[name]) for each in batch] for name in ("key", "caption"))
        writer.add(keys, captions, z_img=z_img, z_txt=z_txt)
    return len(rows)


class _EveryCaption:
    """The records of a source once for every caption of theirs."""

    def __init__(self, source: Source):
        self._source = source
        records = tqdm(range(len(source)), desc="counting captions", delay=2, leave=False)
        counts = [len(source[index].get("captions", [""])) for index in records]
        self._starts = np.concatenate([[0], np.cumsum(counts)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, index: int) -> Any:
        number = int(np.searchsorted(self._starts, index, side="right")) - 1
        record = self._source[number]
        captions = record.get("captions", [record["caption"]])
        return {**record, "caption": captions[index - int(self._starts[number])]}


class _Tail:
    """The records of a source from `start` on."""

    def __init__(self, source: Source, start: int):
        self._source, self._start = source, start

    def __len__(self) -> int:
        return len(self._source) - self._start

    def __getitem__(self, index: int) -> Any:
        if not 0 <= index < len(self):
            raise IndexError(index)
        return self._source[index + self._start]


def _check_tokenizer(data: str, clip: str) -> None:
    if data and data != clip:
        raise UserError(
            f"the data set has tokenizer {data[:12]}, the CLIP export {clip[:12]}; prepare the "
            "data with the CLIP's tokenizer (--tokenizer=EXPORT/tokenizer)."
        )
