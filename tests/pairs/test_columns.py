"""Columns of rows: their shapes, ranges and blocks, and what is no column."""

import dataclasses

import ml_dtypes
import numpy as np
import pytest

from unclip_jax.core.checks import UserError
from unclip_jax.pairs.columns import Column, checked, unpack
from unclip_jax.pairs.finite_rows import finite_rows, row_counts

RNG = np.random.default_rng(0)
TOKENS = RNG.normal(size=(9, 2)).astype(np.float32)
RAGGED = Column("r", TOKENS, np.array([0, 2, 2, 7, 9]))  # rows of 2, 0, 5 and 2 tokens


def test_rows_of_equal_shape():
    values = RNG.normal(size=(4, 3, 2)).astype(np.float32)
    column = Column("a", values)
    assert (len(column), column.shape, column.ragged, column.integer) == (4, (3, 2), False, False)
    np.testing.assert_array_equal(column[2], values[2])
    np.testing.assert_array_equal(column.block(1, 3), values[1:3])


def test_rows_of_different_lengths():
    assert (len(RAGGED), RAGGED.shape, RAGGED.ragged) == (4, (5, 2), True)
    for row, (start, stop) in enumerate(((0, 2), (2, 2), (2, 7), (7, 9))):
        np.testing.assert_array_equal(RAGGED[row], TOKENS[start:stop])
    np.testing.assert_array_equal(RAGGED.block(0, 2), TOKENS[:2])
    np.testing.assert_array_equal(RAGGED.block(1, 3), TOKENS[2:7])
    assert Column("r", TOKENS[:0], np.array([0])).shape == (0, 2)


@pytest.mark.parametrize(
    ("values", "limits"),
    [([3, 7], (-1, 7)), ([-5, 7], (-5, 7)), ([-5, -3], (-5, 0)), ([0], (-1, 0)), ([], (-1, 0))],
)
def test_the_range_of_integers_holds_a_padding_and_0(values, limits):
    column = Column("a", np.array(values, np.int64).reshape(-1, 1))
    assert column.range() == limits and column.integer


@pytest.mark.parametrize(
    ("dtype", "integer"),
    [("int32", True), ("uint8", True), ("bool", True), ("float16", False), ("float64", False)],
)
def test_token_ids_are_integers(dtype, integer):
    assert Column("a", np.zeros((2, 1), dtype)).integer == integer
    assert not Column("a", np.zeros((2, 1), ml_dtypes.bfloat16)).integer


def test_unpacked_rows_are_mapped_with_their_keys():
    rows = RNG.normal(size=(5, 3))
    column = unpack("a", ((f"k{i}", row) for i, row in enumerate(rows)))
    assert isinstance(column.values.base, np.memmap) or isinstance(column.values, np.memmap)
    assert column.values.dtype == np.float32 and list(column.keys) == [f"k{i}" for i in range(5)]
    np.testing.assert_array_equal(column.values, rows.astype(np.float32))
    sequences = [np.full((n, 2), n) for n in (2, 4, 1)]
    lengths = unpack("a", (("", row) for row in sequences))
    assert lengths.keys is None and lengths.values.dtype == np.int32 and lengths.shape == (4, 2)
    for i, row in enumerate(sequences):
        np.testing.assert_array_equal(lengths[i], row)
    equal = unpack("a", (("", np.full((2, 3), float(n))) for n in range(4)))
    assert not equal.ragged and equal.shape == (2, 3)
    some = unpack("a", (("", rows[0]), ("b", rows[1])))
    assert list(some.keys) == ["", "b"]


def test_numbers_beyond_float32_are_infinite_until_they_are_looked_at():
    column = unpack("a", [("", np.array([1e300, 1.0]))])
    assert np.isinf(column[0][0]) and column[0][1] == 1


def test_a_missing_vector_is_one_that_is_not_finite():
    """Of a table that has none in some row: a single NaN stands for it."""
    rows = [np.array([1.0, 2.0]), np.array([np.nan], np.float32), np.array([3.0, 4.0])]
    column = unpack("a", (("", row) for row in rows))
    assert column.shape == (2,) and np.isnan(column[1]).all()
    assert finite_rows("x", column, bad_rows="skip").tolist() == [True, False, True]
    for one in (np.array([7.0]), np.array([np.nan, np.nan, 1.0])):
        with pytest.raises(UserError, match=r"has shape \[[13]\], the first row \[2\]"):
            unpack("a", (("", row) for row in (rows[0], one)))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "a holds no rows; check the name"),
        ([np.zeros((0, 2))], "a holds no rows"),
        ([np.array(3.0)], "a: row 0 is a single number; give a column of lists"),
        ([np.zeros(2), np.zeros(3)], r"row 1 has shape \[3\], the first row \[2\]"),
        ([np.zeros((1, 2)), np.zeros((3, 3))], r"row 1 has shape \[3, 3\], the first row \[1, 2\]"),
        ([np.zeros(2), np.zeros((2, 2))], r"row 1 has shape \[2, 2\], the first row \[2\]"),
        ([np.zeros((2, 2)), np.zeros(2)], r"row 1 has shape \[2\], the first row \[2, 2\]"),
    ],
)
def test_rows_that_make_no_column(rows, message):
    with pytest.raises(UserError, match=message):
        unpack("a", (("", row) for row in rows))
    items = [("k", row) for row in rows]
    if "row" in message and rows:
        with pytest.raises(UserError, match="no rows|a: row 'k' "):
            unpack("a", items)


def test_token_ids_may_have_different_numbers():
    column = unpack("a", (("", np.arange(n)) for n in (2, 3)))
    assert column.ragged and column.shape == (3,) and column[1].tolist() == [0, 1, 2]


def test_a_column_has_one_to_three_axes_and_a_key_per_row():
    for shape in ((4,), (4, 3), (4, 3, 2)):
        assert checked(Column("a", np.zeros(shape))).values.shape == shape
    for shape in ((), (4, 3, 2, 1)):
        with pytest.raises(UserError, match=r"a has shape \[.*\]; give vectors"):
            checked(Column("a", np.zeros(shape)))
    keys = np.array(["a", "b", "c"])
    assert checked(Column("a", np.zeros((3, 1)), keys=keys)).keys is keys
    with pytest.raises(UserError, match="a has 4 rows but 3 keys; write them together"):
        checked(Column("a", np.zeros((4, 1)), keys=keys))


@pytest.mark.parametrize("count", [1, 4095, 4096, 4097, 9000])
def test_rows_that_are_not_finite_are_found_in_any_block(count, caplog):
    """Of 4,096 rows at a time; the first and the last of a block as well."""
    bad = sorted({0, 4095, 4096, 8191, 8192, count - 1} & set(range(count)))
    values = np.ones((count, 2), np.float64)
    values[bad[::2], 0], values[bad[1::2], 1] = np.nan, 1e39  # infinite as float32
    good = finite_rows("x", Column("a", values), bad_rows="skip")
    assert np.flatnonzero(~good).tolist() == bad
    line = f"{len(bad)} of {count} rows of x (a) hold NaN or inf, first row 0; left out"
    assert caplog.messages == [line]
    tokens = np.repeat(values, 2, axis=0)
    tokens[1::2] = 0  # the second token of each row is finite
    ragged = Column("a", tokens, 2 * np.arange(count + 1))
    assert np.flatnonzero(~finite_rows("x", ragged, bad_rows="skip")).tolist() == bad


def test_rows_of_different_lengths_that_are_not_finite():
    tokens = TOKENS.copy()
    tokens[6, 1] = np.inf
    column = dataclasses.replace(RAGGED, values=tokens, keys=np.array(list("abcd")))
    assert finite_rows("x", column, bad_rows="skip").tolist() == [True, True, False, True]
    message = (
        r"1 of 4 rows of x \(r\) hold NaN or inf, first row 2, key 'c'; correct them, or leave"
    )
    with pytest.raises(UserError, match=message):
        finite_rows("x", column, bad_rows="reject")
    assert finite_rows("x", RAGGED, bad_rows="reject").all()


def test_the_end_of_float16_is_named():
    values = np.ones((3, 2), np.float16)
    values[1, 0] = np.inf
    with pytest.raises(UserError, match="hold inf in float16, which ends at 65,504, first row 1;"):
        finite_rows("x", Column("a", values), bad_rows="reject")
    values[1, 0] = np.nan
    with pytest.raises(UserError, match="hold NaN or inf, first row 1"):
        finite_rows("x", Column("a", values), bad_rows="reject")


def test_token_ids_are_finite_whatever_they_are():
    assert finite_rows("x", Column("a", np.full((3, 1), 2**62)), bad_rows="reject").all()


def test_numbers_of_rows_in_a_line():
    assert row_counts({"x": 3, "brain": 12}) == "x 3, brain 12"
