"""Treatment of SIGTERM and ctrl-C as requests to stop between two steps."""

import logging
import signal
import threading
from types import FrameType
from typing import Any

log = logging.getLogger(__name__)

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(SystemExit):
    """A run that was stopped by a signal after saving; the exit code is 128 + signal number."""

    def __init__(self, number: int, step: int):
        """Stores the signal `number` and the number of steps taken."""
        super().__init__(128 + number)
        self.number = number
        self.step = step


class Interrupts:
    """A context manager that notes the first SIGINT or SIGTERM; a second one acts as usual.

    Outside the main thread, where Python delivers no signals, it does nothing.

    Attributes:
        number: number of the received signal, or None.
    """

    def __init__(self):
        self.number: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Interrupts":
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, *_: Any) -> None:
        self._restore()

    def _note(self, number: int, _: FrameType | None) -> None:
        self.number = number
        self._restore()
        name = signal.Signals(number).name
        log.warning("%s: finishing this step and saving; once more to stop at once", name)

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._before = {}
