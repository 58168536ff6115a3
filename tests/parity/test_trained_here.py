"""The miniature of Karlo's kind: trained by the documented command, written, drawn by diffusers."""

import sys

import pytest

from tests.parity import drawing, originals
from tests.test_cascade import call
from unclip_jax.convert import __main__ as command

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.slow]
WORDS = ["a red circle above a blue square", "three green stars"]


def test_a_trained_cascade_is_drawn_alike_by_diffusers(tmp_path):
    run, data, out = (tmp_path / name for name in ("run", "data", "out"))
    prepare = ("-m", "unclip_jax.prepare", "shapes:train=512,validation=64", "--vocab-size=1024")
    call(sys.executable, *prepare, f"--out={data}")
    few = ("steps=30", "batch_size=32", "eval_every=30", "ema_decay=0.5")
    overrides = ["--config.optim.warmup_steps=0", *(f"--config.train.{each}" for each in few)]
    call("launch/cascade", "karlo", f"--run={run}", f"--data={data}", "--", *overrides)
    command.main([str(run), f"--out={out}", "--to=diffusers"])
    pipe = originals.load(out)
    there = drawing.steady(pipe, WORDS)
    drawing.check_same(there, drawing.here(run, WORDS, there))
