"""Reads words: the row of letters that explains most of an upright patch.

Nothing is known beforehand: the tilt, the height of the capitals, the line they stand on, how many
letters there are. For each height and line the best row of two to five letters, set with the
font's spacing, is found exactly by dynamic programming over where the next letter starts.
"""

import functools
import itertools
import math

import numpy as np
from jaxtyping import Float
from scipy import ndimage

from imagen_video.data.captioned_shapes.alignment import HALF_PATCH
from imagen_video.data.captioned_shapes.grammar import ALPHABET, WORD_LENGTHS
from imagen_video.data.captioned_shapes.lettering import DESCENT, lettering

CAP = 20  # rows between the line and the top of a capital, in a strip
_TILTS = range(-12, 13, 2)
_CAPS = np.geomspace(0.5, 1.25, 14)  # heights of a capital that are tried, in units
_LINES = np.linspace(-0.12, 0.12, 7)  # middle of the capitals against the centroid, in caps
_ABOVE, _BELOW = 3, 3 + math.ceil(DESCENT * CAP)  # rows of a strip around the capitals
_LEFT = 3  # columns of a letter's window before its pen position
_WINDOW = 34  # columns: the widest letter
_BLUR = 1.0


def spellings(patch: Float[np.ndarray, "h w"], *, count: int = 3) -> list[str]:
    """Returns the likeliest words in `patch`, best first.

    Args:
      patch: coverage of an object in units of its mass, centroid in the middle, about upright.
      count: how many words at most.
    """
    tilt = max(_TILTS, key=lambda degrees: _row_contrast(patch, degrees))
    fits: dict[str, float] = {}
    for cap, line in itertools.product(_CAPS, _LINES):
        word, gain = _best_row(_strip(patch, tilt, cap, line))
        fits[word] = max(fits.get(word, 0.0), gain * cap**2)
    return sorted(fits, key=fits.get, reverse=True)[:count]


def _read(patch: Float[np.ndarray, "h w"], degrees: float, x: Float[np.ndarray, " n"],
          y: Float[np.ndarray, " m"]) -> Float[np.ndarray, "m n"]:
    """The patch at points x, y in units along axes turned by `degrees`."""
    angle = math.radians(degrees)
    right = math.cos(angle) * x - math.sin(angle) * y[:, None]
    down = math.sin(angle) * x + math.cos(angle) * y[:, None]
    to_pixel = len(patch) / (2 * HALF_PATCH)
    at = (down + HALF_PATCH) * to_pixel - 0.5, (right + HALF_PATCH) * to_pixel - 0.5
    return ndimage.map_coordinates(patch, at, order=1)


def _row_contrast(patch: Float[np.ndarray, "h w"], degrees: float) -> float:
    """Largest when the rows run along the line of letters."""
    axis = np.linspace(-HALF_PATCH, HALF_PATCH, len(patch))
    rows = _read(patch, degrees, axis, axis).sum(axis=1)
    return float(rows @ rows)


def _strip(
    patch: Float[np.ndarray, "h w"], degrees: float, cap: float, line: float
) -> Float[np.ndarray, "rows cols"]:
    """The patch with CAP rows to a capital, if capitals are `cap` high and `line` caps off."""
    rows = (np.arange(-_ABOVE, CAP + _BELOW) + 0.5) / CAP - 0.5 + line
    half = math.ceil(HALF_PATCH / cap * CAP)
    return _read(patch, degrees, (np.arange(-half, half) + 0.5) / CAP * cap, rows * cap)


def _best_row(strip: Float[np.ndarray, "rows cols"]) -> tuple[str, float]:
    """The word that takes most off the strip's squared error, and how much, in square caps."""
    windows = np.lib.stride_tricks.sliding_window_view(strip, _WINDOW, axis=1)  # rows starts window
    windows = windows.transpose(1, 0, 2).reshape(windows.shape[1], -1)
    pictures, advances = _alphabet()
    gains = 2 * windows @ pictures.T - (pictures * pictures).sum(axis=1)  # start letter
    starts = np.arange(len(gains))
    best, words = np.zeros(len(gains)), None
    found = ("", 0.0)
    history = []
    for length in range(1, WORD_LENGTHS[-1] + 1):
        # best[p]: of `length - 1` letters whose pen has come to p. One column of play absorbs the
        # rounding of the advances.
        arriving = np.maximum(best, np.maximum(np.roll(best, 1), np.roll(best, -1))) if length > 1 else best
        after = np.full((len(gains), len(ALPHABET)), -np.inf)
        for letter, advance in enumerate(advances):
            total = arriving + gains[:, letter]
            after[advance:, letter] = total[: len(total) - advance]
        letter_at = after.argmax(axis=1)
        history.append(letter_at)
        best = after.max(axis=1)
        end = int(best.argmax())
        if length >= WORD_LENGTHS[0] and best[end] > found[1]:
            found = (_trace(history, end, advances, gains), float(best[end]))
    del starts, words
    return found[0], found[1] / CAP**2
