"""Shapes of parameter trees: traced once per config, and a tree of its own for every caller."""

import dataclasses

import pytest

from tests.stages import tiny
from unclip_jax.convert import abstract


def test_a_config_is_traced_once_and_its_tree_is_the_callers(monkeypatch: pytest.MonkeyPatch):
    traced = []

    def shapes(module, *inputs, **conditions):
        traced.append(module.cfg)
        return {"weights": {"kernel": abstract.STEP}}

    monkeypatch.setattr(abstract, "_shapes", shapes)
    cfg = dataclasses.replace(tiny.experiment("prior").model.model, vocab_size=321)
    first = abstract.prior(cfg)
    first["weights"].pop("kernel")
    assert abstract.prior(dataclasses.replace(cfg)) == {"weights": {"kernel": abstract.STEP}}
    assert traced == [cfg]
    other = dataclasses.replace(cfg, vocab_size=322)
    abstract.prior(other)
    assert traced == [cfg, other]
