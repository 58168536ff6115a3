import dataclasses
import hashlib
import itertools
import json
import threading
import time
from collections.abc import Sequence

import grain
import numpy as np
import pytest

from unclip_jax.core import batch as batches
from unclip_jax.core.checks import UserError
from unclip_jax.data.degrade import DegradeConfig
from unclip_jax.data.examples import ExampleConfig
from unclip_jax.data.image_codec import encode_jpeg, encode_png
from unclip_jax.data.loader import Loader, LoaderConfig, make_loader
from unclip_jax.tokenization import caption_tokenizer

PLAIN = ExampleConfig(fields=("image", "key"), image_size=16)
RANDOM = ExampleConfig(  # everything that is random at once
    fields=("image", "low_res", "key"),
    image_size=16,
    crop="random",
    flip=True,
    patch=8,
    degrade=DegradeConfig(factor=2, name="blur"),
)


@pytest.fixture(scope="module")
def records(samples) -> list[dict]:
    """Eleven pictures of noise, so that every crop differs."""
    rng = np.random.default_rng(0)
    result = []
    for i in range(11):
        record = samples.record(i)
        record["image"] = encode_png(rng.integers(0, 256, (16, 30, 3), dtype=np.uint8))
        result.append(record)
    return result


def loader(
    source,
    example: ExampleConfig = PLAIN,
    *,
    mixed: Sequence = (),
    part: int = 0,
    parts: int = 1,
    origin: dict[str, str] | None = None,
    **config,
):
    config = {"batch_size": 4, "seed": 3, "workers": 0, **config}
    return make_loader(
        source,
        example=example,
        config=LoaderConfig(**config),
        mixed=mixed,
        process_index=part,
        process_count=parts,
        origin=origin,
    )


def take(loader: Loader, count: int) -> list[dict[str, np.ndarray]]:
    return list(itertools.islice(loader, count))


def keys(result: list[dict[str, np.ndarray]]) -> list[str]:
    return [str(key) for batch in result for key in batch["key"]]


def assert_equal(first: list[dict], second: list[dict]) -> None:
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])


def test_every_epoch_is_another_permutation(records):
    order = keys(take(loader(records), 22))  # 88 examples, 8 epochs of 11
    epochs = [tuple(order[i : i + 11]) for i in range(0, 88, 11)]
    in_order = tuple(f"k{i:04d}" for i in range(11))
    assert all(sorted(epoch) == list(in_order) for epoch in epochs)
    assert len({*epochs, in_order}) == 9


def test_groups_stay_together_and_are_shuffled_anew_every_epoch(records):
    numbers = [int(key[1:]) for key in keys(take(loader(records, group=2, batch_size=2), 20))]
    pairs = [tuple(numbers[i : i + 2]) for i in range(0, 40, 2)]
    epochs = [tuple(pairs[i : i + 5]) for i in range(0, 20, 5)]  # record 10 has no partner
    assert all(set(epoch) == {(0, 1), (2, 3), (4, 5), (6, 7), (8, 9)} for epoch in epochs)
    assert len(set(epochs)) > 2  # of 120 orders


def test_images_belong_to_their_keys(source, samples):
    for batch in take(loader(source, batch_size=5), 6):
        numbers = [samples.number_of(image) for image in batch["image"]]
        assert [f"k{number:04d}" for number in numbers] == batch["key"].tolist()


def test_the_order_depends_on_the_seed(records):
    first, again, other = (keys(take(loader(records, seed=s), 11)) for s in (0, 0, 1))
    assert first == again
    assert first != other
    assert first[11:] != other[:33]  # seed 1 is not seed 0 one epoch later


def test_the_order_is_that_of_runs_of_earlier_versions(records, few):
    """A saved position would otherwise continue in another order: Grain's, of a derived seed."""

    def order(purpose: str, count: int) -> list[int]:
        start = hashlib.sha256(f"3 {purpose}".encode()).hexdigest()[:8]
        seed = int.from_bytes(bytes.fromhex(start), "little")
        shuffled = grain.MapDataset.range(count).shuffle(seed=seed).repeat(None)
        return [int(shuffled[i]) for i in range(24)]

    expected = [f"k{i:04d}" for i in order("shuffle", 11)]
    assert keys(take(loader(records), 6)) == expected
    second = [f"k{100 + i:04d}" for i in order("shuffle 1", 3)]
    both = keys(take(loader(records, mixed=[few]), 12))
    assert [key for key in both if key < "k0100"] == expected
    assert [key for key in both if key >= "k0100"] == second
    groups = [2 * i + k for i in order("shuffle", 5)[:12] for k in range(2)]
    assert keys(take(loader(records, group=2), 6)) == [f"k{i:04d}" for i in groups]


@pytest.mark.parametrize("parts", [2, 4])
def test_processes_take_disjoint_parts_of_the_same_batches(records, parts: int):
    whole = take(loader(records, RANDOM), 12)
    shares = [take(loader(records, RANDOM, part=p, parts=parts), 12) for p in range(parts)]
    for i, batch in enumerate(whole):
        for name, value in batch.items():
            union = np.concatenate([share[i][name] for share in shares])
            np.testing.assert_array_equal(union, value)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("group", [1, 3])
@pytest.mark.parametrize("stop", [0, 1, 6])
def test_a_resumed_run_sees_the_batches_it_would_have_seen(
    records, stop: int, group: int, workers: int
):
    straight = take(loader(records, RANDOM, group=group), 9)
    before = loader(records, RANDOM, workers=workers, group=group, prefetch=3)
    first = take(before, stop)
    position = json.loads(json.dumps(before.get_state()))
    before.close()
    after = loader(records, RANDOM, workers=workers, group=group, prefetch=3)
    after.set_state(position)
    assert_equal(first + take(after, 9 - stop), straight)
    after.close()


@pytest.mark.parametrize("workers", [0, 2])
def test_so_does_one_whose_images_go_through_bsr(records, workers: int):
    example = dataclasses.replace(RANDOM, degrade=DegradeConfig(2, "bsr", 0.8))
    straight = take(loader(records, example), 9)
    assert not np.array_equal(
        straight[0]["low_res"], take(loader(records, RANDOM), 1)[0]["low_res"]
    )
    before = loader(records, example, workers=workers, prefetch=3)
    first = take(before, 5)
    position = json.loads(json.dumps(before.get_state()))
    before.close()
    after = loader(records, example, workers=workers, prefetch=3)
    after.set_state(position)
    assert_equal(first + take(after, 4), straight)
    after.close()
    halves = [loader(records, example, part=p, parts=2) for p in range(2)]
    low_res = [np.concatenate([next(half)["low_res"] for half in halves]) for _ in range(3)]
    np.testing.assert_array_equal(low_res, [batch["low_res"] for batch in straight[:3]])


@pytest.fixture(scope="module")
def few(samples) -> list[dict]:
    """Three records, to be mixed with the eleven."""
    rng = np.random.default_rng(1)
    noise = [rng.integers(0, 256, (16, 30, 3), dtype=np.uint8) for _ in range(3)]
    return [{**samples.record(100 + i), "image": encode_png(x)} for i, x in enumerate(noise)]


def test_a_mixture_takes_equally_many_of_each(records, few):
    order = keys(take(loader(records, mixed=[few]), 33))  # 132 examples, 66 of each
    large = [key for key in order if key < "k0100"]
    small = [key for key in order if key >= "k0100"]
    assert len(large) == len(small) == 66
    for result, size in ((large, 11), (small, 3)):  # each in permutations of its own
        epochs = [tuple(result[i : i + size]) for i in range(0, 66, size)]
        assert all(len(set(epoch)) == size for epoch in epochs)
        assert len(set(epochs)) > 3
    for batch in take(loader(records, mixed=[few]), 5):
        assert sum(key >= "k0100" for key in batch["key"].tolist()) == 2
    three = keys(take(loader(records, mixed=[few, few[:1]], batch_size=3), 20))
    assert three.count("k0100") >= 20


def test_a_mixture_s_first_set_keeps_its_order(records, few):
    alone = keys(take(loader(records), 11))
    assert [key for key in keys(take(loader(records, mixed=[few]), 22)) if key < "k0100"] == alone


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("stop", [1, 6])
def test_a_mixture_is_resumed_exactly(records, few, stop: int, workers: int):
    straight = take(loader(records, RANDOM, mixed=[few]), 9)
    before = loader(records, RANDOM, mixed=[few], workers=workers, prefetch=3)
    first = take(before, stop)
    position = json.loads(json.dumps(before.get_state()))
    before.close()
    after = loader(records, RANDOM, mixed=[few], workers=workers, prefetch=3)
    after.set_state(position)
    assert_equal(first + take(after, 9 - stop), straight)
    after.close()
    halves = [loader(records, RANDOM, mixed=[few], part=p, parts=2) for p in range(2)]
    for half in halves:
        half.set_state(position)
    images = np.concatenate([next(half)["image"] for half in halves])
    np.testing.assert_array_equal(images, straight[stop]["image"])


def test_a_mixture_is_not_continued_with_other_sets(records, few):
    position = loader(records, mixed=[few]).get_state()
    for other in (loader(records, mixed=[few[:2]]), loader(records)):
        with pytest.raises(UserError, match=r"saved with num_examples = \[11, 3\], now it is"):
            other.set_state(position)


def test_a_mixture_by_weights(records, few):
    """3 : 1, in every stretch of four; each set in its own order, whatever the other's share."""
    options = {"mixed": [few], "weights": (0.75, 0.25)}
    order = keys(take(loader(records, **options), 33))
    large = [key for key in order if key < "k0100"]
    assert len(order) == 132 and len(large) == 99
    for start in range(0, 132, 4):
        assert sum(key < "k0100" for key in order[start : start + 4]) == 3
    assert large == keys(take(loader(records), 25))[:99]
    position = loader(records, **options).get_state()
    with pytest.raises(UserError, match=r"saved with weights|now it is \[3.0, 1.0\]"):
        loader(records, mixed=[few], weights=(3.0, 1.0)).set_state(position)
    assert "weights" not in loader(records, mixed=[few]).get_state()


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ((1.0,), "there are 1 weights for 2 data sets; give one for config.data.path and one for"),
        ((1.0, 0.0), "weights is 0.0"),
    ],
)
def test_weights_that_cannot_be_used(records, few, weights, message):
    with pytest.raises(UserError, match=message):
        loader(records, mixed=[few], weights=weights)


@pytest.mark.parametrize("change", [{"num_epochs": 2}, {"shuffle": False}])
def test_a_mixture_has_no_end(records, few, change):
    with pytest.raises(UserError, match="2 data sets are mixed, which is random and endless"):
        loader(records, mixed=[few], **change)


def test_a_run_can_go_on_with_other_processes(records):
    straight = take(loader(records, RANDOM), 8)
    halves = [loader(records, RANDOM, part=p, parts=2) for p in range(2)]
    for half in halves:
        take(half, 5)
    alone = loader(records, RANDOM)
    alone.set_state(halves[1].get_state())
    assert_equal(take(alone, 3), straight[5:])


def test_positions_can_be_set_back(records):
    it = loader(records, RANDOM, workers=2)
    start = it.get_state()
    first = take(it, 5)
    it.set_state(start)
    assert_equal(take(it, 5), first)
    it.close()


def test_decoding_in_processes_gives_the_same(source):
    example = ExampleConfig(fields=("image", "key"), image_size=8, flip=True, crop="random")
    straight = take(loader(source, example), 6)
    config = {"workers": 1, "processes": 1}
    it = loader(source, example, **config)
    first = take(it, 2)
    it.close()
    again = loader(source, example, **config)
    again.set_state(it.get_state())
    assert_equal(first + take(again, 4), straight)
    again.close()


class Reads(list):
    """Records that note which are read."""

    def __init__(self, records):
        super().__init__(records)
        self.keys = []

    def __getitem__(self, index):
        record = super().__getitem__(index)
        self.keys.append(record["key"])
        return record


class Slow:
    """Records that, once `closed`, are handed out only when `together` threads ask for one."""

    def __init__(self, records, together):
        self._records, self._barrier = records, threading.Barrier(together)
        self.closed = False

    def __len__(self):
        return len(self._records)

    def __getitem__(self, index):
        if self.closed:
            self._barrier.wait(timeout=20)
        return self._records[index]


def test_as_many_examples_are_read_at_once_as_there_are_threads(records):
    """Whatever the number of batches ahead: else slow storage is waited for once per example."""
    slow = Slow([records[i % len(records)] for i in range(128)], together=8)
    settings = {"batch_size": 64, "shuffle": False, "num_epochs": 1, "prefetch": 1}
    it = loader(slow, workers=8, **settings)
    slow.closed = True
    assert [len(batch["key"]) for batch in it] == [64, 64]


@pytest.mark.parametrize(
    ("settings", "ahead", "threads"),
    [
        ({}, 4, 2),
        ({"prefetch": 2}, 2, 2),
        ({"workers": 3}, 4, 3),
        ({"workers": 0}, 0, 1),
        ({"batch_size": 24}, 4, 2),  # read in parts
    ],
)
def test_four_batches_are_read_ahead_by_two_threads(samples, settings, ahead, threads):
    """The default; no more are read, however long the consumer takes."""
    idents = set()

    class Noted(Reads):
        def __getitem__(self, index):
            idents.add(threading.get_ident())
            time.sleep(0.001)  # so that all threads are needed
            return super().__getitem__(index)

    size = settings.get("batch_size", 8)
    rows = Noted(samples.record(i) for i in range(12 * size))
    it = make_loader(rows, example=PLAIN, config=LoaderConfig(**{"batch_size": size, **settings}))
    rows.keys.clear(), idents.clear()
    for num_batches in (1, 2):
        next(it)
        end = time.monotonic() + 20
        while len(rows.keys) < size * (num_batches + ahead) and time.monotonic() < end:
            time.sleep(0.01)
        time.sleep(0.02)
        assert len(rows.keys) == size * (num_batches + ahead)
    it.close()
    assert len(idents) == threads


@pytest.mark.parametrize("batch_size", [1, 3, 8, 12])
@pytest.mark.parametrize("remainder", ["drop", "keep", "pad"])
@pytest.mark.parametrize("workers", [0, 3])
def test_batches_of_any_size_hold_the_records_in_order(records, batch_size, remainder, workers):
    settings = {"batch_size": batch_size, "remainder": remainder, "shuffle": False}
    it = loader([records[i % 11] for i in range(26)], num_epochs=1, workers=workers, **settings)
    result = list(it)
    order = [f"k{i % 11:04d}" for i in range(26)]
    whole = 26 // batch_size * batch_size
    padded = [*order, *[order[-1]] * (-26 % batch_size)]
    expected = {"drop": order[:whole], "keep": order, "pad": padded}[remainder]
    assert keys(result) == expected
    assert len(it) == len(result) == -(-len(expected) // batch_size)


def test_the_cache_changes_nothing(records):
    straight = take(loader(records, RANDOM), 12)
    assert_equal(take(loader(records, RANDOM, cache_mb=1), 12), straight)


@pytest.mark.parametrize(("cache_mb", "capacity"), [(0, 0), (1, 5), (2, 10)])
def test_the_cache_holds_so_many_mebibytes(samples, cache_mb: int, capacity: int):
    """Of images of 256 x 256 x 3 bytes a mebibyte holds five; two data sets share it equally."""
    example = ExampleConfig(fields=("image",), image_size=256)
    one, other = (
        Reads(samples.record(i, height=256, width=256) for i in range(first, first + 12))
        for first in (0, 20)
    )
    it = loader(one, example, shuffle=False, num_epochs=3, cache_mb=cache_mb)
    one.keys.clear()  # the first is looked at
    assert len(list(it)) == 9
    assert len(one.keys) == 12 + 2 * (12 - capacity)
    it = loader(one, example, mixed=[other], cache_mb=cache_mb)
    one.keys.clear(), other.keys.clear()
    take(it, 12)  # two epochs of each
    assert len(one.keys) == len(other.keys) == 12 + (12 - capacity // 2)


def test_randomness_differs_from_epoch_to_epoch(records):
    crops: dict[str, set[bytes]] = {}
    for batch in take(loader(records, RANDOM), 33):  # 12 epochs
        for key, image in zip(batch["key"], batch["image"], strict=True):
            crops.setdefault(str(key), set()).add(image.tobytes())
    assert len(crops) == 11
    assert all(len(positions) > 8 for positions in crops.values())


def test_evaluation_in_order_drops_what_does_not_fill_a_batch(records):
    result = list(loader(records, shuffle=False, num_epochs=1))
    assert keys(result) == [f"k{i:04d}" for i in range(8)]


def test_evaluation_can_keep_the_rest(records):
    result = list(loader(records, shuffle=False, num_epochs=1, remainder="keep"))
    assert [len(batch["key"]) for batch in result] == [4, 4, 3]
    assert keys(result) == [f"k{i:04d}" for i in range(11)]


@pytest.mark.parametrize(("parts", "size"), [(1, 4), (2, 4), (4, 8), (8, 8)])
def test_padded_evaluation_sees_every_example_once(records, parts: int, size: int):
    config = {"shuffle": False, "num_epochs": 1, "remainder": "pad", "batch_size": size}
    shares = [list(loader(records, part=p, parts=parts, **config)) for p in range(parts)]
    assert len({len(share) for share in shares}) == 1  # all take the same number of steps
    real = []
    for step in zip(*shares, strict=True):
        for batch in step:
            assert len(batch["key"]) == size // parts
            real += batch["key"][batch["valid"]].tolist()
    assert real == [f"k{i:04d}" for i in range(11)]


def test_finite_training_gives_whole_batches_of_all_epochs(records):
    for parts in (1, 2):
        result = [list(loader(records, num_epochs=3, part=p, parts=parts)) for p in range(parts)]
        assert {len(share) for share in result} == {33 // 4}
    assert len(loader(records, num_epochs=3)) == 8


def test_small_sets_fill_large_batches_when_repeated(records):
    (batch,) = take(loader(records, batch_size=25), 1)
    counts = np.unique(batch["key"], return_counts=True)[1]
    assert sorted(counts.tolist()) == [2] * 8 + [3] * 3  # two epochs and three of the third


def test_batches_satisfy_their_spec(samples):
    tokenizer = caption_tokenizer.train(["picture number 1 2"] * 3, vocab_size=530)
    source = [samples.record(i, height=20, width=33) for i in range(9)]
    example = ExampleConfig(
        fields=("image", "low_res", "tokens", "token_mask"),
        image_size=16,
        length=7,
        degrade=DegradeConfig(factor=4, name="blur"),
    )
    config = LoaderConfig(batch_size=3, workers=2)
    it = make_loader(source, example=example, config=config, tokenizer=tokenizer)
    spec = {
        "image": batches.image_field(16),
        "low_res": batches.image_field(4),
        **batches.text_fields(7, tokenizer.vocab_size),
    }
    for batch in take(it, 4):
        batches.check(spec, batch)
        assert batch.keys() == spec.keys()
    it.close()


def test_a_bad_image_stops_training_with_its_name(samples):
    source = [{**samples.record(i), "image": samples.png(i)[:50]} for i in range(4)]
    it = loader(source, workers=2)
    with pytest.raises(
        UserError, match=r"'k000.' cannot be used: truncated .*leaves such images out\.$"
    ):
        next(it)
    it.close()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 4}, "saved with seed = 3, now it is 4"),
        ({"batch_size": 5}, "saved with batch_size = 4, now it is 5"),
        ({"shuffle": False}, "saved with shuffle = True, now it is False"),
    ],
)
def test_positions_of_another_run(records, change: dict, message: str):
    with pytest.raises(UserError, match=message):
        loader(records, **change).set_state(loader(records).get_state())


ORIGIN = {"data": "d" * 64, "tokenizer": "t" * 64, "embeddings": "c" * 64}


@pytest.mark.parametrize("name", ORIGIN)
def test_positions_in_data_of_another_origin(records, name: str):
    position = loader(records, origin=ORIGIN).get_state()
    other = loader(records, origin={**ORIGIN, name: "x" * 64})
    with pytest.raises(UserError, match=f"saved with {name} = '{ORIGIN[name]}', now it is 'xxx"):
        other.set_state(position)


def test_positions_of_versions_that_did_not_state_the_origin(records):
    position = {**loader(records).get_state(), "batches": 2}
    now = loader(records, origin=ORIGIN)
    now.set_state(position)
    assert now.get_state() == {**position, **ORIGIN}


def test_positions_of_another_data_set(records):
    with pytest.raises(UserError, match="saved with num_examples = 11, now it is 10"):
        loader(records[:10]).set_state(loader(records).get_state())


def test_a_batch_that_processes_cannot_share(records):
    with pytest.raises(UserError, match="batch_size is 4, which 3 does not divide"):
        loader(records, parts=3)


def test_a_data_set_smaller_than_one_batch(records):
    with pytest.raises(UserError, match="has 11 examples, fewer than one batch of 12"):
        loader(records, num_epochs=1, batch_size=12)


def test_what_padding_needs(records):
    with pytest.raises(UserError, match="'pad' needs shuffle=False and num_epochs=1"):
        loader(records, remainder="pad")


def test_keeping_the_rest_on_many_processes(records):
    with pytest.raises(UserError, match="'keep' works with one process"):
        loader(records, remainder="keep", parts=2)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0"),
        ({"remainder": "dorp"}, "unknown remainder 'dorp'.*'drop'"),
        ({"num_epochs": 0}, "num_epochs is 0"),
        ({"workers": -1}, "workers is -1"),
    ],
)
def test_impossible_settings(records, config: dict, message: str):
    with pytest.raises(UserError, match=message):
        loader(records, **config)


def test_fast_decoding_is_stated_with_the_data(samples):
    pixels = np.random.default_rng(0).integers(100, 156, (128, 128, 3), dtype=np.uint8)
    record = {**samples.record(0), "image": encode_jpeg(pixels)}
    plain = ExampleConfig(fields=("image",), image_size=16)
    fast = dataclasses.replace(plain, fast_decode=True)
    loaders = [loader([record] * 4, example) for example in (plain, fast)]
    assert [each.origin for each in loaders] == [{}, {"decoding": "reduced"}]
    whole, reduced = (next(each)["image"] for each in loaders)
    assert whole.shape == reduced.shape == (4, 16, 16, 3)
    np.testing.assert_allclose(np.int32(reduced), np.int32(whole), atol=6)  # of 255
    assert not np.array_equal(reduced, whole)
