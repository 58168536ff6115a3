"""Captions of a data set as they are read for a text encoder."""

import gc
from concurrent import futures

from unclip_jax.inference import caption_features


class Record(dict):
    """A record that is counted while it exists."""

    alive = most = 0

    def __init__(self, **fields):
        super().__init__(**fields)
        Record.alive += 1
        Record.most = max(Record.most, Record.alive)

    def __del__(self):
        Record.alive -= 1


class Records:
    def __len__(self):
        return 50

    def __getitem__(self, index):
        several = {"captions": [f"{index} a", f"{index} b"]} if index % 2 else {}
        return Record(image=b"large", caption=f"{index} a", **several)


def test_all_captions_are_read_in_order_and_images_are_not_kept():
    Record.alive = Record.most = 0
    with futures.ThreadPoolExecutor(2) as pool:
        captions = caption_features._captions(Records(), range(4, 50), pool)
        first = next(captions)
        pool.shutdown()  # all are read, one caption is chosen
        gc.collect()
        assert Record.alive == 0 and 1 <= Record.most <= 2
        expected = [f"{i} {name}" for i in range(4, 50) for name in ("ab" if i % 2 else "a")]
        assert [first, *captions] == expected
