"""rejax's side of a duel: `train` of one of its algorithms, without evaluations.

Sizes: algorithm, env, members, steps and options, the keyword arguments of `create`. Steps that
only fill the replay buffer train nothing and are not counted.
"""

from __future__ import annotations

from typing import Any

import jax
import rejax  # type: ignore[import-not-found]
from duel_protocol import Job, compiled, serve


def build(sizes: dict[str, Any]) -> Job:
    steps, members = sizes["steps"], sizes["members"]
    algorithm = getattr(rejax, sizes["algorithm"]).create(
        env=sizes["env"],
        total_timesteps=steps,
        eval_freq=steps,
        skip_initial_evaluation=True,
        **sizes["options"],
    )
    algorithm = algorithm.replace(eval_callback=lambda *_: ())
    train, key = algorithm.train, jax.random.PRNGKey(0)
    if members > 1:
        train, key = jax.vmap(train), jax.random.split(key, members)
    run, seconds, _ = compiled(lambda: jax.jit(train).lower(key), (key,), jax.block_until_ready)
    trained = steps - sizes["options"].get("fill_buffer", 0)
    return Job(run, trained * members, seconds)


if __name__ == "__main__":
    serve(build)
