"""Study: what one batch of responses says, with SPO's tracker and with group means.

    python -m jaxrl.experiments.studies.token_signal --out FILE

`token_pg` with SPO is trained on a pool of 128 sums mod 5. At policy and tracker after some
updates, 256 batches of 128 responses are drawn: SPO's, one response to each prompt, and groups of 8
and of 2 responses with the mean of the group as baseline. The table compares the gradients of PPO's
loss with the exact gradient of the success rate on the pool:

    cosine   mean cosine between the gradient of a batch and the exact gradient
    signal   |E g|² / E |g|², the share of the squared gradient that is not noise
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from jaxrl import envs
from jaxrl.agents import token_pg
from jaxrl.envs import tokens
from jaxrl.experiments import jax_setup
from jaxrl.experiments.studies.enumerated import every_log_prob, listed, success
from jaxrl.experiments.studies.offline import keys_of
from jaxrl.objectives.table import OBJECTIVES
from jaxrl.responses import Responses, responses, tokens_of
from jaxrl.runs import files, provenance
from jaxrl.runs.stats import bootstrap_ci
from jaxrl.sequence import SequenceParams, sequence_model
from jaxrl.types import Array, HyperParams

BATCHES = 256
SINGLE = token_pg.Config(objective="spo", prompts=128, group=1, pool=128)
EIGHT = dataclasses.replace(SINGLE, objective="ppo", prompts=16, group=8)
TWO = dataclasses.replace(EIGHT, prompts=64, group=2)


def gradients(cfg: token_pg.Config, state: token_pg.State, pool: Any, key: Array) -> Array:
    """Gradients [BATCHES, X] of -loss at `state` for batches of prompts of the pool."""
    env, hp, objective = envs.make("tokens:modsum"), hypers(), OBJECTIVES[cfg.objective]
    source = token_pg.source(cfg, env)
    model = sequence_model(cfg.embedding, cfg.memory, env.spec)

    def one(key: Array) -> Array:
        key_batch, key_data = jax.random.split(key)
        batch = source.next(pool, state, hp, {}, key_batch, jnp.int32(0))[1]
        data = responses(cfg, objective, model, state, hp.agent, batch.transitions, key_data)[0]

        def loss(params: SequenceParams, part: Responses) -> Array:
            read = tokens_of(cfg, objective, model, params, part, jnp.zeros(()))
            return objective.loss(read, hp.agent)

        return -ravel_pytree(jax.grad(loss)(state.params, data))[0]

    return jax.lax.map(one, jax.random.split(key, BATCHES), batch_size=32)


def compared(key: Array, updates: int) -> dict[str, dict[str, Array]]:
    """Both kinds of batches at one seed's policy after `updates` updates."""
    env, hp = envs.make("tokens:modsum"), hypers()
    agent, source = token_pg.make(SINGLE, env.spec), token_pg.source(SINGLE, env)
    model = sequence_model(SINGLE.embedding, SINGLE.memory, env.spec)
    rule = tokens.task("modsum")
    task = listed(rule)
    key_init, key_pool, key_train, key_batches = jax.random.split(key, 4)
    state = agent.init(key_init, hp.agent, {})
    pool = source.init(key_pool, state, hp, {})

    def update(i: Array, state: token_pg.State) -> token_pg.State:
        key_batch, key_update = jax.random.split(jax.random.fold_in(key_train, i))
        batch = source.next(pool, state, hp, {}, key_batch, i)[1]
        return agent.update(state, hp.agent, batch, key_update, i)[0]

    state = jax.lax.fori_loop(0, updates, update, state)
    place = rule.alphabet ** jnp.arange(rule.prompt_length)[::-1]
    index = jnp.sum(pool[0].prompt * place, -1)  # of the pool's prompts in the enumeration

    def rate(params: SequenceParams) -> Array:
        return jnp.mean(success(every_log_prob(model, params, task), task)[index])

    value, exact = jax.value_and_grad(rate)(state.params)
    exact = ravel_pytree(exact)[0]
    without = state._replace(tracked=None)
    batches = {
        "tracker, 128 x 1": gradients(SINGLE, state, pool, key_batches),
        "group mean, 64 x 2": gradients(TWO, without, pool, key_batches),
        "group mean, 16 x 8": gradients(EIGHT, without, pool, key_batches),
    }
    return {name: about(g, exact) | {"success": value} for name, g in batches.items()}


def about(gradients: Array, exact: Array) -> dict[str, Array]:
    """`cosine` and `signal` [] of gradients [B, X]; both are 0 where gradients vanish."""
    size = jnp.linalg.norm(gradients, axis=-1)
    cosine = gradients @ exact / jnp.maximum(size * jnp.linalg.norm(exact), 1e-12)
    # The squared norm of a mean of B is too large by the variance / B.
    count, total = len(gradients), jnp.mean(size**2)
    square = (count * jnp.sum(jnp.mean(gradients, 0) ** 2) - total) / (count - 1)
    return {"cosine": jnp.mean(cosine), "signal": square / jnp.maximum(total, 1e-12)}


def hypers() -> HyperParams:
    return HyperParams(token_pg.Hypers())


def main() -> None:
    parser = argparse.ArgumentParser(description="Gradients of SPO and of groups")
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--updates", type=int, nargs="+", default=[5, 20, 80])
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    jax_setup.start()
    run = jax.jit(compared)
    rows = []
    print("| updates | batch | success | cosine | signal |\n" + "|---" * 5 + "|")
    for updates in args.updates:
        keys = keys_of(0, args.seeds)
        each = [jax.device_get(run(key, jnp.int32(updates))) for key in keys]
        for name in each[0]:
            found = {what: [float(one[name][what]) for one in each] for what in each[0][name]}
            rows.append({"updates": updates, "batch": name, **found})
            cells = [
                "{:.3f} ({:.3f} to {:.3f})".format(np.mean(x), *bootstrap_ci(np.array(x), np.mean))
                for x in (found["success"], found["cosine"], found["signal"])
            ]
            print(f"| {updates} | {name} | {' | '.join(cells)} |", flush=True)
    files.write_json(args.out, {"versions": provenance.versions(), "rows": rows})


if __name__ == "__main__":
    main()
