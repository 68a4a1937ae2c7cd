"""A run that is stopped in any way and started again ends with the bits of one that never was."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from imagen_video.data.pipeline import Batches, PipelineConfig
from imagen_video.records import to_dict
from imagen_video.training.checkpoints import Checkpoints, restore_params
from imagen_video.training.loop import Hook, TrainConfig, train
from imagen_video.training.optimizer import OptimizerConfig

ROOT = Path(__file__).parents[2]


class Clips:
    """Seeded noise clips with a caption of digits; index 5 cannot be read."""

    def __len__(self):
        return 11

    def read(self, index, *, rng):
        if index == 5:
            raise OSError("cut short")
        video = np.random.default_rng(index).integers(0, 256, (2, 4, 4, 3), np.uint8)
        start = int(rng.integers(0, 2))
        return {"video": video[:, :, start : start + 3], "caption": str(index), "is_image": False}


def tokenize(captions):
    return {"tokens": np.array([[len(c), int(c)] for c in captions], np.int32)}


def init_fn(key):
    hidden = jax.random.uniform(key, (72, 16), minval=-0.2, maxval=0.2)
    return {"hidden": hidden, "out": jnp.ones((16, 1)) / 4}


def loss_fn(params, batch, key):
    """Regression of the caption's number on noisy pixels."""
    x = batch["video"].reshape(len(batch["row"]), -1)
    x = x + jax.random.uniform(key, x.shape)
    y = jnp.tanh(x @ params["hidden"]) @ params["out"]
    error = y[:, 0] - batch["tokens"][:, 1] / 10
    return jnp.mean(error**2), {"error": jnp.mean(jnp.abs(error))}


def make_batches(pause=0.0, at=None, act=None):
    """Batches that pause before each and `act` when batch `at` of the run is fetched."""
    batches = Batches(
        PipelineConfig(batch_size=4, num_threads=1), caption_fn=tokenize, video_source=Clips()
    )

    class Disturbed:
        def __next__(self):
            time.sleep(pause)
            batch = next(batches)
            if batches.get_state()["next_batch"] == at:
                act()
            return batch

        def get_state(self):
            return batches.get_state()

        def set_state(self, state):
            batches.set_state(state)

    return Disturbed()


def config_of(num_steps, **fields):
    optimizer = OptimizerConfig(learning_rate=1e-2, warmup_steps=3, schedule="cosine")
    return TrainConfig(
        **{
            "num_steps": num_steps,
            "batch_size": 4,
            "ema_decay": 0.9,
            "optimizer": optimizer,
            "log_every": 2,
            "checkpoint_every": 4,
        }
        | fields
    )


def run(workdir, config=None, batches=None, **options):
    config = config or config_of(12)
    return train(
        **{
            "init_fn": init_fn,
            "loss_fn": loss_fn,
            "batches": batches or make_batches(),
            "config": config,
            "workdir": str(workdir),
            "run_config": to_dict(config),
        }
        | options
    )


def bits(state):
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(state)]


def metrics(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("undisturbed")
    return bits(run(workdir)), metrics(workdir)


def crash():
    raise RuntimeError("crash")


@pytest.mark.parametrize("at", [1, 5, 6])
def test_a_crash_at_any_step_leaves_no_trace(tmp_path, undisturbed, at):
    with pytest.raises(RuntimeError, match="crash"):
        run(tmp_path, batches=make_batches(at=at, act=crash))
    assert bits(run(tmp_path)) == undisturbed[0]
    # Reports of steps that were done twice are there once.
    assert metrics(tmp_path) == undisturbed[1]


def test_a_report_is_of_the_steps_before_a_crash_too(tmp_path):
    config = config_of(12, log_every=6)  # checkpoints are between reports
    run(tmp_path / "undisturbed", config)
    with pytest.raises(RuntimeError, match="crash"):
        run(tmp_path / "crashed", config, batches=make_batches(at=6, act=crash))
    run(tmp_path / "crashed", config)
    assert metrics(tmp_path / "crashed") == metrics(tmp_path / "undisturbed")


def test_a_second_run_in_the_folder_is_told_to_wait(tmp_path, undisturbed):
    def second():
        with pytest.raises(ValueError, match=f"{tmp_path}: another run is at work there"):
            run(tmp_path)

    assert bits(run(tmp_path, batches=make_batches(at=6, act=second))) == undisturbed[0]
    assert metrics(tmp_path) == undisturbed[1]


def test_a_kill_while_the_config_is_written_leaves_the_one_before(tmp_path, monkeypatch):
    run(tmp_path, config_of(4))
    before = (tmp_path / "config.json").read_text()
    posix = type(epath.Path(tmp_path))
    write_text = posix.write_text

    def write_half(path, text):
        write_text(path, text[: len(text) // 2])
        raise RuntimeError("killed")

    monkeypatch.setattr(posix, "write_text", write_half)
    with pytest.raises(RuntimeError, match="killed"):
        run(tmp_path, config_of(8))
    monkeypatch.undo()
    assert (tmp_path / "config.json").read_text() == before
    run(tmp_path, config_of(8))
    assert json.loads((tmp_path / "config.json").read_text())["num_steps"] == 8
    assert not list(tmp_path.glob(".*"))


def test_losing_the_place_in_the_data_does_leave_one(tmp_path, undisturbed):
    with pytest.raises(RuntimeError, match="crash"):
        run(tmp_path, batches=make_batches(at=6, act=crash))
    batches = make_batches()
    batches.set_state = lambda state: None
    assert bits(run(tmp_path, batches=batches)) != undisturbed[0]


def test_what_a_checkpoint_writes_while_training_goes_on_is_its_own(tmp_path, monkeypatch):
    save, seen = Checkpoints.save, []

    def noted(self, state, *, reports, **fields):
        seen.append((reports, json.dumps(reports)))
        save(self, state, reports=reports, **fields)

    monkeypatch.setattr(Checkpoints, "save", noted)
    run(tmp_path, config_of(12, log_every=12))
    assert [len(reports["since_report"]) for reports, _ in seen] == [4, 8, 0]
    assert all(json.dumps(reports) == text for reports, text in seen)


@pytest.mark.parametrize(
    "number, raised", [(signal.SIGTERM, SystemExit), (signal.SIGINT, KeyboardInterrupt)]
)
def test_a_signal_saves_the_step_it_came_in(tmp_path, undisturbed, number, raised):
    before = signal.getsignal(number)
    with pytest.raises(raised) as caught:
        run(tmp_path, batches=make_batches(at=7, act=lambda: os.kill(os.getpid(), number)))
    assert number == signal.SIGINT or caught.value.code == 143
    assert signal.getsignal(number) == before
    with Checkpoints(str(tmp_path / "checkpoints")) as checkpoints:
        assert checkpoints.latest_step == 7
    assert bits(run(tmp_path)) == undisturbed[0]


def test_kill_minus_9_leaves_no_trace(tmp_path):
    steps, killed = 120, tmp_path / "killed"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, __file__, str(killed), str(steps)],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    deadline = time.monotonic() + 60
    while not any(int(p.name) >= 20 for p in killed.glob("checkpoints/[0-9]*") if p.name.isdigit()):
        assert process.poll() is None, process.stderr.read().decode()
        assert time.monotonic() < deadline, "no checkpoint within a minute"
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    process.stderr.close()
    with Checkpoints(str(killed / "checkpoints")) as checkpoints:
        assert 20 <= checkpoints.latest_step < steps
    config = config_of(steps, checkpoint_every=20)
    assert bits(run(killed, config)) == bits(run(tmp_path / "undisturbed", config))
    assert metrics(killed) == metrics(tmp_path / "undisturbed")


def test_the_last_step_is_saved_and_a_finished_run_stays_as_it_is(tmp_path):
    state = run(tmp_path, config_of(7))
    params, config = restore_params(str(tmp_path / "checkpoints"))
    assert config == to_dict(config_of(7)) == json.loads((tmp_path / "config.json").read_text())
    np.testing.assert_array_equal(params["out"], state.ema_params["out"])
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["4", "7"]

    def no_batch():
        raise AssertionError("a finished run asked for data")

    again = run(tmp_path, config_of(7), batches=make_batches(at=8, act=no_batch))
    assert bits(again) == bits(state)


def test_reports_are_means_over_the_steps_between(tmp_path):
    run(tmp_path / "each", config_of(6, log_every=1))
    run(tmp_path / "pairs", config_of(6, log_every=3))
    each, pairs = metrics(tmp_path / "each"), metrics(tmp_path / "pairs")
    assert [line["step"] for line in pairs] == [3, 6]
    for n, line in enumerate(pairs):
        for name in ("loss", "error", "grad_norm", "learning_rate"):
            mean = np.mean([m[name] for m in each[3 * n : 3 * n + 3]])
            np.testing.assert_allclose(line[name], mean, rtol=1e-6)
    assert each[-1]["loss"] != each[0]["loss"]


def test_hooks_see_the_state_at_their_steps_and_at_the_end(tmp_path):
    seen = []
    hook = Hook(every=3, call=lambda state, writer: seen.append(int(state.step)))
    run(tmp_path, config_of(8), hooks=(hook,))
    assert seen == [3, 6, 8]
    # Killed after a checkpoint, it may not have been called: it is when the run goes on.
    for num_steps, again in ((8, [8]), (10, [9, 10])):
        seen.clear()
        run(tmp_path, config_of(num_steps), hooks=(hook,))
        assert seen == again


def test_bad_batches_are_skipped_and_counted_and_too_many_end_the_run(tmp_path):
    def sometimes_nan(params, batch, key):
        loss, aux = loss_fn(params, batch, key)
        return jnp.where(batch["tokens"][0, 1] < 4, jnp.nan, loss), aux

    config = config_of(24)
    state = run(tmp_path / "some", config, loss_fn=sometimes_nan)
    lines = metrics(tmp_path / "some")
    assert 0 < int(state.skipped) < 24 and int(state.step) == 24
    assert sum(line["skipped"] for line in lines) == int(state.skipped)
    assert all(line["loss"] is None or np.isfinite(line["loss"]) for line in lines)

    def nan(params, batch, key):
        return jnp.sum(params["out"]) * jnp.nan, {}

    config = config_of(24, max_skipped=9)
    with pytest.raises(FloatingPointError, match="step 10: 10 steps in a row"):
        run(tmp_path / "all", config, loss_fn=nan)
    # A run that is killed more often than that gives up as well.
    for at in (5, 9):
        with pytest.raises(RuntimeError, match="crash"):
            run(tmp_path / "often", config, make_batches(at=at, act=crash), loss_fn=nan)
    with pytest.raises(FloatingPointError, match="step 10: 10 steps in a row"):
        run(tmp_path / "often", config, loss_fn=nan)


def test_a_streak_of_bad_batches_counts_though_good_ones_follow_before_the_report(tmp_path):
    class FirstTenBad:
        def __init__(self):
            self.batches, self.count = make_batches(), 0

        def __next__(self):
            batch = dict(next(self.batches))
            if self.count < 10:
                batch["tokens"] = np.full_like(batch["tokens"], -1)
            self.count += 1
            return batch

        def get_state(self):
            return self.batches.get_state()

        def set_state(self, state):
            self.batches.set_state(state)

    def nan_of_bad(params, batch, key):
        loss, aux = loss_fn(params, batch, key)
        return jnp.where(batch["tokens"][0, 0] < 0, jnp.nan, loss), aux

    options = {"loss_fn": nan_of_bad}
    with pytest.raises(FloatingPointError, match="step 24: 10 steps in a row"):
        config = config_of(24, log_every=24, max_skipped=10)
        run(tmp_path / "ten", config, batches=FirstTenBad(), **options)
    config = config_of(24, log_every=24, max_skipped=11)
    assert run(tmp_path / "eleven", config, batches=FirstTenBad(), **options).skipped == 10


def test_another_model_or_other_data_cannot_go_on(tmp_path):
    run(tmp_path, config_of(4))
    wide = {"init_fn": lambda key: init_fn(key) | {"out": jnp.zeros((16, 2))}}
    with pytest.raises(ValueError, match=r"params/out is float32\[16, 1\] in the checkpoint"):
        run(tmp_path, config_of(8), **wide)
    other = Batches(PipelineConfig(batch_size=4, seed=9), caption_fn=tokenize, video_source=Clips())
    with pytest.raises(ValueError, match="data seed is 9"):
        run(tmp_path, config_of(8), batches=other)


def test_a_run_starts_from_the_average_of_another_and_goes_on_alone(tmp_path):
    first = run(tmp_path / "first", config_of(7))
    config = config_of(6, init_from=str(tmp_path / "first"))
    average = jax.device_get(first.ema_params)
    wanted = run(tmp_path / "wanted", config_of(6), init_fn=lambda key: average)
    with pytest.raises(RuntimeError, match="crash"):
        run(tmp_path / "second", config, batches=make_batches(at=5, act=crash))
    shutil.rmtree(tmp_path / "first")
    assert bits(run(tmp_path / "second", config)) == bits(wanted)
    assert bits(wanted) != bits(run(tmp_path / "scratch", config_of(6)))


def test_a_run_starts_from_given_parameters_and_leaves_them_be(tmp_path):
    given = jax.jit(init_fn)(jax.random.key(5))
    kept = bits(given)
    wanted = run(tmp_path / "wanted", config_of(6), init_fn=lambda key: given)

    def frozen_loss(params, batch, key, frozen):
        return loss_fn(jax.tree.map(lambda a, b: a + 0 * b, params, frozen), batch, key)

    options = {"start_from": given, "frozen": (given,), "loss_fn": frozen_loss}
    with pytest.raises(RuntimeError, match="crash"):
        run(tmp_path / "ours", config_of(6), batches=make_batches(at=5, act=crash), **options)
    ours = run(tmp_path / "ours", config_of(6), **options)
    for a, b in zip(jax.tree.leaves(ours.params), jax.tree.leaves(wanted.params)):
        np.testing.assert_allclose(a, b, rtol=1e-6)
    assert bits(given) == kept


def test_a_run_cannot_start_from_nothing_or_another_model(tmp_path):
    with pytest.raises(ValueError, match="first/checkpoints: no checkpoint there"):
        run(tmp_path / "a", config_of(4, init_from=str(tmp_path / "first")))
    run(tmp_path / "first", config_of(4))
    wide = {"init_fn": lambda key: init_fn(key) | {"out": jnp.zeros((16, 2))}}
    with pytest.raises(ValueError, match=r"params/out is float32\[16, 1\] in the checkpoint"):
        run(tmp_path / "b", config_of(4, init_from=str(tmp_path / "first")), **wide)


@pytest.mark.parametrize(
    "fields, word",
    [
        ({"num_steps": 0}, "num_steps"),
        ({"ema_decay": 1.0}, "ema_decay"),
        ({"microbatches": 3}, "microbatches"),
        ({"compiler_options": ("xla_fast",)}, "'xla_fast' is not NAME=VALUE"),
        ({"keep_every": 0}, "keep_every"),
        ({"seed": 2**31}, "seed"),
        ({"optimizer": OptimizerConfig(warmup_steps=99)}, "warmup_steps"),
    ],
)
def test_impossible_runs_are_refused(fields, word):
    with pytest.raises(ValueError, match=word):
        config_of(**{"num_steps": 20} | fields)


if __name__ == "__main__":
    run(Path(sys.argv[1]), config_of(int(sys.argv[2]), checkpoint_every=20), make_batches(0.02))
