"""What a few samples of one stage come to, in one batch: noise, one evaluation, a sampled stage.

Run as a program it does so with one row on each of 8 devices: `sampled_rows.py STAGE OUT.npz`.
"""

import dataclasses
import functools
import sys

import jax
import jax.numpy as jnp
import micro_cascade
import numpy as np

from imagen_video.cascade.stage import denoise_fn
from imagen_video.cascade.stage_sampler import make_conditioning, make_sampler, sample_stage
from imagen_video.sampling import keys as sampling_keys

STEPS = 8
STAGES = {stage.name: stage for stage in micro_cascade.STAGES}


@functools.partial(jax.jit, static_argnames="stage")
def evaluate(stage, params, z_t, logsnr_t, cond):
    """One evaluation of the network."""
    return denoise_fn(stage, params)(z_t, logsnr_t, cond)


def sampled_rows(name, rows, *, seed=3, sharding=None):
    """Returns arrays whose rows belong to samples `rows` of `seed`."""
    stage = STAGES[name]
    model = micro_cascade.stage_model(stage)
    sampling = dataclasses.replace(stage.sampling, num_steps=STEPS)
    keys = sampling_keys.sample_keys(seeds=[seed] * len(rows), indices=rows)
    text_emb, text_mask = micro_cascade.text_model().embed([f"a red circle {r}" for r in rows])
    low_res = None
    if stage.input is not None:
        shape = (stage.input.frames, stage.input.height, stage.input.width, 3)
        draws = [np.random.default_rng(r).uniform(-1, 1, shape) for r in rows]
        low_res = jnp.asarray(np.stack(draws), jnp.float32)
    text_mask = jnp.asarray(text_mask)
    if sharding is not None:
        arrays = (keys, text_emb, text_mask, low_res)
        keys, text_emb, text_mask, low_res = jax.device_put(arrays, sharding)

    given = {"text_emb": text_emb, "text_mask": text_mask, "low_res": low_res}
    own = sampling_keys.fold_in_name(keys, name)
    output = stage.output
    state = make_sampler(stage, sampling).init(
        own, shape=(output.frames, output.height, output.width, 3)
    )
    cond = make_conditioning(stage, sampling, keys=own, **given)
    logsnr = jnp.linspace(-3, 3, 8)[jnp.asarray(rows)]
    found = {
        "init": state.z,
        "step": sampling_keys.normal(sampling_keys.fold_in_step(own, 3), state.z.shape[1:]),
        "evaluation": evaluate(stage, model.params, state.z, logsnr, cond),
    }
    if low_res is not None:
        found["low_res"] = sampling_keys.normal(
            sampling_keys.fold_in_name(own, "low_res"), low_res.shape[1:]
        )
    *_, last = sample_stage(model, sampling, keys=keys, **given)
    if sharding is not None:
        assert last.z.sharding.num_devices == 8, last.z.sharding
    return {key: np.asarray(value) for key, value in (found | {"clip": last.z}).items()}


if __name__ == "__main__":
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    over_rows = jax.sharding.NamedSharding(mesh, jax.P("data"))
    for name, path in zip(sys.argv[1::2], sys.argv[2::2]):
        np.savez(path, **sampled_rows(name, list(range(8)), sharding=over_rows))
