"""Entry point of the `jaxrl` command: an interrupt while modules are imported gives one line."""

from __future__ import annotations

from jaxrl.experiments import interrupts


def main() -> int:
    """Runs the command of `sys.argv`; returns the exit code of `jaxrl.experiments.cli.main`."""
    interrupts.leave_at_once()
    from jaxrl.experiments import cli

    return cli.main()


if __name__ == "__main__":
    raise SystemExit(main())
