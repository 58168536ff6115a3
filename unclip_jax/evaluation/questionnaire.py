"""The questions of a comparison, the answers of raters, and the session of one rater.

Questions and choices are those of DrawBench (Imagen, arXiv 2205.11487, appendix C). Every answer is
appended to a file of its rater and is on the disk before it is confirmed. A later answer to the
same question replaces the earlier one.
"""

import datetime
import fcntl
import json
import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from unclip_jax.core import digests, json_text
from unclip_jax.core.checks import UserError, one_of, short
from unclip_jax.core.files import read_small
from unclip_jax.evaluation import comparison_folder
from unclip_jax.evaluation.comparison_folder import SIDES, ComparedPrompt, Comparison

QUESTIONS = {  # name -> text, with the caption in place of {caption}
    "fidelity": "Which set of images is of higher quality?",
    "alignment": "Which set of images better represents the text caption: {caption}?",
}
CHOICES = {  # in the order of the paper: A, indifferent, B
    "left": "I prefer the left set.",
    "indifferent": "I am indifferent.",
    "right": "I prefer the right set.",
}
FIELDS = ("rater", "prompt", "question", "answer")
_RATER = re.compile(r"[a-z0-9][a-z0-9_-]{0,39}")


class Answer(NamedTuple):
    """One answer of a rater to a question on a prompt."""

    rater: str
    prompt: str
    question: str
    answer: str


def rater_name(name: str) -> str:
    """Returns the name of a rater in lower case, as it names a file.

    Raises:
        UserError: it is empty, too long, or has other characters.
    """
    name = name.strip().lower()
    if not _RATER.fullmatch(name):
        raise UserError(
            f"the rater is {short(name)}; give a name of 1 to 40 letters a-z, digits, - and _."
        )
    return name


def append_line(path: pathlib.Path, line: str) -> None:
    """Appends a line that is on the disk when the function returns.

    Several threads and processes may append. If the last line was cut
    short by a kill, it is ended first, so that it does not corrupt the new line.

    Raises:
        OSError: the line could not be written as a whole.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        size = os.fstat(descriptor).st_size
        is_cut = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
        data = (b"\n" if is_cut else b"") + line.encode() + b"\n"
        if os.write(descriptor, data) != len(data):
            raise OSError(f"{path} could not be written as a whole.")
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    if not size:  # the name of a new file
        parent = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(parent)
        finally:
            os.close(parent)


def read_answers(path: pathlib.Path, comparison: Comparison) -> tuple[list[Answer], list[str]]:
    """Reads the file of a rater.

    Args:
        path: RATER.jsonl; it may be missing.
        comparison: the comparison that the raters answer.

    Returns:
        The last answer to every question, and warnings about lines that are cut short.

    Raises:
        UserError: an answer to another comparison, or with values that this one does not have.
    """
    latest: dict[tuple[str, str], Answer] = {}
    warnings, ids = [], {prompt.id for prompt in comparison.prompts}
    content = read_small(path) if path.is_file() else b""
    for number, line in enumerate(content.split(b"\n"), 1):
        if not line.strip():
            continue
        where = f"{path}, row {number}"
        try:
            row = json_text.parse_object(line, where=where, advice="it is not counted.")
        except UserError as error:
            warnings.append(str(error))
            continue
        if row.get("comparison") != comparison.id:
            raise UserError(
                f"{where} answers comparison {short(row.get('comparison'))}, and this is "
                f"{comparison.id!r}; move the file to its own folder."
            )
        allowed = {"prompt": ids, "question": set(QUESTIONS), "answer": set(CHOICES)}
        for field, values in allowed.items():
            if row.get(field) not in values:
                raise UserError(
                    f"{where} has the {field} {short(row.get(field))}, which this comparison does "
                    "not have; remove the row."
                )
        answer = Answer(path.stem, row["prompt"], row["question"], row["answer"])
        latest[answer.prompt, answer.question] = answer
    return list(latest.values()), warnings


def all_answers(folder: pathlib.Path, comparison: Comparison) -> tuple[list[Answer], list[str]]:
    """Reads the files of all raters; see `read_answers`."""
    answers: list[Answer] = []
    warnings: list[str] = []
    for path in sorted((folder / comparison_folder.ANSWERS).glob("*.jsonl")):
        more, lines = read_answers(path, comparison)
        answers, warnings = answers + more, warnings + lines
    return answers, warnings


class Questionnaire:
    """The sessions of the raters of one comparison.

    Attributes:
        rater: the only rater; "" = raters enter their names.
        pictures: path of every picture by its name.
    """

    def __init__(self, folder: pathlib.Path, *, rater: str = "", category: str | None = None):
        """Opens a comparison.

        Args:
            folder: folder that `compare` wrote.
            rater: the only rater; "" = raters enter their names.
            category: category of the prompts to answer; None = all.

        Raises:
            UserError: no comparison, an invalid name, or an unknown category.
        """
        self._folder, self._comparison = folder, comparison_folder.read(folder)
        self.rater = rater_name(rater) if rater else ""
        prompts = self._comparison.prompts
        if category is not None:
            one_of("--category", category, dict.fromkeys(p.category for p in prompts))
        self._prompts = {p.id: p for p in prompts if category in (None, p.category)}
        images, root = self._comparison.images, folder / comparison_folder.PICTURES
        self.pictures: Mapping[str, pathlib.Path] = {
            name: root / name
            for prompt in self._prompts.values()
            for side in SIDES
            for name in prompt.pictures(side, images)
        }

    def session(self, rater: str) -> dict[str, Any]:
        """Returns the questions of a rater with the answers so far; JSON-ready.

        The order of prompts is random, but fixed for each rater.

        Raises:
            UserError: an invalid name.
        """
        rater = self._check_rater(rater)
        stored, _ = read_answers(self._path(rater), self._comparison)
        answers: dict[str, dict[str, str]] = {}
        for answer in stored:
            answers.setdefault(answer.prompt, {})[answer.question] = answer.answer
        seed = int(digests.of_json([self._comparison.id, rater])[:16], 16)
        prompts = list(self._prompts.values())
        order = np.random.default_rng(seed).permutation(len(prompts))
        return {
            "rater": rater,
            "questions": [{"name": name, "text": text} for name, text in QUESTIONS.items()],
            "choices": [{"name": name, "text": text} for name, text in CHOICES.items()],
            "prompts": [self._as_json(prompts[row], answers) for row in order],
        }

    def store(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Stores one answer; it is on the disk when the method returns.

        Args:
            values: a text for each of `FIELDS`.

        Raises:
            UserError: other fields, or values that this comparison does not have.
            OSError: it could not be written.
        """
        if values.keys() != set(FIELDS) or not all(isinstance(v, str) for v in values.values()):
            raise UserError(f"an answer has the texts {', '.join(FIELDS)}; give exactly these.")
        rater = self._check_rater(values["rater"])
        if (prompt := self._prompts.get(values["prompt"])) is None:
            raise UserError(f"there is no prompt {short(values['prompt'])}; load the page again.")
        row = {
            "comparison": self._comparison.id,
            "rater": rater,
            "prompt": prompt.id,
            "category": prompt.category,
            "text": prompt.text,
            "question": one_of("question", values["question"], QUESTIONS),
            "answer": one_of("answer", values["answer"], CHOICES),
            "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        }
        append_line(self._path(rater), json.dumps(row))
        return {"stored": row["answer"]}

    def summary(self) -> str:
        """Returns a line about all answers so far."""
        answers, _ = all_answers(self._folder, self._comparison)
        raters = len({answer.rater for answer in answers})
        place = self._folder / comparison_folder.ANSWERS
        return f"answers in {place}: {len(answers)}, raters: {raters}; `compare` reports on them."

    def _check_rater(self, rater: str) -> str:
        rater = rater_name(rater)
        if self.rater and rater != self.rater:
            raise UserError(f"this page is for {self.rater}, not for {rater}; start another one.")
        return rater

    def _path(self, rater: str) -> pathlib.Path:
        return self._folder / comparison_folder.ANSWERS / f"{rater}.jsonl"

    def _as_json(
        self, prompt: ComparedPrompt, answers: Mapping[str, Mapping[str, str]]
    ) -> dict[str, Any]:
        images = self._comparison.images
        sides = {side: prompt.pictures(side, images) for side in SIDES}
        return {
            "id": prompt.id,
            "text": prompt.text,
            **sides,
            "answers": answers.get(prompt.id, {}),
        }
