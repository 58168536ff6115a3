"""Collectives of several processes, with a stand-in for those of JAX."""

import jax
import numpy as np
import pytest
from jax.experimental import multihost_utils

from unclip_jax.parallel import multihost

PARTS = [{"x": np.arange(3 * i, 3 * i + 3), "even": np.arange(3) % 2 == 0} for i in range(4)]


@pytest.mark.parametrize(("count", "senders"), [(1, 1), (3, 1), (4, 2), (9, 3), (12, 4), (99, 4)])
def test_the_first_rows_are_those_of_the_first_processes(monkeypatch, count, senders):
    """Process 2 of four receives what the others send, in rank order."""
    sent = []

    def broadcast(piece, *, is_source):
        source = len(sent)
        assert is_source == (source == 2)
        assert len(piece["x"]) == min(3, count - 3 * source)  # shapes agree in all processes
        sent.append({name: x[: len(piece["x"])] for name, x in PARTS[source].items()})
        return sent[-1]

    monkeypatch.setattr(multihost_utils, "broadcast_one_to_all", broadcast)
    monkeypatch.setattr(jax, "process_count", lambda: 4)
    monkeypatch.setattr(jax, "process_index", lambda: 2)
    rows = multihost.first_rows(PARTS[2], count)
    assert len(sent) == senders
    np.testing.assert_array_equal(rows["x"], np.arange(min(count, 12)))
    np.testing.assert_array_equal(rows["even"], (np.arange(min(count, 12)) % 3) % 2 == 0)


def test_a_single_process_has_all_rows():
    rows = multihost.first_rows(PARTS[1], 2)
    np.testing.assert_array_equal(rows["x"], [3, 4])
    assert len(multihost.first_rows(PARTS[1], 9)["x"]) == 3
