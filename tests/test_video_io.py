"""Clips survive the disk: frames, fps and colours; whole files only; the same bytes every time."""

import hashlib
import os
import pathlib
import subprocess
import sys

import av
import numpy as np
import pytest
from PIL import Image

from imagen_video import video_io

COLOURS = {
    "red": (255, 0, 0),
    "green": (0, 128, 0),
    "blue": (0, 0, 255),
    "yellow": (255, 255, 0),
    "purple": (128, 0, 128),
    "orange": (255, 165, 0),
    "cyan": (0, 255, 255),
    "pink": (255, 192, 203),
}


def moving_disc(colour, *, frames=16, height=48, width=80, background=(255, 255, 255)):
    """An antialiased disc that crosses the frame: coverage by 8x8 supersampling."""
    y = (np.arange(height * 8) + 0.5)[:, None] / 8 - height / 2
    clip = []
    for frame in range(frames):
        x = (np.arange(width * 8) + 0.5)[None] / 8 - width * (0.25 + 0.5 * frame / frames)
        inside = (x**2 + y**2 < (height / 4) ** 2).astype(float)
        coverage = inside.reshape(height, 8, width, 8).mean((1, 3))[..., None]
        clip.append(coverage * np.array(colour) + (1 - coverage) * np.array(background))
    return np.rint(np.stack(clip)).astype(np.uint8)


def psnr(a, b):
    return 10 * np.log10(255**2 / np.mean((a.astype(float) - b.astype(float)) ** 2))


@pytest.mark.parametrize("colour", COLOURS)
@pytest.mark.parametrize("background", [(255, 255, 255), (0, 0, 0)])
@pytest.mark.parametrize(("height", "width", "decibels"), [(48, 80, 34), (96, 160, 36.5)])
def test_mp4_keeps_small_flat_clips(tmp_path, colour, background, height, width, decibels):
    # Yellow on white and blue on black differ in colour alone, of which yuv420p keeps a quarter of
    # the samples: they set the figures, and a better crf would raise them by less than 0.4 dB.
    frames = moving_disc(COLOURS[colour], height=height, width=width, background=background)
    video_io.write_clip(tmp_path / "clip.mp4", frames, fps=24)
    read = video_io.read_clip(tmp_path / "clip.mp4").frames
    assert read.shape == frames.shape and read.dtype == np.uint8
    assert psnr(read, frames) > decibels
    # The disc's middle and the corner, away from any edge, keep their colours.
    y, x = slice(height // 2 - 4, height // 2 + 4), slice(width // 2 - 4, width // 2 + 4)
    assert np.abs(read[8, y, x].astype(int) - COLOURS[colour]).max() <= 3
    assert np.abs(read[:, 0, 0].astype(int) - background).max() <= 2


def test_mp4_keeps_detail_of_a_photograph_like_clip(tmp_path):
    generator = np.random.default_rng(0)
    noise = generator.normal(size=(4, 12, 20, 3)).cumsum(0)
    low = np.uint8(np.clip(noise * 40 + 128, 0, 255))
    frames = np.stack([np.asarray(Image.fromarray(f).resize((160, 96), 3)) for f in low])
    video_io.write_clip(tmp_path / "clip.mp4", frames, fps=24)
    assert psnr(video_io.read_clip(tmp_path / "clip.mp4").frames, frames) > 38


@pytest.mark.parametrize("fps", [3, 5.5, 12, 24, 24000 / 1001])
def test_fps_is_kept(tmp_path, fps):
    frames = moving_disc((255, 0, 0), frames=9)
    video_io.write_clip(tmp_path / "clip.mp4", frames, fps=fps)
    read = video_io.read_clip(tmp_path / "clip.mp4")
    assert read.fps == pytest.approx(fps, rel=1e-6) and len(read.frames) == 9
    with av.open(tmp_path / "clip.mp4") as file:
        times = [float(p.pts * p.time_base) for p in file.demux(video=0) if p.pts is not None]
    np.testing.assert_allclose(sorted(times), np.arange(9) / fps, atol=1e-3)


def test_mp4_is_what_players_take(tmp_path):
    video_io.write_clip(tmp_path / "clip.mp4", moving_disc((255, 0, 0)), fps=24)
    with av.open(tmp_path / "clip.mp4") as file:
        codec = file.streams.video[0].codec_context
        assert (codec.name, codec.pix_fmt) == ("h264", "yuv420p")
        assert (int(codec.colorspace), int(codec.color_range)) == (1, 1)  # BT.709, limited.
    head = (tmp_path / "clip.mp4").read_bytes()
    assert head.index(b"moov") < head.index(b"mdat")  # Plays before it is all there.


def test_yuv_follows_bt709(tmp_path):
    # Independent truth: ITU-R BT.709, 8 bits, limited range; Y' = 16 + 219 (0.2126 R' + ...).
    frames = np.broadcast_to(np.uint8([255, 0, 0]), (3, 16, 16, 3))
    video_io.write_clip(tmp_path / "red.mp4", frames, fps=24)
    with av.open(tmp_path / "red.mp4") as file:
        planes = next(file.decode(video=0)).to_ndarray()
    y, u, v = planes[:16].mean(), planes[16:20].mean(), planes[20:].mean()
    expected = 16 + 219 * 0.2126, 128 - 224 * 0.2126 / 1.8556, 128 + 224 * 0.5
    np.testing.assert_allclose((y, u, v), expected, atol=1.0)


@pytest.mark.parametrize("frames", [1, 7])
@pytest.mark.parametrize("size", [(12, 20), (7, 5)])
def test_gif_and_folder_keep_every_frame_and_colour(tmp_path, frames, size):
    height, width = size
    clip = np.zeros((frames, height, width, 3), np.uint8)
    clip[:, 1:3, 1:4] = (255, 165, 0)
    clip[-1, 2:, 2:] = (3, 77, 200)
    video_io.write_clip(tmp_path / "clip.gif", clip, fps=12)
    read = video_io.read_clip(tmp_path / "clip.gif")
    assert read.frames.shape == clip.shape
    assert np.abs(read.frames.astype(int) - clip).max() <= 1
    assert frames == 1 or read.fps == pytest.approx(12, rel=0.01)
    video_io.write_clip(tmp_path / "folder", clip)
    read = video_io.read_clip(tmp_path / "folder")
    np.testing.assert_array_equal(read.frames, clip)
    assert read.fps is None
    with Image.open(tmp_path / "clip.gif") as gif:  # Another reader counts the same frames.
        assert gif.n_frames == frames


def test_still_frames_are_not_merged_in_a_gif(tmp_path):
    clip = np.broadcast_to(np.uint8([10, 20, 30]), (24, 8, 8, 3))
    video_io.write_clip(tmp_path / "clip.gif", clip, fps=24)
    assert video_io.read_clip(tmp_path / "clip.gif").frames.shape == clip.shape


def test_png_is_exact_and_holds_one_frame(tmp_path):
    clip = np.random.default_rng(0).integers(0, 256, (1, 5, 7, 3), dtype=np.uint8)
    video_io.write_clip(tmp_path / "a.png", clip)
    np.testing.assert_array_equal(video_io.read_clip(tmp_path / "a.png").frames, clip)
    with pytest.raises(ValueError, match="one frame, got 2"):
        video_io.write_clip(tmp_path / "b.png", np.repeat(clip, 2, 0))


def test_images_of_a_folder_come_in_the_order_of_their_numbers(tmp_path):
    for number in (10, 9, 100, 1):
        image = np.full((4, 6, 3), number, np.uint8)
        Image.fromarray(image).save(tmp_path / f"frame_{number}.png")
    (tmp_path / "notes.txt").write_text("not an image")
    read = video_io.read_clip(tmp_path).frames
    assert read[:, 0, 0, 0].tolist() == [1, 9, 10, 100]
    assert len(video_io.read_clip(tmp_path, max_frames=2).frames) == 2
    Image.fromarray(np.zeros((4, 7, 3), np.uint8)).save(tmp_path / "frame_11.png")
    with pytest.raises(ValueError, match=r"frame_11.png: 4x7 differs"):
        video_io.read_clip(tmp_path)


def test_max_frames_stops_a_video_early(tmp_path):
    frames = moving_disc((255, 0, 0), frames=12)
    video_io.write_clip(tmp_path / "clip.mp4", frames, fps=24)
    whole = video_io.read_clip(tmp_path / "clip.mp4").frames
    part = video_io.read_clip(tmp_path / "clip.mp4", max_frames=5).frames
    np.testing.assert_array_equal(part, whole[:5])


def test_videos_of_others_sideways_and_in_other_colours(tmp_path):
    """A phone's clip: no colour tags (then BT.601 below 720 lines), stored lying, shown upright."""
    path = tmp_path / "phone.mp4"
    with av.open(path, "w") as file:
        stream = file.add_stream("mpeg4", rate=30, options={"qscale": "1"})
        stream.width, stream.height, stream.pix_fmt = 64, 32, "yuv420p"
        stream.set_display_rotation(90)
        planes = np.zeros((48, 64), np.uint8)
        planes[:32, :32], planes[:32, 32:] = 81, 145  # BT.601: Y of red, of green,
        planes[32:] = 128
        u, v = planes[32:40].reshape(16, 32), planes[40:].reshape(16, 32)
        u[:, :16], v[:, :16] = 90, 240  # and their Cb and Cr.
        u[:, 16:], v[:, 16:] = 54, 34
        for _ in range(3):
            file.mux(stream.encode(av.VideoFrame.from_ndarray(planes, format="yuv420p")))
        file.mux(stream.encode())
    read = video_io.read_clip(path)
    assert read.frames.shape == (3, 64, 32, 3) and read.fps == 30
    # Turned counterclockwise by 90 degrees, the left half comes to lie at the bottom.
    assert np.abs(read.frames[0, 56, 16].astype(int) - (255, 0, 0)).max() <= 8
    assert np.abs(read.frames[0, 8, 16].astype(int) - (0, 255, 0)).max() <= 8


PROGRAM = """
import sys, numpy as np
from imagen_video import contact_sheet, video_io
frames = np.random.default_rng(7).integers(0, 256, (9, 48, 80, 3), dtype=np.uint8)
video_io.write_clip(sys.argv[1] + ".mp4", frames, fps=24)
video_io.write_clip(sys.argv[1] + ".gif", frames, fps=24)
sheet = contact_sheet.contact_sheet(frames, label="a red circle moving left")
video_io.write_image(sys.argv[1] + ".png", sheet)
"""


def test_same_frames_same_bytes_in_every_process(tmp_path):
    root = pathlib.Path(__file__).parents[1]
    digests = []
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        environment = os.environ | {"PYTHONPATH": str(root), "PYTHONHASHSEED": "random"}
        program = [sys.executable, "-c", PROGRAM, str(tmp_path / folder / "clip")]
        subprocess.run(program, env=environment, check=True, timeout=60)
        files = sorted((tmp_path / folder).iterdir())
        assert [p.name for p in files] == ["clip.gif", "clip.mp4", "clip.png"]
        digests.append([hashlib.sha256(p.read_bytes()).hexdigest() for p in files])
    assert digests[0] == digests[1]


@pytest.mark.skipif(sys.platform != "linux", reason="MALLOC_PERTURB_ belongs to glibc")
def test_bytes_do_not_depend_on_what_lies_in_fresh_memory(tmp_path):
    """Fills what malloc hands out with two patterns; coarse noise makes rate control work hard."""
    program = (
        "import sys, numpy; from imagen_video.video_io import write_clip;"
        "frames = numpy.random.default_rng(0).normal(128, 60, (64, 24, 40, 3)).clip(0, 255);"
        "frames = frames.repeat(4, axis=1).repeat(4, axis=2);"
        "write_clip(sys.argv[1], frames.astype(numpy.uint8), fps=24.0)"
    )
    contents = []
    for pattern in ("85", "165"):
        path = tmp_path / f"{pattern}.mp4"
        environment = {**os.environ, "MALLOC_PERTURB_": pattern}
        subprocess.run(
            [sys.executable, "-c", program, str(path)], env=environment, check=True, timeout=60
        )
        contents.append(path.read_bytes())
    assert contents[0] == contents[1]


@pytest.mark.parametrize("name", ["clip.mp4", "clip.gif", "clip.png", "clip.jpg", "clip.webm"])
@pytest.mark.parametrize("content", [b"", b"not a video", bytes(5000)])
def test_unreadable_files_are_named(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=str(tmp_path / name)):
        video_io.read_clip(tmp_path / name)


@pytest.mark.parametrize("share", [0.3, 0.9])
def test_cut_off_files_are_named_not_shortened(tmp_path, share):
    frames = np.random.default_rng(0).integers(0, 256, (12, 48, 80, 3), dtype=np.uint8)
    path = tmp_path / "clip.mp4"
    video_io.write_clip(path, frames, fps=24)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(ValueError, match=f"{path}: cannot be read"):
        video_io.read_clip(path)


def test_absent_and_empty_places_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"none.mp4: no such file"):
        video_io.read_clip(tmp_path / "none.mp4")
    with pytest.raises(ValueError, match="no images in this folder"):
        video_io.read_clip(tmp_path)


@pytest.mark.parametrize(
    ("name", "frames", "fps", "message"),
    [
        (
            "a.mp4",
            np.zeros((2, 47, 80, 3), np.uint8),
            24,
            "height = 47 and width = 80 must be even",
        ),
        ("a.mp4", np.zeros((2, 48, 80, 3), np.uint8), 0.0004, "fps = 0.0004 must be from 0.001"),
        ("a.mp4", np.zeros((2, 48, 80, 3), np.uint8), None, "fps = None must be"),
        ("a.mp4", np.zeros((0, 48, 80, 3), np.uint8), 24, "frames must be uint8"),
        ("a.avi", np.zeros((2, 48, 80, 3), np.uint8), 24, "not .avi"),
    ],
)
def test_what_cannot_be_written_is_refused_before_anything_is(tmp_path, name, frames, fps, message):
    with pytest.raises(ValueError, match=message):
        video_io.write_clip(tmp_path / name, frames, fps=fps)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["clip.mp4", "clip.gif", "folder"])
def test_an_interrupted_write_leaves_nothing(tmp_path, monkeypatch, name):
    frames = moving_disc((255, 0, 0), frames=6)
    calls = []

    def interrupted(pixels, *args, **kwargs):
        calls.append(pixels)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return original(pixels, *args, **kwargs)

    module, function = (Image, "fromarray") if name == "folder" else (video_io, "_frame")
    original = getattr(module, function)
    monkeypatch.setattr(module, function, interrupted)
    with pytest.raises(KeyboardInterrupt):
        video_io.write_clip(tmp_path / name, frames, fps=24)
    assert len(calls) == 4 and not list(tmp_path.iterdir())


def test_leftovers_of_a_killed_run_are_cleared(tmp_path):
    (tmp_path / ".folder.part").mkdir()
    (tmp_path / ".folder.part" / "00099.png").write_text("half")
    video_io.write_clip(tmp_path / "folder", np.zeros((2, 4, 4, 3), np.uint8))
    assert sorted(p.name for p in (tmp_path / "folder").iterdir()) == ["00000.png", "00001.png"]
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]
    with pytest.raises(ValueError, match="exists already"):
        video_io.write_clip(tmp_path / "folder", np.zeros((2, 4, 4, 3), np.uint8))


def test_levels_survive_the_trip_to_floats_and_back():
    levels = np.arange(256, dtype=np.uint8)
    x = video_io.from_uint8(levels)
    assert x.dtype == np.float32 and (x.min(), x.max()) == (-1.0, 1.0)
    np.testing.assert_array_equal(video_io.to_uint8(x), levels)
    assert video_io.to_uint8(np.array([-3.0, 0.9999, 7.0])).tolist() == [0, 255, 255]
