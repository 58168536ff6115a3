"""The HTTP API: results, jobs, and one line of JSON for every mistake."""

import asyncio
import base64
import concurrent.futures
import http.client
import io
import json
import socket
import time
import zipfile

import numpy as np
import pytest
from PIL import Image

from tests.serving.conftest import png, to_base64
from tests.serving.test_schemas import monster
from unclip_jax.engine.result import Result
from unclip_jax.serving.service import ServedResult

pytest.importorskip("starlette", reason="needs the extra demo")
from starlette.requests import Request

from unclip_jax.serving import api, bodies, job_store
from unclip_jax.serving.errors import RequestError
from unclip_jax.serving.job_queue import Job

STEPS = {"steps": "4"}
CIRCLE = {"captions": ["a red circle"], "seed": 3, **STEPS}


def test_the_api_describes_itself(client, run_dir):
    description = client.get("/api")
    assert description["commands"]["text"]["fields"]["captions"]["required"] is True
    assert description["commands"]["text"]["fields"]["num"]["range"] == [1, 6]
    assert description["limits"]["images"] == 6
    assert client.get("/api/models")["name"] == run_dir.name
    document = client.get("/api/openapi.json")
    assert document["paths"].keys() > {"/api/text", "/api/jobs/blend", "/api/jobs/{job}/result"}
    assert client.get("/api/queue") == {"running": 0, "waiting": 0, "limit": 3}


@pytest.mark.slow
def test_requests_choose_among_models_with_one_queue(client_of_two):
    first, second = (client_of_two.get(f"/api/models{query}") for query in ("", "?model=b"))
    assert first["names"] == second["names"] == ["a", "b"]
    assert (first["name"], second["name"]) == ("a", "b")
    assert "variations" in first["commands"] and "variations" not in second["commands"]
    assert first["examples"][0] == "a red circle above a blue square"
    for query, name in (("", "a"), ("?model=a", "a"), ("?model=b", "b")):
        status, answer = client_of_two.post(f"/api/text{query}", {"captions": ["a"]})
        assert status == 200 and answer["record"]["models"]["path"] == name
    status, answer = client_of_two.post("/api/jobs/text?model=b", {"captions": ["a"]})
    assert status == 202
    for call in (
        client_of_two.call("GET", "/api/models?model=c"),
        client_of_two.call("POST", "/api/text?model=c", {"captions": ["a"]}),
    ):
        assert call[0] == 404
        error = "there are no models 'c'; this server has a, b."
        assert json.loads(call[2])["error"] == error


def test_runs_of_one_server_share_its_queue(two_services):
    first, second = two_services
    assert first.queue is second.queue and first.name != second.name
    assert first.embeddings == first.folder / "embeddings" / "train" and second.embeddings is None


@pytest.mark.slow
def test_the_time_of_a_request_is_estimated_from_those_of_the_same_models(two_services):
    jobs = [service.submit("text", CIRCLE | {"steps": None}) for service in two_services]
    assert all(job.wait(120) for job in jobs)
    assert jobs[0].kind != jobs[1].kind  # `JobQueue` has a rate for each kind


@pytest.mark.slow
def test_images_come_as_json_and_as_png(client, service):
    status, answer = client.post("/api/text", CIRCLE)
    assert status == 200, answer
    assert answer["record"]["request"]["captions"] == ["a red circle"]
    status, _, image = client.call("POST", "/api/text", CIRCLE, headers={"Accept": "image/png"})
    assert status == 200 and to_base64(image) == answer["images"][0]
    job = service.submit("text", CIRCLE)
    assert job.wait(120) and job.result is not None
    here = job.result.result.images[0].astype(int)
    assert np.abs(np.asarray(Image.open(io.BytesIO(image))) - here).max() <= 1


@pytest.mark.slow
def test_a_job_is_followed_fetched_and_forgotten(client):
    status, answer = client.post("/api/jobs/text", {**CIRCLE, "num": 2})
    assert status == 202
    path, revision, states, previews = f"/api/jobs/{answer['job']}", -1, [], []
    while True:
        state = client.get(f"{path}?revision={revision}")
        states.append(state["state"])
        previews += state.get("previews", [])
        if state["state"] not in ("waiting", "running"):
            break
        revision = state["revision"]
    assert state["state"] == "done" and set(states) <= {"waiting", "running", "done"}
    assert all(Image.open(io.BytesIO(base64.b64decode(each))).size == (16, 16) for each in previews)
    result = client.get(f"{path}/result")
    assert len(result["images"]) == 2 and result["labels"] == ["a red circle"] * 2
    status, headers, content = client.call("GET", f"{path}/archive")
    assert status == 200 and headers["content-type"] == "application/zip"
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        assert {"text.json", "text.png", "text/0001.png"} == {*archive.namelist()} - {
            "text/0000.png"
        }
    assert client.call("DELETE", path)[0] == 200
    for method, suffix in (("GET", ""), ("GET", "/result"), ("GET", "/archive"), ("DELETE", "")):
        status, _, content = client.call(method, path + suffix)
        assert status == 404 and "there is no such job" in json.loads(content)["error"]


def test_a_job_that_waits_knows_its_place_and_can_be_cancelled(client, busy_queue):
    jobs = [client.post("/api/jobs/text", CIRCLE)[1]["job"] for _ in range(2)]
    states = [client.get(f"/api/jobs/{job}") for job in jobs]
    assert [state["state"] for state in states] == ["waiting"] * 2
    assert [state["ahead"] for state in states] == [1, 2]
    assert client.call("GET", f"/api/jobs/{jobs[0]}/result")[0] == 409
    for job in jobs:
        assert client.call("DELETE", f"/api/jobs/{job}")[0] == 200
    assert client.get("/api/queue")["waiting"] == 0


def test_a_job_whose_page_has_gone_is_cancelled(client, service, busy_queue, monkeypatch):
    monkeypatch.setattr(api, "LEASE_S", 0.05)
    job = client.post("/api/jobs/text", CIRCLE)[1]["job"]
    time.sleep(0.1)
    assert client.get("/api/queue")["waiting"] == 0
    assert client.get(f"/api/jobs/{job}")["state"] == "cancelled"


def test_callers_beyond_the_queue_are_rejected_and_those_who_hang_up_leave_it(client, busy_queue):
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        waiting = [pool.submit(client.post, "/api/text", CIRCLE) for _ in range(3)]
        _until(lambda: client.get("/api/queue")["waiting"] == 3)
        status, headers, content = client.call("POST", "/api/text", CIRCLE)
        assert status == 429 and headers["retry-after"] == "30"
        assert "requests are waiting already" in json.loads(content)["error"]
        busy_queue.set()
        assert [each.result()[0] for each in waiting] == [200] * 3


def test_a_caller_who_hangs_up_leaves_the_queue(client, busy_queue):
    connection = http.client.HTTPConnection("127.0.0.1", client.port, timeout=60)
    kind = {"Content-Type": "application/json"}
    connection.request("POST", "/api/text", json.dumps(CIRCLE), kind)
    _until(lambda: client.get("/api/queue")["waiting"] == 1)
    connection.close()
    _until(lambda: client.get("/api/queue")["waiting"] == 0)


def _until(true):
    end = time.monotonic() + 20
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "message"),
    [
        ("POST", "/api/paint", {}, 404, "there is no 'paint'"),
        ("POST", "/api/jobs/paint", {}, 404, "there is no 'paint'"),
        ("GET", "/api/nothing/here", None, 404, "there is no '/api/nothing/here'"),
        ("GET", "/api/", None, 404, "there is no '/api/'"),
        ("PUT", "/api/text", {}, 405, "PUT is not possible here"),
        ("POST", "/api/text", b"{", 400, "the body is not JSON"),
        ("POST", "/api/text", b"\xff\xfe{}\x00", 400, "the body is not JSON"),
        ("POST", "/api/text", b"[" * 100_000, 400, "the body is not JSON"),
        ("POST", "/api/text", b"9" * 10_000, 400, "the body is not JSON"),
        ("POST", "/api/text", [], 400, "the body is not a JSON object"),
        ("POST", "/api/text", {"captions": [""]}, 400, "captions is empty"),
        ("POST", "/api/text", {"captions": ["x" * 10_000]}, 400, "captions has 10000 characters"),
        ("POST", "/api/text", {"captions": ["half \ud83d"]}, 400, "captions holds '\\ud83d'"),
        ("POST", "/api/text", {"captions": ["x"], "\ud83d": 1}, 400, "text has no"),
        ("POST", "/api/text", {"captions": ["x"], "k" * 100_000: 1}, 400, "text has no"),
        ("POST", "/api/text", {**CIRCLE, "condition": "z" * 100_000}, 400, "has 100000 characters"),
        ("POST", "/api/text", {**CIRCLE, "seed": 2**31}, 400, "seed is 2147483648; it must lie"),
        ("POST", "/api/text", {**CIRCLE, "seed": -1}, 400, "seed is -1; it must lie"),
        ("POST", "/api/text", {**CIRCLE, "num": 7}, 400, "would be 7 images"),
        ("POST", "/api/jobs/text", {**CIRCLE, "num": 7}, 400, "would be 7 images"),
        ("POST", "/api/variations", {"image": to_base64(monster())}, 400, "decompression bomb"),
        ("POST", "/api/variations", {"image": to_base64(b"<svg/>")}, 400, "format SVG"),
        ("POST", "/api/variations", {"image": to_base64(b"some words")}, 400, "not an image"),
        ("POST", "/api/variations", {"image": "?"}, 400, "image is not base64"),
        ("POST", "/api/variations", {"image": 7}, 400, "give an image file as base64"),
        (
            "POST",
            "/api/blend",
            {"texts": ["a"]},
            400,
            "a blend needs at least two images or texts, not 1",
        ),
        ("POST", "/api/probe-pca", {"images": [to_base64(png())]}, 400, "server has no embeddings"),
    ],
)
def test_mistakes_are_answered_in_one_line_of_json(client, method, path, body, status, message):
    got, headers, content = client.call(method, path, body)
    assert (got, headers["content-type"]) == (status, "application/json")
    error = json.loads(content)["error"]
    assert message in error and "\n" not in error and len(error) < 500


def test_a_bug_is_answered_in_one_line_of_json(client, service, monkeypatch):
    def fail(*arguments):
        raise KeyError("/secret/path")

    monkeypatch.setattr(service, "models", fail)
    status, headers, content = client.call("GET", "/api/models")
    assert (status, headers["content-type"]) == (500, "application/json")
    assert json.loads(content) == {"error": "the server failed (KeyError); see its log."}


@pytest.mark.parametrize(
    "data",
    [b"nonsense\r\n\r\n", b"GET /api HTTP/1.1\r\nHost: a\r\nContent-Length: x\r\n\r\n"],
)
def test_what_is_no_http_is_answered_in_json(client, data):
    with socket.create_connection(("127.0.0.1", client.port), timeout=10) as connection:
        connection.sendall(data)
        answer = connection.makefile("rb").read()
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400") and json.loads(body)["error"]


def test_too_long_a_body_is_rejected_before_it_is_read(client):
    connection = http.client.HTTPConnection("127.0.0.1", client.port, timeout=60)
    connection.putrequest("POST", "/api/text")
    connection.putheader("Content-Type", "application/json")
    connection.putheader("Content-Length", str(49 * 2**20))
    connection.endheaders()
    answer = connection.getresponse()
    assert answer.status == 413 and b"the request has more than" in answer.read()
    connection.close()


def test_a_body_without_end_is_rejected_in_time(client, monkeypatch):
    monkeypatch.setattr(bodies, "READ_S", 0.1)
    connection = http.client.HTTPConnection("127.0.0.1", client.port, timeout=60)
    connection.putrequest("POST", "/api/text")
    connection.putheader("Content-Type", "application/json")
    connection.putheader("Content-Length", "100")
    connection.endheaders()
    answer = connection.getresponse()
    assert answer.status == 408 and b"to arrive" in answer.read()
    connection.close()


def test_bodies_count_towards_the_memory_of_all_until_they_are_decoded():
    reader = bodies.BodyReader(limit=10, budget=12)
    scope = {"type": "http", "headers": [(b"content-type", b"application/json")]}

    async def receive():
        return {"type": "http.request", "body": b"x" * 8, "more_body": False}

    async def read_three():
        async with reader.read(Request(scope, receive)) as first:
            with pytest.raises(
                RequestError, match="too many large requests arrive at the same time"
            ) as error:
                async with reader.read(Request(scope, receive)):
                    pass
        async with reader.read(Request(scope, receive)) as last:
            return first, last, error.value.status

    assert asyncio.run(read_three()) == (b"x" * 8, b"x" * 8, 503)


@pytest.mark.parametrize(
    "kind",
    [
        "text/plain",
        "text/plain; json",
        "text/plain;charset=application/json",
        "application/jsonp",
        "application/x-www-form-urlencoded; a=application/json",
        "multipart/form-data; boundary=json",
        "application/json, text/plain",
        "text/x+json",
        "",
    ],
)
def test_only_json_is_read(client, kind):
    status, _, content = client.call("POST", "/api/text", CIRCLE, headers={"Content-Type": kind})
    assert status == 415 and "Content-Type: application/json" in json.loads(content)["error"]


@pytest.mark.parametrize(
    "kind", ["application/json", "Application/JSON; charset=utf-8", "application/ld+json"]
)
def test_json_is_read_by_its_exact_media_type(client, kind):
    body, headers = {"captions": [" "]}, {"Content-Type": kind}
    assert client.call("POST", "/api/text", body, headers=headers)[0] == 400


@pytest.mark.parametrize("width", [76, 64, 60])
def test_base64_may_have_line_breaks(width):
    text = to_base64(png())
    for newline in ("\n", "\r\n"):
        broken = newline.join(text[i : i + width] for i in range(0, len(text), width)) + newline
        for value in (broken, f"data:image/png;base64,{broken}"):
            assert bodies._bytes_of("image", value) == png()


def test_the_store_forgets_old_jobs_and_large_results_but_not_those_that_run():
    panels = np.zeros((1, 10, 10, 3), np.uint8)
    result = ServedResult(Result(images=panels, labels=("",), record={}), {"a.png": b"123"})

    def job(*, finished):
        work = Job(lambda report: result)
        if finished:
            work._run()
        return work

    store = job_store.JobStore(max_bytes=2500)  # two results of 903 bytes
    names = [store.add(job(finished=finished)) for finished in (False, True, True, True)]
    assert [store.get(name) is None for name in names] == [False, True, False, False]
    store = job_store.JobStore(keep_s=0)
    first, second = store.add(job(finished=True)), store.add(job(finished=True))
    assert store.get(first) is None and store.get(second) is not None
    long, newest = job(finished=False), job(finished=False)
    store = job_store.JobStore(keep_s=0.05)
    name, _ = store.add(long), store.add(newest)
    time.sleep(0.06)
    long._run()
    assert store.get(name) is not None  # the time counts from its end
    assert len({*names, first, second}) == 6 and min(map(len, names)) >= 32
