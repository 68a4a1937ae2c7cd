"""One training run of one stage: its data on its grid, its objective, the loop."""

import contextlib
import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import jax
from etils import epath

from imagen_video import records
from imagen_video.array_types import KeyArray
from imagen_video.cascade.same_network import NETWORK_FIELDS, check_same_network
from imagen_video.cascade.stage import Stage, init_stage_params
from imagen_video.data.pipeline import Batches, PipelineConfig
from imagen_video.data.sources import CaptionedShapes, ClipGrid
from imagen_video.data.transforms import RandomWindow
from imagen_video.sharding.layout import Layout, ShardingConfig, layout_if_needed
from imagen_video.text.text_model import TextModel, TextPaths
from imagen_video.training.clip_samples import ClipSamples, sample_hook, window_of
from imagen_video.training.loop import TrainConfig, train
from imagen_video.training.objectives import DenoisingConfig, denoising_loss
from imagen_video.training.placement import placement
from imagen_video.training.run_text import (
    RunText,
    cache_of,
    caption_fn,
    check_same_text,
    config_before,
    encode_fn,
    frozen_params,
)
from imagen_video.training.state import TrainState


@dataclasses.dataclass(frozen=True, kw_only=True)
class StageData:
    """What a stage is trained on.

    Attributes:
      source: the dataset.
      image_share: share of batch rows that pack independent images instead of a video.
      train_frames: frames of a training clip, a random stretch; None for all of the stage's.
      train_crop: height and width of a training crop; None for whole frames.
      num_threads: reading threads of each reading process; 0 reads when a batch is asked for.
      num_workers: reading processes; 0 reads in the training process.
      echo: steps in a row that a batch is used for, see `PipelineConfig`.
    """

    source: CaptionedShapes
    image_share: float
    train_frames: int | None = None
    train_crop: tuple[int, int] | None = None
    num_threads: int = 1
    num_workers: int = 0
    echo: int = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class StageRun:
    """A whole run, as a file in `configs/stages` describes it.

    Attributes:
      stage: what is trained.
      objective: what it minimises.
      data: what it is trained on.
      text: what reads its captions.
      train: the run.
      samples: clips that are sampled meanwhile.
      sharding: for many devices.
    """

    stage: Stage
    objective: DenoisingConfig
    data: StageData
    text: TextPaths
    train: TrainConfig
    samples: ClipSamples = ClipSamples()
    sharding: ShardingConfig = ShardingConfig()

    def __post_init__(self):
        stage, data = self.stage, self.data
        if self.objective.loss == "r_mse" and stage.low_res_error is None:
            raise ValueError("objective.loss: 'r_mse' needs stage.low_res_error, which is None")
        frames = stage.output.frames if data.train_frames is None else data.train_frames
        if not 0 < frames <= stage.output.frames or frames % stage.frame_factor:
            raise ValueError(
                f"data.train_frames: {frames} is not a positive multiple of {stage.frame_factor} up"
                f" to the stage's {stage.output.frames} frames"
            )
        height, width = data.train_crop or (stage.output.height, stage.output.width)
        if min(height, width) < 1:
            raise ValueError(f"data.train_crop: {height}x{width} is empty")
        stage.unet.check_size(height, width)
        if height > stage.output.height or width > stage.output.width:
            raise ValueError(
                f"data.train_crop: {height}x{width} is larger than the stage's {stage.output}"
            )
        if height % stage.size_factor or width % stage.size_factor:
            raise ValueError(
                f"data.train_crop: {height}x{width} is not a multiple of {stage.size_factor}"
            )


def pipeline_config(run: StageRun, *, row_shards: int = 1) -> PipelineConfig:
    """Returns the order and shape of the run's batches."""
    data = run.data
    return PipelineConfig(
        batch_size=run.train.batch_size,
        seed=run.train.seed,
        frames=data.train_frames or run.stage.output.frames,
        image_share=data.image_share,
        microbatches=run.train.microbatches,
        num_threads=data.num_threads,
        num_workers=data.num_workers,
        echo=data.echo,
        row_shards=row_shards,
    )


def make_batches(run: StageRun, text: RunText, layout: Layout | None = None) -> Batches:
    """Lays out the run's training batches, the part of them that this process reads.

    Raises:
      ValueError: the rows of a batch cannot be spread over the devices.
    """
    shards, row_shards = None, 1
    if layout is not None:
        shards, row_shards = layout.parts_of_process(jax.process_index()), layout.batch_shards
        if run.train.batch_size % (run.train.microbatches * row_shards):
            raise ValueError(
                f"train.batch_size: {run.train.batch_size} is not a multiple of"
                f" train.microbatches, {run.train.microbatches}, times the {row_shards} devices"
                f" that rows are spread over"
            )
    stage, data, output = run.stage, run.data, run.stage.output
    frames = data.train_frames or output.frames
    window = RandomWindow(
        frames=frames,
        start_multiple=stage.frame_factor,
        crop=data.train_crop,
        crop_multiple=stage.size_factor,
    )
    grid = ClipGrid(frames=output.frames, height=output.height, width=output.width, fps=stage.fps)
    sources = {
        f"{kind}_source": data.source.open(
            split="train", grid=grid, window=window, is_image=kind == "image"
        )
        for kind in ("video", "image")
    }
    config = pipeline_config(run, row_shards=row_shards)
    return Batches(
        config,
        caption_fn=caption_fn(text),
        shards=shards,
        **sources,
    )


def unseen_videos(run: StageRun, text: RunText, *, count: int) -> dict[str, Any]:
    """Returns clips that the run does not train on within an epoch: all rows, on every process."""
    trained_on = -(-run.train.num_steps // run.data.echo) * run.train.batch_size
    videos = dataclasses.replace(
        run,
        data=dataclasses.replace(run.data, image_share=0.0, echo=1),
        train=dataclasses.replace(run.train, batch_size=count, microbatches=1),
    )
    return make_batches(videos, text)[-(-trained_on // count)]


def training_captions(run: StageRun, *, most: int = 10_000_000) -> Iterator[str]:
    """Returns the captions that the run may read: of clips, and of still images if it packs any.

    One that trains on images alone is sampled and measured on clips.

    Raises:
      ValueError: an epoch has more than `most` captions of a kind.
    """
    source, share = run.data.source, run.data.image_share
    if source.size > most:
        raise ValueError(
            f"data.source.size: {source.size} captions are too many to embed, ask for at most"
            f" {most} or train without a cache"
        )
    return (
        source.caption(index, split="train", is_image=is_image)
        for is_image in ((False, True) if share > 0 else (False,))
        for index in range(source.size)
    )


def train_stage(run: StageRun, *, text: RunText, workdir: str) -> TrainState:
    """Trains the stage in `workdir` on all devices; goes on where an earlier run stopped.

    Args:
      run: the run.
      text: what captions are read with; with `run.text.cache`, a text model is only compared with
        that of the cache.
      workdir: see `train`.

    Raises:
      ValueError: the embeddings are not as wide as the network expects; the cache is of another
        text model, or lacks a caption; or the work directory was trained with another,
        or holds a run of another stage, or of one whose network takes or makes something else.
    """
    check_text(run.stage, text)
    if run.text.cache is not None and isinstance(text, TextModel):
        text = cache_of(dataclasses.replace(text, paths=run.text))
    before = config_before(epath.Path(workdir))
    if before is None:
        if run.train.init_from is not None:
            check_same_text(run.train.init_from, text)
    else:
        check_same_text(workdir, text)
        begun = before["run"].get("stage", {}).get("name", run.stage.name)
        if begun != run.stage.name:
            raise ValueError(
                f"{workdir}: holds a run of {begun}, not of {run.stage.name}; use another folder"
            )
        if "stage" in before["run"]:
            stored = records.from_dict(Stage, before["run"]["stage"], where=f"{workdir}: stage")
            check_same_network(workdir, stored, run.stage, fields=(*NETWORK_FIELDS, "schedule"))
    layout = layout_if_needed(run.sharding)

    def init_fn(key: KeyArray) -> Any:
        return init_stage_params(run.stage, key)

    def loss_fn(params: Any, batch: Any, key: KeyArray, *frozen: Any):
        encode = encode_fn(text, *frozen)
        return denoising_loss(run.stage, run.objective, params, encode, batch, key, layout=layout)

    hooks = []
    if run.samples.every is not None:
        window = window_of(run.stage, frames=run.data.train_frames, crop=run.data.train_crop)
        videos = functools.partial(unseen_videos, run, text, count=run.samples.count)
        hooks.append(
            sample_hook(run.samples, window, videos, text=text, workdir=workdir, layout=layout)
        )
    with contextlib.closing(make_batches(run, text, layout)) as batches:
        return train(
            init_fn=init_fn,
            loss_fn=loss_fn,
            batches=batches,
            config=run.train,
            workdir=workdir,
            hooks=hooks,
            frozen=frozen_params(text, layout),
            run_config={"run": records.to_dict(run), "text_digest": text.digest},
            **placement(run.stage, run.train, layout),
        )


def check_text(stage: Stage, text: RunText) -> None:
    """Raises ValueError if the embeddings are not as wide as the network expects."""
    if text.width != stage.unet.text_in_dim:
        raise ValueError(
            f"text.encoder: its embeddings are {text.width} wide, stage.unet.text_in_dim is"
            f" {stage.unet.text_in_dim}"
        )
