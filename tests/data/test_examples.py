import pickle
from collections.abc import Sequence

import numpy as np
import pytest

from unclip_jax.core.checks import UserError
from unclip_jax.data import image_codec
from unclip_jax.data.degrade import DegradeConfig, area_downsample
from unclip_jax.data.examples import (
    ExampleConfig,
    FixedExamples,
    RandomPart,
    collate,
    without_caption,
)
from unclip_jax.data.records import Record
from unclip_jax.tokenization import caption_tokenizer

RNG = np.random.default_rng(0)
NOISE = RNG.integers(0, 256, (40, 64, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def tokenizer() -> caption_tokenizer.Tokenizer:
    return caption_tokenizer.train(["picture number 1"], vocab_size=caption_tokenizer.MIN_VOCAB)


class CountingSource:
    """A source that counts how often it is read."""

    def __init__(self, records: Sequence[Record]):
        self.records, self.reads = records, 0

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Record:
        self.reads += 1
        return self.records[index]


def one(pixels: np.ndarray = NOISE, **fields) -> list[Record]:
    return [
        {
            "image": image_codec.encode_png(pixels),
            "caption": "a b",
            "key": "k",
            "scene": "{}",
            **fields,
        }
    ]


def random_part(config: ExampleConfig, seed: int = 0) -> dict:
    example = FixedExamples(one(), config=config)[0]
    return RandomPart(config)(example, np.random.default_rng(seed))


def test_centre_crop_of_the_resized_image():
    config = ExampleConfig(fields=("image",), image_size=20)
    got = random_part(config)["image"]
    np.testing.assert_array_equal(
        got, image_codec.center_crop(image_codec.resize_short(NOISE, 20), 20)
    )


def test_what_is_not_configured_is_as_in_the_published_models(
    tokenizer: caption_tokenizer.Tokenizer,
):
    """64 px and CLIP's 77 tokens; every record is the same example each time it is read."""
    waves = np.sin(np.arange(3 * 130 * 160).reshape(130, 160, 3) / 50)
    data = image_codec.encode_jpeg(np.uint8(128 + 100 * waves))
    records = one(image=data, captions=["a b", "c"])
    config = ExampleConfig(fields=("image", "tokens", "token_mask", "caption"))
    fixed = FixedExamples(records, config=config, tokenizer=tokenizer)
    whole = image_codec.resize_short(image_codec.decode(data), 64)  # not decoded at a half
    tokens, mask = tokenizer.encode(["a b"], length=77)
    for seed in range(8):
        example = RandomPart(config)(fixed[0], np.random.default_rng(seed))
        np.testing.assert_array_equal(example["image"], image_codec.center_crop(whole, 64))
        np.testing.assert_array_equal(example["tokens"], tokens[0])
        np.testing.assert_array_equal(example["token_mask"], mask[0])
        assert example["caption"] == "a b"


@pytest.mark.parametrize(
    ("fields", "changes", "expected"),
    [
        (("key", "z_img"), {}, False),
        (("tokens", "token_mask"), {}, False),
        (("tokens", "token_mask"), {"empty_captions": 0.01}, True),
        (("tokens", "token_mask"), {"empty_captions": 1.0}, True),
        (("tokens", "token_mask"), {"bpe_dropout": 0.01}, True),
        (("tokens", "token_mask"), {"bpe_dropout": 1.0}, True),
        (("tokens", "token_mask"), {"captions": "any"}, True),
        (("image",), {}, True),
        (("low_res",), {"degrade": DegradeConfig(factor=4)}, True),
    ],
)
def test_examples_with_images_or_chance_have_a_random_part(fields, changes, expected):
    config = ExampleConfig(fields=fields, **changes)
    assert config.random == expected
    assert config.decodes_images == (fields[0] in ("image", "low_res"))


def test_random_crop_moves_along_the_long_side_only():
    config = ExampleConfig(fields=("image",), image_size=40, crop="random")
    windows = {random_part(config, seed)["image"].tobytes() for seed in range(400)}
    assert windows == {image_codec.crop(NOISE, 40, top=0, left=x).tobytes() for x in range(25)}


def test_half_of_the_images_are_mirrored():
    config = ExampleConfig(fields=("image",), image_size=40, flip=True)
    plain = image_codec.center_crop(NOISE, 40)
    mirrored = 0
    for seed in range(400):
        got = random_part(config, seed)["image"]
        mirrored += int(np.array_equal(got, image_codec.flip(plain)))
        assert np.array_equal(got, plain) or np.array_equal(got, image_codec.flip(plain))
    assert abs(mirrored - 200) < 4 * 10


def test_low_res_belongs_to_the_patch():
    degrade = DegradeConfig(factor=4)
    config = ExampleConfig(
        fields=("image", "low_res"), image_size=40, patch=16, crop="random", degrade=degrade
    )
    images = set()
    for seed in range(20):
        example = random_part(config, seed)
        assert example["image"].shape == (16, 16, 3)
        want = area_downsample(image_codec.to_float(example["image"]), 4)
        np.testing.assert_array_equal(example["low_res"], want)
        images.add(example["image"].tobytes())
    assert len(images) > 15


def test_fields_that_are_not_asked_for_cost_nothing(tokenizer: caption_tokenizer.Tokenizer):
    config = ExampleConfig(fields=("tokens", "token_mask", "key"), length=6)
    unusable = [{"image": b"no image", "caption": "a b", "key": "k", "scene": ""}]
    example = FixedExamples(unusable, config=config, tokenizer=tokenizer)[0]
    assert sorted(example) == ["key", "token_mask", "tokens"]
    assert example["tokens"].shape == (6,)


def test_embeddings_and_strings_pass_through():
    config = ExampleConfig(fields=("z_img", "z_txt", "key", "caption", "scene"))
    vector = np.array([1, 2], np.float32)
    records = one(z_img=vector, z_txt=-vector)
    example = FixedExamples(records, config=config)[0]
    batch = collate([example, example], fields=config.fields)
    np.testing.assert_array_equal(batch["z_img"], [vector, vector])
    np.testing.assert_array_equal(batch["z_txt"], [-vector, -vector])
    assert batch["caption"].tolist() == ["a b", "a b"]
    assert (batch["key"][0], batch["scene"][1]) == ("k", "{}")


def test_images_stay_bytes_when_they_are_stacked():
    config = ExampleConfig(fields=("image",), image_size=40)
    example = random_part(config)
    batch = collate([example, example], fields=("image",))
    assert (batch["image"].dtype, batch["image"].shape) == (np.uint8, (2, 40, 40, 3))
    np.testing.assert_array_equal(batch["image"][1], example["image"])


def test_cached_examples_are_read_once(samples):
    source = CountingSource([samples.record(i) for i in range(4)])
    config = ExampleConfig(fields=("image",), image_size=16)
    fixed = FixedExamples(source, config=config, cache_bytes=10**6)
    source.reads = 0
    first = [fixed[i]["image"] for i in range(4)]
    again = [fixed[i]["image"] for i in range(4)]
    assert source.reads == 4
    assert [samples.number_of(pixels) for pixels in again] == [0, 1, 2, 3]
    np.testing.assert_array_equal(first, again)


def test_the_cache_keeps_to_its_size(samples):
    source = CountingSource([samples.record(i) for i in range(4)])
    config = ExampleConfig(fields=("image",), image_size=16)
    room_for_two = 2 * 16 * 16 * 3
    fixed = FixedExamples(source, config=config, cache_bytes=room_for_two + 1)
    source.reads = 0
    for _ in range(3):
        for i in range(4):
            assert samples.number_of(fixed[i]["image"]) == i
    assert source.reads == 2 + 3 * 2


def test_a_cache_of_the_size_of_two_images_holds_two_also_in_another_process(samples):
    source = CountingSource([samples.record(i) for i in range(4)])
    config = ExampleConfig(fields=("image",), image_size=16)
    for room, capacity in ((2 * 16 * 16 * 3, 2), (2 * 16 * 16 * 3 - 1, 1)):
        fixed = FixedExamples(source, config=config, cache_bytes=room)
        for each in (fixed, pickle.loads(pickle.dumps(fixed))):
            records = each._source
            before = records.reads
            for i in (0, 1, 2, 0, 1, 2):
                each[i]
            assert records.reads - before == 3 + 3 - capacity


def test_images_are_read_where_they_are_needed_alone():
    class Strings(list):
        """Records whose images are somewhere else."""

        def __init__(self, records):
            super().__init__(records)
            self.reads = []

        def __getitem__(self, index):
            self.reads.append("all")
            return super().__getitem__(index)

        def without_image(self, index):
            self.reads.append("strings")
            return {k: v for k, v in super().__getitem__(index).items() if k != "image"}

    records = Strings(one(x=np.zeros(3)))
    for fields, options, expected in (
        (("key",), {}, "strings"),
        (("image", "key"), {}, "all"),
        (("low_res",), {"degrade": DegradeConfig(factor=4)}, "all"),
        (("x",), {"arrays": ("x",)}, "all"),
    ):
        fixed = FixedExamples(records, config=ExampleConfig(fields, image_size=16, **options))
        records.reads.clear()
        assert fixed[0]
        assert records.reads == [expected]


def test_a_tokenizer_that_is_not_needed_adds_nothing(tokenizer):
    fixed = FixedExamples(one(), config=ExampleConfig(("key",)), tokenizer=tokenizer)
    assert fixed[0] == {"key": "k"}


def test_a_degradation_without_its_field_adds_nothing():
    config = ExampleConfig(("image",), image_size=16, degrade=DegradeConfig(factor=4))
    assert random_part(config).keys() == {"image"}


class ConstantGenerator(np.random.Generator):
    """A generator that always draws the same number."""

    def __init__(self, value: float):
        super().__init__(np.random.PCG64(0))
        self.value = value

    def random(self, *args, **kwargs):
        return self.value


@pytest.mark.parametrize(("value", "expected"), [(np.nextafter(0.5, 0), True), (0.5, False)])
def test_half_of_all_numbers_below_one_are_below_one_half(tokenizer, value, expected):
    config = ExampleConfig(("image",), image_size=40, flip=True)
    plain = image_codec.center_crop(NOISE, 40)
    flipped = RandomPart(config)({"image": plain}, ConstantGenerator(value))["image"]
    np.testing.assert_array_equal(flipped, plain[:, ::-1] if expected else plain)
    fields = ("tokens", "token_mask")
    config = ExampleConfig(fields, length=8, empty_captions=0.5)
    example = FixedExamples(one(), config=config, tokenizer=tokenizer)[0]
    is_empty = RandomPart(config)(example, ConstantGenerator(value))["token_mask"].sum() == 2
    assert is_empty == expected


def test_a_jpeg_is_decoded_at_a_fraction_of_its_size_if_asked_for():
    rows, columns = np.mgrid[:130, :160] / 9
    waves = np.stack([np.sin(rows), np.cos(columns), np.sin(rows + columns)], axis=-1)
    data = image_codec.encode_jpeg(np.uint8(128 + 100 * waves))
    small = image_codec.decode(data, reduced=60)
    assert small.shape == (65, 80, 3)
    for fast in (False, True):
        config = ExampleConfig(("image",), image_size=60, fast_decode=fast)
        result = FixedExamples(one(image=data), config=config)[0]["image"]
        pixels = small if fast else image_codec.decode(data)
        expected = image_codec.center_crop(image_codec.resize_short(pixels, 60), 60)
        np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize(("cache_bytes", "reads"), [(0, 9), (200, 7), (10**6, 3)])
def test_strings_count_in_the_cache(samples, cache_bytes, reads):
    """Without a cache nothing is stored, however small."""
    source = CountingSource([{**samples.record(i), "caption": "a" * 100} for i in range(3)])
    fixed = FixedExamples(source, config=ExampleConfig(("caption",)), cache_bytes=cache_bytes)
    source.reads = 0  # the first record is looked at
    captions = [fixed[i % 3]["caption"] for i in range(9)]
    assert captions == ["a" * 100] * 9 and source.reads == reads


def test_augmentation_leaves_the_cache_alone():
    config = ExampleConfig(fields=("image", "low_res"), image_size=40, flip=True, patch=8,
                           degrade=DegradeConfig(factor=2))  # fmt: skip
    fixed = FixedExamples(one(), config=config, cache_bytes=10**6)
    before = fixed[0]["image"].copy()
    for seed in range(10):
        RandomPart(config)(fixed[0], np.random.default_rng(seed))
    np.testing.assert_array_equal(fixed[0]["image"], before)
    assert sorted(fixed[0]) == ["image"]


def test_examples_can_be_sent_to_other_processes(samples):
    config = ExampleConfig(fields=("image",), image_size=16)
    fixed = FixedExamples([samples.record(5)], config=config, cache_bytes=10**6)
    fixed[0]
    assert samples.number_of(pickle.loads(pickle.dumps(fixed))[0]["image"]) == 5


def test_a_image_that_cannot_be_used_is_named(samples):
    config = ExampleConfig(fields=("image",), image_size=16)
    records = [samples.record(0), {**samples.record(1), "image": samples.png(1)[:60]}]
    with pytest.raises(UserError, match="record 'k0001' cannot be used: truncated image"):
        FixedExamples(records, config=config)[1]


def test_unknown_field():
    with pytest.raises(UserError, match="unknown batch field 'imgae'.*'image'"):
        ExampleConfig(fields=("imgae",))


def test_no_field():
    with pytest.raises(UserError, match="no batch fields"):
        ExampleConfig(fields=())


def test_unknown_crop():
    with pytest.raises(UserError, match="unknown crop 'middle'"):
        ExampleConfig(fields=("image",), crop="middle")


def test_patch_greater_than_the_image():
    with pytest.raises(UserError, match="patch is 65"):
        ExampleConfig(fields=("image",), image_size=64, patch=65)


def test_low_res_without_a_recipe():
    with pytest.raises(UserError, match="needs a DegradeConfig"):
        ExampleConfig(fields=("low_res",))


def test_low_res_that_does_not_divide():
    with pytest.raises(UserError, match="image side is 30, which 4 does not divide"):
        ExampleConfig(fields=("low_res",), image_size=30, degrade=DegradeConfig(factor=4))


def test_empty_source():
    with pytest.raises(UserError, match="the data set is empty"):
        FixedExamples([], config=ExampleConfig(fields=("image",)))


def test_captions_without_a_tokenizer(samples):
    with pytest.raises(UserError, match="no tokenizer; give .*which `prepare` writes"):
        FixedExamples([samples.record(0)], config=ExampleConfig(fields=("tokens",)))


def test_embeddings_that_the_source_lacks(samples):
    with pytest.raises(UserError, match=r"\['z_img'\] are requested; .*unclip_jax.embed"):
        FixedExamples([samples.record(0)], config=ExampleConfig(fields=("image", "z_img")))


@pytest.mark.parametrize("fields", [("image",), ("low_res", "key")])
def test_images_that_the_source_lacks(fields):
    config = ExampleConfig(fields, image_size=16, degrade=DegradeConfig(factor=4))
    records = [{"key": "k", "caption": "a", "scene": ""}]
    with pytest.raises(UserError, match=r"have \['caption', 'key', 'scene'\], but \['image'\] are"):
        FixedExamples(records, config=config)


def test_a_share_of_captions_is_taken_away(tokenizer):
    fields = ("tokens", "token_mask", "key")
    config = ExampleConfig(fields=fields, length=8, empty_captions=0.25)
    example = FixedExamples(one(), config=config, tokenizer=tokenizer)[0]
    empty, empty_mask = tokenizer.encode([""], length=8)
    draws = [RandomPart(config)(example, np.random.default_rng(seed)) for seed in range(400)]
    flags = [np.array_equal(each["tokens"], empty[0]) for each in draws]
    assert 60 < sum(flags) < 140
    for each, is_dropped in zip(draws, flags, strict=True):
        expected = empty_mask[0] if is_dropped else example["token_mask"]
        np.testing.assert_array_equal(each["token_mask"], expected)
        assert is_dropped or np.array_equal(each["tokens"], example["tokens"])
    whole = tokenizer.encode(["picture " * 9], length=8)  # truncated; the end token stays
    truncated = {"tokens": whole[0][0], "token_mask": whole[1][0]}
    np.testing.assert_array_equal(without_caption(truncated)["tokens"], empty[0])


@pytest.mark.parametrize(
    ("height", "width", "fits"),
    [(32, 32, True), (32, 90, True), (31, 32, False), (32, 31, False), (16, 200, False)],
)
def test_an_upsampler_does_not_train_on_enlarged_images(samples, height, width, fits):
    records = [samples.record(0, height=height, width=width)]
    config = ExampleConfig(
        fields=("image", "low_res"), image_size=32, degrade=DegradeConfig(factor=4)
    )
    fixed = FixedExamples(records, config=config)
    if fits:
        assert fixed[0]["image"].shape == (32, 32, 3)
        return
    side = min(height, width)
    with pytest.raises(UserError, match=f"'k0000' has a shorter side of {side} .*--min-side=32"):
        fixed[0]
    plain = FixedExamples(records, config=ExampleConfig(fields=("image",), image_size=32))
    assert plain[0]["image"].shape == (32, 32, 3)  # other stages may enlarge


def test_data_with_images_too_small_for_an_upsampler_are_rejected_when_opened(samples):
    class Stated(list):
        min_side = 31

    config = ExampleConfig(
        fields=("image", "low_res"), image_size=32, degrade=DegradeConfig(factor=4)
    )
    records = Stated(samples.record(i, height=32, width=32) for i in range(2))
    with pytest.raises(UserError, match="the smallest record has a shorter side of 31 pixels"):
        FixedExamples(records, config=config)


@pytest.mark.parametrize(("height", "width"), [(16, 200), (4, 5), (300, 20), (1, 1), (7, 100)])
def test_images_that_prepare_was_told_to_take_are_trained_on(samples, height: int, width: int):
    """Its limits on sides and aspect can be changed; they are not checked a second time."""
    records = [samples.record(0, height=height, width=width)]
    config = ExampleConfig(fields=("image",), image_size=16)
    assert FixedExamples(records, config=config)[0]["image"].shape == (16, 16, 3)
