"""What `jaxrl.drive` does in a stage whose environments run on the host (`jaxrl.hosted`)."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl.hosted import HostRollout, Players, Window, act_fn
from jaxrl.inputs import WINDOWS
from jaxrl.population import Layout, Placement
from jaxrl.program import MemberState, Stage, StageFn, acting_key, member_streams
from jaxrl.snapshot import fetch
from jaxrl.types import Array, Policy, PyTree

Build = Callable[[str, StageFn, PyTree], Callable[..., PyTree]]
"""(what, fn, arguments) -> `fn` of the stage, compiled."""


class HostStage:
    """The environments of a stage's members, and the windows they give.

    The members act in one launch, and their environments are stepped one after the other.
    """

    def __init__(self, stage: Stage, plan: Layout, build: Build) -> None:
        if stage.shared:
            raise ValueError(f"stage {stage.name!r} is shared, so it cannot act on the host")
        self.rollout: HostRollout = stage.source.host
        self.plan, self.build, self.precision = plan, build, stage.precision
        self.players: Players | None = None

    def open(self, keys: Array, step: int, placement: Placement) -> None:
        """New episodes in all environments; `keys` [padded P] are those of the members' states."""
        count, steps = self.rollout.num_envs, self.rollout.num_steps

        def draw(key: Array) -> Array:
            # Actions have the numbers 0 to T - 1 of this key.
            key = jax.random.fold_in(acting_key(key, jnp.int32(step)), steps)
            return jax.random.randint(key, (count,), 0, np.iinfo(np.int32).max)

        self.close()
        seeds = fetch(jax.vmap(draw)(keys), placement.rows, False)
        self.players = Players(self.rollout, seeds)

    def close(self) -> None:
        if self.players is not None:
            self.players.close()
            self.players = None

    def warm_up(
        self, keys: Array, learner: PyTree, hp: PyTree, placement: Placement
    ) -> dict[str, PyTree]:
        """{"windows": those before the first update, [padded P, M, T, N, ...]}; {} for none.

        Args:
          keys: [padded P] keys of the stage.
          learner: the state that the policy acts with; () for a policy that needs none.
        """
        keys = jax.vmap(member_streams)(keys)[:, 0]
        self.open(keys, 0, placement)
        policy = self.rollout.first or self.rollout.policy
        windows = [
            self._play("warm up", policy, (learner, hp, keys), -1 - i, placement)
            for i in range(self.rollout.warmup)
        ]
        if not windows:
            return {}
        together = jax.tree.map(lambda *x: np.stack(x, 1), *windows)
        return {WINDOWS: self._by_row(together, placement)}

    def window(self, state: MemberState, step: int, placement: Placement) -> dict[str, PyTree]:
        """{"windows": that of update `step`, [padded P, 1, T, N, ...]}."""
        acting = (state.learner, state.hp, state.key)
        window = self._play("act", self.rollout.policy, acting, step, placement)
        return {WINDOWS: self._by_row(jax.tree.map(lambda x: x[:, None], window), placement)}

    def _play(
        self, what: str, policy: Policy, acting: PyTree, step: int, placement: Placement
    ) -> Window:
        assert self.players is not None
        fn = self.precision.within(act_fn(policy, self.rollout.num_envs, acting_key))
        fixed = dict(zip(("learner", "hp", "key"), acting, strict=True))
        tiles = jnp.asarray(placement.tiles, jnp.int32)

        def act(obs: np.ndarray, start: np.ndarray, memory: PyTree, t: int) -> PyTree:
            seen = self._by_row({"obs": obs, "start": start, "memory": memory}, placement)
            at = {"step": jnp.int32(step), "t": jnp.int32(t), "tiles": tiles}
            args = ((), fixed | seen, at)
            return fetch(self.build(what, fn, args)(*args)[1], placement.rows, False)

        return self.players.window(placement.members.tolist(), act)

    def _by_row(self, tree: PyTree, placement: Placement) -> PyTree:
        """Leaves [P, ...] of the members on the devices, [padded P, ...] in their rows."""
        order = np.minimum(placement.order, len(placement.rows) - 1)
        return self.plan.split(jax.tree.map(lambda x: x[order], tree))
