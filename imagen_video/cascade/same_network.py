"""Whether the weights of one record of a stage are those of another."""

import dataclasses
from collections.abc import Iterable
from typing import Any

from imagen_video.cascade.stage import Stage

# What a network takes and what its output means. Noise levels are told to it, so that weights may
# be sampled by another schedule, and on another grid, than they were trained with.
NETWORK_FIELDS = ("name", "input", "fill", "unet", "prediction", "low_res_error")
# Of its U-Net, how it is computed, which is not what it is.
COMPUTED_BY = ("remat", "dtype", "unrolled_levels")


def check_same_network(
    path: str, stored: Stage, stage: Stage, *, fields: Iterable[str] = NETWORK_FIELDS
) -> None:
    """Raises ValueError where weights of `stored` would not do in `stage` what they learned.

    Args:
      path: of the weights, for the message.
      stored: what they were trained as.
      stage: what they are wanted for. How its network is computed may differ.
      fields: that count.
    """
    as_ours = {name: getattr(stage.unet, name) for name in COMPUTED_BY}
    stored = dataclasses.replace(stored, unet=dataclasses.replace(stored.unet, **as_ours))
    for field in fields:
        _check_equal(f"{path}: stage.{field}", getattr(stored, field), getattr(stage, field))


def _check_equal(where: str, theirs: Any, ours: Any) -> None:
    if dataclasses.is_dataclass(theirs) and type(theirs) is type(ours):
        for field in dataclasses.fields(theirs):
            name = field.name
            _check_equal(f"{where}.{name}", getattr(theirs, name), getattr(ours, name))
    elif theirs != ours:
        raise ValueError(f"{where} is {theirs}, in this config it is {ours}")
