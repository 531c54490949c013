"""Entry point of the `jaxrl` command: an interrupt while modules are imported gives one line.

Garbage is collected from `jax_setup.start` on, when everything is imported: imports make no
garbage, and looking for it would take an eighth of the CPU time of a short command.
"""

from __future__ import annotations

import gc

from jaxrl.experiments import interrupts


def main() -> int:
    """Runs the command of `sys.argv`; returns the exit code of `jaxrl.experiments.cli.main`."""
    interrupts.leave_at_once()
    gc.disable()
    from jaxrl.experiments import cli

    return cli.main()


if __name__ == "__main__":
    raise SystemExit(main())
