"""What training minimises: the denoising loss of a stage (Eq. 2 of arXiv 2210.02303)."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from imagen_video import resample
from imagen_video.array_types import Conditioning, KeyArray
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class DenoisingConfig:
    """How a stage's denoiser is trained.

    Attributes:
      loss: which error counts; "eps_mse" is Eq. 2, "r_mse" that of a network which adds to its
        low-res input (`Stage.low_res_error`), by which all noise levels begin alike.
      caption_dropout: share of captions replaced by the unconditional one, for classifier-free
        guidance; 0.1 is Imagen's (arXiv 2205.11487, section 2.2).
      max_augmentation: t_aug is drawn uniformly from [0, max_augmentation); 1 is section 2.5. Less
        leaves out low-res clips that are nearly noise, of which a short run learns nothing.
    """

    loss: Loss | Literal["r_mse"] = "eps_mse"
    caption_dropout: float = 0.1
    max_augmentation: float = 1.0

    def __post_init__(self):
        if not 0 <= self.caption_dropout <= 1:
            raise ValueError(f"caption_dropout: {self.caption_dropout} is outside [0, 1]")
        if not 0 < self.max_augmentation <= 1:
            raise ValueError(f"max_augmentation: {self.max_augmentation} is outside (0, 1]")


def denoising_loss(
    stage: Stage,
    config: DenoisingConfig,
    params: Any,
    encode: Encode | None,
    batch: Batch,
    key: KeyArray,
    *,
    layout: Layout | None = None,
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
    """
    x, is_image = constrain(layout, batch["video"], axes.PIXELS), batch.get("is_image")
    frames, height, width = x.shape[1:4]
    keys = _fold_rows(key, batch["row"])

    def draw_logsnr(purpose: str, t_max: float = 1.0) -> Float[Array, "..."]:
        own = row_keys.fold_in_name(keys, purpose)
        if is_image is None:
            t = jax.vmap(lambda k: jax.random.uniform(k, ()))(own)
        else:
            t = jax.vmap(lambda k: jax.random.uniform(k, (frames,)))(own)
            t = jnp.where(is_image[:, None], t, t[:, :1])
        return stage.schedule(t_max * t)

    logsnr_t = draw_logsnr("t")
    eps = row_keys.normal(row_keys.fold_in_name(keys, "eps"), x.shape[1:])
    eps = constrain(layout, eps, axes.PIXELS)
    z_t = process.diffuse(x=x, eps=eps, logsnr_t=logsnr_t)

    low_res = low_res_logsnr = None
    if stage.input is not None:
        low_res_logsnr = draw_logsnr("augmentation", config.max_augmentation)
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

    text_emb, text_mask = embed_captions(
        batch, encode=encode, dropout=config.caption_dropout, key=key
    )
    cond = Conditioning(
        text_emb=text_emb,
        text_mask=text_mask,
        caption_index=batch.get("caption_index"),
        is_image=is_image,
        low_res=low_res,
        low_res_logsnr=low_res_logsnr,
    )
    prediction = denoise_fn(stage, params, layout=layout)(z_t, logsnr_t, cond)
    target = {
        "v": lambda: predict_v_from_x_and_eps(x=x, eps=eps, logsnr_t=logsnr_t),
        "eps": lambda: eps,
        "x": lambda: x,
    }[stage.prediction]()
    per_row = losses.weighted_mse(
        prediction,
        target,
        logsnr_t=logsnr_t,
        loss="v_mse" if config.loss == "r_mse" else config.loss,
        parameterization=stage.prediction,
    )
    if config.loss == "r_mse":
        per_row = per_row / residual_variance(
            logsnr_t=logsnr_t, low_res_logsnr=low_res_logsnr, error=stage.low_res_error
        )
    return jnp.mean(per_row), {}


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
    drop_keys = row_keys.fold_in_name(_fold_rows(key, ids), "caption_dropout")
    kept = jax.vmap(lambda k: jax.random.uniform(k, ()))(drop_keys) >= dropout
    text_mask = (tokens > 0) & kept[:, None]
    text_emb = batch["text_emb"] if "text_emb" in batch else encode(tokens)
    text_emb = jax.lax.stop_gradient(text_emb)
    return jnp.where(text_mask[..., None], text_emb, 0.0), text_mask


def _fold_rows(key: KeyArray, rows: Int[Array, " b"]) -> KeyArray:
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, rows)
