"""Speed and returns of PPO, compared with brax's own PPO (brax 0.14.2).

    python profiling/against_brax_ppo.py [--task hopper] [--steps 1_000_000] [--json FILE]

Equal: physics (spring), environments, window, minibatches, epochs, networks (tanh, 64 x 64, normal
policy with learned, state-independent standard deviation), coefficients, Adam, running observation
statistics, and the evaluation: 128 episodes of the mode, by jaxrl's evaluator. Different: brax
recomputes advantages in every minibatch, shuffles whole segments of a window, resets episodes to
initial states fixed at the start, includes a window in the statistics before learning from it, and
passes unclipped actions to rewards. Reported are environment steps per CPU second (all threads) on
one device without compilation; of brax's four segments between evaluations, the first, which
compiles, is left out.
"""

from __future__ import annotations

import argparse
import functools
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl import envs
from jaxrl.agents import ppo
from jaxrl.evaluate import evaluator
from jaxrl.experiments import jax_setup
from jaxrl.program import Program, Stage, train
from jaxrl.rollout import rollout
from jaxrl.runs import files, provenance
from jaxrl.types import Env, HyperParams, Policy, PyTree

HP = ppo.Hypers(lr=3e-4, lr_end=1.0, max_grad_norm=0.5)
SIZES: dict[str, Any] = {
    "num_envs": 64, "num_steps": 32, "minibatches": 8, "epochs": 4, "actor": (64, 64),
    "critic": (64, 64), "orthogonal": False, "normalise_obs": True, "resets": 1,
}  # fmt: skip


def clocks() -> np.ndarray:
    return np.array([time.process_time(), time.perf_counter()])


def jaxrl(cfg: ppo.Config, env: Env, seed: int) -> dict[str, float]:
    agent = ppo.make(cfg, env.spec)
    source = rollout(env, agent, cfg.num_envs, cfg.num_steps, resets=cfg.resets)
    stage = Stage(name="agent", learner=agent, source=source, updates=cfg.updates)
    hp = HyperParams(jax.tree.map(jnp.float32, HP), env.params)
    args = (jax.random.key(seed), hp, {})
    start = clocks()
    run = jax.jit(train(Program((stage,)))).lower(*args).compile()
    compiled = clocks()
    result = jax.block_until_ready(run(*args))
    spent = clocks() - compiled
    outcome = play(env, agent, result.states["agent"], hp)
    return outcome | speeds(cfg.total_steps, spent, compiled - start)


def brax(cfg: ppo.Config, env: Env, seed: int, task: str) -> dict[str, float]:
    from brax import envs as theirs
    from brax.training.agents.ppo import networks
    from brax.training.agents.ppo import train as peer

    if not hasattr(jax, "device_put_replicated"):  # removed from JAX, but called by brax
        jax.device_put_replicated = lambda tree, devices: jax.tree.map(  # type: ignore[attr-defined]
            lambda x: jnp.stack([jnp.asarray(x)] * len(devices)), tree
        )
    looks = []
    factory = functools.partial(
        networks.make_ppo_networks,
        policy_hidden_layer_sizes=cfg.actor,
        value_hidden_layer_sizes=cfg.critic,
        activation=jnp.tanh,
        distribution_type="normal",
        noise_std_type="log",
    )
    make_policy, params, _ = peer.train(
        environment=theirs.get_environment(task, backend="spring"),
        num_timesteps=cfg.total_steps,
        max_devices_per_host=1,
        num_envs=cfg.num_envs,
        episode_length=env.spec.max_steps,
        learning_rate=HP.lr,
        entropy_cost=HP.entropy_weight,
        discounting=HP.gamma,
        unroll_length=cfg.num_steps,
        batch_size=cfg.num_envs // cfg.minibatches,
        num_minibatches=cfg.minibatches,
        num_updates_per_batch=cfg.epochs,
        normalize_observations=True,
        clipping_epsilon=HP.clip,
        gae_lambda=HP.lam,
        max_grad_norm=HP.max_grad_norm,
        vf_loss_coefficient=HP.value_weight,
        network_factory=factory,
        seed=seed,
        num_evals=5,
        run_evals=False,
        policy_params_fn=lambda step, *_: looks.append((step, clocks())),
    )
    mode = make_policy(params, deterministic=True)

    def act(state, hp, obs, start, memory, noise, explore):
        return jnp.clip(mode(obs, jax.random.PRNGKey(0))[0], -1.0, 1.0), memory, {}

    (_, begin), (first, compiled), *_, (last, end) = looks
    rate = (end - compiled) / (last - first)
    outcome = play(env, Policy(act=act), (), HyperParams(None))
    return outcome | speeds(1, rate, compiled - begin - rate * first)


def play(env: Env, policy: Policy, state: PyTree, hp: PyTree) -> dict[str, float]:
    episodes = jax.jit(evaluator(env, policy, 128))(state, hp, {}, jax.random.key(1))
    return {"return": float(jnp.mean(episodes.returns))}


def speeds(steps: int, spent: np.ndarray, compiling: np.ndarray) -> dict[str, float]:
    return {
        "steps_per_cpu_s": float(steps / spent[0]),
        "steps_per_s": float(steps / spent[1]),
        "compile_cpu_s": float(compiling[0]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="PPO beside brax's own")
    parser.add_argument("--task", default="hopper")
    parser.add_argument("--steps", type=int, default=1_000_000)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    jax_setup.start()
    env = envs.make(f"brax:{args.task}")
    window = SIZES["num_envs"] * SIZES["num_steps"]
    steps = -(-args.steps // (4 * window)) * 4 * window  # a multiple of brax's four segments
    cfg, rows = ppo.Config(total_steps=steps, **SIZES), []
    print(
        f"{args.task}, {steps:,} steps\nseed  who      return  steps/CPU s   steps/s  compile CPU s"
    )
    for seed in range(args.seeds):
        for name, run in (("brax", functools.partial(brax, task=args.task)), ("jaxrl", jaxrl)):
            row = run(cfg, env, seed)
            rows.append({"seed": seed, "who": name} | row)
            print(
                f"{seed:>4}  {name:<6} {row['return']:>8.1f} {row['steps_per_cpu_s']:>12,.0f} "
                f"{row['steps_per_s']:>9,.0f} {row['compile_cpu_s']:>14.1f}",
                flush=True,
            )
    if args.json:
        about = {"task": args.task, "steps": steps, "versions": provenance.versions()}
        files.write_json(args.json, about | {"rows": rows})


if __name__ == "__main__":
    main()
