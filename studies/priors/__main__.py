"""Compare the places z_img can come from: no prior, either prior, guidance, the best of several.

    python -m studies.priors --models=runs/shapes --data=runs/shapes/data --out=docs/priors.md

For every one: how near the embeddings come to the true ones, how well pictures that the same
decoder draws from them follow their captions (in the shapes world), and what a sample costs. Writes
the tables between the marks in OUT.md, or a new file without them, and all figures to OUT.json.
"""

import argparse
import dataclasses
import datetime
import os
import pathlib
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from studies.priors import prior_tables
from unclip_jax.cli import entry
from unclip_jax.core.checks import UserError, in_range, positive
from unclip_jax.data import sources
from unclip_jax.data.sources import Source
from unclip_jax.evaluation import cascade
from unclip_jax.inference import batched, image_files, load, text_to_image
from unclip_jax.inference.engine import InferenceEngine
from unclip_jax.inference.text_to_image import Cascade, SampleOptions
from unclip_jax.metrics import embeddings, frechet, shapes_checker
from unclip_jax.parallel.mesh import sampling_mesh
from unclip_jax.planning import flops
from unclip_jax.version import __version__

GUIDANCE = (1.0, 2.0, 4.0)  # of the diffusion prior
CANDIDATES = (1, 2, 8)
PAPERS = 2  # candidates while guidance varies (unCLIP, section 2.2)
BATCH = 50  # captions at once, in every row, so that seconds compare
NUM, EMBEDDINGS = 200, 500  # unless the command line says otherwise or the split is smaller
REFERENCE = 2000  # training pictures to whose embeddings distributions are compared

Record = dict[str, Any]
Decode = Callable[[np.ndarray, str], dict[str, Any]]  # z_img and its row's name -> rates


class Origin(NamedTuple):
    """One row: where z_img comes from.

    Attributes:
        name: on the page.
        prior: which prior of the run draws it; "" = none.
        options: how.
    """

    name: str
    prior: str
    options: SampleOptions


class Truth(NamedTuple):
    """What drawn embeddings are held against.

    Attributes:
        records: of the held-out split.
        captions: theirs.
        z_img: their true image embeddings.
        z_txt: their caption embeddings.
        reference: moments of the embeddings of training pictures.
    """

    records: list[Record]
    captions: list[str]
    z_img: np.ndarray
    z_txt: np.ndarray
    reference: frechet.Moments


def main(argv: Sequence[str]) -> None:
    """Measure, print, write."""
    args = parse(argv)
    check(args)
    source, trained = open_data(args)
    studios = {
        name: InferenceEngine(load.load_cascade(args.models, prior_name=name), batch=BATCH)
        for name in load.prior_names()
    }
    truth = look(studios["prior"], source, trained, count=args.embeddings)
    rows = origins(studios["prior"].cascade)
    decode = decoder(studios["prior"], truth, num=args.num, seed=args.seed)
    result = {**facts(args, studios), "rows": []}
    with tqdm(rows, unit="row", desc="priors") as bar:
        for origin in bar:
            bar.set_postfix_str(origin.name)
            studio = studios.get(origin.prior)
            result["rows"].append(measure(origin, studio, truth, seed=args.seed, decode=decode))
    page = prior_tables.tables(result)
    sys.stdout.write(page)
    prior_tables.write(args.out, page, result)


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Command-line arguments."""
    parser = argparse.ArgumentParser(
        prog="python -m studies.priors", description="Compare the priors of one cascade."
    )
    parser.add_argument("--models", type=pathlib.Path, required=True, help="run directory")
    parser.add_argument("--data", type=pathlib.Path, required=True, help="prepared data set")
    parser.add_argument("--split", default="validation")
    parser.add_argument("--num", type=int, help=f"captions drawn as pictures [{NUM}, or all]")
    parser.add_argument(
        "--embeddings", type=int, help=f"captions in all, at least NUM [{EMBEDDINGS}, or all]"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=pathlib.Path, help="page to write [MODELS/priors.md]")
    args = parser.parse_args(argv)
    args.out = args.out or args.models / "priors.md"
    return args


def check(args: argparse.Namespace) -> None:
    """Refuse what cannot be done before anything is loaded.

    Raises:
        UserError: naming the argument, or the stage that is not trained.
    """
    for name in ("num", "embeddings"):
        if (given := getattr(args, name)) is not None:
            positive(f"--{name}", given)
    if args.out.suffix != ".md":
        raise UserError(f"--out is {str(args.out)!r}; give a name that ends in .md.")
    load.find_stages(args.models, required=("clip", *load.prior_names(), "decoder"))
    if not args.out.absolute().parent.is_dir():
        raise UserError(f"--out is {str(args.out)!r}, but there is no such folder; make it first.")
    prior_tables.around(args.out)


def open_data(args: argparse.Namespace) -> tuple[Source, Source]:
    """The split that is asked about and the training split; fills in what `args` leaves open.

    Raises:
        UserError: no such data, or fewer examples than were asked for.
    """
    source = sources.open_source(args.data, split=args.split)
    trained = sources.open_source(args.data, split="train")
    for name, split in ((args.split, source), ("train", trained)):
        if len(split) < 2:
            raise UserError(
                f"split {name!r} of {args.data} has {len(split)} examples; a distribution takes at "
                "least 2."
            )
    asked = {"num": args.num, "embeddings": args.embeddings}
    for name, count in asked.items():
        if (count or 0) > len(source):
            raise UserError(
                f"--{name} is {count}, but split {args.split!r} of {args.data} has {len(source)} "
                "examples; ask for at most so many."
            )
    args.embeddings = args.embeddings or min(max(EMBEDDINGS, args.num or 0), len(source))
    args.num = args.num or min(NUM, args.embeddings)
    in_range("--embeddings", args.embeddings, max(args.num, 2), len(source))
    return source, trained


def origins(cascade: Cascade) -> list[Origin]:
    """The rows in order; `cascade` is that of the diffusion prior."""
    sampling = cascade.prior.sampling
    rows = [
        Origin("true image", "", SampleOptions(condition="z_img")),
        Origin("no prior: z_txt", "prior", SampleOptions(condition="z_txt")),
        Origin("autoregressive", "prior_ar", SampleOptions(num_candidates=1)),
    ]
    pairs = {*((1.0, n) for n in CANDIDATES), *((scale, PAPERS) for scale in GUIDANCE)}
    for scale, count in sorted(pairs):
        name = f"diffusion, guidance {scale:g}, best of {count}"
        guided = dataclasses.replace(sampling, guidance_scale=scale)
        rows.append(Origin(name, "prior", SampleOptions(prior=guided, num_candidates=count)))
    return rows


def look(studio: InferenceEngine, source: Source, trained: Source, *, count: int) -> Truth:
    """Embed what is true with CLIP.

    Raises:
        UserError: a data set without pictures that can be read.
    """
    records = [source[i] for i in range(count)]
    captions = [str(record["caption"]) for record in records]
    known = [trained[i] for i in range(min(REFERENCE, len(trained)))]
    return Truth(
        records,
        captions,
        embed(studio, records),
        np.asarray(studio.text_embeddings(captions)),
        frechet.moments(embed(studio, known)),
    )


def embed(studio: InferenceEngine, records: Sequence[Record]) -> np.ndarray:
    """CLIP embeddings of the records' own pictures."""
    found = [
        image_files.from_bytes(each["image"], name=str(each["key"]), where=f"example {each['key']}")
        for each in records
    ]
    return np.asarray(studio.image_embeddings(found))


def measure(
    origin: Origin,
    studio: InferenceEngine | None,
    truth: Truth,
    *,
    seed: int,
    decode: Decode | None,
) -> dict[str, Any]:
    """One row: its embeddings, what they cost, and the pictures that are drawn from them.

    Args:
        origin: where z_img comes from.
        studio: the cascade with its prior; None = z_img is given.
        truth: what to compare with.
        seed: of the draws; row i depends on (seed, i) alone.
        decode: see `decoder`.
    """
    row: dict[str, Any] = {"name": origin.name, "prior": origin.prior}
    z_img = truth.z_img
    if studio:
        row["options"] = dataclasses.asdict(origin.options)
        z_img, row["seconds"] = draw(studio, truth.captions, origin.options, seed=seed)
        row["flops"] = count_flops(studio, truth.captions, origin.options)
    row["embeddings"] = judge(z_img, truth)
    if decode:
        row["checker"] = decode(z_img, origin.name)
    return row


def draw(
    studio: InferenceEngine, captions: Sequence[str], options: SampleOptions, *, seed: int
) -> tuple[np.ndarray, float]:
    """One z_img per caption, and the seconds that one takes once the program is compiled."""
    indices = range(len(captions))
    studio.imagine(captions[:BATCH], seed=seed, indices=indices[:BATCH], options=options)
    began = time.perf_counter()
    z_img = np.asarray(studio.imagine(captions, seed=seed, indices=indices, options=options))
    size = min(BATCH, len(captions))
    drawn = -(-len(captions) // size) * size  # the last batch is filled up
    return z_img, (time.perf_counter() - began) / drawn


def count_flops(studio: InferenceEngine, captions: Sequence[str], options: SampleOptions) -> float:
    """Matrix FLOPs from one tokenised caption to its z_img, CLIP's text tower included."""

    def run(params, tokens, keys):
        cascade = studio.cascade
        return text_to_image.sample_z_img(cascade, params, tokens, keys, options=options)

    keys = text_to_image.keys_for(0, jnp.arange(1))
    found = flops.count(run, studio.params, studio.tokens(captions[:1]), keys)
    assert not found.unknown, found.unknown
    return found.flops


def judge(z_img: np.ndarray, truth: Truth) -> dict[str, Any]:
    """How near embeddings are to the true ones, pair by pair and as a distribution."""
    group = cascade.RETRIEVAL
    own = embeddings.first_occurrences(truth.captions)
    found = {
        "cosine_image": embeddings.cosine(z_img, truth.z_img)._asdict(),
        "cosine_text": embeddings.cosine(z_img, truth.z_txt)._asdict(),
        "finds_image": embeddings.retrieval_rate(z_img, truth.z_img, group=group)._asdict(),
        "finds_caption": embeddings.retrieval_rate(
            z_img[own], truth.z_txt[own], group=group
        )._asdict(),
        "rank_image": float(np.mean(embeddings.retrieval_ranks(z_img, truth.z_img, group=group))),
    }
    found["frechet"] = frechet.squared_distance(frechet.moments(z_img), truth.reference)
    return found


def decoder(studio: InferenceEngine, truth: Truth, *, num: int, seed: int) -> Decode | None:
    """What draws the first `num` pictures of a row and checks them: one program for all rows.

    Image i starts from the same noise in every row. None where no caption has a scene.
    """
    if not all(record["scene"] for record in truth.records[:num]):
        return None
    captions, options = truth.captions[:num], SampleOptions(condition="z_img")
    mesh, batch_size = sampling_mesh(min(BATCH, num))
    run = batched.compile_sampler(studio.cascade, options, mesh=mesh)

    def decode(z_img: np.ndarray, name: str) -> dict[str, Any]:
        images = batched.sample_images(
            studio.loaded,
            captions,
            seed=seed,
            options=options,
            z_img=z_img[:num],
            batch_size=batch_size,
            name=f"draw from {name}",
            sampler=run,
        )
        rates = shapes_checker.report(shapes_checker.check(images, captions))
        return {each: rate._asdict() for each, rate in rates.items() if rate.total}

    return decode


def facts(args: argparse.Namespace, studios: dict[str, InferenceEngine]) -> dict[str, Any]:
    """What was compared, and on what."""
    return {
        "models": str(args.models),
        "data": str(args.data),
        **{name: getattr(args, name) for name in ("split", "num", "embeddings", "seed")},
        "group": min(cascade.RETRIEVAL, args.embeddings),
        "batch": BATCH,
        "stages": {name: studio.facts() for name, studio in studios.items()},
        "device": f"{jax.devices()[0].device_kind}, {os.cpu_count()} cores",
        "jax": jax.__version__,
        "code_version": __version__,
        "date": datetime.date.today().isoformat(),
    }


if __name__ == "__main__":
    entry.run(lambda: main(sys.argv[1:]))
