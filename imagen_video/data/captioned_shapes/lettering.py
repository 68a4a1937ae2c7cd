"""Letters and words of a real font as signed distance fields.

The outlines (`letters.json`) are those of DejaVu Sans Bold; a word is set with the font's own
spacing. A field is computed once from the outline and then read off bilinearly, so no font
renderer takes part and no upgrade of one can change the dataset.
"""

import dataclasses
import functools
import json
from importlib import resources

import numpy as np
from jaxtyping import Bool, Float

from imagen_video.data.captioned_shapes.forms import Field

TEXELS = 64  # per cap height
MARGIN = 0.2  # of a cap height around the ink; the field is right to that distance
DESCENT = 0.28  # how far J and Q hang below the line, in cap heights
LETTER_CAP = 1.8  # cap height of a single letter, in radii
WORD_CAP, WORD_WIDTH = 1.5, 3.2  # a word is as high as fits both, in radii


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lettering:
    """Set text. Lengths in cap heights; the origin is midway along the ink, halfway up the caps.

    Attributes:
      field: signed distance at texel centres, [rows cols] float32; row 0 is at the top.
      left, top: position of the corner of texel (0, 0).
      width: of the ink.
      advance: how far the pen goes; the next letter would start there.
      bearing: from where the pen starts to the ink.
      descent: how far the ink hangs below the line: some for J and Q, else 0.
      cap: height of a capital, in radii of the object that shows the text.
    """

    field: Float[np.ndarray, "rows cols"]
    left: float
    top: float
    width: float
    advance: float
    bearing: float
    descent: float
    cap: float

    @property
    def extent(self) -> tuple[float, float]:
        """Half width and half height of the box around the origin that holds the ink, in radii."""
        return self.cap * self.width / 2, self.cap * (0.5 + self.descent)

    def distance(self, x: Field, y: Field) -> Field:
        """Signed distance to the outline in radii, at x (right) and y (down) in radii."""
        rows, cols = self.field.shape
        to_texels = np.float32(TEXELS / self.cap)
        u = np.clip(x * to_texels - np.float32(self.left * TEXELS + 0.5), 0, cols - 1.001)
        v = np.clip(y * to_texels - np.float32(self.top * TEXELS + 0.5), 0, rows - 1.001)
        column, row = u.astype(np.int32), v.astype(np.int32)
        u, v = u - column.astype(np.float32), v - row.astype(np.float32)
        corner = row * np.int32(cols) + column
        texel = self.field.ravel()
        upper = texel[corner] * (1 - u) + texel[corner + 1] * u
        lower = texel[corner + cols] * (1 - u) + texel[corner + cols + 1] * u
        return (upper * (1 - v) + lower * v) * np.float32(self.cap)


@functools.lru_cache(maxsize=512)
def lettering(text: str) -> Lettering:
    """Sets `text`, one or more capitals."""
    glyphs = [_glyph(letter) for letter in text]
    left_bearing, right_bearing = glyphs[0].ink[0], glyphs[-1].advance - glyphs[-1].ink[1]
    pen = np.cumsum([0.0, *(glyph.advance for glyph in glyphs)])
    width = float(pen[-1]) - left_bearing - right_bearing
    rows = glyphs[0].field.shape[0]
    columns = [round(start * TEXELS) for start in pen[:-1]]
    cols = max(c + glyph.field.shape[1] for c, glyph in zip(columns, glyphs, strict=True))
    field = np.full((rows, cols), MARGIN, np.float32)
    for column, glyph in zip(columns, glyphs, strict=True):
        part = field[:, column : column + glyph.field.shape[1]]
        np.minimum(part, glyph.field, out=part)
    cap = LETTER_CAP if len(text) == 1 else min(WORD_CAP, WORD_WIDTH / width)
    descent = DESCENT if set(text) & set("JQ") else 0.02  # round letters overshoot a little
    left, top = -left_bearing - width / 2 - MARGIN, -0.5 - MARGIN
    return Lettering(
        field=field,
        left=left,
        top=top,
        width=width,
        advance=float(pen[-1]),
        bearing=left_bearing,
        descent=descent,
        cap=cap,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Glyph:
    field: Float[np.ndarray, "rows cols"]  # starts MARGIN above the cap line and left of the origin
    advance: float
    ink: tuple[float, float]  # left and right end, from the origin


@functools.cache
def _glyph(letter: str) -> _Glyph:
    font = _font()
    cap_height = font["cap_height"]
    contours = [np.reshape(c, (-1, 2)) / cap_height for c in font["letters"][letter]["contours"]]
    starts = np.concatenate(contours)
    ends = np.concatenate([np.roll(contour, -1, axis=0) for contour in contours])
    advance = font["letters"][letter]["advance"] / cap_height
    rows = round((1 + DESCENT + 2 * MARGIN) * TEXELS)
    cols = round((advance + 2 * MARGIN) * TEXELS)
    y = 1 + MARGIN - (np.arange(rows) + 0.5) / TEXELS  # up from the baseline, as in the font
    x = (np.arange(cols) + 0.5) / TEXELS - MARGIN
    points = np.stack(np.broadcast_arrays(x, y[:, None]), axis=-1).reshape(-1, 2)
    distance = np.minimum(_distance(points, starts, ends), MARGIN)
    signed = np.where(_inside(points, starts, ends), -distance, distance)
    return _Glyph(
        field=signed.reshape(rows, cols).astype(np.float32),
        advance=advance,
        ink=(float(starts[:, 0].min()), float(starts[:, 0].max())),
    )


@functools.cache
def _font() -> dict:
    return json.loads(resources.files(__package__).joinpath("letters.json").read_text())


def _distance(
    points: Float[np.ndarray, "n 2"],
    starts: Float[np.ndarray, "m 2"],
    ends: Float[np.ndarray, "m 2"],
) -> Float[np.ndarray, " n"]:
    """Distance from each point to the nearest of m chords."""
    nearest = np.full(len(points), np.inf)
    for start, end in zip(starts, ends, strict=True):
        chord, to_point = end - start, points - start
        along = np.clip((to_point * chord).sum(-1) / (chord * chord).sum(), 0, 1)
        gap = to_point - along[:, None] * chord
        nearest = np.minimum(nearest, (gap * gap).sum(-1))
    return np.sqrt(nearest)


def _inside(
    points: Float[np.ndarray, "n 2"],
    starts: Float[np.ndarray, "m 2"],
    ends: Float[np.ndarray, "m 2"],
) -> Bool[np.ndarray, " n"]:
    """Even-odd rule: how many chords does a ray to the right cross?"""
    x, y = points.T
    inside = np.zeros(len(points), bool)
    for (x0, y0), (x1, y1) in zip(starts, ends, strict=True):
        if y0 != y1:
            inside ^= ((y0 > y) != (y1 > y)) & (x < x0 + (y - y0) * (x1 - x0) / (y1 - y0))
    return inside
