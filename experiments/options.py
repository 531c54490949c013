"""Options of a run: defaults, overlaid by a preset, overlaid by the command line."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import functools
import io
import itertools
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, TypeVar

import tyro
import yaml

from jaxrl.envs import datasets
from jaxrl.errors import UserError, nearest
from jaxrl.experiments.requests import option_names, value_of
from jaxrl.experiments.run_folders import count_members, settings_digest, state_digest

PRESETS = Path(__file__).parent / "presets"


@dataclasses.dataclass(frozen=True)
class Options:
    """What every training run can be told, beside its agent's own settings."""

    env: str
    """environment: a name of `jaxrl list envs`, or module:attribute for your own"""
    env_options: tuple[str, ...] = ()
    """settings of the environment, as in gravity=1.6; every one takes max_steps=200, hide=[1,3]
    (elements of observations), sticky=0.25, normalise_obs=true, normalise_reward=0.99"""
    data: Path | None = None
    """dataset that an offline agent learns from: .npz, D4RL's .hdf5, or a Minari folder"""
    base: tyro.conf.UseAppendAction[tuple[Path, ...]] = ()
    """run whose trained policies are built on, for agents that do; several by giving it again"""
    from_run: Path | None = None
    """run whose finished models are used, not trained anew; --from for short"""
    preset: str = "auto"
    """'auto' takes the one named like the environment, 'none' takes none"""
    seeds: int = 1
    """members of the population, one per seed"""
    seed: int = 0
    """seed of the first member; the others count on from it"""
    evals: int = 20
    """evaluations during the run, the last one at its end"""
    eval_episodes: int = 32
    """whole episodes in each evaluation of each member"""
    out: Path | None = None
    """folder of the run; by default runs/ and a name made from all settings"""
    overwrite: bool = False
    """start again where the folder holds a run"""
    checkpoint_seconds: float = 60.0
    """time between checkpoints; 0 writes one at every evaluation"""
    keep: int = 2
    """checkpoints that are kept"""
    devices: int | None = None
    """devices to use; by default all (on CPUs one per core)"""
    width: int | None = None
    """members per tile; by default a rule chooses. Another width changes results by rounding"""
    tensorboard: bool = False
    """write TensorBoard files: quantiles over members"""
    coordinator: str | None = None
    """host:port of process 0, where no cluster tells; every process gets the same"""
    processes: int | None = None
    """processes that share the run; needs --coordinator"""
    process_id: int | None = None
    """which of them this one is, from 0 on"""
    heartbeat: int = 100
    """seconds of silence after which a process counts as dead, and ends the others"""
    watchdog: float = 3600.0
    """seconds without progress after which the process ends itself; 0 never"""


# What may differ when a run is continued or repeated: results are the same but for rounding. Of the
# data and of other runs it is the contents that decide, wherever they lie.
INCIDENTAL = (
    "data", "base", "from_run", "out", "overwrite", "checkpoint_seconds", "keep", "devices",
    "width", "tensorboard", "preset", "coordinator", "processes", "process_id", "heartbeat",
    "watchdog",
)  # fmt: skip

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Settings:
    """A run, resolved: its agent, options, and the agent's static and traced settings.

    Attributes:
      points: traced values by dotted name, as {"agent.lr": 1e-4, "env.gravity": 9.8}, over `hp` and
        the environment's parameters. Every point is trained with every seed, and all have the
        same names.
    """

    agent: str
    options: Options
    cfg: Any
    hp: Any
    points: tuple[dict[str, Any], ...] = ({},)

    @property
    def swept(self) -> tuple[str, ...]:
        """Dotted names of what differs between members, beside their seeds."""
        return tuple(self.points[0])

    def identity(self) -> dict[str, Any]:
        """What decides the results, and so names the run."""
        options = dataclasses.asdict(self.options)
        kept = {k: v for k, v in options.items() if k not in INCIDENTAL}
        own = dataclasses.asdict(self.cfg) | dataclasses.asdict(self.hp)
        points = {"points": list(self.points)} if self.swept else {}
        data = self.options.data
        contents = {"data": dataset(data).meta["sha256"]} if data is not None else {}
        if self.options.base:
            contents["base"] = [state_digest(path) for path in self.options.base]
        if self.options.from_run is not None:
            contents["from"] = settings_digest(self.options.from_run)
        return {"agent": self.agent, **kept, **contents, "settings": own, **points}


@functools.lru_cache(maxsize=2)
def dataset(path: Path) -> datasets.Dataset:
    """A dataset, read once for all who ask: it names the run and is trained on."""
    return datasets.load(path)


def parse(agent: str, module: ModuleType, argv: Sequence[str]) -> Settings:
    """Settings from command-line words; tyro prints help and ends the process on --help.

    Raises:
      UserError: an unknown option or preset, a missing --env, or a value of the wrong type.
    """
    argv = full_names(module, argv)
    env = value_of("env", argv)
    if env is None and not {"-h", "--help"} & set(argv):
        raise UserError(f"which environment? As in: jaxrl train {agent} --env CartPole-v1")
    preset = load_preset(agent, env or "", value_of("preset", argv) or "auto")
    start = overlay(agent, module, Options(env or tyro.MISSING), preset)
    Form = dataclasses.make_dataclass(
        "Form",
        [
            ("options", Annotated[Options, tyro.conf.arg(name="")], start.options),
            ("cfg", Annotated[module.Config, tyro.conf.arg(name="agent")], start.cfg),
            ("hp", Annotated[module.Hypers, tyro.conf.arg(name="agent")], start.hp),
        ],
        frozen=True,
    )
    _check_flags(module, argv)
    form: Any = _quietly(
        lambda: tyro.cli(
            Form, args=list(argv), prog=f"jaxrl train {agent}", description=module.__doc__
        )
    )
    _check_numbers("agent.", form.hp)
    _check_numbers("", form.options)
    settings = Settings(agent, form.options, form.cfg, form.hp)
    return on_bases(settings, module, seeds="seeds" in option_names(argv) or "seeds" in preset)


def on_bases(settings: Settings, module: ModuleType, seeds: bool) -> Settings:
    """The settings with a point for each run that is built on, and, unless `seeds` were given, as
    many of these as each run has members.

    Raises:
      UserError: a base that is no run, or that the agent has no use for.
    """
    runs = settings.options.base
    if not runs:
        return settings
    if not hasattr(module, "base_points"):
        raise UserError(f"{settings.agent} builds on no other run and takes no --base")
    count = settings.options.seeds if seeds else min(map(count_members, runs))
    options = dataclasses.replace(settings.options, seeds=count)
    points = module.base_points(settings.hp, len(runs))
    return dataclasses.replace(settings, options=options, points=points)


def full_names(module: ModuleType, argv: Sequence[str]) -> list[str]:
    """The words with --lr as --agent.lr, where the agent has such a setting and a run has not, and
    with --from, a word of Python's own, as --from-run."""
    of = lambda *records: {f.name for record in records for f in dataclasses.fields(record)}
    own = of(module.Config, module.Hypers) - of(Options)
    found = []
    for word in argv:
        name, equals, value = word.partition("=")
        bare = name.removeprefix("--").replace("-", "_")
        if name.startswith("--") and {bare, bare.removeprefix("no_")} & own:
            word = f"--agent.{name.removeprefix('--')}{equals}{value}"
        elif name == "--from":
            word = f"--from-run{equals}{value}"
        found.append(word)
    return found


def take(record: type[T], words: Sequence[str], prog: str) -> tuple[T, list[str]]:
    """The record filled from those words that are its options, and the other words."""
    names = [field.name.replace("_", "-") for field in dataclasses.fields(record)]  # type: ignore[arg-type]
    flags = {f"--{name}" for name in names} | {f"--no-{name}" for name in names}
    own, rest, taking = [], [], False
    for word in words:
        if word.startswith("--"):
            taking = word.partition("=")[0].replace("_", "-") in {*flags, "--help"}
        (own if taking else rest).append(word)
    return _quietly(lambda: tyro.cli(record, args=own, prog=prog)), rest


def overlay(agent: str, module: ModuleType, options: Options, values: dict[str, Any]) -> Settings:
    """Defaults overlaid by a mapping such as a preset: options, and the agent's under "agent"."""
    values = dict(values)
    own = dict(values.pop("agent", {}))
    hypers = {f.name for f in dataclasses.fields(module.Hypers)}
    hp = {name: own.pop(name) for name in list(own) if name in hypers}
    return Settings(
        agent,
        _replace(options, values, "the preset"),
        _replace(module.Config(), own, "the preset's agent"),
        _replace(module.Hypers(), hp, "the preset's agent"),
    )


def load_preset(agent: str, env: str, preset: str) -> dict[str, Any]:
    """The preset for `env`: {} for "none", and for "auto" where there is none of its name."""
    file = PRESETS / f"{agent}.yaml"
    known = yaml.safe_load(file.read_text()) if file.is_file() else {}
    if preset == "none" or (preset == "auto" and env not in known):
        return {}
    own = {name.removeprefix(f"{env}/"): value for name, value in known.items()}
    found = own | known
    name = env if preset == "auto" else preset
    if name not in found:
        raise UserError(
            f"{agent} has no preset {preset!r}{nearest(preset, found)}; it has "
            f"{', '.join(known) or 'none'}"
        )
    return found[name]


def env_options(words: Sequence[str]) -> dict[str, Any]:
    """["gravity=1.6", "max_steps=200"] as {"gravity": 1.6, "max_steps": 200}."""
    pairs = {}
    for word in words:
        name, equals, text = word.partition("=")
        if not name or not equals:
            raise UserError(f"--env-options takes name=value, not {word!r}")
        try:
            pairs[name] = _number(yaml.safe_load(text))
        except yaml.YAMLError:
            raise UserError(f"--env-options: {text!r} is no value that YAML can read") from None
    return pairs


def _replace(record: T, values: dict[str, Any], what: str) -> T:
    names = [f.name for f in dataclasses.fields(record)]  # type: ignore[arg-type]
    for name in values:
        if name not in names:
            raise UserError(f"{what} sets unknown {name!r}{nearest(name, names)}")
    return retype(record, values)


def retype(record: T, values: dict[str, Any]) -> T:
    """The record with the values that name one of its fields, as from YAML or JSON.

    They are converted to the types of what they replace: lists to tuples, 1 to 1.0.
    """
    names = {f.name for f in dataclasses.fields(record)}  # type: ignore[arg-type]
    values = {name: value for name, value in values.items() if name in names}
    for name, value in values.items():
        old = getattr(record, name)
        if isinstance(old, tuple):
            value = tuple(value)
        elif isinstance(old, bool | int | float) and not isinstance(value, bool):
            value = type(old)(value)
        values = values | {name: value}
    return dataclasses.replace(record, **values)  # type: ignore[type-var]


def _number(value: Any) -> Any:
    """YAML reads 1e-4 as text; so does nobody else."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _check_flags(module: ModuleType, argv: Sequence[str]) -> None:
    """One line with the nearest option, where tyro would print a box."""
    records = [("", Options("")), ("agent.", module.Config()), ("agent.", module.Hypers())]
    fields = [
        (prefix, name.replace("_", "-"), value)
        for prefix, record in records
        for name, value in dataclasses.asdict(record).items()
    ]
    flags = {f"--{prefix}{name}" for prefix, name, _ in fields} | {"--help"}
    flags |= {f"--{prefix}no-{name}" for prefix, name, value in fields if isinstance(value, bool)}
    for word in argv:
        flag = word.partition("=")[0].replace("_", "-")
        if flag.startswith("--") and flag not in flags:
            raise UserError(f"unknown option {flag}{_nearest_flag(flag, flags)}")


def _nearest_flag(flag: str, flags: Iterable[str]) -> str:
    # "--lr" should find --agent.lr: compare without what options have in common.
    bare = lambda flag: flag.removeprefix("--").removeprefix("agent.")
    table = {bare(known): known for known in flags}
    close = difflib.get_close_matches(bare(flag), table, n=1)
    return f", did you mean {table[close[0]]!r}?" if close else ""


def _check_numbers(prefix: str, record: Any) -> None:
    """NaN passes for a number, and nothing that is trained with one comes to anything."""
    for name, value in dataclasses.asdict(record).items():
        if isinstance(value, float) and math.isnan(value):
            raise UserError(f"--{prefix}{name.replace('_', '-')} must be a number, not nan")


def _quietly(call: Any) -> Any:
    """tyro's complaint, which is a drawing, as one line."""
    err = io.StringIO()
    try:
        with contextlib.redirect_stderr(err):
            return call()
    except SystemExit as stop:
        if not stop.code:
            raise
        # In a frame, of ASCII where the terminal has no better, stand a title, the complaint up to
        # a rule or an empty line, and, of a value that does not fit, the option with its type.
        title, *lines = [line.strip("│╭╮╰╯|+ ") for line in err.getvalue().splitlines()]
        rule = lambda line: not line.strip("─-")
        blocks = [list(block) for is_rule, block in itertools.groupby(lines, rule) if not is_rule]
        told = " ".join(blocks[0]) if blocks else title
        if "Argument helptext:" in lines:
            told += f" ({lines[lines.index('Argument helptext:') + 1]})"
        raise UserError(told) from None
