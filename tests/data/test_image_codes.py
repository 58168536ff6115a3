"""Codes of images on disk: a row per record, in files of a fixed number of rows."""

import json
import pathlib
import pickle

import numpy as np
import pytest

from unclip_jax.core.checks import UserError
from unclip_jax.data import image_codes
from unclip_jax.data.dataset import content_digest, without_image
from unclip_jax.data.image_codes import CodedSource, CodeWriter, read_info

COUNT, GRID, MOST = 10, 2, 50
CODES = np.random.default_rng(0).integers(0, MOST, (COUNT, GRID**2)).astype(np.int32)


@pytest.fixture(scope="module")
def records(samples):
    return [samples.record(i) for i in range(COUNT)]


def info(records, **changes):
    identity = {"dvae": "d" * 64, "data_digest": content_digest(records)}
    return {**identity, "code_count": MOST, "grid": GRID, **changes}


def write(folder: pathlib.Path, records, codes=CODES, *, shard: int = 4, **changes) -> CodeWriter:
    writer = CodeWriter(folder, info=info(records, **changes), shard=shard)
    writer.add(codes)
    writer.finish()
    return writer


@pytest.mark.parametrize(
    ("shard", "lengths"), [(4, [4, 4, 2]), (5, [5, 5]), (9, [9, 1]), (10, [10]), (11, [10])]
)
def test_rows_come_back_with_their_records_from_files_of_a_fixed_length(
    records, tmp_path, shard, lengths
):
    """Whatever the batches in which they were added."""
    for number, sizes in enumerate(((10,), (3, 3, 3, 1), (1,) * 10, (9, 0, 1))):
        folder = tmp_path / str(number) / "codes"
        writer = CodeWriter(folder, info=info(records), shard=shard)
        assert writer.written == 0
        for part in np.split(CODES, np.cumsum(sizes)[:-1]):
            writer.add(part)
            assert len(writer._rows) < shard  # full files are on disk
        writer.finish()
        assert writer.written == COUNT
        names = [f"codes_{i:04d}.npy" for i in range(len(lengths))]
        assert sorted(path.name for path in folder.iterdir()) == [*names, "info.json"]
        arrays = [np.load(folder / name) for name in names]
        assert [len(array) for array in arrays] == lengths
        assert {array.dtype for array in arrays} == {np.dtype(np.uint16)}
        source = CodedSource(records, folder)
        assert len(source) == COUNT
        for i in (0, 3, 4, 5, 8, 9):
            record = source[i]
            assert record["codes"].dtype == np.int32
            np.testing.assert_array_equal(record["codes"], CODES[i])
            assert {**records[i], "codes": record["codes"]} == record


def test_records_are_read_without_their_images(records, tmp_path):
    class Strings(list):
        def without_image(self, index):
            return {"key": self[index]["key"]}

    write(tmp_path, records)
    record = without_image(CodedSource(Strings(records), tmp_path), 6)
    assert record.keys() == {"key", "codes"} and record["key"] == "k0006"
    np.testing.assert_array_equal(record["codes"], CODES[6])


def test_a_source_of_codes_is_sent_to_other_processes(records, tmp_path):
    write(tmp_path, records)
    source = pickle.loads(pickle.dumps(CodedSource(records, tmp_path)))
    np.testing.assert_array_equal(source[9]["codes"], CODES[9])


def test_an_interrupted_writer_goes_on_after_the_last_whole_file(records, tmp_path):
    first = CodeWriter(tmp_path, info=info(records), shard=4)
    assert json.loads((tmp_path / "info.json").read_text())["finished"] is False
    first.add(CODES[:9])
    with pytest.raises(UserError, match=r"is half-written; run the same `embed codes` command"):
        CodedSource(records, tmp_path)
    second = CodeWriter(tmp_path, info=info(records), shard=4)
    assert second.written == 8
    second.add(CODES[8:])
    second.finish()
    assert read_info(tmp_path) == {**info(records), "finished": True}
    source = CodedSource(records, tmp_path)
    np.testing.assert_array_equal([source[i]["codes"] for i in range(COUNT)], CODES)


def test_a_finished_folder_is_left_as_it_is_until_rows_are_added(records, tmp_path):
    write(tmp_path, records, CODES[:8])
    before = (tmp_path / "info.json").stat().st_mtime_ns
    again = CodeWriter(tmp_path, info=info(records), shard=4)
    again.finish()
    assert (tmp_path / "info.json").stat().st_mtime_ns == before and again.written == 8
    more = CodeWriter(tmp_path, info=info(records), shard=4)
    more.add(CODES[8:])
    assert read_info(tmp_path)["finished"] is True
    more._flush()
    assert read_info(tmp_path)["finished"] is False  # until the last file is there
    more.finish()
    np.testing.assert_array_equal(CodedSource(records, tmp_path)[9]["codes"], CODES[9])


def test_files_have_65536_rows_unless_told_otherwise(records, tmp_path):
    writer = CodeWriter(tmp_path, info=info(records))
    writer.add(np.zeros((65_537, 1), np.int32))
    assert writer.written == 65_536 and len(writer._rows) == 1


def test_codes_that_do_not_fit_into_16_bits_are_rejected(records, tmp_path):
    CodeWriter(tmp_path / "a", info=info(records, code_count=65_536))
    with pytest.raises(UserError, match="has 65537 codes; files store at most 65536"):
        CodeWriter(tmp_path / "b", info=info(records, code_count=65_537))


@pytest.mark.parametrize(
    ("change", "message"),
    [({"dvae": "e" * 64}, "dvae = 'dddd.* it is 'eeee"), ({"grid": 3}, "grid = 2, now it is 3")],
)
def test_codes_of_another_origin_are_not_continued(records, tmp_path, change, message):
    write(tmp_path, records)
    with pytest.raises(UserError, match=rf"holds codes with {message}.*choose another folder"):
        CodeWriter(tmp_path, info=info(records, **change))


@pytest.mark.parametrize(
    ("codes", "changes", "message"),
    [
        (CODES[:9], {}, "holds codes of 9 images for 10 records; compute them again"),
        (np.concatenate([CODES, CODES[:1]]), {}, "holds codes of 11 images for 10 records"),
        (CODES[:0], {}, "holds codes of 0 images for 10 records"),
        (CODES[:, :3], {}, r"codes_0000.npy is uint16\[4, 3\]; expected rows of 4 codes"),
        (CODES, {"grid": 3}, "expected rows of 9 codes"),
        (
            CODES,
            {"data_digest": "other"},
            "are of other records; compute them again with `python",
        ),
    ],
)
def test_codes_that_do_not_fit_the_records_are_rejected(records, tmp_path, codes, changes, message):
    write(tmp_path, records, codes, **changes)
    with pytest.raises(UserError, match=message):
        CodedSource(records, tmp_path)


@pytest.mark.parametrize(
    ("array", "what"),
    [
        (CODES[4:8], r"int32\[4, 4\]"),
        (CODES[4:8].astype(np.uint16).reshape(4, 4, 1), r"uint16\[4, 4, 1\]"),
    ],
)
def test_files_that_were_changed_are_rejected(records, tmp_path, array, what):
    write(tmp_path, records)
    np.save(tmp_path / "codes_0001.npy", array)
    with pytest.raises(UserError, match=f"codes_0001.npy is {what}; expected .* codes as uint16"):
        CodedSource(records, tmp_path)


def test_a_code_that_the_discrete_vae_does_not_have_is_named(records, tmp_path):
    codes = CODES.copy()
    codes[6, 1], codes[7, 2] = MOST - 1, MOST
    write(tmp_path, records, codes)
    source = CodedSource(records, tmp_path)
    np.testing.assert_array_equal(source[6]["codes"], codes[6])
    message = r"codes_0001.npy holds code 50 in row 3; the discrete VAE has 50; compute them"
    with pytest.raises(UserError, match=message):
        source[7]


def test_a_folder_without_codes(tmp_path):
    with pytest.raises(UserError, match=r"no codes in .*; compute them again with `python -m"):
        image_codes.read_info(tmp_path)
    (tmp_path / "info.json").write_text("[")
    with pytest.raises(UserError, match="info.json"):
        image_codes.read_info(tmp_path)


def test_a_file_that_was_cut_short_is_rejected_by_name(records, tmp_path):
    write(tmp_path / "codes", records)
    path = tmp_path / "codes" / "codes_0001.npy"
    path.write_bytes(path.read_bytes()[:-3])
    message = "codes_0001.npy cannot be read: .*; compute them again with `python -m unclip_jax"
    with pytest.raises(UserError, match=message):
        CodedSource(records, tmp_path / "codes")
