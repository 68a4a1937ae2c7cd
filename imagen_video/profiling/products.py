"""Convolutions and dot products of a compiled program: almost all of its arithmetic.

XLA for TPU writes a dot product as a convolution, and a batch axis of it as a window.
"""

import dataclasses
import math
import re

from imagen_video.profiling.flops import inner_taps
from imagen_video.profiling.hlo import ArrayType, Computation, Instruction


@dataclasses.dataclass(frozen=True, kw_only=True)
class Convolution:
    """One convolution, whatever it computes: two of the same description take the same time.

    Attributes:
      lhs: input.
      rhs: kernel.
      output: result.
      window: one entry for each window axis, by name as XLA prints it: size, stride, pad,
        lhs_dilate, rhs_dilate, rhs_reversal. Missing ones have their defaults.
      dim_labels: such as "b01f_01io->b01f".
      feature_groups: of the input's features.
      batch_groups: of the input's batch.
    """

    lhs: ArrayType
    rhs: ArrayType
    output: ArrayType
    window: tuple[tuple[str, tuple[str, ...]], ...]
    dim_labels: str
    feature_groups: int
    batch_groups: int

    @property
    def axes(self) -> tuple[dict[str, int], ...]:
        """Positions of the axes in lhs, rhs and output, by their labels in `dim_labels`."""
        return tuple(
            {label: position for position, label in enumerate(labels)}
            for labels in re.split("_|->", self.dim_labels)
        )

    @property
    def flops(self) -> int:
        """2 for each multiply-add, without those on padding or on holes of a dilated input."""
        lhs, rhs, output = self.axes
        taps = math.prod(
            inner_taps(
                size=self.lhs.shape[lhs[str(d)]],
                output=self.output.shape[output[str(d)]],
                window=self.rhs.shape[rhs[str(d)]],
                stride=self.integers("stride")[d],
                low=self.padding[d][0],
                dilation=self.integers("lhs_dilate")[d],
                spacing=self.integers("rhs_dilate")[d],
            )
            for d in range(len(lhs) - 2)
        )
        rows = self.output.shape[output["b"]] * self.output.shape[output["f"]]
        return 2 * taps * rows * self.rhs.shape[rhs["i"]]

    def integers(self, name: str) -> tuple[int, ...]:
        """An entry of `window`, 1 for each axis where there is none."""
        entry = dict(self.window).get(name)
        return tuple(map(int, entry)) if entry else (1,) * len(dict(self.window).get("size", ()))

    @property
    def padding(self) -> tuple[tuple[int, int], ...]:
        """Zeros before and after each window axis, negative where the input is cropped."""
        entry = dict(self.window).get("pad")
        if not entry:
            return ((0, 0),) * len(dict(self.window).get("size", ()))
        return tuple(tuple(map(int, low_high.split("_"))) for low_high in entry)


def convolution(where: Computation, instruction: Instruction) -> Convolution | None:
    """Describes the instruction of `where`; None if it is no convolution."""
    if instruction.opcode != "convolution":
        return None
    lhs, rhs = (where.instructions[name].arrays[0] for name in instruction.operands)
    text = re.search(r"window={([^}]*)}", instruction.attributes)
    fields = dict(field.split("=") for field in text[1].split()) if text else {}
    return Convolution(
        lhs=lhs,
        rhs=rhs,
        output=instruction.arrays[0],
        window=tuple((name, tuple(value.split("x"))) for name, value in fields.items()),
        dim_labels=instruction.attribute("dim_labels"),
        feature_groups=int(instruction.attribute("feature_group_count") or 1),
        batch_groups=int(instruction.attribute("batch_group_count") or 1),
    )
