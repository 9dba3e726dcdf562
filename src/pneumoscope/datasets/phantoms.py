"""Simulates frontal chest radiographs with known truth: for demos and tests, never for medicine.

A phantom is drawn as a radiograph is taken. Anatomy is a set of thickness maps: outlines (body, lungs, heart and
mediastinum) are distances from the midline at each body level, and everything long and round (ribs, spine, clavicles,
vessels, airways) is a tube in space, projected along the ray. Thickness determines attenuation, attenuation the
transmitted quanta, and these noise, blur and grey levels. Pneumonia replaces some of the air in a lung by fluid.

Coordinates are the patient's: x to the image's right (the patient's left), y down, z towards the front; one unit is
half the height of an image taken at scale 1. Anatomy, pose and exposure, and opacity have random streams of their own,
so that the label affects nothing but the opacity.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from PIL import Image

from pneumoscope.config import Seed, checked
from pneumoscope.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.random import Generator
    from numpy.typing import ArrayLike, NDArray

    Map: TypeAlias = NDArray[np.float32]
    Points: TypeAlias = NDArray[np.float64]
    Table: TypeAlias = tuple[tuple[float, float], ...]

_DEEPEST = 1.5  # body levels (y) run from -_DEEPEST to +_DEEPEST

# (level, distance) pairs: half widths and depths at body levels; smoothed below.
# fmt: off
_BODY_WIDTH = ((-1.05, 0.30), (-0.92, 0.36), (-0.82, 0.66), (-0.7, 0.98), (-0.5, 1.06), (-0.1, 0.97), (0.9, 0.91))
_BODY_DEPTH = ((-1.0, 0.42), (-0.7, 0.50), (-0.4, 0.64), (0.0, 0.72), (0.5, 0.74), (1.0, 0.72))
_LUNG_LATERAL = ((-0.8, 0.24), (-0.72, 0.39), (-0.6, 0.52), (-0.4, 0.64), (-0.1, 0.74), (0.3, 0.80), (0.9, 0.80))
_LUNG_MEDIAL = ((-0.8, 0.24), (-0.72, 0.14), (-0.6, 0.10), (-0.4, 0.05), (0.0, 0.04), (0.9, 0.04))
_LUNG_DEPTH = ((-0.82, 0.0), (-0.7, 0.20), (-0.5, 0.40), (-0.1, 0.56), (0.4, 0.60), (0.9, 0.58))
_HEART_RIGHT = ((-0.9, 0.09), (-0.5, 0.14), (-0.2, 0.15), (-0.05, 0.18), (0.1, 0.24), (0.25, 0.26), (0.4, 0.23),
                (0.7, 0.1))
_HEART_LEFT = ((-0.9, 0.09), (-0.5, 0.14), (-0.4, 0.16), (-0.31, 0.21), (-0.22, 0.18), (-0.1, 0.23), (0.05, 0.32),
               (0.2, 0.43), (0.35, 0.49), (0.45, 0.48), (0.55, 0.40), (0.75, 0.2))
_HEART_DEPTH = ((-0.8, 0.10), (-0.5, 0.24), (-0.3, 0.32), (0.1, 0.46), (0.4, 0.48), (0.8, 0.40))
# fmt: on


@dataclass(frozen=True)
class Phantom:
    """One simulated frontal radiograph and the truth about it."""

    pixels: NDArray[np.float32]  # the image, (H, W), in [0, 1], air dark, bone bright
    mask: NDArray[np.bool_]  # where there is an opacity, (H, W); all False in a normal image
    label: str  # `NORMAL` or `PNEUMONIA`

    def __repr__(self) -> str:
        return f"Phantom({self.label}: {self.pixels.shape[0]} x {self.pixels.shape[1]} pixels)"


@dataclass(frozen=True)
class _Tube:
    """Long and round things: centre lines (tubes, points, 3), with radius and density that broadcast to them."""

    lines: Points
    radius: ArrayLike
    density: ArrayLike = 1.0
    marrow: float = 0.0  # how much less dense the inside is than the wall: 0 is solid, 1 an empty pipe


@dataclass(frozen=True)
class _Pose:
    """How a patient is positioned: maps between the patient's coordinates and pixels."""

    height: int
    width: int
    unit: float  # pixels per patient unit
    angle: float
    shift: tuple[float, float]
    turn: float  # about the long axis: shifts what is in front against what is behind

    def grid(self) -> tuple[Map, Map]:
        """The patient's x and y at each pixel."""
        column = (np.arange(self.width, dtype=np.float32) - self.width / 2)[None, :] / self.unit
        row = (np.arange(self.height, dtype=np.float32) - self.height / 2)[:, None] / self.unit
        cos, sin = math.cos(self.angle), math.sin(self.angle)
        return cos * column + (sin * row - self.shift[0]), cos * row - (sin * column + self.shift[1])

    def along(self, length: float) -> NDArray[np.float64]:
        """From 0 to 1 in steps so small that the projection of a curve of this length has no gaps."""
        return np.linspace(0, 1, max(5, math.ceil(0.85 * length * self.unit)))

    def project(self, tubes: Iterable[_Tube]) -> Map:
        """Thickness of the tubes' material along each ray."""
        # What falls outside the image goes to a margin, which is cropped.
        stride = self.width + 3
        total = np.zeros((self.height + 3) * stride)
        for tube in tubes:
            columns, rows, masses = self._spread(tube)
            columns, rows = np.clip(columns, -1, self.width) + 1, np.clip(rows, -1, self.height) + 1
            left, top = columns.astype(np.intp), rows.astype(np.intp)
            corner, right, lower = top * stride + left, (columns - left) * masses, rows - top
            for across, share in ((0, masses - right), (1, right)):  # each point contributes to four pixels
                below = share * lower
                np.add.at(total, corner + across, share - below)
                np.add.at(total, corner + (across + stride), below)
        return total.reshape(-1, stride)[1:-2, 1:-2].astype(np.float32)

    def _spread(self, tube: _Tube) -> tuple[Points, Points, Points]:
        """Columns, rows and masses of points that fill a tube's shadow."""
        ends = tube.lines[:, [0, *range(tube.lines.shape[1]), -1]]
        step = (ends[:, 2:] - ends[:, :-2]) / 2
        x, y = tube.lines[..., 0] + self.turn * tube.lines[..., 2] + self.shift[0], tube.lines[..., 1] + self.shift[1]
        radius = np.broadcast_to(np.asarray(tube.radius, dtype=np.float64), x.shape)
        n = max(2, math.ceil(1.2 * float(radius.max()) * self.unit))
        u = (2 * np.arange(n) + 1) / n - 1
        chord = np.sqrt(1 - u**2) - tube.marrow * np.sqrt(np.clip(0.55 - u**2, 0, None))
        mass = np.linalg.norm(step, axis=2) * np.asarray(tube.density) * radius**2 * (4 / n * self.unit**2)
        aside = radius * self.unit / (np.hypot(step[..., 0], step[..., 1]) + 1e-9)
        cos, sin = math.cos(self.angle), math.sin(self.angle)

        column = ((cos * x - sin * y) * self.unit + self.width / 2)[..., None]
        row = ((sin * x + cos * y) * self.unit + self.height / 2)[..., None]
        column = column - ((sin * step[..., 0] + cos * step[..., 1]) * aside)[..., None] * u
        row = row + ((cos * step[..., 0] - sin * step[..., 1]) * aside)[..., None] * u
        return column.ravel(), row.ravel(), (mass[..., None] * chord).ravel()


@dataclass(frozen=True)
class _Body:
    """Thickness along each ray in patient units; `lung` is the air that fluid can replace."""

    soft: Map
    lung: Map
    bone: Map


@checked
def draw_phantom(seed: Seed, *, pneumonia: bool, patient: Seed | None = None, size: int = 320) -> Phantom:
    """Simulate one frontal radiograph.

    The same arguments give the same image. `pneumonia` changes only the opacity, and the automatic brightness that
    compensates for it.

    Args:
        seed: fixes pose, exposure, noise and opacities; not negative.
        pneumonia: whether there is an opacity.
        patient: fixes the anatomy, which images of one patient share; by default the seed.
        size: height of the image in pixels; its width varies as in real images.

    Raises:
        UsageError: `size` is not in 64 to 2048.
    """
    check_size(size)
    image = np.random.default_rng((1, seed))
    width, unit = int(size * image.uniform(0.98, 1.25)), size / 2 * image.uniform(1.05, 1.25)
    shift = (_vary(image, 0, 0.03), _vary(image, 0.1, 0.03))
    pose = _Pose(size, width, unit, _vary(image, 0, 0.025), shift, _vary(image, 0, 0.07))
    body = _anatomy(pose, np.random.default_rng((0, seed if patient is None else patient)), image)
    if not pneumonia:
        return Phantom(_expose(body, np.zeros_like(body.lung), image), np.zeros(body.lung.shape, np.bool_), "NORMAL")
    fluid = _opacities(pose, body.lung, np.random.default_rng((2, seed)))
    return Phantom(_expose(body, fluid, image), fluid > 0.3 * fluid.max(), "PNEUMONIA")


def check_size(size: int) -> None:
    """Refuse an image height outside 64 to 2048 pixels."""
    if not 64 <= size <= 2048:
        raise UsageError(f"{size} is out of range; choose an image height of 64 to 2048 pixels.", "size")


def _vary(rng: Generator, value: float, spread: float) -> float:
    """Draw a normally distributed value, limited to two standard deviations."""
    return value + spread * min(max(rng.standard_normal(), -2.0), 2.0)


def _clouds(rng: Generator, shape: tuple[int, ...], cells: int) -> Map:
    """Smooth random clouds, about `cells` from top to bottom."""
    grid = rng.standard_normal((cells + 2, round(cells * shape[1] / shape[0]) + 2), dtype=np.float32)
    return _enlarge(grid, shape, Image.Resampling.BICUBIC)


def _enlarge(coarse: Map, shape: tuple[int, ...], way: Image.Resampling = Image.Resampling.BILINEAR) -> Map:
    return np.asarray(Image.fromarray(coarse).resize((shape[1], shape[0]), way))


def _anatomy(pose: _Pose, rng: Generator, image: Generator) -> _Body:
    """Everything but the opacity; `rng` is the patient's, `image` that of breath, arms and gas in the stomach."""
    x, y = pose.grid()
    rows = 3 * pose.height
    levels = np.linspace(-_DEEPEST, _DEEPEST, rows)
    level = np.clip((y + _DEEPEST) * (rows / (2 * _DEEPEST)), 0, rows - 1).astype(np.intp)
    kernel = np.hanning(rows // 18)
    fat, wide, big = _vary(rng, 1, 0.07), _vary(rng, 1, 0.05), _vary(rng, 1, 0.09)

    def outline(table: Table, scale: float = 1.0) -> Map:
        """A table as a smooth curve over all body levels, slightly different in each patient."""
        at, values = np.array(table).T
        values = values * scale * (1 + 0.03 * np.clip(rng.standard_normal(len(values)), -2, 2))
        padded = np.pad(np.interp(levels, at, values), kernel.size, mode="edge")
        return np.convolve(padded, kernel / kernel.sum(), "same")[kernel.size : -kernel.size].astype(np.float32)

    def spindle(where: Map, start: Map, stop: Map, depth: Map, at: NDArray[np.intp]) -> Map:
        """Thickness of a rounded shape that reaches from start to stop at each level."""
        half = np.maximum((stop - start) / 2, 1e-3)
        u = (where - ((start + stop) / 2).take(at)) / half.take(at)
        return np.sqrt(np.clip(1 - u * u, 0, None)) * depth.take(at)

    flank, girth = outline(_BODY_WIDTH, wide * fat), outline(_BODY_DEPTH, fat)
    heart = spindle(
        x - pose.turn * 0.15, -outline(_HEART_RIGHT, big), outline(_HEART_LEFT, big), outline(_HEART_DEPTH), level
    )

    # Both lungs at once: in the curves, the levels of the left lung follow those of the right.
    left, away = (x > 0).astype(np.float32), np.abs(x)
    lateral, medial = (np.concatenate([outline(t, wide), outline(t, wide)]) for t in (_LUNG_LATERAL, _LUNG_MEDIAL))
    lung = spindle(away, medial, lateral, np.tile(outline(_LUNG_DEPTH), 2), level + (x > 0) * rows)
    breath, lower = _vary(image, 0.42, 0.04), _vary(rng, 0.06, 0.015)
    bow = ((away - 0.34 * wide) / (0.42 * wide)) ** 2
    dome = breath + lower * left + _vary(rng, 0.09, 0.015) * bow * (1 + 0.9 * bow)
    above, behind = np.clip((dome - y) / 0.035 + 0.5, 0, 1), np.clip((dome - y) / 0.3 + 0.7, 0, 1)
    lung = np.clip(lung - heart, 0, None) * (0.88 * above * above * (3 - 2 * above) + 0.12 * behind)

    # The body without its lungs has no fine detail: half the resolution suffices.
    raised, gas, middle = image.uniform(0.5, 1.4), max(0.0, _vary(image, 0.0, 0.12)), _vary(image, 0.36, 0.06)
    bosom, half = max(0.0, _vary(rng, 0, 0.08)), np.s_[::2, ::2]
    x, y, away, dome, level = x[half], y[half], away[half], dome[half], level[half]
    flesh = spindle(x, -flank, flank, girth, level)
    for side in (-1, 1) if bosom else ():  # breasts or muscles, never quite symmetric
        down = (y - _vary(rng, 0.2, 0.04)) / 0.27
        bulge = np.clip(1 - ((x - 0.43 * side) / 0.34) ** 2 - down * down, 0, None)
        flesh += bosom * rng.uniform(0.8, 1.2) * np.sqrt(bulge) * np.clip(0.6 + 0.5 * down, 0, 1)
    if gas:  # in the stomach
        bubble = np.clip(1 - ((x - middle) / 0.24) ** 2 - ((y - dome - 0.1) / 0.09) ** 2, 0, None)
        flesh -= gas * bubble * np.clip((y - dome) * 30, 0, 1)
    out, down = away - 0.88, y + 0.58  # from the shoulder
    beside = out * math.sin(raised) - down * math.cos(raised)
    before = np.minimum(out * math.cos(raised) + down * math.sin(raised), 0)
    flesh += 1.3 * np.sqrt(np.clip(0.0225 - beside * beside - before * before, 0, None))

    vessels = pose.project(_vessels(pose, rng)) * (_vary(image, 1, 0.2) * _vary(rng, 1, 0.2))
    soft = vessels * np.clip(lung * 5, 0, 1) - lung * (0.84 - 0.02 * _clouds(rng, lung.shape, 36))
    soft += _enlarge(flesh, lung.shape)
    soft -= pose.project(_airways(pose, rng))
    bones = [*_shoulders(pose, raised, _vary(image, 0, 0.02)), *_skeleton(pose, rng, lateral[:rows], levels)]
    return _Body(np.clip(soft, 0, None), lung, pose.project(bones))


def _bezier(knots: ArrayLike, t: Points) -> Points:
    """Cubic Bézier curves: (curves, 4, 3) control points to (curves, points, 3)."""
    weights = np.stack([(1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3])
    return np.asarray(np.einsum("cki,kp->cpi", np.asarray(knots, dtype=np.float64), weights))


def _pair(knots: Sequence[tuple[float, float, float]]) -> Points:
    """Control points of the patient's left side, mirrored to both."""
    return np.array([knots, [(-x, y, z) for x, y, z in knots]], dtype=np.float64)


def _airways(pose: _Pose, rng: Generator) -> list[_Tube]:
    """Trachea and main bronchi: air in the mediastinum."""
    bend = _vary(rng, 0, 0.02)
    knots = [
        [(0, -1.3, 0.1), (0, -0.9, 0.05), (bend, -0.6, 0), (0, -0.24, -0.1)],
        [(0, -0.26, -0.1), (-0.05, -0.22, -0.1), (-0.10, -0.14, -0.1), (-0.14, -0.03, -0.1)],
        [(0, -0.26, -0.1), (0.06, -0.23, -0.1), (0.13, -0.18, -0.1), (0.19, -0.12, -0.1)],
    ]
    t = pose.along(1.1)
    return [_Tube(_bezier(knots, t), [[0.048], [0.032], [0.03]], np.minimum(1, 8 * np.minimum(t, 1 - t)))]


def _vessels(pose: _Pose, rng: Generator) -> list[_Tube]:
    """Pulmonary vessels: trees that start at both hila, fork and taper."""
    side, start = np.repeat([-1.0, 1.0], 6), rng.normal(0, 0.025, (12, 3))
    start += np.stack([0.16 * side, -0.06 - 0.03 * side, 0 * side], axis=-1)
    heading = np.tile(np.linspace(-1.25, 1.35, 6), 2) + rng.normal(0, 0.15, 12)
    length, radius = rng.uniform(0.12, 0.2, 12), rng.uniform(0.02, 0.033, 12)
    tubes = []
    for _ in range(4):
        way = np.stack([side * np.cos(heading), np.sin(heading), rng.normal(0, 0.3, side.size)], -1) * length[:, None]
        bend = rng.normal(0, 0.12, (side.size, 2, 1)) * (way[:, None, [1, 0, 2]] * [-1, 1, 0])
        knots = start[:, None] + way[:, None] * np.linspace(0, 1, 4)[:, None]
        knots[:, 1:3] += bend
        t = pose.along(float(length.max()))
        tubes.append(_Tube(_bezier(knots, t), radius[:, None] * (1 - 0.25 * t)))
        start, side, heading = (np.repeat(v, 2, axis=0) for v in (knots[:, 3], side, heading))
        heading = heading + np.tile([-1.0, 1.0], side.size // 2) * rng.uniform(0.2, 0.55, side.size)
        radius, length = np.repeat(radius * 0.72, 2), rng.uniform(0.1, 0.19, side.size)
    return tubes


def _shoulders(pose: _Pose, raised: float, lift: float) -> list[_Tube]:
    """Humeri, clavicles and scapulae, which differ between images."""
    t = pose.along(1.2)
    humerus = [(0.88 + d * math.cos(raised), -0.58 + d * math.sin(raised), 0.0) for d in (0.0, 0.4, 0.8, 1.2)]
    clavicle = [(0.05, -0.60, 0.3), (0.25, -0.63 + lift, 0.3), (0.45, -0.72 + lift, 0.1), (0.76, -0.69 + lift, 0)]
    blade = [(0.80, -0.60, -0.2), (0.78, -0.45, -0.25), (0.72, -0.25, -0.3), (0.70, 0.0 + lift, -0.3)]
    spine = [(0.62, -0.52, -0.3), (0.7, -0.58, -0.3), (0.76, -0.63, -0.2), (0.82, -0.65, -0.1)]
    head = 0.036 + 0.022 * np.exp(-((10 * t) ** 2))
    return [
        _Tube(_bezier(_pair(humerus), t), head, 0.6 * np.minimum(1, 10 * t), marrow=0.8),
        _Tube(_bezier(_pair(clavicle), t), 0.026 + 0.008 * (2 * t - 1) ** 2, 1.1, marrow=0.8),
        _Tube(_bezier(_pair(blade), t), 0.10 - 0.07 * t, 0.15, marrow=0.9),
        _Tube(_bezier(_pair(spine), t), 0.018, 0.6, marrow=0.5),
    ]


def _skeleton(pose: _Pose, rng: Generator, lateral: Map, levels: Points) -> list[_Tube]:
    """Ribs, which run downwards from the spine round the side to the front, and the spine."""
    first, spacing, lean = _vary(rng, -0.82, 0.015), _vary(rng, 0.127, 0.004), rng.normal(0, 0.012, 2)

    def midline(y: Points) -> Points:
        return np.asarray(lean[0] * np.sin(2 * y) + lean[1] * np.cos(3 * y))

    rib, angle = np.arange(11), np.pi * (0.01 + 0.79 * pose.along(1.4))
    heads = first + spacing * rib[:, None] + rng.normal(0, 0.006, (11, 1))
    drop = np.interp(rib, [0, 2, 10], [0.3, 0.4, 0.6])[:, None] * _vary(rng, 1, 0.08) + rng.normal(0, 0.008, (11, 1))
    y = heads + drop * ((1 - np.cos(angle)) / 2) ** 1.1 - 0.035 * np.sin(angle) ** 2
    reach = np.interp(heads + 0.45 * drop, levels, lateral) + 0.015
    x = 0.05 + (reach - 0.05) * np.sin(angle) ** 0.92
    z = -np.interp(rib, [0, 3, 10], [0.16, 0.28, 0.34])[:, None] * np.cos(angle)
    ribs = np.concatenate([np.stack([side * x + midline(y), y, z], axis=-1) for side in (-1, 1)])
    width = (0.022 + 0.006 * np.sin(angle / 2) ** 2) * rng.normal(1, 0.05, (22, 1))
    hard = np.interp(angle / np.pi, [0, 0.1, 0.5, 0.7, 0.8], [0.8, 1.7, 1.1, 1.2, 0.0]) * _vary(rng, 1, 0.1)

    # Vertebral bodies with bright end plates and dark discs; then their processes and pedicles.
    y = np.linspace(-1.3, 1.3, pose.along(2.6).size)
    beat = np.cos(2 * np.pi * (y - first) / spacing)  # 1 in the middle of a body, -1 in a disc
    plates = 0.55 + 0.45 / (1 + np.exp(-8 * (beat + 0.55))) + 0.25 * np.exp(-(((beat + 0.55) / 0.25) ** 2))
    column, waist = np.stack([midline(y), y, 0 * y - 0.25], axis=-1), 0.078 + 0.012 * y - 0.008 * beat
    level = first + spacing * np.arange(-4.0, 17.0)
    centre = np.stack([midline(level), level, 0 * level - 0.3], axis=-1)[:, None]
    t = 2 * pose.along(0.26)[:, None] - 1
    ring = np.concatenate([np.cos(np.pi * t) * 0.017, np.sin(np.pi * t) * 0.026, 0 * t], axis=1)
    return [
        _Tube(ribs, width, np.tile(hard, (22, 1)), marrow=0.8),
        _Tube(column[None], waist, 0.42 * plates, marrow=0.3),
        _Tube(centre + t * [0.13, 0, 0] - [0, 0.01, 0], 0.018, 0.5, marrow=0.5),
        _Tube(centre + t * [0.004, 0.028, 0] + [0, 0.02, -0.1], 0.012, 0.8),
        *(_Tube(centre + ring + [0.047 * side, -0.012, 0], 0.007, 0.9) for side in (-1, 1)),
    ]


def _opacities(pose: _Pose, lung: Map, rng: Generator) -> Map:
    """One to three consolidations: fluid instead of air, only inside the lungs."""
    x, y, air = (part[::2, ::2] for part in (*pose.grid(), lung))  # they are soft: half the resolution suffices
    height, width = air.shape
    warp, field = _clouds(rng, air.shape, 9), np.zeros_like(air)
    grain = _clouds(rng, air.shape, 30) + _clouds(rng, air.shape, 64)
    places = np.argwhere(air[height // 12 : -height // 12, width // 12 : -width // 12] > 0.5 * air.max())
    for _ in range(int(rng.choice([1, 2, 3], p=[0.35, 0.4, 0.25]))):
        row, column = places[rng.integers(len(places))] + (height // 12, width // 12)
        dx, dy, tilt = x - x[row, column], y - y[row, column], rng.uniform(-0.6, 0.6)
        wide, tall = rng.uniform(0.16, 0.32), rng.uniform(0.16, 0.30)
        far = ((dx + tilt * dy) / wide) ** 2 + ((dy - tilt * dx) / tall) ** 2
        patch = rng.uniform(0.7, 1) * np.exp(-((far * np.exp(0.3 * warp)) ** 1.3)) * (x * x[row, column] > 0)
        if rng.random() < 0.35:  # limited by a fissure
            patch *= np.clip(1.5 + float(rng.choice([-20, 20])) * (dy + rng.uniform(-0.4, 0.4) * dx), 0, 1)
        field = np.maximum(field, patch)
    field *= np.clip(1 + 0.2 * warp + 0.145 * grain, 0.2, None) * rng.uniform(0.75, 1.05)
    return lung * _enlarge(field, lung.shape)


def _expose(body: _Body, fluid: Map, image: Generator) -> Map:
    """Compute grey levels from rays through the body: quanta, scatter, noise, blur, contrast and collimation."""
    height, width = fluid.shape
    x, y = np.linspace(-1, 1, width, dtype=np.float32)[None, :], np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    plain = 3.0 * body.soft + 7.0 * body.bone
    few = plain[::4, ::4]
    dark, light = float(np.percentile(few[body.lung[::4, ::4] > 0.25], 3)), float(np.percentile(few, 99.5))
    scatter = image.uniform(0.01, 0.03)
    quanta = image.uniform(3e3, 2e4)
    beam = 1 + _vary(image, 0, 0.06) * x + _vary(image, 0, 0.06) * y
    signal = (np.exp(-plain - 3.0 * fluid) + scatter) * beam
    signal += np.sqrt(signal / quanta) * image.standard_normal(signal.shape, dtype=np.float32)
    density = -np.log(np.clip(_blur(signal), 1e-4, None))
    low = -math.log(math.exp(-dark) + scatter) - image.uniform(0.1, 0.4)
    high = -math.log(math.exp(-light) + scatter) + image.uniform(0.1, 0.4)
    grey = np.clip((density - low) / (high - low), 0, 1)
    # As in viewers, brightness is adjusted to a level of its own for each image: an opacity does not brighten it.
    grey **= math.log(image.uniform(0.36, 0.54)) / math.log(grey.mean())
    for edge in (x, -x, y, -y):
        grey *= np.clip((1 - max(-0.1, _vary(image, -0.03, 0.06)) - edge) * (height / 4), 0, 1)
    return np.asarray(grey, dtype=np.float32)


def _blur(picture: Map) -> Map:
    """The detector's blur: a 1-2-1 kernel both ways."""
    tall = np.pad(picture, ((1, 1), (0, 0)), mode="edge")
    picture = (tall[:-2] + tall[2:]) * 0.25 + tall[1:-1] * 0.5
    wide = np.pad(picture, ((0, 0), (1, 1)), mode="edge")
    return (wide[:, :-2] + wide[:, 2:]) * 0.25 + wide[:, 1:-1] * 0.5
