"""Plots what each stage of the cascade produces for a few captions.

    python -m studies.cascade_picture [--models=RUN] --out=docs/cascade.png

Each row has one caption: its z_img as a map of numbers, the decoder's predictions of x_0 along its
chain, of which the last is its image, and the image of the last upsampler.
"""

import pathlib
import textwrap

import matplotlib
from matplotlib import pyplot as plt

import unclip_jax
from unclip_jax.cli import entry, flags
from unclip_jax.cli.parser import Parser
from unclip_jax.core.checks import UserError, in_range, one_of
from unclip_jax.engine import example_captions
from unclip_jax.engine.requests import TextRequest
from unclip_jax.engine.result import Result

PREVIEWS = 4
ROWS = 16  # of the map of z_img
WIDTH = 26  # characters per line of a caption


def main() -> None:
    """Samples and plots."""
    name = "studies.cascade_picture"
    parser = Parser(name, prog=f"python -m {name}", description=__doc__)
    flags.add_models(parser)
    parser.add_argument("--num", type=int, default=3, help="number of captions")
    parser.add_argument("--seed", type=int, default=0, help="random seed")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("docs/cascade.png"))
    args = parser.parse_args()
    engine = unclip_jax.open(flags.run_directory(args.models))
    size = next(iter(engine.loaded.manifests.values())).size
    world = one_of(
        "world of these models", example_captions.world_of(size), example_captions.CAPTIONS
    )
    captions = example_captions.CAPTIONS[world]
    captions = captions[: in_range("--num", args.num, 1, len(captions))]
    request = TextRequest(captions=captions, num=1, seed=args.seed, previews=PREVIEWS)
    plot(captions, engine.run(request), args.out)


def plot(captions: tuple[str, ...], result: Result, out: pathlib.Path) -> None:
    """Writes the figure of a result with one image and `PREVIEWS` previews per caption."""
    if result.z_img is None or result.previews is None:
        raise UserError("these models have no z_img; give a run with a prior and unCLIP's decoder.")
    matplotlib.use("Agg")
    base, final = result.previews.shape[2], result.images.shape[1]
    titles = ["caption", f"prior: z_img, {result.z_img.shape[1]} numbers"]
    titles += [f"decoder: x_0 at {base} px"] + [""] * (PREVIEWS - 1) + [f"upsampled, {final} px"]
    figure, axes = plt.subplots(
        len(captions),
        len(titles),
        figsize=(1.7 * len(titles), 1.75 * len(captions)),
        layout="constrained",
        squeeze=False,
    )
    for row, caption in enumerate(captions):
        text, embedding, *images = axes[row]
        text.text(0, 0.5, textwrap.fill(caption, WIDTH), va="center", fontsize=9)
        z_img = result.z_img[row]
        z_img = z_img[: len(z_img) // ROWS * ROWS].reshape(ROWS, -1)
        embedding.imshow(z_img.T, cmap="RdBu")
        for axis, image in zip(images, [*result.previews[row], result.images[row]], strict=True):
            axis.imshow(image, interpolation="nearest")
        for axis in axes[row]:
            axis.axis("off")
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title, fontsize=9)
    figure.savefig(out, dpi=100)


if __name__ == "__main__":
    entry.run(main)
