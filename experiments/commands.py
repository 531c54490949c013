"""Options and help pages of commands without an agent. Importing this file does not import JAX."""

from __future__ import annotations

import dataclasses
import textwrap
from pathlib import Path
from typing import Literal, NamedTuple

from jaxrl.experiments.help import WIDTH, describe
from jaxrl.experiments.options import Options
from jaxrl.experiments.values import fields_of
from jaxrl.ranges import bounded


@dataclasses.dataclass(frozen=True)
class EvalOptions:
    """Options of `jaxrl eval`."""

    episodes: int = bounded(128, least=1)
    """episodes per member"""
    seed: int = bounded(0, least=0)
    """seed of the evaluation; equal seeds give equal episodes"""
    member: int | None = bounded(None, least=0)
    """index of the only member to show; by default all members"""
    csv: Path | None = None
    """CSV file to write, with one row per member"""
    eval_steps: tuple[int, ...] = ()
    """numbers of sampling steps to compare, for example 1,2,4,8; for agents with a setting
    eval_steps (ofql)"""
    agent: str | None = None
    """custom agent of the run, to confirm that its code may run"""
    env: str | None = None
    """custom environment of the run, to confirm that its code may run"""
    trust: bool = False
    """import every custom agent and environment that the run names; runs the code of whoever wrote
    them"""
    eval_explore: bool = False
    """act with exploration, as in training, instead of greedily"""


@dataclasses.dataclass(frozen=True)
class RenderOptions:
    """Options of `jaxrl render`."""

    member: int = bounded(0, least=0)
    """index of the member"""
    seed: int = bounded(0, least=0)
    """seed of the episode"""
    out: Path | None = None
    """file to write: .gif, or .html for Brax's interactive viewer; by default in the run's plots
    folder"""
    agent: str | None = None
    """custom agent of the run, to confirm that its code may run"""
    env: str | None = None
    """custom environment of the run, to confirm that its code may run"""
    trust: bool = False
    """import every custom agent and environment that the run names; runs the code of whoever wrote
    them"""


@dataclasses.dataclass(frozen=True)
class ExportOptions:
    """Options of `jaxrl export`."""

    to: Literal["jax", "safetensors", "onnx", "hub"] = "jax"
    """format: jax loads with JAX alone, safetensors with numpy alone, onnx with ONNX Runtime; hub
    is a folder for a model hub; writing onnx needs the package jax2onnx"""
    member: int = bounded(0, least=0)
    """index of the member"""
    out: Path | None = None
    """folder to write; by default exports/ in the run's folder"""
    agent: str | None = None
    """custom agent of the run, to confirm that its code may run"""
    env: str | None = None
    """custom environment of the run, to confirm that its code may run"""
    trust: bool = False
    """import every custom agent and environment that the run names; runs the code of whoever wrote
    them"""


@dataclasses.dataclass(frozen=True)
class ReproduceOptions:
    """Options of `jaxrl reproduce`."""

    full: bool = False
    """larger sizes, up to the paper's, instead of a small setting"""
    dry_run: bool = False
    """print the claim and the commands, and run nothing"""
    out: Path | None = None
    """JSON file of the results; by default in reproductions/"""


@dataclasses.dataclass(frozen=True)
class TrackOptions:
    """Options of `jaxrl track`."""

    to: str = "tensorboard"
    """tracker: tensorboard, wandb, trackio, mlflow, or module:attribute for a tracker of your
    own"""


@dataclasses.dataclass(frozen=True)
class ReportOptions:
    """Options of `jaxrl report`."""

    out: Path | None = None
    """file of the learning curves: .png, .pdf or .svg; the sensitivity plot goes to
    NAME-sensitivity"""
    over: str | None = None
    """reference of P(better): a run, or values such as agent.lr=1e-4; by default the first point"""
    csv: Path | None = None
    """CSV file with one row per point; NAME-members.csv gets one row per member"""
    html: Path | None = None
    """self-contained page with the table, interactive learning curves and performance profiles"""
    target: float | None = None
    """return that counts as solved, for the optimality gap: target - mean of min(return, target)
    over members"""


@dataclasses.dataclass(frozen=True)
class OpeOptions:
    """Options of `jaxrl ope`."""

    data: Path | None = None
    """dataset: .npz, D4RL's .hdf5, or a Minari folder"""
    epsilon: tuple[float, ...] = ()
    """probabilities of random actions of the evaluated policies, one candidate each, for discrete
    actions; by default 0, the greedy policy"""
    std: tuple[float, ...] = ()
    """std of normal noise around greedy actions, in half action ranges, one candidate each, for
    boxes; by default 0, of which FQE alone gives estimates"""
    gamma: float = bounded(0.99, least=0, most=1)
    """discount factor"""
    behaviour: Literal["auto", "data", "fitted"] = "auto"
    """source of the behaviour policy's log-probabilities: recorded in the data, or a policy fitted
    to the data; auto takes recorded ones for discrete actions if there are any"""
    updates: int = bounded(20_000, least=1)
    """gradient steps of FQE, and of the fitted behaviour policy"""
    batch_size: int = bounded(256, least=1)
    """transitions per gradient step"""
    hidden: tuple[int, ...] = bounded((128, 128), least=1)
    """widths of the hidden layers of FQE and of the fitted behaviour policy"""
    lr: float = bounded(3e-4, least=0)
    """learning rate of Adam"""
    tau: float = bounded(0.1, least=0, most=1)
    """Polyak step size of FQE's target network; FQE needs several times 1 / (tau (1 - gamma))
    updates"""
    episodes: int = bounded(0, least=0)
    """episodes per candidate to play for true values, which show how well the estimates agree; by
    default none"""
    seed: int = bounded(0, least=0)
    """seed of these episodes"""
    out: Path | None = None
    """file of the SharpeRatio@k figure: .png, .pdf or .svg; needs --episodes"""
    csv: Path | None = None
    """CSV file to write, with one row per candidate"""
    agent: str | None = None
    """custom agent of the runs, to confirm that its code may run"""
    env: str | None = None
    """custom environment of the runs, to confirm that its code may run"""
    trust: bool = False
    """import every custom agent and environment that the runs name; runs the code of whoever wrote
    them"""


@dataclasses.dataclass(frozen=True)
class MergeOptions:
    """Options of `jaxrl merge`."""

    alpha: tuple[str, ...] = ("0", "0.25", "0.5", "0.75", "1")
    """weights of the second run, from 0 to 1: values, or a range such as lin:0:1:11"""
    out: Path | None = None
    """folder in which the merge is written as a run, with the settings of the first run; with
    several weights, the folder of one run per weight"""
    overwrite: bool = False
    """start from scratch if a folder already contains a run"""
    episodes: int = bounded(128, least=1)
    """episodes per member and weight"""
    seed: int = bounded(0, least=0)
    """seed of the evaluation; equal seeds give equal episodes"""
    csv: Path | None = None
    """CSV file to write, with one row per weight and member"""
    agent: str | None = None
    """custom agent of the runs, to confirm that its code may run"""
    env: str | None = None
    """custom environment of the runs, to confirm that its code may run"""
    trust: bool = False
    """import every custom agent and environment that the runs name; runs the code of whoever wrote
    them"""


@dataclasses.dataclass(frozen=True)
class PeakOptions:
    """Options of `jaxrl peak`."""

    out: Path | None = None
    """folder of the run that is written"""
    metric: str = "q"
    """metric whose largest value over the evaluations is chosen: q, the mean Q of the dataset's
    actions, or another one, such as ope_fqe"""
    overwrite: bool = False
    """start from scratch if the folder already contains a run"""
    agent: str | None = None
    """custom agent of the run, to confirm that its code may run"""
    env: str | None = None
    """custom environment of the run, to confirm that its code may run"""
    trust: bool = False
    """import every custom agent and environment that the run names; runs the code of whoever wrote
    them"""


@dataclasses.dataclass(frozen=True)
class InfoOptions:
    """Options of `jaxrl data info`."""

    out: Path | None = None
    """file of the histograms: .png, .pdf or .svg; by default a PNG beside the dataset"""
    max_episode_steps: int | None = bounded(None, least=1)
    """time limit of episodes, for D4RL files without timeouts"""


@dataclasses.dataclass(frozen=True)
class ConvertOptions:
    """Options of `jaxrl data convert`."""

    max_episode_steps: int | None = bounded(None, least=1)
    """time limit of episodes, for D4RL files without timeouts"""


@dataclasses.dataclass(frozen=True)
class MakeOptions:
    """Options of `jaxrl data make`, in addition to those of training."""

    level: str = ""
    """levels of the datasets, separated by commas: random, medium, expert, medium-replay,
    medium-expert, noisy; for mazes play, diverse, expert, random; for reach:sparse expert, noisy,
    random; for the lock guided, expert, random"""
    success: float = bounded(0.5, least=0, most=1)
    """mean return of the level noisy, from 0 for random to 1 for expert"""
    steps: int = bounded(100_000, least=1)
    """rows of each dataset"""
    agent: str | None = None
    """agent that is trained first; by default sac, or ppo for discrete actions"""
    out: Path = Path("data")
    """folder of the datasets, or the file of a single one: .npz or .hdf5"""


@dataclasses.dataclass(frozen=True)
class DiffusionOptions:
    """Options of `jaxrl data make --from-diffusion`."""

    from_diffusion: Path
    """pgd_iql run whose diffusion model is sampled"""
    steps: int = bounded(100_000, least=1)
    """rows of the dataset"""
    member: int = bounded(0, least=0)
    """index of the member"""
    seed: int = bounded(0, least=0)
    """seed of the samples"""
    out: Path | None = None
    """file of the dataset: .npz or .hdf5; by default in data/"""
    trust: bool = False
    """import a custom agent that the run names; runs the code of whoever wrote the run"""


@dataclasses.dataclass(frozen=True)
class RetrieveOptions:
    """Options of `jaxrl data retrieve`."""

    threshold: float = bounded(0.85, least=0, most=1)
    """lowest score of the rows that are kept, from 0 (farthest) to 1 (nearest)"""
    balance: bool = False
    """repeat the demonstrations until they are about as many rows as those retrieved"""
    updates: int = bounded(20_000, least=1)
    """gradient steps of the autoencoder"""
    hidden: tuple[int, ...] = bounded((256, 256), least=1)
    """widths of the hidden layers of the autoencoder"""
    latent: int = bounded(14, least=1)
    """latent dimensions of the autoencoder"""
    seed: int = bounded(0, least=0)
    """seed of the autoencoder"""
    out: Path = Path("data/retrieved.npz")
    """file of the dataset: .npz or .hdf5"""


class Page(NamedTuple):
    """Help of one command.

    Attributes:
      usage: the words after `jaxrl`.
      about: what the command does, in sentences.
      options: dataclasses with its options.
      example: a whole command.
    """

    usage: str
    about: str
    options: tuple[type, ...]
    example: str


PAGES = {
    "train": Page(
        "train AGENT --env ENV [options] | FILE.yaml [options] | RUN/config.json [options]",
        "Trains a population of members, or continues a stopped run. `jaxrl train AGENT --help` "
        "also shows the settings of the agent.",
        (Options,),
        "jaxrl train pqn --env CartPole-v1 --seeds 8",
    ),
    "sweep": Page(
        "sweep AGENT --env ENV --sweep NAME=VALUES [--sweep ...] [options]",
        "Trains all combinations of values and seeds. Values: 1,2,3; [64,64],[256,256]; "
        "log:1e-5:1e-2:4; lin:0:1:5. `jaxrl sweep AGENT --help` also shows the settings of the "
        "agent.",
        (Options,),
        "jaxrl sweep pqn --env CartPole-v1 --sweep agent.lr=1e-4,3e-4 --seeds 8 --dry-run",
    ),
    "search": Page(
        "search AGENT --env ENV --range NAME=VALUES [--range ...] [--trials N] [options]",
        "Searches hyperparameters with Optuna. Ranges: log:1e-5:1e-2, lin:0:1, or a list of "
        "values. `jaxrl search AGENT --help` also shows the options of the search and the "
        "settings of the agent.",
        (Options,),
        "jaxrl search pqn --env CartPole-v1 --trials 64 --range agent.lr=log:1e-5:1e-2",
    ),
    "eval": Page(
        "eval RUN [options]",
        "Evaluates the members of a run on fresh episodes with their greedy policies.",
        (EvalOptions,),
        "jaxrl eval runs/NAME --episodes 256 --csv eval.csv",
    ),
    "report": Page(
        "report PATH [PATH ...] [options]",
        "Prints a table of runs and sweeps and draws learning curves, also during training. PATH "
        "is a run, a sweep, or a folder of runs. A search is reported by itself, without options.",
        (ReportOptions,),
        "jaxrl report runs/A runs/B --out curves.pdf",
    ),
    "ope": Page(
        "ope RUN [RUN ...] --data FILE [options]",
        "Estimates values of trained policies from a dataset of another policy, without playing "
        "them: fitted Q-evaluation (fqe), trajectory-wise and per-decision importance sampling "
        "(tis, pdis), doubly robust (dr), and their self-normalised forms (sntis, snpdis, sndr). "
        "The candidates are all members of the runs, each with every --epsilon or --std.",
        (OpeOptions,),
        "jaxrl ope runs/A runs/B --data data.npz --epsilon 0,0.1",
    ),
    "merge": Page(
        "merge RUN_A RUN_B [options]",
        "Merges trained policies in weight space, (1 - alpha) A + alpha B, member by member, and "
        "evaluates them in the environments of both runs. For a policy B that was fine-tuned from "
        "A on another task. Weights: 0,0.5,1, or lin:0:1:11. With --out, the merges are written "
        "as runs.",
        (MergeOptions,),
        "jaxrl merge runs/old runs/new --alpha 0.5 --out runs/merged",
    ),
    "peak": Page(
        "peak RUN --out FOLDER [options]",
        "Writes a run with the policy that each member of an offline run had at the peak of a "
        "metric, by default the mean Q of the dataset's actions, whose fall shows overfitting. "
        "The run must keep its checkpoints: --checkpoint-seconds 0 --keep 100.",
        (PeakOptions,),
        "jaxrl peak runs/NAME --out runs/NAME-peak",
    ),
    "render": Page(
        "render RUN [options]",
        "Renders one episode of a member as a GIF: classic control, MinAtar, mazes, and custom "
        "environments with a function `render`. Brax environments are written as HTML.",
        (RenderOptions,),
        "jaxrl render runs/NAME --member 3",
    ),
    "export": Page(
        "export RUN [options]",
        "Writes the greedy policy of a member, with its normalisation of observations, as files "
        "that load without jaxrl, and a model card.",
        (ExportOptions,),
        "jaxrl export runs/NAME --member 3 --to jax",
    ),
    "track": Page(
        "track RUN --to TRACKER",
        "Sends the metrics and results of a run, finished or in progress, to a tracker.",
        (TrackOptions,),
        "jaxrl track runs/NAME --to wandb",
    ),
    "reproduce": Page(
        "reproduce NAME [options]",
        "Runs the experiment that tests a claim of a paper, and prints and writes its results "
        "beside the claim and the published ones. `jaxrl list reproductions` shows the names. "
        "Works below runs/ and data/ in the current directory; finished runs are not repeated.",
        (ReproduceOptions,),
        "jaxrl reproduce pqn-memory --dry-run",
    ),
    "list": Page(
        "list agents | envs | reproductions",
        "Prints the available agents, environments, or reproductions of papers' claims.",
        (),
        "jaxrl list envs",
    ),
    "data info": Page(
        "data info FILE [options]",
        "Describes a dataset and draws histograms.",
        (InfoOptions,),
        "jaxrl data info data.npz --out data.svg",
    ),
    "data convert": Page(
        "data convert FROM TO [options]",
        "Converts a dataset to another format, by the suffix of TO: .npz, .hdf5, or a Minari "
        "folder.",
        (ConvertOptions,),
        "jaxrl data convert halfcheetah-medium.hdf5 halfcheetah-medium.npz",
    ),
    "data retrieve": Page(
        "data retrieve PRIOR EXPERT [options]",
        "Adds the rows of a large dataset to a few demonstrations that resemble them: the nearest "
        "in the latent space of an autoencoder of observations and actions (Behavior Retrieval).",
        (RetrieveOptions,),
        "jaxrl data retrieve prior.npz expert.npz --threshold 0.85 --out both.npz",
    ),
    "data make": Page(
        "data make ENV --level LEVEL[,LEVEL ...] [options] | ENV --from-diffusion RUN [options]",
        "Collects datasets with a policy of each level. First an agent is trained, with any option "
        "of `jaxrl train`, whatever the level: normalised scores need the expert's return. Mazes, "
        "the lock and reach:sparse need no training. With --from-diffusion, samples the diffusion "
        "model of a pgd_iql run.",
        (MakeOptions, DiffusionOptions),
        "jaxrl data make Pendulum-v1 --level medium,expert --steps 20000",
    ),
}


def command_help(command: str) -> str:
    """The text of `jaxrl COMMAND --help` for one of `PAGES`."""
    page = PAGES[command]
    lines = [f"usage: jaxrl {page.usage}", "", *textwrap.wrap(page.about, WIDTH)]
    for record in page.options:
        lines += ["", f"{str(record.__doc__).lower().rstrip('.')}:", ""]
        for field in fields_of(record, help=True).values():
            lines += describe(field)
    return "\n".join([*lines, "", f"example: {page.example}"])


def asked_help(words: list[str]) -> str | None:
    """The page that `jaxrl WORDS` asks for; None if it asks for none of `PAGES`.

    `jaxrl help eval`, `jaxrl eval --help` and `jaxrl eval RUN --help` ask for the same page. With
    an agent, train, sweep and search have longer pages of their own.
    """
    flags = {"-h", "--help"}
    plain = [word for word in words if word not in flags]
    if plain[:1] == ["help"]:
        plain = plain[1:]
    elif not flags & set(words):
        return None
    for length in (2, 1):
        command = " ".join(plain[:length])
        if command in PAGES:
            longer = command in ("train", "sweep", "search") and len(plain) > length
            return None if longer else command_help(command)
    return None
