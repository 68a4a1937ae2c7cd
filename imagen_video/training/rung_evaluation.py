"""How close a student came to its teacher: the loss it was trained by, and clips of both."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from imagen_video import resample
from imagen_video.array_types import KeyArray, Video
from imagen_video.cascade.stage import Grid, Sampling, Stage
from imagen_video.cascade.stage_sampler import sample_stage
from imagen_video.cascade.weights import StageModel
from imagen_video.sampling import keys as sampling_keys
from imagen_video.sharding.layout import Layout
from imagen_video.training.loop import to_devices
from imagen_video.training.run_text import RunText, encode_fn, frozen_params
from imagen_video.training.rungs import DistillRun, Rung, stage_run
from imagen_video.training.stage_run import StageData, make_batches
from imagen_video.training.step import LossFn, training_key


def losses_on_unseen_batch(
    run: DistillRun,
    rung: Rung,
    loss_fn: LossFn,
    *,
    params: Sequence[Any],
    frozen: tuple,
    text: RunText,
    layout: Layout | None,
) -> list[Float[Array, ""]]:
    """Returns the losses, of several students, of the first batch after those of the training.

    That batch is unseen unless the training is longer than an epoch of the data.

    Args:
      run: the ladder.
      rung: whose data it is.
      loss_fn: that the rung is trained by.
      params: of each student.
      frozen: what the loss is given besides.
      text: what captions are read with.
      layout: how clips are spread over devices.
    """
    train = rung.train
    echo = run.data.echo
    first_unseen = -(-train.num_steps // echo) * echo
    batch = make_batches(stage_run(run, rung), text, layout)[first_unseen]
    sharding = None if layout is None else layout.batch(microbatches=train.microbatches)
    batch = to_devices(batch, sharding)

    @jax.jit
    def mean_loss(own: Any, batch: Any, key: KeyArray, *frozen: Any):
        if train.microbatches == 1:
            return loss_fn(own, batch, key, *frozen)[0]
        return jnp.mean(jax.lax.map(lambda part: loss_fn(own, part, key, *frozen)[0], batch))

    key = training_key(train.seed, train.num_steps)
    return [mean_loss(own, batch, key, *frozen) for own in params]


def sample_difference(
    run: DistillRun,
    rung: Rung,
    *,
    params: Any,
    teacher_params: Any,
    text: RunText,
    layout: Layout | None,
) -> Float[Array, ""]:
    """Returns the root mean square difference of the student's clips and the teacher's.

    Both are sampled as `rung.compared` says, from the same noise, captions and low-resolution
    clips. Clips are in [-1, 1], of the size that the run is trained on.

    Args:
      run: the ladder.
      rung: that was trained.
      params: of the student.
      teacher_params: of its teacher.
      text: what captions are read with.
      layout: how clips are spread over devices.
    """
    batch = _unseen_videos(run, rung, text)
    models = ((rung.stage, params), (rung.teacher, teacher_params))
    ours, wanted = (
        _sample(
            StageModel(
                stage=_window(stage, run.data), params=own, text_digest=text.digest, layout=layout
            ),
            sampling,
            batch,
            text=text,
        )
        for (stage, own), sampling in zip(models, rung.compared)
    )
    return jnp.sqrt(jnp.mean(jnp.square(ours - wanted)))


def _unseen_videos(run: DistillRun, rung: Rung, text: RunText) -> Mapping[str, Any]:
    """Clips that the rung is not trained on within an epoch: all rows, on every process alike."""
    count = run.distillation.eval_clips
    whole = dataclasses.replace(
        stage_run(run, rung),
        data=dataclasses.replace(run.data, image_share=0.0, echo=1),
        train=dataclasses.replace(rung.train, batch_size=count, microbatches=1),
    )
    seen = -(-rung.train.num_steps // run.data.echo) * rung.train.batch_size
    return make_batches(whole, text)[-(-seen // count)]


def _window(stage: Stage, data: StageData) -> Stage:
    """The stage on clips as long and large as those it is trained on."""
    frames = data.train_frames or stage.output.frames
    height, width = data.train_crop or (stage.output.height, stage.output.width)
    small = stage.input and Grid(
        frames=frames // stage.frame_factor,
        height=height // stage.size_factor,
        width=width // stage.size_factor,
    )
    output = Grid(frames=frames, height=height, width=width)
    return dataclasses.replace(stage, output=output, input=small)


def _sample(
    model: StageModel, sampling: Sampling, batch: Mapping[str, Any], *, text: RunText
) -> Video:
    tokens, low_res, small = jnp.asarray(batch["tokens"]), None, model.stage.input
    if small is not None:
        low_res = jnp.asarray(batch["video"])
        low_res = resample.resize(low_res, height=small.height, width=small.width)
        low_res = resample.skip_frames(low_res, frames=small.frames)
    states = sample_stage(
        model,
        sampling,
        text_emb=_text_emb(batch, text, model.layout),
        text_mask=tokens > 0,
        low_res=low_res,
        keys=sampling_keys.sample_keys(seeds=[0] * len(tokens), indices=range(len(tokens))),
        steps_per_call=sampling.num_steps,
    )
    *_, last = states
    return last.z


def _text_emb(
    batch: Mapping[str, Any], text: RunText, layout: Layout | None
) -> Float[Array, "b n d"]:
    if "text_emb" in batch:
        return jnp.asarray(batch["text_emb"])

    @jax.jit
    def embed(tokens: Array, *encoder: Any) -> Array:
        return encode_fn(text, *encoder)(tokens)

    return embed(batch["tokens"], *frozen_params(text, layout))
