"""What a compiled instruction sends to other chips: alone, in flight, or fused to other work."""

import dataclasses
import math
import re
from collections.abc import Iterator
from typing import Literal

from imagen_video.profiling.hlo import Computation, Instruction, Program

_KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_CHAIN = re.compile(r'chain_id="(\d+)"')
_CALLS = ("async-start", "call-start")
_SUM_AND_CUT = "AllReduceScatterFusion"
_START, _DONE = '"AsyncCollectiveStart"', '"AsyncCollectiveDone"'


@dataclasses.dataclass(frozen=True, kw_only=True)
class Collective:
    """An exchange between chips, or a part of one.

    Attributes:
      kind: one of XLA's five.
      sent: bytes that a device sends in all, in a ring of n (n - 1) / n of the whole, twice that
        for a sum to all.
      phase: "whole" is done when the instruction is; what was begun in "start" is there after
        "end", and "middle" is work beside it.
      name: by which the phases of one know each other.
    """

    kind: str
    sent: int
    phase: Literal["whole", "start", "middle", "end"]
    name: str


def collective(program: Program, where: Computation, instruction: Instruction) -> Collective | None:
    """Returns what an instruction of `where` exchanges, None if nothing.

    XLA:TPU writes it in five ways: as an instruction of its own, in two that end in -start and
    -done, in two such calls, as a chain of fusions, where products run between a first and a last
    one, and as a fusion that sums and cuts in one go, a reduce-scatter written as an all-reduce.
    """
    opcode, name = instruction.opcode, instruction.name
    plain = opcode.removesuffix("-start")
    if plain in _KINDS:
        sent, phase = _sent(plain, where, instruction), "whole" if plain == opcode else "start"
        return Collective(kind=plain, sent=sent, phase=phase, name=name)
    if opcode.endswith("-done"):
        begun = where.instructions.get(instruction.operands[0])
        found = begun and begun.opcode.endswith("-start") and collective(program, where, begun)
        return dataclasses.replace(found, phase="end") if found else None
    if opcode not in ("fusion", *_CALLS):
        return None
    fused = list(_inside(program, instruction))
    exchanges = [(called, inner) for called, inner in fused if inner.opcode in _KINDS]
    if not exchanges:
        return None
    called, inner = exchanges[0]
    kind, phase = inner.opcode, "start" if opcode in _CALLS else "whole"
    if chain := _CHAIN.search(inner.attributes):
        targets = {i.attribute("custom_call_target") for _, i in fused}
        name = f"chain {chain[1]}"
        phase = "start" if _START in targets else "end" if _DONE in targets else "middle"
    elif any(_SUM_AND_CUT in i.attributes for i in (instruction, *(i for _, i in fused))):
        kind = "reduce-scatter"
    return Collective(kind=kind, sent=_sent(kind, called, inner), phase=phase, name=name)


def _inside(
    program: Program, instruction: Instruction
) -> Iterator[tuple[Computation, Instruction]]:
    """Yields what a fusion or call runs, fusions in it included."""
    called = program.computations[instruction.attribute("calls|to_apply")]
    for inner in called.instructions.values():
        yield called, inner
        if inner.opcode == "fusion":
            yield from _inside(program, inner)


def _sent(kind: str, where: Computation, instruction: Instruction) -> int:
    size = sum(where.instructions[name].size for name in instruction.operands)
    n = _group_size(instruction)
    factor = {
        "all-gather": n - 1,
        "all-reduce": 2 * (n - 1) / n,
        "reduce-scatter": (n - 1) / n,
        "all-to-all": (n - 1) / n,
        "collective-permute": 1,
    }[kind]
    return round(factor * size)


def _group_size(instruction: Instruction) -> int:
    """Devices that exchange, in each of the three forms that XLA prints."""
    text = instruction.attributes
    if match := re.search(r"replica_groups={{([\d,]*)}", text):
        return match[1].count(",") + 1
    if match := re.search(r"replica_groups=\[\d+,(\d+)\]", text):
        return int(match[1])
    if match := re.search(r"replica_groups=mesh\[([^\]]*)\][^{]*{([^}]*)}", text):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", match[1]))
        return math.prod(int(sizes[name]) for name in re.findall(r"'(\w+)'", match[2]))
    return 1
