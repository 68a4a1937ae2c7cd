"""One training run of one stage: its data on its grid, its objective, the loop."""

import dataclasses
from typing import Any

from imagen_video import records
from imagen_video.array_types import KeyArray
from imagen_video.cascade.stage import Stage, init_stage_params
from imagen_video.data.pipeline import Batches, PipelineConfig
from imagen_video.data.sources import CaptionedShapes, ClipGrid
from imagen_video.data.transforms import RandomWindow
from imagen_video.text.text_model import TextModel, TextPaths
from imagen_video.training.loop import TrainConfig, train
from imagen_video.training.objectives import DenoisingConfig, denoising_loss
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
    """

    source: CaptionedShapes
    image_share: float
    train_frames: int | None = None
    train_crop: tuple[int, int] | None = None
    num_threads: int = 1
    num_workers: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class StageRun:
    """A whole run, as a file in `configs/stages` describes it."""

    stage: Stage
    objective: DenoisingConfig
    data: StageData
    text: TextPaths
    train: TrainConfig

    def __post_init__(self):
        stage, data = self.stage, self.data
        frames = data.train_frames or stage.output.frames
        if frames > stage.output.frames or frames % stage.frame_factor:
            raise ValueError(
                f"data.train_frames: {frames} is not a multiple of {stage.frame_factor} up to the"
                f" stage's {stage.output.frames} frames"
            )
        height, width = data.train_crop or (stage.output.height, stage.output.width)
        stage.unet.check_size(height, width)
        if height > stage.output.height or width > stage.output.width:
            raise ValueError(
                f"data.train_crop: {height}x{width} is larger than the stage's {stage.output}"
            )
        if height % stage.size_factor or width % stage.size_factor:
            raise ValueError(
                f"data.train_crop: {height}x{width} is not a multiple of {stage.size_factor}"
            )


def make_batches(run: StageRun, text: TextModel) -> Batches:
    """Lays out the run's training batches."""
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
    config = PipelineConfig(
        batch_size=run.train.batch_size,
        seed=run.train.seed,
        frames=frames,
        image_share=data.image_share,
        microbatches=run.train.microbatches,
        num_threads=data.num_threads,
        num_workers=data.num_workers,
    )
    return Batches(config, tokenize=text.tokenize, **sources)


def train_stage(run: StageRun, *, text: TextModel, workdir: str) -> TrainState:
    """Trains the stage in `workdir`; goes on where an earlier run stopped.

    Raises:
      ValueError: the encoder's embeddings are not as wide as the network expects.
    """
    width = text.encoder.config.emb_dim
    if width != run.stage.unet.text_in_dim:
        raise ValueError(
            f"text.encoder: its embeddings are {width} wide, stage.unet.text_in_dim is"
            f" {run.stage.unet.text_in_dim}"
        )

    def loss_fn(params: Any, batch: Any, key: KeyArray):
        return denoising_loss(run.stage, run.objective, params, text.encoder, batch, key)

    return train(
        init_fn=lambda key: init_stage_params(run.stage, key),
        loss_fn=loss_fn,
        batches=make_batches(run, text),
        config=run.train,
        workdir=workdir,
        run_config={"run": records.to_dict(run), "text_digest": text.digest},
    )
