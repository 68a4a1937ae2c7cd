"""Clips on disk: mp4, gif, png and folders of images, read and written as uint8 arrays.

Files are written whole or not at all, and the same frames give the same bytes in every process:
one encoder thread, no time stamps, no version strings. A resumed run therefore leaves the files
that an undisturbed one would.

mp4 is H.264 with yuv420p colour (BT.709, limited range), which every player and browser shows. It
keeps one colour sample for 2x2 pixels, so coloured edges one pixel wide soften, whatever the
quality asked for; Lanczos chroma filters both ways keep that small.
"""

import dataclasses
import fractions
import os
import pathlib
import re

import av
import av.filter
import numpy as np
from etils import epath
from jaxtyping import Float, UInt8
from PIL import Image, ImageOps

from imagen_video.files import any_path, atomic_path, local_path

Frames = UInt8[np.ndarray, "f h w 3"]
Pixels = UInt8[np.ndarray, "h w 3"]
MIN_FPS, MAX_FPS = 0.001, 1000
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")

# Our choice: with crf 12 the loss is that of yuv420p itself, at about twice the bytes of crf 18.
# Macroblock-tree rate control reads memory that it has not written, so that the same frames give
# other bytes from one process to the next; without it they never do.
_X264 = {"crf": "12", "preset": "medium", "x264-params": "mbtree=0"}
_SCALE = "flags=lanczos+accurate_rnd+full_chroma_int+full_chroma_inp+bitexact"
_BT709, _BT601, _UNSPECIFIED, _LIMITED = 1, 5, 2, 1  # AVColorSpace and AVColorRange.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Clip:
    """A video as it lies on disk.

    Attributes:
      frames: uint8 [f h w 3], sRGB.
      fps: frames per second; None where the file does not say (images and folders of them).
    """

    frames: Frames
    fps: float | None


def to_uint8(x: Float[np.ndarray, "*shape"]) -> UInt8[np.ndarray, "*shape"]:
    """Turns pixels in [-1, 1] into the nearest of 256 levels; values outside are clipped."""
    return np.rint(np.clip(x, -1.0, 1.0) * 127.5 + 127.5).astype(np.uint8)


def from_uint8(pixels: UInt8[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
    """Turns 256 levels into float32 pixels in [-1, 1]; `to_uint8` undoes it exactly."""
    return pixels.astype(np.float32) / 127.5 - 1.0


def read_clip(path: str | os.PathLike, *, max_frames: int | None = None) -> Clip:
    """Reads a video file, a gif, a single image (one frame) or a folder of images in name order.

    Args:
      path: the file or folder. Numbers in the names of a folder's images count as numbers.
      max_frames: stop after so many.

    Raises:
      ValueError: naming the file that is missing, unreadable, damaged, or of another size.
    """
    path = pathlib.Path(path)
    if path.is_dir():
        images = [p for p in path.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES]
        images = sorted(images, key=_natural_order)[:max_frames]
        if not images:
            raise ValueError(f"{path}: no images in this folder ({', '.join(IMAGE_SUFFIXES)})")
        return Clip(frames=_stack([_read_image(p) for p in images], images), fps=None)
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    if path.suffix.lower() in IMAGE_SUFFIXES:
        return Clip(frames=_read_image(path)[None], fps=None)
    try:
        return _read_video(path, max_frames)
    except (av.FFmpegError, EOFError) as error:
        raise ValueError(f"{path}: cannot be read as a video: {error}") from error


def write_clip(path: str | os.PathLike, frames: Frames, *, fps: float | int | None = None) -> None:
    """Writes frames as the name says: .mp4, .gif, .png (one frame), else a new folder of .png.

    Args:
      path: where to, local or, one file, gs://; its folder must exist. A file of that name is
        replaced, a folder is not.
      frames: uint8 [f h w 3].
      fps: frames per second, needed by .mp4 and .gif. A gif counts hundredths of a second, so its
        frames may be early or late by half of one.

    Raises:
      ValueError: frames of another shape or dtype, no fps, odd height or width in an mp4 (yuv420p
        has one colour sample for 2x2 pixels), more than one frame in a png, or a folder that
        exists.
      OSError: the place cannot be written to.
    """
    path = any_path(path)
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or not frames.size:
        raise ValueError(
            f"{path}: frames must be uint8 [f h w 3], got {frames.dtype} {frames.shape}"
        )
    suffix = path.suffix.lower()
    if suffix in (".mp4", ".gif"):
        if fps is None or not MIN_FPS <= fps <= MAX_FPS:
            raise ValueError(f"{path}: fps = {fps} must be from {MIN_FPS} to {MAX_FPS}")
        rate = fractions.Fraction(fps).limit_denominator(1001)
        if suffix == ".gif":
            _write_gif(path, frames, rate)
            return
        _, height, width, _ = frames.shape
        if height % 2 or width % 2:
            raise ValueError(
                f"{path}: height = {height} and width = {width} must be even in an mp4; a .gif or "
                "a folder of .png takes any size"
            )
        _write_mp4(path, frames, rate)
    elif suffix == ".png":
        if len(frames) > 1:
            raise ValueError(f"{path}: a png holds one frame, got {len(frames)}")
        write_image(path, frames[0])
    elif suffix:
        raise ValueError(f"{path}: clips are written as .mp4, .gif, .png or a folder, not {suffix}")
    elif path.exists():
        raise ValueError(f"{path}: exists already")
    else:
        with atomic_path(local_path(path)) as part:
            part.mkdir()
            for i, pixels in enumerate(frames):
                Image.fromarray(pixels).save(part / f"{i:05d}.png", format="PNG")


def write_image(path: str | os.PathLike, pixels: Pixels) -> None:
    """Writes uint8 pixels [h w 3] as a PNG."""
    with atomic_path(path) as part:
        Image.fromarray(pixels).save(part, format="PNG")


def _write_mp4(path: epath.Path, frames: Frames, rate: fractions.Fraction) -> None:
    _, height, width, _ = frames.shape
    with atomic_path(path) as part, _muxer(part, "mp4", movflags="+faststart") as file:
        stream = file.add_stream("libx264", rate=rate, options=_X264)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        codec = stream.codec_context
        codec.thread_count = 1
        codec.colorspace = codec.color_primaries = codec.color_trc = _BT709
        codec.color_range = _LIMITED
        to_yuv = f"out_range=tv:out_color_matrix=bt709:{_SCALE}"
        graph = _graph(("scale", to_yuv), ("format", "yuv420p"), size=(width, height), rate=rate)
        for i, pixels in enumerate(frames):
            graph.push(_frame(pixels, i, rate))
            file.mux(stream.encode(graph.pull()))
        file.mux(stream.encode())


def _write_gif(path: epath.Path, frames: Frames, rate: fractions.Fraction) -> None:
    _, height, width, _ = frames.shape
    with atomic_path(path) as part, _muxer(part, "gif") as file:
        stream = file.add_stream("gif", rate=rate)
        stream.width, stream.height, stream.pix_fmt = width, height, "pal8"
        graph = _palette_graph(size=(width, height), rate=rate)
        for i, pixels in enumerate(frames):
            graph.push(_frame(pixels, i, rate))
        graph.push(None)
        for _ in frames:
            file.mux(stream.encode(graph.pull()))
        file.mux(stream.encode())


def _muxer(path: pathlib.Path, format: str, **options: str) -> av.container.OutputContainer:
    # bitexact: no time of writing and no library version in the file.
    return av.open(path, "w", format=format, options={"fflags": "+bitexact", **options})


def _frame(pixels: Pixels, index: int, rate: fractions.Fraction) -> av.VideoFrame:
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
    frame.pts, frame.time_base = index, 1 / rate
    return frame


def _source(graph: av.filter.Graph, size, rate, pixels="rgb24", colour="") -> object:
    width, height = size
    args = f"video_size={width}x{height}:pix_fmt={pixels}:time_base={rate.denominator}/"
    return graph.add("buffer", f"{args}{rate.numerator}{colour}")


def _graph(*filters: tuple[str, str], size, rate, pixels="rgb24", colour="") -> av.filter.Graph:
    """A chain of filters for frames of one size; push a frame, pull a frame."""
    graph = av.filter.Graph()
    last = _source(graph, size, rate, pixels, colour)
    for name, args in (*filters, ("buffersink", "")):
        last, before = graph.add(name, args or None), last
        before.link_to(last)
    graph.configure()
    return graph


def _palette_graph(size, rate) -> av.filter.Graph:
    """Frames in, the same frames in the clip's own 256 colours out, once all have been pushed."""
    graph = av.filter.Graph()
    source = _source(graph, size, rate)
    split, sink = graph.add("split"), graph.add("buffersink")
    palette = graph.add("palettegen", "reserve_transparent=0:stats_mode=full")
    use = graph.add("paletteuse", "dither=none")
    source.link_to(split)
    split.link_to(use, 0, 0)
    split.link_to(palette, 1, 0)
    palette.link_to(use, 0, 1)
    use.link_to(sink)
    graph.configure()
    return graph


def _read_video(path: pathlib.Path, max_frames: int | None) -> Clip:
    graph, frames = None, []
    with av.open(path) as file:
        if not file.streams.video:
            raise ValueError(f"{path}: holds no video")
        stream = file.streams.video[0]
        for frame in file.decode(stream):
            if len(frames) == max_frames:
                break
            if frame.colorspace == _UNSPECIFIED:
                # Players do the same: files that do not say are BT.709 from 720 lines on.
                frame.colorspace = _BT709 if frame.height >= 720 else _BT601
            if graph is None:
                graph = _graph(
                    ("scale", f"out_range=pc:{_SCALE}"),
                    ("format", "rgb24"),
                    size=(frame.width, frame.height),
                    rate=fractions.Fraction(1000),
                    pixels=frame.format.name,
                    colour=f":colorspace={int(frame.colorspace)}:range={int(frame.color_range)}",
                )
                size = frame.width, frame.height
            if (frame.width, frame.height) != size:
                raise ValueError(f"{path}: frame {len(frames)} has another size than the first")
            graph.push(frame)
            # A phone's upright clip is stored lying, with the turn that shows it upright.
            frames.append(np.rot90(graph.pull().to_ndarray(), frame.rotation // 90))
        if not frames:
            raise ValueError(f"{path}: holds no frames")
        # The average rate of a gif is rounded to hundredths of a second.
        rate = stream.guessed_rate if path.suffix.lower() == ".gif" else stream.average_rate
        return Clip(frames=np.ascontiguousarray(np.stack(frames)), fps=rate and float(rate))


def _read_image(path: pathlib.Path) -> Pixels:
    try:
        with Image.open(path) as image:
            return np.array(ImageOps.exif_transpose(image).convert("RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path}: cannot be read as an image: {error}") from error


def _stack(images: list[Pixels], paths: list[pathlib.Path]) -> Frames:
    for pixels, path in zip(images, paths, strict=True):
        if pixels.shape != images[0].shape:
            height, width, _ = pixels.shape
            raise ValueError(f"{path}: {height}x{width} differs from {paths[0]} in size")
    return np.stack(images)


def _natural_order(path: pathlib.Path) -> list:
    """frame_2 before frame_10."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path.name)]
