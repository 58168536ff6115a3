"""Judge a trained cascade on a held-out split, or pictures wherever they come from.

    python -m unclip_jax.evaluate --models=runs/shapes --data=runs/shapes/data
    python -m unclip_jax.evaluate images --real=DIR --fake=DIR --features=inception:FILE
    python -m unclip_jax.evaluate sweep --models=RUN --data=DATA --guidance=1,2,4 --out=DIR
    python -m unclip_jax.evaluate prompts FILE --models=RUN --out=DIR

CLIP: retrieval among held-out pairs. Upsampler: PSNR against bicubic enlargement. In the shapes
world also the exact checker, with z_img from the prior, from z_txt used as if it were z_img, and
true. Prints a table and writes MODELS/evaluation.json; what is chosen otherwise is in the name:
evaluation_prior_ar.json of --prior=prior_ar, evaluation_best_of_4.json of --best-of=4. The
subcommands images, statistics, pack, sweep, plot, coco and prompts are in `evaluation`;
docs/evaluation.md shows them.
"""

import argparse
import json
import pathlib
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image as PILImage

from unclip_jax import sample
from unclip_jax.cli import data_flags, entry, process_flags
from unclip_jax.cli.parser import Parser
from unclip_jax.core import rng
from unclip_jax.core.checks import UserError, in_range, positive
from unclip_jax.core.picture import to_uint8
from unclip_jax.data import image_codec, sources, text
from unclip_jax.data.degrade import area_downsample
from unclip_jax.evaluation import coco, prompts, set_comparison, sweep, sweep_plots
from unclip_jax.inference import batched, load, text_to_image
from unclip_jax.inference.load import LoadedCascade
from unclip_jax.inference.text_to_image import SampleOptions
from unclip_jax.metrics import shapes_checker
from unclip_jax.metrics.intervals import Rate
from unclip_jax.metrics.psnr import psnr
from unclip_jax.parallel import cluster
from unclip_jax.parallel.mesh import sampling_mesh
from unclip_jax.parallel.multihost import check_same
from unclip_jax.stages import upsampler

RETRIEVAL = 256  # pairs among which CLIP must find its own
BATCH = 50  # captions drawn at once
CONDITIONS = ("prior", "z_txt", "z_img")
SUBCOMMANDS = (*set_comparison.COMMANDS, "sweep", "plot", "coco", "prompts")
DRAWING: dict[str, ModuleType] = {"sweep": sweep, "coco": coco, "prompts": prompts}


def main(argv: Sequence[str]) -> None:
    """Evaluate, print, write; or run a subcommand."""
    if argv and argv[0] in SUBCOMMANDS:
        subcommand(argv[0], argv[1:])
        return
    args = parse(argv)
    positive("--num", args.num)
    in_range("--best-of", args.best_of, 1, text_to_image.MAX_BEST_OF)
    _together(args)
    loaded = load.load_cascade(args.models, prior_name=args.prior)
    source = sources.open_source(args.data, split=args.split, keys=data_flags.keys(args))
    records = [source[i] for i in range(min(max(args.num, RETRIEVAL), len(source)))]
    result: dict[str, Any] = {"split": args.split, "num": args.num, "seed": args.seed}
    result["prior"], result["best_of"] = args.prior, args.best_of
    result["retrieval"] = retrieval(loaded, records[:RETRIEVAL])
    if loaded.cascade.upsamplers:
        result["upsampler_psnr"] = enlargement(loaded, records[:64], seed=args.seed)
    if all(record["scene"] for record in records[: args.num]):
        rates = follow_captions(loaded, records[: args.num], seed=args.seed, best_of=args.best_of)
        result["checker"] = {name: _plain(each) for name, each in rates.items()}
    if jax.process_index() > 0:  # every process has found the same; the first says so
        return
    suffix = "" if args.prior == "prior" else f"_{args.prior}"
    suffix += f"_best_of_{args.best_of}" if args.best_of > 1 else ""
    out = args.models / f"evaluation{suffix}.json"
    try:
        out.write_text(json.dumps(result, indent=2) + "\n")
    except OSError as error:
        raise UserError(f"cannot write {out}: {error}.") from None
    sys.stdout.write(as_text(result))


def subcommand(name: str, argv: Sequence[str]) -> None:
    """Run one of `SUBCOMMANDS`."""
    made = {**DRAWING, "plot": sweep_plots}
    parser = made[name].parser() if name in made else set_comparison.parser(name)
    process_flags.add(parser)
    args = parser.parse_args(argv)
    _together(args)
    if name in DRAWING:
        DRAWING[name].run(args)
    elif name == "plot":
        sweep_plots.run(args)
    else:
        set_comparison.run(args, command=name)


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Command-line flags."""
    parser = Parser(
        "evaluate",
        description="Judge a cascade on held-out captions.",
        epilog=f"subcommands (each has its own --help): {', '.join(SUBCOMMANDS)}",
    )
    parser.add_argument("--models", type=pathlib.Path, required=True, help="run directory")
    data_flags.add(parser)
    parser.add_argument("--prior", default="prior", choices=load.prior_names(), help="which prior")
    parser.add_argument("--split", default="validation")
    parser.add_argument("--num", type=int, default=200, help="captions to draw")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--best-of", type=int, default=1, help="pictures per caption, CLIP keeps the nearest"
    )
    process_flags.add(parser)
    return parser.parse_args(argv)


def retrieval(loaded: LoadedCascade, records: Sequence[dict[str, Any]]) -> dict[str, int | float]:
    """Share of pairs that CLIP finds among all, both ways."""
    z_img, z_txt = true_embeddings(loaded, records), text_embeddings(loaded, records)
    scores, own = z_img @ z_txt.T, np.arange(len(records))
    return {
        "pairs": len(records),
        "image_to_text@1": float(np.mean(scores.argmax(1) == own)),
        "text_to_image@1": float(np.mean(scores.argmax(0) == own)),
    }


def true_embeddings(loaded: LoadedCascade, records: Sequence[dict[str, Any]]) -> np.ndarray:
    """CLIP image embeddings of the records' own pictures."""
    size = loaded.cascade.clip.model.image_size
    images = image_codec.to_float(_square(records, size))
    run = jax.jit(
        lambda params, images: text_to_image.image_embedding(loaded.cascade, params, images=images)
    )
    return np.asarray(run(loaded.params, images))


def text_embeddings(loaded: LoadedCascade, records: Sequence[dict[str, Any]]) -> np.ndarray:
    """CLIP text embeddings of the records' captions."""
    tokenizer = text.load(loaded.tokenizer_dir)
    captions = batched.tokenise(loaded.cascade, tokenizer, [r["caption"] for r in records])
    run = jax.jit(
        lambda params, captions: text_to_image.text_embedding(
            loaded.cascade, params, captions=captions
        )
    )
    return np.asarray(run(loaded.params, captions))


def follow_captions(
    loaded: LoadedCascade, records: Sequence[dict[str, Any]], *, seed: int, best_of: int = 1
) -> dict[str, dict[str, Rate]]:
    """How often the drawn pictures hold what their captions ask for, by origin of z_img.

    Image i starts from the same noise whatever the origin. Of `best_of` pictures of one z_img and
    caption the one is judged that the cascade's CLIP puts nearest to the caption.
    """
    captions = [record["caption"] for record in records]
    options = SampleOptions(condition="z_img", best_of=best_of)
    mesh, batch_size = sampling_mesh(BATCH)
    run = batched.compile_sampler(loaded.cascade, options, mesh=mesh)
    rates = {}
    for origin in CONDITIONS:
        images = batched.sample_images(
            loaded,
            captions,
            seed=seed,
            options=options,
            z_img=embeddings_from(origin, loaded, records, seed=seed),
            batch_size=batch_size,
            name=f"draw from {origin}",
            sampler=run,
        )
        rates[origin] = shapes_checker.report(shapes_checker.check(images, captions))
    return rates


def embeddings_from(
    origin: str, loaded: LoadedCascade, records: Sequence[dict[str, Any]], *, seed: int
) -> np.ndarray:
    """The image embeddings [b z] of `CONDITIONS`: the prior's, z_txt, or the true ones."""
    if origin == "z_img":
        return true_embeddings(loaded, records)
    if origin == "z_txt":
        return text_embeddings(loaded, records)
    tokenizer = text.load(loaded.tokenizer_dir)
    captions = batched.tokenise(loaded.cascade, tokenizer, [r["caption"] for r in records])
    keys = text_to_image.keys_for(seed, jnp.arange(len(records)))
    run = jax.jit(
        lambda params, captions, keys: text_to_image.sample_z_img(
            loaded.cascade, params, captions, keys
        )
    )
    return np.asarray(run(loaded.params, captions, keys))


def enlargement(
    loaded: LoadedCascade, records: Sequence[dict[str, Any]], *, seed: int
) -> dict[str, float]:
    """PSNR in dB of the first upsampler and of bicubic enlargement, on clean low-res images."""
    cfg, params = loaded.cascade.upsamplers[0], loaded.params["upsamplers"][0]
    true = _square(records, cfg.model.unet.image_size)
    low = np.stack([area_downsample(image, cfg.model.factor) for image in true])
    keys = text_to_image.keys_for(seed, jnp.arange(len(true)))
    run = jax.jit(
        lambda params, low, keys: upsampler.sample(
            cfg, params, low_res=low, keys=rng.fold_each(keys, "upsampler")
        )
    )
    drawn = to_uint8(np.asarray(run(params, image_codec.to_float(low), keys)))
    side = true.shape[1]
    bicubic = np.stack(
        [
            np.asarray(PILImage.fromarray(x).resize((side, side), PILImage.Resampling.BICUBIC))
            for x in low
        ]
    )
    ratios = {"upsampler": psnr(drawn, true), "bicubic": psnr(bicubic, true)}
    return {name: float(np.mean(values)) for name, values in ratios.items()}


def as_text(result: dict[str, Any]) -> str:
    """The result as a person reads it."""
    found = result["retrieval"]
    lines = [
        f"CLIP retrieval@1 of {found['pairs']} pairs: image to text "
        f"{found['image_to_text@1']:.3f}, text to image {found['text_to_image@1']:.3f}"
    ]
    if "upsampler_psnr" in result:
        ours, bicubic = (result["upsampler_psnr"][name] for name in ("upsampler", "bicubic"))
        lines.append(f"upsampler {ours:.2f} dB, bicubic {bicubic:.2f} dB ({ours - bicubic:+.2f})")
    if "checker" in result:
        chosen = f", best of {result['best_of']}" if result["best_of"] > 1 else ""
        lines.append(f"\n{result['num']} captions{chosen}, exact checker   " + "z_img from:")
        lines.append(f"{'':12}" + "".join(f"{name:>22}" for name in CONDITIONS))
        for name in shapes_checker.SUMMARY:
            if not all(name in result["checker"][condition] for condition in CONDITIONS):
                continue
            cells = [result["checker"][condition][name] for condition in CONDITIONS]
            shown = [f"{c['value']:.2f} [{c['low']:.2f}, {c['high']:.2f}]" for c in cells]
            lines.append(f"{name:12}" + "".join(f"{cell:>22}" for cell in shown))
    return "\n".join(lines) + "\n"


def _together(args: argparse.Namespace) -> None:
    """Connect the processes, if there are several, and see that they were started alike."""
    process_flags.start(args)
    check_same({**sample.asked(args), **cluster.facts()})


def _square(records: Sequence[dict[str, Any]], size: int) -> np.ndarray:
    """Decoded pictures as uint8 squares."""
    decoded = (image_codec.decode(record["image"]) for record in records)
    return np.stack(
        [image_codec.center_crop(image_codec.resize_short(image, size), size) for image in decoded]
    )


def _plain(rates: dict[str, Rate]) -> dict[str, dict[str, int | float]]:
    """JSON-ready; attributes that no caption asked for are left out."""
    return {name: dict(rate._asdict()) for name, rate in rates.items() if rate.total}


if __name__ == "__main__":
    entry.run(lambda: main(sys.argv[1:]))
