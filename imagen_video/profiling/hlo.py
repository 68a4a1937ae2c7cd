"""The text of a compiled XLA program, read into computations and instructions.

The text is the only form in which JAX hands out a compiled program with all that the compiler
noted on its instructions.
"""

import dataclasses
import math
import re

_BYTES = {"pred": 1, "token": 0, "opaque": 0}
_ARRAY = re.compile(r"([a-z]\w*)\[([\d,]*)\](?:\{[^{}]*\})?")
_HEADER = re.compile(r"^(ENTRY )?%?([\w.-]+) \(.*\{$")
_NAMED = re.compile(r"^\s+(?:ROOT )?%?([\w.-]+) = ")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ArrayType:
    """One array of an instruction's type.

    Attributes:
      dtype: XLA's name of it, such as "bf16".
      shape: on one device.
    """

    dtype: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Bytes without padding."""
        digits = re.search(r"\d+", self.dtype)
        bits = int(digits[0]) if digits else 8 * _BYTES.get(self.dtype, 0)
        return math.prod(self.shape) * bits // 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class Instruction:
    """One instruction.

    Attributes:
      name: unique in its computation.
      opcode: such as "convolution".
      arrays: of its result; several for a tuple, nested ones flat.
      operands: names of instructions of the same computation; a constant's value.
      attributes: the text behind the operands.
    """

    name: str
    opcode: str
    arrays: tuple[ArrayType, ...]
    operands: tuple[str, ...]
    attributes: str

    @property
    def size(self) -> int:
        """Bytes of the result."""
        return sum(array.size for array in self.arrays)

    def attribute(self, name: str) -> str | None:
        """Returns the word behind `name=`, such as the computation that a fusion calls.

        `name` may be several, apart by "|".
        """
        match = re.search(rf"[ ,](?:{name})=%?([^\s,{{]+)", " " + self.attributes)
        return match[1] if match else None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Computation:
    """Instructions in the order in which they run; the last one is the result."""

    name: str
    instructions: dict[str, Instruction]

    @property
    def root(self) -> Instruction:
        """The result."""
        return next(reversed(self.instructions.values()))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Program:
    """All computations, those that other ones call included."""

    entry: Computation
    computations: dict[str, Computation]


def parse_program(text: str) -> Program:
    """Reads `jax.stages.Compiled.as_text()`.

    Raises:
      ValueError: it has no entry computation.
    """
    computations, entry, lines, name = {}, None, {}, None
    for line in re.sub(r"/\*.*?\*/", "", text).splitlines():
        if header := _HEADER.match(line):
            name, lines = header[2], {}
            entry = name if header[1] else entry
        elif line.startswith("}") and name is not None:
            computations[name] = Computation(name=name, instructions=lines)
            name = None
        elif name is not None and (found := _NAMED.match(line)):
            lines[found[1]] = _instruction(found[1], line[found.end() :])
    if entry not in computations:
        raise ValueError("the program's text has no ENTRY computation")
    return Program(entry=computations[entry], computations=computations)


def trip_count(program: Program, loop: Instruction) -> int | None:
    """Returns how often a `while` runs its body, None where it is not a constant.

    Understood is what JAX makes of `scan` and `fori_loop`: a counter from 0 in steps of 1,
    compared with a constant.
    """
    condition = program.computations[loop.attribute("condition")]
    test = condition.root
    if test.opcode == "fusion":  # CPU fuses the comparison.
        outer, condition = condition, program.computations[test.attribute("calls")]
        parameters = [i for i in condition.instructions.values() if i.opcode == "parameter"]
        given = {p.name: outer.instructions[test.operands[int(p.operands[0])]] for p in parameters}
        test = condition.root
    else:
        given = {}
    if test.opcode != "compare" or test.attribute("direction") != "LT":
        return None
    bound = given.get(test.operands[1]) or condition.instructions[test.operands[1]]
    return int(bound.operands[0]) if bound.opcode == "constant" else None


def _instruction(name: str, text: str) -> Instruction:
    shape, rest = _split(text) if text.startswith("(") else text.split(" ", 1)
    opcode, rest = rest.strip().split("(", 1)
    operands, attributes = _split("(" + rest)
    return Instruction(
        name=name,
        opcode=opcode,
        arrays=tuple(_array(match) for match in _ARRAY.finditer(shape)),
        operands=tuple(_operand(item) for item in _items(operands[1:-1])),
        attributes=attributes.lstrip(", "),
    )


def _array(match: re.Match) -> ArrayType:
    dims = tuple(int(d) for d in match[2].split(",") if d)
    return ArrayType(dtype=match[1], shape=dims)


def _operand(item: str) -> str:
    """Some printers write the type before the name."""
    return item.rsplit(" ", 1)[-1].lstrip("%")


def _split(text: str) -> tuple[str, str]:
    """Splits behind the parenthesis that closes the first one."""
    depth = 0
    for i, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if depth == 0:
            return text[: i + 1], text[i + 1 :]
    raise ValueError(f"unbalanced parentheses: {text[:200]}")


def _items(text: str) -> list[str]:
    """Splits at the commas outside of brackets."""
    items, depth, start = [], 0, 0
    for i, character in enumerate(text):
        depth += (character in "([{") - (character in ")]}")
        if character == "," and depth == 0:
            items.append(text[start:i])
            start = i + 1
    items.append(text[start:])
    return [item.strip() for item in items if item.strip()]
