"""Pictures of a run show what its weights sample, and change no bit of them."""

import dataclasses

import jax
import numpy as np
import pytest
from micro_cascade import BASE, SSR1, stage_run, text_model
from PIL import Image

from imagen_video.cascade.cascade import Cascade
from imagen_video.contact_sheet import contact_sheet, joined
from imagen_video.loading import load_stage_weights
from imagen_video.training.clip_samples import ClipSamples
from imagen_video.training.stage_run import make_batches, train_stage, unseen_videos
from imagen_video.video_io import to_uint8

# Without attention the network compiles in half the time.
PLAIN = dataclasses.replace(BASE.unet, attention=("none",), temporal="convolution")
STAGE = dataclasses.replace(BASE, unet=PLAIN)


def sheet(frames, label):
    return contact_sheet(frames, label=label, max_frames=5, columns=5, frame_width=160)


def test_a_picture_shows_what_the_averaged_weights_sample_and_changes_nothing(tmp_path):
    run = stage_run(STAGE, num_steps=3)
    undisturbed = train_stage(run, text=text_model(), workdir=str(tmp_path / "undisturbed"))
    run = dataclasses.replace(run, samples=ClipSamples(every=2, count=2, num_steps=3))
    state = train_stage(run, text=text_model(), workdir=str(tmp_path / "run"))
    assert jax.tree.all(jax.tree.map(np.array_equal, state, undisturbed))

    pictures = sorted(path.name for path in (tmp_path / "run" / "samples").iterdir())
    assert pictures == ["step_00000002.png", "step_00000003.png"]
    # The last one's clips are those of sampling from what is exported.
    model = load_stage_weights(tmp_path / "run")
    batch = unseen_videos(run, text_model(), count=2)
    captions = [text_model().tokenizer.decode(tokens) for tokens in batch["tokens"]]
    assert len(set(captions)) == 2
    cascade = Cascade(models=(model,), text=text_model())
    clips = cascade.sample(captions, seeds=[0, 0], indices=[0, 1], steps=3)
    wanted = joined([sheet(*pair) for pair in zip(clips, captions)], columns=2)
    found = np.array(Image.open(tmp_path / "run" / "samples" / pictures[-1]))
    np.testing.assert_array_equal(found, wanted)
    # One that a kill has left out is made when the run goes on, the others are left alone.
    folder = tmp_path / "run" / "samples"
    before, kept = (folder / pictures[-1]).read_bytes(), (folder / pictures[0]).stat()
    (folder / pictures[-1]).unlink()
    train_stage(run, text=text_model(), workdir=str(tmp_path / "run"))
    assert (folder / pictures[-1]).read_bytes() == before
    assert (folder / pictures[0]).stat().st_mtime_ns == kept.st_mtime_ns


def test_a_super_resolution_stage_is_shown_beside_what_it_was_given(tmp_path):
    unet = dataclasses.replace(SSR1.unet, attention=("none",) * len(SSR1.unet.channels))
    run = stage_run(dataclasses.replace(SSR1, unet=unet), num_steps=2)
    run = dataclasses.replace(run, samples=ClipSamples(every=2, count=1, num_steps=1))
    train_stage(run, text=text_model(), workdir=str(tmp_path))
    clip = unseen_videos(run, text_model(), count=1)["video"][0]
    for _, batch in zip(range(2), make_batches(run, text_model())):
        assert not any(np.array_equal(clip, row) for row in batch["video"])
    f, _, _, c = clip.shape
    given = jax.image.resize(clip, (f, 4, 8, c), "bilinear", antialias=True)
    wanted = sheet(to_uint8(np.asarray(given)), "given")
    picture = np.array(Image.open(tmp_path / "samples" / "step_00000002.png"))
    height, width, _ = wanted.shape
    cell = picture.shape[1] // 2
    assert cell >= width and len(np.unique(picture[height // 2, cell:], axis=0)) > 2
    np.testing.assert_allclose(picture[:height, :width].astype(int), wanted, atol=1)


def test_sheets_are_joined_in_cells_of_the_largest():
    large, small = np.full((6, 4, 3), 10, np.uint8), np.full((3, 2, 3), 20, np.uint8)
    picture = joined([small, large, small], columns=2)
    assert picture.shape == (12, 8, 3)
    np.testing.assert_array_equal(picture[:3, :2], small)
    np.testing.assert_array_equal(picture[:6, 4:], large)
    np.testing.assert_array_equal(picture[6:9, :2], small)
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) == 3  # both, and one colour around them


@pytest.mark.parametrize("field", ["every", "count", "num_steps"])
def test_impossible_samples_are_refused(field):
    with pytest.raises(ValueError, match=f"{field}: 0 is below 1"):
        ClipSamples(**{field: 0})
