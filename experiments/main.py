"""Entry point of the `jaxrl` command: an interrupt while modules are imported gives one line."""

from __future__ import annotations

import os
import signal
from typing import Any


def main() -> int:
    """Runs the command of `sys.argv`; returns the exit code of `jaxrl.experiments.cli.main`."""
    before = signal.getsignal(signal.SIGINT)
    if before is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, _leave)
    from jaxrl.experiments import cli

    signal.signal(signal.SIGINT, before)
    return cli.main()


def _leave(number: int, frame: Any) -> None:
    os.write(2, b"jaxrl: interrupted\n")
    os._exit(128 + number)


if __name__ == "__main__":
    raise SystemExit(main())
