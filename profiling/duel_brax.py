"""brax's side of a duel: its own PPO (brax 0.14.2), which trains in a thread of its own.

Sizes: task and updates per launch. `train` of brax compiles and trains in one call; it calls back
after every segment. The thread waits there for the next launch.
"""

from __future__ import annotations

import functools
import queue
import threading
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from duel_protocol import Job, serve
from jax.sharding import Mesh, NamedSharding, PartitionSpec

ENVS, STEPS, MINIBATCHES, SEGMENTS = 64, 32, 8, 1000


def replicated(tree: Any, devices: Sequence[Any]) -> Any:
    """Copies of `tree` on all devices, with a leading axis."""
    over = NamedSharding(Mesh(np.array(devices), ("devices",)), PartitionSpec("devices"))
    return jax.tree.map(
        lambda x: jax.device_put(jnp.stack([jnp.asarray(x)] * len(devices)), over), tree
    )


def build(sizes: dict[str, Any]) -> Job:
    # Imported here because brax prints to standard output, which is for the protocol elsewhere.
    from brax import envs
    from brax.training.agents.ppo import networks
    from brax.training.agents.ppo import train as ppo

    if not hasattr(jax, "device_put_replicated"):  # removed from JAX, but called by brax
        jax.device_put_replicated = replicated  # type: ignore[attr-defined]
    segment = ENVS * STEPS * sizes["updates"]
    asked, done = queue.Queue(), queue.Queue()

    def ended(*_: Any) -> None:
        done.put(None)
        asked.get()

    def wait() -> None:
        if error := done.get():
            raise error

    def train() -> None:
        try:
            brax_train()
        except Exception as error:
            done.put(error)

    def brax_train() -> None:
        ppo.train(
            environment=envs.get_environment(sizes["task"], backend="spring"),
            num_timesteps=segment * SEGMENTS,
            num_evals=SEGMENTS + 1,
            run_evals=False,
            policy_params_fn=ended,
            max_devices_per_host=1,
            num_envs=ENVS,
            episode_length=1000,
            learning_rate=3e-4,
            entropy_cost=0.0,
            discounting=0.99,
            unroll_length=STEPS,
            batch_size=ENVS // MINIBATCHES,
            num_minibatches=MINIBATCHES,
            num_updates_per_batch=4,
            normalize_observations=True,
            clipping_epsilon=0.2,
            gae_lambda=0.95,
            max_grad_norm=0.5,
            vf_loss_coefficient=0.5,
            network_factory=functools.partial(
                networks.make_ppo_networks,
                policy_hidden_layer_sizes=(64, 64),
                value_hidden_layer_sizes=(64, 64),
                activation=jnp.tanh,
                distribution_type="normal",
                noise_std_type="log",
            ),
        )

    threading.Thread(target=train, daemon=True).start()
    wait()  # before the first segment

    def launch() -> None:
        asked.put(None)
        wait()

    spent = []
    for _ in range(3):  # the first two compile: the states of the second are placed differently
        begin = time.process_time()
        launch()
        spent.append(time.process_time() - begin)
    return Job(launch, segment, spent[0] - spent[-1])


if __name__ == "__main__":
    serve(build)
