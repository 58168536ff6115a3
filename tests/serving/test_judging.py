"""The page for raters over HTTP: it is blind, stores what it confirms, and rejects the rest."""

import json
import re
import shutil
import threading

import pytest

from tests import comparisons
from tests.serving.conftest import serving_app
from unclip_jax import evaluate
from unclip_jax.core.checks import UserError
from unclip_jax.evaluation import comparison_folder, questionnaire
from unclip_jax.evaluation.questionnaire import Questionnaire

pytest.importorskip("starlette", reason="needs the extra demo")
from unclip_jax.serving import judging
from unclip_jax.serving.access import HEADERS, LOCAL_HOSTS, Access

FILES = {"/", "/judge.js", "/judge.css", "/client.js", "/dom.js", "/icon.svg", "/page.css"}
FILES |= {"/theme.js"}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return comparisons.write_comparison(tmp_path_factory.mktemp("compared"))


@pytest.fixture(scope="module")
def server(source):
    app = judging.app(Questionnaire(source), Access(hosts=LOCAL_HOSTS))
    with serving_app(app) as connection:
        yield connection


@pytest.fixture
def folder(source):
    """The comparison without answers."""
    shutil.rmtree(source / "answers", ignore_errors=True)
    return source


@pytest.fixture
def client(server, folder):
    """The server, and no answers yet."""
    return server


def answer_of(session, row=0, *, question="fidelity", answer="left"):
    prompt = session["prompts"][row]["id"]
    return {"rater": session["rater"], "prompt": prompt, "question": question, "answer": answer}


def test_no_answer_of_the_server_names_a_model(client, source):
    session = client.get("/api/session?rater=anna")
    names = {name for prompt in session["prompts"] for s in ("left", "right") for name in prompt[s]}
    assert len(names) == 2 * comparisons.IMAGES * len(comparisons.ROWS)
    paths = [*sorted(FILES), "/api", "/api/session?rater=anna"]
    for path in [*paths, *(f"/pictures/{name}" for name in sorted(names))]:
        status, headers, content = client.call("GET", path)
        assert status == 200 and content, path
        assert b"secret" not in content and "secret" not in json.dumps(headers), path
        assert all(headers[name.lower()] == value for name, value in HEADERS.items())
    assert b"secret" in (source / "key" / "report.json").read_bytes()  # the test can fail
    _, headers, content = client.call("GET", f"/pictures/{min(names)}")
    assert headers["content-type"] == "image/png"
    assert content == (source / "pictures" / min(names)).read_bytes()


@pytest.mark.parametrize(
    "path",
    [
        *(
            "/key/sides.json",
            "/comparison.json",
            "/answers/anna.jsonl",
            "/pictures/0001_left_99.png",
        ),
        *("/pictures/../key/sides.json", "/pictures/..%2Fkey%2Fsides.json", "/pictures/"),
        *("/api/text", "/index.html", "/page.js", "/judge", "/pictures/%2Fetc%2Fpasswd"),
    ],
)
def test_nothing_else_is_served(client, path):
    status, _, content = client.call("GET", path)
    assert status == 404 and re.search("there is no .*; (open /|load the page)", content.decode())


def test_page_runs_no_script_of_its_own_and_loads_nothing_from_elsewhere(client):
    page = client.call("GET", "/")[2].decode()
    assert re.findall(r"<script[^>]*>(.*?)</script>", page) == [""]
    assert not re.search(r"\son\w+=|style=|<style|https?://", page)
    for name in re.findall(r'(?:href|src)="([^"]+)"', page):
        assert name == "./" or f"/{name}" in FILES
    for path in ("/judge.js", "/theme.js"):
        script = client.call("GET", path)[2].decode()
        assert "innerHTML" not in script and "http" not in script
        for name in re.findall(r'from "\./(\w+\.js)"', script):
            assert f"/{name}" in FILES


def test_answers_are_stored_and_the_session_continues(client, folder):
    assert client.get("/api") == {"rater": ""}
    session = client.get("/api/session?rater=Anna")
    assert session["rater"] == "anna"
    assert client.post("/api/answers", answer_of(session)) == (200, {"stored": "left"})
    assert client.post("/api/answers", answer_of(session, 1, answer="indifferent"))[0] == 200
    again = client.get("/api/session?rater=anna")
    assert [prompt["id"] for prompt in again["prompts"]] == [p["id"] for p in session["prompts"]]
    assert [prompt["answers"] for prompt in again["prompts"][:3]] == [
        *({"fidelity": "left"}, {"fidelity": "indifferent"}, {})
    ]
    assert len((folder / "answers" / "anna.jsonl").read_text().splitlines()) == 2


def test_raters_at_the_same_time_lose_no_answer(client, folder):
    statuses = []

    def work(rater):
        session = client.get(f"/api/session?rater={rater}")
        bodies = [answer_of(session, row) for row in range(len(session["prompts"]))]
        statuses.extend(client.post("/api/answers", body)[0] for body in bodies)

    threads = [threading.Thread(target=work, args=[rater]) for rater in ("anna", "ben")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert statuses == [200] * 2 * len(comparisons.ROWS)
    stored, _ = questionnaire.all_answers(folder, comparison_folder.read(folder))
    assert len(stored) == 2 * len(comparisons.ROWS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt": "none"}, "there is no prompt 'none'"),
        ({"question": "beauty"}, "unknown question 'beauty'"),
        ({"answer": "A"}, "unknown answer 'A'"),
        ({"rater": "../../x"}, "the rater is '../../x'; give a name"),
        ({"answer": None}, "an answer has the texts rater, prompt, question, answer"),
        ({"more": "x"}, "an answer has the texts"),
    ],
)
def test_answers_that_nobody_asked_for_are_rejected(client, folder, change, message):
    body = answer_of(client.get("/api/session?rater=anna")) | change
    status, content = client.post("/api/answers", body)
    assert status == 400 and message in content["error"]
    assert not (folder / "answers").exists()


def test_bodies_are_small_json_of_this_page(client, folder):
    body = answer_of(client.get("/api/session?rater=anna"))
    for data, headers, status, message in [
        (b"x" * 5000, {}, 413, "has more than 4096 bytes; send one answer only"),
        (b"{", {}, 400, "the body is not JSON"),
        (b"[]", {}, 400, "not a JSON object"),
        (body, {"Content-Type": "text/plain"}, 415, "give JSON"),
        (body, {"Sec-Fetch-Site": "cross-site"}, 403, "pages of other origins"),
        (
            body,
            {"Host": "rebound.example"},
            403,
            "this server does not accept the host name 'rebound.example'",
        ),
    ]:
        got, content = client.post("/api/answers", data, headers=headers)
        assert (got, message in content["error"]) == (status, True), content
    assert client.call("GET", "/api/answers")[0] == 405
    status, _, content = client.call("GET", "/api/session")
    assert status == 400 and b"the rater is ''; give a name" in content
    assert not (folder / "answers").exists()


def test_a_disk_that_fails_is_no_confirmed_answer(client, monkeypatch):
    session = client.get("/api/session?rater=anna")

    def failing(path, line):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(questionnaire, "append_line", failing)
    status, content = client.post("/api/answers", answer_of(session))
    assert status == 500 and "the server failed (OSError)" in content["error"]


def test_the_command_serves_until_it_is_stopped(folder, monkeypatch, capsys):
    servers = []

    def serve(app, listener):
        servers.append((app, listener.getsockname()[0]))
        questions = Questionnaire(folder)
        questions.store(answer_of(questions.session("anna")))

    monkeypatch.setattr("unclip_jax.serving.server.serve", serve)
    with serving_app(None) as other, pytest.raises(UserError, match="cannot listen on port"):
        evaluate.main(["judge", str(folder), f"--port={other.port}"])
    evaluate.main(["judge", str(folder), f"--port={other.port}", "--rater=Anna"])
    output = capsys.readouterr().out
    assert f"questions at http://127.0.0.1:{other.port}\n" in output and "anyone" not in output
    assert f"answers in {folder}/answers: 1, raters: 1; `compare` reports on them.\n" in output
    with serving_app(servers[0][0]) as client:
        assert client.get("/api") == {"rater": "anna"}
        assert client.call("GET", "/", headers={"Host": "a.example"})[0] == 403
    evaluate.main(["judge", str(folder), f"--port={other.port}", "--host=0.0.0.0"])
    assert "anyone who reaches this port can answer under any name" in capsys.readouterr().out
    with serving_app(servers[1][0]) as client:
        assert client.call("GET", "/", headers={"Host": "a.example"})[0] == 200


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], r"nowhere holds no comparison\.json; give a folder that `compare` wrote"),
        (["nowhere", "--port=0"], r"--port is 0; it must lie in \[1, 65535\]"),
    ],
)
def test_mistakes_are_reported_before_anything_is_served(arguments, message):
    with pytest.raises(UserError, match=message):
        evaluate.main(["judge", *arguments])
