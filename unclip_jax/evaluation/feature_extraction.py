"""A feature extractor by its name, and its run over a set of pictures on all devices.

Of several processes each decodes its part of every batch and all get all features, in the order of
the pictures, so that counts are exact and scores do not depend on the number of processes.
"""

import functools
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from unclip_jax.convert import inception as weights
from unclip_jax.core.checks import UserError
from unclip_jax.evaluation.image_sets import PictureSet
from unclip_jax.handoff.export import params_id
from unclip_jax.inference.load import load_clip
from unclip_jax.metrics import extractors, npz
from unclip_jax.metrics.extractors import Extractor
from unclip_jax.metrics.report import Collected
from unclip_jax.metrics.running import Running
from unclip_jax.parallel import place
from unclip_jax.parallel.mesh import batch_sharding, replicated, sampling_mesh, traced_on

KINDS = ("inception", "clip")


def open_extractor(text: str, *, resize: str = "tf1") -> Extractor:
    """From "inception:FILE" or "clip:EXPORT".

    Raises:
        UserError: another form, or weights that are missing, damaged or of another network.
    """
    kind, colon, place_of = text.partition(":")
    if kind not in KINDS or not colon or not place_of:
        raise UserError(
            f"--features is {text!r}; write inception:FILE (pytorch-fid's weights) or clip:EXPORT "
            "(the export of a CLIP)."
        )
    path = pathlib.Path(place_of)
    if kind == "inception":
        params = weights.load(path)
        return extractors.inception(params, weights=params_id(params)[:16], resize_name=resize)
    cfg, params, card = load_clip(path)
    return extractors.clip(params, cfg=cfg.model, weights=str(card.clip_id)[:16])


def collect(
    extractor: Extractor, pictures: PictureSet, *, batch_size: int = 64, name: str = "features"
) -> Collected:
    """Features of a whole set.

    Raises:
        UserError: a picture cannot be read or has another size, or there is but one.
    """
    parts: dict[str, list[np.ndarray]] = {"pool": [], "probabilities": []}
    seen: dict[str, Running] = {}
    for batch in features(extractor, pictures, batch_size=batch_size, name=name):
        for key, rows in batch.items():
            if key in parts:
                parts[key].append(rows)
            if key != "probabilities":
                seen[key] = seen.get(key, Running.none(rows.shape[1])).add(rows)
    assert seen["pool"].count == pictures.count, (seen["pool"].count, pictures.count)
    kept = {key: np.concatenate(rows) if rows else None for key, rows in parts.items()}
    return Collected(
        facts=pictures.facts,
        protocol=extractor.protocol,
        moments=seen["pool"].moments(),
        spatial=seen["spatial"].moments() if "spatial" in seen else None,
        pool=kept["pool"],
        probabilities=kept["probabilities"],
        lossy=pictures.lossy,
    )


def features(
    extractor: Extractor, pictures: PictureSet, *, batch_size: int, name: str
) -> Iterator[dict[str, np.ndarray]]:
    """Features of a set in order, one batch at a time, without padding."""
    mesh, batch_size = sampling_mesh(min(batch_size, pictures.count))
    run = _compiled(extractor.apply, mesh)
    params = place.copied(extractor.params, mesh)
    own = batch_size // jax.process_count()
    rows = slice(jax.process_index() * own, (jax.process_index() + 1) * own)
    quiet = jax.process_index() > 0
    with tqdm(total=pictures.count, unit="image", desc=name, disable=quiet) as bar:
        done = 0
        for part in pictures.batches(batch_size, rows):
            missing = own - len(part)
            if missing:  # one shape, one compilation
                part = np.concatenate([part, np.zeros((missing, *part.shape[1:]), np.uint8)])
            given: Any = place.global_batch({"x": extractor.prepare(part)}, mesh)["x"]
            count = min(batch_size, pictures.count - done)
            yield {key: np.asarray(z)[:count] for key, z in run(params, given).items()}
            done += count
            bar.update(count)


@functools.lru_cache(maxsize=8)
def _compiled(apply: Callable[..., Any], mesh: Mesh) -> Callable[..., Any]:
    """`apply` over the devices of `mesh`; every device gets the whole result."""
    whole, split = replicated(mesh), batch_sharding(mesh)
    return jax.jit(traced_on(mesh, apply), in_shardings=(whole, split), out_shardings=whole)


def from_statistics(path: pathlib.Path) -> Collected:
    """What a reference file says, as far as it goes.

    Raises:
        UserError: it holds no statistics.
    """
    known = npz.read_statistics(path)
    facts = {"source": str(path), "count": None, **known.protocol.get("pictures", {})}
    protocol = {key: value for key, value in known.protocol.items() if key != "pictures"}
    return Collected(facts, protocol, known.pool, known.spatial)


def statistics(collected: Collected) -> npz.Statistics:
    """The inverse, for writing."""
    protocol = {**collected.protocol, "pictures": dict(collected.facts)}
    return npz.Statistics(collected.moments, collected.spatial, protocol)
