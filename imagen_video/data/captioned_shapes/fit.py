"""Which motion an object makes: fits of its centroid, area and angle over clip time."""

import dataclasses
import math

import numpy as np
from jaxtyping import Float

from imagen_video.data.captioned_shapes.alignment import TURNS
from imagen_video.data.captioned_shapes.motion import (
    BOUNCES,
    GROWTH,
    MIN_BOUNCE_HEIGHT,
    MIN_TRAVEL,
)
from imagen_video.data.captioned_shapes.observation import SIDE, UNSURE, Observation

_CLEAR = 0.5  # a motion this share of the dataset's least one is there
_FAINT = 0.35  # less than this is none
_LEAD = 1.6  # of two motions, the stronger must be this much stronger
_MAX_WANDER = 0.1  # shorter sides; frames of a moving object out of order stray by 0.1 to 0.3
_MAX_PULSE = 0.2
_FULL_TURN = 180.0  # degrees, the dataset's least
_PHASES = np.linspace(0, 1, 48, endpoint=False)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Course:
    """What the object does in the whole clip.

    Attributes:
      right, down: distance covered by steady motion, in shorter sides of the canvas.
      bounce: height of the arcs above the floor, in shorter sides; 0 where a line fits as well.
      growth: log of last over first size.
      wander: root mean square distance of the centroid from its fitted path, in shorter sides.
      pulse: root mean square deviation of the log of the size from its fit.
      turn: degrees; 0 where the frames agree no better when they are turned back.
      middle_mass: mass at half time, in working pixels.
    """

    right: float
    down: float
    bounce: float
    growth: float
    wander: float
    pulse: float
    turn: float
    middle_mass: float


def course(seen: Observation, *, turn: float) -> Course:
    """Fits the frames of a clip of two frames or more; `turn` is found by comparing pictures."""
    tau = seen.tau[seen.seen]
    log_size = np.log(seen.mass[seen.seen]) / 2
    (_, growth), pulse = _line(tau, log_size)
    (_, right), wander_x = _line(tau, seen.x[seen.seen] / SIDE)
    (_, down), wander_y, bounce = _arcs(tau, seen.y[seen.seen] / SIDE)
    return Course(
        right=right,
        down=down,
        bounce=bounce,
        growth=growth,
        wander=math.hypot(wander_x, wander_y),
        pulse=pulse,
        turn=turn,
        middle_mass=math.exp(2 * (log_size.mean() + growth * (0.5 - tau.mean()))),
    )


def best_turn(gains: Float[np.ndarray, " turns"]) -> float:
    """The turn of TURNS that brings the frames to agreement; 0 if standing does as well.

    Args:
      gains: from `alignment.turn_gains`.
    """
    still = gains[np.abs(TURNS) <= 30].max()
    turning = np.where(np.abs(TURNS) >= 90, gains, 0)
    best = int(turning.argmax())
    return float(TURNS[best]) if turning[best] > 1.4 * still + 0.004 else 0.0


def motion_of(path: Course, *, width: float, height: float) -> str:
    """Names the motion: a MOTION of the grammar, or "unsure".

    Args:
      path: the fits.
      width: of the canvas, in shorter sides.
      height: of the canvas, in shorter sides.
    """
    if path.wander > _MAX_WANDER or path.pulse > _MAX_PULSE:
        return UNSURE
    across, along = path.right / (MIN_TRAVEL * width), path.down / (MIN_TRAVEL * height)
    growth = path.growth / math.log(GROWTH)
    strength = {
        "moving right": across,
        "moving left": -across,
        "moving down": along,
        "moving up": -along,
        "bouncing": path.bounce / (MIN_BOUNCE_HEIGHT * height),
        "spinning": abs(path.turn) / _FULL_TURN,
        "growing": growth,
        "shrinking": -growth,
    }
    first, second = sorted(strength, key=strength.get, reverse=True)[:2]
    if strength[first] < _FAINT:
        return "standing still"
    alone = strength[second] < _CLEAR or strength[first] > _LEAD * strength[second]
    return first if strength[first] >= _CLEAR and alone else UNSURE


def _line(
    tau: Float[np.ndarray, " f"], values: Float[np.ndarray, " f"]
) -> tuple[tuple[float, float], float]:
    """Fits a + b * tau; returns (a, b) and the root mean square error."""
    (start, slope), error = _least_squares(np.stack([np.ones_like(tau), tau], axis=1), values)
    return (float(start), float(slope)), error


def _arcs(
    tau: Float[np.ndarray, " f"], y: Float[np.ndarray, " f"]
) -> tuple[tuple[float, float], float, float]:
    """Fits y = a + b * tau - c * |sin|, c >= 0; returns (a, b), the error, and c.

    c is 0, and the rest a line's, unless the arcs leave a quarter of the line's squared error.
    """
    straight, straight_error = _line(tau, y)
    fits = []
    for phase in _PHASES:
        arcs = -np.abs(np.sin(math.pi * (BOUNCES * tau + phase)))
        basis = np.stack([np.ones_like(tau), tau, arcs], axis=1)
        (start, slope, height), error = _least_squares(basis, y)
        if height > 0 and error < 0.5 * straight_error:
            fits.append((error, float(start), float(slope), float(height)))
    if not fits:
        return straight, straight_error, 0.0
    error, start, slope, height = min(fits)
    return (start, slope), error, height


def _least_squares(
    basis: Float[np.ndarray, "f k"], values: Float[np.ndarray, " f"]
) -> tuple[Float[np.ndarray, " k"], float]:
    fitted, *_ = np.linalg.lstsq(basis, values, rcond=None)
    return fitted, float(np.sqrt(((basis @ fitted - values) ** 2).mean()))
