"""Experiments that settle the papers' claims: what is claimed, and the commands that test it.

Each record has a small form, for a machine with a few cores, and the full form with the paper's
sizes. Commands contain seeds and data; those that make datasets or train bases come first. They
write below `runs/` and `data/`, and a command that was run before is skipped or continues. `jaxrl
report FOLDER` compares the runs of a folder. Verdicts are on the agents' pages in docs/agents.

Importing this file does not import JAX.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

Command = str
"""a line for a shell"""


class Reproduction(NamedTuple):
    """One claim and its experiment."""

    name: str
    agent: str
    claim: str
    small: tuple[Command, ...]
    full: tuple[Command, ...]
    minutes: float | None  # of the small form on two CPU cores, compiled; None: not measured
    published: str  # the paper's result, or what is known of it


DMSD = "data/DMSD-high-100000-train.npz"
"""dataset of NeoRL-2, which has to be fetched by hand; its documentation: docs/agents.md"""
MINATAR = ("Breakout", "Asterix", "Freeway", "Seaquest", "SpaceInvaders")
NONE_PUBLISHED = "none on this task"


def command(
    verb: str,
    agent: str,
    env: str,
    out: str,
    settings: Mapping[str, Any] | None = None,
    sweep: Mapping[str, Iterable[Any]] | None = None,
    **options: Any,
) -> Command:
    """`jaxrl VERB AGENT --env ENV --out runs/OUT` and options; `settings` are the agent's."""
    words = ["jaxrl", verb, agent, "--env", env]
    own = {f"agent.{name}": value for name, value in (settings or {}).items()}
    for name, value in (options | own).items():
        flag = f"--{name.replace('_', '-')}"
        values = value if isinstance(value, tuple) else (value,)
        if name == "base":
            words += [word for each in values for word in (flag, each)]
        elif value is True:
            words += [flag]
        else:
            words += [flag, *map(str, values)]
    for name, values in (sweep or {}).items():
        words += ["--sweep", f"{name}={','.join(map(str, values))}"]
    return " ".join([*words, "--out", f"runs/{out}"])


def dataset(env: str, level: str, rows: int, **settings: Any) -> tuple[str, Command]:
    """The path of a dataset of one level, and the command that makes it."""
    file = f"data/{env.replace(':', '-')}-{level}-{rows}.npz"
    own = [f"--agent.{name.replace('_', '-')} {value}" for name, value in settings.items()]
    words = ["jaxrl data make", env, "--level", level, "--steps", str(rows), *own, "--out", file]
    return file, " ".join(words)


def study(name: str, **options: Any) -> Command:
    """`python -m jaxrl.experiments.studies.NAME`."""
    words = [f"python -m jaxrl.experiments.studies.{name}"]
    for flag, value in options.items():
        words += [f"--{flag}"] if value is True else [f"--{flag} {value}"]
    return " ".join(words)


# --- PQN -----------------------------------------------------------------------------------------


def minatar(steps: int, seeds: int, games: Iterable[str] = MINATAR) -> tuple[Command, ...]:
    """PQN on MinAtar."""
    return tuple(
        command(
            "train",
            "pqn",
            f"{game}-MinAtar",
            f"pqn-minatar/{game}-{steps}",
            {"total_steps": steps},
            seeds=seeds,
        )
        for game in games
    )


def against_dqn(steps: int, seeds: int) -> tuple[Command, ...]:
    """PQN and DQN on two games; summary.json of each run has its seconds, curves have the times."""
    return tuple(
        command(
            "train",
            agent,
            f"{game}-MinAtar",
            f"pqn-against-dqn/{agent}-{game}-{steps}",
            {"total_steps": steps},
            seeds=seeds,
        )
        for game in ("Breakout", "SpaceInvaders")
        for agent in ("pqn", "dqn")
    )


PQN = (
    Reproduction(
        "pqn-minatar",
        "pqn",
        "Without replay buffer and target network PQN solves games that need DQN otherwise.",
        minatar(1_000_000, 2, ("Breakout",)),
        minatar(10_000_000, 5),
        None,
        "learning curves; no table in the authors' code",
    ),
    Reproduction(
        "pqn-against-dqn",
        "pqn",
        "PQN is up to 50 times as fast as DQN at the same return, by wall time.",
        against_dqn(200_000, 2),
        against_dqn(10_000_000, 5),
        None,
        "up to 50 times",
    ),
    Reproduction(
        "pqn-stability",
        "pqn",
        "LayerNorm and an ℓ2 penalty make off-policy temporal differences converge.",
        (study("baird", seeds=5, out="runs/pqn-stability"),),
        (study("baird", seeds=20, updates=200_000, out="runs/pqn-stability-full"),),
        None,
        "Baird's counterexample converges with both",
    ),
    Reproduction(
        "pqn-memory",
        "pqn_rnn",
        "PQN with a recurrent network remembers the first observation of MemoryChain.",
        (
            command(
                "train",
                "pqn_rnn",
                "MemoryChain-bsuite",
                "pqn-memory/10",
                env_options="memory_length=10",
                seeds=4,
            ),
        ),
        (
            command(
                "train", "pqn_rnn", "MemoryChain-bsuite", "pqn-memory/100", preset="100", seeds=5
            ),
        ),
        None,
        "learning curve, length 100",
    ),
)


# --- MDPO ----------------------------------------------------------------------------------------


def on_policy(steps: int, seeds: int, tasks: Mapping[str, str]) -> tuple[Command, ...]:
    """PPO, TRPO, and MDPO at constant and annealed rates; `tasks` has presets by environment."""
    kinds: dict[str, tuple[str, dict[str, Any]]] = {
        "ppo": ("ppo", {}),
        "trpo": ("trpo", {}),
        "mdpo-annealed": ("mdpo", {"step_sizes": "linear", "lr_end": 0.0}),
        "mdpo-constant": ("mdpo", {"step_sizes": "constant", "lr_end": 1.0}),
    }
    return tuple(
        command(
            "train",
            agent,
            env,
            f"mdpo-on-policy/{kind}-{env.replace(':', '-')}-{steps}",
            {"total_steps": steps} | own,
            preset=preset,
            seeds=seeds,
        )
        for env, preset in tasks.items()
        for kind, (agent, own) in kinds.items()
    )


LOADED = "brax:hopper"  # the preset with all implementation details
CLASSIC = {"Pendulum-v1": "Pendulum-v1", "Reacher-misc": LOADED, "Swimmer-misc": LOADED}
Q = (1.0, 1.2, 1.4, 1.6, 1.8, 2.0)


def off_policy(env: str, preset: str, steps: int, seeds: int) -> tuple[Command, ...]:
    """SAC, and off-policy MDPO at six entropic indices."""
    own, place = {"total_steps": steps}, env.replace(":", "-")
    options: dict[str, Any] = {"preset": preset, "seeds": seeds}
    return (
        command("train", "sac", env, f"mdpo-off-policy/sac-{place}-{steps}", own, **options),
        command(
            "sweep",
            "mdpo_offpolicy",
            env,
            f"mdpo-off-policy/mdpo-{place}-{steps}",
            own,
            {"agent.entropic_index": Q},
            **options,
        ),
    )


MDPO = (
    Reproduction(
        "mdpo-on-policy",
        "mdpo",
        "On-policy MDPO is better than PPO and at least as good as TRPO.",
        on_policy(250_000, 5, {"Pendulum-v1": "Pendulum-v1"}),
        (
            *on_policy(1_000_000, 5, CLASSIC),
            *on_policy(10_000_000, 5, {"brax:hopper": LOADED}),
        ),
        None,
        "MuJoCo, 1e7 steps: Ant 5211 ± 43 against TRPO 4682 ± 278 and PPO 59 ± 133",
    ),
    Reproduction(
        "mdpo-off-policy",
        "mdpo_offpolicy",
        "Off-policy MDPO with a Tsallis entropy is at least as good as SAC.",
        off_policy("Pendulum-v1", "minimal", 20_000, 5),
        off_policy("brax:ant", "minimal", 1_000_000, 5),
        None,
        "Ant, minimal version: 2348 ± 338 (q = 2) against SAC 378 ± 33",
    ),
)


# --- RAVL ----------------------------------------------------------------------------------------

HOPPER, MAKE_HOPPER = dataset("brax:hopper", "medium", 100_000)


def true_hopper(critics: Iterable[int], updates: int, seeds: int) -> tuple[Command, ...]:
    """RAVL in the true dynamics of hopper, η 1 and 30."""
    settings = {"dynamics": "true", "tau": 0.02, "updates": updates}
    return tuple(
        command(
            "sweep",
            "ravl",
            "brax:hopper",
            f"ravl-hopper/n{count}-{updates}",
            settings | {"critics": count},
            {"agent.eta": (1, 30)},
            preset="small",
            data=HOPPER,
            seeds=seeds,
        )
        for count in critics
    )


RAVL = (
    Reproduction(
        "ravl-grid",
        "ravl",
        "Pessimism at the edge of reach, by diverse critics, prevents divergence in true dynamics.",
        (study("edge_of_reach", seeds=10, out="runs/ravl-reach"),),
        (study("edge_of_reach", grid=True, seeds=5, out="runs/ravl-grid"),),
        None,
        "figure of the paper's toy environment",
    ),
    Reproduction(
        "ravl-hopper",
        "ravl",
        "RAVL learns in the true dynamics, where methods that penalise model errors diverge.",
        (MAKE_HOPPER, *true_hopper((10,), 30_000, 5)),
        (MAKE_HOPPER, *true_hopper((50,), 1_000_000, 5)),
        None,
        "table on D4RL; the settings per dataset are not in the code",
    ),
)


# --- CDSA ----------------------------------------------------------------------------------------


def corrected(
    env: str, data: str, out: str, seeds: int, bases: Iterable[str] = ("iql", "td3bc", "bc")
) -> tuple[Command, ...]:
    """Bases on `data`, and their actions corrected beyond the data's 95 % quantile of scores."""
    runs = tuple(f"runs/cdsa-gate/{out}-{base}" for base in bases)
    options: dict[str, Any] = {"data": data, "seeds": seeds, "eval_episodes": 200}
    train = tuple(
        command("train", base, env, run.removeprefix("runs/"), **options)
        for base, run in zip(bases, runs, strict=True)
    )
    # One strength everywhere, whatever the presets say.
    settings = {"correction": "action", "gate": 0.95, "alpha": 0.5, "w": 0.0}
    return (
        *train,
        command("train", "cdsa", env, f"cdsa-gate/{out}", settings, base=runs, **options),
    )


EXPERT, MAKE_EXPERT = dataset("brax:hopper", "expert", 100_000)
MIXED, MAKE_MIXED = dataset("brax:hopper", "medium-expert", 100_000)
DIVERSE, MAKE_DIVERSE = dataset("maze:medium", "diverse", 100_000)

CDSA = (
    Reproduction(
        "cdsa-gate",
        "cdsa",
        "One score model improves several policies, and lowers their risk, on all tasks.",
        corrected("dmsd", DMSD, "dmsd", 5),
        (
            *(MAKE_MIXED, MAKE_EXPERT, MAKE_DIVERSE),
            *corrected("dmsd", DMSD, "dmsd", 5),
            *corrected("brax:hopper", MIXED, "hopper", 5),
            *corrected("brax:hopper", EXPERT, "hopper-expert", 5, ("iql", "bc")),
            *corrected("maze:medium", DIVERSE, "maze", 5),
        ),
        None,
        "D4RL: higher means on most tasks and less risk on nearly all",
    ),
)


# --- PGD -----------------------------------------------------------------------------------------


def synthetic(env: str, data: str, seeds: int, **settings: Any) -> Command:
    """IQL on guided samples."""
    told = "-".join(str(value) for value in settings.values()) or "plain"
    return command(
        "train",
        "pgd_iql",
        env,
        f"pgd/{env.replace(':', '-')}-{told}",
        settings,
        data=data,
        seeds=seeds,
    )


PGD = (
    Reproduction(
        "pgd-error",
        "pgd_iql",
        "At equal log-probability under the policy, guided trajectories have smaller errors than "
        "rollouts of a one-step model.",
        (
            MAKE_DIVERSE,
            study("guidance", env="maze:medium", data=DIVERSE, out="runs/pgd-error"),
            study("guidance", env="dmsd", data=DMSD, out="runs/pgd-error"),
        ),
        (
            MAKE_DIVERSE,
            study("guidance", env="maze:medium", data=DIVERSE, updates=30_000, out="runs/pgd-full"),
            study("guidance", env="dmsd", data=DMSD, updates=30_000, out="runs/pgd-full"),
        ),
        None,
        "figure for MuJoCo, horizon 32",
    ),
    Reproduction(
        "pgd-rewards",
        "pgd_iql",
        "Agents gain from guided samples over real and over unguided data.",
        tuple(
            synthetic("dmsd", DMSD, 5, **own)
            for own in ({"synthetic": "none"}, {}, {"rewards": "given"})
        ),
        (
            MAKE_DIVERSE,
            *(
                synthetic(env, data, 5, **own)
                for env, data in (("dmsd", DMSD), ("maze:medium", DIVERSE))
                for own in (
                    {"synthetic": "none"},
                    {"synthetic": "unguided"},
                    {},
                    {"rewards": "given"},
                    {"rare_share": 0.25},
                )
            ),
        ),
        None,
        "significant gains on D4RL for IQL and TD3+BC; numbers not obtained",
    ),
)


# --- OFQL ----------------------------------------------------------------------------------------

CHEETAH, MAKE_CHEETAH = dataset("brax:halfcheetah", "medium", 100_000)
ETAS = {"ofql": (0.001, 0.01, 0.1, 0.3, 0.5), "dql": (0.01, 0.1, 0.3, 1.0, 3.0)}


def searched(env: str, data: str, seeds: int) -> tuple[Command, ...]:
    """η of both agents. The best of each is to be confirmed with `--seed 100 --seeds 5`."""
    return tuple(
        command(
            "sweep",
            agent,
            env,
            f"ofql-eta/{agent}-{env.replace(':', '-')}",
            sweep={"agent.eta": etas},
            data=data,
            seeds=seeds,
        )
        for agent, etas in ETAS.items()
    )


def flow_ratios(env: str, data: str, seeds: int) -> Command:
    """The fraction of rows with plain flow matching: from flow matching alone to none."""
    return command(
        "sweep",
        "ofql",
        env,
        f"ofql-flow-ratio/{env.replace(':', '-')}",
        sweep={"agent.flow_ratio": (1.0, 0.75, 0.5, 0.25, 0.0)},
        data=data,
        seeds=seeds,
    )


OFQL = (
    Reproduction(
        "ofql-eta",
        "ofql",
        "A one-step flow policy is better than a diffusion policy of several steps, and faster.",
        searched("dmsd", DMSD, 3),
        (
            MAKE_DIVERSE,
            MAKE_CHEETAH,
            *searched("dmsd", DMSD, 3),
            *searched("maze:medium", DIVERSE, 3),
            *searched("brax:halfcheetah", CHEETAH, 3),
        ),
        None,
        "table on D4RL; η per dataset is not published",
    ),
    Reproduction(
        "ofql-flow-ratio",
        "ofql",
        "Half of the rows with r = t is the best mixture of flow matching and mean flows.",
        (flow_ratios("dmsd", DMSD, 3),),
        (MAKE_CHEETAH, flow_ratios("dmsd", DMSD, 5), flow_ratios("brax:halfcheetah", CHEETAH, 5)),
        None,
        "ablation of the paper",
    ),
)


# --- IQL -----------------------------------------------------------------------------------------

PLAY, MAKE_PLAY = dataset("maze:medium", "play", 100_000)


def offline(
    tasks: Iterable[str], levels: Iterable[str], seeds: int, **settings: Any
) -> tuple[Command, ...]:
    """BC, TD3+BC, CQL and IQL on data of training snapshots."""
    commands = []
    for env in tasks:
        for level in levels:
            data, make = dataset(env, level, 100_000)
            commands.append(make)
            for agent in ("bc", "td3bc", "cql", "iql"):
                out = f"iql-offline/{agent}-{env.removeprefix('brax:')}-{level}"
                commands.append(command("train", agent, env, out, settings, data=data, seeds=seeds))
    return tuple(commands)


IQL = (
    Reproduction(
        "iql-finetune",
        "iql",
        "IQL improves online, after training on data.",
        (
            MAKE_PLAY,
            command(
                "train",
                "iql",
                "maze:medium",
                "iql-finetune/34",
                {"updates": 5_000, "finetune_steps": 2_000},
                env_options="max_steps=34",
                data=PLAY,
                seeds=5,
            ),
        ),
        (
            MAKE_PLAY,
            command(
                "train",
                "iql",
                "maze:medium",
                "iql-finetune/34-long",
                {"updates": 5_000, "finetune_steps": 50_000},
                env_options="max_steps=34",
                data=PLAY,
                seeds=20,
            ),
        ),
        None,
        "AntMaze: total of six tasks 378 before and more after fine-tuning",
    ),
    Reproduction(
        "iql-offline",
        "iql",
        "Without values of unseen actions IQL is as good as CQL and TD3+BC, and better than BC.",
        offline(("brax:hopper",), ("medium-replay",), 3, updates=50_000),
        offline(("brax:hopper", "brax:walker2d"), ("medium-replay", "medium-expert"), 5),
        None,
        "D4RL MuJoCo: total 692.4",
    ),
)

REPRODUCTIONS: dict[str, Reproduction] = {
    each.name: each for each in (*PQN, *MDPO, *RAVL, *CDSA, *PGD, *OFQL, *IQL)
}
