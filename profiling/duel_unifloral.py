"""unifloral's side of a duel: a scan over the train step of one of its files.

Sizes: file, kind ("iql", "td3_bc" or "bc"), obs, act, updates and members.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from duel_protocol import Job, compiled, executed, module_of, serve

ROWS = 100_000  # of random data


def build(sizes: dict[str, Any]) -> Job:
    uni = module_of(Path(sizes["file"]), {"d4rl": "", "gym": "", "wandb": ""})
    kind, obs, act = sizes["kind"], sizes["obs"], sizes["act"]
    rng = np.random.default_rng(0)
    number = lambda *shape: jnp.asarray(rng.uniform(-1, 1, (ROWS, *shape)), jnp.float32)
    data = uni.Transition(number(obs), number(act), number(), number(obs), jnp.zeros(ROWS))
    args = uni.Args()
    moments = data.obs.mean(0), data.obs.std(0)
    if kind == "iql":
        nets = {
            "actor": uni.TanhGaussianActor(act, *moments),
            "dual_q": uni.DualQNetwork(*moments),
            "value": uni.StateValueFunction(*moments),
        }
    else:
        nets = {"actor": uni.DeterministicTanhActor(act, *moments)}
        if kind == "td3_bc":
            nets["dual_q"] = uni.DualQNetwork(*moments)
    example = {"dual_q": [jnp.zeros(obs), jnp.zeros(act)]}
    state_of = lambda key, name: uni.create_train_state(
        args, key, nets[name], example.get(name, [jnp.zeros(obs)])
    )
    names = {
        "iql": "actor dual_q dual_q_target value",
        "td3_bc": "actor actor_target dual_q dual_q_target",
        "bc": "actor",
    }
    applied = [nets[name].apply for name in nets]
    step = uni.make_train_step(args, *applied, data)

    def begin(key: Any) -> Any:
        states = {name: state_of(key, name.removesuffix("_target")) for name in names[kind].split()}
        return key, uni.AgentTrainState(**states)

    updates, members = sizes["updates"], sizes["members"]
    # An update of td3_bc's file is one step of the actor after `critic_updates` of the critics.
    each = getattr(args, "num_critic_updates_per_step", 1) if kind == "td3_bc" else 1
    run = lambda state: jax.lax.scan(step, state, None, updates // each)
    key = jax.random.PRNGKey(0)
    if members > 1:
        run, begin, key = jax.vmap(run), jax.vmap(begin), jax.random.split(key, members)
    state = jax.jit(begin)(key)
    launch, seconds, text = compiled(
        lambda: jax.jit(run).lower(state), (state,), jax.block_until_ready
    )
    found = executed(text(), (), updates) if members == 1 else {}
    return Job(launch, updates * members, seconds, found)


if __name__ == "__main__":
    serve(build)
