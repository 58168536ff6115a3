"""One untrained cascade for all tests of serving, and servers of it in this process."""

import base64
import contextlib
import http.client
import io
import json
import threading
import time

import numpy as np
import pytest
from PIL import Image

from tests import cascades
from unclip_jax import demo
from unclip_jax.serving import extra
from unclip_jax.serving.job_queue import Job


@pytest.fixture(scope="session")
def run_dir(tmp_path_factory):
    return cascades.write(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="session")
def service(run_dir):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(extra.importlib.util, "find_spec", lambda name: name)
        arguments = ["--batch=2", "--max-images=6", "--max-waiting=3"]
        args = demo.parser().parse_args([f"--models={run_dir}", *arguments])
        demo.check(args)
    return demo.open_services(args)[0]


@pytest.fixture(scope="session")
def two_services(service, tmp_path_factory):
    """The untrained runs "a" and, a chain of codes, "b", as `demo` serves them."""
    first = cascades.write(tmp_path_factory.mktemp("runs") / "a")
    (first / "embeddings" / "train").mkdir(parents=True)
    second = cascades.write(first.parent / "b", names=("clip", "dvae", "dalle"))
    args = demo.parser().parse_args(["--batch=2", "--models", str(first), str(second)])
    args.models = [first, second]
    return demo.open_services(args)


@pytest.fixture
def busy_queue(service):
    """Occupies the queue until the end of the test, or until it is released."""
    start, release = threading.Event(), threading.Event()

    def work(report):
        start.set()
        assert release.wait(60)

    job = service.queue.submit(Job(work))
    assert start.wait(60)
    yield release
    release.set()
    assert job.wait(10)


class Client:
    """Calls a server as sent, without a library that would correct the path or the headers."""

    def __init__(self, port):
        self.port, self.url = port, f"http://127.0.0.1:{port}"

    def call(self, method, path, body=None, *, headers=None):
        """Status, headers and content of one answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        with contextlib.closing(connection):
            if body is not None and not isinstance(body, bytes):
                body = json.dumps(body).encode()
            defaults = {"Content-Type": "application/json"} if body is not None else {}
            connection.request(method, path, body, {**defaults, **(headers or {})})
            answer = connection.getresponse()
            return answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read()

    def get(self, path, **options):
        status, _, content = self.call("GET", path, **options)
        assert status == 200, content
        return json.loads(content)

    def post(self, path, body, **options):
        """Status and JSON of one answer."""
        status, _, content = self.call("POST", path, body, **options)
        return status, json.loads(content)


@contextlib.contextmanager
def serving_app(app):
    """A server of an ASGI application in a thread of this process; yields a `Client` of it."""
    from unclip_jax.serving import server

    with server.take_address("127.0.0.1", 0) as listener:
        running = server.build(app)
        running.install_signal_handlers = lambda: None
        thread = threading.Thread(target=running.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        while not running.started:
            assert thread.is_alive()
            time.sleep(0.01)
        yield Client(listener.getsockname()[1])
        running.should_exit = True
        thread.join(20)


def serving(*services, access=None):
    """A server of the API; yields a `Client` of it."""
    from unclip_jax.serving import api

    return serving_app(api.app(services, access))


@pytest.fixture(scope="session")
def client_of_two(two_services):
    pytest.importorskip("starlette", reason="needs the extra demo")
    with serving(*two_services) as connection:
        yield connection


@pytest.fixture(scope="session")
def client(service):
    pytest.importorskip("starlette", reason="needs the extra demo")
    with serving(service) as connection:
        yield connection


def png(width=40, height=30, *, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def to_base64(data):
    return base64.b64encode(data).decode()
