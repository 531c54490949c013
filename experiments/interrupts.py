"""Early termination of a run: signals, handled at the next launch, and a watchdog."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any


class Signals:
    """Context in which the first SIGINT or SIGTERM only sets `received`; a second acts at once."""

    def __init__(self, heard: Callable[[int], None] = lambda number: None) -> None:
        self.received, self._heard = 0, heard
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():  # others cannot set handlers
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: Any) -> None:
        self.__exit__()
        self.received = number
        self._heard(number)


class Watchdog:
    """Ends the process after `seconds` without a beat; 0 disables the watchdog.

    The state cannot be saved, since the hanging computation holds the devices. The exit code is 75
    (EX_TEMPFAIL): the same command may succeed later.
    """

    CODE = 75

    def __init__(self, seconds: float) -> None:
        self.seconds, self._last, self._over = seconds, time.monotonic(), threading.Event()

    def __enter__(self) -> Watchdog:
        self.beat()
        if self.seconds > 0:
            threading.Thread(target=self._watch, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()

    def beat(self) -> None:
        self._last = time.monotonic()

    def pause(self) -> None:
        """Stops the countdown until the next beat: a compilation reports no progress."""
        self._last = float("inf")

    def _watch(self) -> None:
        while not self._over.wait(min(1.0, self.seconds / 4)):
            if time.monotonic() - self._last > self.seconds:
                print(
                    f"jaxrl: no progress for {self.seconds:g} s (--watchdog), ended; the same "
                    "command continues from the last checkpoint",
                    file=sys.stderr,
                    flush=True,
                )
                os._exit(self.CODE)
