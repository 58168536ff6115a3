"""The service behind the HTTP API and the page: loaded models, a queue, and limits."""

import dataclasses
import io
import pathlib
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any

from unclip_jax.core.checks import UserError
from unclip_jax.engine import request_steps
from unclip_jax.engine.inference_engine import InferenceEngine
from unclip_jax.engine.request_base import Request
from unclip_jax.engine.requests import REQUESTS, PcaProbeRequest, TextRequest
from unclip_jax.engine.result import Result
from unclip_jax.inference.progress import ProgressCallback
from unclip_jax.serving import schemas
from unclip_jax.serving.job_queue import Job, JobQueue
from unclip_jax.serving.schemas import RequestLimits, Submission

WARM_UP_IMAGES = 2  # as many as the page asks for at first


@dataclasses.dataclass(frozen=True)
class ServedResult:
    """A result with its uploads.

    Attributes:
        result: the images and their provenance.
        uploads: files by name.
    """

    result: Result
    uploads: Mapping[str, bytes]

    def archive(self) -> bytes:
        """Returns a ZIP of everything; `sample repeat` can repeat its request."""
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            files = {**self.uploads, **self.result.files(self.result.record["command"])}
            for name, content in sorted(files.items()):
                archive.writestr(name, content)
        return buffer.getvalue()


class InferenceService:
    """Loaded models, the queue of their requests, and the limits of a request."""

    def __init__(
        self,
        engine: InferenceEngine,
        *,
        name: str,
        limits: RequestLimits | None = None,
        folder: pathlib.Path | None = None,
        embeddings: pathlib.Path | None = None,
        examples: Sequence[str] = (),
        queue: JobQueue | None = None,
    ):
        """Creates the service.

        Args:
            engine: the models.
            name: name of the models in the provenance of results.
            limits: limits of a request; None = the default ones.
            folder: folder of the models, whose path is removed from responses; None = unknown.
            embeddings: a split that `embed` wrote, for `probe-pca`; None = `probe-pca` is rejected.
            examples: captions that the page suggests.
            queue: the queue of the server, if it serves other models too; None = a new one, of
                which `limits` says how long it is.
        """
        self.engine, self.name, self.limits = engine, name, limits or RequestLimits()
        engine.name = name
        self.folder, self.embeddings = folder, embeddings
        self.examples = tuple(examples)
        self.queue = queue or JobQueue(waiting=self.limits.waiting)

    def submit(
        self, command: str, values: Mapping[str, Any], *, lease_s: int | float | None = None
    ) -> Job[ServedResult]:
        """Checks a request and queues it.

        Args:
            command: one of `requests.REQUESTS`.
            values: values of its fields; images are the bytes of files.
            lease_s: seconds without renewal after which the job is cancelled; None = never.

        Raises:
            UserError: the request is not valid.
            QueueFull: too many requests are waiting.
        """
        submission = self.read(command, values)
        return self.queue.submit(
            Job(
                lambda progress: self.run(submission, progress),
                kind=self._kind(command),
                cost=submission.request.image_count,
                lease_s=lease_s,
                limit_s=self.limits.seconds,
            )
        )

    def warm_up(self) -> Job[Result]:
        """Queues the page's default request, so that its programs are compiled in advance."""
        request = TextRequest(captions=("",), num=min(WARM_UP_IMAGES, self.limits.images))
        return self.queue.submit(
            Job(
                lambda progress: self.engine.run(request, progress=progress),
                kind=self._kind("warm-up"),
            )
        )

    def read(self, command: str, values: Mapping[str, Any]) -> Submission:
        """Checks a request.

        Raises:
            UserError: the request is not valid.
        """
        of_server = {}
        if command == PcaProbeRequest.name:
            if self.embeddings is None:
                raise UserError(
                    "this server has no embeddings for principal components; they are read from "
                    "RUN/embeddings/train, or with one model from --embeddings=DIR."
                )
            of_server["embeddings"] = str(self.embeddings)
        submission = schemas.read(command, values, limits=self.limits, of_server=of_server)
        self._check_steps(submission.request)
        return submission

    def run(self, submission: Submission, progress: ProgressCallback) -> ServedResult:
        """Runs a request; `progress` may stop it by raising an exception.

        Raises:
            UserError: these models cannot run this request with these images.
        """
        try:
            result = self.engine.run(submission.request, progress=progress)
        except UserError as error:  # reveals no paths of this machine
            raise UserError(self._without_paths(str(error))) from None
        values = result.record["request"]
        if "embeddings" in values:
            values["embeddings"] = self._without_paths(values["embeddings"])
        return ServedResult(result, submission.files)

    def models(self) -> dict[str, Any]:
        """Returns names, sizes, defaults and identities of the models, JSON-ready."""
        cascade = self.engine.cascade
        sizes = [
            self.engine.base_size,
            *(each.model.unet.image_size for each in cascade.upsamplers),
        ]
        decoder = {}
        if (sampling := cascade.decoder_sampling) is not None:
            decoder = {
                "guidance": sampling.guidance_scale,
                "steps": str(sampling.steps),
                "timesteps": cascade.decoder.diffusion.num_timesteps,
            }
        lacking = {PcaProbeRequest.name} if self.embeddings is None else set()
        commands = [
            name
            for name, request in REQUESTS.items()
            if request.fits(cascade) and name not in lacking
        ]
        facts = {"name": self.name, "sizes": sizes, "decoder": decoder, "commands": commands}
        return {**facts, "examples": list(self.examples), **self.engine.describe()}

    def _check_steps(self, request: Request) -> None:
        """Rejects chains that are longer than this server allows; a batch cannot be interrupted.

        Raises:
            UserError: too many steps, or a grid that is not valid.
        """
        for name, count in request_steps.lengths(request, self.engine.cascade).items():
            if count > self.limits.steps:
                raise UserError(
                    f"{name} asks for {count} steps; this server takes at most {self.limits.steps}."
                )

    def _kind(self, command: str) -> str:
        """Returns the kind of a job: other models take other times."""
        return f"{self.name} {command}"

    def _without_paths(self, text: str) -> str:
        """Returns `text` with the server's folders reduced to their last names."""
        for path, parts in ((self.embeddings, 2), (self.folder, 1)):
            if path is None:
                continue
            short = "/".join(path.resolve().parts[-parts:])
            for spelling in (path.resolve(), path):
                if len(spelling.parts) > 1:  # not "." or "/"
                    text = text.replace(str(spelling), short)
        return text
