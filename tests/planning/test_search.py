"""Candidates divide what they must; the screen knows sizes by hand and rejects what cannot fit."""

import dataclasses

import jax
import pytest

from tests.stages import tiny
from unclip_jax.core.checks import UserError
from unclip_jax.planning import search
from unclip_jax.planning.chips import CHIPS
from unclip_jax.planning.compile_target import CompileTarget

TARGET = CompileTarget("8 pretended chips", jax.devices(), CHIPS["v5e"], False)


@pytest.mark.parametrize(("rules", "tensors"), [("dp", {1}), ("fsdp", {1}), ("fsdp_tp", {1, 2, 4})])
def test_candidates_divide_chips_and_batch(rules: str, tensors: set[int]):
    result = list(search.candidates(chips=16, rules=rules, batch_size=48, splittable=True))
    assert len(result) == len(set(result)) and result
    for each in result:
        mesh = each.mesh
        assert mesh.data * mesh.fsdp * mesh.tensor == 16
        assert 48 % (mesh.data * mesh.fsdp * each.accumulate) == 0
    assert {each.mesh.tensor for each in result} == tensors
    assert {each.remat for each in result} == set(search.REMAT)


def test_a_loss_of_the_whole_batch_has_no_microbatches():
    result = search.candidates(chips=8, rules="fsdp", batch_size=64, splittable=False)
    assert {each.accumulate for each in result} == {1}


def test_every_remat_of_a_config_is_set_and_nothing_else():
    before = tiny.experiment("decoder")
    after = search.with_remat(before, "dots")
    assert after.model.model.unet.remat == "dots"
    assert search.with_remat(after, before.model.model.unet.remat) == before


@pytest.mark.slow
def test_the_screen_ranks_what_fits_and_says_what_would():
    experiment = tiny.experiment("prior")
    result = search.screen(experiment, TARGET)
    assert [each.seconds for each in result] == sorted(each.seconds for each in result)
    assert all(each.bytes <= CHIPS["v5e"].hbm for each in result)
    small = TARGET._replace(chip=dataclasses.replace(CHIPS["v5e"], hbm=1000.0))
    with pytest.raises(UserError, match=r"nothing fits: every mesh of 8 x v5e needs at least .*iB"):
        search.screen(experiment, small)
    with pytest.raises(UserError, match="--search needs published peaks; give a --topology"):
        search.screen(experiment, TARGET._replace(chip=None))


def test_traffic_of_fully_split_parameters_by_hand():
    one = search.candidates(chips=8, rules="fsdp", batch_size=64, splittable=True)
    by_mesh = {(c.mesh.fsdp, c.accumulate): c for c in one}
    split = search._traffic(4000.0, by_mesh[8, 1])
    assert split == pytest.approx((3 + 1) * 2000 * 7 / 8)
    assert search._traffic(4000.0, by_mesh[8, 2]) == pytest.approx(2 * split)
    whole = search._traffic(4000.0, by_mesh[1, 1])
    assert whole == pytest.approx(2 * 2000 * 7 / 8)  # a ring all-reduce of bfloat16 gradients
