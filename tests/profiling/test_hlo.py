"""Reading the text of compiled programs, here of the CPU's compiler and by hand."""

import jax
import jax.numpy as jnp
import pytest

from imagen_video.profiling.hlo import parse_program, trip_count

TPU_LINES = """HloModule jit_f, is_scheduled=true

%region_1 (param.1: (s32[], bf16[8,512,1024])) -> pred[] {
  %constant.7 = s32[]{:T(128)} constant(8)
  %param.1 = (s32[]{:T(128)}, /*index=1*/bf16[8,512,1024]{2,1,0:T(8,128)(2,1)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%param.1), index=0
  ROOT %lt = pred[]{:T(512)} compare(%i, %constant.7), direction=LT, metadata={op_name="lt"}
}

ENTRY %main (p: bf16[4,8]) -> bf16[4,8] {
  %p = bf16[4,8]{1,0:T(8,128)(2,1)} parameter(0)
  %copy-start.2 = (bf16[4,8]{1,0:T(8,128)(2,1)S(1)}, bf16[4,8]{1,0}, u32[]{:S(2)}) copy-start(%p)
  ROOT %fusion.1 = bf16[4,8]{1,0} fusion(%p, /*index=1*/%copy-start.2), calls=%fused.clone.1
}
"""


def test_a_tpu_programs_lines_are_read():
    program = parse_program(TPU_LINES)
    assert program.entry.name == "main"
    entry = program.entry.instructions
    assert list(entry) == ["p", "copy-start.2", "fusion.1"]
    assert program.entry.root is entry["fusion.1"]
    start = entry["copy-start.2"]
    assert start.opcode == "copy-start"
    assert start.operands == ("p",)
    assert [array.dtype for array in start.arrays] == ["bf16", "bf16", "u32"]
    assert start.size == 2 * 4 * 8 * 2 + 4
    assert entry["fusion.1"].operands == ("p", "copy-start.2")
    assert entry["fusion.1"].attribute("calls") == "fused.clone.1"
    assert entry["fusion.1"].attribute("to_apply") is None
    assert program.computations["region_1"].root.attribute("direction") == "LT"


def compiled(fn, *args):
    return parse_program(jax.jit(fn).lower(*args).compile().as_text())


def loops(program):
    for computation in program.computations.values():
        for instruction in computation.instructions.values():
            if instruction.opcode == "while":
                yield instruction


def test_trip_counts_of_scans_are_known_and_of_other_loops_not():
    def scan(length):
        body = lambda c, _: (jnp.sin(c @ c), None)  # noqa: E731
        return lambda x: jax.lax.scan(body, x, None, length=length)[0]

    nested = lambda x: jax.lax.scan(lambda c, _: (scan(7)(c), None), x, None, length=5)[0]  # noqa: E731
    x = jnp.ones((64, 64))
    program = compiled(nested, x)
    assert sorted(trip_count(program, loop) for loop in loops(program)) == [5, 7]

    def unknown(x, n):
        return jax.lax.fori_loop(0, n, lambda _, c: jnp.sin(c @ c), x)

    program = compiled(unknown, x, jnp.int32(3))
    assert [trip_count(program, loop) for loop in loops(program)] == [None]


def test_text_that_is_no_program_is_refused():
    with pytest.raises(ValueError, match="ENTRY"):
        parse_program("HloModule nothing")
