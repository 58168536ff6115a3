import zipfile

import numpy as np
import pytest

from unclip_jax.core.checks import UserError
from unclip_jax.metrics import npz
from unclip_jax.metrics.frechet import Moments


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (7, 4, 5, 3)).astype(np.uint8)


def test_a_batch_is_what_numpy_reads_under_arr_0(images, tmp_path):
    npz.write(tmp_path / "batch.npz", [images[:3], images[3:4], images[4:]], count=7)
    with np.load(tmp_path / "batch.npz") as file:
        assert file.files == ["arr_0"]
        np.testing.assert_array_equal(file["arr_0"], images)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_batch_of_guided_diffusion_is_read_in_parts(save, images, tmp_path):
    save(tmp_path / "batch.npz", images, np.arange(7))  # arr_1: their labels
    assert npz.shape(tmp_path / "batch.npz") == (7, 4, 5)
    pieces = list(npz.read(tmp_path / "batch.npz", batch_size=3))
    assert [len(piece) for piece in pieces] == [3, 3, 1]
    np.testing.assert_array_equal(np.concatenate(pieces), images)


@pytest.mark.parametrize("spatial", [True, False])
def test_statistics_round_trip(spatial, tmp_path):
    rng = np.random.default_rng(1)
    pool, other = (Moments(rng.standard_normal(n), np.eye(n) * 2) for n in (4, 3))
    case = npz.Statistics(pool, other if spatial else None, {"resize": "tf1"})
    npz.write_statistics(tmp_path / "stats.npz", case)
    got = npz.read_statistics(tmp_path / "stats.npz")
    np.testing.assert_array_equal(got.pool.mean, pool.mean)
    assert (got.spatial is not None) == spatial
    assert got.protocol == {"resize": "tf1"}
    with np.load(tmp_path / "stats.npz") as file:  # guided-diffusion's names
        assert {"mu", "sigma"} <= set(file.files)
        assert ({"mu_s", "sigma_s"} <= set(file.files)) == spatial


def test_statistics_of_guided_diffusion_have_no_protocol(tmp_path):
    np.savez(tmp_path / "ref.npz", mu=np.zeros(3), sigma=np.eye(3))
    assert npz.read_statistics(tmp_path / "ref.npz").protocol == {}


def test_files_without_images_are_rejected(images, tmp_path):
    np.savez(tmp_path / "float.npz", images.astype(np.float32))
    np.savez(tmp_path / "grey.npz", images[..., 0])
    np.savez(tmp_path / "other.npz", mu=np.zeros(3))
    np.savez(tmp_path / "code.npz", np.array([{"a": 1}], object))
    (tmp_path / "words.npz").write_text("not an archive")
    for name, message in {
        "float.npz": "holds float32",
        "grey.npz": "expected uint8 images",
        "other.npz": r"holds \['mu'\]; images are arr_0",
        "code.npz": "holds object",
        "words.npz": "is not an .npz file",
        "none.npz": "there is no file",
    }.items():
        with pytest.raises(UserError, match=message):
            npz.shape(tmp_path / name)


def test_a_file_that_ends_early_is_rejected(images, tmp_path):
    header = {"descr": "|u1", "fortran_order": False, "shape": (9, 4, 5, 3)}
    where = tmp_path / "cut.npz"
    with zipfile.ZipFile(where, "w") as archive, archive.open("arr_0.npy", "w") as file:
        np.lib.format.write_array_header_1_0(file, header)
        file.write(images.tobytes())
    with pytest.raises(UserError, match="cut.npz is damaged"):
        list(npz.read(tmp_path / "cut.npz", batch_size=5))


def test_images_of_several_sizes_are_rejected(images, tmp_path):
    with pytest.raises(UserError, match="one file holds one size"):
        npz.write(tmp_path / "x.npz", [images[:3], images[3:, :3]], count=7)
    with pytest.raises(UserError, match="no image to write"):
        npz.write(tmp_path / "x.npz", [], count=0)
    assert not (tmp_path / "x.npz").exists()


def test_inconsistent_statistics_are_rejected(tmp_path):
    np.savez(tmp_path / "bad.npz", mu=np.zeros(3), sigma=np.eye(4))
    with pytest.raises(UserError, match="do not match"):
        npz.read_statistics(tmp_path / "bad.npz")
    np.savez(tmp_path / "half.npz", mu=np.zeros(3))
    with pytest.raises(UserError, match="statistics are mu and sigma"):
        npz.read_statistics(tmp_path / "half.npz")
