"""jaxrl's side of a duel: updates of a population, without evaluations.

Sizes: the fields of a `stages.Task`, members, and updates per member and launch.
"""

from __future__ import annotations

from typing import Any

from duel_protocol import Job, executed, serve
from stages import Task, prepare

from jaxrl.experiments import jax_setup


def build(sizes: dict[str, Any]) -> Job:
    jax_setup.start()
    members, updates = sizes.pop("members"), sizes.pop("updates")
    task = Task(**sizes)
    launch = prepare(task, members, updates)
    found = {}
    if task.offline and members == 1:  # the outer loop is over tiles, the inner one over updates
        found = executed(launch.text(), (1, updates), launch.units)
    return Job(launch.run, launch.units, launch.compile_s, found)


if __name__ == "__main__":
    serve(build)
