"""Masks of a 4 x 4 grid as in figure 11 of DALL-E, written out, and their reach."""

import numpy as np
import pytest

from unclip_jax.core.checks import UserError
from unclip_jax.discrete import patterns

# Codes that code 9 (row 2, column 1) attends to.
VISIBLE = {
    "row": [5, 6, 7, 8, 9],
    "column": [1, 5, 9],
    "convolution": [4, 5, 6, 8, 9],  # 3 x 3
    "full": list(range(10)),
}


@pytest.mark.parametrize("pattern", patterns.PATTERNS)
def test_the_grid_of_figure_11(pattern):
    mask = patterns.grid_mask(pattern, grid=4, kernel=3)
    assert np.flatnonzero(mask[9]).tolist() == VISIBLE[pattern]
    assert not np.triu(mask, 1).any() and mask.diagonal().all()


def test_windows_wrap_around_the_edges_as_raster_order_does():
    mask = patterns.grid_mask("convolution", grid=4, kernel=3)
    assert np.flatnonzero(mask[8]).tolist() == [3, 4, 5, 7, 8]  # column 0: 3 and 7 are at column 3


def test_the_sizes_of_the_paper():
    most = {
        name: patterns.grid_mask(name, grid=32, kernel=11).sum(1).max()
        for name in patterns.PATTERNS
    }
    assert most == {"row": 33, "column": 32, "convolution": 61, "full": 1024}


def test_two_sparse_layers_reach_every_earlier_code():
    row, column = (patterns.grid_mask(name, grid=5).astype(int) for name in ("row", "column"))
    full = patterns.grid_mask("full", grid=5)
    for product in (row @ column, column @ row):
        np.testing.assert_array_equal(product > 0, full)


def test_a_large_window_is_full():
    wide = patterns.grid_mask("convolution", grid=4, kernel=9)
    np.testing.assert_array_equal(wide, patterns.grid_mask("full", grid=4))


@pytest.mark.parametrize("pattern", patterns.PATTERNS)
def test_captions_are_causal_and_codes_see_all_of_them(pattern):
    mask = patterns.stream_mask(pattern, context=3, grid=2, kernel=3)
    np.testing.assert_array_equal(mask[:3, :3], np.tril(np.ones((3, 3), bool)))
    assert mask[3:, :3].all() and not mask[:3, 3:].any()


def test_layers_share_tables_in_the_order_of_the_paper():
    order = patterns.sparse_order(64)
    assert [order.index("column"), order[5], order[61], order[62], order[63]] == [
        *(1, "column", "column", "row", "convolution")
    ]
    assert order.count("column") == 16 and order.count("row") == 47
    plan = patterns.plan(("row", "full", "row"), context=2, grid=2, kernel=3)
    assert plan.tables.shape == (2, 6, 6) and plan.order == (1, 0, 1)
    np.testing.assert_array_equal(
        plan.tables[plan.order[1]], patterns.stream_mask("full", context=2, grid=2)
    )


def test_mistaken_patterns_are_rejected():
    with pytest.raises(UserError, match="unknown attention pattern 'rows'. Did you mean 'row'"):
        patterns.grid_mask("rows", grid=4)
    with pytest.raises(UserError, match="kernel of convolutional attention is 4; give an odd"):
        patterns.grid_mask("convolution", grid=4, kernel=4)
