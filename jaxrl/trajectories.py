"""Diffusion model of windows of trajectories: encoding, training, sampling, and batches of samples.

Steps are encoded as channels (`Codec`). `diffuser` trains the model on windows of a dataset,
`sampler` draws trajectories from the model, and `generated` is a source of batches from a pool of
sampled trajectories. Configurations (`cfg`) are those of `jaxrl.agents.pgd.Settings`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxrl import diffusion, nets, unet
from jaxrl.imagination import Rule
from jaxrl.losses import masked_mean
from jaxrl.normalise import Moments, row_moments
from jaxrl.optim import Trainable, minimise, warm_cosine
from jaxrl.policies import LogProb
from jaxrl.sources import below, expand, merge_axes, take
from jaxrl.spaces import BoxScale, box_scale
from jaxrl.types import Array, Batch, EnvSpec, Learner, Source, Transition, mean_where

BOUND = 0.999  # clipping range of unit actions, before arctanh


class Codec(NamedTuple):
    """Steps of trajectories as channels: observation, action before tanh, reward, termination."""

    spec: EnvSpec
    space: BoxScale

    @property
    def obs(self) -> int:
        return self.spec.obs_size

    @property
    def channels(self) -> int:
        return self.obs + self.space.size + 2

    @property
    def of_action(self) -> slice:
        """The channels that hold actions."""
        return slice(self.obs, self.obs + self.space.size)

    def encode(self, t: Transition) -> Array:
        """[..., channels] of transitions [...]."""
        axes = t.reward.shape
        unit = self.space.unit(t.action.reshape(-1, self.space.size))
        squashed = jnp.arctanh(jnp.clip(unit, -BOUND, BOUND))
        rest = (t.reward[..., None], t.terminated[..., None].astype(jnp.float32))
        parts = (t.obs.reshape(*axes, self.obs), squashed.reshape(*axes, -1), *rest)
        return jnp.concatenate(parts, -1)

    def seen(self, x: Array) -> Array:
        """Observations [n, *obs] from channels [..., channels], leading axes flattened."""
        return x[..., : self.obs].reshape(-1, *self.spec.obs_shape)

    def action(self, x: Array) -> Array:
        """Actions [n, A] of the environment from action channels [..., A]."""
        return self.space.scaled(jnp.tanh(x.reshape(-1, self.space.size)))

    def decode(self, x: Array) -> tuple[Transition, Array]:
        """Transitions of trajectories [B, T, channels], and a mask [B, T] of the valid ones.

        The next observation of a step is the observation of the following step. T steps give T - 1
        transitions, or T if the last step terminates, since a terminating step needs no next
        observation. Steps after a termination are invalid.
        """
        axes = x.shape[:2]
        obs = x[..., : self.obs].reshape(*axes, *self.spec.obs_shape)
        terminated = x[..., -1] > 0.5
        over = jnp.cumsum(terminated, 1) - terminated > 0  # before this step
        last = jnp.arange(axes[1])[None] == axes[1] - 1
        t = Transition(
            obs=obs,
            action=self.action(x[..., self.of_action]).reshape(*axes, -1),
            reward=x[..., -2],
            next_obs=jnp.concatenate([obs[:, 1:], obs[:, -1:]], 1),
            terminated=terminated,
            truncated=jnp.zeros(axes, bool),
            start=jnp.broadcast_to(jnp.arange(axes[1])[None] == 0, axes),
        )
        return t, ~over & (~last | terminated)


def codec(spec: EnvSpec) -> Codec:
    """The encoding of `spec`'s transitions.

    Raises:
      UserError: actions are not in a bounded box of one axis.
    """
    return Codec(spec, box_scale("pgd", spec))


class DiffusionState(NamedTuple):
    """The diffusion model in training."""

    params: Array  # [size] flat parameters
    slow: Array  # [size] EMA of the parameters, used for sampling
    opt: optax.OptState
    steps: Moments  # [channels] of the dataset's steps


def network(cfg: Any, code: Codec) -> nets.Net:
    """The U-Net F(x [B, T, channels], c_noise [B]), with flat parameters."""
    unet.check(cfg.model_features, cfg.model_blocks, cfg.horizon)
    module = unet.UNet(cfg.model_features, cfg.model_blocks, code.channels)
    return nets.flat(nets.from_linen(module, (cfg.horizon, code.channels), ()))


def diffuser(cfg: Any, spec: EnvSpec) -> Learner:
    """Trains on windows [B, T] of the dataset with EDM's loss, at one noise level per window."""
    code = codec(spec)
    net = network(cfg, code)

    def init(key, hp, inputs):
        params = net.init(key)
        steps = row_moments(code.encode(expand(inputs["data"])))
        return DiffusionState(params, params, optax.adam(hp.model_lr).init(params), steps)

    def update(state, hp, batch, key, step):
        key_noise, key_level = jax.random.split(key)
        t = batch.transitions
        x = standard(state.steps, code.encode(t))
        noise = jax.random.normal(key_noise, x.shape)
        sigma = diffusion.edm_noise_levels(key_level, x.shape[0])

        def loss(params: Array) -> tuple[Array, Array]:
            denoise = diffusion.precondition(lambda x, c: net.apply(params, x, c))
            of_one = lambda *row: diffusion.edm_loss(denoise, *(part[None] for part in row))
            each = jax.vmap(of_one)(x, noise, sigma)
            return masked_mean(each, t.extras["learn"][:, 0]), each

        rate = hp.model_lr * warm_cosine(step / cfg.model_updates)
        (params, opt), value, each = minimise(loss, Trainable(state.params, state.opt), rate)
        move = lambda: hp.model_ema * state.slow + (1 - hp.model_ema) * params
        slow = jax.lax.cond((step + 1) % cfg.model_ema_every == 0, move, lambda: state.slow)
        metrics = {
            "model_loss": value,
            "model_loss_held": mean_where(each, t.extras["look"][:, 0]),
        }
        return DiffusionState(params, slow, opt, state.steps), metrics

    return Learner(init=init, update=update)


def standard(m: Moments, x: Array) -> Array:
    """(x - mean) / std of channels [B, T, channels]."""
    return (x - m.mean[None, None]) * jax.lax.rsqrt(m.var)[None, None]


def raw(m: Moments, x: Array) -> Array:
    """The inverse of `standard`."""
    return x * jnp.sqrt(m.var)[None, None] + m.mean[None, None]


# --- sampling ------------------------------------------------------------------------------------

GuideOf = Callable[[diffusion.Denoiser, Moments], diffusion.Guide]
"""(denoiser, moments [channels] of the standardisation) -> guide of `diffusion.heun`"""


def sampler(cfg: Any, spec: EnvSpec) -> Callable[..., Array]:
    """Function (model, key, count, guide_of) -> raw trajectories [count, T, channels].

    `guide_of` is a `GuideOf`, or None for unguided samples. `Codec.decode` gives the transitions.
    """
    code = codec(spec)
    net = network(cfg, code)
    sigmas = diffusion.edm_sigmas(cfg.sampler_steps)

    def sample(model: DiffusionState, key: Array, count: int, guide_of: GuideOf | None) -> Array:
        denoise = diffusion.precondition(lambda x, c: net.apply(model.slow, x, c))
        key_start, key_churn = jax.random.split(key)
        x = diffusion.heun(
            denoise,
            sigmas[0] * jax.random.normal(key_start, (count, cfg.horizon, code.channels)),
            sigmas,
            churn=(key_churn, diffusion.Churn()) if cfg.stochastic else None,
            guide=guide_of and guide_of(denoise, model.steps),
        )
        return raw(model.steps, x)

    return sample


def rewarded(t: Transition, rule: Rule) -> Transition:
    """Trajectories [B, T] with the rewards of `rule`, except of last steps, whose next observation
    the model does not generate."""
    given = jax.vmap(lambda *rows: rule(*rows)[0], 1, 1)(t.obs, t.action, t.next_obs)
    return t._replace(reward=jnp.concatenate([given[:, :-1], t.reward[:, -1:]], 1))


class Pool(NamedTuple):
    """The latest set of trajectories as rows, of which the first `filled` are transitions."""

    rows: Transition  # [trajectories * T, ...]
    filled: Array  # [] int32
    seen: dict[str, Array]  # metrics of the set


def generated(
    cfg: Any,
    spec: EnvSpec,
    sample: Callable[..., Array],
    log_prob: LogProb,
    name: str,
    rule: Rule | None = None,
) -> Source:
    """Batches [B], with replacement, of transitions sampled from the diffusion model inputs[name].

    A new set of `trajectories` is sampled every `generate_every` updates. Metrics of the latest
    set: `synthetic_log_prob`, the mean log-probability of its actions under the policy at that
    time, and `synthetic_reward`, the mean reward.

    Args:
      sample: (model, learner_state, hp, key, count, strength) -> raw trajectories
        [count, T, channels]; the strength [] of the guidance is 0 in the first set, otherwise 1.
      rule: gives the rewards of the environment in place of the model's.
    """
    code = codec(spec)

    def refresh(src, learner_state, hp, inputs, key, step):
        def some(key: Array) -> tuple[Transition, Array, Array]:
            strength = (step > 0).astype(jnp.float32)
            x = sample(inputs[name], learner_state, hp.agent, key, cfg.sample_batch, strength)
            made, used = code.decode(x)
            rows, used = merge_axes((made if rule is None else rewarded(made, rule), used))
            return rows, used, log_prob(learner_state, hp.agent, rows.obs, rows.action)

        keys = jax.random.split(key, cfg.trajectories // cfg.sample_batch)
        rows, used, likely = merge_axes(jax.lax.map(some, keys))
        kept = jnp.flatnonzero(used, size=used.size, fill_value=0)
        seen = {"synthetic_log_prob": likely, "synthetic_reward": rows.reward}
        return Pool(
            take(rows, kept),
            jnp.sum(used, dtype=jnp.int32),
            {name: mean_where(x, used).value for name, x in seen.items()},
        )

    def init(key, learner_state, hp, inputs):
        size = cfg.trajectories * cfg.horizon
        rows = jax.tree.map(lambda x: x[0], code.decode(jnp.zeros((1, size, code.channels)))[0])
        seen = {"synthetic_log_prob": jnp.float32(0), "synthetic_reward": jnp.float32(0)}
        return Pool(rows, jnp.int32(1), seen)

    def next(src, learner_state, hp, inputs, key, step):
        rows = below(key, cfg.batch_size, jnp.maximum(src.filled, 1))
        return src, Batch(take(src.rows, rows)), src.seen

    return Source(init=init, next=next, refresh=refresh, every=cfg.generate_every)
