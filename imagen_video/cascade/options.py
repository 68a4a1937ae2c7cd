"""What a user may say about sampling, applied to each stage's own defaults."""

import dataclasses
from typing import Literal

from imagen_video.cascade.stage import Sampling, Stage
from imagen_video.diffusion.thresholding import DynamicThreshold, StaticClip

PUBLISHED_STEPS = {"base": 256}
PUBLISHED_SR_STEPS = 128


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplingOptions:
    """Departures from the stages' sampling defaults.

    Attributes:
      guidance: "constant", or "oscillating" in those stages that have such a preset: base, tsr1
        and ssr1 (arXiv 2210.02303, section 2.6.2).
      thresholding: overrides what goes with the guidance: "static" or "dynamic".
      steps: overrides the number of steps, in all stages; "published" is 256 for the base model
        and 128 for the others (Table 1).
    """

    guidance: Literal["constant", "oscillating"] = "constant"
    thresholding: Literal["static", "dynamic"] | None = None
    steps: Literal["published"] | int | None = None

    def __post_init__(self):
        if self.guidance not in ("constant", "oscillating"):
            raise ValueError(f"guidance: {self.guidance!r} is not 'constant' or 'oscillating'")
        if self.thresholding not in (None, "static", "dynamic"):
            raise ValueError(f"thresholding: {self.thresholding!r} is not 'static' or 'dynamic'")
        if self.steps not in (None, "published") and not (
            isinstance(self.steps, int) and self.steps >= 1
        ):
            raise ValueError(f"steps: {self.steps!r} is not 'published' or a number from 1")

    def sampling(self, stage: Stage) -> Sampling:
        """Returns how `stage` is sampled under these options.

        Raises:
          ValueError: the stage was distilled for another number of steps than `steps`.
        """
        chosen = stage.sampling
        if self.guidance == "oscillating" and stage.oscillating is not None:
            chosen = stage.oscillating
        if self.thresholding is not None:
            threshold = {"static": StaticClip(), "dynamic": DynamicThreshold()}[self.thresholding]
            chosen = dataclasses.replace(chosen, thresholding=threshold)
        if self.steps is not None:
            steps = self.steps
            if steps == "published":
                steps = PUBLISHED_STEPS.get(stage.name, PUBLISHED_SR_STEPS)
            if stage.distilled_steps not in (None, steps):
                raise ValueError(
                    f"steps: {self.steps!r}, but these weights of {stage.name} were distilled for"
                    f" {stage.distilled_steps} steps and no others"
                )
            chosen = dataclasses.replace(chosen, num_steps=steps)
        return chosen
