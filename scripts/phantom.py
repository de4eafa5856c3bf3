"""Short-axis cardiac phantoms: anatomy drawn from a random patient, rendered with what makes real MR hard.

Lengths are millimetres, intensities are relative to blood in a bright scan (about 1), angles are radians. The scene's u
axis points from the septum to the lateral wall (right in the image), v downwards; `t` runs from base (0) to apex (1).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

Array = NDArray[np.float64]
RV, MYOCARDIUM, LV = 1, 2, 3
GROUPS = ("normal", "dilated", "hypertrophic", "infarcted", "right ventricle")


@dataclass(frozen=True)
class Scan:
    """One frame.

    Attributes:
        image: int16 intensities, (slices, H, W).
        label: uint8, 0 background, 1 RV, 2 myocardium, 3 LV, (slices, H, W).
    """

    image: NDArray[np.int16]
    label: NDArray[np.uint8]


class Patient:
    """A random patient: end diastole and end systole share anatomy, contrast and surroundings.

    Args:
        seed: of everything; the same numbers give the same patient.
        size: range of the image's sides in voxels, inclusive.
    """

    def __init__(self, seed: tuple[int, ...], size: tuple[int, int] = (64, 80)) -> None:
        self.rng = rng = np.random.default_rng(seed)
        uniform = rng.uniform
        height, width = (int(side) for side in rng.integers(size[0], size[1] + 1, 2))
        slices = int(rng.integers(6, 9))
        self.shape = (slices, height, width)
        spacing = round(float(uniform(1.4, 1.8)) * 72 / max(72, min(height, width)), 3)
        self.spacing = (spacing, spacing, 10.0)
        self.group = GROUPS[int(rng.integers(len(GROUPS)))]

        # Left ventricle at end diastole; group means follow the pathologies that cardiac MR is asked about.
        self.lv_radius = uniform(18, 23) + {"dilated": 8, "hypertrophic": -3}.get(self.group, 0)
        self.wall = uniform(6.5, 9) + {"dilated": -1.5, "hypertrophic": 6}.get(self.group, 0)
        self.squeeze = uniform(0.55, 0.72) + {"dilated": 0.2, "infarcted": 0.12}.get(self.group, 0)
        self.shortening = uniform(0.02, 0.16)
        self.t = np.linspace(uniform(0.0, 0.1), uniform(0.84, 1.02), slices)[:, None, None]
        self.oval, self.oval_phase = uniform(0, 0.09), uniform(0, np.pi)
        self.thick_phase = uniform(-0.8, 0.8) + np.pi * (self.group == "hypertrophic")
        self.thick = {"infarcted": -uniform(0.35, 0.6), "hypertrophic": uniform(0.1, 0.4)}.get(self.group, 0.0)

        # Right ventricle: an ellipse behind the septum.
        self.rv_width = uniform(17, 25) + (uniform(6, 12) if self.group == "right ventricle" else 0)
        self.rv_length = uniform(0.95, 1.2)
        self.rv_end = uniform(0.68, 0.95)
        self.rv_squeeze = uniform(0.68, 0.88)
        self.rv_phase = np.pi + uniform(-0.3, 0.3)

        # Where the scene lies in the image; breath-holds shift the slices against each other.
        self.angle = uniform(-0.55, 0.55)
        self.scale = uniform(0.82, 1.12)
        self.centre = uniform(-7, 7, 2) + np.array([8.0, 0.0])
        self.breath = rng.normal(0, 1.3, (2, slices, 1, 1))

        # Contrast of the scanner and sequence.
        self.blood = uniform(0.62, 1.05)
        self.rv_blood = self.blood * uniform(0.82, 1.12)
        self.muscle = self.blood * uniform(0.22, 0.6)
        self.fat = uniform(0.35, 1.15)
        self.liver = uniform(0.2, 0.75)
        self.lung = uniform(0.03, 0.2)
        self.stomach = uniform(0.1, 1.0)
        self.papillary = uniform(0.3, 1.0)
        self.fat_rim = uniform(0, 7)
        self.chest = uniform(16, 32)
        self.liver_depth = uniform(4, 26)
        self.blur = uniform(0.35, 0.85)
        self.noise = uniform(0.02, 0.075)
        self.texture = uniform(0.04, 0.13)
        self.bias = uniform(0.15, 0.55)
        self.gamma = uniform(0.75, 1.35)
        self.unit = uniform(180, 900)
        self.blobs = rng.uniform(-1, 1, (14, 4))
        self.surroundings_texture = self._smooth_noise(2.0)

    def scan(self, systole: bool) -> Scan:
        """Render one of the two frames."""
        u, v = self._scene_axes()
        image = self._surroundings(u, v)
        image, label = self._heart(image, u, v, systole)
        return Scan(self._acquire(image), label)

    def _scene_axes(self) -> tuple[Array, Array]:
        """Scene coordinates of every voxel, each (slices, H, W)."""
        _, height, width = self.shape
        x = (np.arange(width) - (width - 1) / 2)[None, None, :] * self.spacing[0] - self.centre[0] - self.breath[0]
        y = (np.arange(height) - (height - 1) / 2)[None, :, None] * self.spacing[1] - self.centre[1] - self.breath[1]
        cos, sin = np.cos(self.angle), np.sin(self.angle)
        u, v = (cos * x + sin * y) / self.scale, (cos * y - sin * x) / self.scale
        for (a, b, phase, more), length in zip(self.blobs[4:8], (75, 60, 50, 40), strict=True):  # nothing is a circle
            u, v = (
                u + 0.045 * length * a * np.sin(2 * np.pi * v / length + 3 * phase),
                v + 0.045 * length * b * np.sin(2 * np.pi * u / length + 3 * more),
            )
        return u, v

    def _surroundings(self, u: Array, v: Array) -> Array:
        """Lung, chest wall, liver, stomach, aorta and vessels, the distractors that are as bright as blood."""
        depth = np.linspace(0, 1, self.shape[0])[:, None, None]
        image = np.full(self.shape, self.lung)
        for a, b, c, d in self.blobs:  # pulmonary vessels
            vessel = np.hypot(u - 62 * a - 8 * depth, v - 62 * b - 8 * c * depth) - (2.5 + 1.5 * d)
            image = _paint(image, vessel, self.blood * (0.6 + 0.3 * c))
        stomach = np.hypot((u - 34 - 14 * self.blobs[0, 0]) / 1.5, v - 58 + 10 * depth) - 17
        image = _paint(image, stomach, self.stomach)
        curve = 0.004 * (u + 30) ** 2
        liver = (46 - self.liver_depth * depth) - v + 0.55 * u + curve
        image = _paint(image, liver, self.liver * (1 + 0.8 * self.texture * self.surroundings_texture))
        wall = v + 0.5 * u + 68 - self.chest - 0.003 * (u - v) ** 2
        image = _paint(image, wall, self.fat)
        image = _paint(image, wall + 7, 0.5 * self.muscle + 0.1)
        image = _paint(image, wall + 15, self.fat)
        aorta = np.hypot(u - 52 - 5 * self.blobs[1, 0], v - 30 - 6 * self.blobs[1, 1])
        image = _paint(image, aorta - 12.5, self.muscle)
        return _paint(image, aorta - 10.5, self.blood * 0.95)

    def _heart(self, image: Array, u: Array, v: Array, systole: bool) -> tuple[Array, NDArray[np.uint8]]:
        shortening = self.shortening if systole else 0.0
        t = (self.t - shortening) / (1 - shortening)
        inside = t >= 0  # above the base lie the atria, which are bright and not labelled
        t = np.clip(t, 0, None)

        radius, angle = np.hypot(u, v), np.arctan2(v, u)
        cavity, wall = self.lv_radius, self.wall
        if systole:  # the wall keeps its area in the plane
            cavity = self.squeeze * self.lv_radius
            wall = np.sqrt((self.lv_radius + self.wall) ** 2 - self.lv_radius**2 + cavity**2) - cavity
        oval = 1 + self.oval * np.cos(2 * (angle - self.oval_phase))
        regional = 1 + self.thick * np.exp(2.5 * (np.cos(angle - self.thick_phase) - 1)) * (t > 0.15)
        endo = cavity * np.sqrt(np.clip(1 - t**2.2, 0, None)) * oval
        outer = np.sqrt(np.clip(1 - (t / 1.12) ** 2.2, 0, None))
        epi = np.maximum(endo + wall * (0.65 + 0.35 * outer) * regional, (cavity + wall) * outer * 0.55)
        epi = np.where(outer > 0, epi, 0)

        squeeze = self.rv_squeeze if systole else 1.0
        taper = np.clip(1 - np.clip(t / self.rv_end, 0, None) ** 2.5, 0, None) ** 0.6
        along = u * np.cos(self.rv_phase) + v * np.sin(self.rv_phase)
        across = v * np.cos(self.rv_phase) - u * np.sin(self.rv_phase)
        heart, width = (cavity + wall) * np.maximum(outer, 0.1), self.rv_width * squeeze * taper
        half_along = (1.15 * heart + width) / 2  # from just beyond the middle of the LV to the free wall
        half_across = heart * self.rv_length * (0.5 + 0.5 * taper)
        ellipse = np.hypot((along - (0.85 * heart + width) / 2) / half_along, across / half_across) - 1
        rv = np.where(taper > 0, ellipse * np.minimum(half_along, half_across), 99.0)

        lv_wall, lv = radius - epi, radius - endo
        rim = self.fat_rim * (0.45 - 0.55 * np.cos(angle - self.angle - 1.2))
        image = _paint(image, np.minimum(lv_wall, rv - 3.0) - rim, self.fat)
        image = _paint(image, np.minimum(lv_wall, rv - 3.0), self.muscle)
        rough = 1.4 * self._smooth_noise(1.5)
        image = _paint(image, np.maximum(rv + np.abs(rough), -lv_wall), self.rv_blood)
        image = _paint(image, np.where(inside, lv_wall, 99), self.muscle)
        image = _paint(image, np.where(inside, lv, lv_wall + 2.5), self.blood * (1 + 0.06 * rough))
        for side in (-1.0, 1.0):  # papillary muscles belong to the cavity in the label
            heading = 0.3 + side * (0.85 + 0.2 * self.blobs[2, 0])
            muscle = np.hypot(u - 0.66 * endo * np.cos(heading), v - 0.66 * endo * np.sin(heading)) - 0.17 * endo
            image = _paint(image, np.where(inside & (t > 0.15) & (t < 0.85), muscle, 99), self.muscle, self.papillary)

        label = np.zeros(self.shape, np.uint8)
        label[(rv < 0) & inside] = RV
        label[(lv_wall < 0) & inside] = MYOCARDIUM
        label[(lv < 0) & inside] = LV
        return image, label

    def _acquire(self, image: Array) -> NDArray[np.int16]:
        """Texture, partial volume, coil sensitivity, contrast curve, slice gain and Rician noise."""
        slices, height, width = self.shape
        image = image * (1 + self.texture * self._smooth_noise(1.0))
        image = gaussian_filter(image, (0.12, self.blur, self.blur))
        y, x = np.linspace(-1, 1, height)[:, None], np.linspace(-1, 1, width)
        a, b, c, d = self.blobs[3]
        image = image * np.exp(self.bias * (a * x + b * y - abs(c) * (x**2 + y**2) + d * x * y))
        image = np.clip(image, 0, None) ** self.gamma * self.rng.uniform(0.92, 1.08, (slices, 1, 1))
        real, imaginary = self.rng.normal(0, self.noise, (2, *self.shape))
        return np.round(self.unit * np.hypot(image + real, imaginary)).astype(np.int16)

    def _smooth_noise(self, sigma: float) -> Array:
        """Noise with unit standard deviation, smooth over `sigma` voxels in the plane."""
        noise = gaussian_filter(self.rng.normal(size=self.shape), (0, sigma, sigma))
        return noise / noise.std()


def _paint(image: Array, distance: Array, value: Array | float, opacity: float = 1.0) -> Array:
    """Put a tissue where the signed distance (mm) is negative, with a soft edge for partial volume."""
    cover = opacity / (1 + np.exp(np.clip(distance / 0.45, -50, 50)))
    return image + cover * (value - image)
