"""What a walk through a schedule adds up, by hand and by closed form."""

import pytest

from imagen_video.profiling.hlo import parse_program
from imagen_video.profiling.schedule import convolutions, program_cost
from imagen_video.profiling.slices import Chip

CHIP = Chip(hbm_gib=1.0, flops=1e12, clock_hz=1e6, hbm_bytes=1e6, ici_bytes=1e5)


def cycles(number):
    return f'backend_config={{"window_config":{{"estimated_cycles":"{number}"}}}}'


def cost(entry, *computations):
    text = "\n".join(
        ("HloModule m", *computations, "ENTRY %main (p: f32[]) -> f32[] {", entry, "}")
    )
    return program_cost(parse_program(text), CHIP)


def test_instructions_take_their_cycles_one_after_the_other():
    found = cost(f"""
  %p = f32[] parameter(0)
  %a = f32[250]{{0}} copy(%p), {cycles(1000)}
  ROOT %b = f32[250]{{0}} copy(%a), {cycles(500)}""")
    assert found.seconds == pytest.approx(1.5e-3)
    assert (found.flops, found.seconds_of.keys(), found.collective_bytes) == (0, {"moves"}, {})


@pytest.mark.parametrize(
    ("between", "seconds", "waiting"),
    # 1000 bytes take 10 ms over the network.
    [(4_000, 11e-3, 6e-3), (30_000, 31e-3, 0)],
)
def test_a_collective_in_flight_costs_what_is_waited_for(between, seconds, waiting):
    found = cost(f"""
  %p = f32[250]{{0}} parameter(0)
  %s = (f32[250]{{0}}, f32[250]{{0}}) collective-permute-start(%p), source_target_pairs={{{{0,1}}}}
  %a = f32[] copy(%p), {cycles(between)}
  %d = f32[250]{{0}} collective-permute-done(%s)
  ROOT %b = f32[] copy(%a), {cycles(1000)}""")
    assert found.seconds == pytest.approx(seconds)
    assert found.seconds_of.get("waiting for network", 0) == pytest.approx(waiting)
    assert found.collective_bytes == {"collective-permute": 1000}


def test_a_copy_from_the_main_memory_is_waited_for_but_is_no_collective():
    found = cost(f"""
  %p = f32[250]{{0}} parameter(0)
  %s = (f32[250]{{0:S(1)}}, f32[250]{{0}}, u32[]) copy-start(%p)
  %a = f32[] copy(%p), {cycles(400)}
  ROOT %d = f32[250]{{0:S(1)}} copy-done(%s)""")
    assert found.seconds_of == pytest.approx({"waiting for memory": 6e-4, "moves": 4e-4})


@pytest.mark.parametrize(
    "groups",
    [
        "replica_groups={{0,1,2,3},{4,5,6,7}}",
        "replica_groups=[2,4]<=[8]",
        "replica_groups=mesh['a'=2,'b'=4] {'b'}",
        "replica_groups=mesh['a'=2,'b'=2,'c'=2], device_ids=([2,2,2]T(1,0,2)) {'a','c'}",
    ],
)
@pytest.mark.parametrize(
    ("kind", "sent"),
    # A ring of four: what each sends of 1000 bytes that it holds.
    [("all-gather", 3000), ("reduce-scatter", 750), ("all-reduce", 1500), ("all-to-all", 750)],
)
def test_bytes_of_a_ring(kind, sent, groups):
    found = cost(f"""
  %p = f32[250]{{0}} parameter(0)
  ROOT %r = f32[250]{{0}} {kind}(%p), channel_id=1, {groups}, dimensions={{0}}""")
    assert found.collective_bytes == {kind: sent}
    assert found.seconds_of == pytest.approx({"waiting for network": sent / 1e5})


LINK = """%{0} (x: f32[250]) -> f32[500] {{
  %x = f32[250]{{0}} parameter(0)
  %g = f32[500]{{0}} all-gather(%x), replica_groups={{{{0,1}}}}, chain={{chain_id="{1}"}}
  ROOT %c = f32[500]{{0}} custom-call(%g), custom_call_target="{2}"
}}"""


def test_a_collective_spread_over_fusions_is_sent_once():
    found = cost(
        f"""
  %p = f32[250]{{0}} parameter(0)
  %a = f32[500]{{0}} fusion(%p), calls=%link1, {cycles(100)}
  %b = f32[500]{{0}} fusion(%p), calls=%link2, {cycles(100)}
  ROOT %c = f32[500]{{0}} fusion(%p), calls=%link3, {cycles(100)}""",
        LINK.format("link1", 7, "Other"),
        LINK.format("link2", 7, "Other"),
        LINK.format("link3", 8, "Other"),
    )
    assert found.collective_bytes == {"all-gather": 2000}
    assert found.seconds == pytest.approx(3e-4)


@pytest.mark.parametrize(
    ("beside", "seconds", "waiting"),
    # 1000 bytes take 10 ms over the network.
    [(4_000, 11e-3, 6e-3), (30_000, 31e-3, 0)],
)
def test_a_chain_of_fusions_costs_what_is_waited_for_at_its_end(beside, seconds, waiting):
    found = cost(
        f"""
  %p = f32[250]{{0}} parameter(0)
  %s = f32[500]{{0}} fusion(%p), kind=kCustom, calls=%first
  %a = f32[500]{{0}} fusion(%s), kind=kOutput, calls=%middle, {cycles(beside)}
  %d = f32[500]{{0}} fusion(%a), kind=kCustom, calls=%last
  ROOT %b = f32[] copy(%d), {cycles(1000)}""",
        LINK.format("first", 3, "AsyncCollectiveStart"),
        LINK.format("middle", 3, "Other"),
        LINK.format("last", 3, "AsyncCollectiveDone"),
    )
    assert found.collective_bytes == {"all-gather": 1000}
    assert found.seconds == pytest.approx(seconds)
    assert found.seconds_of.get("waiting for network", 0) == pytest.approx(waiting)


WRAPPED = """%sum (x: f32[1000]) -> f32[250] {
  %x = f32[1000]{0} parameter(0)
  ROOT %r = f32[250]{0} reduce-scatter(%x), replica_groups={{0,1,2,3}}, dimensions={0}
}, execution_thread="sparsecore"
"""


@pytest.mark.parametrize(("call", "calls"), [("async", "calls"), ("call", "to_apply")])
@pytest.mark.parametrize(("beside", "waiting"), [(10_000, 20e-3), (50_000, 0)])
def test_a_called_collective_costs_what_is_waited_for(call, calls, beside, waiting):
    found = cost(
        f"""
  %p = f32[1000]{{0}} parameter(0)
  %s = ((f32[1000]{{0}}), f32[250]{{0}}, u32[]) {call}-start(%p), {calls}=%sum
  %a = f32[] copy(%p), {cycles(beside)}
  ROOT %d = f32[250]{{0}} {call}-done(%s)""",
        WRAPPED,
    )
    assert found.collective_bytes == {"reduce-scatter": 3000}
    assert found.seconds_of.get("waiting for network", 0) == pytest.approx(waiting)


@pytest.mark.parametrize("called", [False, True])
def test_a_sum_that_is_cut_in_one_go_is_a_reduce_scatter_and_waited_for(called):
    fused = """%fused_sum (x: f32[1000]) -> f32[250] {
  %x = f32[1000]{0} parameter(0)
  %i = s32[] constant(0)
  %r = f32[1000]{0} all-reduce(%x), replica_groups={{0,1,2,3}}, to_apply=%add
  ROOT %s = f32[250]{0} dynamic-slice(%r, %i), dynamic_slice_sizes={250}
}"""
    emitter = '"collective_algorithm_config":{"emitter":"SingleInputAllReduceScatterFusion"}'
    fusion = f"""
  %p = f32[1000]{{0}} parameter(0)
  ROOT %f = f32[250]{{0}} fusion(%p), calls=%fused_sum, backend_config={{{emitter}}}"""
    if called:
        call = f"%call (p: f32[1000]) -> f32[250] {{{fusion}\n}}"
        found = cost(
            """
  %p = f32[1000]{0} parameter(0)
  %s = ((f32[1000]{0}), f32[250]{0}, u32[]) call-start(%p), to_apply=%call
  ROOT %d = f32[250]{0} call-done(%s)""",
            fused,
            call,
        )
    else:
        found = cost(fusion, fused)
    assert found.collective_bytes == {"reduce-scatter": 3000}
    assert found.seconds_of == pytest.approx({"waiting for network": 30e-3})


BODY = """%cond (c: (s32[], f32[250])) -> pred[] {
  %c = (s32[], f32[250]{0}) parameter(0)
  %n = s32[] constant(TRIPS)
  %i = s32[] get-tuple-element(%c), index=0
  ROOT %lt = pred[] compare(%i, %n), direction=LT
}"""
FUSED = """%fused (x: f32[4,6], k: f32[6,10]) -> f32[4,10] {
  %x = f32[4,6]{1,0} parameter(0)
  %k = f32[6,10]{1,0} parameter(1)
  ROOT %dot = f32[4,10]{1,0} convolution(%x, %k), dim_labels=bf_io->bf
}"""


def loop(name, trips, inside):
    head = BODY.replace("%cond", f"%{name}_cond").replace("TRIPS", str(trips))
    return (
        head,
        f"""%{name}_body (c: (s32[], f32[250])) -> (s32[], f32[250]) {{
  %c = (s32[], f32[250]{{0}}) parameter(0)
  %x = f32[4,6]{{1,0}} get-tuple-element(%c), index=0
  %k = f32[6,10]{{1,0}} get-tuple-element(%c), index=1
{inside}
  ROOT %t = (s32[], f32[250]{{0}}) tuple(%c)
}}""",
    )


def test_a_loop_costs_its_body_times_its_turns_and_nests():
    dot = f"  %f = f32[4,10]{{1,0}} fusion(%x, %k), kind=kOutput, calls=%fused, {cycles(1000)}"
    sum_ = "\n  %g = f32[250]{0} all-gather(%x), replica_groups={{0,1}}"
    inner = "  %w = (s32[], f32[250]{0}) while(%c), condition=%in_cond, body=%in_body"
    found = cost(
        "  ROOT %w = (s32[], f32[250]{0}) while(%p), condition=%out_cond, body=%out_body",
        FUSED,
        *loop("in", 5, dot + sum_),
        *loop("out", 3, inner),
    )
    assert found.flops == 15 * 2 * 4 * 6 * 10
    assert found.collective_bytes == {"all-gather": 15 * 4 * 6 * 4}
    waiting = 15 * 96 / 1e5
    assert found.seconds_of.get("waiting for network", 0) == pytest.approx(waiting)
    assert found.seconds_of["products"] == pytest.approx(15 * 1e-3)
    assert found.seconds == pytest.approx(15 * 1e-3 + waiting)


def test_a_fusion_is_known_by_the_weightiest_of_what_is_fused_in_it():
    def fused(name, *lines):
        body = "\n".join(f"  %{i} = f32[8]{{0}} {line}" for i, line in enumerate(lines))
        return f"%{name} (x: f32[8]) -> f32[8] {{\n{body}\n}}"

    move = fused("move", "parameter(0)", "transpose(%0)", "concatenate(%0, %1)")
    point = fused("point", "parameter(0)", "transpose(%0)", "multiply(%0, %1)")
    sum_ = fused("sum", "parameter(0)", "multiply(%0, %0)", "reduce(%1)")
    nest = fused("nest", "parameter(0)", "reduce(%0)", "fusion(%1), calls=%fused")
    calls = {"move": 100, "point": 200, "sum": 300, "nest": 400}
    lines = [f"  %{n} = f32[8]{{0}} fusion(%p), calls=%{n}, {cycles(c)}" for n, c in calls.items()]
    found = cost(
        "\n".join(["  %p = f32[8]{0} parameter(0)", *lines]), FUSED, move, point, sum_, nest
    )
    assert found.seconds_of == pytest.approx(
        {"moves": 1e-4, "pointwise": 2e-4, "reductions": 3e-4, "products": 4e-4}
    )


@pytest.mark.parametrize(
    ("attributes", "lhs", "rhs", "out", "taps"),
    [
        # A 3x3 convolution of 6x8 pixels reads 3 x 3 but at the edges.
        ("window={size=3x3 pad=1_1x1_1}, dim_labels=b01f_01io->b01f", "2,6,8,4", "3,3,4,10",
         "2,6,8,10", 16 * 22),
        # Its input's gradient at stride 2: every second input is a hole, as many taps as forward.
        ("window={size=3x3 pad=1_2x1_2 lhs_dilate=2x2 rhs_reversal=1x1}, "
         "dim_labels=b01f_01oi->b01f", "2,3,4,4", "3,3,10,4", "2,6,8,10", 8 * 11),
        # Heads as a window over a padded axis of size 1: one tap each.
        ("window={size=1x32 pad=0_0x31_31 rhs_reversal=0x1}, dim_labels=0bf1_i1o0->0b1f",
         "2,128,1024,1", "1024,32,64,1", "2,128,32,64", 2 * 32),
    ],
)  # fmt: skip
def test_a_convolutions_flops_leave_padding_and_holes_out(attributes, lhs, rhs, out, taps):
    text = f"""HloModule m
ENTRY %main (x: f32[{lhs}], k: f32[{rhs}]) -> f32[{out}] {{
  %x = f32[{lhs}]{{3,2,1,0}} parameter(0)
  %k = f32[{rhs}]{{3,2,1,0}} parameter(1)
  ROOT %c = f32[{out}]{{3,2,1,0}} convolution(%x, %k), {attributes}
}}"""
    ((product, times),) = convolutions(parse_program(text)).items()
    rows = {"2,6,8,10": 2 * 10, "2,128,32,64": 128 * 64}[out]
    features = {"3,3,4,10": 4, "3,3,10,4": 4, "1024,32,64,1": 1024}[rhs]
    assert times == 1
    assert product.flops == 2 * taps * rows * features
