"""A stage's training run: its data on its grid, and its bits after a kill."""

import dataclasses
import os
import signal

import jax
import numpy as np
import pytest
from micro_cascade import SSR1, TSR1, stage_run, text_model

from imagen_video import resample
from imagen_video.training import stage_run as stage_run_module
from imagen_video.training.stage_run import make_batches, train_stage

# Without attention the training step compiles in half the time.
PLAIN = dataclasses.replace(TSR1.unet, attention=("none",))
RUN = stage_run(dataclasses.replace(TSR1, unet=PLAIN))


def bits(state):
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(state)]


@pytest.mark.slow
def test_a_killed_run_ends_with_the_bits_of_an_undisturbed_one(tmp_path, monkeypatch):
    undisturbed = train_stage(RUN, text=text_model(), workdir=str(tmp_path / "undisturbed"))
    assert int(undisturbed.step) == 4 and int(undisturbed.skipped) == 0

    class Killed:
        """Sends SIGTERM while the second batch is fetched."""

        def __init__(self, run, text, layout=None):
            self._batches = make_batches(run, text, layout)

        def __next__(self):
            batch = next(self._batches)
            if self._batches.get_state()["next_batch"] == 2:
                os.kill(os.getpid(), signal.SIGTERM)
            return batch

        def get_state(self):
            return self._batches.get_state()

        def set_state(self, state):
            self._batches.set_state(state)

    with monkeypatch.context() as patched:
        patched.setattr(stage_run_module, "make_batches", Killed)
        with pytest.raises(SystemExit) as ended:
            train_stage(RUN, text=text_model(), workdir=str(tmp_path / "killed"))
    assert ended.value.code == 143
    assert (tmp_path / "killed" / "checkpoints" / "2").is_dir()
    resumed = train_stage(RUN, text=text_model(), workdir=str(tmp_path / "killed"))
    assert bits(resumed) == bits(undisturbed)
    # It learned something: parameters and their average moved, each in its own way.
    moved = [
        np.abs(np.asarray(a) - np.asarray(b)).max()
        for a, b in zip(jax.tree.leaves(resumed.params), jax.tree.leaves(resumed.ema_params))
    ]
    assert max(moved) > 1e-3


def test_batches_are_clips_on_the_stages_grid_half_of_them_packed_images():
    batch = next(make_batches(RUN, text_model()))
    assert batch["video"].shape == (2, 8, 4, 8, 3)
    assert batch["is_image"].tolist() == [False, True]
    assert batch["tokens"].shape == (1 + 8, TSR1.text_tokens)
    assert (batch["tokens"][:, 0] > 0).all()
    assert len({tuple(tokens) for tokens in batch["tokens"].tolist()}) > 4


def test_windows_are_cut_to_the_training_size():
    data = dataclasses.replace(RUN.data, train_frames=4, train_crop=(4, 8), image_share=0.0)
    run = dataclasses.replace(stage_run(SSR1), data=data)
    batch = next(make_batches(run, text_model()))
    assert batch["video"].shape == (2, 4, 4, 8, 3) and "is_image" not in batch


def test_two_stages_are_trained_on_the_same_clips():
    small, large = (
        next(
            make_batches(
                dataclasses.replace(
                    stage_run(stage), data=dataclasses.replace(RUN.data, image_share=0.0)
                ),
                text_model(),
            )
        )
        for stage in (TSR1, SSR1)
    )
    np.testing.assert_array_equal(small["tokens"], large["tokens"])
    reduced = resample.resize(large["video"], height=4, width=8)
    assert np.abs(reduced - small["video"]).mean() < 0.05
    assert np.abs(reduced[::-1] - small["video"]).mean() > 0.1


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("train_frames", 3, "train_frames: 3 is not a positive multiple of 2"),
        ("train_frames", 10, "train_frames: 10"),
        ("train_frames", 0, "train_frames: 0 is not a positive multiple of 2"),
        ("train_crop", (0, 8), "train_crop: 0x8 is empty"),
        ("train_crop", (3, 8), "height: 3 is not a multiple of 2"),
        ("train_crop", (6, 8), "train_crop: 6x8 is larger than the stage's 8x4x8"),
    ],
)
def test_windows_that_do_not_fit_are_refused(field, value, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(RUN, data=dataclasses.replace(RUN.data, **{field: value}))


def test_an_encoder_of_another_width_is_refused():
    unet = dataclasses.replace(TSR1.unet, text_in_dim=64)
    run = stage_run(dataclasses.replace(TSR1, unet=unet))
    with pytest.raises(ValueError, match=r"text\.encoder: .* 128 wide, stage\.unet\.text_in_dim"):
        train_stage(run, text=text_model(), workdir="unused")
