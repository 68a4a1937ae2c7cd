"""A network of seven parameters in the place of a stage's: what uses it compiles at once."""

import dataclasses

import jax
import jax.numpy as jnp
from micro_cascade import BASE, text_model

from imagen_video.cascade import stage_sampler, weights
from imagen_video.training import distillation, ladder

# Of its own rate, so that no other test finds this stage's compiled sampler.
STAGE = dataclasses.replace(BASE, fps=4.0)
PARAMS = {"gain": jnp.asarray([0.5, 0.8, 1.0]), "bias": jnp.ones(3) / 4, "text": jnp.ones(())}


def init(stage, key):
    return jax.tree.map(jnp.zeros_like, PARAMS)


def bind(stage, params, *, layout=None):
    def denoise(z_t, logsnr_t, cond):
        has_text = jnp.any(cond.text_mask, axis=1)
        if cond.caption_index is not None:
            has_text = has_text[cond.caption_index][:, :, None, None, None]
        else:
            has_text = has_text[:, None, None, None, None]
        level = logsnr_t.reshape(*logsnr_t.shape, *[1] * (5 - logsnr_t.ndim))
        h = params["gain"] * z_t + params["bias"] + params["text"] * has_text
        return (h + jnp.tanh(h)) * jax.nn.sigmoid(0.1 * level)

    return denoise


def install(monkeypatch, folder):
    """Puts it in the place of all networks, and returns a weights file of STAGE with PARAMS."""
    monkeypatch.setattr(ladder, "init_stage_params", init)
    shapes = jax.eval_shape(lambda: init(STAGE, jax.random.key(0)))
    monkeypatch.setattr(weights, "stage_param_shapes", lambda stage: shapes)
    for module in (distillation, stage_sampler):
        monkeypatch.setattr(module, "denoise_fn", bind)
    path = folder / "base.safetensors"
    digest = text_model().digest
    weights.save_stage(str(path), STAGE, PARAMS, text_digest=digest, dtype="float32")
    return path
