"""What a compiled program costs: a walk through the TPU compiler's own schedule.

XLA's cost analysis counts a loop's body once and gives negative seconds for some programs. The
text of a compiled program says more: it is in the order in which instructions run, each with the
cycles that the compiler expects. A loop's body counts times its trip count; copies and collectives
in flight cost only what is waited for.
"""

import dataclasses
import re
from collections import Counter
from collections.abc import Iterator, Mapping

from imagen_video.profiling.collectives import Collective, collective
from imagen_video.profiling.hlo import Computation, Instruction, Program, trip_count
from imagen_video.profiling.products import Convolution, convolution
from imagen_video.profiling.slices import Chip
from imagen_video.profiling.work import kind_of_work

_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cost:
    """What one device does in one run of a program; a loop of unknown length counts once.

    Attributes:
      flops: of convolutions and dot products, 2 per multiply-add, without padding.
      collective_bytes: sent, by kind of collective, each done as a ring.
      seconds_of: what the time from the first instruction to the last goes into: the compiler's
        estimate of each instruction by `Work`, and "waiting for memory" and "waiting for network",
        for copies and collectives, which take what the chip's nominal bandwidths say.
    """

    flops: int
    collective_bytes: Mapping[str, int]
    seconds_of: Mapping[str, float]

    @property
    def seconds(self) -> float:
        """From the first instruction to the last."""
        return sum(self.seconds_of.values())


def program_cost(program: Program, chip: Chip) -> Cost:
    """Walks a program that was compiled for `chip`.

    Raises:
      ValueError: it has a conditional, whose branches nothing here would count.
    """
    flops = sum(times * c.flops for c, times in convolutions(program).items())
    clock = _Clock(program, chip)
    clock.run(program.entry)
    return Cost(
        flops=flops,
        collective_bytes=dict(clock.sent),
        seconds_of=dict(clock.spent.most_common()),
    )


def convolutions(program: Program) -> Counter[Convolution]:
    """Counts how often each convolution or dot product runs."""
    found = Counter()
    for times, where, instruction in all_instructions(program):
        if (product := convolution(where, instruction)) is not None:
            found[product] += times
    return found


def all_instructions(program: Program) -> Iterator[tuple[int, Computation, Instruction]]:
    """Yields how often an instruction runs, the computation it is in, and the instruction."""
    stack = [(1, program.entry)]
    while stack:
        times, where = stack.pop()
        for instruction in where.instructions.values():
            yield times, where, instruction
            if instruction.opcode == "while":
                stack.append((times * _trips(program, instruction), _body(program, instruction)))
            elif instruction.opcode == "conditional":
                raise ValueError(f"{instruction.name}: the cost of a conditional is not known")
            elif instruction.opcode in ("fusion", "call", "async-start", "call-start"):
                called = program.computations[instruction.attribute("calls|to_apply")]
                stack.append((times, called))


def _trips(program: Program, loop: Instruction) -> int:
    return trip_count(program, loop) or 1


def _body(program: Program, loop: Instruction) -> Computation:
    return program.computations[loop.attribute("body")]


class _Clock:
    """A core that runs instructions in order, beside two engines that move data.

    One engine moves between the main memory and the core's, one to other chips; each does one
    thing after the other.
    """

    def __init__(self, program: Program, chip: Chip):
        self._program, self._chip = program, chip
        self.spent: Counter[str] = Counter()  # seconds, by what they go into
        self.sent: Counter[str] = Counter()  # bytes, by kind of collective
        self._now = 0.0
        self._free = {"memory": 0.0, "network": 0.0}

    def run(self, where: Computation) -> None:
        """Runs a computation once, its loops as often as they say."""
        ready: dict[str, float] = {}
        for name, instruction in where.instructions.items():
            opcode = instruction.opcode
            if opcode == "while":
                self._loop(instruction)
            elif opcode == "call":
                self.run(self._program.computations[instruction.attribute("to_apply")])
            elif found := collective(self._program, where, instruction):
                self._exchange(found, ready)
                self._compute(instruction)
            elif opcode in ("copy-start", "slice-start"):
                ready[name] = self._move(
                    "memory", instruction.arrays[0].size / self._chip.hbm_bytes
                )
            elif opcode.endswith("-done") and instruction.operands[0] in ready:
                self._wait(ready[instruction.operands[0]], "memory")
            else:
                self._compute(instruction)

    def _exchange(self, found: Collective, ready: dict[str, float]) -> None:
        """Sends, waits, or neither, as its phase says; a chain begins with its first link."""
        if found.phase == "whole" or found.name not in ready:
            self.sent[found.kind] += found.sent
            ready[found.name] = self._move("network", found.sent / self._chip.ici_bytes)
        if found.phase in ("whole", "end"):
            self._wait(ready[found.name], "network")

    def _compute(self, instruction: Instruction) -> None:
        if cycles := _CYCLES.search(instruction.attributes):
            seconds = int(cycles[1]) / self._chip.clock_hz
            self._spend(seconds, kind_of_work(self._program, instruction))

    def _loop(self, loop: Instruction) -> None:
        """Every turn takes as long as the first."""
        spent, sent = self.spent.copy(), self.sent.copy()
        self.run(_body(self._program, loop))
        more = _trips(self._program, loop) - 1
        for kind, seconds in (self.spent - spent).items():
            self._spend(more * seconds, kind)
        for kind, size in (self.sent - sent).items():
            self.sent[kind] += more * size
        self._free = {engine: min(free, self._now) for engine, free in self._free.items()}

    def _move(self, engine: str, seconds: float) -> float:
        """Returns when the data will be there."""
        self._free[engine] = max(self._now, self._free[engine]) + seconds
        return self._free[engine]

    def _wait(self, until: float, engine: str) -> None:
        if until > self._now:
            self._spend(until - self._now, f"waiting for {engine}")

    def _spend(self, seconds: float, kind: str) -> None:
        self._now += seconds
        self.spent[kind] += seconds
