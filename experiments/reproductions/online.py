"""Experiments of agents that learn online: PQN and MDPO."""

from __future__ import annotations

from jaxrl.experiments.reproductions.record import Reproduction, each, study

# --- PQN -----------------------------------------------------------------------------------------

GAMES = ("Breakout", "Asterix", "Freeway", "Seaquest", "SpaceInvaders")
GAME = (
    "jaxrl train {agent} --env {game}-MinAtar --agent.total-steps {steps} --seeds {seeds} "
    "--out runs/{folder}/{agent}-{game}-{steps}"
)
CHAIN = (
    "jaxrl train pqn_rnn --env MemoryChain-bsuite --seeds {seeds} --out runs/pqn-memory/{length}"
)


def games(
    folder: str, agents: tuple[str, ...], names: tuple[str, ...], steps: int, seeds: int
) -> tuple[str, ...]:
    """Games of MinAtar with the agents' presets."""
    return each(GAME, folder=folder, agent=agents, game=names, steps=steps, seeds=seeds)


PQN = (
    Reproduction(
        "pqn-minatar",
        "pqn",
        "Without replay buffer and target network PQN solves games that need DQN otherwise.",
        games("pqn-minatar", ("pqn",), GAMES[:1], 1_000_000, 2),
        games("pqn-minatar", ("pqn",), GAMES, 10_000_000, 5),
        "learning curves; no table in the authors' code",
        minutes=2.75,
        full_minutes=498,
    ),
    Reproduction(
        "pqn-against-dqn",
        "pqn",
        "PQN is up to 50 times as fast as DQN at the same return, by wall time.",
        games("pqn-against-dqn", ("pqn", "dqn"), ("Breakout",), 200_000, 2),
        games("pqn-against-dqn", ("pqn", "dqn"), ("Breakout", "SpaceInvaders"), 10_000_000, 5),
        "up to 50 times",
        minutes=10.4,
        full_minutes=3_120,
    ),
    Reproduction(
        "pqn-stability",
        "pqn",
        "LayerNorm and an ℓ2 penalty make off-policy temporal differences converge.",
        study("baird --seeds 5 --out runs/pqn-stability"),
        study("baird --seeds 20 --updates 200000 --out runs/pqn-stability-full"),
        "Baird's counterexample converges with both",
        minutes=0.29,
        full_minutes=0.672,
    ),
    Reproduction(
        "pqn-memory",
        "pqn_rnn",
        "PQN with a recurrent network remembers the first observation of MemoryChain.",
        each(f"{CHAIN} --env-options memory_length={{length}}", length=10, seeds=4),
        each(f"{CHAIN} --preset 100", length=100, seeds=5),
        "learning curve, length 100",
        minutes=2.73,
        full_minutes=3.43,
    ),
)

# --- MDPO ----------------------------------------------------------------------------------------

RIVAL = (
    "jaxrl train {agent} --env {env} --preset {preset} --agent.total-steps {steps} --seeds 5 "
    "--out runs/mdpo-on-policy/{env:file}-{steps}-{agent}"
)
SCHEDULED = (
    "jaxrl train mdpo --env {env} --preset {preset} --agent.total-steps {steps} --seeds 5 "
    "--agent.step-sizes {rates} --out runs/mdpo-on-policy/{env:file}-{steps}-mdpo-{rates}"
)
LOADED = "brax:hopper"  # the preset with all implementation details
ENTROPIES = (
    "jaxrl sweep mdpo_offpolicy --env {env} --preset minimal --agent.total-steps {steps} --seeds 5 "
    "--sweep agent.entropic_index=1.0,1.2,1.4,1.6,1.8,2.0 --out runs/mdpo-off-policy/{env:file}"
)
SOFT = (
    "jaxrl train sac --env {env} --preset minimal --agent.total-steps {steps} --seeds 5 "
    "--out runs/mdpo-off-policy/sac-{env:file}"
)


def on_policy(env: str, preset: str, steps: int) -> tuple[str, ...]:
    """PPO and TRPO; MDPO with rates that fall with the step size, and with constant ones."""
    task = {"env": env, "preset": preset, "steps": steps}
    falling = each(f"{SCHEDULED} --agent.lr-end 0", rates="linear", **task)
    constant = each(f"{SCHEDULED} --agent.lr-end 1", rates="constant", **task)
    return (*each(RIVAL, agent=("ppo", "trpo"), **task), *falling, *constant)


def off_policy(env: str, steps: int) -> tuple[str, ...]:
    """SAC, and MDPO with six entropic indices."""
    return (*each(SOFT, env=env, steps=steps), *each(ENTROPIES, env=env, steps=steps))


MDPO = (
    Reproduction(
        "mdpo-on-policy",
        "mdpo",
        "On-policy MDPO is better than PPO and at least as good as TRPO.",
        on_policy("Pendulum-v1", "Pendulum-v1", 250_000),
        (
            *on_policy("Pendulum-v1", "Pendulum-v1", 1_000_000),
            *on_policy("Reacher-misc", LOADED, 1_000_000),
            *on_policy("Swimmer-misc", LOADED, 1_000_000),
            *on_policy("Swimmer-misc", LOADED, 10_000_000),
        ),
        "MuJoCo, 1e7 steps: Ant 5211 ± 43 against TRPO 4682 ± 278 and PPO 59 ± 133",
        minutes=2.53,
        full_minutes=59.3,
    ),
    Reproduction(
        "mdpo-off-policy",
        "mdpo_offpolicy",
        "Off-policy MDPO with a Tsallis entropy is at least as good as SAC.",
        off_policy("Pendulum-v1", 20_000),
        off_policy("brax:ant", 1_000_000),
        "Ant, minimal version: 2348 ± 338 (q = 2) against SAC 378 ± 33",
        minutes=5.6,
        full_minutes=313,
    ),
)
