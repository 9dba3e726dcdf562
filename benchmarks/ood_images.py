"""Images that are no chest radiographs, or altered ones: drawn, photographed, or made from real images.

All are float32 (H, W) in [0, 1], as reading gives them, and depend on a seed alone.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

Pixels = NDArray[np.float32]
SIDE = 256
PHOTOGRAPHS = (
    "astronaut.png", "brick.png", "camera.png", "cell.png", "chelsea.png", "clock_motion.png", "coffee.png",
    "coins.png", "grass.png", "gravel.png", "hubble_deep_field.jpg", "ihc.png", "moon.png", "motorcycle_left.png",
    "motorcycle_right.png", "retina.jpg", "rocket.jpg",
)  # fmt: skip


def photographs(count: int, seed: int) -> list[Pixels]:
    """Grey photographs that come with scikit-image: whole, then random crops of at least a third of the side."""
    from pathlib import Path

    import skimage

    folder = Path(skimage.__file__).parent / "data"
    whole: list[Pixels] = [_grey(Image.open(folder / name)) for name in PHOTOGRAPHS]
    rng = np.random.default_rng([seed, 1])
    crops = whole[:count]
    while len(crops) < count:
        photograph = whole[len(crops) % len(whole)]
        side = int(min(photograph.shape) * rng.uniform(0.33, 0.9))
        top, left = (int(rng.integers(0, length - side + 1)) for length in photograph.shape)
        crops.append(photograph[top : top + side, left : left + side])
    return crops


def noise(rng: Generator) -> Pixels:
    """Noise whose amplitude falls with the frequency to a power of 0 (white) to 2."""
    spectrum = np.fft.rfft2(rng.normal(size=(SIDE, SIDE)))
    frequency = np.hypot(np.fft.fftfreq(SIDE)[:, None], np.fft.rfftfreq(SIDE)[None])
    frequency[0, 0] = frequency[0, 1]
    grey = np.fft.irfft2(spectrum / frequency ** rng.uniform(0, 2), s=(SIDE, SIDE))
    return _clip(0.5 + rng.uniform(0.1, 0.25) * (grey - grey.mean()) / grey.std())


def blank(rng: Generator) -> Pixels:
    """Nothing exposed: one grey, perhaps with a slope, a frame and a little noise."""
    slope = rng.uniform(-0.3, 0.3) * (rng.random() < 0.5)
    image = np.full((SIDE, SIDE), rng.uniform(0, 1)) + slope * np.linspace(-1, 1, SIDE)[:, None]
    if rng.random() < 0.3:
        edge = int(rng.integers(5, 40))
        image[:edge], image[-edge:], image[:, :edge], image[:, -edge:] = 0, 0, 0, 0
    return _clip(image + rng.normal(size=image.shape) * rng.choice([0, 0.01, 0.03]))


def hand(rng: Generator) -> Pixels:
    """A hand: soft tissue around five rays of tubular bones, carpal bones and two forearm bones, drawn as chords."""
    soft, bone = np.zeros((SIDE, SIDE)), np.zeros((SIDE, SIDE))
    wrist = np.array([0.5, 0.78]) * SIDE
    for finger, angle in enumerate(np.deg2rad([-58, -20, -5, 10, 26]) * rng.uniform(0.8, 1.2)):
        way = np.array([np.sin(angle), -np.cos(angle)])
        at = wrist + way * 0.08 * SIDE
        lengths = (0.17, 0.12, 0.08, 0.06) if finger else (0.13, 0.10, 0.08)
        for part, length in enumerate(lengths):
            end = at + way * length * SIDE * rng.uniform(0.9, 1.1)
            radius = SIDE * (0.022 - 0.003 * part)
            bone = np.maximum(bone, _tube(at, end, radius) - 0.6 * _tube(at, end, radius * 0.55))
            soft = np.maximum(soft, _tube(at, end, 2.4 * radius))
            at = end + way * SIDE * 0.008
    for _ in range(8):
        at = wrist + rng.uniform(-0.07, 0.07, 2) * SIDE
        bone = np.maximum(bone, _tube(at, at + 1, SIDE * 0.025))
    for side in (-0.05, 0.05):
        bone = np.maximum(
            bone, _tube(wrist + np.array([side, 0.07]) * SIDE, [wrist[0] + side * SIDE, 1.1 * SIDE], 10.0)
        )
    palm = _tube(wrist - [0, 0.12 * SIDE], [wrist[0], 1.1 * SIDE], SIDE * 0.13)
    return _expose(0.35 * np.maximum(soft, palm) + 0.55 * bone, rng)


def limb(rng: Generator) -> Pixels:
    """A knee or elbow: two long bones that meet, in a soft cylinder."""
    joint = np.array([0.5, 0.5]) * SIDE + rng.uniform(-15, 15, 2)
    soft, bone = np.zeros((SIDE, SIDE)), np.zeros((SIDE, SIDE))
    for way in (-1, 1):
        end = joint + np.array([rng.uniform(-60, 60), way * SIDE])
        near = joint + np.array([0, way * 8])
        across = np.array([14, -way * 12])
        shaft = rng.uniform(14, 20)
        bone = np.maximum(bone, _tube(near, end, shaft) - 0.5 * _tube(near, end, 0.6 * shaft))
        bone = np.maximum(bone, _tube(near - across, near + across * [1, -1], 1.2 * shaft))
        soft = np.maximum(soft, _tube(near, end, rng.uniform(48, 70)))
    return _expose(0.4 * soft + 0.5 * bone, rng)


def page(rng: Generator) -> Pixels:
    """A page of text, black on white or white on black, in lines of random words."""
    sheet, size = Image.new("L", (SIDE, SIDE), 255), int(rng.integers(9, 22))
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size)
    at = 8.0
    while at < SIDE - 20:
        words = ("".join(chr(c) for c in rng.integers(97, 123, rng.integers(2, 10))) for _ in range(8))
        draw.text((float(rng.integers(4, 20)), at), " ".join(words), fill=int(rng.integers(0, 80)), font=font)
        at += size * rng.uniform(1.2, 1.8)
    grey = _grey(sheet)
    return 1 - grey if rng.random() < 0.3 else grey


def pattern(rng: Generator) -> Pixels:
    """A test object for quality control: grey steps, bar groups, a grid and discs of low contrast."""
    image = np.full((SIDE, SIDE), rng.uniform(0.3, 0.6))
    step = SIDE // 10
    image[step : 2 * step] = np.repeat(np.linspace(0, 1, 8), SIDE // 8 + 1)[:SIDE]
    for group, period in enumerate(rng.permutation([2, 3, 4, 6, 8])):
        left = 20 + 45 * group
        image[3 * step : 5 * step, left : left + 36] = ((np.arange(36) // (period / 2)) % 2)[None]
    y, x = np.mgrid[:SIDE, :SIDE]
    for disc in range(5):
        image[np.hypot(x - 35 - 45 * disc, y - 6.5 * step) < 4 + 3 * disc] += rng.uniform(0.05, 0.2)
    image[8 * step :: 12], image[8 * step :, ::12] = 0.9, 0.9
    return _clip(image + rng.normal(size=image.shape) * 0.01)


def draw_images(maker: Callable[[Generator], Pixels], count: int, seed: int) -> list[Pixels]:
    """Several images of one kind."""
    rng = np.random.default_rng([seed, 2])
    return [maker(rng) for _ in range(count)]


def _alter(
    change: Callable[[Pixels, Generator], NDArray[np.floating]],
) -> Callable[[Sequence[Pixels], int], list[Pixels]]:
    def altered(images: Sequence[Pixels], seed: int) -> list[Pixels]:
        rng = np.random.default_rng([seed, 3])
        return [_clip(change(image, rng)) for image in images]

    return altered


def _zoom(image: Pixels, share: float, rng: Generator) -> Pixels:
    sides = [int(side * share) for side in image.shape]
    top, left = (int(rng.integers(0, full - side + 1)) for full, side in zip(image.shape, sides, strict=True))
    return image[top : top + sides[0], left : left + sides[1]]


def _compress(image: Pixels, quality: int) -> Pixels:
    buffer = io.BytesIO()
    Image.fromarray(np.rint(image * 255).astype(np.uint8)).save(buffer, "JPEG", quality=quality)
    return _grey(Image.open(buffer))


def _frame(image: Pixels, grey: float) -> Pixels:
    height, width = image.shape
    return np.pad(image, ((height // 4, height // 4), (width // 4, width // 4)), constant_values=grey)


def _resize(image: Pixels, height: int, width: int) -> Pixels:
    resized: Pixels = np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC), np.float32)
    return resized


def _squeeze(image: Pixels, rng: Generator) -> Pixels:
    """Half as wide, between black: as far as a frontal image goes towards a lateral one."""
    height, width = image.shape
    narrow = _resize(image, height, int(width * rng.uniform(0.45, 0.6)))
    missing = width - narrow.shape[1]
    return np.pad(narrow, ((0, 0), (missing // 2, missing - missing // 2)))


def _shuffle(image: Pixels, rng: Generator) -> Pixels:
    rows = [tile for row in np.array_split(image, 4) for tile in np.array_split(row, 4, axis=1)]
    shape = min(tile.shape for tile in rows)
    tiles = [rows[k][: shape[0], : shape[1]] for k in rng.permutation(16)]
    return np.block([tiles[k : k + 4] for k in range(0, 16, 4)])


def _equalise(image: Pixels, _: Generator) -> NDArray[np.floating]:
    from skimage.exposure import equalize_adapthist

    equalised: NDArray[np.floating] = equalize_adapthist(image, clip_limit=0.02)
    return equalised


# Changes to real images. After these it is no chest radiograph any more, or none that can be read.
SPOILED: Mapping[str, Callable[[Sequence[Pixels], int], list[Pixels]]] = {
    "inverted": _alter(lambda image, _: 1 - image),
    "turned by 90°": _alter(lambda image, rng: np.rot90(image, rng.choice([1, 3]))),
    "turned by 180°": _alter(lambda image, _: np.rot90(image, 2)),
    "turned by 20° to 45°": _alter(
        lambda image, rng: ndimage.rotate(image, rng.choice([-1, 1]) * rng.uniform(20, 45), reshape=False, order=1)
    ),
    "squeezed to half the width": _alter(_squeeze),
    "left or right half alone": _alter(
        lambda image, rng: image[:, : image.shape[1] // 2] if rng.random() < 0.5 else image[:, image.shape[1] // 2 :]
    ),
    "a quarter of its area": _alter(lambda image, rng: _zoom(image, 0.5, rng)),
    "a sixteenth of its area": _alter(lambda image, rng: _zoom(image, 0.25, rng)),
    "tiles shuffled": _alter(_shuffle),
}
# After these it is still the same chest, with a quality from unchanged to useless.
CHANGED: Mapping[str, Callable[[Sequence[Pixels], int], list[Pixels]]] = {
    "mirrored": _alter(lambda image, _: image[:, ::-1]),
    "turned by 3°": _alter(lambda image, _: ndimage.rotate(image, 3, reshape=False, order=1, mode="nearest")),
    "5% cut off": _alter(lambda image, rng: _zoom(image, 0.95, rng)),
    "JPEG quality 75": _alter(lambda image, _: _compress(image, 75)),
    "JPEG quality 50": _alter(lambda image, _: _compress(image, 50)),
    "blurred, half a pixel": _alter(lambda image, _: ndimage.gaussian_filter(image, 0.5)),
    "sharpened": _alter(lambda image, _: image + 0.5 * (image - ndimage.gaussian_filter(image, 1))),
    "gamma 0.5": _alter(lambda image, _: image**0.5),
    "gamma 2": _alter(lambda image, _: image**2),
    "contrast halved": _alter(lambda image, _: 0.5 * image + 0.25),
    "locally equalised (CLAHE)": _alter(_equalise),
    "blurred, 2 pixels": _alter(lambda image, _: ndimage.gaussian_filter(image, 2)),
    "noise 0.05": _alter(lambda image, rng: image + 0.05 * rng.normal(size=image.shape)),
    "64 pixels a side": _alter(lambda image, _: _resize(image, 64, 64)),
    "32 pixels a side": _alter(lambda image, _: _resize(image, 32, 32)),
    "JPEG quality 10": _alter(lambda image, _: _compress(image, 10)),
    "wide black frame": _alter(lambda image, _: _frame(image, 0)),
    "wide white frame": _alter(lambda image, _: _frame(image, 1)),
}


def _tube(start: NDArray[np.float64], end: object, radius: float) -> NDArray[np.float64]:
    """Chord through a capsule from start to end, 0 to 1, at each pixel."""
    a, b = np.asarray(start, np.float64), np.asarray(end, np.float64)
    y, x = np.mgrid[:SIDE, :SIDE]
    away = np.stack([x, y], -1) - a
    along = np.clip(away @ (b - a) / max(((b - a) ** 2).sum(), 1e-9), 0, 1)
    distance = np.linalg.norm(away - along[..., None] * (b - a), axis=-1)
    chord: NDArray[np.float64] = np.sqrt(np.clip(1 - (distance / radius) ** 2, 0, None))
    return chord


def _expose(thickness: NDArray[np.float64], rng: Generator) -> Pixels:
    turned = ndimage.rotate(thickness, rng.uniform(-30, 30), reshape=False, order=1)
    image = ndimage.gaussian_filter(turned, 0.8) * rng.uniform(0.8, 1.2)
    return _clip(image + rng.normal(size=image.shape) * rng.uniform(0.005, 0.02))


def _grey(image: Image.Image) -> Pixels:
    return (np.asarray(image.convert("L"), np.float32) / 255).astype(np.float32)


def _clip(image: NDArray[np.floating]) -> Pixels:
    clipped: Pixels = np.clip(image, 0, 1).astype(np.float32)
    return clipped
