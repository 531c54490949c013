"""Settings of the documentation site: `sphinx-build -W docs build/docs`."""

import ast
import inspect
import re
import sys
import textwrap
from importlib import import_module
from importlib.metadata import version as installed
from pathlib import Path

project = "jaxrl"
author = "The jaxrl developers"
release = version = installed("jaxrl")
extensions = ["myst_parser"]
html_theme = "furo"
html_title = "jaxrl"
html_copy_source = False
html_show_sphinx = False
exclude_patterns = ["pictures"]
myst_heading_anchors = 3
nitpicky = True
smartquotes = False
suppress_warnings = ["myst.header"]  # pages may begin with a code block

# Modules of the reference, with the names that are left out.
REFERENCE = (
    "jaxrl.types",
    "jaxrl.program",
    "jaxrl.api",
    "jaxrl.sources",
    "jaxrl.rollout",
    "jaxrl.evaluate",
    "jaxrl.recipes",
    "jaxrl.population",
    "jaxrl.returns",
    "jaxrl.losses",
    "jaxrl.distributions",
    "jaxrl.optim",
    "jaxrl.normalise",
    "jaxrl.masks",
    "jaxrl.exporting",
    "jaxrl.runs.stats",
    "jaxrl.runs.trackers",
)
_SECTIONS = ("Args", "Returns", "Raises", "Attributes", "Example", "Examples")


def _escaped(text: str) -> str:
    """Text outside of backticks with the characters escaped that Markdown would read."""
    parts = re.split(r"(`[^`]*`)", text)
    special = re.compile(r"([\\*_\[\]<>$|])")
    return "".join(x if x.startswith("`") else special.sub(r"\\\1", x) for x in parts)


def _docstring(text: str) -> str:
    """A Google docstring as Markdown."""
    out = []
    for block in re.split(r"\n\s*\n", inspect.cleandoc(text)):
        lines = block.splitlines()
        head = lines[0].rstrip(":")
        if lines[0].endswith(":") and head in _SECTIONS and not lines[0].startswith(" "):
            items = re.split(r"\n(?=\S)", textwrap.dedent("\n".join(lines[1:])))
            out.append(f"**{head}**")
            if head in ("Returns", "Example", "Examples"):
                out.append(_escaped(" ".join(textwrap.dedent("\n".join(lines[1:])).split())))
            else:
                pairs = [" ".join(item.split()).partition(": ") for item in items]
                out.append("\n".join(f"- `{a}`: {_escaped(b)}" for a, _, b in pairs))
        elif all(line.startswith("    ") for line in lines):
            out.append(_code(textwrap.dedent(block)))
        elif any(line.startswith("  ") for line in lines[1:]) or len(lines) > 1 and "->" in block:
            out.append("```text\n" + block + "\n```")
        else:
            out.append(_escaped(" ".join(block.split())))
    return "\n\n".join(out)


def _code(text: str) -> str:
    """A code block, which is not highlighted if it is not Python."""
    try:
        ast.parse(text)
        kind = "python"
    except SyntaxError:
        kind = "text"
    return f"```{kind}\n{text}\n```"


def _signature(name: str, thing: object) -> str:
    try:
        text = str(inspect.signature(thing))  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return name
    text = re.sub(r"(jaxrl|jax|numpy|collections|pathlib|typing)\.(\w+\.)*", "", text)
    text = re.sub(r"ForwardRef\('([^']*)'\)", r"\1", text)
    line = name + re.sub(r"(: |-> )'([^']*)'", r"\1\2", text)
    if len(line) <= 92:
        return line
    inner, bracket, result = line.partition("(")[2].rpartition(") ->")
    inner = re.sub(r", (?=\**\w+(:|=)|\*, )", ",\n    ", inner)
    return f"{name}(\n    {inner},\n{bracket}{result}"


def _page(module: str) -> str:
    """The reference of one module."""
    found = import_module(module)
    lines = [f"# {module}", "", _docstring(found.__doc__ or ""), ""]
    for name, thing in vars(found).items():
        own = getattr(thing, "__module__", None) == module
        if name.startswith("_") or not own or not callable(thing) or not thing.__doc__:
            continue
        if inspect.isclass(thing) and thing.__doc__.startswith(f"{name}("):
            continue  # a record without a docstring
        lines += [f"## {name}", "", "```python", _signature(name, thing), "```", ""]
        lines += [_docstring(thing.__doc__), ""]
    return "\n".join(lines)


def _write_reference() -> None:
    folder = Path(__file__).parent / "reference"
    folder.mkdir(exist_ok=True)
    (folder / "index.md").write_text(
        "# Reference\n\nFrom the docstrings. What `jaxrl.__all__` lists is imported from `jaxrl` "
        "itself, as in the [tour](../tour.md).\n\n"
        "```{toctree}\n:maxdepth: 1\n\n" + "\n".join(REFERENCE) + "\n```\n"
    )
    for module in REFERENCE:
        (folder / f"{module}.md").write_text(_page(module))
    (folder / "reproductions.md").write_text(
        import_module("jaxrl.experiments.reproduce").page(folder.parent / "reproductions")
    )


sys.path.insert(0, str(Path(__file__).parent.parent))
_write_reference()
