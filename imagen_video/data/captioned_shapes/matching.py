"""Which shape an object has: the template that explains most of the aligned frames."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from scipy import ndimage

from imagen_video.data.captioned_shapes.alignment import (
    HALF_PATCH,
    PATCH,
    TURNS,
    aligned_patches,
    patch_axis,
)
from imagen_video.data.captioned_shapes.observation import Observation
from imagen_video.data.captioned_shapes.templates import YAW_STEP, YAWS, Template

TILTS = (-12.0, -8.0, -4.0, 0.0, 4.0, 8.0, 12.0)  # degrees; an object at rest stands within 8
SCALES = (0.92, 0.96, 1.0, 1.04, 1.08)  # errors of the measured mass
CUBE_SCALES = (0.96, 1.0, 1.04)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Match:
    """How one candidate fits.

    Attributes:
      shape: SHAPE of the grammar.
      score: cosine between candidate and clip over all frames, noise taken out; 1 is perfect.
      radius: of the object, in square roots of its mass.
      turn: degrees that it turns in the whole clip.
    """

    shape: str
    score: float
    radius: float
    turn: float


class Matcher:
    """One clip, ready to be compared with candidates.

    Attributes:
      coverage: mean of the aligned frames [h w], 1 where the object is if it is flat.
    """

    def __init__(self, seen: Observation, turn: float):
        """Aligns the frames of `seen`, taken to turn by `turn` degrees in the whole clip."""
        self._seen = seen
        self._turn = turn
        self._length = math.sqrt(_energy(seen))
        patch = aligned_patches(seen, turn).mean(axis=0)
        self._trials = _trials(patch @ self._colours())
        to_colour = (seen.colour_rgb - seen.background_rgb).astype(np.float32)
        self.coverage = patch @ (to_colour / (to_colour @ to_colour))

    def upright(self, candidates: Sequence[Template]) -> list[Match]:
        """Compares with flat shapes, at small tilts and errors of size."""
        coverage = np.stack([candidate.coverage for candidate in candidates])
        light = np.stack([candidate.light for candidate in candidates])
        scores = self._scores(self._trials, coverage, light)  # trial candidate blur
        scores *= np.tile(SCALES, len(TILTS))[:, None, None]  # a trial that magnifies adds energy
        best = scores.max(axis=2)
        matches = []
        for k, candidate in enumerate(candidates):
            trial = int(best[:, k].argmax())
            scale = SCALES[trial % len(SCALES)]
            matches.append(
                Match(
                    shape=candidate.shape,
                    score=float(best[trial, k]),
                    radius=candidate.radius * scale,
                    turn=self._turn,
                )
            )
        return matches

    def cube(self, candidates: Sequence[Template]) -> Match:
        """Compares with cubes at all YAWS, one for each frame, that turn steadily or stand."""
        tau = self._seen.tau[self._seen.seen]
        coverage = np.stack([candidate.coverage for candidate in candidates])
        light = np.stack([candidate.light for candidate in candidates])
        # Which template each frame meets, for every turn and every yaw at clip time 0.
        steps = YAWS[:, None] / YAW_STEP + TURNS[:, None, None] * tau / YAW_STEP
        meets = np.rint(steps).astype(int) % len(YAWS)  # turn start frame
        best = Match(shape="cube", score=-1.0, radius=1.0, turn=0.0)
        for scale in CUBE_SCALES:
            patches = aligned_patches(self._seen, 0.0, scale=scale) @ self._colours()
            maps = patches.reshape(len(patches), -1, 2).transpose(0, 2, 1)
            scores = self._scores(maps, coverage, light)  # frame yaw blur
            along = scale * scores[np.arange(len(tau)), meets].mean(axis=2)  # turn start blur
            turn, start, _ = np.unravel_index(along.argmax(), along.shape)
            if along.max() > best.score:
                best = Match(
                    shape="cube",
                    score=float(along.max()),
                    radius=candidates[start].radius * scale,
                    turn=float(TURNS[turn]),
                )
        return best

    def _colours(self) -> Float[np.ndarray, "3 2"]:
        return np.stack([self._seen.colour_rgb, self._seen.background_rgb], axis=1).astype(
            np.float32
        )

    def _scores(
        self,
        maps: Float[np.ndarray, "trials 2 n"],
        coverage: Float[np.ndarray, "k blurs h w"],
        light: Float[np.ndarray, "k blurs h w"],
    ) -> Float[np.ndarray, "trials k blurs"]:
        """Cosines with light * c - coverage * b; `maps` are residuals times c and times b."""
        count, blurs = coverage.shape[:2]
        light, coverage = light.reshape(count * blurs, -1), coverage.reshape(count * blurs, -1)
        along = maps[:, 0] @ light.T - maps[:, 1] @ coverage.T
        c, b = self._seen.colour_rgb, self._seen.background_rgb
        squared = c @ c * _dot(light, light) - 2 * (c @ b) * _dot(light, coverage)
        squared += b @ b * _dot(coverage, coverage)
        return (along / (np.sqrt(squared) * self._length)).reshape(len(maps), count, blurs)


def _dot(a: Float[np.ndarray, "k n"], b: Float[np.ndarray, "k n"]) -> Float[np.ndarray, " k"]:
    return np.einsum("kn,kn->k", a, b)


def _energy(seen: Observation) -> float:
    """Mean energy of the object in an aligned patch, without the share of the noise."""
    total = (seen.residual**2).sum(axis=(1, 2, 3))
    pixels = (seen.residual != 0).any(axis=-1).sum(axis=(1, 2))
    clean = np.maximum(total - pixels * seen.noise_energy, 0.1 * total)
    per_unit = (PATCH / (2 * HALF_PATCH)) ** 2
    return float((clean / seen.mass)[seen.seen].mean() * per_unit)


def _trials(patch: Float[np.ndarray, "h w 2"]) -> Float[np.ndarray, "trials 2 n"]:
    """The patch turned back by each of TILTS and resized by each of SCALES."""
    axis = patch_axis()
    to_pixel = PATCH / (2 * HALF_PATCH)
    trials = []
    for tilt in np.radians(TILTS):
        for scale in SCALES:
            x = scale * (math.cos(tilt) * axis - math.sin(tilt) * axis[:, None])
            y = scale * (math.sin(tilt) * axis + math.cos(tilt) * axis[:, None])
            at = (y + HALF_PATCH) * to_pixel - 0.5, (x + HALF_PATCH) * to_pixel - 0.5
            maps = [ndimage.map_coordinates(patch[..., k], at, order=1) for k in (0, 1)]
            trials.append(np.stack(maps).reshape(2, -1))
    return np.stack(trials).astype(np.float32)
