"""What a user may say about sampling, applied to each stage's own defaults."""

import dataclasses
from typing import Literal

from imagen_video.cascade.stage import Sampling, Stage
from imagen_video.cascade.stage_choice import oscillating_stages
from imagen_video.diffusion.guidance import OscillatingGuidance
from imagen_video.diffusion.thresholding import DynamicThreshold, StaticClip

PUBLISHED_STEPS = {"base": 256}
PUBLISHED_SR_STEPS = 128


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplingOptions:
    """Departures from the stages' sampling defaults.

    Attributes:
      guidance: "constant", or "oscillating" in those stages that have such a preset: base, tsr1
        and ssr1 (arXiv 2210.02303, section 2.6.2); "oscillating:base" in the stages named alone.
      thresholding: overrides what goes with the guidance: "static" or "dynamic"; never a student's
        own.
      steps: overrides the number of steps, in all stages; "published" is 256 for the base model
        and 128 for the others (Table 1), but a student's own number in a student.
    """

    guidance: str = "constant"
    thresholding: Literal["static", "dynamic"] | None = None
    steps: Literal["published"] | int | None = None

    def __post_init__(self):
        oscillating_stages(self.guidance)  # raises if it is none
        if self.thresholding not in (None, "static", "dynamic"):
            raise ValueError(f"thresholding: {self.thresholding!r} is not 'static' or 'dynamic'")
        if self.steps not in (None, "published") and not (
            type(self.steps) is int and self.steps >= 1
        ):
            raise ValueError(f"steps: {self.steps!r} is not 'published' or a number from 1")

    def sampling(self, stage: Stage) -> Sampling:
        """Returns how `stage` is sampled under these options.

        Raises:
          ValueError: the stage was distilled for another number of steps than `steps`, for another
            kind of guidance, or to be sampled with another thresholding; or is named to oscillate
            and has no such preset.
        """
        chosen = stage.sampling
        if stage.name in oscillating_stages(self.guidance):
            chosen = self._oscillating(stage)
        elif isinstance(stage.distilled_guidance, OscillatingGuidance):
            raise ValueError(
                f"guidance: {self.guidance!r}, but these weights of {stage.name} were distilled"
                f" with oscillating guidance: say 'oscillating:{stage.name}'"
            )
        if self.thresholding is not None:
            threshold = {"static": StaticClip(), "dynamic": DynamicThreshold()}[self.thresholding]
            if stage.distilled_steps is not None and threshold != chosen.thresholding:
                raise ValueError(
                    f"thresholding: {self.thresholding!r}, but these weights of {stage.name} were"
                    f" distilled to be sampled with {type(chosen.thresholding).__name__}"
                )
            chosen = dataclasses.replace(chosen, thresholding=threshold)
        if self.steps is not None:
            chosen = dataclasses.replace(chosen, num_steps=self._num_steps(stage))
        return chosen

    def _oscillating(self, stage: Stage) -> Sampling:
        if stage.distilled_steps is not None or stage.distilled_guidance is not None:
            if not isinstance(stage.distilled_guidance, OscillatingGuidance):
                raise ValueError(
                    f"guidance: {self.guidance!r}, but these weights of {stage.name} were distilled"
                    " with another guidance"
                )
            return stage.sampling
        if stage.oscillating is None and ":" in self.guidance:
            raise ValueError(f"guidance: this {stage.name} has no oscillating preset")
        return stage.oscillating or stage.sampling

    def _num_steps(self, stage: Stage) -> int:
        if self.steps == "published":
            published = PUBLISHED_STEPS.get(stage.name, PUBLISHED_SR_STEPS)
            return stage.distilled_steps or published
        if stage.distilled_steps not in (None, self.steps):
            raise ValueError(
                f"steps: {self.steps!r}, but these weights of {stage.name} were distilled for"
                f" {stage.distilled_steps} steps and no others"
            )
        return self.steps
