"""Writes the features of a frozen text encoder for all captions of a data set, shard by shard.

A shard contains the distinct captions of SHARD consecutive records. As in `dataset_embedding` every
process computes whole shards, and an interrupted run continues with the missing ones.
"""

import itertools
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent import futures

import jax
import numpy as np
from jaxtyping import Bool, Float, Int
from tqdm import tqdm

from unclip_jax.conditioning.captions import TokenIds
from unclip_jax.data import sources
from unclip_jax.data.dataset import FeatureKeys, Source, content_digest, without_image
from unclip_jax.data.text_features import TextFeatureFolder
from unclip_jax.handoff import load as handoff
from unclip_jax.inference.compiled_function import low_memory_options
from unclip_jax.inference.dataset_embedding import complete_together
from unclip_jax.inference.load import load_text_encoder
from unclip_jax.stages import text_encoder
from unclip_jax.tokenization import caption_tokenizer
from unclip_jax.tokenization.caption_tokenizer import Tokenizer

SHARD = 8192  # records

Tokens = Int[np.ndarray, " b l"]
Encode = Callable[[Tokens, Bool[np.ndarray, " b l"]], Float[np.ndarray, " b l d"]]


def embed_captions(
    data: str,
    *,
    encoder: pathlib.Path,
    out: pathlib.Path,
    keys: FeatureKeys,
    splits: Sequence[str] = (),
    batch_size: int = 64,
    workers: int = 8,
    share: tuple[int, int] = (0, 1),
) -> int:
    """Writes the features of all captions of a data set, and of the empty one.

    The process that writes the last shard completes the folder.

    Args:
        data: path of the data set (`sources.open_dataset`).
        encoder: export of a text encoder.
        out: folder to write, or to continue.
        keys: names of image and caption in data sets of other formats.
        splits: names; () = all.
        batch_size: captions per batch.
        workers: threads that read records.
        share: (I, N) writes every N-th shard from number I; several processes divide these
            among themselves.

    Returns:
        The number of captions in the folder.

    Raises:
        UserError: no such data set, split or export; or `out` holds features of another encoder or
            of other data.
    """
    cfg, params, manifest = load_text_encoder(encoder)
    tokenizer = caption_tokenizer.load(handoff.tokenizer_dir(encoder))
    context, width = cfg.model.context, cfg.model.width
    dataset = sources.open_dataset(data, keys=keys)
    opened = {split: dataset.open_split(split) for split in splits or dataset.splits}
    facts = {"text_encoder_id": manifest.text_encoder_id, "width": width, "context": context}
    facts |= {"tokenizer_hash": tokenizer.hash}
    origin = {split: content_digest(source) for split, source in opened.items()}
    folder = TextFeatureFolder(out, info={**facts, "data": origin})
    run = jax.jit(
        lambda params, tokens, mask: (
            text_encoder.encode(cfg, params, TokenIds(tokens, mask)).sequence
        ),
        compiler_options=low_memory_options(),
    )
    rows = [(source, i) for source in opened.values() for i in range(0, len(source), SHARD)]
    first, step = share[0] * jax.process_count() + jax.process_index(), share[1]
    own = range(first, len(rows), step * jax.process_count())
    missing = [index for index in own if not folder.is_written(index)]
    bar = tqdm(missing, desc="embed captions", unit="shard", disable=jax.process_index() > 0)
    with futures.ThreadPoolExecutor(workers) as pool:
        for index in bar:
            source, start = rows[index]
            numbers = range(start, min(start + SHARD, len(source)))
            captions = itertools.chain([""] * (index == 0), _captions(source, numbers, pool))
            tokens = _distinct(captions, tokenizer, context)
            features = _features(tokens, lambda *batch: run(params, *batch), batch_size, context)
            folder.write(index, tokens, [*features])
    complete_together(folder, len(rows), alone=step == 1)
    return folder.captions()


def _captions(
    source: Source, numbers: Sequence[int], pool: futures.ThreadPoolExecutor
) -> Iterator[str]:
    """Yields all captions of some records, of which memory holds only those being read."""

    def read(number: int) -> Sequence[str]:
        record = without_image(source, number)
        return record.get("captions", [record["caption"]])

    return itertools.chain.from_iterable(pool.map(read, numbers))


def _distinct(
    captions: Iterable[str], tokenizer: Tokenizer, context: int
) -> list[Int[np.ndarray, " _"]]:
    """Returns the token ids of the distinct captions, without padding."""
    rows: dict[bytes, np.ndarray] = {}
    for caption in captions:
        tokens, mask = tokenizer.encode([caption], length=context)
        row = tokens[0][mask[0]]
        rows.setdefault(row.tobytes(), row)
    return [*rows.values()]


def _features(
    rows: Sequence[Int[np.ndarray, " _"]], encode: Encode, size: int, context: int
) -> Iterator[Float[np.ndarray, " _ d"]]:
    """Yields the features of the tokens of every caption."""
    for start in range(0, len(rows), size):
        batch = rows[start : start + size]
        tokens, mask = np.zeros((size, context), np.int32), np.zeros((size, context), bool)
        for i, row in enumerate(batch):
            tokens[i, : len(row)], mask[i, : len(row)] = row, True
        features = np.asarray(encode(tokens, mask).astype("bfloat16"))
        yield from (features[i, : len(row)] for i, row in enumerate(batch))
