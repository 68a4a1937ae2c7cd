"""Reads words: the row of letters that explains most of an upright patch.

Nothing is known beforehand: the tilt, the height of the capitals, the line they stand on, how many
letters there are. For each height and line the best row of two to five letters, set with the
font's spacing, is found exactly by dynamic programming over where the next letter starts.
"""

import functools
import itertools
import math

import numpy as np
from jaxtyping import Float, Int
from scipy import ndimage

from imagen_video.data.captioned_shapes.alignment import HALF_PATCH, patch_axis
from imagen_video.data.captioned_shapes.grammar import ALPHABET, WORD_LENGTHS
from imagen_video.data.captioned_shapes.lettering import DESCENT, lettering

CAP = 20  # rows between the line and the top of a capital, in a strip
_TILTS = np.arange(-12.0, 13.0, 2.0).tolist()  # degrees
_CAPS = np.geomspace(0.5, 1.25, 14)  # heights of a capital that are tried, in units
# Middle of the capitals against the centroid, in caps: LLL and JJ are low, TT and PP are high.
_LINES = np.linspace(-0.24, 0.24, 13)
_ABOVE, _BELOW = 3, 3 + math.ceil(DESCENT * CAP)  # rows of a strip around the capitals
_LEFT = 3  # columns of a letter's window before its pen position
_WINDOW = 34  # columns: the widest letter
_BLUR = 1.0


def spellings(patch: Float[np.ndarray, "h w"], *, count: int = 5) -> list[str]:
    """Returns the likeliest words in `patch`, best first; none where letters explain nothing.

    Args:
      patch: coverage of an object in units of its mass, centroid in the middle, about upright.
      count: how many words at most.
    """
    tilt = max(_TILTS, key=lambda degrees: _row_contrast(patch, degrees))
    fits: dict[str, float] = {}
    for cap, line in itertools.product(_CAPS, _LINES):
        word, gain = _best_row(_strip(patch, tilt, cap, line))
        if word:
            fits[word] = max(fits.get(word, 0.0), gain * cap**2)
    return sorted(fits, key=fits.get, reverse=True)[:count]


def _read(
    patch: Float[np.ndarray, "h w"],
    degrees: float,
    x: Float[np.ndarray, " n"],
    y: Float[np.ndarray, " m"],
) -> Float[np.ndarray, "m n"]:
    """The patch at points x, y, in units, along axes turned clockwise by `degrees`."""
    angle = math.radians(degrees)
    right = math.cos(angle) * x - math.sin(angle) * y[:, None]
    down = math.sin(angle) * x + math.cos(angle) * y[:, None]
    to_pixel = len(patch) / (2 * HALF_PATCH)
    at = (down + HALF_PATCH) * to_pixel - 0.5, (right + HALF_PATCH) * to_pixel - 0.5
    return ndimage.map_coordinates(patch, at, order=1)


def _row_contrast(patch: Float[np.ndarray, "h w"], degrees: float) -> float:
    """Largest when the rows run along the line of letters."""
    axis = patch_axis(len(patch))
    rows = _read(patch, degrees, axis, axis).sum(axis=1)
    return float(rows @ rows)


def _strip(
    patch: Float[np.ndarray, "h w"], degrees: float, cap: float, line: float
) -> Float[np.ndarray, "rows cols"]:
    """The patch, CAP rows to a capital, for capitals `cap` high and centred `line` caps down."""
    rows = (np.arange(-_ABOVE, CAP + _BELOW) + 0.5) / CAP - 0.5 + line
    half = math.ceil(HALF_PATCH / cap * CAP) + _WINDOW
    return _read(patch, degrees, (np.arange(-half, half) + 0.5) / CAP * cap, rows * cap)


def _best_row(strip: Float[np.ndarray, "rows cols"]) -> tuple[str, float]:
    """The word that takes most off the strip's squared error, and how much, in square caps."""
    windows = np.lib.stride_tricks.sliding_window_view(strip, _WINDOW, axis=1)  # row start column
    windows = windows.transpose(1, 0, 2).reshape(windows.shape[1], -1)
    pictures, advances = _alphabet()
    gains = 2 * windows @ pictures.T - (pictures * pictures).sum(axis=1)  # start letter
    best = np.zeros(len(gains))  # of all rows that end with the pen at each place
    last, before = [], []  # the last letter of each such row, and where its pen started
    word, most = "", 0.0
    for length in range(1, WORD_LENGTHS[-1] + 1):
        start = _within_one(best) if length > 1 else np.arange(len(best))
        after = np.full((len(gains), len(ALPHABET)), -np.inf)
        for letter, advance in enumerate(advances):
            after[advance:, letter] = (best[start] + gains[:, letter])[:-advance]
        last.append(after.argmax(axis=1))
        before.append(start)
        best = after.max(axis=1)
        end = int(best.argmax())
        if length in WORD_LENGTHS and best[end] > most:
            word, most = _spell(last, before, end), float(best[end])
    return word, most / CAP**2


def _within_one(best: Float[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    """For each place the best place at most one column off: play for rounded advances."""
    padded = np.pad(best, 1, constant_values=-np.inf)
    choices = np.stack([padded[1:-1], padded[:-2], padded[2:]])
    return np.arange(len(best)) + np.array([0, -1, 1])[choices.argmax(axis=0)]


def _spell(last: list[Int[np.ndarray, " n"]], before: list[Int[np.ndarray, " n"]], end: int) -> str:
    """Goes back from the end of the best row."""
    word, advances = "", _alphabet()[1]
    for letters, starts in zip(reversed(last), reversed(before), strict=True):
        letter = letters[end]
        word = ALPHABET[letter] + word
        end = starts[end - advances[letter]]
    return word


@functools.cache
def _alphabet() -> tuple[Float[np.ndarray, "letters n"], list[int]]:
    """Pictures of the letters in a window, flattened, and how many columns the pen goes on."""
    y = (np.arange(-_ABOVE, CAP + _BELOW) + 0.5) / CAP - 0.5
    x = (np.arange(_WINDOW) - _LEFT + 0.5) / CAP
    pictures, advances = [], []
    for letter in ALPHABET:
        text = lettering(letter)
        right = (x - text.bearing - text.width / 2).astype(np.float32)
        distance = text.distance(
            right * np.float32(text.cap), y.astype(np.float32)[:, None] * np.float32(text.cap)
        )
        coverage = np.clip(0.5 - distance / text.cap * CAP, 0, 1)
        pictures.append(ndimage.gaussian_filter(coverage, _BLUR).ravel())
        advances.append(round(text.advance * CAP))
    return np.stack(pictures), advances
