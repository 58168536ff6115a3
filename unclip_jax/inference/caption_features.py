"""Features of the captions of a data set by a frozen text encoder, written to disk."""

import pathlib
from collections.abc import Iterator, Sequence

import jax
import numpy as np
from tqdm import tqdm

from unclip_jax.data import sources, text
from unclip_jax.data.dataset import FeatureKeys, Source
from unclip_jax.data.text import Tokenizer
from unclip_jax.data.text_features import TextFeatureWriter, digest
from unclip_jax.handoff import load as handoff
from unclip_jax.inference.load import load_text_encoder
from unclip_jax.stages import text_encoder
from unclip_jax.stages.captions import TokenIds

SHARD = 8192  # captions


def embed_captions(
    data: str,
    *,
    encoder: pathlib.Path,
    out: pathlib.Path,
    keys: FeatureKeys,
    splits: Sequence[str] = (),
    batch_size: int = 64,
) -> int:
    """Writes the features of all captions of a data set, and of the empty one, each once.

    Args:
        data: path of the data set (`sources.open_dataset`).
        encoder: export of a text encoder.
        out: folder to write, or to continue.
        keys: names of image and caption in data sets of other formats.
        splits: names; () = all.
        batch_size: captions at once.

    Returns:
        The number of captions in the folder.

    Raises:
        UserError: no such data set, split or export; or `out` holds features of another encoder.
    """
    cfg, params, card = load_text_encoder(encoder)
    tokenizer = text.load(handoff.tokenizer_dir(encoder))
    context, width = cfg.model.context, cfg.model.width
    facts = {"text_encoder_id": card.text_encoder_id, "width": width, "context": context}
    writer = TextFeatureWriter(out, info={**facts, "tokenizer_hash": tokenizer.hash})
    run = jax.jit(
        lambda params, tokens, mask: (
            text_encoder.encode(cfg, params, TokenIds(tokens, mask)).sequence
        )
    )
    dataset = sources.open_dataset(data, keys=keys)
    opened = [dataset.open_split(split) for split in splits or dataset.splits]
    shard: list[tuple[np.ndarray, np.ndarray]] = []
    for rows in _batches(opened, tokenizer, writer.digests, context=context, size=batch_size):
        tokens, mask = np.zeros((2, batch_size, context), np.int32)
        for i, row in enumerate(rows):
            tokens[i, : len(row)], mask[i, : len(row)] = row, 1
        features = np.asarray(run(params, tokens, mask.astype(bool)).astype("bfloat16"))
        shard += [(row, features[i, : len(row)]) for i, row in enumerate(rows)]
        if len(shard) >= SHARD:
            writer.add(*zip(*shard, strict=True))
            shard = []
    if shard:
        writer.add(*zip(*shard, strict=True))
    writer.finish()
    return len(writer.digests)


def _batches(
    opened: Sequence[Source], tokenizer: Tokenizer, stored: set[bytes], *, context: int, size: int
) -> Iterator[list[np.ndarray]]:
    """Yields batches of the real tokens of captions that are not stored yet, each once."""
    digests, batch = set(stored), []
    for caption in _captions(opened):
        tokens, mask = tokenizer.encode([caption], length=context)
        row = tokens[0][mask[0]]
        if (name := digest(row)) in digests:
            continue
        digests.add(name)
        batch.append(row)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _captions(opened: Sequence[Source]) -> Iterator[str]:
    yield ""  # which guidance and `empty_captions` need
    for source in opened:
        for index in tqdm(range(len(source)), desc="embed captions", unit="example"):
            record = source[index]
            yield from record.get("captions", [record["caption"]])
