"""Datasets of trajectories sampled from the diffusion model of a run."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl.agents import pgd
from jaxrl.envs.datasets import Dataset, action_bounds
from jaxrl.errors import UserError
from jaxrl.experiments import restore
from jaxrl.experiments.run_folders import open_run_folder
from jaxrl.experiments.trust import trusting
from jaxrl.runs import provenance
from jaxrl.trajectories import DiffusionState, codec
from jaxrl.types import Transition


def make(
    env: str, path: Path, steps: int, member: int = 0, seed: int = 0, trust: bool = False
) -> Dataset:
    """`steps` transitions sampled from the diffusion model of a run; a trajectory is an episode.

    If the run uses guided samples, the current policy of `member` guides these samples too.

    Raises:
      UserError: another environment, no such member, or no finished diffusion model.
    """
    run = open_run_folder(path)
    settings = restore.settings_of(run, trusting(env, everything=trust))
    if settings.options.env != env:
        raise UserError(f"{path} was trained in {settings.options.env}, not in {env}")
    ready = restore.prepare(settings)
    if not 0 <= member < ready.members:
        raise UserError(f"member {member}: the run has members 0 to {ready.members - 1}")
    state = restore.read_state(ready, run, (member, member + 1))
    if "diffusion" not in state.results:
        raise UserError(f"{path} has not finished a diffusion model")
    cfg, spec = settings.cfg, ready.env.spec
    first = lambda tree: jax.tree.map(lambda x: jnp.asarray(x[0]), tree)
    model = state.results["diffusion"]
    model = model if cfg.share_model else first(model)
    guided = cfg.synthetic == "guided"
    log_prob = ready.algorithm.log_prob if guided else None
    sample = pgd.sampler(cfg, spec, log_prob(cfg, spec) if log_prob else None)
    policy, hp = first(state.member.learner), first(state.member.hp.agent)

    @jax.jit
    def some(model: DiffusionState, key: jax.Array) -> tuple[Transition, jax.Array]:
        x = sample(model, policy, hp, key, cfg.sample_batch, jnp.float32(1))
        return codec(spec).decode(x)

    root, parts, rows = jax.random.key(seed), [], 0
    while rows < steps:
        parts.append(episodes(*jax.device_get(some(model, jax.random.fold_in(root, len(parts))))))
        rows += len(parts[-1].reward)
        if not rows:
            raise UserError(f"the model of {path} generates no transition")
    meta = {
        "env": env,
        "source": "jaxrl data make --from-diffusion",
        "seed": seed,
        "member": member,
        "versions": provenance.versions(),
        **action_bounds(spec),
        "training": run.config()["config"],
        **({"reference": ready.meta["reference"]} if "reference" in ready.meta else {}),
    }
    whole = jax.tree.map(lambda *x: np.concatenate(x)[:steps], *parts)
    return Dataset(whole, meta)


def episodes(t: Transition, used: np.ndarray) -> Transition:
    """The used steps of trajectories [B, T] as rows [D].

    `used` [B, T] bool marks the first steps of each trajectory. The last used step is truncated
    unless it terminates.
    """
    later = np.concatenate([used[:, 1:], np.zeros_like(used[:, :1])], 1)
    t = t._replace(truncated=used & ~later & ~np.asarray(t.terminated))
    return jax.tree.map(lambda x: x[used], t)
