"""`probe-pca`: what the first components of an embedding say (unCLIP, section 4, figure 7)."""

import argparse
import pathlib

import jax.numpy as jnp
import numpy as np

from unclip_jax.cli import flags, session
from unclip_jax.core.checks import UserError, in_range
from unclip_jax.data.embeddings import EmbeddingSource
from unclip_jax.inference import image_files, pca_probe
from unclip_jax.inference.engine import InferenceEngine
from unclip_jax.inference.latents import Latent

DESCRIPTION = "Decode pictures from the first principal components of their z_img."
MAX_EMBEDDINGS = 200_000  # more do not change the components, only the time


def parse(argv: list[str]) -> argparse.Namespace:
    """Arguments of the command."""
    parser = flags.parser("probe-pca", DESCRIPTION)
    parser.add_argument("pictures", type=pathlib.Path, nargs="+")
    parser.add_argument(
        "--embeddings", type=pathlib.Path, required=True, help="one split that `embed` wrote"
    )
    parser.add_argument("--components", type=int, nargs="+", help="default: 20 to 320 (figure 7)")
    flags.add_decoding(parser)
    return parser.parse_args(argv)


def run(args: argparse.Namespace, *, studio: InferenceEngine | None = None) -> str:
    """Write one row per picture: few components to all, under one noise."""
    flags.check(args)
    read = [image_files.read(path) for path in args.pictures]
    source = EmbeddingSource(args.embeddings)
    studio = studio or InferenceEngine.open(args.models, batch=args.batch)
    dim = source.dim("z_img")
    made_by = source.info().get("clip_id", studio.clip_id)
    if made_by != studio.clip_id or dim != studio.cascade.decoder.model.z_dim:
        raise UserError(
            f"the embeddings in {args.embeddings} ({dim} dimensions) are of CLIP "
            f"{made_by[:12]!r}, these models use {studio.clip_id[:12]!r}; embed the data again."
        )
    counts = tuple(args.components or pca_probe.default_counts(dim))
    for count in counts:
        in_range("--components", count, 0, dim)
    flags.check_count(len(counts) * len(read))
    pca = pca_probe.fit(source.vectors("z_img", 0, min(len(source), MAX_EMBEDDINGS)))
    z_img = np.asarray(studio.image_embeddings(read))
    rows = np.concatenate([pca_probe.keep_first(pca, z, counts=counts) for z in z_img])
    noise = studio.fresh_noise(seed=args.seed, indices=[0])
    latent = Latent(jnp.asarray(rows), jnp.repeat(noise, len(rows), axis=0))
    share = np.cumsum(pca.variance) / pca.variance.sum()
    return session.finish(
        args,
        studio,
        studio.draw(session.order(args, latent, caption=None)).images,
        labels=[f"{picture.name}: {count}" for picture in read for count in counts],
        inputs=read,
        columns=len(counts),
        facts={"variance_kept": {str(n): float(share[n - 1]) if n else 0.0 for n in counts}},
    )
