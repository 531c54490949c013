"""Translates a traced function to a Python program that needs numpy alone.

Calls are inlined, loops of known length unrolled, and operations whose results are unused left out,
so that the program reads only the weights it needs. Operations without a translation are refused:
convolutions, random numbers, branches and `erf`.
"""

from __future__ import annotations

import itertools
import json
import string
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.extend.core import Literal

from jaxrl.errors import UserError
from jaxrl.types import PyTree

_UNROLLED = 64  # longest loop

_SIMPLE = {
    "add": "{0} + {1}", "add_any": "{0} + {1}", "sub": "{0} - {1}", "mul": "{0} * {1}",
    "max": "np.maximum({0}, {1})", "min": "np.minimum({0}, {1})", "pow": "np.power({0}, {1})",
    "atan2": "np.arctan2({0}, {1})", "eq": "{0} == {1}", "ne": "{0} != {1}", "lt": "{0} < {1}",
    "le": "{0} <= {1}", "gt": "{0} > {1}", "ge": "{0} >= {1}", "and": "{0} & {1}",
    "or": "{0} | {1}", "xor": "{0} ^ {1}", "not": "~{0}", "neg": "-{0}", "exp": "np.exp({0})",
    "log": "np.log({0})", "log1p": "np.log1p({0})", "expm1": "np.expm1({0})",
    "tanh": "np.tanh({0})", "sin": "np.sin({0})", "cos": "np.cos({0})", "sqrt": "np.sqrt({0})",
    "rsqrt": "1 / np.sqrt({0})", "abs": "np.abs({0})", "sign": "np.sign({0})",
    "floor": "np.floor({0})", "ceil": "np.ceil({0})", "is_finite": "np.isfinite({0})",
    "square": "np.square({0})", "logistic": "np.exp(-np.logaddexp(0, -{0}))", "copy": "{0}",
    "clamp": "np.minimum(np.maximum({1}, {0}), {2})",
}  # fmt: skip
_REDUCTIONS = {
    "reduce_sum": "sum", "reduce_max": "max", "reduce_min": "min", "reduce_prod": "prod",
    "reduce_and": "all", "reduce_or": "any", "argmax": "argmax", "argmin": "argmin",
}  # fmt: skip
_CALLS = ("jit", "pjit", "closed_call", "core_call", "custom_jvp_call", "custom_vjp_call")
_CALLS += ("remat", "checkpoint", "custom_vjp_call_jaxpr")


class _Value(NamedTuple):
    """A value of the program: its name, or the text of a constant."""

    text: str
    shape: tuple[Any, ...]
    dtype: Any


class _Line(NamedTuple):
    code: str  # with {0}, {1} for the inputs; the name of an operation that has no translation
    ins: tuple[_Value, ...]
    out: _Value
    translated: bool = True


class Translated(NamedTuple):
    """Source of a function.

    Attributes:
      body: lines of the body without indentation; `n` is the number of rows.
      weights: the arrays that the body reads, by name.
    """

    body: list[str]
    weights: dict[str, np.ndarray]


def translate(
    fn: Callable[..., tuple[Any, ...]],
    weights: PyTree,
    names: Sequence[str],
    inputs: Sequence[jax.ShapeDtypeStruct],
) -> Translated:
    """The body of fn(weights, *inputs), whose inputs have the `names`.

    Raises:
      UserError: an operation has no translation.
    """
    closed = jax.make_jaxpr(fn)(weights, *inputs)
    leaves = jax.tree_util.tree_flatten_with_path(weights)[0]
    arrays = {_path(path): np.asarray(x) for path, x in leaves if not _is_key(x)}
    known = [_path(path) for path, _ in leaves]
    for i, x in enumerate(closed.consts):
        known.append(f"constant_{i}")
        arrays[known[-1]] = np.asarray(x)
    program = _Program()
    variables = [*closed.jaxpr.invars[: len(leaves)], *closed.jaxpr.constvars]
    values = [
        program.value(f"weights[{name!r}]", v.aval)
        for name, v in zip(known, variables, strict=True)
    ]
    given = [
        program.value(name, v.aval)
        for name, v in zip(names, closed.jaxpr.invars[len(leaves) :], strict=True)
    ]
    own, consts = values[: len(leaves)], values[len(leaves) :]
    outs = program.inline(closed.jaxpr, consts, [*own, *given])
    body, read = program.source(outs)
    return Translated(body, {name: x for name, x in arrays.items() if f"weights[{name!r}]" in read})


class _Program:
    """Lines of a program in the order of their execution."""

    def __init__(self) -> None:
        self.lines: list[_Line] = []
        self.count = itertools.count()

    def value(self, text: str, aval: Any) -> _Value:
        return _Value(text, tuple(aval.shape), aval.dtype)

    def add(self, code: str, ins: Sequence[_Value], aval: Any, translated: bool = True) -> _Value:
        out = self.value(f"v{next(self.count)}", aval)
        self.lines.append(_Line(code, tuple(ins), out, translated))
        return out

    def inline(self, jaxpr: Any, consts: Sequence[_Value], args: Sequence[_Value]) -> list[_Value]:
        """Adds the operations of `jaxpr`; returns its results."""
        known: dict[Any, _Value] = dict(zip(jaxpr.constvars, consts, strict=True))
        known |= dict(zip(jaxpr.invars, args, strict=True))

        def read(atom: Any) -> _Value:
            if not isinstance(atom, Literal):
                return known[atom]
            aval: Any = atom.aval
            return self.value(_constant(atom.val, aval.dtype), aval)

        for eqn in jaxpr.eqns:
            ins, name = [read(x) for x in eqn.invars], eqn.primitive.name
            if name in _CALLS:
                inner = next(eqn.params[k] for k in _INNER if k in eqn.params)
                outs = self.inline(*_opened(inner, self), ins)
            elif name == "scan":
                outs = self.unroll(eqn, ins)
            elif name in ("optimization_barrier", "stop_gradient", "split"):
                outs = ins if name != "split" else self.split(eqn, ins[0])
            else:
                code = _code(eqn, ins)
                outs = [self.add(code or name, ins, x.aval, bool(code)) for x in eqn.outvars]
            known |= dict(zip(eqn.outvars, outs, strict=True))
        return [read(x) for x in jaxpr.outvars]

    def split(self, eqn: Any, x: _Value) -> list[_Value]:
        axis, at, outs = eqn.params["axis"], 0, []
        for size, out in zip(eqn.params["sizes"], eqn.outvars, strict=True):
            outs.append(self.add(f"{{0}}[{':, ' * axis}{at}:{at + size}]", [x], out.aval))
            at += size
        return outs

    def unroll(self, eqn: Any, ins: Sequence[_Value]) -> list[_Value]:
        """The steps of a scan one after another."""
        length, fixed, carried = (eqn.params[k] for k in ("length", "num_consts", "num_carry"))
        if not isinstance(length, int) or length > _UNROLLED:
            raise UserError(f"a loop of {length} steps has no translation to numpy: use --to jax")
        jaxpr, consts = _opened(eqn.params["jaxpr"], self)
        carry, rows = list(ins[fixed : fixed + carried]), ins[fixed + carried :]
        steps = range(length)[::-1] if eqn.params["reverse"] else range(length)
        found: dict[int, list[_Value]] = {}
        for t in steps:
            inner = jaxpr.invars[fixed + carried :]
            now = [self.add(f"{{0}}[{t}]", [x], v.aval) for x, v in zip(rows, inner, strict=True)]
            outs = self.inline(jaxpr, consts, [*ins[:fixed], *carry, *now])
            carry, found[t] = outs[:carried], outs[carried:]
        stacked = []
        for i, out in enumerate(eqn.outvars[carried:]):
            each = [found[t][i] for t in range(length)]
            slots = ", ".join(f"{{{k}}}" for k in range(length))
            stacked.append(self.add(f"np.stack([{slots}])", each, out.aval))
        return [*carry, *stacked]

    def source(self, outs: Sequence[_Value]) -> tuple[list[str], set[str]]:
        """The lines that the results need, and the names that they read."""
        needed = {x.text for x in outs}
        kept = []
        for line in reversed(self.lines):
            if line.out.text in needed:
                if not line.translated:
                    raise UserError(f"{line.code} has no translation to numpy: use --to jax")
                needed |= {x.text for x in line.ins}
                kept.append(f"{line.out.text} = {line.code.format(*(x.text for x in line.ins))}")
        body = kept[::-1]
        return [*body, f"return {', '.join(x.text for x in outs)}{',' * (len(outs) == 1)}"], needed


_INNER = ("jaxpr", "call_jaxpr", "fun_jaxpr")


def _opened(jaxpr: Any, program: _Program) -> tuple[Any, list[_Value]]:
    """(jaxpr, values of its constants) of an open or closed jaxpr."""
    if not hasattr(jaxpr, "consts"):
        return jaxpr, []
    consts = [np.asarray(x) for x in jaxpr.consts]
    if any(x.size > 1 for x in consts):
        raise UserError("an inner function has constants without a translation: use --to jax")
    texts = [_constant(x, x.dtype) for x in consts]
    inner = zip(texts, jaxpr.jaxpr.constvars, strict=True)
    return jaxpr.jaxpr, [program.value(text, v.aval) for text, v in inner]


def _code(eqn: Any, ins: Sequence[_Value]) -> str:
    """Code of one operation, with {0}, {1} for its inputs; "" if there is no translation."""
    name, params, out = eqn.primitive.name, eqn.params, eqn.outvars[0].aval
    shape = _text(out.shape)
    if name in _SIMPLE:
        return f"({_SIMPLE[name]})" if name != "copy" else "{0}"
    if name == "div" and np.issubdtype(out.dtype, np.floating):
        return "({0} / {1})"
    if name == "integer_pow":
        return f"({{0}} ** {params['y']})"
    if name == "select_n" and len(ins) == 3 and ins[0].dtype == bool:
        return "np.where({0}, {2}, {1})"
    if name == "convert_element_type":
        return f"np.asarray({{0}}).astype(np.{_dtype(out.dtype)})"
    if name in ("reshape", "squeeze", "expand_dims"):
        return f"np.reshape({{0}}, {shape})"
    if name == "broadcast_in_dim":
        middle: list[Any] = [1] * len(out.shape)
        for axis, size in zip(params["broadcast_dimensions"], ins[0].shape, strict=True):
            middle[axis] = size
        return f"np.broadcast_to(np.reshape({{0}}, {_text(middle)}), {shape})"
    if name == "transpose":
        return f"np.transpose({{0}}, {tuple(params['permutation'])})"
    if name == "slice":
        strides = params["strides"] or [1] * len(out.shape)
        bounds = zip(params["start_indices"], params["limit_indices"], strides, strict=True)
        return "{0}[" + ", ".join(f"{a}:{b}:{s}" for a, b, s in bounds) + "]"
    if name == "rev":
        return f"np.flip({{0}}, {tuple(params['dimensions'])})"
    if name == "concatenate":
        slots = ", ".join(f"{{{i}}}" for i in range(len(ins)))
        return f"np.concatenate([{slots}], {params['dimension']})"
    if name == "cumsum":
        return f"np.cumsum({{0}}, {params['axis']}, dtype=np.{_dtype(out.dtype)})"
    if name == "iota":
        axis, middle = params["dimension"], [1] * len(out.shape)
        middle[axis] = out.shape[axis]
        count = f"np.arange({out.shape[axis]}, dtype=np.{_dtype(out.dtype)})"
        return f"np.broadcast_to({count}.reshape({_text(middle)}), {shape})"
    if name in ("argmax", "argmin"):
        (axis,) = params["axes"]
        return f"np.{name}({{0}}, {axis}).astype(np.{_dtype(out.dtype)})"
    if name in _REDUCTIONS:
        return f"np.{_REDUCTIONS[name]}({{0}}, {tuple(params['axes'])})"
    if name == "dot_general":
        return f"np.einsum({_subscripts(params['dimension_numbers'], ins)!r}, {{0}}, {{1}})"
    return ""


def _subscripts(numbers: Any, ins: Sequence[_Value]) -> str:
    """Subscripts of `np.einsum` for a dot_general: batch axes, then those of either operand."""
    (contract, batch), letters = numbers, iter(string.ascii_lowercase)
    left = [next(letters) for _ in ins[0].shape]
    right = [""] * len(ins[1].shape)
    for pairs in (contract, batch):
        for i, j in zip(*pairs, strict=True):
            right[j] = left[i]
    right = [x or next(letters) for x in right]
    out = [left[i] for i in batch[0]]
    out += [x for i, x in enumerate(left) if i not in (*contract[0], *batch[0])]
    out += [x for j, x in enumerate(right) if j not in (*contract[1], *batch[1])]
    return f"{''.join(left)},{''.join(right)}->{''.join(out)}"


def _text(shape: Sequence[Any]) -> str:
    return f"({', '.join(map(str, shape))}{',' * (len(shape) == 1)})"


def _constant(value: Any, dtype: Any) -> str:
    return (
        f"np.{_dtype(dtype)}({np.asarray(value).item()!r})".replace("(inf", "(np.inf")
        .replace("(-inf", "(-np.inf")
        .replace("(nan", "(np.nan")
    )


def _dtype(dtype: Any) -> str:
    name = np.dtype(dtype).name
    return "bool_" if name == "bool" else name


def _is_key(x: Any) -> bool:
    return jax.numpy.issubdtype(x.dtype, jax.dtypes.prng_key)


def _path(path: Any) -> str:
    """The name of a leaf, such as "state.actor"."""
    part, *rest = path
    head = ("state", "hp")[part.idx]
    words = [jax.tree_util.keystr((x,), simple=True) for x in rest]
    return ".".join([head, *words])


def safetensors(arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> bytes:
    """The contents of a .safetensors file: length and JSON header, then little-endian arrays."""
    kinds = {"float32": "F32", "int32": "I32", "bool": "BOOL", "uint8": "U8", "uint32": "U32"}
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    parts, at = [], 0
    for name, x in arrays.items():
        data = np.ascontiguousarray(x).tobytes()
        header[name] = {
            "dtype": kinds[x.dtype.name],
            "shape": list(x.shape),
            "data_offsets": [at, at + len(data)],
        }
        parts.append(data)
        at += len(data)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return b"".join([len(text).to_bytes(8, "little"), text, *parts])
