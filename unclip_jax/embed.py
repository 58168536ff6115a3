r"""Run a frozen CLIP over a data set once and keep its embeddings.

    python -m unclip_jax.embed --clip=runs/shapes/clip/export --data=runs/shapes/data \
        --out=runs/shapes/embeddings

Writes OUT/SPLIT/{img_emb,text_emb,metadata} in the layout of clip-retrieval and img2dataset, with
their statistics. What is stopped continues when the same command runs again. Of several processes
each embeds a part of every batch, and the first writes.
"""

import argparse
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from unclip_jax.cli import entry, flags
from unclip_jax.core.checks import UserError, positive
from unclip_jax.data import loader, sources, text
from unclip_jax.data.dataset import Source
from unclip_jax.data.embedding_writer import EmbeddingWriter
from unclip_jax.data.examples import ExampleConfig
from unclip_jax.data.loader import LoaderConfig
from unclip_jax.handoff import load as handoff
from unclip_jax.inference.load import load_clip
from unclip_jax.models.clip import Clip
from unclip_jax.parallel import cluster, place
from unclip_jax.parallel.mesh import batch_sharding, replicated, sampling_mesh, traced_on
from unclip_jax.parallel.multihost import check_same, gather

SHARD_SIZE = 16_384  # rows between two points at which an interrupted run continues

Encode = Callable[[Any, Any, Any, Any], tuple[jax.Array, jax.Array]]


def main(argv: Sequence[str]) -> None:
    """Embed every split of a data set."""
    args = parse(argv)
    positive("--batch", args.batch)
    flags.start_processes(args)
    asked = {name: str(value) for name, value in vars(args).items() if name != "process_id"}
    check_same({**asked, **cluster.facts()})
    mesh, batch_size = sampling_mesh(args.batch)
    cfg, params, card = load_clip(args.clip)
    tokenizer = text.load(handoff.tokenizer_dir(args.clip))
    dataset = sources.open_dataset(args.data, keys=flags.feature_keys(args))
    _check_tokenizer(dataset.tokenizer_hash, tokenizer.hash)
    encode = encoder(Clip(cfg.model), mesh=mesh, raw=args.raw)
    params = place.copied(params, mesh)
    example = ExampleConfig(
        fields=("image", "tokens", "token_mask"),
        image_size=cfg.model.image_size,
        length=cfg.model.context,
    )
    for split in args.splits or dataset.splits:
        info = {
            "clip_id": card.clip_id,
            "tokenizer_hash": tokenizer.hash,
            "data": split,
            "image_size": cfg.model.image_size,
            **({"embedding": "raw"} if args.raw else {}),
        }
        embed_split(
            dataset.open_split(split),
            encode=lambda *batch: encode(params, *batch),
            example=example,
            tokenizer=tokenizer,
            writer=_writer(args.out / split, info),
            batch_size=batch_size,
            mesh=mesh,
            name=split,
        )


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Command-line flags."""
    parser = argparse.ArgumentParser(
        prog="python -m unclip_jax.embed", description="Embed a data set with CLIP."
    )
    parser.add_argument("--clip", type=pathlib.Path, required=True, help="export of a CLIP")
    flags.add_data(parser)
    parser.add_argument("--out", type=pathlib.Path, required=True, help="folder to write")
    parser.add_argument("--splits", nargs="*", help="default: all")
    parser.add_argument("--batch", type=int, default=256, help="examples at once")
    parser.add_argument(
        "--raw",
        action="store_true",
        help="as CLIP gives them, not of norm 1: for stages of Karlo's kind",
    )
    flags.add_processes(parser)
    return parser.parse_args(argv)


def encoder(module: Clip, *, mesh: Mesh, raw: bool = False) -> Encode:
    """The compiled frozen CLIP: (params, images, tokens, mask) -> (z_img, z_txt), raw or of norm 1.

    A batch is split over `mesh`; every device gets the whole result.
    """

    def encode(params, images, tokens, token_mask):
        if raw:
            given = ({"params": params}, images, tokens, token_mask)
            both: Any = module.apply(*given, method=Clip.run)
            return both[0], both[1].pooled
        out: Any = module.apply({"params": params}, images, tokens, token_mask)
        return out.z_img, out.z_txt

    whole, split = replicated(mesh), batch_sharding(mesh)
    places = (whole, split, split, split)
    return jax.jit(traced_on(mesh, encode), in_shardings=places, out_shardings=whole)


def _writer(directory: pathlib.Path, info: dict[str, Any]) -> EmbeddingWriter | None:
    """What the first process writes with; None in the others."""
    if jax.process_index() > 0:
        return None
    return EmbeddingWriter(directory, info=info, shard_size=SHARD_SIZE)


def embed_split(
    source: Source,
    *,
    encode: Callable[..., tuple[jax.Array, jax.Array]],
    example: ExampleConfig,
    tokenizer: text.Tokenizer,
    writer: EmbeddingWriter | None,
    batch_size: int,
    mesh: Mesh,
    name: str,
) -> None:
    """Embed what `writer` does not hold yet, in order, one batch ahead of the device."""
    written = gather(writer.written if writer else 0)[0]
    rest = _Rest(source, written)
    quiet = writer is None
    bar = tqdm(
        total=len(source), initial=written, desc=f"embed {name}", unit="example", disable=quiet
    )
    if len(rest):
        batches = loader.make_loader(
            rest,
            example=example,
            config=LoaderConfig(
                batch_size=batch_size, shuffle=False, num_epochs=1, remainder="pad"
            ),
            tokenizer=tokenizer,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )
        pending = None
        for index, batch in enumerate(batches):
            fields = {name: batch[name] for name in ("image", "tokens", "token_mask")}
            made = encode(*place.global_batch(fields, mesh).values())
            if pending is not None:
                bar.update(_store(writer, *pending))
            start = index * batch_size
            pending = (rest, range(start, min(start + batch_size, len(rest))), made)
        if pending is not None:
            bar.update(_store(writer, *pending))
    bar.close()
    if writer is not None:
        writer.finish()
    gather(name)  # nobody leaves before the first process has written


def _store(writer: EmbeddingWriter | None, rest: "_Rest", rows: range, made: Any) -> int:
    """Hand one batch to the writer, without its padding."""
    if writer is not None:
        z_img, z_txt = (np.asarray(z)[: len(rows)] for z in made)
        records = [rest[row] for row in rows]
        keys, captions = ([str(each[name]) for each in records] for name in ("key", "caption"))
        writer.add(keys, captions, z_img=z_img, z_txt=z_txt)
    return len(rows)


class _Rest:
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


if __name__ == "__main__":
    entry.run(lambda: main(sys.argv[1:]))
