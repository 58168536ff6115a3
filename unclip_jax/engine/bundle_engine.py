"""Opening models: a run directory, or a file of `bundle`, which runs requests for captions."""

import pathlib
from collections.abc import Sequence
from typing import Any

from unclip_jax.core.checks import UserError
from unclip_jax.engine import request_fields
from unclip_jax.engine.handlers import results
from unclip_jax.engine.inference_engine import InferenceEngine
from unclip_jax.engine.request_base import Request
from unclip_jax.engine.requests import TextRequest
from unclip_jax.engine.result import Result
from unclip_jax.handoff import shipped
from unclip_jax.inference import exported_sampler
from unclip_jax.inference.exported_sampler import Bundle
from unclip_jax.inference.progress import ProgressCallback

# Fields of a text request that callers of a bundle can set; the bundle fixes all others.
OPEN_FIELDS = ("captions", "num", "seed", "animate")


class BundleEngine:
    """A bundle behind the part of the interface of `InferenceEngine` that samples captions."""

    def __init__(self, bundle: Bundle, *, name: str = ""):
        """Wraps a bundle; `name` is the name of its models in the provenance of results."""
        self.bundle, self.name = bundle, name

    def run(self, request: Request, *, progress: ProgressCallback | None = None) -> Result:
        """Runs a `TextRequest` with its captions, number and seed, and the settings of the file.

        Args:
            request: the request.
            progress: not called, because the file holds the sampler as one program.

        Raises:
            UserError: a request of another kind, or a setting that the file fixes.
        """
        if not isinstance(request, TextRequest):
            raise UserError(
                f"{self.name} is a bundle, which samples captions only; open the run directory for "
                f"{request.name!r}."
            )
        for name, field in request_fields.fields(request).items():
            if name not in OPEN_FIELDS and getattr(request, name) != field.default:
                raise UserError(
                    f"{name} is {getattr(request, name)!r}, but {self.name} is a bundle, which "
                    "fixes it; leave it out, write another bundle, or open the run directory."
                )
        captions = [caption for caption in request.captions for _ in range(request.num)]
        record = results.describe(
            request,
            models={"path": self.name, **self.describe()},
            labels=captions,
            options=self.bundle.card.options,
        )
        images = self.bundle.draw(captions, seed=request.seed)
        return Result(images=images, labels=tuple(captions), record=record, animate=request.animate)

    def sample(self, captions: str | Sequence[str], **options: Any) -> Result:
        """Generates images for one caption or several; `options` are `num`, `seed`, `animate`."""
        captions = (captions,) if isinstance(captions, str) else tuple(captions)
        values = {"captions": captions, **options}
        return self.run(request_fields.build(TextRequest, values, name=TextRequest.name))

    def describe(self) -> dict[str, Any]:
        """Returns a description of the models of the file, JSON-ready."""
        return dict(self.bundle.card.models)


def open_engine(
    path: str | pathlib.Path | None = None,
    *,
    prior: str = "prior",
    batch: int = 16,
    enlarges: bool = False,
) -> InferenceEngine | BundleEngine:
    """Opens a run directory, Karlo's folder, a file of `bundle`, or installed models.

    Args:
        path: the folder or the file, its URL in an object store, or the name of installed models;
            None = the default ones.
        prior: "prior" or "prior_ar"; a bundle has only one.
        batch: images per batch; a bundle has batch sizes of its own.
        enlarges: see `InferenceEngine.open`.

    Raises:
        UserError: see `InferenceEngine.open` and `exported_sampler.open_bundle`.
    """
    path = shipped.run_directory(path)
    if not path.exists() or path.is_dir():
        return InferenceEngine.open(path, prior=prior, batch=batch, enlarges=enlarges)
    if prior != "prior":
        raise UserError(f"{path} is a bundle, which has one prior; leave out prior={prior!r}.")
    return BundleEngine(exported_sampler.open_bundle(path), name=str(path))
