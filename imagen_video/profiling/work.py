"""What the time of a compiled instruction goes into."""

from typing import Literal

from imagen_video.profiling.hlo import Instruction, Program

Work = Literal["products", "reductions", "moves", "pointwise"]

_PRODUCTS = {"convolution", "dot"}
_REDUCTIONS = {"reduce", "reduce-window", "sort", "select-and-scatter"}
_MOVES = {
    *("bitcast", "broadcast", "concatenate", "copy", "dynamic-slice", "dynamic-update-slice"),
    *("gather", "pad", "reshape", "reverse", "scatter", "slice", "transpose"),
    *("constant", "convert", "get-tuple-element", "iota", "parameter", "tuple"),
}


def kind_of_work(program: Program, instruction: Instruction) -> Work:
    """Says what an instruction does; a fusion, the weightiest of what is fused in it.

    "products" are convolutions and dot products with all that is fused to them, "reductions" sums
    and maxima, "moves" what computes nothing (copies, transposes, joining, cutting, repeating), and
    "pointwise" is the rest.
    """
    opcodes = _opcodes(program, instruction)
    if opcodes & _PRODUCTS:
        return "products"
    if opcodes & _REDUCTIONS:
        return "reductions"
    return "moves" if opcodes <= _MOVES else "pointwise"


def _opcodes(program: Program, instruction: Instruction) -> set[str]:
    called = None
    if instruction.opcode in ("fusion", "async-start"):
        called = program.computations.get(instruction.attribute("calls") or "")
    if called is None:
        return {instruction.opcode}
    return set().union(*(_opcodes(program, inner) for inner in called.instructions.values()))
