"""A side of a duel that has `make_train(config)` in one file: purejaxql's and purejaxrl's.

Sizes: file, members and config, which turns logging and evaluations off. Steps before
LEARNING_STARTS train nothing and are not counted.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
from duel_protocol import Job, compiled, module_of, serve

ABSENT = {
    "wandb": "",
    "hydra": "main",
    "omegaconf": "OmegaConf",
    "safetensors": "",
    "safetensors.flax": "load_file save_file",
    "navix": "",
    "brax": "envs",
    "brax.envs.wrappers.training": "EpisodeWrapper AutoResetWrapper",
}


def build(sizes: dict[str, Any]) -> Job:
    config, members = dict(sizes["config"]), sizes["members"]
    train = module_of(Path(sizes["file"]), ABSENT).make_train(config)
    key = jax.random.PRNGKey(0)
    if members > 1:
        train, key = jax.vmap(train), jax.random.split(key, members)
    run, seconds, _ = compiled(lambda: jax.jit(train).lower(key), (key,), jax.block_until_ready)
    trained = config["TOTAL_TIMESTEPS"] - config.get("LEARNING_STARTS", 0)
    return Job(run, trained * members, seconds)


if __name__ == "__main__":
    serve(build)
