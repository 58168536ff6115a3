"""The result of a request: images, their display and files, and provenance to repeat it."""

import dataclasses
import io
import json
import pathlib
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image as PILImage

from unclip_jax.core.checks import UserError
from unclip_jax.core.files import write_atomically
from unclip_jax.core.picture import labelled_grid
from unclip_jax.data import image_codec
from unclip_jax.engine import output_files
from unclip_jax.engine.image_inputs import EncodedImage

FRAME_MS = 120  # of an animation
HOLD_MS = 800  # its first and last frame

Images = UInt8[np.ndarray, " n h w 3"]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Result:
    """Generated images with labels and their provenance.

    Attributes:
        images: in order, at full size.
        labels: one per panel.
        record: provenance of the images, JSON-ready: the request, the models and the inputs.
        panels: images for display, which may include originals and previews; None = `images`.
        columns: panels per row; None = as close to a square as possible.
        z_img: the CLIP image embeddings from which `images` were generated, if any.
        latents: latents of the input images, if the request keeps them.
        previews: intermediate predictions at the decoder's size, [n p h w 3].
        animate: format of the animation, "gif" or "webp"; None = none.
        note: a remark for the user, such as details that were left out; "" = none.
    """

    images: Images
    labels: tuple[str, ...]
    record: dict[str, Any]
    panels: UInt8[np.ndarray, " m h w 3"] | None = None
    columns: int | None = None
    z_img: Float[np.ndarray, " n z"] | None = None
    latents: tuple[EncodedImage, ...] = ()
    previews: UInt8[np.ndarray, " n p _ _ 3"] | None = None
    animate: str | None = None
    note: str = ""

    @property
    def display(self) -> UInt8[np.ndarray, "_ _ _ 3"]:
        """The panels, or the images if there are no panels."""
        return self.images if self.panels is None else self.panels

    def grid(self) -> PILImage.Image:
        """All panels with their labels."""
        return labelled_grid(self.display, labels=self.labels, columns=self.columns)

    def png(self) -> bytes:
        """The labelled grid as a PNG file."""
        buffer = io.BytesIO()
        self.grid().save(buffer, "PNG")
        return buffer.getvalue()

    def animation(self) -> bytes | None:
        """The panels as an endless GIF or WebP (lossless); None if none was requested."""
        if self.animate is None:
            return None
        frames = [PILImage.fromarray(image) for image in self.display]
        durations = [FRAME_MS] * len(frames)
        durations[0] = durations[-1] = HOLD_MS
        options: dict[str, Any] = {"lossless": True} if self.animate == "webp" else {}
        options |= {"save_all": True, "append_images": frames[1:], "loop": 0}
        buffer = io.BytesIO()
        frames[0].save(buffer, self.animate.upper(), duration=durations, **options)
        return buffer.getvalue()

    def files(self, stem: str) -> dict[str, bytes]:
        """Returns the content of every file of the result by its name.

        Args:
            stem: STEM.png is the labelled grid, STEM.json the provenance, STEM/0000.png and so on
                the panels, STEM/0000.npz and so on the latents, STEM.gif or STEM.webp the
                animation.
        """
        names = [f"{stem}/{index:04d}" for index in range(len(self.display))]
        record = {**self.record, "images": [f"{name}.png" for name in names]}
        content = {
            f"{name}.png": image_codec.encode_png(image)
            for name, image in zip(names, self.display, strict=True)
        }
        content[f"{stem}.png"] = self.png()
        content[f"{stem}.json"] = (json.dumps(record, indent=2) + "\n").encode()
        if (animation := self.animation()) is not None:
            content[f"{stem}.{self.animate}"] = animation
        return content

    def save(self, path: str | pathlib.Path) -> None:
        """Writes all `files` beside `path`; of several processes only the first one does.

        Files of an earlier result there are removed, so that the folder contains exactly the images
        that the JSON lists.

        Args:
            path: path of the labelled grid; ends in .png.

        Raises:
            UserError: the suffix is another, files cannot be written, or the folder contains images
                that the JSON of an earlier result does not list.
        """
        path = pathlib.Path(path)
        if jax.process_index() > 0:
            return
        output_files.check(path)
        files = self.files(path.stem)
        record = f"{path.stem}.json"
        try:
            path.with_suffix("").mkdir(parents=True, exist_ok=True)
            for name in output_files.earlier(path):
                (path.parent / name).unlink(missing_ok=True)
            for name in sorted(files, key=lambda name: name != record):  # the list comes first
                write_atomically(path.parent / name, files[name])
        except OSError as error:
            raise UserError(f"cannot write {path}: {error}; give another out.") from None
        for index, latent in enumerate(self.latents):
            latent.save(path.with_suffix("") / f"{index:04d}.npz")

    def _repr_png_(self) -> bytes:
        """The labelled grid, for notebooks."""
        return self.png()
