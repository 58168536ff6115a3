"""Resources of data sets of web scale: what is counted, and how it is multiplied."""

import time

import pytest

from benchmarks import data_limits, data_scale, slow_store
from unclip_jax.core.checks import UserError
from unclip_jax.core.storage import Url
from unclip_jax.data import prepared


@pytest.fixture
def store(tmp_path):
    with slow_store.in_process(tmp_path) as store:
        yield store


def test_requests_and_bytes_are_counted(store, tmp_path):
    url = Url("gs://bucket/a/b")
    (tmp_path / "local").write_bytes(b"12345")

    def step():
        url.write_bytes(b"0123456789")
        (url.parent / "c").upload(tmp_path / "local")
        assert url.read_range(2, 5) == b"234" and url.read_bytes() == b"0123456789"
        assert url.parent.files() == {"b": 10, "c": 5}

    cost = data_scale.Cost(**data_scale.cost(step, 5))
    assert (cost.read, cost.written, cost.requests) == (13 / 5, 15 / 5, 5 / 5)
    assert data_scale.cost(step, 5, per_tar=True)["requests"] == 5 / data_limits.PER_TAR
    with pytest.raises(UserError, match="no such object"):
        (url.parent / "none").read_bytes()


def test_a_latency_is_waited_for_once_per_request(store):
    Url("gs://bucket/x").write_bytes(b"1")
    store.latency = 0.05
    start = time.perf_counter()
    Url("gs://bucket/x").read_bytes()
    assert time.perf_counter() - start >= 0.05


def test_real_tars_are_prepared_and_read(store, tmp_path):
    data_limits.write_tar(tmp_path / "bucket" / "in" / "0.tar", 3, images=[data_limits.jpeg(0)])
    assert 120_000 < len(data_limits.jpeg(1)) < 180_000
    data_limits.prepare(Url("gs://bucket/in"), Url("gs://bucket/out"))
    assert len(prepared.open_split(Url("gs://bucket/out"), split="train")) == 3


def test_costs_are_multiplied():
    cost = data_scale.Cost(cpu=0.0036, read=1000.0, written=0.0, requests=2.0)
    assert data_scale.total(cost, 10**9) == "1,000 core-h, 1 TB in, 2,000 M requests"
    text = data_scale.tables({"machine": "m", "date": "d", "costs": {"x": vars(cost)}})
    assert "| x | 3.6 | 1 | 0 | 2 |" in text
    assert "12 core-h, 0.012 TB in, 25 M requests |" in text  # of CC12M
