"""Answers of raters: stored at once, complete after a kill, and read back in any order."""

import json
import os
import threading

import pytest

from tests.comparisons import ROWS, write_comparison
from unclip_jax.core.checks import UserError
from unclip_jax.evaluation import comparison_folder, questionnaire
from unclip_jax.evaluation.questionnaire import Questionnaire


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write_comparison(tmp_path_factory.mktemp("compared"))


@pytest.fixture
def folder(source, tmp_path):
    """A comparison without answers; pictures are not needed."""
    (tmp_path / "comparison.json").write_bytes((source / "comparison.json").read_bytes())
    return tmp_path


def ids(folder):
    return [prompt.id for prompt in comparison_folder.read(folder).prompts]


def values(folder, row=0, *, rater="anna", question="fidelity", answer="left"):
    prompt = ids(folder)[row]
    return {"rater": rater, "prompt": prompt, "question": question, "answer": answer}


def answers(folder, rater="anna"):
    """Answers of a session by prompt."""
    session = Questionnaire(folder).session(rater)
    return {prompt["id"]: prompt["answers"] for prompt in session["prompts"] if prompt["answers"]}


def test_a_session_asks_the_questions_of_the_paper_on_every_prompt_once(folder):
    session = Questionnaire(folder).session("anna")
    assert [question["text"] for question in session["questions"]] == [
        "Which set of images is of higher quality?",
        "Which set of images better represents the text caption: {caption}?",
    ]
    assert [choice["name"] for choice in session["choices"]] == ["left", "indifferent", "right"]
    assert sorted(prompt["text"] for prompt in session["prompts"]) == sorted(t for _, t in ROWS)
    first = next(p for p in session["prompts"] if p["id"] == ids(folder)[0])
    assert first["left"] == ["0001_left_01.png", "0001_left_02.png"]
    assert first["right"] == ["0001_right_01.png", "0001_right_02.png"]
    assert "secret" not in json.dumps(session)


def test_prompts_are_in_a_random_order_that_stays_for_a_rater(folder):
    order = {
        rater: [prompt["id"] for prompt in Questionnaire(folder).session(rater)["prompts"]]
        for rater in ("anna", "ben", "carl", "Anna ")
    }
    assert order["anna"] == order["Anna "] and len({tuple(each) for each in order.values()}) == 3
    assert ids(folder) not in (order["anna"], order["ben"])


def test_one_category_may_be_judged_alone(folder):
    questions = Questionnaire(folder, category="Counting")
    assert len(questions.session("anna")["prompts"]) == 3 and len(questions.pictures) == 12
    with pytest.raises(UserError, match="there is no prompt"):
        questions.store(values(folder, 0))
    questions.store(values(folder, 4))
    with pytest.raises(UserError, match="unknown --category 'Colour'. Did you mean 'Colors'"):
        Questionnaire(folder, category="Colour")


def test_answers_are_on_the_disk_before_they_are_confirmed(folder, monkeypatch):
    synced = []
    sync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (synced.append(os.fstat(fd).st_size), sync(fd)))
    assert Questionnaire(folder).store(values(folder)) == {"stored": "left"}
    path = folder / "answers" / "anna.jsonl"
    assert path.stat().st_size in synced and len(synced) == 2  # the file and its folder
    row = json.loads(path.read_text())
    prompt = comparison_folder.read(folder).prompts[0]
    assert row.pop("time").endswith("+00:00")
    assert row == {
        "comparison": comparison_folder.read(folder).id,
        "rater": "anna",
        "prompt": prompt.id,
        "category": prompt.category,
        "text": prompt.text,
        "question": "fidelity",
        "answer": "left",
    }


def test_a_rater_continues_and_may_change_an_answer(folder):
    questions = Questionnaire(folder)
    questions.store(values(folder, 0))
    questions.store(values(folder, 0, question="alignment", answer="indifferent"))
    questions.store(values(folder, 2, answer="right"))
    first, _, third, *_ = ids(folder)
    expected = {first: {"fidelity": "left", "alignment": "indifferent"}}
    assert answers(folder) == {**expected, third: {"fidelity": "right"}}
    Questionnaire(folder).store(values(folder, 2, answer="left"))
    assert answers(folder)[third] == {"fidelity": "left"} and answers(folder, "ben") == {}
    assert len((folder / "answers" / "anna.jsonl").read_text().splitlines()) == 4
    stored, warnings = questionnaire.all_answers(folder, comparison_folder.read(folder))
    assert len(stored) == 3 and not warnings


@pytest.mark.parametrize("end", [1, 40, -1])
def test_a_kill_while_an_answer_is_written_spoils_no_other(folder, monkeypatch, end):
    questions, write = Questionnaire(folder), os.write
    questions.store(values(folder, 0))

    def partial_write(descriptor, data):
        write(descriptor, data[:end])
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", partial_write)
        with pytest.raises(KeyboardInterrupt):
            questions.store(values(folder, 1))
    complete = {ids(folder)[1]} if end == -1 else set()  # the line break alone is missing
    assert answers(folder).keys() == {ids(folder)[0]} | complete
    questions.store(values(folder, 2))
    assert answers(folder).keys() == {ids(folder)[0], ids(folder)[2]} | complete
    _, warnings = questionnaire.all_answers(folder, comparison_folder.read(folder))
    assert len(warnings) == (0 if complete else 1)
    assert complete or "anna.jsonl, row 2 cannot be read as JSON" in warnings[0]


def test_a_full_disk_is_an_error_and_not_a_confirmed_answer(folder, monkeypatch):
    write = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: write(fd, data[:10]))
    with pytest.raises(OSError, match="could not be written as a whole"):
        Questionnaire(folder).store(values(folder))


@pytest.mark.parametrize("raters", [("anna", "ben"), ("anna", "anna")])
def test_raters_who_answer_at_the_same_time_lose_nothing(folder, raters):
    """Each on a server of its own; with one name they write to one file."""
    errors = []

    def work(rater, question):
        try:
            questions = Questionnaire(folder)
            for row in range(len(ROWS)):
                questions.store(values(folder, row, rater=rater, question=question))
        except Exception as error:
            errors.append(error)

    names = tuple(questionnaire.QUESTIONS)
    threads = [threading.Thread(target=work, args=args) for args in zip(raters, names, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not errors
    stored, warnings = questionnaire.all_answers(folder, comparison_folder.read(folder))
    assert len(stored) == 2 * len(ROWS) and not warnings
    assert {answer.rater for answer in stored} == set(raters)


def test_the_file_is_locked_while_a_line_is_appended(folder, monkeypatch):
    """Two writers that both end a cut line would otherwise both see it open."""
    calls = []
    flock, write = questionnaire.fcntl.flock, os.write
    monkeypatch.setattr(
        questionnaire.fcntl, "flock", lambda fd, kind: (calls.append(kind), flock(fd, kind))
    )
    monkeypatch.setattr(os, "write", lambda fd, data: (calls.append("write"), write(fd, data))[1])
    Questionnaire(folder).store(values(folder))
    assert calls == [questionnaire.fcntl.LOCK_EX, "write"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt": "0" * 12}, "there is no prompt '000000000000'; load the page again"),
        ({"question": "beauty"}, "unknown question 'beauty'. Known: alignment, fidelity"),
        ({"answer": "both"}, "unknown answer 'both'. Known: indifferent, left, right"),
        ({"answer": "A"}, "unknown answer 'A'"),
        ({"answer": ["left"]}, "an answer has the texts rater, prompt, question, answer; give"),
        ({"comment": "nice"}, "an answer has the texts rater, prompt, question, answer"),
        *(
            ({"rater": name}, "the rater is .*; give a name of 1 to 40 letters a-z, digits")
            for name in ("", "../key/x", "a b", "Zoë", "-x", "a" * 41, "a.b", "a\nb")
        ),
    ],
)
def test_answers_that_nobody_asked_for_are_rejected(folder, change, message):
    with pytest.raises(UserError, match=message):
        Questionnaire(folder).store(values(folder) | change)
    assert not (folder / "answers").exists()
    incomplete = {name: text for name, text in values(folder).items() if name != "answer"}
    with pytest.raises(UserError, match="an answer has the texts"):
        Questionnaire(folder).store(incomplete)


def test_a_page_for_one_rater_takes_no_other(folder):
    questions = Questionnaire(folder, rater="Anna")
    assert questions.rater == "anna" and questions.session("anna")["rater"] == "anna"
    answer = values(folder, rater="ben")
    for ask in (lambda: questions.session("ben"), lambda: questions.store(answer)):
        with pytest.raises(UserError, match="this page is for anna, not for ben; start another"):
            ask()
    with pytest.raises(UserError, match="the rater is 'a/b'"):
        Questionnaire(folder, rater="a/b")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"comparison": "other"}, "row 1 answers comparison 'other', and this is '.*'; move the"),
        ({"prompt": "x"}, "row 1 has the prompt 'x', which this comparison does not have; remove"),
        ({"question": "x"}, "row 1 has the question 'x'"),
        ({"answer": "A"}, "row 1 has the answer 'A'"),
    ],
)
def test_answers_of_other_comparisons_are_not_counted_silently(folder, change, message):
    Questionnaire(folder).store(values(folder))
    path = folder / "answers" / "anna.jsonl"
    path.write_text(json.dumps(json.loads(path.read_text()) | change) + "\n")
    with pytest.raises(UserError, match=message) as error:
        questionnaire.all_answers(folder, comparison_folder.read(folder))
    assert "\n" not in str(error.value)


def test_equal_prompts_of_a_file_are_asked_one_by_one(tmp_path):
    folder = write_comparison(tmp_path, rows=[("all", "a dog"), ("all", "a dog")])
    assert len(set(ids(folder))) == 2
    questions = Questionnaire(folder)
    questions.store(values(folder, 1))
    assert answers(folder).keys() == {ids(folder)[1]}
    assert questions.summary().startswith(f"answers in {folder}/answers: 1, raters: 1; `compare`")
