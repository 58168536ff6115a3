"""A request carried out: the command of `sample` that it names, in a folder of its own."""

import argparse
import contextlib
import dataclasses
import io
import json
import pathlib
import shutil
import tempfile
import weakref
import zipfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from unclip_jax.cli import subcommands
from unclip_jax.core.checks import UserError
from unclip_jax.data import image_codec
from unclip_jax.inference.engine import InferenceEngine
from unclip_jax.inference.progress import ProgressCallback
from unclip_jax.serving import catalogue, forms
from unclip_jax.serving.forms import Limits, Request
from unclip_jax.serving.job_queue import Job, JobQueue


@dataclasses.dataclass(frozen=True)
class Command:
    """What a subcommand of `sample` is made of.

    Attributes:
        parse: from its arguments to a namespace.
        run: does the work with an open studio and writes what `--out` says.
    """

    parse: Callable[[list[str]], argparse.Namespace]
    run: Callable[[argparse.Namespace, InferenceEngine], Any]


@dataclasses.dataclass(frozen=True)
class Result:
    """What a command wrote.

    Attributes:
        images: the single pictures, in order.
        labels: one per picture.
        grid: all of them with their labels.
        record: how to make them again.
        animation: a moving picture, if one was asked for.
        folder: where all of it lies, with the uploads; goes when this record goes.
    """

    images: list[pathlib.Path]
    labels: list[str]
    grid: pathlib.Path
    record: dict[str, Any]
    animation: pathlib.Path | None
    folder: pathlib.Path

    def __post_init__(self):
        weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)

    def archive(self) -> pathlib.Path:
        """Everything in one ZIP: unpacked, the record's arguments name the files that lie there."""
        path = self.folder / f"{self.grid.stem}.zip"
        with zipfile.ZipFile(path, "w") as archive:
            for file in sorted(self.folder.rglob("*")):
                if file.is_file() and file != path:
                    archive.write(file, file.relative_to(self.folder))
        return path


class InferenceService:
    """Everything that serves: open models, their commands, the desk and its limits."""

    def __init__(
        self,
        studio: InferenceEngine,
        *,
        name: str,
        text: Command,
        limits: Limits | None = None,
        embeddings: pathlib.Path | None = None,
    ):
        """Open the doors.

        Args:
            studio: the models.
            name: what they are called.
            text: the command that draws captions; the others are in `menu`.
            limits: what one request may ask for; None = the usual.
            embeddings: a split that `embed` wrote, for `probe-pca`; None = that is refused.
        """
        self.studio, self.name, self.limits = studio, name, limits or Limits()
        self.embeddings = embeddings
        self.desk = JobQueue(waiting=self.limits.waiting)
        self.commands: Mapping[str, Command] = {
            "text": text,
            **{name: _from_menu(name) for name in subcommands.COMMANDS if name in catalogue.FORMS},
        }

    def ask(self, command: str, given: Mapping[str, Any], *, owner: str) -> Job[Result]:
        """Check a request and queue it.

        Raises:
            UserError: something is wrong with it.
            Full: too many wait.
        """
        request = forms.read(command, given, limits=self.limits)
        if command == "probe-pca" and self.embeddings is None:
            raise UserError(
                "this server has no embeddings to take components of; start it with "
                "--embeddings=DIR."
            )
        return self.desk.submit(lambda watch: self.carry_out(request, watch), owner=owner)

    def carry_out(self, request: Request, watch: ProgressCallback) -> Result:
        """Run the command of a request; `watch` may end it by raising.

        Raises:
            UserError: these models, or these pictures, cannot do it.
        """
        place = pathlib.Path(tempfile.mkdtemp(prefix="unclip-"))
        try:
            return self._carry_out(request, watch, place)
        except BaseException:
            shutil.rmtree(place, ignore_errors=True)
            raise

    def _carry_out(self, request: Request, watch: ProgressCallback, place: pathlib.Path) -> Result:
        name = request.form.command
        command, files = self.commands[name], _store(request, place)
        ours, shown = self._ours(name)
        argv = [*shown, *forms.arguments(request, files=files)]
        inside = {field: [str(place / file) for file in named] for field, named in files.items()}
        with _no_exit():
            args = command.parse(
                [f"--out={place / name}.png", *ours, *forms.arguments(request, files=inside)]
            )
        args.command, args.argv = name, argv
        args.models = pathlib.Path(self.name)  # for the record; nothing is opened again
        try:
            with self._watched(watch):
                command.run(args, self.studio)
        except UserError as error:  # names files as the user knows them, not as they lie here
            said = str(error).replace(f"{place}/", "")
            raise UserError(said.replace(str(self.embeddings), self._known)) from None
        record = json.loads((place / f"{name}.json").read_text(encoding="utf-8"))
        images = [place / file for file in record["images"]]
        moving = place / f"{name}.{getattr(args, 'animate', None)}"
        return Result(
            images=images,
            labels=_labels(record, len(images)),
            grid=place / f"{name}.png",
            record=record,
            animation=moving if moving.is_file() else None,
            folder=place,
        )

    def _ours(self, name: str) -> tuple[list[str], list[str]]:
        """Arguments that no stranger gives, and the same as the record may show them."""
        if name != "probe-pca" or self.embeddings is None:
            return [], []
        return [f"--embeddings={self.embeddings}"], [f"--embeddings={self._known}"]

    @property
    def _known(self) -> str:
        """What the folder of embeddings is called without saying where it lies."""
        return "/".join(self.embeddings.parts[-2:]) if self.embeddings else "no embeddings"

    def models(self) -> dict[str, Any]:
        """Which models these are, JSON-ready."""
        cascade = self.studio.cascade
        sizes = [self.studio.base_size, *(u.model.unet.image_size for u in cascade.upsamplers)]
        return {"name": self.name, "sizes": sizes, **self.studio.facts()}

    @contextlib.contextmanager
    def _watched(self, watch: ProgressCallback) -> Iterator[None]:
        self.studio.watch = watch
        try:
            yield
        finally:
            self.studio.watch = None


def _from_menu(name: str) -> Command:
    module = subcommands.COMMANDS[name]
    return Command(module.parse, lambda args, studio: module.run(args, studio=studio))


def _store(request: Request, place: pathlib.Path) -> dict[str, list[str]]:
    """Write the uploads under names of ours; what they are called, by field."""
    stored: dict[str, list[str]] = {}
    for field, uploads in request.uploads().items():
        stored[field] = []
        for index, data in enumerate(uploads):
            number = f"-{index}" if len(uploads) > 1 else ""
            file = f"{field}{number}.{image_codec.format_of(data)}"
            (place / file).write_bytes(data)
            stored[field].append(file)
    return stored


def _labels(record: Mapping[str, Any], count: int) -> list[str]:
    """Of the pictures; `text` has captions in their place."""
    if "labels" in record:
        return list(record["labels"])
    each = count // max(len(record["captions"]), 1)
    return [caption for caption in record["captions"] for _ in range(each)]


@contextlib.contextmanager
def _no_exit() -> Iterator[None]:
    """The parser leaves the process when arguments are wrong; here that is the user's mistake.

    Raises:
        UserError: with what the parser said.
    """
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            yield
    except SystemExit:
        raise UserError(said.getvalue().strip().rpartition("error: ")[2] + ".") from None
