"""Adam, Adafactor or Muon with warm-up, decaying learning rate and clipping of the gradient."""

import dataclasses
from typing import Literal

import jax.numpy as jnp
import optax

from imagen_video.training.muon import scale_by_muon


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """How parameters are moved.

    Imagen Video publishes no values. The defaults are those of Imagen's super-resolution models
    (arXiv 2205.11487, appendix F.2), clip_norm that of Salimans and Ho's code (arXiv 2202.00512).

    Attributes:
      name: "adafactor" for Imagen's base model, "adam" for its super-resolution models; "muon" is
        our choice for short runs of small networks.
      learning_rate: the highest, reached at the end of the warm-up.
      warmup_steps: steps over which it rises linearly, the first at 1 / warmup_steps of it.
      schedule: after the warm-up: constant, or falling to 0 at `total_steps` along half a cosine
        or a line.
      total_steps: where it reaches 0; None means the length of the run.
      b1: Adam's decay of the gradient's mean. Adafactor has no mean; Muon has a decay of its own.
      b2: Adam's decay of the gradient's square. Adafactor has a schedule of its own.
      eps: Adam's, added to the root of the square; Muon adds it to a norm, too. Adafactor keeps
        optax's.
      weight_decay: decoupled; each step takes learning rate * weight_decay of every parameter away.
      clip_norm: largest global norm of the gradient; None never clips.
    """

    name: Literal["adam", "adafactor", "muon"] = "adam"
    learning_rate: float = 1e-4
    warmup_steps: int = 10_000
    schedule: Literal["constant", "cosine", "linear"] = "cosine"
    total_steps: int | None = None
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0
    clip_norm: float | None = 1.0

    def __post_init__(self):
        if self.name not in ("adam", "adafactor", "muon"):
            raise ValueError(f"name is {self.name!r}, must be 'adam', 'adafactor' or 'muon'")
        if self.schedule not in ("constant", "cosine", "linear"):
            raise ValueError(
                f"schedule is {self.schedule!r}, must be 'constant', 'cosine' or 'linear'"
            )
        for name in ("learning_rate", "eps", "clip_norm"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} is {value}, must be positive")
        for name in ("warmup_steps", "weight_decay"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} is {getattr(self, name)}, must not be negative")
        for name in ("b1", "b2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, must be in [0, 1)")


def make_schedule(config: OptimizerConfig, num_steps: int) -> optax.Schedule:
    """Returns the learning rate as a function of updates already made.

    The warm-up is (updates + 1) / warmup_steps of `learning_rate`: no update is wasted on 0.

    Args:
      config: the rate's rise and fall.
      num_steps: length of the run, used where `config.total_steps` is None.

    Raises:
      ValueError: the warm-up does not end before a falling schedule does.
    """
    total = num_steps if config.total_steps is None else config.total_steps
    warmup = config.warmup_steps
    if config.schedule != "constant" and warmup >= total:
        raise ValueError(
            f"warmup_steps is {warmup}, must be less than the {total} steps of the"
            f" {config.schedule} schedule"
        )

    def schedule(updates):
        updates = jnp.asarray(updates, jnp.float32)
        rise = jnp.minimum(1.0, (updates + 1) / max(warmup, 1))
        progress = jnp.clip((updates - warmup) / max(total - warmup, 1), 0.0, 1.0)
        if config.schedule == "cosine":
            fall = 0.5 * (1 + jnp.cos(jnp.pi * progress))
        elif config.schedule == "linear":
            fall = 1 - progress
        else:
            fall = 1.0
        return config.learning_rate * rise * fall

    return schedule


def make_optimizer(config: OptimizerConfig, num_steps: int) -> optax.GradientTransformation:
    """Returns clipping, Adam, Adafactor or Muon, weight decay and learning rate, in this order.

    Adafactor is optax's with its defaults: factored second moments, updates clipped to a
    root-mean-square of 1 for each parameter and scaled by the parameter's own.

    Args:
      config: what to build.
      num_steps: length of the run.

    Raises:
      ValueError: see `make_schedule`.
    """
    if config.name == "muon":
        direction = [scale_by_muon(b1=config.b1, b2=config.b2, eps=config.eps)]
    elif config.name == "adam":
        direction = [optax.scale_by_adam(b1=config.b1, b2=config.b2, eps=config.eps)]
    else:
        direction = [
            optax.scale_by_factored_rms(),
            optax.clip_by_block_rms(1.0),
            optax.scale_by_param_block_rms(),
        ]
    clip = [] if config.clip_norm is None else [optax.clip_by_global_norm(config.clip_norm)]
    decay = [optax.add_decayed_weights(config.weight_decay)] if config.weight_decay else []
    rate = optax.scale_by_learning_rate(make_schedule(config, num_steps))
    return optax.chain(*clip, *direction, *decay, rate)
