"""How close a student came to its teacher: the loss it was trained by, and clips of both."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from imagen_video.array_types import KeyArray
from imagen_video.cascade.weights import StageModel
from imagen_video.sharding.layout import Layout
from imagen_video.training.clip_samples import sample_clips, window_of
from imagen_video.training.loop import to_devices
from imagen_video.training.run_text import RunText
from imagen_video.training.rungs import DistillRun, Rung, stage_run
from imagen_video.training.stage_run import make_batches, unseen_videos
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
    batch = unseen_videos(stage_run(run, rung), text, count=run.distillation.eval_clips)
    frames, crop = run.data.train_frames, run.data.train_crop
    models = ((rung.stage, params), (rung.teacher, teacher_params))
    ours, wanted = (
        sample_clips(
            StageModel(
                stage=window_of(stage, frames=frames, crop=crop),
                params=own,
                text_digest=text.digest,
                layout=layout,
            ),
            sampling,
            batch,
            text=text,
        )
        for (stage, own), sampling in zip(models, rung.compared)
    )
    return jnp.sqrt(jnp.mean(jnp.square(ours - wanted)))
