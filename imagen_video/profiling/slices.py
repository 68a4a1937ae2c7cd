"""TPU slices by name, and what their chips have."""

import dataclasses
import re


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
    """What one chip of a generation has (cloud.google.com/tpu/docs, system architecture pages).

    Attributes:
      hbm_gib: memory.
      flops: bfloat16 peak, per second.
      clock_hz: cycles per second: the peak over 2 FLOPs for each of its multipliers.
      hbm_bytes: memory bandwidth, per second.
      ici_bytes: what it sends to other chips per second along one axis of the torus, both ways:
        two of its links, of four (v5e, v6e) or six.
    """

    hbm_gib: float
    flops: float
    clock_hz: float
    hbm_bytes: float
    ici_bytes: float


CHIPS = {
    "v4": Chip(hbm_gib=32.0, flops=275e12, clock_hz=1.05e9, hbm_bytes=1228e9, ici_bytes=100e9),
    "v5e": Chip(hbm_gib=16.0, flops=197e12, clock_hz=1.5e9, hbm_bytes=819e9, ici_bytes=100e9),
    "v5p": Chip(hbm_gib=95.0, flops=459e12, clock_hz=1.75e9, hbm_bytes=2765e9, ici_bytes=200e9),
    "v6e": Chip(hbm_gib=32.0, flops=918e12, clock_hz=1.75e9, hbm_bytes=1640e9, ici_bytes=224e9),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Slice:
    """Chips joined in a torus.

    Attributes:
      generation: one of CHIPS.
      shape: chips along each axis.
    """

    generation: str
    shape: tuple[int, ...]

    @classmethod
    def parse(cls, name: str) -> "Slice":
        """Reads a name such as "v5p:4x4x4".

        Raises:
          ValueError: it is not one.
        """
        match = re.fullmatch(r"(v\d[ep]?):(\d+(?:x\d+)+)", name)
        if not match or match[1] not in CHIPS:
            known = ", ".join(CHIPS)
            raise ValueError(
                f"slice: {name!r} is not GENERATION:TOPOLOGY with a generation of {known}, such as"
                f" v5p:4x4x4"
            )
        shape = tuple(map(int, match[2].split("x")))
        wanted = 2 if match[1] in ("v5e", "v6e") else 3
        if len(shape) != wanted or 0 in shape:
            raise ValueError(f"slice: {name!r}: a topology of {match[1]} has {wanted} axes above 0")
        return cls(generation=match[1], shape=shape)

    def __str__(self) -> str:
        return f"{self.generation}:{'x'.join(map(str, self.shape))}"

    @property
    def chip(self) -> Chip:
        """What each of them has."""
        return CHIPS[self.generation]
