"""Settings of a run: defaults, overlaid by a preset, overlaid by the request."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxrl.algorithm import Algorithm
from jaxrl.envs.wrappers import british
from jaxrl.errors import UserError, nearest
from jaxrl.evaluate import divisor
from jaxrl.experiments import agents
from jaxrl.experiments.options import INCIDENTAL, LATER, Options
from jaxrl.experiments.requests import flatten, merged
from jaxrl.experiments.values import Field, convert, fields_of, load_yaml, named

PRESETS = Path(__file__).parent / "presets"


@dataclasses.dataclass(frozen=True)
class Settings:
    """The complete settings of a run: agent, options, static and traced settings of the agent.

    Attributes:
      points: traced values by dotted name, such as {"agent.lr": 1e-4, "env.gravity": 9.8}, which
        replace those of `hp` and the environment's parameters; "base" is the index of a base run.
        All points have the same names, and each is trained with every seed.
      given: names of the options that the request or the preset sets.
    """

    agent: str
    options: Options
    cfg: Any
    hp: Any
    points: tuple[dict[str, Any], ...] = ({},)
    given: frozenset[str] = dataclasses.field(default=frozenset(), compare=False)

    @property
    def swept(self) -> tuple[str, ...]:
        """Dotted names of the values that differ between members, apart from seeds."""
        return tuple(self.points[0])

    @property
    def bases(self) -> list[int]:
        """The index of each point's base run, for an agent that builds on trained runs."""
        return [int(point.get("base", 0)) for point in self.points]


def identity(settings: Settings, digests: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that determines the results, and hence the name of the run.

    Args:
      digests: content hashes of the datasets and runs that are read, {"data": ..., "base": [...]}.
    """
    options = dataclasses.asdict(settings.options)
    kept = {k: v for k, v in options.items() if k not in INCIDENTAL}
    for name in LATER:
        if kept[name] == getattr(Options, name):
            del kept[name]
    kept["interim_episodes"] = divisor(kept["eval_episodes"], kept["interim_episodes"])
    # Runs from before this option played all episodes at every evaluation.
    if kept["interim_episodes"] == kept["eval_episodes"]:
        del kept["interim_episodes"]
    own = dataclasses.asdict(settings.cfg) | dataclasses.asdict(settings.hp)
    points = {"points": list(settings.points)} if settings.swept else {}
    return {"agent": settings.agent, **kept, **digests, "settings": own, **points}


def resolve(agent: str, options: Mapping[str, Any]) -> Settings:
    """The settings of a request.

    Args:
      agent: a name for `agents.load`.
      options: nested, {"env": ..., "agent": {"lr": ...}}, or by dotted name, in any form that
        `values.convert` accepts. "points" are those of `Settings`.

    Raises:
      UserError: an unknown option or preset, a missing environment, or a value that does not fit.
    """
    algorithm = agents.load(agent)
    known = known_fields(algorithm)
    options = flatten(options)
    points = options.pop("points", None)
    given = canonical(algorithm, options)
    env = given.get("env")
    if env in (None, "", (), ("",)):
        raise UserError(f"{agent} needs an environment: pass --env, as in --env CartPole-v1")
    values = {name: convert(known[name], value) for name, value in given.items()}
    preset = preset_values(agent, algorithm, values["env"], values.get("preset", "auto"))
    values = merged(preset, values)
    of = lambda record, prefix="": {
        field.name: values[f"{prefix}{field.name}"]
        for field in dataclasses.fields(record)
        if f"{prefix}{field.name}" in values
    }
    own = Options(**of(Options))
    own = dataclasses.replace(own, env_options={british(k): x for k, x in own.env_options.items()})
    hp = algorithm.Hypers(**of(algorithm.Hypers, "agent."))
    settings = Settings(agent, own, algorithm.Config(**of(algorithm.Config, "agent.")), hp)
    settings = dataclasses.replace(settings, given=frozenset(values))
    if points is not None:
        return dataclasses.replace(settings, points=_points(points))
    if not own.base:
        return settings
    if algorithm.base_points is None:
        raise UserError(f"{agent} does not build on other runs: remove --base")
    return dataclasses.replace(settings, points=algorithm.base_points(hp, len(own.base)))


def known_fields(algorithm: Algorithm) -> dict[str, Field]:
    """All options of a run of the agent, by dotted name."""
    own = fields_of(algorithm.Config, "agent.") | fields_of(algorithm.Hypers, "agent.")
    return fields_of(Options) | own


def canonical(algorithm: Algorithm, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options under the names of their fields.

    Names that only the agent has need no "agent." prefix; "from" is short for "from_run".
    """
    known = known_fields(algorithm)
    bare = {name.removeprefix("agent."): name for name in known if name.startswith("agent.")}
    aliases = {short: name for short, name in bare.items() if short not in known}
    return named(known, options, aliases | {"from": "from_run"})


def preset_values(agent: str, algorithm: Algorithm, env: str, preset: str) -> dict[str, Any]:
    """The typed values of a preset."""
    known = known_fields(algorithm)
    try:
        found = canonical(algorithm, flatten(load_preset(agent, env, preset)))
        return {name: convert(known[name], value) for name, value in found.items()}
    except UserError as error:
        if preset == "auto":
            raise UserError(f"the preset of {env}: {error}") from None
        raise


def load_preset(agent: str, env: str, preset: str) -> dict[str, Any]:
    """The preset for `env`; {} for "none", and for "auto" if no preset is named after it."""
    file = PRESETS / f"{agent}.yaml"
    known = load_yaml(file.read_text()) if file.is_file() else {}
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


def _points(points: Any) -> tuple[dict[str, Any], ...]:
    """Points read from JSON, which stores infinities as texts."""
    number = lambda x: float(x) if isinstance(x, str) else x
    return tuple({name: number(x) for name, x in point.items()} for point in points)
