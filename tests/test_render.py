"""Pictures of episodes."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from PIL import Image

from jaxrl.api import TrainedPolicy
from jaxrl.envs import draw, make
from jaxrl.envs.names import EnvError
from jaxrl.envs.wrappers import sticky_actions, time_limit
from jaxrl.errors import UserError
from jaxrl.experiments import cli
from jaxrl.experiments.render import Played, episode, host_episode, pictures, write_gif
from jaxrl.types import Agent, Discrete, Env, EnvSpec, Policy, TimeStep


def colour(text: str) -> np.ndarray:
    return np.array([int(text[i : i + 2], 16) for i in (1, 3, 5)])


def test_cartpole_stands_where_it_stands() -> None:
    """The cart's columns move with x, and an upright pole is right above the cart."""
    centres = {}
    for x in (-1.2, 0.0, 1.2):
        picture = draw.frame("CartPole-v1", [x, 0.0, 0.0, 0.0])
        for name, paint in (("cart", draw.CART), ("pole", draw.POLE)):
            columns = np.nonzero((picture == colour(paint)).all(-1))[1]
            centres[name, x] = columns.mean()
        assert abs(centres["cart", x] - centres["pole", x]) < 1.5
        assert abs(centres["cart", x] - draw.SIZE / 2 * (1 + x / 2.6)) < 1.5


def test_minatar_cells_have_the_colour_of_their_last_plane() -> None:
    obs = np.zeros((10, 10, 4))
    obs[2, 3, [0, 3]] = 1
    picture = draw.frame("Breakout-MinAtar", obs)
    side = draw.SIZE // 10
    assert picture.shape == (draw.SIZE, draw.SIZE, 3)
    np.testing.assert_array_equal(picture[2 * side + 5, 3 * side + 5], draw.CHANNELS[3])
    np.testing.assert_array_equal(picture[0, 0], [245] * 3)


def test_a_point_is_drawn_where_it_is_in_the_maze() -> None:
    """In the large maze, 9 by 12 cells: the start is up and left, the goal down and right."""
    env = make("maze:large")
    picture = draw.frame("maze:large", env.reset(jax.random.key(0), env.params)[1])
    centre = lambda paint: np.argwhere((picture == colour(paint)).all(-1)).mean(0)
    cell = draw.SIZE / 12
    top = 1.5 * cell  # the picture is a square
    np.testing.assert_allclose(centre(draw.GOAL), [top + 7.5 * cell, 9.5 * cell], atol=1)
    np.testing.assert_allclose(centre(draw.POLE), [top + 1.5 * cell, 1.5 * cell], atol=cell / 4 + 1)


@pytest.mark.parametrize("name", draw.DRAWINGS)
def test_every_drawing_fits_its_environment_and_moves(name: str) -> None:
    env = make(name)
    rng = np.random.default_rng(0)
    frames = [draw.frame(name, rng.uniform(-0.5, 0.5, env.spec.obs_shape)) for _ in range(2)]
    assert np.any(frames[0] != frames[1])


def test_what_has_no_drawing_is_refused() -> None:
    with pytest.raises(
        EnvError, match="no drawing of probe:delay: its Env needs a function `render`; there are"
    ):
        draw.frame("probe:delay", [0.0])


def test_an_episode_stops_at_its_end() -> None:
    env = tiny.walk()
    act = lambda state, hp, obs, start, memory, noise, explore: (jnp.array([2]), memory, {})
    nothing = lambda *args: None
    policy = Agent(init=nothing, update=nothing, act=act)  # type: ignore[arg-type]
    played = episode(env, TrainedPolicy(policy, (), ()), jax.random.key(2))
    seen, total = played.observations, played.returns[-1]
    positions = seen[:, 0]
    assert 2 <= len(seen) <= tiny.LIMIT + 1
    assert (np.abs(positions[:-1]) <= 1).all()
    assert abs(positions[-1]) > 1 or len(seen) == tiny.LIMIT + 1
    np.testing.assert_allclose(total, (1 - positions[1:] ** 2).sum(), rtol=1e-5)


@pytest.mark.parametrize(
    ("limit", "max_steps", "steps", "cut"), [(3, None, 3, True), (3, 5, 3, True), (9, 4, 4, False)]
)
def test_an_episode_that_is_longer_than_its_picture_is_cut(
    limit: int, max_steps: int | None, steps: int, cut: bool
) -> None:
    flag = jnp.zeros((), bool)
    step = lambda key, x, action, params: (x, TimeStep(x, jnp.ones(()), flag, flag))
    spec = EnvSpec("endless", (1,), Discrete(2), max_steps)
    env = Env(spec, {}, lambda key, params: (jnp.zeros(1), jnp.zeros(1)), step)
    act = lambda state, hp, obs, start, memory, noise, explore: (jnp.array([0]), memory, {})
    played = episode(env, TrainedPolicy(Policy(act=act), (), ()), jax.random.key(0), limit)
    assert (len(played.returns) - 1, played.cut) == (steps, cut)


def test_whole_observations_are_drawn_of_a_policy_that_sees_a_part() -> None:
    env = make("CartPole-v1", hide=[1, 3], hide_from="policy", max_steps=5)

    def act(state, hp, obs, start, memory, noise, explore):
        assert obs.shape == (1, 2)
        return jnp.array([0]), memory, {}

    played = episode(env, TrainedPolicy(Policy(act=act), (), ()), jax.random.key(0))
    assert played.observations.shape == (len(played.returns), 4)
    assert np.shape(pictures(env, played))[0] == len(played.returns)


def test_an_environment_draws_its_own_states_below_wrappers() -> None:
    """`render` gets the states and parameters of the environment itself."""
    seen: list[Any] = []

    def draw_states(states: Any, params: Any) -> np.ndarray:
        seen.append((states, params))
        return np.zeros((4, 8, 9, 3), np.uint8)

    env = dataclasses.replace(tiny.walk(), render=draw_states)
    inner = {"x": np.arange(4.0)}
    wrapped = sticky_actions(time_limit(env, 3), 0.25)
    played = Played(((inner, 0), 0, 0), np.zeros((4, 1)), np.zeros(4))
    assert np.shape(pictures(wrapped, played)) == (4, 8, 9, 3)
    assert seen == [(inner, env.params)]


@pytest.mark.parametrize(
    "wrong",
    [np.zeros((3, 8, 8, 3), np.uint8), np.zeros((4, 8, 8, 3)), np.zeros((4, 8, 8), np.uint8)],
)
def test_images_of_another_form_are_refused(wrong: np.ndarray) -> None:
    env = dataclasses.replace(tiny.walk(), render=lambda states, params: wrong)
    with pytest.raises(UserError, match=r"must return uint8 images of shape \[4, H, W, 3\]"):
        pictures(env, Played((), np.zeros((4, 1)), np.zeros(4)))


def test_a_gif_has_a_frame_per_state_with_step_and_return(tmp_path: Path) -> None:
    images = np.full((3, 40, 200, 3), 255, np.uint8)
    write_gif(tmp_path / "a.gif", images, np.array([0.0, 1.0, 3.5]), 30)
    with Image.open(tmp_path / "a.gif") as gif:
        frames = []
        for i in range(gif.n_frames):  # type: ignore[attr-defined]
            gif.seek(i)
            frames.append(np.asarray(gif.convert("RGB")))
    assert len(frames) == 3 and frames[0].shape == (68, 200, 3)
    assert all((frame[:40] == 255).all() and (frame[40:] < 128).any() for frame in frames)
    assert (frames[1] != frames[2]).any()


def test_other_suffixes_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["render", str(tmp_path), "--out", "a.mp4"]) == 2
    assert "written as .gif files" in capsys.readouterr().err


class Host:
    """Three steps of reward 1 on the host; draws the number of the step."""

    def __init__(self, render_mode: str) -> None:
        assert render_mode == "rgb_array"

    def reset(self, seed: int) -> tuple[np.ndarray, dict]:
        self.t = 0
        return np.zeros(2), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.t += 1
        return np.zeros(2), 1.0, self.t == 3, False, {}

    def render(self) -> np.ndarray:
        return np.full((4, 4, 3), self.t, np.uint8)

    def close(self) -> None:
        pass


def test_environments_of_the_host_draw_themselves() -> None:
    act = lambda state, hp, obs, start, memory, noise, explore: (jnp.zeros((1, 2)), memory, {})
    member = TrainedPolicy(Policy(act=act), (), ())
    env = dataclasses.replace(tiny.glide(), host=Host)
    images, returns, cut = host_episode(env, member, 0)
    assert not cut and host_episode(env, member, 0, limit=2)[2]
    assert [image[0, 0, 0] for image in images] == [0, 1, 2, 3] and returns.tolist() == [0, 1, 2, 3]
    with pytest.raises(UserError, match="line cannot be drawn: .*render_mode"):
        host_episode(dataclasses.replace(env, host=lambda: None), member, 0)
