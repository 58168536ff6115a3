"""The sampler as one file: the same bits, without the model code."""

import json
import os
import subprocess
import sys
import textwrap
import zipfile

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import unclip_jax
from tests import cascades
from tests.conftest import ROOT
from unclip_jax import bundle, sample
from unclip_jax.backbones import attention
from unclip_jax.core.checks import UserError
from unclip_jax.engine.handlers import text as text_requests
from unclip_jax.engine.requests import UpscaleRequest
from unclip_jax.inference import (
    batch_sampling,
    exported_sampler,
    load,
    sampler_export,
    text_to_image,
)
from unclip_jax.inference.cascade import tokenise
from unclip_jax.version import __version__

OPTIONS = ["--steps=4", "--prior-steps=3", "--guidance=2"]
CAPTIONS = [*cascades.CAPTIONS, "", "a green star"]
# One program for several seeds and captions; five captions are a batch of four and one of one.
READER = """
    import pathlib, sys

    class Gone:
        def find_spec(self, name, path=None, target=None):
            if name.split(".")[0] in ("flax", "optax", "orbax") or name.startswith(
                ("unclip_jax.models", "unclip_jax.stages", "unclip_jax.inference.text_to_image")
            ):
                raise ImportError(f"{name} is not to be imported")

    sys.meta_path.insert(0, Gone())
    try:
        import unclip_jax.models.decoder
    except ImportError:
        pass
    else:
        sys.exit("the models are still there")
    import numpy as np
    from unclip_jax.inference.exported_sampler import open_bundle

    opened = open_bundle(pathlib.Path(sys.argv[1]))
    np.save(sys.argv[2], opened.draw(sys.argv[3:], seed=5))
"""


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    return cascades.write(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def bundle_path(run_dir, tmp_path_factory):
    out = tmp_path_factory.mktemp("bundle") / "tiny.unclip"
    bundle.main([f"--models={run_dir}", f"--out={out}", "--batch-sizes=4,1", *OPTIONS])
    return out


def test_a_bundle_is_opened_like_a_run_directory(bundle_path, tmp_path, capsys):
    assert exported_sampler.open_artefact is exported_sampler.open_bundle
    engine = unclip_jax.open(bundle_path)
    images = exported_sampler.open_bundle(bundle_path).draw(["a red circle"] * 2, seed=5)
    result = engine.sample("a red circle", num=2, seed=5)
    np.testing.assert_array_equal(result.images, images)
    assert result.record["code_version"] == __version__
    assert result.record["models"]["name"] and result.record["options"]["decoder"]["steps"] == "4"
    out = tmp_path / "out.png"
    sample.main(["a red circle", "--num=2", "--seed=5", f"--models={bundle_path}", f"--out={out}"])
    assert "2 images" in capsys.readouterr().out
    for index in range(2):
        with Image.open(tmp_path / "out" / f"000{index}.png") as image:
            np.testing.assert_array_equal(np.asarray(image), images[index])
    for call, message in (
        (lambda: engine.sample("x", steps="9"), "steps is '9', but .* is a bundle, which fixes it"),
        (lambda: engine.sample("x", best_of=2), "best_of is 2, but .* is a bundle"),
        (lambda: engine.sample("x", seed=-1), "seed is -1; it must lie in"),
        (lambda: engine.run(upscale()), "a bundle, which samples captions only; .* for 'upscale'"),
        (
            lambda: unclip_jax.open(bundle_path, prior="prior_ar"),
            "is a bundle, which has one prior",
        ),
        (lambda: unclip_jax.open(__file__), "is not a bundle"),
    ):
        with pytest.raises(UserError, match=message):
            call()


def upscale():
    return UpscaleRequest(images=(np.zeros((16, 16, 3), np.uint8),))


def test_a_program_for_several_platforms_has_no_kernel_of_one(run_dir, monkeypatch):
    """On a GPU or TPU, attention would otherwise be traced for that device alone."""
    choices, sample_chain = [], text_to_image.sample

    def record(*args, **options):
        monkeypatch.setattr(attention, "_platform", lambda: "tpu")
        q = jnp.zeros((1, 16, 2, 64), jnp.bfloat16)
        choices.append(attention._implementation(q, q, None))
        monkeypatch.undo()
        return sample_chain(*args, **options)

    monkeypatch.setattr(text_to_image, "sample", record)
    loaded = load.load_cascade(run_dir)
    args = bundle.parser().parse_args(["--out=x", *OPTIONS])
    options = text_requests.sample_options(bundle.request_of(args), loaded.cascade)
    sampler_export.program(
        loaded.cascade, loaded.params, batch_size=1, options=options, platforms=("cpu", "tpu")
    )
    assert choices == ["xla"]


def test_another_process_draws_the_same_bits_without_the_models(bundle_path, run_dir, tmp_path):
    images_file = tmp_path / "drawn.npy"
    code = textwrap.dedent(READER)
    command = [sys.executable, "-c", code, str(bundle_path), str(images_file), *CAPTIONS]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    loaded = load.load_cascade(run_dir)
    args = bundle.parser().parse_args(["--out=x", *OPTIONS])
    options = text_requests.sample_options(bundle.request_of(args), loaded.cascade)
    ordinary = batch_sampling.compile_sampler(loaded.cascade, options)
    tokenizers = load.load_tokenizers(loaded.tokenizer_dirs)
    parts = []
    for indices in ([0, 1, 2, 3], [4]):
        tokens = tokenise(loaded.cascade, tokenizers, [CAPTIONS[i] for i in indices])
        keys = text_to_image.keys_for(5, jnp.array(indices))
        parts.append(np.asarray(ordinary(loaded.params, tokens, keys, None)))
    np.testing.assert_array_equal(np.load(images_file), np.concatenate(parts))


def test_a_file_says_what_it_is(bundle_path, capsys):
    sampler = exported_sampler.open_bundle(bundle_path)
    assert sampler.card.batch_sizes == (1, 4) and sampler.card.image_size == 32
    assert sampler.card.platforms == ("cpu",) and sampler.card.options["decoder"]["steps"] == "4"
    assert (sampler._size_for(9), sampler._size_for(3)) == (4, 1)


@pytest.mark.parametrize(
    ("captions", "seed", "message"),
    [([], 0, "number of captions is 0"), (["x"], -1, "seed is -1"), (["x"], 2**31, "seed is")],
)
def test_what_cannot_be_drawn_is_rejected(bundle_path, captions, seed, message):
    with pytest.raises(UserError, match=message):
        exported_sampler.open_bundle(bundle_path).draw(captions, seed=seed)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--batch-sizes=a"], "--batch-sizes is 'a'; give numbers such as 1,4"),
        (["--batch-sizes=0"], r"batch size is 0; it must lie in \[1, 1024\]"),
        (["--platforms=gpu"], "unknown platform 'gpu'"),
        (["--steps=ddim999"], "ddim999"),
        (["--out=/proc/x/y"], "cannot write /proc/x/y"),
    ],
)
def test_mistakes_are_one_line(run_dir, tmp_path, arguments, message):
    out = [f"--out={tmp_path / 'x'}"]
    with pytest.raises(UserError, match=message):
        bundle.main([f"--models={run_dir}", "--batch-sizes=1", *OPTIONS, *out, *arguments])


def rewrite(bundle_path, path, **changes):
    """A copy of the file with members changed."""
    with zipfile.ZipFile(bundle_path) as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            new.writestr(name, changes.get(name.split(".")[0], old.read(name)))
    return path


def card_of(bundle_path):
    return json.loads(zipfile.ZipFile(bundle_path).read(exported_sampler.CARD))


def released_card(card, **changes):
    """The card as version 0.1.0 wrote it: with the digest of the weights alone."""
    fields = {name: value for name, value in card.items() if name not in ("digests", "digest")}
    weights = card["digests"][exported_sampler.WEIGHTS]
    return json.dumps({**fields, "sha256": weights, "format_version": 1, **changes})


def test_files_that_are_none_are_rejected(bundle_path, tmp_path):
    card = card_of(bundle_path)
    (tmp_path / "words").write_text("hello")
    cases = [
        (tmp_path / "none", "is not a bundle"),
        (tmp_path / "words", "is not a bundle"),
        (tmp_path, "is a folder; expected a regular file"),
    ]
    for path, message in cases:
        with pytest.raises(UserError, match=message):
            exported_sampler.open_bundle(path)
    for changes, message in (
        ({"format_version": 9}, "has format_version 9, but 1 and 2 are read here"),
        ({"more": 1}, "has no key 'more'"),
        ({"platforms": ["tpu"]}, "is for tpu, but JAX runs on cpu here"),
        ({"platforms": "tpu"}, "platforms is 'tpu' .str.; expected a list"),
        ({"batch_sizes": [1, "4"]}, r"batch_sizes\[1\] is '4' .str.; expected int"),
        ({"batch_sizes": []}, "has a damaged card"),
        ({"contexts": [-1, 16]}, "has a damaged card"),
        ({"weights": {"a": 5}}, "is damaged"),
        ({"weights": {"a": {"dtype": "float32", "shape": [-1], "offset": 0}}}, "is damaged"),
        ({"weights": {"a": {"dtype": "float32", "shape": [2**62], "offset": 0}}}, "is damaged"),
        ({"weights": {"a": {"dtype": "float99", "shape": [1], "offset": 0}}}, "is damaged"),
        ({"sha256": "0" * 64}, "the digest of weights.bin"),
    ):
        path = rewrite(bundle_path, tmp_path / "other", card=released_card(card, **changes))
        with pytest.raises(UserError, match=message):
            exported_sampler.open_bundle(path)


@pytest.mark.parametrize("member", ["weights", "batch1", "batch4", "tokenizer"])
def test_a_changed_bit_in_any_member_is_rejected_by_name(bundle_path, tmp_path, member):
    with zipfile.ZipFile(bundle_path) as archive:
        (name,) = (name for name in archive.namelist() if name.split(".")[0] == member)
        content = bytearray(archive.read(name))
    content[len(content) // 2] ^= 1
    path = rewrite(bundle_path, tmp_path / "other", **{member: bytes(content)})
    with pytest.raises(UserError, match=rf"is damaged or was changed: the digest of {name}; copy"):
        exported_sampler.open_bundle(path)


@pytest.mark.parametrize(
    "change", [{"image_size": 64}, {"digests": {}}, {"digest": ""}, {"digest": None}]
)
def test_a_changed_card_is_rejected(bundle_path, tmp_path, change):
    card = json.dumps({**card_of(bundle_path), **change})
    with pytest.raises(UserError, match="is damaged or was changed: the digest of its card"):
        exported_sampler.open_bundle(rewrite(bundle_path, tmp_path / "other", card=card))


def test_a_file_of_version_0_1_0_opens(bundle_path, tmp_path):
    card = released_card(card_of(bundle_path))
    sampler = exported_sampler.open_bundle(rewrite(bundle_path, tmp_path / "other", card=card))
    assert sampler.card.batch_sizes == (1, 4) and sampler.card.format_version == 1


def test_a_named_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="is a named pipe; expected a regular file"):
        exported_sampler.open_bundle(tmp_path / "pipe")
