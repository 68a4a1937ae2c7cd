"""Clips of a stage in training: what it has learned is seen sooner than its loss says it."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from absl import logging
from etils import epath
from jaxtyping import Array, Float, UInt8

from imagen_video import resample
from imagen_video.array_types import Video
from imagen_video.cascade.stage import Grid, Sampling, Stage
from imagen_video.cascade.stage_sampler import sample_stage
from imagen_video.cascade.weights import StageModel
from imagen_video.contact_sheet import contact_sheet, joined
from imagen_video.data.embedding_cache import EmbeddingCache
from imagen_video.sampling import keys as sampling_keys
from imagen_video.sharding.layout import Layout
from imagen_video.sharding.processes import from_first, is_first, whole
from imagen_video.training.loop import Hook
from imagen_video.training.metric_writer import MetricWriter
from imagen_video.training.run_text import RunText, encode_fn, frozen_params
from imagen_video.training.state import TrainState
from imagen_video.video_io import to_uint8, write_image

Batch = Mapping[str, Any]
FOLDER = "samples"
SHOWN_FRAMES = 5


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClipSamples:
    """Clips that are sampled now and then while a stage is trained.

    Attributes:
      every: steps between two samplings; the last step has one, too. None samples none.
      count: clips.
      num_steps: of the sampler; None for as many as the stage is sampled in.
    """

    every: int | None = None
    count: int = 4
    num_steps: int | None = None

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value is not None and value < 1:
                raise ValueError(f"{field.name}: {value} is below 1")


def sample_hook(
    samples: ClipSamples,
    window: Stage,
    videos: Callable[[], Batch],
    *,
    text: RunText,
    workdir: str,
    layout: Layout | None,
) -> Hook:
    """Returns what samples by the averaged parameters, and leaves a picture of it.

    The picture is in TensorBoard and in `workdir`/samples/step_N.png: five frames of each clip
    under its caption, and beside them what a super-resolution stage was given.

    Args:
      samples: how often, and how much; `every` is a number.
      window: the stage on clips as large as those it is trained on.
      videos: makes a batch that the run does not train on; called once.
      text: what captions are read with.
      workdir: of the run, local or gs://.
      layout: how clips are spread over devices.
    """
    sampling = window.sampling
    if samples.num_steps is not None:
        sampling = dataclasses.replace(sampling, num_steps=samples.num_steps)
    videos = functools.cache(videos)

    def call(state: TrainState, writer: MetricWriter) -> None:
        step = int(state.step)
        path = epath.Path(workdir) / FOLDER / f"step_{step:08d}.png"
        if from_first(path.exists):
            return
        batch = videos()
        params, digest = state.ema_params, text.digest
        model = StageModel(stage=window, params=params, text_digest=digest, layout=layout)
        clips = to_uint8(np.asarray(whole(sample_clips(model, sampling, batch, text=text))))
        if not is_first():
            return
        picture = _picture(window, clips, batch, text)
        writer.image(step, FOLDER, picture)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_image(path, picture)
        logging.info("step %d: %s", step, path)

    return Hook(every=samples.every, call=call)


def window_of(
    stage: Stage, *, frames: int | None = None, crop: tuple[int, int] | None = None
) -> Stage:
    """Returns the stage on clips of so many frames and of a crop's size; None for its own."""
    frames = frames or stage.output.frames
    height, width = crop or (stage.output.height, stage.output.width)
    small = stage.input and Grid(
        frames=frames // stage.frame_factor,
        height=height // stage.size_factor,
        width=width // stage.size_factor,
    )
    output = Grid(frames=frames, height=height, width=width)
    return dataclasses.replace(stage, output=output, input=small)


def sample_clips(model: StageModel, sampling: Sampling, batch: Batch, *, text: RunText) -> Video:
    """Samples a clip for each caption of a batch of videos, from its low-resolution version.

    Args:
      model: of a stage on clips of the batch's size.
      sampling: how.
      batch: of videos alone, the same on all processes.
      text: what captions are read with.

    Returns:
      Float[b f h w 3]; every clip with noise of its own, the same for every model.
    """
    tokens = jnp.asarray(batch["tokens"])
    states = sample_stage(
        model,
        sampling,
        text_emb=_text_emb(batch, text, model.layout),
        text_mask=tokens > 0,
        low_res=_given(model.stage, batch),
        keys=sampling_keys.sample_keys(seeds=[0] * len(tokens), indices=range(len(tokens))),
        steps_per_call=sampling.num_steps,
    )
    *_, last = states
    return last.z


def _given(stage: Stage, batch: Batch) -> Video | None:
    """The batch's videos on the stage's input grid."""
    if stage.input is None:
        return None
    small = stage.input
    low_res = jnp.asarray(batch["video"])
    low_res = resample.resize(low_res, height=small.height, width=small.width)
    return resample.skip_frames(low_res, frames=small.frames)


def _text_emb(batch: Batch, text: RunText, layout: Layout | None) -> Float[Array, "b n d"]:
    if isinstance(text, EmbeddingCache):
        return jnp.asarray(batch["text_emb"])
    return encode_fn(text, *frozen_params(text, layout))(batch["tokens"])


def _picture(
    stage: Stage, clips: UInt8[np.ndarray, "b f h w 3"], batch: Batch, text: RunText
) -> UInt8[np.ndarray, "picture_h picture_w 3"]:
    def sheet(frames: np.ndarray, label: str) -> np.ndarray:
        shown = {"max_frames": SHOWN_FRAMES, "columns": SHOWN_FRAMES, "frame_width": 160}
        return contact_sheet(frames, label=label, **shown)

    given, sheets = _given(stage, batch), []
    for row, clip in enumerate(clips):
        if given is not None:
            sheets.append(sheet(to_uint8(np.asarray(given[row])), "given"))
        sheets.append(sheet(clip, _caption(text, batch["tokens"][row])))
    return joined(sheets, columns=2)


def _caption(text: RunText, tokens: np.ndarray) -> str:
    """A caption as the network reads it; a cache of embeddings has no tokenizer."""
    return "" if isinstance(text, EmbeddingCache) else text.tokenizer.decode(tokens)
