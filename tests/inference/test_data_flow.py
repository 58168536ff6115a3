"""Dependencies of each result of a chain, as a table, for every kind of chain.

The stages are replaced by sums of what they read and a draw from their keys, so that a result
differs exactly if something that it depends on does. That each stage itself reads its conditions
is shown in tests/stages/test_conditions.py.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import cascades, random_keys
from tests.stages import tiny
from unclip_jax.conditioning.captions import ClipText, EncodedCaptions, TokenIds
from unclip_jax.core import rng
from unclip_jax.inference import text_to_image
from unclip_jax.inference.cascade import Cascade
from unclip_jax.inference.text_to_image import SampleOptions
from unclip_jax.stages import registry

SIZE = 3
ALL, IMAGES = {"z_img", "base", "images"}, {"base", "images"}
# chain -> what is changed -> the results that change; captions are those of one stage
CHAINS = {
    "paper": {"clip": ALL, "prior": ALL, "decoder": IMAGES, "keys": ALL, "z_img": set()},
    "autoregressive": {"clip": ALL, "prior_ar": ALL, "decoder": IMAGES, "keys": ALL},
    "caption embedding": {"clip": ALL, "prior": set(), "decoder": IMAGES, "keys": IMAGES},
    "known embedding": {"clip": set(), "prior": set(), "decoder": IMAGES, "z_img": ALL},
    "without embedding": {"decoder": IMAGES, "keys": IMAGES},
    "features of CLIP": {"clip": ALL, "keys": ALL},
    "decoder of z_txt": {"clip": IMAGES, "decoder": IMAGES, "keys": IMAGES},
}
OPTIONS = {
    "caption embedding": SampleOptions(condition="z_txt"),
    "known embedding": SampleOptions(condition="z_img"),
}


def total(tree) -> jax.Array:
    """A number for each row, of everything in a tree."""
    parts = [jnp.asarray(x, jnp.float32).reshape(len(x), -1) for x in jax.tree.leaves(tree)]
    return sum(
        (jnp.sin(jnp.sum(x * (1 + jnp.arange(x.shape[1]))[None], 1)) for x in parts), jnp.zeros(1)
    )


def fake(entry):
    """The entry of a stage that adds up what it reads."""

    def sample(cfg, params, conditions, *, keys, sampling=None):
        del params, sampling
        reads = {name: conditions[name] for name in entry.reads(cfg)}
        noise = rng.normal_each(keys, (1,))[:, 0] if entry.role != "encoder" else jnp.zeros(SIZE)
        value = noise + total(reads)
        outputs = {}
        for name in entry.yields:
            if name == "clip_text":
                text = ClipText(spread(value, 4), jnp.ones((SIZE, 6, 5)), jnp.ones((SIZE, 6), bool))
                outputs[name] = EncodedCaptions(text, jax.tree.map(lambda x: x[:1], text))
            elif name == "image":
                outputs[name] = jnp.broadcast_to(value[:, None, None, None], (SIZE, 2, 2, 3))
            else:
                outputs[name] = spread(value, 4)
        return outputs

    return dataclasses.replace(entry, sample=sample)


def spread(value: jax.Array, size: int) -> jax.Array:
    """Embeddings whose direction encodes a value."""
    return jnp.cos(value[:, None] * (1 + jnp.arange(size))[None])


def cascade(chain: str) -> Cascade:
    parts = {name: tiny.experiment(name).model for name in cascades.NAMES}
    if chain == "autoregressive":
        prior_ar = tiny.experiment("prior_ar").model
        parts = {k if k != "prior" else "prior_ar": v for k, v in parts.items()}
        parts["prior_ar"] = prior_ar
    if chain == "without embedding":
        parts = {"decoder": tiny.experiment("glide").model, "upsampler_256": parts["upsampler_256"]}
    if chain == "decoder of z_txt":
        parts["decoder"] = dataclasses.replace(parts["decoder"], condition="z_txt")
        del parts["prior"]
    if chain == "features of CLIP":
        parts |= {name: cascades.karlo_kind(parts[name]) for name in ("prior", "decoder")}
    return Cascade.of(**parts)


@pytest.fixture(autouse=True)
def fakes(monkeypatch):
    for name, entry in list(registry.STAGES.items()):
        monkeypatch.setitem(registry.STAGES, name, fake(entry))


def inputs(chain: str):
    """Captions of every stage that reads them, keys, and the z_img of the caller."""
    names = [stage.name for stage in cascade(chain).stages if "caption" in stage.reads]
    words = TokenIds(jnp.arange(SIZE * 6).reshape(SIZE, 6), jnp.ones((SIZE, 6), bool))
    keys = text_to_image.keys_for(0, jnp.arange(SIZE))
    return dict.fromkeys(names, words), keys, spread(jnp.arange(3.0), 4)


def results(chain: str, captions, keys, z_img):
    stages = cascade(chain)
    options = OPTIONS.get(chain, SampleOptions())
    embedding = z_img if options.condition == "z_img" else None
    params = {stage.name: {} for stage in stages.stages}
    return text_to_image.sample(stages, params, captions, keys, options=options, z_img=embedding)


@pytest.mark.parametrize("chain", CHAINS)
def test_a_result_changes_exactly_with_what_it_depends_on(chain):
    captions, keys, z_img = inputs(chain)
    before = results(chain, captions, keys, z_img)
    assert set(captions) <= set(CHAINS[chain])
    for what, expected in CHAINS[chain].items():
        if what == "keys":
            after = results(chain, captions, text_to_image.keys_for(1, jnp.arange(SIZE)), z_img)
        elif what == "z_img":
            after = results(chain, captions, keys, -z_img)
        elif what in captions:
            other = captions[what]._replace(tokens=captions[what].tokens + 1)
            after = results(chain, {**captions, what: other}, keys, z_img)
        else:
            continue
        differences = {
            name
            for name in ALL
            if getattr(before, name) is not None
            and np.abs(np.asarray(getattr(after, name)) - getattr(before, name)).max() > 1e-6
        }
        assert differences == expected, what


@pytest.mark.parametrize("chain", CHAINS)
def test_no_two_stages_of_a_chain_draw_with_one_key(chain):
    captions, keys, z_img = inputs(chain)
    draws = random_keys.uses(lambda keys: results(chain, captions, keys, z_img), keys)
    assert len(draws) >= len(cascade(chain).stages) - 2
    assert not random_keys.duplicates(draws)
