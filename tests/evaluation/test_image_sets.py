import json

import numpy as np
import pytest
from PIL import Image

from tests.data.conftest import Samples
from unclip_jax.core.checks import UserError
from unclip_jax.evaluation import image_sets
from unclip_jax.evaluation.image_sets import ImageSetOptions
from unclip_jax.metrics import npz


@pytest.fixture
def folder(tmp_path):
    """Five numbered pictures in two folders, in the order of names."""
    for number, name in enumerate(["a.png", "b.png", "c.png", "sub/a.png", "sub/b.png"]):
        (tmp_path / "set" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "set" / name).write_bytes(Samples.png(number))
    return tmp_path / "set"


def numbers(result, batch_size=2, rows=slice(None)):
    return [[Samples.number_of(x) for x in batch] for batch in result.batches(batch_size, rows)]


def test_a_folder_is_read_in_order_with_an_exact_count(folder):
    result = image_sets.open_set(folder)
    assert (result.count, result.size, result.captions) == (5, (16, 16), None)
    assert numbers(result) == [[0, 1], [2, 3], [4]]
    assert result.facts == {"source": str(folder), "count": 5, "size": "16 x 16", "crop": "none"}


def record_of(folder, names):
    record = {"command": "text", "images": [f"{folder.name}/{name}" for name in names]}
    folder.with_name(f"{folder.name}.json").write_text(json.dumps(record))


def test_a_folder_of_results_is_what_its_record_lists(tmp_path):
    folder = tmp_path / "out"
    (folder / "sub").mkdir(parents=True)
    names = [f"{index:04d}.png" for index in range(4)]
    for number, name in enumerate([*names, "sub/0000.png"]):
        (folder / name).write_bytes(Samples.png(number))
    record_of(folder, names[:2])
    assert numbers(image_sets.open_set(folder)) == [[0, 1]]
    record_of(folder, [*names, "0004.png"])
    with pytest.raises(UserError, match=r"out.json lists 5 images, of which .* lacks 1 \(0004"):
        image_sets.open_set(folder)
    for other in ("{", "[]", '{"images": ["elsewhere/0000.png"]}', '{"images": [1]}', "[" * 9999):
        folder.with_name("out.json").write_text(other)  # of something else
        assert image_sets.open_set(folder).count == 5


def test_processes_read_their_rows_of_every_batch(folder, tmp_path):
    batch = np.concatenate(list(image_sets.open_set(folder).batches(5, slice(None))))
    npz.write(tmp_path / "batch.npz", [batch], count=5)
    for where in (folder, tmp_path / "batch.npz"):
        result = image_sets.open_set(where)
        assert numbers(result, 4, slice(0, 2)) == [[0, 1], [4]]
        assert numbers(result, 4, slice(2, 4)) == [[2, 3], []]
        assert [b.shape[1:] for b in result.batches(4, slice(2, 4))] == [(16, 16, 3)] * 2


def test_a_packed_folder_is_a_batch_with_the_same_images(folder, tmp_path):
    image_sets.pack(image_sets.open_set(folder), tmp_path / "batch.npz", batch_size=2)
    again = image_sets.open_set(tmp_path / "batch.npz", ImageSetOptions(num=3))
    assert numbers(again) == [[0, 1], [2]]
    assert again.facts["count"] == 3


def test_a_prepared_data_set_has_captions(tmp_path):
    Samples.write_folder(tmp_path, [3, 4], split="validation")
    result = image_sets.open_set(tmp_path, ImageSetOptions(num=4))
    assert numbers(result, 3) == [[0, 1, 2], [3]]
    assert result.captions == tuple(f"picture number {i}" for i in range(4))


def test_captions_lie_beside_images_or_in_metadata(folder):
    for number, path in enumerate(sorted(folder.rglob("*.png"))):
        path.with_suffix(".txt").write_text(f"number {number}\n")
    assert image_sets.open_set(folder).captions == tuple(f"number {i}" for i in range(5))
    (folder / "b.txt").unlink()
    assert image_sets.open_set(folder).captions is None
    line = json.dumps({"file_name": "b.png", "text": "told"})
    (folder / "metadata.jsonl").write_text(line)
    assert "told" in (image_sets.open_set(folder).captions or ())


def test_images_of_several_sizes_are_rejected_unless_cropped(folder):
    (folder / "d.png").write_bytes(Samples.png(9, height=20, width=32))
    result = image_sets.open_set(folder)
    with pytest.raises(UserError, match=r"differ in size: .*a.png has 16 x 16, .*d.png has 32 x 2"):
        numbers(result, 6)
    cropped = image_sets.open_set(folder, ImageSetOptions(size=8))
    assert [b.shape for b in cropped.batches(6, slice(None))] == [(6, 8, 8, 3)]
    assert cropped.facts["crop"].startswith("shorter side to 8")


def test_lossy_files_are_reported(folder):
    assert not image_sets.open_set(folder).lossy
    Image.fromarray(Samples.picture(3)).save(folder / "z.jpg")
    assert image_sets.open_set(folder).lossy


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (lambda p: None, {}, "there is no .*thing; give a folder of images or an .npz"),
        (lambda p: p.mkdir(), {}, "thing holds no image"),
        (lambda p: p.write_text("x"), {}, "neither a folder nor an .npz"),
        (lambda p: p.mkdir(), {"num": 0}, "--num is 0"),
        (lambda p: p.mkdir(), {"size": -1}, "--size is -1"),
    ],
)
def test_paths_without_a_set_are_rejected(tmp_path, make, options, message):
    make(tmp_path / "thing")
    with pytest.raises(UserError, match=message):
        image_sets.open_set(tmp_path / "thing", ImageSetOptions(**options))


def test_more_images_than_available_are_rejected(folder):
    with pytest.raises(UserError, match="holds 5 images; --num=6 asks for more"):
        image_sets.open_set(folder, ImageSetOptions(num=6))


def test_a_blurred_dot_is_a_gaussian():
    dot = np.zeros((1, 33, 33, 3), np.uint8)
    dot[0, 16, 16, 0] = 255
    images = image_sets.blurred(image_sets.in_memory(dot, where="dot"), 1.0)
    (batch,) = images.batches(8, slice(None))
    distance = (np.arange(33) - 16.0) ** 2
    expected = 255 * np.exp(-(distance[:, None] + distance) / 2) / (2 * np.pi)
    np.testing.assert_allclose(batch[0, :, :, 0], expected, atol=0.6)
    assert not batch[..., 1:].any() and images.facts["blur"] == 1.0
    with pytest.raises(UserError, match=r"--blur is -1.0; it must lie in \[0.0, 100.0\]"):
        image_sets.ImageSetOptions(blur=-1.0)


def test_a_damaged_image_is_an_error(folder):
    (folder / "c.png").write_bytes(Samples.png(2)[:40])
    with pytest.raises(UserError, match=r"c.png: .*remove it or replace it"):
        numbers(image_sets.open_set(folder))
