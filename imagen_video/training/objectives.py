"""What training minimises: the denoising loss of a stage (Eq. 2 of arXiv 2210.02303)."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from imagen_video import resample
from imagen_video.array_types import Conditioning, DenoiseFn, KeyArray, LogSNR, Video
from imagen_video.cascade.stage import Stage, denoise_fn, low_res_condition
from imagen_video.diffusion import losses, process
from imagen_video.diffusion.losses import Loss
from imagen_video.diffusion.parameterization import predict_v_from_x_and_eps
from imagen_video.diffusion.residual import residual_variance
from imagen_video.sampling import keys as row_keys
from imagen_video.sharding import axes
from imagen_video.sharding.layout import Layout, constrain

Batch = Mapping[str, Any]
Encode = Callable[[Int[Array, "m n"]], Float[Array, "m n d"]]
Bind = Callable[..., DenoiseFn]
StageLoss = Loss | Literal["r_mse"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class DenoisingConfig:
    """How a stage's denoiser is trained.

    Attributes:
      loss: which error counts; "eps_mse" is Eq. 2, "r_mse" that of a network which adds to its
        low-res input (`Stage.low_res_error`), by which all noise levels begin alike.
      caption_dropout: share of captions replaced by the unconditional one, for classifier-free
        guidance; 0.1 is Imagen's (arXiv 2205.11487, section 2.2).
      max_augmentation: t_aug is drawn uniformly from [0, max_augmentation). Section 2.5 says
        "random"; uniform up to 1 is the practice of Imagen and of cascaded diffusion models. Less
        leaves out low-res clips that are nearly noise, of which a short run learns nothing.
      logit_normal: mean m and deviation s of logit t ~ N(m, s^2), which trains the noise levels
        in the middle more often (arXiv 2403.03206, section 3.1); None draws t from U(0, 1), as
        Imagen Video does.
    """

    loss: StageLoss = "eps_mse"
    caption_dropout: float = 0.1
    max_augmentation: float = 1.0
    logit_normal: tuple[float, float] | None = None

    def __post_init__(self):
        if not 0 <= self.caption_dropout <= 1:
            raise ValueError(f"caption_dropout: {self.caption_dropout} is outside [0, 1]")
        if not 0 < self.max_augmentation <= 1:
            raise ValueError(f"max_augmentation: {self.max_augmentation} is outside (0, 1]")
        if self.logit_normal is not None and not self.logit_normal[1] > 0:
            raise ValueError(f"logit_normal: the deviation {self.logit_normal[1]} is not positive")


def denoising_loss(
    stage: Stage,
    config: DenoisingConfig,
    params: Any,
    encode: Encode | None,
    batch: Batch,
    key: KeyArray,
    *,
    layout: Layout | None = None,
    bind: Bind = denoise_fn,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Returns the mean loss of a batch, and metrics by name.

    Every row draws t, the noise, the augmentation level and its noise from a key of its own
    (the step's key folded with the row's number), and every caption its dropout, so the loss does
    not depend on how a batch is cut over devices. In a packed row every image has its own t and
    augmentation level.

    Args:
      stage: whose network, schedule and resampling apply.
      config: the loss.
      params: of the network.
      encode: tokens to frozen text embeddings; not called where the batch holds `text_emb`.
      batch: as `data.pipeline.Batches` makes it: `video` [b f h w c] in [-1, 1] on this stage's
        output grid or a crop of it, `tokens` [m n], `row` [b], and for packed rows `is_image`,
        `caption_index` and `caption_id`; `text_emb` [m n d] if embeddings are cached.
      key: of this training step.
      layout: how clips are spread over devices.
      bind: makes of stage, params and layout the denoiser that is trained; a network other than the
        stage's own has parameters of its own.
    """
    text_emb, text_mask = embed_captions(
        batch, encode=encode, dropout=config.caption_dropout, key=key
    )
    inputs = draw_inputs(
        stage,
        batch,
        key,
        text_emb=text_emb,
        text_mask=text_mask,
        max_augmentation=config.max_augmentation,
        logit_normal=config.logit_normal,
        layout=layout,
    )
    given = {"x": inputs.x, "eps": inputs.eps, "logsnr_t": inputs.logsnr_t}
    prediction = bind(stage, params, layout=layout)(inputs.z_t, inputs.logsnr_t, inputs.cond)
    target = {
        "v": lambda: predict_v_from_x_and_eps(**given),
        "eps": lambda: inputs.eps,
        "x": lambda: inputs.x,
    }[stage.prediction]()
    return prediction_loss(stage, prediction, target, inputs=inputs, loss=config.loss), {}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inputs:
    """What a loss draws for a batch.

    Attributes:
      x: clean clips [b f h w c] in [-1, 1].
      eps: the noise in z_t.
      z_t: alpha_t x + sigma_t eps.
      logsnr_t: [b], or [b f] where rows may be packed, nats.
      step: Int, shaped like logsnr_t: i of t = (i + 1) / N; None where t is continuous.
      cond: what the network is given besides.
    """

    x: Video
    eps: Video
    z_t: Video
    logsnr_t: LogSNR
    step: Any
    cond: Conditioning


def draw_inputs(
    stage: Stage,
    batch: Batch,
    key: KeyArray,
    *,
    text_emb: Float[Array, "m n d"],
    text_mask: Bool[Array, "m n"],
    max_augmentation: float,
    logit_normal: tuple[float, float] | None = None,
    grid_steps: int | None = None,
    layout: Layout | None = None,
) -> Inputs:
    """Draws times, noise and augmentation for a batch, each row from a key of its own.

    Args:
      stage: whose schedule and resampling apply.
      batch: as in `denoising_loss`.
      key: of this training step.
      text_emb: embedded captions.
      text_mask: True at their real tokens.
      max_augmentation: as in `DenoisingConfig`.
      logit_normal: likewise.
      grid_steps: N, if t is one of 1 / N, ..., 1; None leaves it continuous.
      layout: how clips are spread over devices.
    """
    x, is_image = constrain(layout, batch["video"], axes.PIXELS), batch.get("is_image")
    frames, height, width = x.shape[1:4]
    keys = fold_rows(key, batch["row"])

    def draw_time(purpose: str) -> Float[Array, "..."]:
        own = row_keys.fold_in_name(keys, purpose)
        if is_image is None:
            return jax.vmap(lambda k: jax.random.uniform(k, ()))(own)
        t = jax.vmap(lambda k: jax.random.uniform(k, (frames,)))(own)
        return jnp.where(is_image[:, None], t, t[:, :1])

    t, step = draw_time("t"), None
    if logit_normal is not None:
        mean, deviation = logit_normal
        t = jax.nn.sigmoid(mean + deviation * jax.scipy.special.ndtri(t))
    if grid_steps is not None:
        step = jnp.minimum((grid_steps * t).astype(jnp.int32), grid_steps - 1)
        t = (step + 1) / grid_steps
    logsnr_t = stage.schedule(t)
    eps = row_keys.normal(row_keys.fold_in_name(keys, "eps"), x.shape[1:])
    eps = constrain(layout, eps, axes.PIXELS)

    low_res = low_res_logsnr = None
    if stage.input is not None:
        low_res_logsnr = stage.schedule(max_augmentation * draw_time("augmentation"))
        factor = stage.size_factor
        small = resample.resize(x, height=height // factor, width=width // factor)
        if is_image is None:
            small = resample.skip_frames(small, frames=frames // stage.frame_factor)
        low_res = low_res_condition(
            stage,
            small,
            eps=row_keys.normal(row_keys.fold_in_name(keys, "low_res"), small.shape[1:]),
            logsnr=low_res_logsnr,
            height=height,
            width=width,
            is_image=is_image,
        )
        low_res = constrain(layout, low_res, axes.PIXELS)
    cond = Conditioning(
        text_emb=text_emb,
        text_mask=text_mask,
        caption_index=batch.get("caption_index"),
        is_image=is_image,
        low_res=low_res,
        low_res_logsnr=low_res_logsnr,
    )
    z_t = process.diffuse(x=x, eps=eps, logsnr_t=logsnr_t)
    return Inputs(x=x, eps=eps, z_t=z_t, logsnr_t=logsnr_t, step=step, cond=cond)


def prediction_loss(
    stage: Stage,
    prediction: Video,
    target: Video,
    *,
    inputs: Inputs,
    loss: StageLoss,
) -> Float[Array, ""]:
    """Returns the weighted squared error of a stage's network, averaged over a batch.

    Args:
      stage: whose `prediction` both are.
      prediction: of the network.
      target: what it should be.
      inputs: what the network saw.
      loss: which error counts, as in `DenoisingConfig`.
    """
    per_row = losses.weighted_mse(
        prediction,
        target,
        logsnr_t=inputs.logsnr_t,
        loss="v_mse" if loss == "r_mse" else loss,
        parameterization=stage.prediction,
    )
    if loss == "r_mse":
        per_row = per_row / residual_variance(
            logsnr_t=inputs.logsnr_t,
            low_res_logsnr=inputs.cond.low_res_logsnr,
            error=stage.low_res_error,
        )
    return jnp.mean(per_row)


def embed_captions(
    batch: Batch, *, encode: Encode | None, dropout: float, key: KeyArray
) -> tuple[Float[Array, "m n d"], Bool[Array, "m n"]]:
    """Returns frozen embeddings and masks of the batch's captions, zero and False where dropped.

    Args:
      batch: as in `denoising_loss`.
      encode: likewise.
      dropout: share of captions dropped, drawn for each by its number and `key` alone.
      key: of this training step.
    """
    tokens = batch["tokens"]
    ids = batch.get("caption_id", batch["row"])
    drop_keys = row_keys.fold_in_name(fold_rows(key, ids), "caption_dropout")
    kept = jax.vmap(lambda k: jax.random.uniform(k, ()))(drop_keys) >= dropout
    text_mask = (tokens > 0) & kept[:, None]
    text_emb = batch["text_emb"] if "text_emb" in batch else encode(tokens)
    text_emb = jax.lax.stop_gradient(text_emb)
    return jnp.where(text_mask[..., None], text_emb, 0.0), text_mask


def fold_rows(key: KeyArray, rows: Int[Array, " b"]) -> KeyArray:
    """Returns the key of each row, or caption, by its number."""
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, rows)
