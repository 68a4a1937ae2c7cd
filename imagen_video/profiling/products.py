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
      dim_labels: such as "b01f_01io->b01f"; digits number the window's axes.
      stride: of the window, along each of its axes.
      padding: zeros before and after, negative where the input is cropped.
      lhs_dilation: distance of neighbouring inputs; between them are holes.
      rhs_dilation: distance of neighbouring kernel elements.
      reversal: whether the kernel is read backwards.
      feature_groups: of the input's features.
      batch_groups: of the input's batch.
    """

    lhs: ArrayType
    rhs: ArrayType
    output: ArrayType
    dim_labels: str
    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    lhs_dilation: tuple[int, ...]
    rhs_dilation: tuple[int, ...]
    reversal: tuple[bool, ...]
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
                stride=self.stride[d],
                low=self.padding[d][0],
                dilation=self.lhs_dilation[d],
                spacing=self.rhs_dilation[d],
            )
            for d in range(len(self.stride))
        )
        rows = self.output.shape[output["b"]] * self.output.shape[output["f"]]
        return 2 * taps * rows * self.rhs.shape[rhs["i"]]


def convolution(where: Computation, instruction: Instruction) -> Convolution | None:
    """Describes the instruction of `where`; None if it is no convolution."""
    if instruction.opcode != "convolution":
        return None
    lhs, rhs = (where.instructions[name].arrays[0] for name in instruction.operands)
    labels = instruction.attribute("dim_labels")
    num_axes = sum(label.isdigit() for label in labels.split("_")[0])
    text = re.search(r"window={([^}]*)}", instruction.attributes)
    window = dict(field.split("=") for field in text[1].split()) if text else {}

    def entry(name: str, default: str) -> list[str]:
        """What XLA prints for each axis of the window; it leaves defaults out."""
        return window[name].split("x") if name in window else [default] * num_axes

    return Convolution(
        lhs=lhs,
        rhs=rhs,
        output=instruction.arrays[0],
        dim_labels=labels,
        stride=tuple(map(int, entry("stride", "1"))),
        padding=tuple(tuple(map(int, zeros.split("_"))) for zeros in entry("pad", "0_0")),
        lhs_dilation=tuple(map(int, entry("lhs_dilate", "1"))),
        rhs_dilation=tuple(map(int, entry("rhs_dilate", "1"))),
        reversal=tuple(flag == "1" for flag in entry("rhs_reversal", "0")),
        feature_groups=int(instruction.attribute("feature_group_count") or 1),
        batch_groups=int(instruction.attribute("batch_group_count") or 1),
    )
