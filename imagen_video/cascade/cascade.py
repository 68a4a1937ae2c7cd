"""The cascade: checks that stages fit, walks prompts through them (arXiv 2210.02303, Fig. 6)."""

import dataclasses
import itertools
import time
from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import UInt8

from imagen_video.array_types import Video
from imagen_video.cascade.embedded_prompts import EmbeddedPrompts
from imagen_video.cascade.options import SamplingOptions
from imagen_video.cascade.stage import STAGE_NAMES, Stage
from imagen_video.cascade.stage_sampler import sample_stage
from imagen_video.cascade.weights import StageModel
from imagen_video.sampling import keys as sampling_keys
from imagen_video.sampling.sampler import SamplerState
from imagen_video.sharding import processes
from imagen_video.text.text_model import TextModel
from imagen_video.video_io import to_uint8


@runtime_checkable
class StageStore(Protocol):
    """Where a cascade keeps finished clips and the state of the stage in progress."""

    def load_clip(self, stage: str) -> Video | None:
        """Returns the finished clips of a stage, if they are kept."""
        ...

    def save_clip(self, stage: str, clip: Video) -> None:
        """Keeps the finished clips of a stage."""
        ...

    def load_state(self, stage: str) -> SamplerState | None:
        """Returns the sampler's state in a stage that was interrupted."""
        ...

    def save_state(self, stage: str, state: SamplerState) -> None:
        """Keeps the sampler's state in the stage in progress."""
        ...


@runtime_checkable
class Progress(Protocol):
    """Told when a stage begins or goes on, and after every step of it."""

    def __call__(self, *, stage: str, step: int, num_steps: int) -> None: ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class StageResult:
    """What one stage did.

    Attributes:
      stage: its name.
      clips: Float[b f h w 3] in [-1, 1].
      seconds: wall time since the stage was begun or gone on with, compilation included; 0 where
        the clips were kept from before.
    """

    stage: str
    clips: Video
    seconds: float


def check_chain(stages: Sequence[Stage]) -> None:
    """Raises ValueError where a stage's output is not the next one's input."""
    for before, after in itertools.pairwise(stages):
        if after.input != before.output:
            raise ValueError(
                f"{after.name}.input: {after.input}, but {before.name}.output is {before.output}"
            )
        if after.text_tokens != before.text_tokens:
            raise ValueError(
                f"{after.name}.text_tokens: {after.text_tokens},"
                f" but {before.name} has {before.text_tokens}"
            )
    names = [stage.name for stage in stages]
    order = [name for name in STAGE_NAMES if name in names]
    if names != order:
        raise ValueError(f"stages: {', '.join(names)}; their order is {', '.join(order)}")


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Cascade:
    """Stages with weights, in order, and the text model they were all trained with.

    Attributes:
      models: base first.
      text: tokenizer and frozen encoder, or what they made of the prompts that will be sampled.
      load_students: loads the cascade in which the students of some stages take their places, if
        there are any, from which stages and the guidance; see `load_cascade`.
    """

    models: tuple[StageModel, ...]
    text: TextModel | EmbeddedPrompts
    load_students: Callable[[bool | str, str], "Cascade"] | None = None

    def __post_init__(self):
        check_chain([model.stage for model in self.models])
        if not self.models or self.models[0].stage.input is not None:
            raise ValueError("models: the first stage of a cascade must be the base model")
        for model in self.models:
            if model.text_digest != self.text.digest:
                raise ValueError(
                    f"{model.stage.name}: trained with text model {model.text_digest[:12]},"
                    f" but the cascade's is {self.text.name}; a config, such as"
                    " configs/cascade.py, names another"
                )

    def with_students(self, distilled: bool | str, *, guidance: str = "constant") -> "Cascade":
        """Returns the cascade with students in the place of some stages; loads them once.

        Args:
          distilled: which stages: True or "all", "sr", names with commas; see `load_cascade`.
          guidance: that of the sampling; a student has learned one kind.

        Raises:
          ValueError: there are none.
        """
        if distilled in (False, "none"):
            return self
        if self.load_students is None:
            raise ValueError("distilled: this cascade has no distilled weights")
        return self.load_students(distilled, guidance)

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The stages' records, in order."""
        return tuple(model.stage for model in self.models)

    def through(self, name: str | None) -> tuple[StageModel, ...]:
        """Returns the models up to and including stage `name`; all of them for None.

        Raises:
          ValueError: there is no such stage.
        """
        names = [stage.name for stage in self.stages]
        if name is None:
            return self.models
        if name not in names:
            raise ValueError(f"through: no stage {name!r}; there are {', '.join(names)}")
        return self.models[: names.index(name) + 1]

    def sample(
        self,
        prompts: Sequence[str],
        *,
        seeds: Sequence[int] | None = None,
        indices: Sequence[int] | None = None,
        through: str | None = None,
        steps: str | int | None = None,
        guidance: str = "constant",
        thresholding: str | None = None,
        distilled: bool | str = False,
        progress: Progress | None = None,
    ) -> UInt8[np.ndarray, "b f h w 3"]:
        """Makes one clip per prompt, all in one batch.

        Args:
          prompts: captions; any Unicode.
          seeds: one per prompt; 0 by default. A sample's noise depends on its seed and index
            alone, not on the prompt or the batch.
          indices: one per prompt, for several samples of one seed; 0 by default.
          through: the last stage to run; all by default.
          steps: see `SamplingOptions`.
          guidance: likewise.
          thresholding: likewise.
          distilled: which stages' students sample, in few steps of one evaluation each; see
            `load_cascade`.
          progress: told after every step.

        Returns:
          Clips of the last stage run.

        Raises:
          ValueError: no prompts, an option that is not one, or no distilled weights.
        """
        options = SamplingOptions(steps=steps, guidance=guidance, thresholding=thresholding)
        results = self.with_students(distilled, guidance=guidance).run(
            prompts,
            seeds=seeds,
            indices=indices,
            through=through,
            options=options,
            progress=progress,
        )
        return to_uint8(np.asarray(results[-1].clips))

    def run(
        self,
        prompts: Sequence[str],
        *,
        seeds: Sequence[int] | None = None,
        indices: Sequence[int] | None = None,
        through: str | None = None,
        options: SamplingOptions | None = None,
        progress: Progress | None = None,
        store: StageStore | None = None,
        save_every: int = 16,
    ) -> list[StageResult]:
        """As `sample`, but returns every stage's clips, and can be interrupted and gone on with.

        The processes of a job call it together, and all return the clips.

        Args:
          prompts: as in `sample`.
          seeds: likewise.
          indices: likewise.
          through: likewise.
          options: departures from the stages' sampling defaults.
          progress: as in `sample`.
          store: where finished stages and the state of the current one are kept; a second call
            with the same arguments goes on from there.
          save_every: steps between savings of the state.
        """
        if isinstance(prompts, str):  # Its letters would be taken for prompts.
            raise ValueError(f"prompts: {prompts!r} is one string, not a list of them")
        if len(prompts) == 0:  # Of a numpy array `not prompts` is an error.
            raise ValueError("prompts: there are none")
        if save_every < 1:
            raise ValueError(f"save_every: {save_every} is below 1")
        options = options or SamplingOptions()
        models = self.through(through)
        keys = sampling_keys.sample_keys(
            seeds=[0] * len(prompts) if seeds is None else seeds,
            indices=[0] * len(prompts) if indices is None else indices,
        )
        if len(keys) != len(prompts):
            raise ValueError(f"seeds: {len(keys)} given for {len(prompts)} prompts")
        # From the first process, so that all condition on the same bits.
        text = processes.arrays_from_first(
            lambda: dict(zip(("emb", "mask"), self.text.embed(prompts)))
        )
        results: list[StageResult] = []
        for model in models:
            name = model.stage.name
            clips = None if store is None else store.load_clip(name)
            seconds = 0.0
            if clips is None:
                started = time.perf_counter()
                state = None if store is None else store.load_state(name)
                sampling = options.sampling(model.stage)
                _tell(progress, name, state, sampling.num_steps)
                states = sample_stage(
                    model,
                    sampling,
                    text_emb=jnp.asarray(text["emb"]),
                    text_mask=jnp.asarray(text["mask"]),
                    low_res=results[-1].clips if results else None,
                    keys=keys,
                    state=state,
                )
                for state in states:
                    _tell(progress, name, state, sampling.num_steps)
                    step = int(state.step)
                    if store is not None and step < sampling.num_steps and step % save_every == 0:
                        store.save_state(name, state)
                clips = jax.block_until_ready(processes.whole(state.z))
                seconds = time.perf_counter() - started
                if store is not None:
                    store.save_clip(name, clips)
            results.append(StageResult(stage=name, clips=jnp.asarray(clips), seconds=seconds))
        return results


def _tell(
    progress: Progress | None, stage: str, state: SamplerState | None, num_steps: int
) -> None:
    if progress is not None:
        step = 0 if state is None else int(state.step)
        progress(stage=stage, step=step, num_steps=num_steps)
