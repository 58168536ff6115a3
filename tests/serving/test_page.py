"""The server as it runs: the HTTP API by hand, the page in a headless browser."""

import base64
import concurrent.futures
import http.client
import importlib.util
import io
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import numpy as np
import pytest
from PIL import Image

from tests.conftest import ROOT
from tests.serving.browser import Browser, program
from tests.serving.conftest import png
from tests.serving.test_schemas import monster

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("gradio") is None, reason="needs the extra demo (Gradio)"
    ),
]
STEPS = {"steps": "4"}


@pytest.fixture(scope="module")
def server(run_dir, tmp_path_factory):
    """Where it listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = tmp_path_factory.mktemp("server") / "log"
    command = [sys.executable, "-m", "unclip_jax.demo", f"--models={run_dir}", f"--port={port}"]
    env = {**os.environ, "XLA_FLAGS": "", "GRADIO_TEMP_DIR": str(log.parent / "gradio")}
    with log.open("w") as out:
        process = subprocess.Popen(
            [*command, "--max-waiting=3"], cwd=ROOT, env=env, stdout=out, stderr=out
        )
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(900):
            try:
                get(f"{url}/api/queue")
                break
            except OSError:
                assert process.poll() is None, log.read_text()
                time.sleep(0.1)
        yield url
    finally:
        process.terminate()
        process.wait(20)


def get(url):
    with urllib.request.urlopen(url, timeout=60) as answer:
        return json.load(answer)


def post(url, given, *, accept="application/json", kind="application/json"):
    """Status and body of an answer."""
    body = given if isinstance(given, bytes) else json.dumps(given).encode()
    request = urllib.request.Request(url, body, {"Content-Type": kind, "Accept": accept})
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def encoded(data):
    return base64.b64encode(data).decode()


def test_the_api_says_what_it_takes_and_runs(server, run_dir):
    assert get(f"{server}/api")["commands"]["text"]["fields"]["captions"]["required"] is True
    assert get(f"{server}/api/models")["name"] == run_dir.name
    assert get(f"{server}/api/openapi.json")["paths"].keys() > {"/api/text", "/api/blend"}
    assert get(f"{server}/api/queue") == {"running": 0, "waiting": 0, "limit": 3}


def test_images_come_as_json_and_as_png(server):
    given = {"captions": ["a red circle"], "seed": 3, **STEPS}
    status, body = post(f"{server}/api/text", given)
    assert status == 200, body
    answer = json.loads(body)
    assert answer["record"]["request"]["captions"] == ["a red circle"]
    status, shown = post(f"{server}/api/text", given, accept="image/png")
    assert status == 200 and encoded(shown) == answer["images"][0]
    assert Image.open(io.BytesIO(shown)).size == (32, 32)
    given = {"image": f"data:image/png;base64,{encoded(png())}", "target": "a blue circle"}
    status, body = post(f"{server}/api/text-diff", {**given, "frames": 2, **STEPS})
    assert status == 200 and json.loads(body)["labels"] == ["theta 0.00", "theta 0.50"]
    given = {"images": [encoded(png())], "image_weights": [3], "texts": ["a star"], "num": 2}
    status, body = post(f"{server}/api/blend", {**given, "noise": "fresh", **STEPS})
    assert status == 200 and json.loads(body)["labels"] == ["0.75 images.png + 0.25 a star"] * 2


@pytest.mark.parametrize(
    ("command", "given", "status", "message"),
    [
        ("paint", {}, 404, "there is no 'paint'"),
        ("text", b"{", 400, "the body is no JSON"),
        ("text", [], 400, "the body is no JSON object"),
        ("text", {"captions": [""]}, 400, "captions is empty"),
        ("text", {"captions": ["x" * 10_000]}, 400, "captions has 10000 characters"),
        ("variations", {"image": encoded(monster())}, 400, "10000x10000 pixels"),
        ("variations", {"image": encoded(b"<svg/>")}, 400, "not an image"),
        ("variations", {"image": encoded(b"some words")}, 400, "not an image"),
        ("variations", {"image": "?"}, 400, "image is no base64"),
        ("blend", {"texts": ["a"]}, 400, "a blend needs at least two things, not 1"),
        ("probe-pca", {"images": [encoded(png())]}, 400, "this server has no embeddings"),
        ("variations", {"image": 7}, 400, "give an image file as base64"),
    ],
)
def test_bad_requests_are_answered_in_one_line(server, command, given, status, message):
    got, body = post(f"{server}/api/{command}", given)
    assert got == status and message in json.loads(body)["error"]


def test_too_long_a_body_is_refused_before_it_is_read(server):
    connection = http.client.HTTPConnection(server.removeprefix("http://"), timeout=60)
    connection.putrequest("POST", "/api/text")
    connection.putheader("Content-Type", "application/json")
    connection.putheader("Content-Length", str(49 * 2**20))
    connection.endheaders()
    answer = connection.getresponse()
    assert answer.status == 413 and b"the request has more than" in answer.read()
    connection.close()


def test_only_json_is_read(server):
    status, body = post(f"{server}/api/text", b"captions=x", kind="text/plain")
    assert status == 415 and "Content-Type: application/json" in json.loads(body)["error"]


def test_twenty_at_once_are_served_or_politely_refused(server):
    given = {"captions": ["a red circle"], "num": 2, **STEPS}
    with concurrent.futures.ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda _: post(f"{server}/api/text", given), range(20)))
    statuses = [status for status, _ in answers]
    assert set(statuses) == {200, 429} and statuses.count(200) >= 4
    refused = next(json.loads(body)["error"] for status, body in answers if status == 429)
    assert "requests are waiting already" in refused


@pytest.fixture
def browser(tmp_path):
    if program() is None:
        pytest.skip("needs Chromium")
    opened = Browser(tmp_path / "profile")
    yield opened
    opened.close()


def test_stop_ends_a_request_that_waits_and_leaves_others_alone(server, browser):
    browser.open(server)
    browser.wait("document.querySelector('#go-text') !== null")
    browser.type("#captions textarea", "a red circle")
    status = "document.querySelector('#status-text').innerText"
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        given = {"captions": ["a blue square"] * 16, "steps": "1000"}
        other = pool.submit(post, f"{server}/api/text", given)
        while not get(f"{server}/api/queue")["running"]:
            time.sleep(0.05)
        browser.click("#go-text")
        browser.wait(f"{status}.includes('1 before you')")
        browser.click("#stop-text")
        browser.wait(f"{status}.includes('Stopped.')")
        assert get(f"{server}/api/queue")["waiting"] == 0
        assert other.result()[0] == 200


def test_the_page_draws_varies_and_refuses(server, browser, tmp_path, run_dir):
    browser.open(server)
    browser.wait("document.querySelector('#go-text') !== null")
    assert run_dir.name in browser.text()
    browser.run(
        "window.seen = new Set(), setInterval(() => "
        "window.seen.add(document.querySelector('#status-text').innerText), 20)"
    )
    browser.type("#captions textarea", "a red circle")
    browser.click("#go-text")
    browser.wait("document.querySelector('#status-text').innerText.includes('2 images in')")
    browser.wait("document.querySelectorAll('#gallery-text img').length >= 2")
    assert browser.run("[...window.seen].some(said => /of 2 images|step [0-9]/.test(said))")
    foreign = [url for url in browser.requests if not url.startswith((server, "data:", "blob:"))]
    assert not foreign
    browser.run("[...document.querySelectorAll('button[role=tab]')]"
                ".find(b => b.innerText.trim() == 'Variations').click()")  # fmt: skip
    status = "document.querySelector('#status-variations').innerText"
    for name, data, message in (
        ("monster.png", monster(), "10000x10000 pixels"),
        ("drawing.png", b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not an image"),
        ("words.png", b"some words", "not an image"),
    ):
        _upload(browser, tmp_path / name, data)
        browser.click("#go-variations")
        browser.wait(f"{status}.includes('{message}')")
    _upload(browser, tmp_path / "good.png", png())
    browser.click("#go-variations")
    browser.wait(f"{status}.includes('images in')")


def _upload(browser, path, data):
    path.write_bytes(data)
    browser.run("document.querySelector('#variations-image button[aria-label=Clear]')?.click()")
    browser.wait("document.querySelector('#variations-image input[type=file]') !== null")
    browser.upload("#variations-image input[type=file]", path)
    browser.wait("document.querySelector('#variations-image img') !== null")


def test_pixels_are_the_commands(server, service):
    """The server's images are those of the same request run here."""
    given = {"captions": ["a red circle"], "seed": 3, **STEPS}
    job = service.submit("text", given, owner="me")
    assert job.wait(120) and job.result is not None
    here = job.result.result.images[0].astype(int)
    _, shown = post(f"{server}/api/text", given, accept="image/png")
    assert np.abs(np.asarray(Image.open(io.BytesIO(shown))) - here).max() <= 1
