"""What all findings share: captions, what is true of them, and pictures drawn and judged alike.

Picture i of every arm starts from the same noise, so that arms are compared picture by picture.
"""

import argparse
import dataclasses
import functools
import json
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from studies.findings import baseline_runs
from studies.scoring import Judged, Truth
from unclip_jax.core.checks import UserError
from unclip_jax.core.picture import to_uint8
from unclip_jax.data import sources
from unclip_jax.inference import batched, image_files, load, text_to_image
from unclip_jax.inference.engine import InferenceEngine
from unclip_jax.inference.image_files import InputImage
from unclip_jax.inference.text_to_image import SampleOptions
from unclip_jax.metrics import frechet, shapes_checker
from unclip_jax.parallel import place
from unclip_jax.parallel.mesh import batch_sharding, replicated, sampling_mesh, traced_on
from unclip_jax.stages.prior_ar import PriorArStageConfig

BATCH = 50  # pictures at once
REFERENCE = 2000  # training pictures to which distributions are compared


class Workshop:
    """The models and their baselines at work."""

    def __init__(self, args: argparse.Namespace, rest: Sequence[str]):
        """Open the models and the captions.

        Raises:
            UserError: no such models or data, or too few examples.
        """
        self.args, self.rest = args, rest
        self.studio = functools.cache(self._studio)
        self.z_img = functools.cache(self._z_img)
        self._samplers: dict[tuple[Any, ...], Any] = {}
        self._drawn: dict[tuple[Any, ...], np.ndarray] = {}  # several findings share an arm
        self.main: InferenceEngine = self.studio(baseline_runs.MAIN)
        self.truth = self.look(args.num, args.images)

    def _studio(self, name: str) -> InferenceEngine:
        """The models, or one of the `training.BASELINES`, trained first where it is missing."""
        if name == baseline_runs.MAIN:
            return InferenceEngine(load.load_cascade(self.args.models), batch=BATCH)
        baseline = baseline_runs.named(name)
        folder = baseline_runs.make(baseline, self.args, self.rest)
        prior = baseline.part if baseline.part in load.prior_names() else "prior"
        return InferenceEngine(load.load_cascade(folder, prior_name=prior), batch=BATCH)

    def look(self, num: int, images: int, chosen: Callable[[str], bool] | None = None) -> Truth:
        """What is true of the first `num` captions, or of the first that are `chosen`.

        Raises:
            UserError: fewer captions than that, or none of them with a scene.
        """
        source = sources.open_source(self.args.data, split=self.args.split)
        records = [source[i] for i in range(len(source))]
        known = [each for each in records if each["scene"]]
        if chosen is None and (len(known) < num or num < 2):
            raise UserError(
                f"split {self.args.split!r} of {self.args.data} has {len(known)} examples of the "
                f"shapes world; --num={num} asks for others. Give 2 to {len(known)}."
            )
        known = [each for each in known if chosen is None or chosen(str(each["caption"]))][:num]
        captions = tuple(str(each["caption"]) for each in known for _ in range(images))
        scenes = tuple(_scene(each) for each in known for _ in range(images))
        if not known:
            empty = np.zeros((0, self.main.cascade.decoder.model.z_dim), np.float32)
            return Truth((), (), empty, empty, images, self.reference)
        z_img = np.repeat(self._embed_records(known), images, axis=0)
        z_txt = np.asarray(self.main.text_embeddings(captions))
        return Truth(captions, scenes, z_img, z_txt, images, self.reference)

    def _embed_records(self, records: Sequence[dict[str, Any]]) -> np.ndarray:
        found = [
            image_files.from_bytes(
                each["image"], name=str(each["key"]), where=f"record {each['key']}"
            )
            for each in records
        ]
        return np.asarray(self.main.image_embeddings(found))

    @functools.cached_property
    def known(self) -> np.ndarray:
        """[n z] embeddings of training pictures."""
        source = sources.open_source(self.args.data, split="train")
        return self._embed_records([source[i] for i in range(min(REFERENCE, len(source)))])

    @functools.cached_property
    def reference(self) -> frechet.Moments:
        """Moments of `known`."""
        return frechet.moments(self.known)

    def _z_img(self, name: str, guidance: float | None = None) -> np.ndarray:
        """[pictures z] that the prior of a run draws for `truth`."""
        return self.imagine(name, self.truth, guidance=guidance)

    def imagine(
        self,
        name: str,
        truth: Truth,
        *,
        guidance: float | None = None,
        candidates: int | None = None,
        steps: str | None = None,
        limit: float | None = None,
    ) -> np.ndarray:
        """[pictures z] that the prior of a run draws for any captions.

        `limit` holds its x_0 within so many standard deviations of a coordinate.
        """
        studio = self.studio(name)
        changes = {"guidance_scale": guidance, "steps": steps}
        changes |= {} if limit is None else {"threshold": "static", "limit": limit}
        options = SampleOptions(
            prior=batched.override(studio.cascade.prior.sampling, changes),
            num_candidates=candidates,
        )
        if isinstance(studio.cascade.prior, PriorArStageConfig):
            options = dataclasses.replace(options, num_candidates=1)
        indices = range(len(truth.captions))
        return np.asarray(
            studio.imagine(truth.captions, seed=self.args.seed, indices=indices, options=options)
        )

    def draw(
        self,
        name: str,
        z_img: np.ndarray,
        *,
        truth: Truth | None = None,
        guidance: float | None = None,
        steps: str | None = None,
        caption: bool = True,
        reads_z: bool = True,
        label: str = "",
    ) -> np.ndarray:
        """uint8 pictures by the decoder of a run.

        Args:
            name: of the run.
            z_img: one per picture.
            truth: whose captions; default: everybody's.
            guidance: of the decoder; None = as exported.
            steps: likewise.
            caption: False = the decoder is told no caption.
            reads_z: False = it is told no z_img.
            label: on the progress bar.
        """
        truth = truth or self.truth
        loaded = self.studio(name).loaded
        decoder = loaded.cascade.decoder
        if not reads_z:  # the null in place of z_img, with the same parameters
            decoder = dataclasses.replace(
                decoder, model=dataclasses.replace(decoder.model, reads_z=False)
            )
        cascade = dataclasses.replace(loaded.cascade, decoder=decoder, upsamplers=())
        changes = {"guidance_scale": guidance, "steps": steps}
        options = SampleOptions(
            decoder=batched.override(decoder.sampling, changes), condition="z_img"
        )
        mesh, size = sampling_mesh(_even(len(truth.captions)))
        arm = (name, options, reads_z, caption, truth.captions, z_img.tobytes())
        if arm in self._drawn:
            return self._drawn[arm]
        known = (name, options, reads_z, size)
        if known not in self._samplers:
            self._samplers[known] = batched.compile_sampler(cascade, options, mesh=mesh)
        run = self._samplers[known]
        base = batched.sample_images(
            loaded._replace(cascade=cascade),
            truth.captions,
            seed=self.args.seed,
            options=options,
            z_img=z_img,
            batch_size=size,
            name=f"draw {label or name}",
            sampler=run if caption else _muted(run),
        )
        self._drawn[arm] = self._enlarge(base)
        return self._drawn[arm]

    def _enlarge(self, base: np.ndarray) -> np.ndarray:
        """The upsamplers of the models, one program for all arms."""
        cascade = self.main.cascade
        if not cascade.upsamplers:
            return base
        mesh, size = sampling_mesh(_even(len(base)))
        if ("enlarge", size) not in self._samplers:

            def run(params, images, keys):
                images = images.astype(np.float32) / 127.5 - 1.0
                return to_uint8(text_to_image.upsample(cascade, params, images, keys))

            places = (replicated(mesh), batch_sharding(mesh), batch_sharding(mesh))
            self._samplers["enlarge", size] = jax.jit(
                traced_on(mesh, run), in_shardings=places, out_shardings=replicated(mesh)
            )
        made = []
        params = place.copied(self.main.params, mesh)
        for start in range(0, len(base), size):
            kept = np.minimum(np.arange(start, start + size), len(base) - 1)
            keys = text_to_image.keys_for(self.args.seed, jax.numpy.asarray(kept))
            given = place.spread((base[kept], keys), mesh)
            made.append(np.asarray(self._samplers["enlarge", size](params, *given)))
        return np.concatenate(made)[: len(base)]

    def judge(self, images: np.ndarray, asked: Sequence[str] | None = None) -> Judged:
        """Embed pictures and check each against what was asked: its caption, or a scene."""
        found = shapes_checker.check(images, list(self.truth.captions if asked is None else asked))
        z = self.main.image_embeddings([InputImage(image, "", "") for image in images])
        return Judged.of(np.asarray(z), found)


def _scene(record: dict[str, Any]) -> str:
    scene = record["scene"]
    return scene if isinstance(scene, str) else json.dumps(scene)


def _even(count: int) -> int:
    """Batches of about one size, of at most `BATCH`, so that little is drawn for nothing."""
    return -(-count // -(-count // BATCH))


def _muted(run: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """A sampler whose decoder sees no caption: all padding, as in half of its training."""

    def muted(params, captions, keys, z_img):
        tokens, mask = captions.decoder
        return run(params, captions._replace(decoder=(tokens, mask & False)), keys, z_img)

    return muted
