"""The training loop: steps, reports, hooks, checkpoints, and going on where a run stopped."""

import dataclasses
import json
import math
import signal
from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np
from absl import logging
from etils import epath

from imagen_video.sharding.processes import held_by_first, is_first
from imagen_video.training.checkpoints import Checkpoints
from imagen_video.training.init_from import params_of, with_params
from imagen_video.training.metric_writer import MetricWriter
from imagen_video.training.optimizer import OptimizerConfig, make_optimizer, make_schedule
from imagen_video.training.progress import Progress
from imagen_video.training.state import InitFn, Params, TrainState, abstract_state, init_state
from imagen_video.training.step import LossFn, Metrics, make_train_step
from imagen_video.training.stop_signal import StopSignal


@runtime_checkable
class DataIterator(Protocol):
    """Endless batches of this process that can say and set where they stand, in JSON values."""

    def __next__(self) -> Any: ...

    def get_state(self) -> Any: ...

    def set_state(self, state: Any) -> None: ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One training run.

    Attributes:
      num_steps: length of the run.
      batch_size: rows of a global batch.
      microbatches: parts of it whose gradients are computed one after the other.
      compiler_options: of XLA for the step, as NAME=VALUE.
      seed: of parameters, noise and data.
      ema_decay: of the average of the parameters, in [0, 1). The paper publishes none; 0.9999 is
        that of Video Diffusion Models (arXiv 2204.03458).
      optimizer: how parameters are moved.
      log_every: steps between reports, each the mean over the steps since the last.
      checkpoint_every: steps between checkpoints; the last step always has one.
      keep: how many of the last checkpoints stay.
      keep_every: checkpoints at multiples of this stay as well.
      max_skipped: steps in a row without a finite gradient after which the run is given up.
      init_from: work directory of another run of the same network, or what `export` made of one, a
        .safetensors file. Step 0 starts from the averaged parameters of its newest checkpoint,
        with a new optimizer state; None starts from scratch.
    """

    num_steps: int
    batch_size: int
    microbatches: int = 1
    compiler_options: tuple[str, ...] = ()
    seed: int = 0
    ema_decay: float = 0.9999
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    log_every: int = 100
    checkpoint_every: int = 1000
    keep: int = 3
    keep_every: int | None = None
    max_skipped: int = 100
    init_from: str | None = None

    def __post_init__(self):
        positive = ("num_steps", "batch_size", "microbatches", "log_every", "checkpoint_every")
        for name in (*positive, "keep", "keep_every", "max_skipped"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}, must be at least 1")
        if wrong := [option for option in self.compiler_options if "=" not in option]:
            raise ValueError(f"compiler_options: {wrong[0]!r} is not NAME=VALUE")
        if not 0 <= self.seed < 2**31:
            raise ValueError(f"seed is {self.seed}, must be in [0, 2^31)")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay is {self.ema_decay}, must be in [0, 1)")
        if self.batch_size % self.microbatches:
            raise ValueError(
                f"batch_size is {self.batch_size}, must be a multiple of microbatches,"
                f" {self.microbatches}"
            )
        make_schedule(self.optimizer, self.num_steps)  # raises if the warm-up does not fit


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hook:
    """Something done now and then with the state, such as sampling clips.

    Attributes:
      every: steps between calls; the last step always has one.
      call: (state, writer) on every process, after the step's checkpoint. The state's arrays are
        given up when it returns. A run that goes on from such a step calls once more, for it may
        have been killed before: what has been done is not to be done again.
    """

    every: int
    call: Callable[[TrainState, MetricWriter], None]


def train(
    *,
    init_fn: InitFn,
    loss_fn: LossFn,
    batches: DataIterator,
    config: TrainConfig,
    workdir: str,
    hooks: Sequence[Hook] = (),
    run_config: Any = None,
    state_shardings: TrainState | None = None,
    batch_sharding: jax.sharding.Sharding | None = None,
    start_from: Params | None = None,
    frozen: Sequence[Any] = (),
) -> TrainState:
    """Trains to `config.num_steps`, from the newest checkpoint in `workdir` if there is one.

    A run killed at any moment and started again ends with the same bits, on the same machine, as
    one never disturbed. SIGTERM and, where there is one process, Ctrl-C save a checkpoint before
    the run ends.

    Args:
      init_fn: key to float32 parameters.
      loss_fn: see `make_train_step`.
      batches: the data; each batch holds this process's part, with a leading axis of microbatches
        if `config.microbatches` > 1.
      config: the run.
      workdir: where `checkpoints/`, `config.json`, TensorBoard events and, but in a bucket,
        `metrics.jsonl` go.
      hooks: see `Hook`.
      run_config: kept in every checkpoint, JSON values: what is needed to build `init_fn` again.
      state_shardings: of the state's leaves; None means one device.
      batch_sharding: of every leaf of a global batch; None means one device.
      start_from: parameters of step 0, in place of the drawn ones; they are copied.
      frozen: what `loss_fn` is given besides, in place on its devices; the same at every step.

    Returns:
      The state after the last step.

    Raises:
      ValueError: the newest checkpoint is of another model or other data, or `config.init_from`
        holds none of this model; or another run is at work in `workdir`.
      FloatingPointError: `config.max_skipped` steps in a row had no finite gradient.
      SystemExit: SIGTERM, after saving; code 143.
      KeyboardInterrupt: Ctrl-C, after saving.
    """
    optimizer = make_optimizer(config.optimizer, config.num_steps)
    train_step = make_train_step(
        loss_fn,
        optimizer,
        ema_decay=config.ema_decay,
        run_seed=config.seed,
        schedule=make_schedule(config.optimizer, config.num_steps),
        microbatches=config.microbatches,
        compiler_options=config.compiler_options,
        state_shardings=state_shardings,
        batch_sharding=batch_sharding,
        frozen_shardings=[jax.tree.map(lambda x: x.sharding, tree) for tree in frozen],
    )
    root = epath.Path(workdir)
    with (
        held_by_first(workdir),
        Checkpoints(
            str(root / "checkpoints"), keep=config.keep, keep_every=config.keep_every
        ) as checkpoints,
    ):
        saved = {}
        if checkpoints.latest_step is None:
            state = init_state(init_fn, optimizer, seed=config.seed, shardings=state_shardings)
            if config.init_from is not None:
                state = with_params(state, params_of(config.init_from, like=state.params))
            if start_from is not None:
                state = with_params(state, start_from)
        else:
            like = _with_shardings(abstract_state(init_fn, optimizer), state_shardings)
            state, saved = checkpoints.restore(like)
            batches.set_state(saved["data"])
            logging.info("going on from step %d", int(state.step))
        start = int(state.step)
        if is_first() and run_config is not None:
            # Whole or not at all, in a bucket too: a run goes on only from a config it can read.
            part = root / ".config.json.part"
            part.write_text(json.dumps(run_config, indent=2) + "\n")
            part.replace(root / "config.json")

        with (
            MetricWriter(workdir, start_step=start, enabled=is_first()) as writer,
            Progress(start=start, total=config.num_steps, enabled=is_first()) as progress,
            StopSignal() as stop,
        ):
            reports = _Reports(config, writer, progress, saved.get("reports"))
            previous = None
            for hook in hooks if start else ():  # A kill may have come before or amid its call.
                if start % hook.every == 0 or start == config.num_steps:
                    hook.call(state, writer)
            for step in range(start + 1, config.num_steps + 1):
                batch = to_devices(next(batches), batch_sharding)
                state, metrics = train_step(state, batch, *frozen)
                # The device is busy with this step while the one before is reported; waiting for
                # that one keeps no more than two batches in flight.
                if previous is not None:
                    reports.add(step - 1, previous)
                previous = metrics

                last, stopped = step == config.num_steps, stop.agreed()
                if last or stopped or step % config.checkpoint_every == 0:
                    # Reported first: a run that goes on from here never reports it again.
                    reports.add(step, metrics)
                    previous = None
                    checkpoints.save(
                        state,
                        data=batches.get_state(),
                        config=run_config,
                        reports=reports.get_state(),
                    )
                for hook in hooks:
                    if last or (step % hook.every == 0 and not stopped):
                        hook.call(state, writer)
                if stopped:
                    break
        checkpoints.wait()
    # After the last step, too: what comes next, such as another run, was not to begin.
    if stop.received:
        logging.warning("stopped by signal %d at step %d, saved", stop.received, int(state.step))
        if stop.received == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + stop.received)
    return state


class _Reports:
    """Metrics of single steps in, their mean over `log_every` steps out."""

    def __init__(
        self, config: TrainConfig, writer: MetricWriter, progress: Progress, state: Any = None
    ):
        self._config, self._writer, self._progress = config, writer, progress
        state = state or {"since_report": [], "skipped_in_a_row": 0}
        self._since_report: list[Metrics] = list(state["since_report"])
        self._skipped_in_a_row = state["skipped_in_a_row"]  # up to the last report

    def get_state(self) -> dict[str, Any]:
        """What a run needs that goes on from here, JSON values; written while steps are added."""
        self._since_report = _floats(self._since_report)
        return {
            "since_report": list(self._since_report),
            "skipped_in_a_row": self._skipped_in_a_row,
        }

    def add(self, step: int, metrics: Metrics) -> None:
        jax.block_until_ready(metrics)
        self._progress.advance(step)
        self._since_report.append(metrics)
        if step % self._config.log_every and step != self._config.num_steps:
            return
        steps, self._since_report = _floats(self._since_report), []
        applied = [m for m in steps if not m["skipped"]]
        longest = 0
        for m in steps:
            self._skipped_in_a_row = self._skipped_in_a_row + 1 if m["skipped"] else 0
            longest = max(longest, self._skipped_in_a_row)
        means = {name: math.nan for name in steps[0]}
        means |= {name: float(np.mean([m[name] for m in applied])) for name in means if applied}
        means["skipped"] = float(len(steps) - len(applied))
        self._writer.scalars(step, means)
        self._progress.report(step, means["loss"])
        if means["skipped"]:
            logging.warning("step %d: skipped %d of %d steps", step, means["skipped"], len(steps))
        if longest >= self._config.max_skipped:
            raise FloatingPointError(
                f"step {step}: {longest} steps in a row without a finite gradient"
            )


def _floats(steps: Sequence[Metrics]) -> list[dict[str, float]]:
    return [{name: float(value) for name, value in m.items()} for m in jax.device_get(steps)]


def _with_shardings(like: TrainState, shardings: TrainState | None) -> TrainState:
    if shardings is None:
        return like
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), like, shardings
    )


def to_devices(batch: Any, sharding: jax.sharding.Sharding | None) -> Any:
    """Returns the global batch of which `batch` is this process's part; None means one device."""
    if sharding is None:
        return jax.device_put(batch)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)
