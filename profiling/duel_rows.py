"""The rows of `profiling/duel.py`: tasks of equal size for jaxrl and its peers."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

OFFLINE = {"obs": 11, "act": 3}  # hopper's sizes
STEPS = 200_000  # environment steps of a member and launch


@dataclasses.dataclass(frozen=True)
class Side:
    """One side of a row.

    Attributes:
      env: the virtual environment; None for this one.
      source: the peer whose folder `file` is in; None if it is installed.
      checkout: of an earlier version of this project, whose own worker runs; None for this one.
    """

    name: str
    worker: str
    sizes: dict[str, Any]
    env: str | None = None
    source: str | None = None
    file: str | None = None
    checkout: str | None = None


def ours(agent: str, members: int = 1, updates: int = 100, **sizes: Any) -> Side:
    more = {"agent": agent, "members": members, "updates": updates}
    return Side("jaxrl", "duel_ours.py", sizes | more)


def rejax(algorithm: str, env: str, members: int = 1, steps: int = STEPS, **options: Any) -> Side:
    sizes = {"algorithm": algorithm, "env": env, "members": members, "steps": steps}
    return Side("rejax", "duel_rejax.py", sizes | {"options": options}, "rejax")


def purejaxql(file: str, members: int = 1, **config: Any) -> Side:
    sizes = {"members": members, "config": PUREJAXQL | config}
    return Side("purejaxql", "duel_purejax.py", sizes, "purejax", "purejaxql", f"purejaxql/{file}")


def purejaxrl(file: str, **config: Any) -> Side:
    sizes = {"members": 1, "config": config}
    return Side("purejaxrl", "duel_purejax.py", sizes, "purejax", "purejaxrl", f"purejaxrl/{file}")


def unifloral(kind: str, members: int = 1, updates: int = 100) -> Side:
    sizes = OFFLINE | {"kind": kind, "members": members, "updates": updates}
    return Side(
        "unifloral", "duel_unifloral.py", sizes, "offline", "unifloral", f"algorithms/{kind}.py"
    )


PUREJAXQL = {
    "ENV_KWARGS": {},
    "EPS_START": 1.0,
    "EPS_FINISH": 0.2,
    "EPS_DECAY": 0.2,
    "NORM_INPUT": False,
    "NORM_TYPE": "layer_norm",
    "LR": 1e-4,
    "MAX_GRAD_NORM": 10,
    "LR_LINEAR_DECAY": True,
    "REW_SCALE": 0.1,
    "GAMMA": 0.99,
    "LAMBDA": 0.95,
    "TEST_DURING_TRAINING": False,
    "WANDB_MODE": "disabled",
}
WINDOW = 32 * 64
MINATAR = {
    "total_steps": 10**9,
    "num_envs": 128,
    "num_steps": 32,
    "minibatches": 32,
    "epochs": 2,
    "conv": [16],
    "hidden": [128],
}


def pqn(width: int, members: int = 1) -> tuple[Side, ...]:
    """CartPole-v1, two layers of `width` units, 32 x 64 steps, 16 minibatches x 4 epochs."""
    updates = max(STEPS // WINDOW // members, 4)
    steps = updates * WINDOW
    config = {"total_steps": 10**9, "hidden": [width, width]}
    theirs = {
        "ENV_NAME": "CartPole-v1",
        "TOTAL_TIMESTEPS": steps,
        "TOTAL_TIMESTEPS_DECAY": steps,
        "NUM_ENVS": 32,
        "NUM_STEPS": 64,
        "NUM_MINIBATCHES": 16,
        "NUM_EPOCHS": 4,
        "HIDDEN_SIZE": width,
        "NUM_LAYERS": 2,
    }
    options = {
        "num_envs": 32,
        "num_steps": 64,
        "num_minibatches": 16,
        "num_epochs": 4,
    }
    own = ours("pqn", members, updates, env="CartPole-v1", config=config)
    peer = rejax("PQN", "CartPole-v1", members, steps, **options)  # 64 units, not configurable
    others = (purejaxql("pqn_gymnax.py", members, **theirs),)
    return (own, peer, *others) if width == 64 else (own, *others)


def breakout(members: int = 1) -> tuple[Side, ...]:
    """Breakout-MinAtar, 16 features and 128 units, 128 x 32 steps, 32 minibatches x 2 epochs."""
    window = 128 * 32
    updates = max(8 // members, 2)
    theirs = {
        "ENV_NAME": "Breakout-MinAtar",
        "TOTAL_TIMESTEPS": updates * window,
        "TOTAL_TIMESTEPS_DECAY": updates * window,
        "NUM_ENVS": 128,
        "NUM_STEPS": 32,
        "NUM_MINIBATCHES": 32,
        "NUM_EPOCHS": 2,
    }
    return (
        ours("pqn", members, updates, env="Breakout-MinAtar", config=MINATAR),
        purejaxql("pqn_minatar.py", members, **theirs),
    )


def ppo() -> tuple[Side, ...]:
    """CartPole-v1, two networks of 64 x 64 units, 4 minibatches x 4 epochs."""
    steps = 128 * 4 * 200
    config = {
        "total_steps": 10**9,
        "num_envs": 4,
        "num_steps": 128,
        "minibatches": 4,
        "epochs": 4,
        "actor": [64, 64],
        "critic": [64, 64],
    }
    options = {"num_envs": 4, "num_steps": 128, "num_minibatches": 4, "num_epochs": 4}
    theirs = {
        "LR": 2.5e-4,
        "NUM_ENVS": 4,
        "NUM_STEPS": 128,
        "TOTAL_TIMESTEPS": steps,
        "UPDATE_EPOCHS": 4,
        "NUM_MINIBATCHES": 4,
        "GAMMA": 0.99,
        "GAE_LAMBDA": 0.95,
        "CLIP_EPS": 0.2,
        "ENT_COEF": 0.01,
        "VF_COEF": 0.5,
        "MAX_GRAD_NORM": 0.5,
        "ACTIVATION": "tanh",
        "ENV_NAME": "CartPole-v1",
        "ANNEAL_LR": True,
        "DEBUG": False,
    }
    return (
        ours("ppo", 1, 200, env="CartPole-v1", config=config),
        rejax("PPO", "CartPole-v1", 1, steps, **options),
        purejaxrl("ppo.py", **theirs),
    )


def brax(task: str = "hopper") -> tuple[Side, ...]:
    """brax's physics (spring), 64 x 32 steps, 8 minibatches x 4 epochs, networks of 64 x 64 tanh.

    brax's own PPO recomputes advantages in every minibatch, shuffles whole segments of a window,
    and resets episodes to states drawn once.
    """
    config = {
        "total_steps": 10**9,
        "num_envs": 64,
        "num_steps": 32,
        "minibatches": 8,
        "epochs": 4,
        "actor": [64, 64],
        "critic": [64, 64],
        "orthogonal": False,
        "normalise_obs": True,
        "resets": 1,
    }
    return (
        ours("ppo", 1, 40, env=f"brax:{task}", config=config),
        Side("brax", "duel_brax.py", {"task": task, "updates": 40}),
    )


def dqn_rejax(members: int = 1) -> tuple[Side, ...]:
    """CartPole-v1 at rejax's sizes: 10 environments, 5 gradient steps on 100 rows per 10 steps."""
    steps = max(20_000 // members, 10_000)  # of which the first 1,000 fill rejax's buffer
    config = {
        "total_steps": 10**9,
        "num_envs": 10,
        "num_steps": 1,
        "gradient_steps": 5,
        "batch_size": 100,
        "capacity": 50_000,
        "warmup": 1_000,
        "target_every": 1,
        "hidden": [64, 64],
    }
    options = {
        "agent_kwargs": {"activation": "relu"},
        "num_envs": 10,
        "num_epochs": 5,
        "batch_size": 100,
        "buffer_size": 50_000,
        "fill_buffer": 1_000,
        "polyak": 0.98,
    }
    return (
        ours("dqn", members, steps // 10, env="CartPole-v1", config=config),
        rejax("DQN", "CartPole-v1", members, steps, **options),
    )


def dqn() -> tuple[Side, ...]:
    """CartPole-v1 at purejaxrl's sizes: 10 environments, one gradient step per 10 steps."""
    steps = 100_000
    config = {
        "total_steps": 10**9,
        "num_envs": 10,
        "num_steps": 1,
        "gradient_steps": 1,
        "batch_size": 128,
        "capacity": 10_000,
        "warmup": 10_000,
        "target_every": 50,
        "double": False,
        "hidden": [120, 84],
    }
    theirs = {
        "NUM_ENVS": 10,
        "BUFFER_SIZE": 10_000,
        "BUFFER_BATCH_SIZE": 128,
        "TOTAL_TIMESTEPS": steps,
        "EPSILON_START": 1.0,
        "EPSILON_FINISH": 0.05,
        "EPSILON_ANNEAL_TIME": 25e4,
        "TARGET_UPDATE_INTERVAL": 500,
        "LR": 2.5e-4,
        "LEARNING_STARTS": 1_000,
        "TRAINING_INTERVAL": 10,
        "LR_LINEAR_DECAY": False,
        "GAMMA": 0.99,
        "TAU": 1.0,
        "ENV_NAME": "CartPole-v1",
        "WANDB_MODE": "disabled",
    }
    return (
        ours("dqn", 1, steps // 10, env="CartPole-v1", config=config),
        purejaxrl("dqn.py", **theirs),
    )


def sac() -> tuple[Side, ...]:
    """Pendulum-v1, networks of 2 x 256 units, batches of 256, one gradient step per step."""
    steps = 1_000
    config = {
        "total_steps": 10**8,
        "num_envs": 1,
        "num_steps": 1,
        "gradient_steps": 1,
        "batch_size": 256,
        "capacity": 50_000,
        "warmup": 1_000,
        "hidden": [256, 256],
    }
    options = {
        "hidden_layer_sizes": (256, 256),
        "num_envs": 1,
        "num_epochs": 1,
        "batch_size": 256,
        "buffer_size": 50_000,
        "fill_buffer": 1_000,
    }
    return (
        ours("sac", 1, steps, env="Pendulum-v1", config=config),
        rejax("SAC", "Pendulum-v1", 1, 2 * steps, **options),
    )


def offline(agent: str, kind: str, members: int = 1, updates: int = 200) -> tuple[Side, ...]:
    """Random rows of hopper's sizes, networks of 2 x 256 units, batches of 256."""
    updates = max(updates // members, 10)
    config = {"updates": 10**6, "hidden": [256, 256], "batch_size": 256}
    return (
        ours(agent, members, updates, config=config, **OFFLINE),
        unifloral(kind, members, updates),
    )


def denoising() -> tuple[Side, ...]:
    """OFQL against our own DQL with five steps: 3 x 256 units, time embeddings of 64."""
    config = {"updates": 10**6, "embedding": 64, "candidates": 50}
    one, five = (ours(agent, updates=50, config=config, **OFFLINE) for agent in ("ofql", "dql"))
    return one, dataclasses.replace(five, name="dql")


ROWS: dict[str, tuple[Side, ...]] = {
    "pqn": pqn(64),
    "pqn-m32": pqn(64, 32),
    "pqn-m256": pqn(64, 256),
    "pqn256": pqn(256),
    "breakout": breakout(),
    "breakout-m4": breakout(4),
    "ppo": ppo(),
    "ppo-hopper": brax(),
    "dqn": dqn(),
    "dqn-rejax": dqn_rejax(),
    "dqn-rejax-m8": dqn_rejax(8),
    "sac": sac(),
    "iql": offline("iql", "iql"),
    "iql-m8": offline("iql", "iql", 8),
    "td3bc": offline("td3bc", "td3_bc"),
    "td3bc-m8": offline("td3bc", "td3_bc", 8),
    "bc": offline("bc", "bc", updates=1000),
    "bc-m8": offline("bc", "bc", 8, updates=1000),
    "ofql": denoising(),
}


def sides(row: str, sources: dict[str, Path], before: Path | None = None) -> list[Side]:
    """The sides of a row for which there is a source, jaxrl first; its earlier version second."""
    found = []
    for side in ROWS[row]:
        if side.source is None:
            found.append(side)
            if before and len(found) == 1:
                checkout = str(before.resolve())
                found.append(dataclasses.replace(side, name="before", checkout=checkout))
        elif side.source in sources:
            file = str((sources[side.source] / (side.file or "")).resolve())
            found.append(dataclasses.replace(side, sizes=side.sizes | {"file": file}))
    return found
