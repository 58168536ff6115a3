"""What the demo command refuses before it loads anything."""

import pytest

from unclip_jax import demo
from unclip_jax.core.checks import UserError


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--port=0"], r"--port is 0; it must lie in \[1, 65535\]"),
        (["--batch=0"], "--batch is 0; it must be greater than 0"),
        (["--max-images=0"], "--max-images is 0"),
        (["--max-waiting=-1"], "--max-waiting is -1"),
        (["--models=x", "--embeddings=x"], "no embeddings in x: it has no metadata"),
        ([], "no finished models in runs/shapes; `make demo` builds them"),
    ],
)
def test_mistakes_are_one_line(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(demo.importlib.util, "find_spec", lambda name: name)
    with pytest.raises(UserError, match=message):
        demo.main(arguments)


def test_without_gradio_it_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setattr(demo.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"needs Gradio.*pip install 'unclip_jax\[demo\]'"):
        demo.main([f"--models={tmp_path}"])
