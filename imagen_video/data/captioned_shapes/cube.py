"""A shaded cube seen from above, in parallel projection; it turns about its vertical axis.

A ray of sight has entered the cube once it has crossed the near planes of all three axes. With the
ray's direction d and start o in the cube's own axes, near plane i is crossed at
-h/|d_i| - o_i/d_i and far plane i at h/|d_i| - o_i/d_i. The starts are linear in the pixel's x and
y, so every edge on the screen is where two linear functions are equal.
"""

import math

import numpy as np
from jaxtyping import Float

from imagen_video.data.captioned_shapes.forms import Field

HALF_EDGE = 0.68  # in radii
ELEVATION = math.radians(30)
TOP_SHADE, SIDE_SHADE, SIDE_SWING = 1.0, 0.72, 0.18  # brightness; a side turned left is lighter
EXTENT = (
    HALF_EDGE * math.sqrt(2),
    HALF_EDGE * (math.cos(ELEVATION) + math.sqrt(2) * math.sin(ELEVATION)),
)


def cube(
    x: Field, y: Field, *, yaw: Float[np.ndarray, " f"], pixels_per_radius: Float[np.ndarray, " f"]
) -> tuple[Field, Field, Field]:
    """Draws a cube in each frame.

    Args:
      x: right of the cube's centre, in radii.
      y: down from it; x and y broadcast to [f h w].
      yaw: angle about the vertical axis, radians.
      pixels_per_radius: how sharp the edges between the faces can be.

    Returns:
      distance: to the silhouette, negative inside, in radii.
      edge: distance to the nearest edge between two visible faces, in radii.
      shade: brightness in [0, 1].
    """
    direction = sight(yaw)
    reach = HALF_EDGE / np.abs(direction)  # axis f
    # Slopes of o_i / d_i for a step to the right and a step down the screen.
    sin, cos, zero = np.sin(yaw), np.cos(yaw), np.zeros_like(yaw)
    sin_e, cos_e = math.sin(ELEVATION), math.cos(ELEVATION)
    slope_x = np.stack([cos, zero, sin]) / direction
    slope_y = np.stack([-sin_e * sin, zero - cos_e, sin_e * cos]) / direction

    outside, lead = [], {}
    for i, j in ((0, 1), (1, 2), (2, 0)):
        step_x, step_y = slope_x[i] - slope_x[j], slope_y[i] - slope_y[j]
        steepness = np.sqrt(step_x**2 + step_y**2)  # so that distances come out in radii
        gap = _per_frame(step_x / steepness) * x + _per_frame(step_y / steepness) * y
        outside.append(np.abs(gap) - _per_frame((reach[i] + reach[j]) / steepness))
        # How far the pixel is on face i's side of the line that faces i and j share.
        lead[i, j] = -gap - _per_frame((reach[i] - reach[j]) / steepness)
        lead[j, i] = -lead[i, j]
    distance = np.maximum(np.maximum(outside[0], outside[1]), outside[2])

    ahead = [np.minimum(lead[i, (i + 1) % 3], lead[i, (i + 2) % 3]) for i in range(3)]
    edge = np.maximum(np.maximum(ahead[0], ahead[1]), ahead[2])
    scale = _per_frame(pixels_per_radius)
    shares = [np.clip(np.float32(0.5) + side * scale, 0, 1) for side in ahead]
    # The near plane of axis i faces against d_i; axes 0 and 2 lie at cos and sin yaw to the right.
    leftness = np.sign(direction) * np.stack([cos, zero, sin])
    shades = np.stack([SIDE_SHADE + SIDE_SWING * leftness[0], zero + TOP_SHADE])
    shades = [*shades, SIDE_SHADE + SIDE_SWING * leftness[2]]
    total = shares[0] + shares[1] + shares[2]
    shade = sum(_per_frame(shades[i]) * shares[i] for i in range(3)) / total
    return distance, edge, shade


def sight(yaw: Float[np.ndarray, " f"]) -> Float[np.ndarray, "3 f"]:
    """Direction of sight in the axes of a cube turned by `yaw` radians; axis 1 is up."""
    cos_e = math.cos(ELEVATION)
    down = np.full_like(yaw, -math.sin(ELEVATION))
    direction = np.stack([cos_e * np.sin(yaw), down, -cos_e * np.cos(yaw)])
    # An axis square to the sight shows no near plane; a hair's breadth off it, it does.
    return np.where(np.abs(direction) < 1e-3, np.copysign(1e-3, direction), direction)


def _per_frame(values: Float[np.ndarray, " f"]) -> Float[np.ndarray, "f 1 1"]:
    return values.astype(np.float32)[:, None, None]
