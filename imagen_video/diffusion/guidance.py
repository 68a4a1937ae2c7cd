"""Classifier-free guidance: Eq. 5 of Imagen Video (arXiv 2210.02303), and its weights over steps.

    x_tilde = (1 + w) x_hat(z_t, c) - w x_hat(z_t)

`guidance_weight` is this w everywhere: w = 0 is no guidance, w = -1 is the unconditional model.
Imagen (arXiv 2205.11487) and most libraries write w' = 1 + w instead: their 7 is 6 here, and the
paper's low weight 1 still means 2 x_hat(z_t, c) - x_hat(z_t).
"""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from imagen_video.array_types import Conditioning, LogSNR, Video
from imagen_video.diffusion.parameterization import Parameterization, predict_x
from imagen_video.diffusion.thresholding import Thresholding


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConstantGuidance:
    """The same weight at every step.

    Attributes:
      weight: w of Eq. 5; 0 is no guidance.
    """

    weight: float

    def weights(self, num_steps: int) -> tuple[float, ...]:
        """Returns the weight of each sampling step, the noisiest first."""
        return (self.weight,) * num_steps


@dataclasses.dataclass(frozen=True, kw_only=True)
class OscillatingGuidance:
    """A high weight for the first steps, then low and high in turn (arXiv 2210.02303, 2.6.2).

    Attributes:
      high: w of the first steps and of every second one after; 15 in the paper.
      low: w of the others, beginning right after the first steps; 1 in the paper.
      constant_fraction: step k of N (from 0) belongs to the first steps if k / N is less than
        this. The paper does not give it; 0.1 is our choice, after public code that imitates it.
      constant_steps: the number of first steps itself; replaces constant_fraction if given.
    """

    high: float = 15.0
    low: float = 1.0
    constant_fraction: float = 0.1
    constant_steps: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.constant_fraction <= 1:
            raise ValueError(f"constant_fraction: {self.constant_fraction} must be in [0, 1]")
        if self.constant_steps is not None and self.constant_steps < 0:
            raise ValueError(f"constant_steps: {self.constant_steps} must not be negative")

    def weights(self, num_steps: int) -> tuple[float, ...]:
        """Returns the weight of each sampling step, the noisiest first."""
        first = self.constant_steps
        if first is None:
            first = sum(k / num_steps < self.constant_fraction for k in range(num_steps))
        return tuple(
            self.high if k < first or (k - first) % 2 else self.low for k in range(num_steps)
        )


GuidanceSchedule = ConstantGuidance | OscillatingGuidance


@dataclasses.dataclass(frozen=True, kw_only=True)
class GuidanceRange:
    """Weights that one distilled network is trained for and reads (arXiv 2210.03142, section 3.1).

    Attributes:
      low: least w, at least 0.
      high: largest w.
    """

    low: float = 0.0
    high: float = 4.0

    def __post_init__(self) -> None:
        if not 0 <= self.low < self.high:
            raise ValueError(f"low: {self.low} must be at least 0 and less than high {self.high}")


def guide(
    *,
    conditional: Float[Array, "*clip"],
    unconditional: Float[Array, "*clip"],
    weight: float | Float[Array, "..."],
) -> Float[Array, "*clip"]:
    """Returns (1 + w) conditional - w unconditional: Eq. 5, the same in x, eps and v.

    Args:
      conditional: what the network predicts with the caption.
      unconditional: what it predicts without.
      weight: w, or an array that broadcasts against a clip.
    """
    return (1 + weight) * conditional - weight * unconditional


def drop_text(cond: Conditioning) -> Conditioning:
    """Returns the unconditional branch: no text, all else (low_res and its log-SNR) as it was."""
    return dataclasses.replace(
        cond, text_emb=jnp.zeros_like(cond.text_emb), text_mask=jnp.zeros_like(cond.text_mask)
    )


def both_branches(cond: Conditioning) -> Conditioning:
    """Returns each row of `cond` followed by its unconditional branch: 2b rows, 2m captions."""
    both = jax.tree.map(_pair, cond, drop_text(cond))
    if cond.caption_index is None:
        return both
    caption_index = _pair(2 * cond.caption_index, 2 * cond.caption_index + 1)
    return dataclasses.replace(both, caption_index=caption_index)


def predict_both(
    denoise_fn: Callable[[Video, LogSNR, Conditioning], Video],
    z_t: Video,
    logsnr_t: LogSNR,
    branches: Conditioning,
) -> tuple[Float[Array, "b f h w c"], Float[Array, "b f h w c"]]:
    """Returns the conditional and the unconditional prediction, float32, of one evaluation.

    Args:
      denoise_fn: the network with its parameters bound.
      z_t: b rows.
      logsnr_t: [b] or [b f], nats.
      branches: `both_branches` of what the rows are conditioned on, 2b rows.
    """
    prediction = denoise_fn(_pair(z_t, z_t), _pair(logsnr_t, logsnr_t), branches)
    pairs = prediction.astype(jnp.float32).reshape(-1, 2, *prediction.shape[1:])
    return pairs[:, 0], pairs[:, 1]


def guided(
    denoise_fn: Callable[[Video, LogSNR, Conditioning], Video],
    cond: Conditioning,
    *,
    weights: Sequence[float] | Float[np.ndarray, " n"],
    thresholding: Thresholding,
    parameterization: Parameterization = "v",
    reads_weight: bool = False,
) -> Callable[[Video, LogSNR, int | Int[Array, ""]], Video]:
    """Returns `predict_x(z_t, logsnr_t, step) -> x_hat`, all that a sampler needs to know.

    x_hat is guided, then thresholded, float32. Both branches are one evaluation with 2b rows. If
    every weight is 0, or if the network itself reads the weight, the program has no unconditional
    branch at all: b rows.

    Args:
      denoise_fn: the network with its parameters bound.
      cond: what it is conditioned on, b rows.
      weights: w of Eq. 5 for each of the N sampling steps, the noisiest first; host values, so
        that the choice of the program is static.
      thresholding: what brings x_hat back to [-1, 1].
      parameterization: what denoise_fn predicts. Guidance is linear in it, thresholding is not,
        so guidance comes first.
      reads_weight: whether the network was distilled to take w as an input, in
        `cond.guidance_weight`, which is set at every step.

    Raises:
      ValueError: there are no weights.
    """
    weights = tuple(float(weight) for weight in weights)
    if not weights:
        raise ValueError("weights: () must hold one weight per sampling step")
    is_guided = any(weights) and not reads_weight
    branches = both_branches(cond) if is_guided else cond

    def predict_tilde(z_t: Video, logsnr_t: LogSNR, step: int | Int[Array, ""]) -> Video:
        weight = jnp.asarray(weights, jnp.float32)[step]
        if reads_weight:
            own = dataclasses.replace(cond, guidance_weight=jnp.broadcast_to(weight, len(z_t)))
            return denoise_fn(z_t, logsnr_t, own)
        if not is_guided:
            return denoise_fn(z_t, logsnr_t, cond)
        conditional, unconditional = predict_both(denoise_fn, z_t, logsnr_t, branches)
        return guide(conditional=conditional, unconditional=unconditional, weight=weight)

    def guided_predict_x(z_t: Video, logsnr_t: LogSNR, step: int | Int[Array, ""]) -> Video:
        prediction = predict_tilde(z_t, logsnr_t, step).astype(jnp.float32)
        x_tilde = predict_x(
            prediction, z_t=z_t, logsnr_t=logsnr_t, parameterization=parameterization
        )
        return thresholding(x_tilde, cond.is_image)

    return guided_predict_x


def _pair(first: Array | np.ndarray, second: Array) -> Array:
    """Rows in turn: row i of both stays on the device that holds row i, however rows are split."""
    return jnp.stack([first, second], axis=1).reshape(-1, *first.shape[1:])
