"""The flat forms as signed distance functions, in units of the object's radius.

Each takes float arrays x (right) and y (down) that broadcast together and returns the distance to
the outline, negative inside, exact near straight edges and arcs. Only sums, products, square roots
and comparisons occur, so that a pixel's value does not depend on which other pixels are computed.
Sizes are chosen so that all forms of one size word look equally large.
"""

import math
from collections.abc import Callable

import numpy as np
from jaxtyping import Float

Field = Float[np.ndarray, "..."]

SQUARE_HALF_SIDE = math.sqrt(math.pi) / 2  # the area of the circle
TRIANGLE_CIRCUMRADIUS = 1.2
STAR_OUTER, STAR_INNER = 1.15, 0.53
CROSS_HALF_LENGTH, CROSS_HALF_WIDTH = 1.05, 0.37
RING_OUTER, RING_INNER = 1.0, 0.55
HEART_SCALE = 1.75
HEART_CENTROID = (0.25 + math.pi / 8 * 0.75 + 1 / 24) / (0.5 + math.pi / 8)  # above the tip

# Half width and half height of the box around the centroid that holds the form.
EXTENT = {
    "circle": (1.0, 1.0),
    "square": (SQUARE_HALF_SIDE, SQUARE_HALF_SIDE),
    "triangle": (TRIANGLE_CIRCUMRADIUS * math.sqrt(0.75), TRIANGLE_CIRCUMRADIUS),
    "star": (STAR_OUTER * math.cos(math.radians(18)), STAR_OUTER),
    "cross": (CROSS_HALF_LENGTH, CROSS_HALF_LENGTH),
    "ring": (RING_OUTER, RING_OUTER),
    "heart": (HEART_SCALE * (0.25 + math.sqrt(0.125)), HEART_SCALE * HEART_CENTROID),
}
# Radius of the circle around the centroid that holds the form however it is turned.
REACH = {
    "circle": 1.0,
    "square": SQUARE_HALF_SIDE * math.sqrt(2),
    "triangle": TRIANGLE_CIRCUMRADIUS,
    "star": STAR_OUTER,
    "cross": math.hypot(CROSS_HALF_LENGTH, CROSS_HALF_WIDTH),
    "ring": RING_OUTER,
    "heart": HEART_SCALE * HEART_CENTROID,
}


def circle(x: Field, y: Field) -> Field:
    """A disc of radius 1."""
    return np.sqrt(x * x + y * y) - np.float32(1)


def ring(x: Field, y: Field) -> Field:
    """A disc with a round hole."""
    middle, half = (RING_OUTER + RING_INNER) / 2, (RING_OUTER - RING_INNER) / 2
    return np.abs(np.sqrt(x * x + y * y) - np.float32(middle)) - np.float32(half)


def square(x: Field, y: Field) -> Field:
    """A square with level sides."""
    return np.maximum(np.abs(x), np.abs(y)) - np.float32(SQUARE_HALF_SIDE)


def triangle(x: Field, y: Field) -> Field:
    """An equilateral triangle that points up."""
    slopes = np.float32(math.sqrt(0.75)) * np.abs(x) - np.float32(0.5) * y
    return np.maximum(slopes, y) - np.float32(TRIANGLE_CIRCUMRADIUS / 2)


def cross(x: Field, y: Field) -> Field:
    """Two equal bars, upright and level."""
    x, y = np.abs(x), np.abs(y)
    length, width = np.float32(CROSS_HALF_LENGTH), np.float32(CROSS_HALF_WIDTH)
    return np.maximum(np.maximum(x, y) - length, np.minimum(x, y) - width)


def star(x: Field, y: Field) -> Field:
    """A star of five points, one of them up."""
    # Three mirrors fold the plane into the wedge between a tip and the notch next to it.
    x, y = np.abs(x), -y
    for mirror in (1, -1):
        normal_x = np.float32(mirror * math.cos(math.radians(36)))
        normal_y = np.float32(-math.sin(math.radians(36)))
        behind = 2 * np.maximum(normal_x * x + normal_y * y, 0)
        x, y = x - normal_x * behind, y - normal_y * behind
    x = np.abs(x)
    # In the wedge the outline is the straight line from the tip (0, outer) to the notch.
    notch_x = STAR_INNER * math.sin(math.radians(36))
    notch_y = STAR_INNER * math.cos(math.radians(36))
    along_x, along_y = notch_x, notch_y - STAR_OUTER
    length = math.hypot(along_x, along_y)
    return np.float32(-along_y / length) * x + np.float32(along_x / length) * (
        y - np.float32(STAR_OUTER)
    )


def heart(x: Field, y: Field) -> Field:
    """A square on its corner with half a disc on each upper side."""
    scale = np.float32(HEART_SCALE)
    x, y = np.abs(x) / scale, np.float32(HEART_CENTROID) - y / scale
    quarter, three = np.float32(0.25), np.float32(0.75)
    lobe = np.sqrt((x - quarter) ** 2 + (y - three) ** 2) - np.float32(math.sqrt(0.125))
    on_side = np.maximum(x + y, 0) / 2
    to_side = np.sqrt((x - on_side) ** 2 + (y - on_side) ** 2)
    to_cleft = np.sqrt(x * x + (y - 1) ** 2)
    square_part = np.minimum(to_side, to_cleft) * np.where(x > y, np.float32(1), np.float32(-1))
    return np.where(x + y > 1, lobe, square_part) * scale


DISTANCE: dict[str, Callable[[Field, Field], Field]] = {
    "circle": circle,
    "square": square,
    "triangle": triangle,
    "star": star,
    "cross": cross,
    "ring": ring,
    "heart": heart,
}
