"""Dataset collection with behaviour policies that the engine trains.

Levels, after those of D4RL:

    random          uniformly random actions
    medium          the first snapshot that is a third of the way from random to expert
    expert          the snapshot with the highest evaluation
    medium-replay   equal shares of all snapshots up to and including the medium one
    medium-expert   half and half
    noisy           the expert's greedy actions with noise, so much that its mean return is a stated
                    fraction of the way from random to expert: its success, where returns are 0 or 1

Policies act as in training, with exploration. Mazes, the lock and `reach:sparse` need no training.
In mazes a shortest-path controller (`jaxrl.envs.maze_walks`) acts, at the levels play, diverse,
expert and random; in the lock a guide (`jaxrl.envs.lock.guide`), at the levels guided, expert and
random; in `reach:sparse` a controller, at the levels expert, noisy and random.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl import drive, envs
from jaxrl.envs import lock, maze_walks, reach
from jaxrl.envs.datasets import Dataset, action_bounds
from jaxrl.errors import UserError
from jaxrl.evaluate import evaluator
from jaxrl.experiments.plan import Plan, normalisers
from jaxrl.experiments.progress import Display
from jaxrl.experiments.restore import prepare
from jaxrl.experiments.settings import Settings, resolve
from jaxrl.experiments.train_loop import PACE_S
from jaxrl.experiments.values import fill
from jaxrl.exploration import random_policy
from jaxrl.ope.targets import target
from jaxrl.policies import Trained
from jaxrl.ranges import bounded
from jaxrl.rollout import rollout
from jaxrl.runs import provenance
from jaxrl.teams import check_single
from jaxrl.types import (
    Array,
    Discrete,
    Env,
    HyperParams,
    Policy,
    PyTree,
    Source,
    TimeStep,
    Transition,
)

LEVELS = ("random", "medium", "medium-replay", "medium-expert", "expert", "noisy")
MAZE_LEVELS = ("random", *maze_walks.LEVELS)
REACH_LEVELS = ("random", "expert", "noisy")
LOCK_LEVELS = ("random", *lock.LEVELS)
EPISODES = 128  # per reference return
LARGEST = {"box": 3.0, "discrete": 1.0}  # spread of the noise of noisy experts, see `ope.targets`
HALVINGS = 12  # of the interval of spreads
ENVS, WINDOW = 16, 50  # parallel environments, and steps per call
PATIENCE = 1000  # longest wait, in steps, for the end of an episode without a time limit


@dataclasses.dataclass(frozen=True, eq=False)
class Actor:
    """A policy in an environment with observations (obs, simulator state), see `showing`.

    `stored` selects the part of the state that is recorded. All snapshots share the compiled
    programs.
    """

    env: Env
    policy: Policy
    stored: Callable[[PyTree], PyTree] = lambda state: state

    @functools.cached_property
    def source(self) -> Source:
        return rollout(self.env, self.policy, ENVS, WINDOW)

    @functools.cached_property
    def begin(self) -> Callable[..., PyTree]:
        """(key, policy state, hp, {}) -> initial state of the source."""
        return jax.jit(self.source.init)

    @functools.cached_property
    def go_on(self) -> Callable[..., tuple[PyTree, Transition]]:
        """(source state, policy state, hp, key, i) -> (source state, Transition [WINDOW, ENVS])."""

        @jax.jit
        def next(src: PyTree, state: PyTree, hp: PyTree, key: Array, i: Array) -> PyTree:
            src, batch, _ = self.source.next(src, state, hp, {}, key, i)
            t = batch.transitions
            extras: dict[str, Any] = {"state": tuple(jax.tree.leaves(self.stored(t.obs[1])))}
            if "log_prob" in t.extras:
                extras["log_prob"] = t.extras["log_prob"]
            return src, t._replace(obs=t.obs[0], next_obs=t.next_obs[0], extras=extras)

        return next

    @functools.cached_property
    def episodes(self) -> Callable[..., Any]:
        """(policy state, hp, {}, key) -> `Episodes` [EPISODES] of the greedy policy."""
        return jax.jit(evaluator(self.env, self.policy, EPISODES))


class Behaviour(NamedTuple):
    """An actor with the state and hyperparameters of the policy."""

    actor: Actor
    state: PyTree = ()
    hp: PyTree = ()


@dataclasses.dataclass(frozen=True)
class ScriptOptions:
    """Options for datasets of controllers, in addition to those of `data make`."""

    seed: int = bounded(0, least=0)


@dataclasses.dataclass(frozen=True)
class LockOptions(ScriptOptions):
    """Options for datasets of the lock, in addition to --level and --steps."""

    env_options: dict[str, Any] = dataclasses.field(default_factory=dict)


def make(
    env: str,
    levels: Sequence[str],
    steps: int,
    agent: str | None,
    options: Mapping[str, Any],
    success: float = 0.5,
) -> Iterator[tuple[str, Dataset]]:
    """Yields (level, `Dataset` of `steps` rows) for each level.

    Args:
      agent: name of the agent to train; None: SAC for boxes, PPO for discrete actions.
      options: further training options, see `settings.resolve`; mazes and `reach:sparse` accept
        only `seed`, the lock `seed` and `env_options`.
      success: return of the noisy expert, from 0 for random to 1 for expert.

    Raises:
      UserError: unknown level or invalid request, before training.
    """
    known = MAZE_LEVELS if env.startswith("maze:") else LEVELS
    known = REACH_LEVELS if env == "reach:sparse" else known
    known = LOCK_LEVELS if env == "lock" else known
    for level in levels:
        if level not in known:
            raise UserError(f"{env} has the levels {', '.join(known)}; not {level!r}")
    if env.startswith("maze:") or env == "reach:sparse":
        training, seed = {}, fill(ScriptOptions, options).seed
        behaviours = of_reach() if env == "reach:sparse" else of_maze(env, levels)
    elif env == "lock":
        own = fill(LockOptions, options)
        training, seed = {"env_options": own.env_options}, own.seed
        behaviours = of_lock(envs.make(env, **own.env_options))
    else:
        settings = _settings(env, agent, options)
        seed = settings.options.seed
        if names := normalisers(settings.options.env_options):
            raise UserError(
                f"datasets hold raw observations and rewards: remove {names[0]} from --env-options"
            )
        ready = prepare(settings)
        behaviours, training = of_training(ready), {"training": ready.identity}
    key_random, key_expert, key_rows = jax.random.split(jax.random.key(seed), 3)
    reference: dict[str, float] = {
        "random": mean_return(behaviours["random"][0], key_random),
        "expert": mean_return(behaviours["expert"][0], key_expert),
    }
    meta = {
        "env": env,
        "source": "jaxrl data make",
        "reference": reference,
        "reference_episodes": EPISODES,
        "seed": seed,
        "versions": provenance.versions(),
        **action_bounds(behaviours["random"][0].actor.env.spec),
        **training,
    }
    for level in levels:
        told: dict[str, Any] = {"level": level}
        if level == "noisy":
            floor = reference["random"]
            wanted = floor + success * (reference["expert"] - floor)
            noisy, spread, mean = with_noise(behaviours["expert"][0], wanted, key_expert)
            behaviours["noisy"] = [noisy]
            told |= {"success": success, "return": mean, "spread": spread}
        found = behaviours[level]
        ends = np.linspace(0, steps, len(found) + 1).round().astype(int)
        keys = jax.random.split(jax.random.fold_in(key_rows, known.index(level)), len(found))
        each = zip(found, keys, np.diff(ends), strict=True)
        parts = [collect(who, key, rows) for who, key, rows in each if rows]
        yield level, Dataset(join(parts), meta | told)


def _settings(env: str, agent: str | None, options: Mapping[str, Any]) -> Settings:
    """Settings of the training run; the default agent depends on the action space."""
    if agent is None:
        discrete = isinstance(envs.make(env).spec.action, Discrete)
        agent = "ppo" if discrete else "sac"
    settings = resolve(agent, {**options, "env": env})
    own = settings.options  # levels are chosen by evaluations of a single member
    own = dataclasses.replace(own, interim_episodes=own.eval_episodes)
    return dataclasses.replace(settings, options=own)


# --- policies ------------------------------------------------------------------------------------


def of_maze(name: str, levels: Sequence[str]) -> dict[str, list[Behaviour]]:
    """The controller of each level; uniformly random actions start at the maze's own start."""
    layout = name.removeprefix("maze:")
    policy = maze_walks.controller(layout)

    def act(state, hp, obs, start, memory, noise, explore):
        return policy.act(state, hp, obs[1], start, memory, noise, explore)

    guided = dataclasses.replace(policy, act=act)
    found = {
        level: [Behaviour(Actor(showing(maze_walks.make(layout, level)), guided, lambda s: s.maze))]
        for level in {*levels, "expert"} - {"random"}
    }
    maze = envs.make(name)
    return found | {"random": [at_random(maze)]}


def of_reach() -> dict[str, list[Behaviour]]:
    """The controller of `reach:sparse`, and uniformly random actions."""
    env, policy = envs.make("reach:sparse"), reach.controller()

    def act(state, hp, obs, start, memory, noise, explore):
        return policy.act(state, hp, obs[0], start, memory, noise, explore)

    expert = Behaviour(Actor(showing(env), dataclasses.replace(policy, act=act)))
    return {"random": [at_random(env)], "expert": [expert]}


def with_noise(
    expert: Behaviour, wanted: float, key: Array, halvings: int = HALVINGS
) -> tuple[Behaviour, float, float]:
    """The greedy expert with so much noise that its mean return is `wanted`.

    The spread of the noise (`jaxrl.ope.targets`) is found by halving an interval: returns are taken
    to fall with it.

    Returns:
      (behaviour, spread, mean return of `EPISODES` episodes).
    """
    actor, spec = expert.actor, expert.actor.env.spec
    policy = target(spec).policy(actor.policy)
    noisy = Behaviour(dataclasses.replace(actor, policy=policy))
    at = lambda spread: noisy._replace(
        state=(Trained(expert.state, expert.hp), jnp.float32(spread))
    )
    low, high = 0.0, LARGEST["discrete" if isinstance(spec.action, Discrete) else "box"]
    spread, mean = low, mean_return(at(low), key)
    for _ in range(halvings):
        middle = (low + high) / 2
        found = mean_return(at(middle), key)
        if abs(found - wanted) <= abs(mean - wanted):
            spread, mean = middle, found
        low, high = (middle, high) if found > wanted else (low, middle)
    return at(spread), spread, mean


def of_lock(env: Env) -> dict[str, list[Behaviour]]:
    """The guide of each level."""

    def behaviour(level: str) -> Behaviour:
        policy = lock.guide(env, level)

        def act(state, hp, obs, start, memory, noise, explore):
            return policy.act(state, hp, obs[1], start, memory, noise, explore)

        return Behaviour(Actor(showing(env), dataclasses.replace(policy, act=act)))

    return {level: [behaviour(level)] for level in lock.LEVELS} | {"random": [at_random(env)]}


def at_random(env: Env) -> Behaviour:
    """The behaviour with uniformly random actions."""
    return Behaviour(Actor(showing(env), random_policy(env.spec.action)))


def of_training(ready: Plan) -> dict[str, list[Behaviour]]:
    """Behaviours of all levels from one training run, which keeps a snapshot per evaluation.

    Prints what is trained, and the progress.

    Raises:
      UserError: more than one member or stage, an environment of the host, or no snapshot with a
        finite return.
    """
    settings = ready.settings
    if ready.env.host is not None:
        raise UserError(f"data make collects on devices; {ready.env.spec.name} runs on the host")
    if ready.members != 1 or len(ready.program.stages) != 1:
        raise UserError("data make needs one member and an agent that trains in a single stage")
    hp = jax.tree.map(lambda x: x[0], ready.hp.agent)
    env, agent = ready.env, ready.algorithm.make(settings.cfg, ready.env.spec)

    def act(state, hp, obs, start, memory, noise, explore):
        return agent.act(state, hp, obs[0], start, memory, noise, explore)

    actor = Actor(showing(env), Policy(act=act, memory=agent.memory, noise=agent.noise))
    random = at_random(env)
    states, means = zip(*train(ready), strict=True)
    snapshots = [Behaviour(actor, state, hp) for state in states]
    if not np.isfinite(means).any():
        raise UserError(f"no evaluation of {settings.agent} is finite: change options of the agent")
    returns = np.where(np.isfinite(means), means, -np.inf)
    best = int(np.argmax(returns))
    floor = mean_return(random, jax.random.fold_in(ready.key, settings.options.seed))
    enough = returns >= floor + (returns[best] - floor) / 3
    medium = int(np.argmax(enough))
    return {
        "random": [random],
        "medium": [snapshots[medium]],
        "medium-replay": snapshots[: medium + 1],
        "medium-expert": [snapshots[medium], snapshots[best]],
        "expert": [snapshots[best]],
    }


def train(ready: Plan) -> list[tuple[PyTree, float]]:
    """(learner state, mean return) at each evaluation of a run of one member and one stage."""
    settings, (stage,) = ready.settings, ready.program.stages
    ends, found = {first + count for first, count in stage.chunks}, []
    display = Display(ready.total, unit=ready.unit)
    display.say(
        f"training {settings.agent} on {settings.options.env} for {ready.total:,} {ready.unit}; "
        "the options of jaxrl train change that, such as --agent.total-steps"
    )
    hooks = drive.Hooks(
        pace=PACE_S,
        snapshot=lambda stage, step, last: step in ends,
        compiling=display.compiling,
        compiled=lambda made: display.compiled(made.what, made.seconds, made.temporary_bytes),
    )
    with display:
        for report in drive.drive(
            ready.program, ready.layout, ready.key, ready.hp, {}, ids=ready.seeds, hooks=hooks
        ):
            done, mean = ready.env_steps(0, report.step), None
            if report.evals is not None and report.snapshot is not None:
                mean = float(np.mean(report.evals.returns))
                found.append((jax.tree.map(lambda x: x[0], report.snapshot.member.learner), mean))
            display.advance(done, None if mean is None else {"return": mean})
    return found


def showing(env: Env) -> Env:
    """`env` with observations (obs, state), so that rollouts record both.

    Raises:
      UserError: the environment has a team, action masks, or an observation for critics alone,
        which datasets do not keep.
    """
    check_single(env.spec, "data make")
    if env.spec.masked:
        raise UserError(
            f"datasets have no action masks; {env.spec.name} has: add --env-options masks=false"
        )
    if env.spec.critic_shape is not None:
        raise UserError(
            f"datasets have one observation per row; {env.spec.name} has one for critics too: "
            "leave out hide_from or critic_obs"
        )

    def reset(key: Array, params: PyTree) -> tuple[PyTree, PyTree]:
        state, obs = env.reset(key, params)
        return state, (obs, state)

    def step(key: Array, state: PyTree, action: Array, params: PyTree) -> tuple[PyTree, TimeStep]:
        state, ts = env.step(key, state, action, params)
        return state, ts._replace(next_obs=(ts.next_obs, state))

    def persist(last: PyTree, fresh: PyTree, seen: PyTree) -> tuple[PyTree, PyTree]:
        assert env.persist is not None
        state, obs = env.persist(last, fresh, seen[0])
        return state, (obs, state)

    outlives = env.persist is not None
    return dataclasses.replace(
        env, reset=reset, step=step, persist=persist if outlives else None, array_obs=False
    )


# --- rollouts -----------------------------------------------------------------------------------


def mean_return(behaviour: Behaviour, key: Array) -> float:
    """Mean undiscounted return of `EPISODES` episodes of the greedy policy."""
    actor, state, hp = behaviour
    return float(np.mean(actor.episodes(state, HyperParams(hp), {}, key).returns))


def collect(behaviour: Behaviour, key: Array, steps: int) -> Transition:
    """`steps` rows [D] of complete episodes (the last may be cut), with simulator states.

    Each of the parallel environments finishes the episodes that started within the first
    steps / ENVS steps, so that short episodes are not overrepresented.
    """
    actor, state, hp = behaviour
    share = -(-steps // ENVS)
    windows = -(-(share + (actor.env.spec.max_steps or PATIENCE)) // WINDOW)
    key_begin, key_steps = jax.random.split(key)
    src = actor.begin(key_begin, state, HyperParams(hp), {})
    parts = []
    for i in range(windows):
        key = jax.random.fold_in(key_steps, i)
        src, window = actor.go_on(src, state, HyperParams(hp), key, jnp.int32(i))
        parts.append(jax.device_get(window))
    played = jax.tree.map(lambda *x: np.concatenate(x), *parts)  # [T, N, ...]
    rows = []
    for n in range(ENVS):
        begins = np.flatnonzero(played.start[:, n])
        late = begins[begins >= share]
        end = late[0] if late.size else None
        rows.append(jax.tree.map(lambda x: x[:end, n], played))  # noqa: B023
    return jax.tree.map(lambda x: x[:steps], join(rows))


def join(parts: Sequence[Transition]) -> Transition:
    """Concatenates parts; an episode that is incomplete at the end of a part is truncated there."""
    t = jax.tree.map(lambda *x: np.concatenate(x), *parts)
    cut = np.append(t.start[1:], False) & ~t.terminated
    return t._replace(truncated=t.truncated | cut)
