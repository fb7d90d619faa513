"""Counts what a compiled XLA program reads and writes, kernel by kernel, from its text.

Memory bounds most kernels of the networks here, so the sum is what to lower. Counted are whole
operands and results of what runs as a kernel: a value that a kernel reads twice counts once, a part
that it only slices or gathers counts as that part, and what stays in a fusion counts nothing. Of a
loop with an unknown number of rounds one round counts.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

_BITS = re.compile(r"\d+")
_ARRAY = re.compile(r"\b(pred|bf16|[suf]\d+)\[([\d,]*)\]")
_INSTRUCTION = re.compile(r"\s+(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*)$")
_COMMENT = re.compile(r"/\*.*?\*/")
_NAME = re.compile(r"%?([A-Za-z_][\w.\-]*)")
_NO_KERNEL = {"parameter", "constant", "get-tuple-element", "bitcast", "tuple", "opt-barrier"}
_PARTS = {"slice", "dynamic-slice", "gather"}
_INTO_PARTS = {"scatter": 2, "dynamic-update-slice": 1}  # operation -> operand with new values


class Kernel(NamedTuple):
    """What one instruction of a program costs."""

    name: str
    kind: str  # name of the fusion without its number, of the library's function, or the operation
    num_bytes: int  # read and written in one round
    rounds: int
    source: str  # the operation of TensorFlow that it comes from


class _Instruction(NamedTuple):
    name: str
    type: str
    operation: str
    operands: list[str]
    rest: str  # operands and attributes as they are written


def bytes_of(type_text: str) -> int:
    """Returns the bytes of an array or a tuple of arrays, as `(f16[8,4]{1,0}, s32[])`."""
    total = 0
    for kind, shape in _ARRAY.findall(type_text):
        bits = _BITS.search(kind)
        width = int(bits.group()) // 8 if bits else 1
        total += width * math.prod(int(side) for side in shape.split(",") if side)
    return total


def kernels(text: str) -> list[Kernel]:
    """Lists the kernels of an optimised HLO module, as XLA prints it."""
    computations, entry = _parse(text)
    found: list[Kernel] = []

    def walk(name: str, rounds: int) -> None:
        instructions = computations[name]
        types = {i.name: i.type for i in instructions}
        origins = _origins(instructions)
        for each in instructions:
            if each.operation in ("call", "while"):
                count = re.search(r"known_trip_count\D+(\d+)", each.rest)
                inner = _attribute(each, "body") or _attribute(each, "to_apply")
                walk(inner, rounds * (int(count.group(1)) if count else 1))
            elif each.operation not in _NO_KERNEL:
                cost = _bytes_moved(each, computations, types, origins)
                source = re.search(r'op_name="([^"]*)"', each.rest)
                kind = _kind(each)
                origin = source.group(1) if source else ""
                found.append(Kernel(each.name, kind, cost, rounds, origin))

    walk(entry, 1)
    return found


def by_kind(found: Sequence[Kernel]) -> list[tuple[str, int, int]]:
    """Sums kernels up: (kind, number, bytes), the most bytes first."""
    sums: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for kernel in found:
        sums[kernel.kind][0] += kernel.rounds
        sums[kernel.kind][1] += kernel.rounds * kernel.num_bytes
    rows = [(kind, number, cost) for kind, (number, cost) in sums.items()]
    return sorted(rows, key=lambda row: -row[2])


def _parse(text: str) -> tuple[dict[str, list[_Instruction]], str]:
    """Returns name -> instructions of each computation, and the name of the first to run."""
    computations: dict[str, list[_Instruction]] = {}
    entry = current = ""
    for line in text.splitlines():
        if line.endswith("{") and not line.startswith((" ", "HloModule")):
            is_entry = line.startswith("ENTRY ")
            current = _NAME.search(line.removeprefix("ENTRY ")).group(1)
            computations[current] = []
            entry = current if is_entry else entry
        elif match := _INSTRUCTION.match(line):
            name, type_text, operation, rest = match.groups()
            operands = _COMMENT.sub("", _until_closed(rest))
            names = _NAME.findall(operands) if operation != "constant" else []
            computations[current].append(_Instruction(name, type_text, operation, names, rest))
    return computations, entry


def _until_closed(rest: str) -> str:
    """Returns what stands before the bracket that ends the operands."""
    depth = 1
    for index, sign in enumerate(rest):
        depth += (sign == "(") - (sign == ")")
        if depth == 0:
            return rest[:index]
    return rest


def _origins(instructions: Sequence[_Instruction]) -> dict[str, str]:
    """Returns the value that each name stands for, where it is only another view of one."""
    origins: dict[str, str] = {}
    members: dict[str, list[str]] = {}
    for each in instructions:
        sources = [origins.get(name, name) for name in each.operands]
        if each.operation == "tuple":
            members[each.name] = sources
        elif each.operation == "opt-barrier" and each.operands[0] in members:
            members[each.name] = members[each.operands[0]]
        elif each.operation == "bitcast":
            origins[each.name] = sources[0]
        elif each.operation == "get-tuple-element" and each.operands[0] in members:
            index = int(re.search(r"index=(\d+)", each.rest).group(1))
            origins[each.name] = members[each.operands[0]][index]
    return origins


def _attribute(instruction: _Instruction, name: str) -> str:
    match = re.search(rf"\b{name}=%?([\w.\-]+)", instruction.rest)
    return match.group(1) if match else ""


def _kind(instruction: _Instruction) -> str:
    target = re.search(r'custom_call_target="([^"]+)"', instruction.rest)
    if target:
        return target.group(1)
    is_fusion = instruction.operation == "fusion"
    return re.sub(r"[.\d]+$", "", instruction.name) if is_fusion else instruction.operation


def _bytes_moved(
    instruction: _Instruction,
    computations: Mapping[str, list[_Instruction]],
    types: Mapping[str, str],
    origins: Mapping[str, str],
) -> int:
    """Sums what a kernel reads and writes.

    What is added or written into a part of an array leaves the rest alone, in place.
    """
    read: dict[str, int] = {}
    inside = computations.get(_attribute(instruction, "calls"), [])
    written = bytes_of(instruction.type)
    target = ""
    last = inside[-1] if inside else instruction
    if last.operation in _INTO_PARTS:
        inner_types = {i.name: i.type for i in inside} or types
        written = 2 * bytes_of(inner_types.get(last.operands[_INTO_PARTS[last.operation]], ""))
        target = last.operands[0]
    parameters = {int(i.rest.split(")")[0]): i.name for i in inside if i.operation == "parameter"}
    for index, name in enumerate(instruction.operands):
        inner = parameters.get(index, name)
        users = [i for i in inside if inner in i.operands]
        amount = bytes_of(types.get(name, ""))
        if inner == target:
            amount = 0
        elif users and all(i.operation in _PARTS and i.operands[0] == inner for i in users):
            amount = min(amount, sum(bytes_of(i.type) for i in users))
        origin = origins.get(name, name)
        read[origin] = max(amount, read.get(origin, 0))
    return written + sum(read.values())
