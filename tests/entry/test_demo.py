"""Inputs that the demo command rejects before it loads anything."""

import socket

import pytest

from unclip_jax import demo
from unclip_jax.core.checks import UserError
from unclip_jax.handoff import shipped
from unclip_jax.serving import extra


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--port=0"], r"--port is 0; it must lie in \[1, 65535\]"),
        (["--batch=0"], "--batch is 0; it must be greater than 0"),
        (["--max-images=0"], "--max-images is 0"),
        (["--max-waiting=-1"], "--max-waiting is -1"),
        (["--models=x", "--embeddings=x"], "no embeddings in x: it has no metadata"),
        (["--models", "x", "y", "--embeddings=x"], r"of one run, and 2 are served \(x, y\)"),
        (["--models", "a/x", "b/x"], "--models have the names x, x, and .*; rename folders"),
        ([], "no trained models .*or train them with `make train-demo`"),
    ],
)
def test_mistakes_are_one_line(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(shipped, "WEIGHTS", tmp_path)
    monkeypatch.setattr(extra.importlib.util, "find_spec", lambda name: name)
    with pytest.raises(UserError, match=message):
        demo.main(arguments)


def test_without_the_extra_it_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setattr(extra.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"needs starlette and uvicorn.*'unclip_jax\[demo\]'"):
        demo.main([f"--models={tmp_path}"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--token="], "--token is empty; give one, or leave the flag out"),
        (["--token=a b"], "the token has spaces or characters outside ASCII"),
        (["--root-path=unclip"], "--root-path is 'unclip'; give a path such as /unclip"),
        (["--host=no.such.host.invalid"], "no name or address of this machine; try 127.0.0.1"),
        (["--port={port}"], r"cannot listen on port \d+ of 127.0.0.1: .*; give another --port"),
    ],
)
def test_an_address_is_checked_before_anything_is_loaded(arguments, message, monkeypatch, tmp_path):
    pytest.importorskip("starlette", reason="needs the extra demo")
    monkeypatch.setattr(demo, "open_services", lambda args: pytest.fail("models were loaded"))
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        arguments = [argument.format(port=port) for argument in arguments]
        with pytest.raises(UserError, match=message):
            demo.main([f"--models={tmp_path}", *arguments])


def test_names_of_hosts_are_checked_on_this_machine_alone_or_if_given(monkeypatch):
    pytest.importorskip("starlette", reason="needs the extra demo")
    monkeypatch.setenv(demo.TOKEN, "from-the-environment")

    def access(*arguments):
        return demo.access_of(demo.parser().parse_args(arguments))

    assert access().hosts == ("localhost", "127.0.0.1", "::1")
    assert access("--host=0.0.0.0").hosts == ()
    assert access("--host=0.0.0.0", "--allow-host", "A.example").hosts[-1] == "a.example"
    assert access().token == "from-the-environment" and access("--token=flag").token == "flag"
