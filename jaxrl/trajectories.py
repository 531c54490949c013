"""Diffusion model of windows of trajectories: their encoding as channels, and its training."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxrl import diffusion, nets, unet
from jaxrl.normalise import Moments
from jaxrl.optim import Trainable, minimise, warm_cosine
from jaxrl.spaces import BoxScale, box_scale
from jaxrl.types import Array, EnvSpec, Learner, Transition, mean_where

BOUND = 0.999  # of unit actions, before arctanh


class Codec(NamedTuple):
    """Steps of trajectories as channels: observation, action before tanh, reward, termination."""

    spec: EnvSpec
    space: BoxScale

    @property
    def obs(self) -> int:
        return int(np.prod(self.spec.obs_shape))

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
        """Observations [n, *obs] of channels [..., channels], rows flattened."""
        return x[..., : self.obs].reshape(-1, *self.spec.obs_shape)

    def action(self, x: Array) -> Array:
        """Actions [n, A] of the environment from their channels [..., A]."""
        return self.space.scaled(jnp.tanh(x.reshape(-1, self.space.size)))

    def decode(self, x: Array) -> tuple[Transition, Array]:
        """Transitions of trajectories [B, T, channels], and which of them are to be used [B, T].

        The successor of a step is the next one's observation: T steps give T - 1 transitions, or T
        where the last one terminates, whose successor counts for nothing. What comes after a
        termination is no part of the episode.
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
    """UserError where actions are not in a bounded box of one axis."""
    return Codec(spec, box_scale("pgd", spec))


class DiffusionState(NamedTuple):
    params: Array  # [size] as one vector
    slow: Array  # [size]
    opt: optax.OptState
    steps: Moments  # [channels] of the data


def network(cfg: Any, code: Codec) -> nets.Net:
    """F(x [B, T, channels], c_noise [B]); flat parameters."""
    unet.check(cfg.model_features, cfg.model_blocks, cfg.horizon)
    module = unet.UNet(cfg.model_features, cfg.model_blocks, code.channels)
    return nets.flat(nets.from_linen(module, (cfg.horizon, code.channels), ()))


def diffuser(cfg: Any, spec: EnvSpec) -> Learner:
    """Learns windows [B, H] of data by EDM's loss, at one noise level per window."""
    code = codec(spec)
    net = network(cfg, code)

    def init(key, hp, inputs):
        params = net.init(key)
        rows = code.encode(inputs["data"])
        var = jnp.var(rows, 0)
        steps = Moments(jnp.mean(rows, 0), jnp.where(var < 1e-12, 1.0, var), jnp.float32(len(rows)))
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
            return mean_where(each, t.extras["learn"][:, 0]).value, each

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
