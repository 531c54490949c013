"""Early termination of a run: signals, also in the middle of a compilation, and a watchdog."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

STOPPING = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)
# Signals that belong together: a closing terminal and `timeout` send two to the same process.
SAME_S = 0.5
QUIET_S = 0.2  # for which a command that ends at once is not announced

_announcing, _concluded = threading.Lock(), threading.Event()


class Signals:
    """Context in which the first SIGINT, SIGTERM or SIGHUP only sets `received`.

    A second SIGINT or SIGTERM has its usual effect. Signals that the process ignores, as under
    nohup, stay ignored.
    """

    def __init__(self, heard: Callable[[int], None] = lambda number: None) -> None:
        self.received, self._heard, self._at = 0, heard, 0.0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():  # others cannot set handlers
            for number in STOPPING:
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: Any) -> None:
        if not self.received:
            self.received, self._at = number, time.monotonic()
            self._heard(number)
        elif is_second(number, time.monotonic() - self._at):
            self.__exit__()
            signal.raise_signal(number)


def leave_at_once() -> None:
    """Makes SIGINT end the process in one line, until `let_clean_up`; for the time of imports.

    A KeyboardInterrupt inside an import prints a traceback, or becomes an ImportError.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _leave)


def let_clean_up() -> None:
    """Makes SIGINT raise KeyboardInterrupt again after `leave_at_once`."""
    if signal.getsignal(signal.SIGINT) is _leave:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _leave(number: int, frame: Any) -> None:
    _tell("interrupted")
    os._exit(128 + number)


def is_second(number: int, seconds: float) -> bool:
    """Whether a signal `seconds` after the first one demands an immediate end."""
    return number in (signal.SIGINT, signal.SIGTERM) and seconds > SAME_S


def watch(hint: str) -> None:
    """Answers signals at once for the rest of the process; for commands, in the main thread.

    Python runs handlers in the main thread, which a compilation may keep busy for minutes. The
    numbers of signals also arrive in a pipe, which a thread reads: it announces the first signal,
    and ends the process at the second one.

    Args:
      hint: end of the message after an immediate end.
    """
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(reading, hint), daemon=True).start()


def conclude() -> None:
    """Announces no first signal any more: the command is about to print its last line."""
    with _announcing:
        _concluded.set()


def _watch(reading: int, hint: str) -> None:
    number = _next(reading)
    first, name = time.monotonic(), signal.Signals(number).name
    time.sleep(QUIET_S)
    with _announcing:
        if not _concluded.is_set():
            _tell(f"{name}: stopping soon; a second one ends the process at once")
    while not is_second(number := _next(reading), time.monotonic() - first):
        pass
    if sys.__stdout__ is not None and sys.__stdout__.isatty():
        os.write(1, b"\x1b[?25h\n")  # the live line hides the cursor
    _tell(f"ended by {signal.Signals(number).name}{hint}")
    os._exit(128 + number)


def _next(reading: int) -> int:
    """The next signal that asks for an end."""
    while (number := os.read(reading, 1)[0]) not in STOPPING:
        pass
    return number


def _tell(text: str) -> None:
    """Writes a line without locks, which the main thread might hold."""
    try:
        over = "\r\x1b[2K" if os.isatty(2) else ""  # the live line
        os.write(2, f"{over}jaxrl: {text}\n".encode())
    except OSError:  # the terminal is closed
        pass


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
