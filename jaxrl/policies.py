"""Policies: actor and critic heads for each kind of action space, and combined policies."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from jaxrl import nets
from jaxrl.distributions import Categorical, Normal, tanh_correction
from jaxrl.errors import UserError
from jaxrl.losses import q_of_action
from jaxrl.masks import (
    ILLEGAL_LOGIT,
    critic_shape,
    critic_view,
    legal_only,
    some_legal,
    unmask,
)
from jaxrl.spaces import BoxScale, box_scale
from jaxrl.types import ActFn, Agent, Array, Discrete, EnvSpec, Policy, PyTree


def deterministic_actor(hidden: tuple[int, ...], spec: EnvSpec, space: BoxScale) -> nets.Net:
    """A deterministic policy: obs [B, *obs] to actions [B, A] in [-1, 1]; flat parameters."""
    net = nets.packed(nets.from_linen(nets.MLP(hidden, space.size), spec.obs_shape))
    return nets.Net(net.init, lambda params, obs: jnp.tanh(net.apply(params, obs)))


class ActionSamples(NamedTuple):
    """K actions per state for expectations: one sample in a box, or all A discrete actions."""

    action: PyTree  # before tanh [B, A] in a box; () over discrete actions
    log_prob: Array  # [B, K, F] by factor of the policy, such as the dimensions of a box
    weight: Array  # [B, K], sums to 1


Mlp = Callable[[tuple[int, ...], int], nn.Module]

LogProb = Callable[[PyTree, Any, Array, Array], Array]
"""(state, hp, obs [B, *obs], action [B, A]) -> log π(a|s) [B] of actions of the environment."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class StochasticHead:
    """Stochastic actor and critic of SAC for one kind of action space.

    actor(key), critic(key) -> initial parameters, see `nets.packed`
    policy(actor, obs [B, *obs]) -> dist, the distribution over actions
    noise(key, n) -> noise for n actions
    act(dist, noise, explore) -> actions [n, ...] of the environment
    samples(dist, noise) -> ActionSamples
    log_prob(dist, action) -> [B, K, F] of sampled actions, under any policy
    values(critic, obs, action) -> [B, K] Q-values of sampled actions
    value(critic, obs, action) -> [B] Q-values of the environment's actions
    """

    actor: Callable[[Array], PyTree]
    critic: Callable[[Array], PyTree]
    policy: Callable[[PyTree, Array], Any]
    noise: Callable[[Array, int], Array]
    act: Callable[[Any, Array, bool], Array]
    samples: Callable[[Any, Array], ActionSamples]
    log_prob: Callable[[Any, PyTree], Array]
    values: Callable[[PyTree, Array, PyTree], Array]
    value: Callable[[PyTree, Array, Array], Array]
    target_entropy: float


def squashed_head(
    hidden: tuple[int, ...],
    spec: EnvSpec,
    least_log_std: float = -20.0,
    actor: Mlp = nets.MLP,
    critic: Mlp = nets.MLP,
) -> StochasticHead:
    """A normal distribution with log-std up to 2, squashed by tanh and scaled to the box.

    Args:
      actor, critic: make networks from the widths of hidden layers and a number of outputs.

    Raises:
      UserError: the action space is not a bounded box of one axis.
    """
    space = box_scale("a squashed normal policy", spec)
    size = space.size
    actor_net = nets.packed(nets.from_linen(actor(hidden, 2 * size), spec.obs_shape))
    inputs = (int(np.prod(critic_shape(spec))) + size,)
    critic_net = nets.packed(nets.from_linen(critic(hidden, 1), inputs))

    def policy(params: PyTree, seen: Any) -> Normal:
        mean, log_std = jnp.split(actor_net.apply(params, unmask(seen)[0]), 2, -1)
        return Normal(mean, jnp.clip(log_std, least_log_std, 2.0))

    def act(dist: Normal, noise: Array, explore: bool) -> Array:
        return space.scaled(jnp.tanh(dist.sample(noise) if explore else dist.mode))

    def samples(dist: Normal, noise: Array) -> ActionSamples:
        action = dist.sample(noise)
        return ActionSamples(action, log_prob(dist, action), jnp.ones((action.shape[0], 1)))

    def log_prob(dist: Normal, action: Array) -> Array:
        each = Normal(dist.mean[..., None], dist.log_std[..., None])  # one factor per dimension
        action = action[..., None]
        return (each.log_prob(action) - tanh_correction(action))[:, None]

    def q(params: PyTree, seen: Any, action: Array) -> Array:
        obs = critic_view(seen)
        x = jnp.concatenate([obs.reshape(obs.shape[0], -1), action], -1)
        return critic_net.apply(params, x)

    return StochasticHead(
        actor=actor_net.init,
        critic=critic_net.init,
        policy=policy,
        noise=lambda key, n: Normal.noise(key, (n, size)),
        act=act,
        samples=samples,
        log_prob=log_prob,
        values=lambda params, obs, action: q(params, obs, jnp.tanh(action)),
        value=lambda params, obs, action: q(params, obs, space.unit(action))[:, 0],
        target_entropy=-float(size),
    )


def categorical_head(
    hidden: tuple[int, ...], spec: EnvSpec, actor: Mlp = nets.MLP, critic: Mlp = nets.MLP
) -> StochasticHead:
    """A categorical distribution. Critics value all actions at once; expectations are exact.

    Observations may be `Masked`: illegal actions then have probability 0.

    Args:
      actor, critic: make networks from the widths of hidden layers and a number of outputs.
    """
    space = spec.action
    assert isinstance(space, Discrete)
    net_of = lambda mlp, shape: nets.packed(nets.from_linen(mlp(hidden, space.n), shape))
    actor_net, critic_net = net_of(actor, spec.obs_shape), net_of(critic, critic_shape(spec))

    def policy(params: PyTree, seen: Any) -> Categorical:
        obs, legal = unmask(seen)
        return Categorical(legal_only(actor_net.apply(params, obs), legal, ILLEGAL_LOGIT))

    def values(params: PyTree, seen: Any, action: PyTree) -> Array:
        return critic_net.apply(params, critic_view(seen))

    def log_prob(dist: Categorical, action: PyTree) -> Array:
        return dist.log_probs[..., None]

    def samples(dist: Categorical, noise: Array) -> ActionSamples:
        return ActionSamples((), log_prob(dist, ()), jnp.exp(dist.log_probs))

    return StochasticHead(
        actor=actor_net.init,
        critic=critic_net.init,
        policy=policy,
        noise=lambda key, n: Categorical.noise(key, (n, space.n)),
        act=lambda dist, noise, explore: dist.sample(noise) if explore else dist.mode,
        samples=samples,
        log_prob=log_prob,
        values=values,
        value=lambda params, seen, action: q_of_action(values(params, seen, ()), action),
        target_entropy=0.98 * float(np.log(space.n)),
    )


def acting(head: Any) -> ActFn:
    """`act` of an agent without memory: `head`'s policy of the parameters `state.actor`."""

    def act(state, hp, obs, start, memory, noise, explore):
        return head.act(head.policy(state.actor, obs), noise, explore), memory, {}

    return act


def agent_of(policy: Policy, init: Any, update: Any, hypers: Any) -> Agent:
    """An agent that acts by `policy`; the other arguments as in `Agent`."""
    return Agent(
        init=init,
        update=update,
        act=policy.act,
        memory=policy.memory,
        noise=policy.noise,
        masks=policy.masks,
        bytes=policy.bytes,
        views=policy.views,
        hypers=hypers,
    )


def least_value(head: StochasticHead, critics: Array, obs: Array, action: PyTree) -> Array:
    """min_i Q_i(s, a) [B, K] of sampled actions, over critics [N, size]."""
    return jnp.min(nets.each(head.values)(critics, obs, action), 0)


def mean_value(head: StochasticHead, critics: Array, obs: Array, action: PyTree) -> Array:
    """Mean over critics [N, size] of Q_i(s, a) [B, K] of sampled actions."""
    return jnp.mean(nets.each(head.values)(critics, obs, action), 0)


def target_entropy(head: StochasticHead, seen: Any) -> Array | float:
    """The target entropy; with action masks, times the mean of log(legal actions) / log A."""
    legal = unmask(seen)[1]
    if legal is None:
        return head.target_entropy
    count = jnp.sum(some_legal(legal), -1)
    return head.target_entropy * jnp.mean(jnp.log(count)) / np.log(max(legal.shape[-1], 2))


def sum_log_probs(log_prob: Array) -> Array:
    """log π [B, K] from the log-probabilities of the policy's factors [B, K, F]."""
    return jnp.sum(log_prob, -1)


def expectation(samples: ActionSamples, values: Array) -> Array:
    """Expectation over actions [B] of values [B, K]."""
    return jnp.sum(samples.weight * values, -1)


def mean_entropy(samples: ActionSamples) -> Array:
    """-E log π(a|s) [], averaged over states."""
    return -jnp.mean(expectation(samples, sum_log_probs(samples.log_prob)))


class Trained(NamedTuple):
    """State and hyperparameters of a trained policy."""

    state: PyTree
    hp: PyTree


def greedy(policy: Policy, trained: Trained, obs: Array) -> Array:
    """Actions [n, ...] at obs [n, *obs] of a policy without memory, without exploration."""
    n = len(obs)
    noise = policy.noise(jax.random.key(0), n)  # without exploration it changes nothing
    given = (obs, jnp.ones(n, bool), policy.memory(n), noise, False)
    return policy.act(trained.state, trained.hp, *given)[0]


def check_base(agent: str, base: Policy | None) -> Policy:
    """The policy that `agent` builds on.

    Raises:
      UserError: there is none, or it has a memory.
    """
    if base is None:
        raise UserError(f"{agent} needs a trained policy: pass --base runs/NAME")
    if jax.tree.leaves(jax.eval_shape(lambda: base.memory(1))):
        raise UserError(f"{agent} needs a base policy without memory")
    return base


class Switch(NamedTuple):
    """The state of several policies, of which one acts."""

    which: Array  # [] int32, index of the acting policy
    each: tuple[Trained, ...]


def one_of(policies: Sequence[Policy]) -> Policy:
    """One of several policies, selected by the state, a `Switch`. The policies may differ in
    networks, memory and noise."""

    def act(state, hp, obs, start, memory, noise, explore):
        def branch(i: int) -> Callable[[], tuple[Array, PyTree]]:
            own = state.each[i]

            def run() -> tuple[Array, PyTree]:
                action, after, _ = policies[i].act(
                    own.state, own.hp, obs, start, memory[i], noise[i], explore
                )
                return action, (*memory[:i], after, *memory[i + 1 :])

            return run

        action, memory = jax.lax.switch(state.which, [branch(i) for i in range(len(policies))])
        return action, memory, {}

    def noise(key: Array, n: int) -> tuple[PyTree, ...]:
        keys = jax.random.split(key, len(policies))
        return tuple(p.noise(k, n) for p, k in zip(policies, keys, strict=True))

    return Policy(act=act, memory=lambda n: tuple(p.memory(n) for p in policies), noise=noise)


def unit_normal(agent: Agent, space: BoxScale) -> LogProb:
    """log N(π(s), 1) of unit actions, π(s) being the agent's action without exploration."""

    def log_prob(state: PyTree, hp: Any, obs: Array, action: Array) -> Array:
        chosen = greedy(agent, Trained(state, hp), obs)
        away = space.unit(action) - jax.lax.stop_gradient(space.unit(chosen))
        return -0.5 * jnp.sum(away**2 + jnp.log(2 * jnp.pi), -1)

    return log_prob
