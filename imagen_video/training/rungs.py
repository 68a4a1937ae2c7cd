"""The ladder from a trained stage to a student of few steps, as records: one rung a student."""

import dataclasses
from typing import Any, Literal

from imagen_video.cascade.stage import Sampling, Stage
from imagen_video.diffusion.distillation import StudentGrid, student_steps
from imagen_video.diffusion.guidance import ConstantGuidance, GuidanceRange, OscillatingGuidance
from imagen_video.diffusion.thresholding import DynamicThreshold, NoThreshold, StaticClip
from imagen_video.sampling.steppers import DDIM, StochasticDistilled
from imagen_video.sharding.layout import ShardingConfig
from imagen_video.text.text_model import TextPaths
from imagen_video.training.distillation import GuidedObjective, ProgressiveObjective
from imagen_video.training.loop import TrainConfig
from imagen_video.training.objectives import DenoisingConfig, StageLoss
from imagen_video.training.stage_run import StageData, StageRun


@dataclasses.dataclass(frozen=True, kw_only=True)
class Distillation:
    """How a trained stage becomes a student of few steps (arXiv 2210.02303, section 2.7).

    Attributes:
      guidance: what is folded into the student; a `GuidanceRange` makes it read w. At a constant
        weight of 0 without thresholding there is nothing to fold, and no rung for it.
      thresholding: of the guided target.
      sampler: of the students, the N-step stochastic sampler or DDIM.
      start_steps: K, the DDIM steps of the first teacher of a halving.
      final_steps: of the last student.
      guided_loss: of stage one.
      loss: of stage two.
      max_augmentation: as in `DenoisingConfig`.
      max_error: a rung is given up if its student's error, on clips that it was not trained on, is
        above this and above that of the untrained student. 0.1, our choice, is a tenth of the
        variance of v. The second alone would be too strict: where steps are many and short, a copy
        of the teacher is nearer to its target than training with noise can stay.
      eval_clips: clips sampled by teacher and student to be compared.
    """

    guidance: ConstantGuidance | OscillatingGuidance | GuidanceRange
    thresholding: NoThreshold | StaticClip | DynamicThreshold = NoThreshold()
    sampler: Literal["stochastic", "ddim"] = "stochastic"
    start_steps: int
    final_steps: int = 8
    guided_loss: StageLoss = "snr_trunc"
    loss: StageLoss = "snr_trunc"
    max_augmentation: float = 1.0
    max_error: float = 0.1
    eval_clips: int = 4

    def __post_init__(self):
        _ = self.student_steps  # raises if halving does not lead to the last
        for name in ("max_error", "eval_clips"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}: {getattr(self, name)} must be positive")

    @property
    def jump(self) -> Literal[1, 2]:
        """Length of a student's step, in 1 / N."""
        return 2 if self.sampler == "stochastic" else 1

    @property
    def student_steps(self) -> tuple[int, ...]:
        """N of every student of stage two."""
        return student_steps(
            start_steps=self.start_steps, final_steps=self.final_steps, jump=self.jump
        )

    @property
    def folds_guidance(self) -> bool:
        """Whether there is a stage one."""
        no_weight = self.guidance == ConstantGuidance(weight=0.0)
        return not (no_weight and isinstance(self.thresholding, NoThreshold))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rung:
    """One student.

    Attributes:
      name: of its folder: "guided", or "steps_" and N.
      stage: the student's; `sampling` is how it is sampled when it has learned.
      teacher: the stage that it imitates.
      compared: DDIM samplings of student and teacher that give the same clips, from the same noise,
        if the student has learned all, but for what clipping x in every step changes: also for the
        stochastic sampler, whose own noise would hide the difference.
      objective: by which it imitates.
      train: its training run.
    """

    name: str
    stage: Stage
    teacher: Stage
    compared: tuple[Sampling, Sampling]
    objective: GuidedObjective | ProgressiveObjective
    train: TrainConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class DistillRun:
    """A whole ladder, as `configs/distill.py` describes it.

    Attributes:
      stage: what is distilled, as it was trained.
      teacher: its weights: a .safetensors file, or the work directory of its training run; None
        where nothing is trained.
      distillation: the rungs.
      data: what the stage was trained on.
      text: likewise.
      guided: training run of stage one.
      halving: training run of each student of stage two; rung k of the ladder adds k to its seed.
      sharding: for many devices.
    """

    stage: Stage
    teacher: str | None
    distillation: Distillation
    data: StageData
    text: TextPaths
    guided: TrainConfig
    halving: TrainConfig
    sharding: ShardingConfig = ShardingConfig()

    def __post_init__(self):
        if self.stage.distilled_steps is not None:
            raise ValueError("stage.distilled_steps: a student cannot be the first teacher")
        for name in ("guided", "halving"):
            if getattr(self, name).init_from is not None:
                raise ValueError(f"{name}.init_from: must be None, a student starts as its teacher")
        rungs = ladder(self)
        if not rungs:
            raise ValueError("distillation: neither guidance nor steps to distil")
        for rung in rungs:
            stage_run(self, rung)  # raises if the data does not fit the stage


def ladder(run: DistillRun) -> tuple[Rung, ...]:
    """Returns the rungs of a run, the first one first."""
    d, stage = run.distillation, run.stage
    ranges = d.guidance if isinstance(d.guidance, GuidanceRange) else None
    own_weight = _own_weight(run)

    def sampling(num_steps: int, **fields: Any) -> Sampling:
        defaults = {"stepper": DDIM(), "guidance": own_weight, "thresholding": StaticClip()}
        augmentation = stage.sampling.augmentation
        return Sampling(num_steps=num_steps, augmentation=augmentation, **defaults | fields)

    def student(sampling: Sampling, *, any_steps: bool = False) -> Stage:
        return dataclasses.replace(
            stage,
            unet=dataclasses.replace(stage.unet, guidance_weight=ranges is not None),
            sampling=sampling,
            oscillating=None,
            distilled_steps=None if any_steps else sampling.num_steps,
            distilled_guidance=d.guidance,
        )

    rungs: list[Rung] = []
    if d.folds_guidance:
        oscillates = isinstance(d.guidance, OscillatingGuidance)
        objective = GuidedObjective(
            guidance=d.guidance,
            thresholding=d.thresholding,
            loss=d.guided_loss,
            max_augmentation=d.max_augmentation,
            grid_steps=d.start_steps if oscillates else None,
        )
        guided = {"guidance": d.guidance if ranges is None else own_weight}
        if not isinstance(d.thresholding, NoThreshold):
            guided["thresholding"] = d.thresholding
        one = sampling(d.start_steps)
        rungs.append(
            Rung(
                name="guided",
                stage=student(one, any_steps=not oscillates),
                teacher=stage,
                compared=(one, sampling(d.start_steps, **guided)),
                objective=objective,
                train=run.guided,
            )
        )
    for num_steps in d.student_steps:
        stepper = StochasticDistilled() if d.sampler == "stochastic" else DDIM()
        ddim_steps = num_steps // d.jump
        objective = ProgressiveObjective(
            grid=StudentGrid(num_steps=num_steps, jump=d.jump),
            loss=d.loss,
            max_augmentation=d.max_augmentation,
            guidance=ranges,
        )
        rungs.append(
            Rung(
                name=f"steps_{num_steps:04d}",
                stage=student(sampling(num_steps, stepper=stepper)),
                teacher=rungs[-1].stage if rungs else stage,
                compared=(sampling(ddim_steps), sampling(2 * ddim_steps)),
                objective=objective,
                train=dataclasses.replace(run.halving, seed=run.halving.seed + len(rungs)),
            )
        )
    return tuple(rungs)


def stage_run(run: DistillRun, rung: Rung) -> StageRun:
    """Returns the rung as the training of a stage: its data is laid out by it."""
    d = run.distillation
    is_guided = isinstance(rung.objective, GuidedObjective)
    return StageRun(
        stage=rung.stage,
        objective=DenoisingConfig(
            loss=d.guided_loss if is_guided else d.loss,
            caption_dropout=0.0,
            max_augmentation=d.max_augmentation,
        ),
        data=run.data,
        text=run.text,
        train=rung.train,
        sharding=run.sharding,
    )


def _own_weight(run: DistillRun) -> ConstantGuidance:
    """What a student is sampled with: the stage's own weight if it reads one, else 0."""
    if not isinstance(run.distillation.guidance, GuidanceRange):
        return ConstantGuidance(weight=0.0)
    guidance = run.stage.sampling.guidance
    if not isinstance(guidance, ConstantGuidance):
        raise ValueError("stage.sampling.guidance: must be constant where the student reads w")
    return guidance
