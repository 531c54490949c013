"""jaxrl data info | convert | retrieve | make: describes, converts and generates datasets."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxrl.envs import datasets, names
from jaxrl.envs.datasets import Dataset, episode_returns, normalised_score, return_factor
from jaxrl.errors import UserError, nearest
from jaxrl.experiments.commands import (
    ConvertOptions,
    DiffusionOptions,
    InfoOptions,
    MakeOptions,
    RetrieveOptions,
)
from jaxrl.experiments.console import print_line
from jaxrl.experiments.data import collect, generate, retrieve
from jaxrl.experiments.requests import tokenise
from jaxrl.experiments.values import Words, fields_of, fill, take
from jaxrl.runs import figures, trial_plots
from jaxrl.runs.files import check_writable, make_folder, remove_empty
from jaxrl.runs.folders import lock_file

USAGE = """jaxrl data: datasets as .npz, D4RL's .hdf5, or Minari folders

  jaxrl data info FILE [--out FILE.svg]   describe a dataset, with histograms
  jaxrl data convert FROM TO              convert to another format
     both: [--max-episode-steps N]        limit of D4RL files without timeouts
  jaxrl data retrieve PRIOR EXPERT [--threshold 0.85] [--out FILE]
                                          add rows that are similar to those
                                          of demonstrations
  jaxrl data make ENV --level LEVEL[,LEVEL ...] [--steps 100000]
        [--out FOLDER | FILE] [--agent AGENT] [--success 0.5]
        [options of `jaxrl train`]        collect data with simulator states
  jaxrl data make ENV --from-diffusion RUN [--steps 100000] [--member M]
        [--seed S] [--out FILE]           sample the diffusion model of a
                                          run of pgd_iql

`make --level` trains an agent first, by default sac, or ppo for discrete
actions, also for level random alone: the expert's return is the 100 of
normalised scores.

levels: random; expert, the best training snapshot (training keeps one snapshot
per evaluation); medium, the first snapshot a third of the way from random to
expert; medium-replay, all snapshots up to medium; medium-expert, half medium
and half expert; noisy, the expert with so much noise that its mean return is
--success 0.5 of the way from random to expert.
Mazes, the lock and reach:sparse need no training. Levels of mazes are play,
diverse, expert and random, those of the lock guided, expert and random, those
of reach:sparse expert, noisy and random.

example: jaxrl data make Pendulum-v1 --level medium,expert --steps 20000
"""


def main(words: Sequence[str]) -> None:
    """Runs one `jaxrl data` command; `words` are the arguments after `data`."""
    if {"-h", "--help"} & set(words):
        print(USAGE, end="")
        return
    commands: dict[str, Callable[[list[str], dict[str, Words]], None]] = {
        "info": _info,
        "convert": _convert,
        "retrieve": _retrieve,
        "make": _make,
    }
    if not words or words[0] not in commands:
        hint = nearest(words[0], commands) if words else ""
        raise UserError(
            "jaxrl data info FILE | convert FROM TO | retrieve PRIOR EXPERT | make ENV --level "
            f"LEVEL; or --help{hint}"
        )
    own: dict[str, tuple[type, ...]] = {
        "info": (InfoOptions,),
        "convert": (ConvertOptions,),
        "retrieve": (RetrieveOptions,),
        "make": (MakeOptions, DiffusionOptions),
    }
    records = map(fields_of, own[words[0]])
    single = {name: field for fields in records for name, field in fields.items()}
    commands[words[0]](*tokenise(words[1:], single))


def _info(paths: list[str], given: dict[str, Words]) -> None:
    own = fill(InfoOptions, given)
    if len(paths) != 1:
        raise UserError("data info needs one dataset: jaxrl data info data.npz")
    path = Path(paths[0])
    picture = own.out or path.with_suffix(".png")
    figures.check_format(picture)
    check_writable(own.out)
    data = datasets.load(path, own.max_episode_steps)
    for line in describe(data):
        print_line(line)
    draw(picture, data)
    print_line(str(picture))


def _convert(paths: list[str], given: dict[str, Words]) -> None:
    own = fill(ConvertOptions, given)
    if len(paths) != 2:
        raise UserError("data convert needs two paths: jaxrl data convert data.hdf5 data.npz")
    source, target = map(Path, paths)
    _check_free(target)
    data = datasets.load(source, own.max_episode_steps)
    datasets.save(target, data)
    print_line(f"{target}: {len(data.transitions.reward):,} rows")


def _retrieve(paths: list[str], given: dict[str, Words]) -> None:
    own = fill(RetrieveOptions, given)
    if len(paths) != 2:
        raise UserError(
            "data retrieve needs two datasets: jaxrl data retrieve prior.npz expert.npz"
        )
    _check_free(own.out)
    prior, expert = (datasets.load(path) for path in paths)
    _keep(own.out, retrieve.retrieve(prior, expert, own))


def _make(envs: list[str], given: dict[str, Words]) -> None:
    if "from_diffusion" in given:
        return _make_synthetic(envs, given)
    own, rest = take(MakeOptions, given)
    if len(envs) != 1 or not own.level:
        raise UserError(
            "data make needs an environment and a level: jaxrl data make Pendulum-v1 "
            "--level medium --steps 20000"
        )
    (env,) = envs
    names.check_name(env)
    levels = own.level.split(",")
    if twice := next((x for x in levels if levels.count(x) > 1), None):
        raise UserError(f"--level {own.level}: {twice} is there twice")
    suffix = own.out.suffix
    if suffix[1:2].isalpha() and suffix not in (".npz", ".hdf5") and not own.out.is_dir():
        raise UserError(
            f"--out {own.out}: a dataset is a .npz or .hdf5 file; the name of a new folder has no "
            f"suffix such as {suffix}"
        )
    files = {x: own.out / f"{env.replace(':', '-')}-{x}-{own.steps}.npz" for x in levels}
    if suffix in (".npz", ".hdf5"):
        if len(levels) > 1:
            raise UserError(f"--out {own.out} is one file: {len(levels)} levels need a folder")
        files = {own.level: own.out}
    with _reserved(*files.values()):
        for each, data in collect.make(env, levels, own.steps, own.agent, rest, own.success):
            _keep(files[each], data)


def _make_synthetic(envs: list[str], given: dict[str, Words]) -> None:
    own = fill(DiffusionOptions, given)
    if len(envs) != 1:
        raise UserError(
            "data make needs an environment: jaxrl data make dmsd --from-diffusion runs/NAME "
            "--steps 20000 --out data.npz"
        )
    (env,) = envs
    names.check_name(env)
    file = own.out or Path(f"data/{env.replace(':', '-')}-synthetic-{own.steps}.npz")
    with _reserved(file):
        made = generate.make(env, own.from_diffusion, own.steps, own.member, own.seed, own.trust)
        _keep(file, made)


@contextlib.contextmanager
def _reserved(*files: Path) -> Iterator[None]:
    """Context in which no other process makes one of the datasets `files`, which do not exist."""
    for file in files:
        _check_free(file)
    with contextlib.ExitStack() as stack:
        for file in files:
            stack.callback(remove_empty, make_folder(file.parent))
            guard = file.with_name(f".{file.name}.lock")
            stack.enter_context(lock_file(guard, file))
            stack.callback(guard.unlink, missing_ok=True)
            _check_free(file)  # another process may just have made the dataset
        yield


def _check_free(file: Path) -> None:
    datasets.check_suffix(file)
    if file.exists():
        raise UserError(f"{file} exists already")


def _keep(file: Path, data: Dataset) -> None:
    """Writes a dataset and prints a description of it."""
    datasets.save(file, data)
    print_line("\n".join([str(file), *describe(datasets.load(file))]))


# --- description of a dataset ---------------------------------------------------------------------


def describe(data: Dataset) -> list[str]:
    """Lines on size, episode ends, returns, actions, duplicates and extras of a dataset."""
    t, meta = data.transitions, data.meta
    returns, lengths = episode_returns(t)
    lines = [
        f"{meta['env']}: {len(t.reward):,} rows, {len(returns):,} episodes; obs "
        f"{t.obs.shape[1:]}, action {t.action.shape[1:]} {t.action.dtype}",
        f"ends: {int(t.terminated.sum()):,} terminated, {int(t.truncated.sum()):,} truncated",
        f"return  {_spread(returns)}",
        f"length  {_spread(lengths)}",
        f"reward  {_spread(t.reward)}",
    ]
    level = float(t.reward.mean(dtype=np.float64))
    if not t.terminated.any() and abs(level) > t.reward.std(dtype=np.float64):
        lines.append(
            f"level   --agent.reward-shift={-level:.3g} subtracts the mean reward; "
            "without terminations this is the same task with a smaller Q"
        )
    if (factor := return_factor(t)) is not None:
        lines.append(
            f"factor  {factor:.6g}, IQL's 1000 / (highest - lowest return): --normalise-returns "
            "multiplies rewards by it"
        )
    if "splits" in meta:
        lines.append(
            f"split   {meta['splits']:,} episodes end only because next_obs differs from the next "
            "row's obs"
        )
    score = normalised_score(meta, returns)
    if score is not None:
        low, high = (meta["reference"][name] for name in ("random", "expert"))
        lines.append(
            f"score   mean {score.mean():.4g} (0: {low:.6g}, random; 100: {high:.6g}, expert)"
        )
    columns = t.action.reshape(len(t.action), -1)
    for i, (low, high) in enumerate(zip(columns.min(0), columns.max(0), strict=True)):
        lines.append(f"action {i}  {low:.4g} to {high:.4g}")
    lines.append(f"duplicates: {duplicates(data):,} rows; all numbers are finite")
    if t.extras:
        lines.append(f"extras: {', '.join(sorted(t.extras))}")
    return [*lines, f"sha256 {meta['sha256']}"]


def duplicates(data: Dataset) -> int:
    """Number of rows whose obs, action, reward and next_obs equal those of an earlier row."""
    t = data.transitions
    columns: list[Any] = [np.ascontiguousarray(x) for x in (t.obs, t.action, t.reward, t.next_obs)]
    views = [x.reshape(len(x), -1).view(np.uint8) for x in columns]
    digest = lambda row: int.from_bytes(hashlib.blake2b(b"".join(row), digest_size=8).digest())
    whole = np.fromiter((digest(row) for row in zip(*views, strict=True)), np.uint64)
    return len(whole) - len(np.unique(whole))


def _spread(x: Any) -> str:
    x = np.asarray(x, np.float64)
    low, middle, high = np.quantile(x, [0, 0.5, 1])
    return f"mean {x.mean():.6g}, std {x.std():.4g}, {low:.6g} to {high:.6g}, median {middle:.6g}"


def draw(file: Path, data: Dataset) -> None:
    """Histograms of returns, episode lengths, rewards and actions."""
    t = data.transitions
    returns, lengths = episode_returns(t)
    panels = {
        "return of an episode": (returns, "episodes"),
        "length of an episode": (lengths, "episodes"),
        "reward": (t.reward, "steps"),
        "action, each dimension": (t.action.reshape(len(t.action), -1), "steps"),
    }
    title = f"{data.meta['env']}: {len(t.reward):,} rows, {len(returns):,} episodes"
    trial_plots.histograms(file, panels, title)
