"""Feature extractors by name, and features of a set of images on all devices.

With several processes, each decodes a part of every batch and all receive all features, in the
order of the images, so counts are exact and scores do not depend on the number of processes.
"""

import functools
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from unclip_jax.core.checks import UserError
from unclip_jax.evaluation.image_sets import ImageSet
from unclip_jax.handoff.export import params_id
from unclip_jax.inference.load import load_clip
from unclip_jax.metrics import extractors, npz
from unclip_jax.metrics import inception_weights as weights
from unclip_jax.metrics.extractors import Extractor
from unclip_jax.metrics.report import SetFeatures
from unclip_jax.metrics.running import RunningMoments
from unclip_jax.parallel import place
from unclip_jax.parallel.mesh import batch_sharding, replicated, sampling_mesh, traced_on

KINDS = ("inception", "clip")


def open_extractor(text: str, *, resize: str = "tf1") -> Extractor:
    """Opens the extractor "inception:FILE" or "clip:EXPORT".

    Raises:
        UserError: text of another form, or weights that are missing, damaged or of another network.
    """
    kind, colon, location = text.partition(":")
    if kind not in KINDS or not colon or not location:
        raise UserError(
            f"--features is {text!r}; write inception:FILE (pytorch-fid's weights) or clip:EXPORT "
            "(the export of a CLIP)."
        )
    path = pathlib.Path(location)
    if kind == "inception":
        params = weights.load(path)
        return extractors.inception(params, weights=params_id(params)[:16], resize_name=resize)
    cfg, params, manifest = load_clip(path)
    return extractors.clip(params, cfg=cfg.model, weights=str(manifest.clip_id)[:16])


def collect(
    extractor: Extractor, images: ImageSet, *, batch_size: int = 64, name: str = "features"
) -> SetFeatures:
    """Computes the features of a whole set, and their moments.

    Raises:
        UserError: an image cannot be read or has another size, or there is only one.
    """
    parts: dict[str, list[np.ndarray]] = {"pool": [], "probabilities": []}
    running: dict[str, RunningMoments] = {}
    for batch in features(extractor, images, batch_size=batch_size, name=name):
        for key, rows in batch.items():
            if key in parts:
                parts[key].append(rows)
            if key != "probabilities":
                running[key] = running.get(key, RunningMoments.none(rows.shape[1])).add(rows)
    assert running["pool"].count == images.count, (running["pool"].count, images.count)
    arrays = {key: np.concatenate(rows) if rows else None for key, rows in parts.items()}
    return SetFeatures(
        facts=images.facts,
        protocol=extractor.protocol,
        moments=running["pool"].moments(),
        spatial=running["spatial"].moments() if "spatial" in running else None,
        pool=arrays["pool"],
        probabilities=arrays["probabilities"],
        lossy=images.lossy,
    )


def features(
    extractor: Extractor, images: ImageSet, *, batch_size: int, name: str
) -> Iterator[dict[str, np.ndarray]]:
    """Yields the features of a set in order, one batch at a time, without padding."""
    mesh, batch_size = sampling_mesh(min(batch_size, images.count))
    run = _compiled(extractor.apply, mesh)
    params = place.replicate(extractor.params, mesh)
    own = batch_size // jax.process_count()
    rows = slice(jax.process_index() * own, (jax.process_index() + 1) * own)
    with tqdm(
        total=images.count, unit="image", desc=name, disable=jax.process_index() > 0
    ) as progress_bar:
        done = 0
        for batch in images.batches(batch_size, rows):
            missing = own - len(batch)
            if missing:  # one shape, one compilation
                batch = np.concatenate([batch, np.zeros((missing, *batch.shape[1:]), np.uint8)])
            inputs: Any = place.global_batch({"x": extractor.prepare(batch)}, mesh)["x"]
            count = min(batch_size, images.count - done)
            yield {key: np.asarray(z)[:count] for key, z in run(params, inputs).items()}
            done += count
            progress_bar.update(count)


@functools.lru_cache(maxsize=8)
def _compiled(apply: Callable[..., Any], mesh: Mesh) -> Callable[..., Any]:
    """Compiles `apply` over the devices of `mesh`; every device receives the whole result."""
    whole, split = replicated(mesh), batch_sharding(mesh)
    return jax.jit(traced_on(mesh, apply), in_shardings=(whole, split), out_shardings=whole)


def from_statistics(path: pathlib.Path) -> SetFeatures:
    """Reads a file of reference statistics, which has moments but no features.

    Raises:
        UserError: the file has no statistics.
    """
    stored = npz.read_statistics(path)
    facts = {"source": str(path), "count": None, **stored.protocol.get("pictures", {})}
    protocol = {key: value for key, value in stored.protocol.items() if key != "pictures"}
    return SetFeatures(facts, protocol, stored.pool, stored.spatial)


def statistics(collected: SetFeatures) -> npz.Statistics:
    """Returns the statistics that `from_statistics` reads."""
    protocol = {**collected.protocol, "pictures": dict(collected.facts)}
    return npz.Statistics(collected.moments, collected.spatial, protocol)
