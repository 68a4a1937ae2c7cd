"""Where an object is, how large and how turned, as a function of clip time.

Clip time tau runs over [0, 1): frame k of F is at tau = k / F, so frame k of 8 is frame 8k of 64
and skipping frames changes nothing. A clip always shows the whole motion, however long it lasts.
Lengths are fractions of the canvas' shorter side, x to the right and y down.
"""

import dataclasses
import math

import numpy as np
from jaxtyping import Float

from imagen_video.data.captioned_shapes import cube, forms
from imagen_video.data.captioned_shapes.grammar import Phrase, written
from imagen_video.data.captioned_shapes.lettering import lettering
from imagen_video.data.captioned_shapes.scene import Body, Scene

MARGIN = 0.02  # kept free at the border
TRAVEL = (0.45, 0.65)  # of the canvas, drawn; as much of it as there is room for
MIN_TRAVEL = 0.42  # of the canvas: a large object leaves it by a little rather than move less
BOUNCES = 2
BOUNCE_HEIGHT = (0.35, 0.5)  # of the canvas, drawn; as much of it as there is room for
MIN_BOUNCE_HEIGHT = 0.3
GROWTH = 2.25  # last diameter over first


@dataclasses.dataclass(frozen=True, kw_only=True)
class Poses:
    """One object in f frames.

    Attributes:
      x, y: centre.
      radius: half the diameter.
      angle: radians, clockwise on the screen; for a cube the angle about its vertical axis.
    """

    x: Float[np.ndarray, " f"]
    y: Float[np.ndarray, " f"]
    radius: Float[np.ndarray, " f"]
    angle: Float[np.ndarray, " f"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Room:
    """The part of the canvas that belongs to one object: [left, right] by [top, bottom]."""

    left: float
    right: float
    top: float
    bottom: float


def extent(shape: str) -> tuple[float, float]:
    """Half width and half height of the box that holds an upright `shape` of radius 1."""
    if text := written(shape):
        return lettering(text).extent
    return cube.EXTENT if shape == "cube" else forms.EXTENT[shape]


def reach(shape: str) -> float:
    """Radius of the circle that holds a `shape` of radius 1 however it is turned."""
    return forms.REACH[shape] if shape in forms.REACH else math.hypot(*extent(shape))


def rooms(number: int, *, width: float, height: float) -> list[Room]:
    """Divides the canvas among its objects, in the order they are named.

    Two share it as left and right, or as top and bottom where it is higher than wide.
    """
    if number == 1:
        return [Room(left=0.0, right=width, top=0.0, bottom=height)]
    if width >= height:
        halves = (0.0, width / 2), (width / 2, width)
        return [Room(left=left, right=right, top=0.0, bottom=height) for left, right in halves]
    halves = (0.0, height / 2), (height / 2, height)
    return [Room(left=0.0, right=width, top=top, bottom=bottom) for top, bottom in halves]


def scene_poses(
    scene: Scene, tau: Float[np.ndarray, " f"], *, width: float, height: float
) -> list[Poses]:
    """Poses of every object of `scene` on a canvas of width x height shorter sides."""
    given = rooms(len(scene.bodies), width=width, height=height)
    triples = zip(scene.caption.objects, scene.bodies, given, strict=True)
    return [poses(phrase, body, tau, room) for phrase, body, room in triples]


def poses(phrase: Phrase, body: Body, tau: Float[np.ndarray, " f"], room: Room) -> Poses:
    """Poses of one object at clip times `tau`, inside `room`."""
    motion = phrase.motion
    radius = np.full_like(tau, body.radius)
    angle = np.full_like(tau, body.tilt)
    half_width, half_height = (body.radius * half for half in _tilted_extent(phrase, body))
    if motion == "spinning":
        angle = angle + body.turn * tau
        if phrase.shape != "cube":
            half_width = half_height = body.radius * reach(phrase.shape)
    if motion in ("growing", "shrinking"):
        exponent = tau - 0.5 if motion == "growing" else 0.5 - tau
        radius = radius * GROWTH**exponent
        half_width, half_height = math.sqrt(GROWTH) * half_width, math.sqrt(GROWTH) * half_height

    free_x = _free(room.left, room.right, half_width)
    free_y = _free(room.top, room.bottom, half_height)
    x = np.full_like(tau, _at(free_x, body.across))
    y = np.full_like(tau, _at(free_y, body.down))
    progress = 1 - tau if motion in ("moving left", "moving up") else tau
    if motion in ("moving left", "moving right"):
        x = _path(free_x, body.across, room.right - room.left, body.travel, progress)
    if motion in ("moving up", "moving down"):
        y = _path(free_y, body.down, room.bottom - room.top, body.travel, progress)
    if motion == "bouncing":
        y = _bounce(free_y, room.bottom - room.top, body, tau)
    return Poses(x=x, y=y, radius=radius, angle=angle)


def _tilted_extent(phrase: Phrase, body: Body) -> tuple[float, float]:
    half_width, half_height = extent(phrase.shape)
    if phrase.shape == "cube":
        return half_width, half_height
    cos, sin = math.cos(body.tilt), abs(math.sin(body.tilt))
    return cos * half_width + sin * half_height, sin * half_width + cos * half_height


def _free(low: float, high: float, half: float) -> tuple[float, float]:
    """Where the centre of something 2 * half long may be between two borders."""
    low, high, middle = low + half + MARGIN, high - half - MARGIN, (low + high) / 2
    return (low, high) if low < high else (middle, middle)


def _at(free: tuple[float, float], share: float) -> float:
    return free[0] + share * (free[1] - free[0])


def _span(
    free: tuple[float, float], share: float, *, wanted: float, least: float
) -> tuple[float, float]:
    """First and last point of a path in `free`; it overhangs evenly if it must be longer."""
    room = free[1] - free[0]
    span = max(least, min(wanted, room))
    start = free[0] + (share if span < room else 0.5) * (room - span)
    return start, start + span


def _path(
    free: tuple[float, float],
    share: float,
    length: float,
    travel: float,
    progress: Float[np.ndarray, " f"],
) -> Float[np.ndarray, " f"]:
    """Steady motion along one side, `length` long, of the room; `progress` is in [0, 1]."""
    wanted = length * (TRAVEL[0] + travel * (TRAVEL[1] - TRAVEL[0]))
    start, end = _span(free, share, wanted=wanted, least=MIN_TRAVEL * length)
    return start + (end - start) * progress


def _bounce(
    free: tuple[float, float], length: float, body: Body, tau: Float[np.ndarray, " f"]
) -> Float[np.ndarray, " f"]:
    """Arcs of |sin| above a floor, BOUNCES of them in a clip."""
    wanted = length * (BOUNCE_HEIGHT[0] + body.travel * (BOUNCE_HEIGHT[1] - BOUNCE_HEIGHT[0]))
    top, floor = _span(free, body.down, wanted=wanted, least=MIN_BOUNCE_HEIGHT * length)
    return floor - (floor - top) * np.abs(np.sin(math.pi * (BOUNCES * tau + body.phase)))
