"""Experiments of agents that learn from data, and of what follows in the environment."""

from __future__ import annotations

from jaxrl.experiments.reproductions.record import (
    DMSD,
    QUICK,
    Reproduction,
    dataset,
    each,
    made,
    study,
)

SHORT = " --agent.updates 3000 --agent.hidden 64 64"  # of runs with many updates

# --- RAVL ----------------------------------------------------------------------------------------

TRUE = (
    "jaxrl sweep ravl --env brax:hopper --preset small --data {data} --seeds {seeds} "
    "--agent.dynamics true --agent.tau 0.02 --agent.critics {critics} --agent.updates {updates} "
    "--sweep agent.eta=1,30 --evals {evals} --out runs/ravl-hopper/{critics}-{updates}"
)
HOPPER = dataset("brax:hopper", "medium")


def in_true_dynamics(policy: str = "", **sizes: int) -> tuple[str, ...]:
    """Two weights of diversity on medium data, the environment as the model."""
    return (*made("brax:hopper", "medium", more=policy), *each(TRUE, data=HOPPER, **sizes))


RAVL = (
    Reproduction(
        "ravl-grid",
        "ravl",
        "Pessimism at the edge of reach, by diverse critics, prevents divergence in true dynamics.",
        study("edge_of_reach --seeds 3 --updates 1000 --out runs/ravl-reach-short"),
        study("edge_of_reach --grid --seeds 5 --out runs/ravl-grid"),
        "figure of the paper's toy environment",
        minutes=1.5,
        full_minutes=137,
    ),
    Reproduction(
        "ravl-hopper",
        "ravl",
        "RAVL learns in the true dynamics, where methods that penalise model errors diverge.",
        in_true_dynamics(QUICK, critics=10, updates=2_000, seeds=2, evals=2),
        in_true_dynamics(critics=50, updates=1_000_000, seeds=5, evals=10),
        "table on D4RL; the settings per dataset are not in the code",
        minutes=3.14,
        full_minutes=4_210,
    ),
)

# --- CDSA ----------------------------------------------------------------------------------------

BASE = (
    "jaxrl train {agent} --env {env} --data {data} --seeds 5 --eval-episodes 200 "
    "--out runs/cdsa-gate/{out}-{agent}"
)
# One strength everywhere, whatever the presets say.
GATED = (
    "jaxrl train cdsa --env {env} --data {data} --seeds 5 --eval-episodes 200 --agent.gate 0.95 "
    "--agent.correction action --agent.alpha 0.5 --agent.w 0 --out runs/cdsa-gate/{out}"
)


def corrected(
    env: str,
    data: str,
    out: str,
    agents: tuple[str, ...] = ("iql", "td3bc", "bc"),
    more: str = "",
) -> tuple[str, ...]:
    """Bases, and their actions corrected beyond the data's 95 % quantile of scores."""
    task = {"env": env, "data": data, "out": out}
    bases = "".join(f" --base runs/cdsa-gate/{out}-{agent}" for agent in agents)
    return (*each(BASE + more, agent=agents, **task), *each(GATED + bases + more, **task))


CDSA = (
    Reproduction(
        "cdsa-gate",
        "cdsa",
        "One score model improves several policies, and lowers their risk, on all tasks.",
        corrected("dmsd", DMSD, "dmsd-short", more=SHORT),
        (
            *made("brax:hopper", "medium-expert", "expert"),
            *made("maze:medium", "diverse"),
            *corrected("dmsd", DMSD, "dmsd"),
            *corrected("brax:hopper", dataset("brax:hopper", "medium-expert"), "hopper"),
            *corrected("brax:hopper", dataset("brax:hopper", "expert"), "expert", ("iql", "bc")),
            *corrected("maze:medium", dataset("maze:medium", "diverse"), "maze"),
        ),
        "D4RL: higher means on most tasks and less risk on nearly all",
        minutes=1.42,
        full_minutes=1_900,
    ),
)

# --- PGD -----------------------------------------------------------------------------------------

SYNTHETIC = (
    "jaxrl train pgd_iql --env {env} --data {data} --seeds 5 --agent.{option} {value} "
    "--out runs/pgd-rewards/{out}-{value}{more}"
)
SKETCH = (
    " --evals 2 --agent.updates 3000 --agent.generate-every 1500 --agent.model-updates 1000 "
    "--agent.trajectories 256"
)
(GUIDANCE,) = study(
    "guidance --env {env} --data {data} --model-updates {updates} --horizon {horizon} "
    "--out runs/pgd-error-{updates}"
)
DIVERSE = dataset("maze:medium", "diverse")


def guided(env: str, data: str, out: str, more: str = "") -> tuple[str, ...]:
    """Real, unguided and guided data; guided with given rewards and with more rare windows."""
    task = {"env": env, "data": data, "out": out, "more": more}
    kinds = each(SYNTHETIC, option="synthetic", value=("none", "unguided", "guided"), **task)
    given = each(SYNTHETIC, option="rewards", value="given", **task)
    return (*kinds, *given, *each(SYNTHETIC, option="rare-share", value=0.25, **task))


def errors(updates: int) -> tuple[str, ...]:
    """The study of both tasks."""
    maze = each(GUIDANCE, env="maze:medium", data=DIVERSE, updates=updates, horizon=8)
    dmsd = each(GUIDANCE, env="dmsd", data=DMSD, updates=updates, horizon=32)
    return (*made("maze:medium", "diverse"), *maze, *dmsd)


PGD = (
    Reproduction(
        "pgd-error",
        "pgd_iql",
        "At equal log-probability, guided trajectories have smaller errors than model rollouts.",
        errors(500),
        (
            *errors(30_000),
            *made("brax:hopper", "medium"),
            *each(GUIDANCE, env="brax:hopper", data=HOPPER, updates=30_000, horizon=32),
        ),
        "figure for MuJoCo, horizon 32",
        minutes=1.96,
        full_minutes=126,
    ),
    Reproduction(
        "pgd-rewards",
        "pgd_iql",
        "Agents gain from guided samples over real and over unguided data.",
        guided("dmsd", DMSD, "dmsd-short", SKETCH),
        (
            *made("maze:medium", "diverse"),
            *guided("dmsd", DMSD, "dmsd"),
            *guided("maze:medium", DIVERSE, "maze"),
        ),
        "significant gains on D4RL for IQL and TD3+BC; numbers not obtained",
        minutes=6.55,
        full_minutes=92.3,
    ),
)

# --- OFQL ----------------------------------------------------------------------------------------

ETAS = (
    "jaxrl sweep {agent} --env {env} --data {data} --seeds 3 --sweep agent.eta={etas} "
    "--out runs/ofql-eta/{agent}-{out}"
)
RATIOS = (
    "jaxrl sweep ofql --env {env} --data {data} --seeds {seeds} "
    "--sweep agent.flow_ratio=1.0,0.75,0.5,0.25,0.0 --out runs/ofql-flow-ratio/{out}"
)
CHEETAH = dataset("brax:halfcheetah", "medium")


def searched(env: str, data: str, out: str, more: str = "") -> tuple[str, ...]:
    """η of both agents. The best of each is to be confirmed on fresh seeds, `--seed 100`."""
    task = {"env": env, "data": data, "out": out}
    own = each(ETAS + more, agent="ofql", etas="0.001,0.01,0.1,0.3,0.5", **task)
    return (*own, *each(ETAS + more, agent="dql", etas="0.01,0.1,0.3,1.0,3.0", **task))


OFQL = (
    Reproduction(
        "ofql-eta",
        "ofql",
        "A one-step flow policy is better than a diffusion policy of several steps, and faster.",
        searched("dmsd", DMSD, "dmsd-short", SHORT),
        (
            *made("maze:medium", "diverse"),
            *made("brax:halfcheetah", "medium"),
            *searched("dmsd", DMSD, "dmsd"),
            *searched("maze:medium", DIVERSE, "maze"),
            *searched("brax:halfcheetah", CHEETAH, "halfcheetah"),
        ),
        "table on D4RL; η per dataset is not published",
        minutes=12.22,
        full_minutes=29_300,
    ),
    Reproduction(
        "ofql-flow-ratio",
        "ofql",
        "Half of the rows with r = t is the best mixture of flow matching and mean flows.",
        each(RATIOS + SHORT, env="dmsd", data=DMSD, seeds=3, out="dmsd-short"),
        (
            *made("brax:halfcheetah", "medium"),
            *each(RATIOS, env="dmsd", data=DMSD, seeds=5, out="dmsd"),
            *each(RATIOS, env="brax:halfcheetah", data=CHEETAH, seeds=5, out="halfcheetah"),
        ),
        "ablation of the paper",
        minutes=4.74,
        full_minutes=17_200,
    ),
)

# --- IQL -----------------------------------------------------------------------------------------

FINETUNE = (
    "jaxrl train iql --env maze:medium --env-options max_steps=34 --data {data} --seeds {seeds} "
    "--agent.updates 5000 --agent.finetune-steps {steps} --out runs/iql-finetune/{steps}"
)
PLAY = dataset("maze:medium", "play")
OFFLINE = (
    "jaxrl train {agent} --env {env} --data data/{env:file}-{level}.npz --seeds {seeds} "
    "--out runs/iql-offline/{env:file}-{level}-{agent}"
)
LEVELS = ("medium-replay", "medium-expert")


def offline(
    env: str, levels: tuple[str, ...], seeds: int, more: str = "", policy: str = ""
) -> tuple[str, ...]:
    """BC, TD3+BC, CQL and IQL on datasets of the levels."""
    task = {"env": env, "level": levels, "agent": ("bc", "td3bc", "cql", "iql"), "seeds": seeds}
    return (*made(env, *levels, more=policy), *each(OFFLINE + more, **task))


IQL = (
    Reproduction(
        "iql-finetune",
        "iql",
        "IQL improves online, after training on data.",
        (*made("maze:medium", "play"), *each(FINETUNE, data=PLAY, steps=2_000, seeds=5)),
        (*made("maze:medium", "play"), *each(FINETUNE, data=PLAY, steps=50_000, seeds=20)),
        "AntMaze: total of six tasks 378 before fine-tuning",
        minutes=3.25,
        full_minutes=34.2,
    ),
    Reproduction(
        "iql-offline",
        "iql",
        "Without values of unseen actions IQL is as good as CQL and TD3+BC, and better than BC.",
        offline("brax:hopper", LEVELS[:1], 3, SHORT, QUICK),
        (*offline("brax:hopper", LEVELS, 5), *offline("brax:walker2d", LEVELS, 5)),
        "D4RL MuJoCo: total 692.4",
        minutes=4.52,
        full_minutes=64_700,
    ),
)

# --- offline, then online ------------------------------------------------------------------------

DEMOS = "data/reach-noisy.npz"
SWITCHED = (
    "jaxrl train {agent} --env reach:sparse --data {data} --seeds {seeds} --evals 20 "
    "--eval-episodes 200 --agent.hidden 64 64 --agent.lr 1e-3 --agent.gamma 0.95 --agent.tau 0.01 "
    "--agent.batch-size 64 --agent.updates 1500 --agent.finetune-steps {steps} "
    "--agent.capacity 5000 {own} --out runs/offline-to-online/{agent}-{steps}"
)
PESSIMIST = "--agent.actor-lr 3e-4 --agent.samples 2 --agent.weight 1"


def switched(seeds: int, steps: int) -> tuple[str, ...]:
    """Cal-QL, CQL, AWAC and IQL from the same noisy demonstrations, then online."""
    task = {"data": DEMOS, "seeds": seeds, "steps": steps}
    return (
        f"jaxrl data make reach:sparse --level noisy --success 0.25 --steps 200 --out {DEMOS}",
        *each(SWITCHED, agent=("calql", "cql"), own=PESSIMIST, **task),
        *each(SWITCHED, agent="awac", own="--agent.lam 0.1", **task),
        *each(SWITCHED, agent="iql", own="--agent.beta 10", **task),
    )


ONLINE = (
    Reproduction(
        "offline-to-online",
        "calql",
        "Calibrated values keep Cal-QL from falling when online training begins.",
        switched(5, 2_000),
        switched(20, 50_000),
        "learning curves of AntMaze, Kitchen and Adroit tasks",
        minutes=2.38,
        full_minutes=23.8,
    ),
    Reproduction(
        "famo2o-balance",
        "famo2o",
        "The balance of improvement and constraint is larger where the data are poor.",
        study("balance --grid small --out runs/famo2o"),
        (
            *study("balance --grid small --seeds 20 --out runs/famo2o-full"),
            *study("balance --grid large --seeds 20 --out runs/famo2o-full"),
        ),
        "significantly better than its base algorithms on D4RL",
        minutes=3.96,
        full_minutes=18.6,
    ),
)

# --- offline: baselines, extraction, selection, retrieval, merging --------------------------------

RIVALS = "td3bc iql rebrac prdc"
ON_DMSD = f"--data {DMSD} "
SMALL_MAZE, SMALL_HOPPER = "data/maze-20000.npz", "data/hopper-20000.npz"
TWO_TASKS = (
    f"jaxrl data make maze:medium --level diverse --steps 20000 --out {SMALL_MAZE}",
    *study(
        f"baselines --task maze --data {SMALL_MAZE} --agent {RIVALS} --out runs/offline-maze",
    ),
    "jaxrl data make brax:hopper --level medium-expert --agent ppo --preset small --steps 20000 "
    f"--out {SMALL_HOPPER}",
    *study(
        f"baselines --task hopper --data {SMALL_HOPPER} --agent {RIVALS} --out runs/offline-hopper",
    ),
)
RANKING = "ope_ranking --task {task} --level {level}"


def ranked(
    tasks: tuple[str, ...], levels: tuple[str, ...], seeds: str, out: str
) -> tuple[str, ...]:
    """Estimates on datasets of these seeds, and their summary, for each task and level."""
    (line,) = study(f"{RANKING}{seeds} --out {out}")
    (summary,) = study(f"{RANKING} --out {out}")
    each_seed = each(line, task=tasks, level=levels)
    return (*each_seed, *each(summary, task=tasks, level=levels))


SELECTION = (
    Reproduction(
        "ope-ranking",
        "ppo",
        "SharpeRatio@k tells apart estimators that are equally accurate or rank equally well.",
        ranked(("cartpole",), ("expert",), " --seeds 0 1 2 3 4", "runs/ope"),
        ranked(
            ("cartpole", "acrobot", "pendulum"),
            ("medium", "expert"),
            " --seeds 0 1 2 3 4 5 6 7 8 9",
            "runs/ope-full",
        ),
        "figures of seven control tasks",
        minutes=2.01,
        full_minutes=61.8,
    ),
    Reproduction(
        "rebrac-two-tasks",
        "rebrac",
        "ReBRAC and PRDC are better than TD3+BC and IQL on navigation and locomotion.",
        TWO_TASKS,
        TWO_TASKS,
        "D4RL: AntMaze and Gym-MuJoCo",
        minutes=9.45,
        full_minutes=9.45,
    ),
    Reproduction(
        "rebrac-offline",
        "rebrac",
        "Small changes make TD3+BC the best of its kind.",
        study(f"baselines --task dmsd {ON_DMSD}--agent {RIVALS} --out runs/offline"),
        each(
            "jaxrl train {agent} --env dmsd --data {data} --seeds 5 --out runs/rebrac/{agent}",
            agent=("td3bc", "iql", "rebrac", "prdc"),
            data=DMSD,
        ),
        "D4RL: best mean of the ensemble-free methods on Gym-MuJoCo and AntMaze",
        minutes=3.4,
        full_minutes=32.1,
    ),
    Reproduction(
        "prdc-hole",
        "prdc",
        "The nearest pair of the whole dataset is a better constraint than the action of the row.",
        (
            *study("baselines --task hole --agent td3bc prdc --out runs/prdc-hole"),
            *study("baselines --task cliff --agent td3bc prdc --out runs/prdc-hole"),
        ),
        study(f"baselines --task dmsd {ON_DMSD}--agent td3bc prdc prdc-close --out runs/prdc-dmsd"),
        "D4RL: better than TD3+BC on most tasks",
        minutes=2.23,
        full_minutes=3.79,
    ),
    Reproduction(
        "iql-extraction",
        "iql",
        "With the same critics, cloning the best of N actions gives better policies than AWR.",
        study(
            f"baselines --task dmsd {ON_DMSD}--agent iql-awr iql-ddpg_bc iql-1 iql-16 "
            "--out runs/iql-extraction"
        ),
        study(
            f"baselines --task dmsd {ON_DMSD}--agent iql-awr iql-ddpg_bc iql-1 iql-4 iql-16 iql-64 "
            "--out runs/iql-extraction-full"
        ),
        "Digi-Q: best-of-N ahead of AWR on Android in the Wild",
        minutes=2.62,
        full_minutes=6.18,
    ),
    Reproduction(
        "cql-peak",
        "cql",
        "The checkpoint at the peak of Q is better than the last one, where CQL overfits.",
        study(
            f"peak {ON_DMSD}--trajectories 20 --seeds 2 --updates 2000 --out runs/cql-peak-short"
        ),
        tuple(
            line
            for count in (20, 100, 500)
            for line in study(f"peak {ON_DMSD}--trajectories {count} --out runs/cql-peak")
        ),
        "figures of robot tasks with 100 and 500 trajectories",
        minutes=0.31,
        full_minutes=3.39,
    ),
    Reproduction(
        "bc-retrieval",
        "bc",
        "Cloning demonstrations with retrieved rows beats cloning demonstrations or all rows.",
        study("retrieval --out runs/bc-retrieval"),
        study("retrieval --seeds 20 --out runs/bc-retrieval-full"),
        "20 % more success than methods conditioned on goals",
        minutes=1.24,
        full_minutes=2.29,
    ),
    Reproduction(
        "bc-merging",
        "bc",
        "The mean of the weights before and after fine-tuning keeps the old and the new task.",
        study("merging --out runs/bc-merging"),
        study("merging --seeds 30 --out runs/bc-merging-full"),
        "RETAIN and WiSE-FT: robot tasks and images",
        minutes=0.48,
        full_minutes=0.654,
    ),
)
