import os
import signal
import threading

import pytest

from unclip_jax.training.signals import Interrupted, Interrupts


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_first_signal_is_noted_and_the_second_acts(number: int, code: int):
    hits = []
    before = signal.signal(number, lambda n, _: hits.append(n))
    try:
        with Interrupts() as interrupts:
            assert interrupts.number is None
            os.kill(os.getpid(), number)
            assert interrupts.number == number and hits == []
            os.kill(os.getpid(), number)
            assert hits == [number]
        os.kill(os.getpid(), number)
        assert hits == [number, number]
    finally:
        signal.signal(number, before)
    assert Interrupted(number, 7).code == code


def test_handlers_are_put_back_when_nothing_came():
    before = signal.getsignal(signal.SIGTERM)
    with Interrupts():
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before


def test_other_threads_are_left_alone():
    numbers = []

    def work():
        with Interrupts() as interrupts:
            numbers.append(interrupts.number)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert numbers == [None]
