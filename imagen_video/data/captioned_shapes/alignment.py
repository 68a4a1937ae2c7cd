"""Frames brought to one place and size, and the turn between them.

The unit of length is the square root of the object's mass, so sizes cancel without any threshold.
"""

import math

import numpy as np
from jaxtyping import Float

from imagen_video.data.captioned_shapes.observation import Observation

PATCH = 72  # pixels of an aligned patch
HALF_PATCH = 1.8  # half its width, in units; a word of five letters reaches 1.7
TURNS = np.arange(-330.0, 331.0, 5.0)  # degrees in the whole clip that are tried
_RADII = np.linspace(0.08, 1.7, 22)
_ANGLES = 128
_HARMONICS = 24


def patch_axis(pixels: int = PATCH) -> Float[np.ndarray, " n"]:
    """Coordinates of the pixel centres along one side of a patch, in units."""
    return ((np.arange(pixels) + 0.5) / pixels * 2 - 1) * HALF_PATCH


def sample(
    seen: Observation, frame: int, x: Float[np.ndarray, "..."], y: Float[np.ndarray, "..."]
) -> Float[np.ndarray, "... 3"]:
    """Reads the residual of one frame, bilinearly, at points in working pixels; zero outside."""
    height, width = seen.height, seen.width
    u, v = x - 0.5, y - 0.5
    column, row = np.floor(u).astype(np.int64), np.floor(v).astype(np.int64)
    u, v = (u - column)[..., None].astype(np.float32), (v - row)[..., None].astype(np.float32)
    inside = (column >= 0) & (column < width - 1) & (row >= 0) & (row < height - 1)
    corner = np.where(inside, row * width + column, 0)
    pixels = seen.residual[frame].reshape(-1, 3)
    upper = pixels[corner] * (1 - u) + pixels[corner + 1] * u
    lower = pixels[corner + width] * (1 - u) + pixels[corner + width + 1] * u
    return (upper * (1 - v) + lower * v) * inside[..., None]


def turn_gains(seen: Observation) -> Float[np.ndarray, " turns"]:
    """How well the frames agree when each is turned back, for every turn of TURNS.

    In polar coordinates a turn is a phase of the harmonics over the angle, so that the mean over
    frames of the turned-back pictures is one sum. Returns the energy of that mean over the mean
    energy of the frames, angle-free part left out: 0 for a disc, 1 for a rigid wheel of spokes.
    """
    angle = np.arange(_ANGLES) * (2 * math.pi / _ANGLES)
    spectra = []
    for k in np.flatnonzero(seen.seen).tolist():
        unit = math.sqrt(seen.mass[k])
        x = seen.x[k] + unit * _RADII[:, None] * np.cos(angle)
        y = seen.y[k] + unit * _RADII[:, None] * np.sin(angle)
        spectra.append(np.fft.rfft(sample(seen, k, x, y), axis=1)[:, : _HARMONICS + 1])
    spectrum = np.stack(spectra) * np.sqrt(_RADII)[:, None, None]  # frame radius harmonic channel
    energy = (np.abs(spectrum) ** 2).sum(axis=(1, 3)).mean(axis=0)
    harmonic = np.arange(1, _HARMONICS + 1)[:, None, None]
    tau = seen.tau[seen.seen]
    back = np.exp(1j * harmonic * np.radians(TURNS)[:, None] * tau) / len(tau)
    turning = spectrum[:, :, 1:].transpose(2, 0, 1, 3).reshape(_HARMONICS, len(tau), -1)
    mean = np.matmul(back, turning)  # harmonic turn rest
    return (np.abs(mean) ** 2).sum(axis=(0, 2)) / (0.5 * energy[0] + energy[1:].sum())


def aligned_patches(
    seen: Observation, turn: float, *, scale: float = 1.0, pixels: int = PATCH
) -> Float[np.ndarray, "f h w 3"]:
    """Residuals of the frames with an object, moved to the middle, sized to one unit, turned back.

    Args:
      seen: the clip.
      turn: degrees that the object turns in the whole clip; it is shown as at clip time 0.
      scale: how much larger than its mass says the object is taken to be.
      pixels: height and width of a patch.
    """
    axis = patch_axis(pixels)
    patches = []
    for k in np.flatnonzero(seen.seen).tolist():
        unit = scale * math.sqrt(seen.mass[k])
        angle = math.radians(turn * seen.tau[k])
        x = unit * (math.cos(angle) * axis - math.sin(angle) * axis[:, None])
        y = unit * (math.sin(angle) * axis + math.cos(angle) * axis[:, None])
        patches.append(sample(seen, k, seen.x[k] + x, seen.y[k] + y))
    return np.stack(patches)
