"""Failures in the words of each store's library become one-line errors that lose no information."""

import asyncio
import http
import json
import logging
from unittest import mock

import pytest

from tests import object_stores
from unclip_jax.core import storage
from unclip_jax.core.checks import UserError
from unclip_jax.core.storage import Url


@pytest.fixture(autouse=True)
def patient(monkeypatch):
    """No pauses, neither here nor in the libraries."""
    monkeypatch.setattr(storage, "PAUSE", 0.0)
    sleep = asyncio.sleep
    monkeypatch.setattr(asyncio, "sleep", lambda seconds, *_: sleep(0))


def check_lines(url: Url, message: str) -> None:
    """Every kind of request ends in one line, which names the object and the cause."""
    calls = {
        "read": url.read_bytes,
        "write": lambda: url.write_bytes(b"x"),
        "list": (url.parent / "below").objects,
    }
    for verb, call in calls.items():
        with pytest.raises(UserError, match=f"^cannot {verb} {url.parent}/.*{message}") as error:
            call()
        assert "\n" not in str(error.value)


ACCESS = "a@b.c does not have storage.objects.get access to the Google Cloud Storage object."


@pytest.mark.parametrize(
    ("status", "text", "message"),
    [
        (401, "Anonymous caller", "no valid credentials for it; log in with `gcloud auth"),
        (403, ACCESS, rf"permission denied \(.*{ACCESS[:-1]}\); give this account access"),
        (403, "Quota exceeded for quota metric x", "too many requests .*Quota exceeded.*; wait"),
        (403, "User Rate Limit Exceeded", "too many requests .*User Rate Limit Exceeded"),
        (404, "The specified bucket does not exist.", "no such object or bucket; check the name"),
        (429, "The rate of requests is too high.", "too many requests .*too high.*; wait"),
        (503, "Backend Error", r"Backend Error.* \(3 tries\); check the connection"),
    ],
)
def test_of_google(monkeypatch, caplog, status, text, message):
    from gcp_storage_emulator import server

    def handle(router, method):
        handler = router._request_handler
        handler.rfile.read(int(handler.headers["content-length"] or 0))
        content = json.dumps({"error": {"code": status, "message": text}}).encode()
        handler.send_response(http.HTTPStatus(status))
        handler.send_header("content-length", str(len(content)))
        handler.end_headers()
        handler.wfile.write(content)

    with object_stores.google(), mock.patch.object(server.Router, "handle", handle):
        check_lines(Url("gs://bucket/a/b"), message)
    assert not [each for each in caplog.records if each.levelno >= logging.WARNING]


REGION = "the region 'us-east-1' is wrong; expecting 'eu-central-1'"


@pytest.mark.parametrize(
    ("status", "code", "text", "message"),
    [
        (301, "PermanentRedirect", "The bucket must be addressed", "in another region"),
        (400, "AuthorizationHeaderMalformed", REGION, f"in another region .*{REGION}"),
        (400, "IllegalLocationConstraintException", "is incompatible", "in another region"),
        (400, "ExpiredToken", "The provided token has expired", "no valid credentials"),
        (403, "InvalidAccessKeyId", "does not exist in our records", "no valid credentials .*AWS_"),
        (403, "SignatureDoesNotMatch", "does not match", "no valid credentials"),
        (403, "AccessDenied", "Access Denied", r"permission denied \(Access Denied\)"),
        (404, "NoSuchBucket", "does not exist", "no such object or bucket"),
        (503, "SlowDown", "Please reduce your request rate", "too many requests .*reduce your"),
        (500, "InternalError", "Please try again", r"Please try again.* \(3 tries\)"),
    ],
)
def test_of_amazon(monkeypatch, status, code, text, message):
    client = pytest.importorskip("aiobotocore.client")
    from botocore.exceptions import ClientError

    async def call(self, operation, parameters):
        facts = {"HTTPStatusCode": status}
        response = {"Error": {"Code": code, "Message": text}, "ResponseMetadata": facts}
        raise ClientError(response, operation)

    monkeypatch.setattr(client.AioBaseClient, "_make_api_call", call)
    keys = {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x"}
    with object_stores.environment(**keys, AWS_DEFAULT_REGION="us-east-1"):
        object_stores.forget_stores()
        check_lines(Url("s3://bucket/a/b"), message)
    object_stores.forget_stores()
