"""How far guidance moves synthetic trajectories towards a policy, and at what cost in truth.

    python -m jaxrl.experiments.studies.guidance --env dmsd --data FILE --out DIR

One diffusion model, one ensemble of one-step models and one IQL policy are learned from the data.
Then trajectories of one length are made: by the diffusion model with growing coefficients of
guidance, 0 being unguided, and by the policy acting step by step in the ensemble. Of the steps of
each kind, and of windows of the data:

    log π   mean log-probability of their actions under the policy
    error   mean (s' - f(s, a))² / Var(Δs), f the environment itself, from each step's own state and
            action; 1 is the error of a model that knows the mean change only
    first, last   the same of first and last steps only
    drift   how far the last state is from where the environment is led by the same actions from the
            first state: root mean square over elements and trajectories, in deviations of the data

Elements of observations that the environment draws at random are left out.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from jaxrl import dynamics, envs
from jaxrl.agents import iql, pgd, pgd_iql
from jaxrl.envs import datasets, dmsd, maze
from jaxrl.experiments import jax_setup
from jaxrl.program import Program, train
from jaxrl.runs import files
from jaxrl.runs.plots import COLOURS
from jaxrl.sources import below, take
from jaxrl.trajectories import codec
from jaxrl.types import Array, Env, HyperParams, PyTree, Transition
from jaxrl.windows import find

COEFFICIENTS = (0.0, 0.01, 0.03, 0.1, 0.3, 1.0)
CONFIG = pgd_iql.Config(
    updates=3_000,
    hidden=(64, 64),
    trajectories=256,
    model_updates=6_000,
    model_features=16,
    model_ema_every=1,
    ensemble_hidden=(64, 64),
    ensemble_epochs=30,
)


class World(NamedTuple):
    """What a study has to know of an environment.

    Attributes:
      state: an observation [*obs] -> the simulator's state.
      exact: elements of observations that follow from state and action.
      shown: two elements to be drawn against each other.
    """

    state: Callable[[Array], PyTree]
    exact: slice
    shown: tuple[int, int]


def world(name: str) -> World:
    """Of DMSD, whose targets may be drawn again, and of mazes."""
    if name == "dmsd":
        at = lambda obs: dmsd.DmsdState(obs[:2], obs[2:4], obs[4:], jnp.int32(0))
        return World(at, slice(0, 4), (0, 1))
    size = np.array(maze.parse(name.removeprefix("maze:")).walls.shape, np.float32)
    position = lambda obs: obs + size / 2  # the inverse of `maze.observe`
    return World(lambda obs: maze.MazeState(position(obs), jnp.int32(0)), slice(0, 2), (1, 0))


# --- trajectories --------------------------------------------------------------------------------


def learn(cfg: pgd_iql.Config, env: Env, data: Transition, key: Array) -> dict[str, PyTree]:
    """States of the diffusion model, the ensemble and the policy, by the names of their stages."""
    models = [
        dataclasses.replace(cfg, synthetic=kind) for kind in ("unguided", "autoregressive", "none")
    ]
    stages = [pgd_iql.program(each, env, evals=1, episodes=1).stages[0] for each in models]
    hp = HyperParams(jax.tree.map(jnp.float32, pgd_iql.Hypers(model_lr=2e-3)))
    return jax.jit(train(Program(tuple(stages))))(key, hp, data).states


def real(cfg: pgd_iql.Config, data: Transition, key: Array) -> Transition:
    """Windows of the data [n, T]."""
    places = find(data, cfg.horizon, cfg.stride)
    begin = places.order[below(key, cfg.trajectories, places.learned)]
    return take(data, begin[:, None] + jnp.arange(cfg.horizon - 1)[None])


def sampled(
    cfg: pgd_iql.Config, env: Env, states: dict[str, PyTree], key: Array, hp: pgd_iql.Hypers
) -> tuple[Transition, Array]:
    """Trajectories of the diffusion model, and which of their steps are in use [n, T]."""
    sample = pgd.sampler(cfg, env.spec, iql.log_prob(cfg, env.spec))
    x = sample(states["diffusion"], states["agent"], hp, key, cfg.trajectories, jnp.float32(1))
    made, used = codec(env.spec).decode(x)
    return jax.tree.map(lambda x: x[:, :-1], (made, used))


def rolled(
    cfg: pgd_iql.Config, env: Env, states: dict[str, PyTree], data: Transition, key: Array
) -> tuple[Transition, Array]:
    """The policy in the ensemble, from rows of the data: steps [n, T], and which are in use."""
    agent, hp = iql.make(cfg, env.spec), pgd_iql.Hypers()
    model = dynamics.model(pgd.stepwise(cfg), env.spec)
    key_rows, key_steps = jax.random.split(key)
    n = cfg.trajectories
    rows = below(key_rows, n, jnp.int32(data.reward.shape[0]))

    def act(carry: PyTree, key: Array) -> tuple[PyTree, PyTree]:
        obs, alive = carry
        key_noise, key_step = jax.random.split(key)
        noise, start = agent.noise(key_noise, n), jnp.zeros(n, bool)
        action = agent.act(states["agent"], hp, obs, start, (), noise, True)[0]
        _, out = model.step(states, {}, (), obs, action, key_step)
        made = Transition(
            obs, action, out.reward, out.next_obs, out.terminated, out.truncated, start
        )
        return (out.next_obs, alive & ~out.terminated), (made, alive)

    carry = (data.obs[rows], jnp.ones(n, bool))
    steps = jax.lax.scan(act, carry, jax.random.split(key_steps, cfg.horizon - 1))[1]
    return jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), steps)


# --- measures ------------------------------------------------------------------------------------


def truth(env: Env, world: World, obs: Array, action: Array) -> Array:
    """Where the environment goes from observations [n, *obs]."""
    key = jax.random.key(0)  # what it draws is left out
    one = lambda obs, action: env.step(key, world.state(obs), action, env.params)[1].next_obs
    return jax.vmap(one)(obs, action)


def measure(
    env: Env, world: World, data: Transition, log_prob: Any, t: Transition, used: Array
) -> dict[str, Array]:
    """The numbers of the table, of trajectories [n, T]."""
    exact = world.exact
    n, steps = t.reward.shape
    flat = lambda x: x.reshape(-1, *x.shape[2:])
    likely = log_prob(flat(t.obs), flat(t.action)).reshape(n, steps)
    change = jnp.var((data.next_obs - data.obs)[:, exact], 0)
    ahead = truth(env, world, flat(t.obs), flat(t.action)).reshape(t.obs.shape)
    # The successor of a termination is unknown to a model that learned to forget it.
    known = used & ~t.terminated
    off = jnp.mean((t.next_obs - ahead)[..., exact] ** 2 / change[None, None], -1)
    mean = lambda x, mask: jnp.sum(jnp.where(mask, x, 0.0)) / jnp.sum(mask)

    def follow(obs: Array, action: Array) -> tuple[Array, None]:
        return truth(env, world, obs, action), None

    end, _ = jax.lax.scan(follow, t.obs[:, 0], jnp.swapaxes(t.action, 0, 1))
    away = ((t.next_obs[:, -1] - end)[:, exact] / jnp.std(data.obs[:, exact], 0)[None]) ** 2
    return {
        "log_prob": mean(likely, used),
        "error": mean(off, known),
        "first": mean(off[:, 0], known[:, 0]),
        "last": mean(off[:, -1], known[:, -1]),
        "drift": jnp.sqrt(mean(jnp.mean(away, -1), known[:, -1])),
    }


# --- results -------------------------------------------------------------------------------------


def draw(
    path: Path, name: str, world: World, rows: dict[str, Any], shown: dict[str, Transition]
) -> None:
    """Error over log-probability, and some trajectories of each kind."""
    figure = Figure(figsize=(4 * (len(shown) + 1), 4.0), layout="constrained", dpi=120)
    FigureCanvasAgg(figure)
    axes = figure.add_subplot(1, len(shown) + 1, 1)
    guided = [row for kind, row in rows.items() if kind.startswith("guidance")]
    column = lambda key: [row[key] for row in guided]
    axes.plot(column("log_prob"), column("error"), "o-", color=COLOURS[0], label="diffusion")
    for kind, row in rows.items():
        if kind.startswith("guidance"):
            text = kind.removeprefix("guidance ")
            axes.annotate(text, (row["log_prob"], row["error"]), fontsize=8)
    lone = {"autoregressive": COLOURS[1], "data": "0.4"}
    for kind, colour in lone.items():
        axes.plot(rows[kind]["log_prob"], rows[kind]["error"], "s", color=colour, label=kind)
    axes.set(xlabel="log π of actions", ylabel="error of dynamics", title=name)
    axes.legend(frameon=False)
    x, y = world.shown
    every = np.asarray(shown["data"].obs).reshape(-1, shown["data"].obs.shape[-1])
    for i, (kind, t) in enumerate(shown.items()):
        axes = figure.add_subplot(1, len(shown) + 1, i + 2)
        axes.plot(every[:, x], every[:, y], ".", color="0.85", markersize=2)
        for path_of in np.asarray(t.obs[:40]):
            axes.plot(path_of[:, x], path_of[:, y], linewidth=0.7, color=COLOURS[0])
        low, high = every.min(0) - 0.3, every.max(0) + 0.3
        axes.set(title=kind, xlim=(low[x], high[x]), ylim=(low[y], high[y]), aspect="equal")
        if name.startswith("maze"):
            axes.invert_yaxis()  # rows count downwards
    files.atomic_write(path, lambda file: figure.savefig(file, format="png"))


def main() -> None:
    parser = argparse.ArgumentParser(description="Guidance: policy against truth")
    parser.add_argument("--env", default="dmsd", help="dmsd, or one of the mazes")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=20_000, help="of the data, from its beginning")
    parser.add_argument("--model-updates", type=int, default=CONFIG.model_updates)
    parser.add_argument("--model-features", type=int, default=CONFIG.model_features)
    parser.add_argument("--horizon", type=int, default=CONFIG.horizon)
    parser.add_argument("--coefficients", type=float, nargs="+", default=COEFFICIENTS)
    parser.add_argument("--normalise", action="store_true", help="the gradient of each trajectory")
    parser.add_argument("--denoised", action="store_true", help="gradients at denoised actions")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    jax_setup.start()
    cfg = dataclasses.replace(
        CONFIG,
        model_updates=args.model_updates,
        model_features=args.model_features,
        horizon=args.horizon,
        stride=args.horizon // 4,
        normalise_guidance=args.normalise,
        guide_denoised=args.denoised,
    )
    env, place = envs.make(args.env), world(args.env)
    whole = datasets.load(args.data).transitions._replace(extras={})
    data = jax.tree.map(lambda x: jnp.asarray(x[: args.rows]), whole)
    keys = jax.random.split(jax.random.key(args.seed), 4)
    states = learn(cfg, env, data, keys[0])
    policy = iql.log_prob(cfg, env.spec)

    @jax.jit
    def judged(states: dict[str, PyTree], t: Transition, used: Array) -> dict[str, Array]:
        log_prob = lambda obs, action: policy(states["agent"], pgd_iql.Hypers(), obs, action)
        return measure(env, place, data, log_prob, t, used)

    windows = real(cfg, data, keys[1])
    made = {"data": (windows, jnp.ones(windows.reward.shape, bool))}
    sample = jax.jit(lambda states, key, hp: sampled(cfg, env, states, key, hp))
    for coefficient in args.coefficients:
        hp = jax.tree.map(jnp.float32, pgd_iql.Hypers(guidance=coefficient))
        made[f"guidance {coefficient:g}"] = sample(states, keys[2], hp)
    roll = jax.jit(lambda states, key: rolled(cfg, env, states, data, key))
    made["autoregressive"] = roll(states, keys[3])

    count = int(find(data, cfg.horizon, cfg.stride).learned)
    print(f"{args.env}: {len(data.reward):,} rows, {count:,} windows of {cfg.horizon} steps")
    columns = ("log_prob", "error", "first", "last", "drift")
    print(f"{'':<16}" + "".join(f"{name:>10}" for name in columns))
    rows = {}
    for kind, (t, used) in made.items():
        found = rows[kind] = {k: float(v) for k, v in judged(states, t, used).items()}
        print(f"{kind:<16}" + "".join(f"{found[name]:>10.4g}" for name in columns), flush=True)
    name = args.env.replace(":", "-")
    files.write_json(
        args.out / f"guidance-{name}.json", {"settings": cfg, "windows": count, "rows": rows}
    )
    last = f"guidance {args.coefficients[-1]:g}"
    first = f"guidance {args.coefficients[0]:g}"
    shown = {kind: made[kind][0] for kind in ("data", first, last, "autoregressive")}
    draw(args.out / f"guidance-{name}.png", args.env, place, rows, shown)


if __name__ == "__main__":
    main()
