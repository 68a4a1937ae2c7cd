"""What a cascade is judged on: held-out prompts, and how they are sampled."""

import dataclasses

from imagen_video.cascade.options import SamplingOptions
from imagen_video.cascade.sampling_run import SampleRequest
from imagen_video.data.captioned_shapes.prompts import held_out_prompts

MAX_PROMPTS = 5_000  # half of the captions that 100,000 draws give: the rest is ever rarer


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationJob:
    """What to sample.

    Attributes:
      num_prompts: held-out captions of one object; the first ones of the test split, none chosen,
        at most MAX_PROMPTS.
      num_samples: videos of each.
      seed: of the noise.
      prompt_seed: of the captions, and of the dataset's own clips of them.
      through: last stage to run; None for all.
      options: departures from the stages' sampling defaults.
    """

    num_prompts: int = 200
    num_samples: int = 2
    seed: int = 0
    prompt_seed: int = 0
    through: str | None = None
    options: SamplingOptions = SamplingOptions()

    def __post_init__(self):
        if not 1 <= self.num_prompts <= MAX_PROMPTS:
            raise ValueError(f"num_prompts: {self.num_prompts} is not from 1 to {MAX_PROMPTS}")

    def request(self) -> SampleRequest:
        """Returns the sampling request."""
        return SampleRequest(
            prompts=tuple(held_out_prompts(self.num_prompts, seed=self.prompt_seed)),
            seed=self.seed,
            num_samples=self.num_samples,
            through=self.through,
            options=self.options,
        )
