"""How an object is filled: coverage of each pixel, and brightness of what covers it.

A style changes coverage or brightness, never the hue; `pastel` changes the colour and so is done
where colours are drawn (`palette.py`). Patterns are fixed to the object and turn with it.
"""

import functools

import numpy as np
from jaxtyping import Float

from imagen_video.data.captioned_shapes import cube, forms
from imagen_video.data.captioned_shapes.draws import Draws
from imagen_video.data.captioned_shapes.forms import Field
from imagen_video.data.captioned_shapes.grammar import Phrase, written
from imagen_video.data.captioned_shapes.lettering import lettering
from imagen_video.data.captioned_shapes.motion import Poses

OUTLINE_WIDTH = 0.16  # in radii
OUTLINE_OF_LETTER = 0.07  # of a cap height: letters are thin themselves
STRIPE_PERIOD, STRIPE_SHADE = 0.5, 0.5  # in radii; brightness of every other stripe
TILE, GROUT, GROUT_SHADE = 0.34, 0.05, 0.3  # edge of a mosaic tile and of the joints, in radii
TILE_SHADE = (0.55, 1.0)
# A disc looks the same however it is turned: spinning ones have a darker half that shows the turn.
DARK_HALF = 0.55
ROUND = ("circle", "ring")


def paint(
    x: Float[np.ndarray, "f 1 w"],
    y: Float[np.ndarray, "f h 1"],
    *,
    phrase: Phrase,
    texture: int,
    style: str | None,
    poses: Poses,
    scale: Float[np.ndarray, " f"],
) -> tuple[Float[np.ndarray, "f h w"], Float[np.ndarray, "f h w"]]:
    """Draws one object at the given sample points.

    Args:
      x: sample points right of the object's centre, in radii, float32.
      y: sample points down from it.
      phrase: what it is.
      texture: seeds its mosaic.
      style: of the scene.
      poses: where it is and how turned.
      scale: samples per radius.

    Returns:
      coverage: share of each sample's square that the object covers, in [0, 1].
      light: coverage times brightness, so that averages over samples stay right.
    """
    soft = scale.astype(np.float32)[:, None, None]
    if phrase.shape == "cube":
        u, v = x, y
        distance, edge, shade = cube.cube(x, y, yaw=poses.angle, pixels_per_radius=scale)
    else:
        u, v = _turn(x, y, poses.angle)
        text = written(phrase.shape)
        distance_of = lettering(text).distance if text else forms.DISTANCE[phrase.shape]
        distance, edge, shade = distance_of(u, v), None, None
    if phrase.shape in ROUND and phrase.motion == "spinning":
        shade = 1 - np.float32(1 - DARK_HALF) * _step(v, soft)
    if style == "striped":
        shade = _times(shade, _stripes(u, v, soft))
    if style == "mosaic":
        shade = _times(shade, _mosaic(u, v, texture, soft))
    if style == "outline":
        rim = np.abs(distance) if edge is None else np.minimum(np.abs(distance), edge)
        coverage = _step(-distance, soft) * _step(np.float32(_line_width(phrase.shape)) - rim, soft)
    else:
        coverage = _step(-distance, soft)
    return coverage, coverage if shade is None else coverage * shade


def _turn(x: Field, y: Field, angle: Float[np.ndarray, " f"]) -> tuple[Field, Field]:
    """Coordinates in the axes of an object turned clockwise by `angle`."""
    cos = np.cos(angle).astype(np.float32)[:, None, None]
    sin = np.sin(angle).astype(np.float32)[:, None, None]
    return cos * x + sin * y, cos * y - sin * x


def _step(inside: Field, soft: Field) -> Field:
    """Share of a sample's square on the positive side of a straight edge `inside` radii away."""
    return np.clip(inside * soft + np.float32(0.5), 0, 1)


def _times(shade: Field | None, factor: Field) -> Field:
    return factor if shade is None else shade * factor


def _line_width(shape: str) -> float:
    text = written(shape)
    return lettering(text).cap * OUTLINE_OF_LETTER if text else OUTLINE_WIDTH


def _stripes(u: Field, v: Field, soft: Field) -> Field:
    """Slanting stripes, bright and dark by turns, of equal width."""
    across = (u + v) * np.float32(0.5**0.5 / STRIPE_PERIOD)
    from_middle = np.abs(across - np.floor(across) - np.float32(0.5))
    dark = _step((np.float32(0.25) - from_middle) * np.float32(STRIPE_PERIOD), soft)
    return 1 - np.float32(1 - STRIPE_SHADE) * dark


def _mosaic(u: Field, v: Field, texture: int, soft: Field) -> Field:
    """Square tiles of random brightness with dark joints."""
    shades = _tile_shades(texture)
    column, row = np.floor(u / np.float32(TILE)), np.floor(v / np.float32(TILE))
    middle = len(shades) // 2
    to_index = lambda cell: np.clip(cell.astype(np.int32) + middle, 0, len(shades) - 1)  # noqa: E731
    tile = shades[to_index(row), to_index(column)]
    off_u = np.float32(TILE / 2) - np.abs(u - (column + np.float32(0.5)) * np.float32(TILE))
    off_v = np.float32(TILE / 2) - np.abs(v - (row + np.float32(0.5)) * np.float32(TILE))
    joint = _step(np.float32(GROUT / 2) - np.minimum(off_u, off_v), soft)
    return tile + (np.float32(GROUT_SHADE) - tile) * joint


@functools.lru_cache(maxsize=256)
def _tile_shades(texture: int) -> Float[np.ndarray, "rows cols"]:
    draws = Draws("mosaic", texture)
    count = 32
    return np.array(
        [[draws.uniform(*TILE_SHADE) for _ in range(count)] for _ in range(count)], np.float32
    )
