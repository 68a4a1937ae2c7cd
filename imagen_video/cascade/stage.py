"""One Stage record: all that is needed to train a stage or to sample from its weights.

The road from a lower-resolution clip to a stage's conditioning is defined here once; training
walks it on data, sampling on the previous stage's output.
"""

import dataclasses
import functools
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from imagen_video import resample
from imagen_video.array_types import Conditioning, DenoiseFn, KeyArray, LogSNR, Video
from imagen_video.diffusion import augmentation
from imagen_video.diffusion.augmentation import AugmentationLevel
from imagen_video.diffusion.guidance import (
    ConstantGuidance,
    GuidanceRange,
    OscillatingGuidance,
)
from imagen_video.diffusion.residual import predict_v_from_residual
from imagen_video.diffusion.schedules import CosineSchedule
from imagen_video.diffusion.thresholding import DynamicThreshold, NoThreshold, StaticClip
from imagen_video.networks.unet import UNetConfig, VideoUNet, init_params, param_axes
from imagen_video.sampling.steppers import DDIM, Ancestral, StochasticDistilled
from imagen_video.sharding.layout import Layout
from imagen_video.video_io import MAX_FPS, MIN_FPS

STAGE_NAMES = ("base", "tsr1", "ssr1", "ssr2", "tsr2", "tsr3", "ssr3")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Grid:
    """Frames, height and width of a clip. The paper prints frames x width x height."""

    frames: int
    height: int
    width: int

    def __post_init__(self):
        for field in dataclasses.fields(self):
            if getattr(self, field.name) < 1:
                raise ValueError(f"{field.name}: {getattr(self, field.name)} is below 1")

    def __str__(self) -> str:
        return f"{self.frames}x{self.height}x{self.width}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
    """How a stage is sampled unless told otherwise.

    Attributes:
      num_steps: sampler steps; also the evaluations, doubled where guidance is on.
      stepper: the sampler.
      guidance: the weights w of Eq. 5 over the steps.
      thresholding: what keeps x_hat in range after guidance.
      augmentation: fixed strength of the noise on the low-res clip (section 2.5); the base model
        has no such clip and leaves it None.
    """

    num_steps: int
    stepper: Ancestral | DDIM | StochasticDistilled
    guidance: ConstantGuidance | OscillatingGuidance
    thresholding: StaticClip | DynamicThreshold | NoThreshold
    augmentation: AugmentationLevel | None = None

    def __post_init__(self):
        if self.num_steps < 1:
            raise ValueError(f"num_steps: {self.num_steps} is below 1")
        if self.num_steps < self.stepper.min_steps:
            raise ValueError(
                f"num_steps: {self.num_steps} is below {self.stepper.min_steps}, the least for"
                f" {type(self.stepper).__name__}"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
    """One diffusion model of the cascade.

    Attributes:
      name: one of STAGE_NAMES.
      output: grid of the clips it makes.
      fps: frames a second of those clips.
      input: grid of the clip it is conditioned on, None for the base model.
      fill: how a temporal super-resolution stage lays its input over more frames: "repeat" each
        frame or "blank" (zero) the missing ones (section 2.3).
      unet: the network.
      schedule: log-SNR over diffusion time.
      prediction: what the network's output means; v in all stages of the paper (section 2.4).
      low_res_error: None, or the root mean square difference of a clip and its resampled
        low-resolution version, in (0, 1]: the network then predicts what v adds to that version
        (see `diffusion.residual`), in these units.
      text_tokens: caption length in tokens, padded or truncated.
      sample_param_dtype: dtype name that parameters are held in while sampling.
      sampling: defaults with a constant guidance weight.
      oscillating: defaults with oscillating guidance, where section 2.6.2 applies it.
      distilled_steps: the number of steps that the weights were distilled for, in which they are
        sampled as `sampling` says and in no other way; None for weights that were not distilled.
      distilled_guidance: what was folded into the weights, a constant weight of 0 where distilling
        them left it out; None for weights that were not distilled.
    """

    name: Literal["base", "tsr1", "ssr1", "ssr2", "tsr2", "tsr3", "ssr3"]
    output: Grid
    fps: float
    input: Grid | None
    fill: Literal["repeat", "blank"] = "repeat"
    unet: UNetConfig
    schedule: CosineSchedule
    prediction: Literal["v", "eps", "x"] = "v"
    low_res_error: float | None = None
    text_tokens: int
    sample_param_dtype: Literal["float32", "bfloat16"] = "float32"
    sampling: Sampling
    oscillating: Sampling | None = None
    distilled_steps: int | None = None
    distilled_guidance: ConstantGuidance | OscillatingGuidance | GuidanceRange | None = None

    def __post_init__(self):
        if self.text_tokens < 1:
            raise ValueError(f"text_tokens: {self.text_tokens} is below 1")
        if not MIN_FPS <= self.fps <= MAX_FPS:
            raise ValueError(f"fps: {self.fps} is not from {MIN_FPS} to {MAX_FPS}")
        self.unet.check_size(self.output.height, self.output.width)
        if (self.input is not None) != self.unet.low_res:
            raise ValueError(f"unet.low_res: {self.unet.low_res}, but input is {self.input}")
        if self.low_res_error is not None:
            if not 0 < self.low_res_error <= 1:
                raise ValueError(f"low_res_error: {self.low_res_error} is outside (0, 1]")
            if self.input is None or self.fill == "blank" or self.prediction != "v":
                raise ValueError(
                    "low_res_error: needs an input, repeated frames and v-prediction, but input is"
                    f" {self.input}, fill {self.fill!r}, prediction {self.prediction!r}"
                )
        for sampling in filter(None, (self.sampling, self.oscillating)):
            if (self.input is not None) != (sampling.augmentation is not None):
                raise ValueError(
                    f"sampling.augmentation: {sampling.augmentation}, but input is {self.input}"
                )
        if self.distilled_steps not in (None, self.sampling.num_steps):
            raise ValueError(
                f"distilled_steps: {self.distilled_steps}, but sampling.num_steps is"
                f" {self.sampling.num_steps}"
            )
        self._check_folded_guidance()
        if self.input is not None:
            for name in ("frames", "height", "width"):
                large, small = getattr(self.output, name), getattr(self.input, name)
                if large % small:
                    raise ValueError(
                        f"output.{name}: {large} is not a multiple of the input's {small}"
                    )
            if self.output.width != self.size_factor * self.input.width:
                raise ValueError(
                    f"output.width: {self.output.width} is not {self.size_factor} times the input's"
                    f" {self.input.width}, as the height is"
                )

    def _check_folded_guidance(self) -> None:
        """Weights that have learned guidance are not guided again, or by what they have learned."""
        folded = self.distilled_guidance
        if folded is None:
            return
        low, high = (folded.low, folded.high) if isinstance(folded, GuidanceRange) else (0.0, 0.0)
        for weight in self.sampling.guidance.weights(self.sampling.num_steps):
            if not low <= weight <= high:
                raise ValueError(
                    f"sampling.guidance: a weight of {weight}, but the weights have learned"
                    f" {folded} and are sampled with {low} to {high}"
                )

    @property
    def frame_factor(self) -> int:
        """Output frames per input frame; 1 for the base model."""
        return self.output.frames // self.input.frames if self.input else 1

    @property
    def size_factor(self) -> int:
        """Output height per input height, and width per width; 1 for the base model."""
        return self.output.height // self.input.height if self.input else 1

    def evaluations(self, sampling: Sampling) -> int:
        """Returns evaluations of the network for one clip, two a step where guidance needs both.

        A network that reads the weight, or needs none, is not evaluated without the caption.
        """
        guided = any(sampling.guidance.weights(sampling.num_steps))
        return sampling.num_steps * (2 if guided and not self.unet.guidance_weight else 1)


def init_stage_params(stage: Stage, key: KeyArray) -> dict:
    """Draws the U-Net's initial float32 parameters."""
    return init_params(stage.unet, key)


def stage_param_shapes(stage: Stage) -> dict:
    """Returns shapes and dtypes of what `init_stage_params` draws, traced once for a network."""
    return _param_shapes(stage.unet)


@functools.cache
def _param_shapes(unet: UNetConfig) -> dict:
    return jax.eval_shape(lambda: init_params(unet, jax.random.key(0)))


def stage_param_axes(stage: Stage) -> dict:
    """Returns the logical axis names of the U-Net's parameters."""
    return param_axes(stage.unet)


def denoise_fn(stage: Stage, params: dict, *, layout: Layout | None = None) -> DenoiseFn:
    """Binds parameters, on devices or in the host's memory, to the stage's network.

    Activations are spread over devices as `layout` says. What it returns predicts
    `stage.prediction`, whether or not the network adds to its input.
    """
    network = VideoUNet(stage.unet, layout)
    params = jax.tree.map(jnp.asarray, params)  # A numpy array knows no traced index.

    def denoise(z_t: Video, logsnr_t: LogSNR, cond: Conditioning) -> Video:
        predicted = network.apply({"params": params}, z_t, logsnr_t, cond)
        if stage.low_res_error is None:
            return predicted
        return predict_v_from_residual(
            predicted,
            z_t=z_t,
            logsnr_t=logsnr_t,
            low_res=cond.low_res,
            low_res_logsnr=cond.low_res_logsnr,
            error=stage.low_res_error,
        )

    return denoise


def low_res_condition(
    stage: Stage,
    low_res: Video,
    *,
    eps: Video,
    logsnr: LogSNR,
    height: int,
    width: int,
    is_image: Bool[Array, " b"] | None = None,
) -> Float[Array, "b f2 h2 w2 c"]:
    """What a super-resolution stage concatenates to z_t, from a clean clip on the input grid.

    Noise is added on the input grid, then the clip is resampled: bilinear in space, frames
    repeated or blanked in time. Blank frames are exactly 0. In rows of packed images every frame
    reads its own image's low-resolution version, whatever the fill.

    Args:
      stage: whose `fill` and `frame_factor` k apply.
      low_res: clean clip in [-1, 1], [b f h w c]. Where `is_image` is given it has a frame for
        every output frame, of which rows of videos read each k-th alone.
      eps: standard normal, shaped like low_res.
      logsnr: log-SNR of the noise in nats, [b] or [b f].
      height: of the output; the stage's own, or a training crop's.
      width: likewise.
      is_image: rows of packed images; None where all rows are videos.

    Returns:
      [b k*f height width c], or [b f height width c] where `is_image` is given; float32.
    """
    noisy = augmentation.augment(low_res, eps=eps, logsnr=logsnr)
    noisy = resample.resize(noisy, height=height, width=width)
    k, frames = stage.frame_factor, low_res.shape[1]
    if is_image is None:
        return resample.fill_frames(noisy, frames=k * frames, fill=stage.fill)
    video = resample.fill_frames(noisy[:, ::k], frames=frames, fill=stage.fill)
    return jnp.where(is_image[:, None, None, None, None], noisy, video)
