"""Clips at a glance: evenly spaced frames of each in a grid under a line of text, as one image."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

MARGIN = 8  # Pixels around and between frames; our choice, like the other sizes here.
FONT_SIZE = 16
BACKGROUND = "#c0c4cc"  # So that white frames and black ones both have an edge.


def contact_sheet(
    frames: UInt8[np.ndarray, "f h w 3"],
    *,
    label: str,
    max_frames: int = 16,
    columns: int = 4,
    frame_width: int = 320,
) -> UInt8[np.ndarray, "sheet_h sheet_w 3"]:
    """Lays out a clip's frames from left to right, top to bottom, first and last included.

    Args:
      frames: uint8 [f h w 3].
      label: text above the grid, the prompt say; wrapped to the sheet's width. Letters that
        Pillow's own font lacks appear as boxes.
      max_frames: frames shown at most; of a longer clip, that many evenly spaced ones.
      columns: frames side by side.
      frame_width: width of one shown frame in pixels, about: frames that are smaller are enlarged
        by a whole factor, pixel by pixel, so that what the model drew is seen as it is; frames
        that are larger are shrunk to it.

    Returns:
      uint8 [sheet_h sheet_w 3].
    """
    shown = np.unique(np.linspace(0, len(frames) - 1, max_frames).round().astype(int))
    _, height, width, _ = frames.shape
    enlarge = frame_width // width
    if enlarge >= 1:
        size, how = (width * enlarge, height * enlarge), Image.Resampling.NEAREST
    else:
        size = frame_width, max(1, round(height * frame_width / width))
        how = Image.Resampling.LANCZOS

    columns = min(columns, len(shown))
    rows = -(-len(shown) // columns)
    sheet_width = columns * (size[0] + MARGIN) + MARGIN
    text = _wrap(label, sheet_width - 2 * MARGIN)
    top = MARGIN + _text_height(text)
    sheet = Image.new("RGB", (sheet_width, top + rows * (size[1] + MARGIN)), BACKGROUND)
    ImageDraw.Draw(sheet).multiline_text((MARGIN, MARGIN), text, fill="black", font=_font())
    for place, index in enumerate(shown):
        row, column = divmod(place, columns)
        corner = MARGIN + column * (size[0] + MARGIN), top + row * (size[1] + MARGIN)
        sheet.paste(Image.fromarray(frames[index]).resize(size, how), corner)
    return np.array(sheet)


def joined(
    sheets: Sequence[UInt8[np.ndarray, "_ _ 3"]], *, columns: int
) -> UInt8[np.ndarray, "h w 3"]:
    """Lays sheets out from left to right, top to bottom, in cells of the largest one's size."""
    height, width = (max(sheet.shape[axis] for sheet in sheets) for axis in (0, 1))
    rows = -(-len(sheets) // columns)
    picture = Image.new("RGB", (columns * width, rows * height), BACKGROUND)
    for place, sheet in enumerate(sheets):
        row, column = divmod(place, columns)
        picture.paste(Image.fromarray(sheet), (column * width, row * height))
    return np.array(picture)


def _font() -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    return ImageFont.load_default(size=FONT_SIZE)


def _wrap(text: str, width: int) -> str:
    """Breaks text between words into lines of at most `width` pixels."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and _font().getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return "\n".join(lines)


def _text_height(text: str) -> int:
    if not text:
        return 0
    box = ImageDraw.Draw(Image.new("RGB", (1, 1))).multiline_textbbox((0, 0), text, font=_font())
    return int(box[3]) + MARGIN
