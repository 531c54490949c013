"""What an optimised program executes, counted in XLA's text of it; imports no JAX."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import NamedTuple

BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8}
FREE = {"parameter", "constant", "bitcast", "get-tuple-element", "tuple", "while", "call"}
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.-]+) = (\(.*?\)|\S+) ([\w-]+)\((.*)$")
_SHAPE = re.compile(r"(\w+)\[([\d,]*)\]")
_CALLED = re.compile(r"(?:calls|to_apply|body|branch_computations)=(?:\{([^}]*)\}|(%?[\w.-]+))")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_CONTRACTED = re.compile(r"lhs_contracting_dims=\{([\d,]*)\}")


class Counts(NamedTuple):
    """Executed operations.

    Attributes:
      products: matrix products.
      gflop: floating-point operations of the products, in 1e9.
      others: all other operations that are launched; a fusion is one.
      others_mb: megabytes of the results of these.
    """

    products: float
    gflop: float
    others: float
    others_mb: float

    def times(self, factor: float) -> Counts:
        return Counts(*(factor * each for each in self))

    def plus(self, other: Counts) -> Counts:
        return Counts(*(a + b for a, b in zip(self, other, strict=True)))


NOTHING = Counts(0, 0, 0, 0)


class Instruction(NamedTuple):
    shape: str
    opcode: str
    rest: str


def counts(text: str, rounds: Sequence[int] = ()) -> Counts:
    """Operations of one launch.

    `rounds` are the lengths of nested loops whose length XLA does not know, the outermost first;
    missing ones are 1. All branches of a conditional count. Operations in a fusion count
    as one, except products.
    """
    computations, entry = parse(text)

    def total(name: str, fused: bool, depth: int) -> Counts:
        body, found = computations[name], NOTHING
        for each in body.values():
            found = found.plus(one(each, body, fused, depth))
        return found

    def one(each: Instruction, body: dict[str, Instruction], fused: bool, depth: int) -> Counts:
        called = _CALLED.search(each.rest)
        names = (called[1] or called[2]).replace("%", "").split(", ") if called else []
        if each.opcode == "dot":
            return Counts(1, product_flops(each, body) / 1e9, 0, 0)
        if each.opcode == "while":
            if known := _TRIPS.search(each.rest):
                return total(names[0], fused, depth).times(int(known[1]))
            length = rounds[depth] if depth < len(rounds) else 1
            return total(names[0], fused, depth + 1).times(length)
        inside = NOTHING
        if each.opcode in ("call", "fusion", "conditional"):  # others call reducers of scalars
            for name in names:
                inside = inside.plus(total(name, fused or each.opcode == "fusion", depth))
        if fused or each.opcode in FREE or inside.products:
            return inside
        return inside.plus(Counts(0, 0, 1, size(each.shape) / 1e6))

    return total(entry, False, 0)


def parse(text: str) -> tuple[dict[str, dict[str, Instruction]], str]:
    """(computation -> name -> instruction, name of the entry)."""
    found: dict[str, dict[str, Instruction]] = {}
    current, entry = "", ""
    for line in text.splitlines():
        if begin := _COMPUTATION.match(line):
            current = begin[2]
            found[current] = {}
            entry = current if begin[1] else entry
        elif current and (instruction := _INSTRUCTION.match(line)):
            found[current][instruction[1]] = Instruction(*instruction.groups()[1:])
    return found, entry


def product_flops(dot: Instruction, body: dict[str, Instruction]) -> float:
    """2 x elements of the result x contracted length."""
    left = re.findall(r"%([\w.-]+)", dot.rest.split("),")[0])[0]
    dims = _dims(_SHAPE.findall(body[left].shape)[0][1])
    contracted = _CONTRACTED.search(dot.rest)
    axes = _dims(contracted[1]) if contracted else []
    return 2 * math.prod(_dims(_SHAPE.findall(dot.shape)[0][1])) * math.prod(dims[a] for a in axes)


def size(shape: str) -> int:
    """Bytes of an array or of a tuple of arrays."""
    arrays = _SHAPE.findall(shape)
    return sum(BYTES.get(kind, 4) * math.prod(_dims(dims)) for kind, dims in arrays)


def _dims(text: str) -> list[int]:
    return [int(each) for each in text.split(",") if each]
