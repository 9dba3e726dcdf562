"""Images that should not be in the data, or not like this: unreadable, blank, inverted, turned, or no radiograph."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from pneumoscope.auditing.findings import Finding, Severity
from pneumoscope.auditing.intake import THUMBNAIL, Images

_SIDE = 16
# The mean of 150 simulated normal images, left half, 0 to ff: what a frontal image looks like from afar. Against it, of
# 5,216 real images none turned up inverted and none sideways (docs/log.md).
_TEMPLATE = """
    0304060d1c3c5b6a 0a16273f5b6f818c 2c4c62777d717e96 577e7e7b685e75a2
    6589847053506ca9 5a817e5f4c5072b4 4c767252454e78bd 406a61443e4e80c4
    3960543c3c5598d0 355a4d3c4065a8d5 3154473a4976b2d7 2d4c403a547fb4d9
    2b483e42668db5da 2a4e5b7899b1c2db 2c61849dadbac4da 25577889949da4b6
"""
# How much better another orientation fits: no upright real image of 5,216 exceeds 0.16. All inverted ones do, 99.9 % of
# those turned by 90°, and two of three turned by 180°.
_TURNED = 0.17
_UNLIKE = 0.2  # correlation; real images have 0.27 at least
_FAINT = 0.1  # between the first and the 99th percentile; real images have 0.19 at least
_STRANGE = 3.8  # robust standard deviations of the logarithm; real images have 3.5 at most
_LATERAL = {"LL", "RL", "LATERAL", "LAT", "LLD", "RLD", "LLO", "RLO"}


def find_quality_faults(images: Images) -> list[Finding]:
    """Find images that cannot be read, say nothing, or show something else than an upright frontal image.

    Args:
        images: the measured data set.

    Returns:
        One finding for each kind of fault that is there.
    """
    return [
        finding
        for check in (_find_unreadable, _find_poor, _find_turned, _find_strange, _find_by_header)
        for finding in check(images)
    ]


def correlate_orientations(thumbnails: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Correlate images with a frontal image in four orientations.

    Args:
        thumbnails: uint8 (N, 64, 64).

    Returns:
        (N, 4): with the template turned by 0, 90, 180 and 270 degrees counter-clockwise; negative where inverted.
    """
    step = THUMBNAIL // _SIDE
    coarse = thumbnails.reshape(-1, _SIDE, step, _SIDE, step).mean((2, 4), dtype=np.float64)
    half = np.frombuffer(bytes.fromhex(_TEMPLATE), np.uint8).reshape(_SIDE, _SIDE // 2)
    upright = np.hstack([half, half[:, ::-1]]).astype(np.float64)
    turned = np.stack([np.rot90(upright, turns) for turns in range(4)])
    return np.asarray(_standardise(coarse) @ _standardise(turned).T)


def _standardise(pictures: NDArray[np.float64]) -> NDArray[np.float64]:
    flat = pictures.reshape(len(pictures), -1)
    flat = flat - flat.mean(1, keepdims=True)
    length = np.linalg.norm(flat, axis=1, keepdims=True)
    return np.asarray(flat / np.where(length > 0, length, 1))


def _find_unreadable(images: Images) -> Iterator[Finding]:
    def explain(i: int) -> str:
        return str(images.errors[i]).removeprefix(f"{images.samples[i].path}: ")

    refused = np.array(["any_modality" in (error or "") for error in images.errors], bool)
    yield from _report(
        images, np.flatnonzero(~images.readable & ~refused), "error", "cannot be read",
        "Copy them again from their source, or take them out; training leaves them out and says so.", explain,
        "reading",
    )  # fmt: skip
    yield from _report(
        images, np.flatnonzero(refused), "error", "are no projection radiographs",
        "Take them out; training leaves them out and says so. Read them anyway with `any_modality=True`.", explain,
        "reading",
    )  # fmt: skip


def _find_poor(images: Images) -> Iterator[Finding]:
    """Too small, blank, faint, burnt out or coloured; each image is reported for the gravest of them."""
    records, ok = images.records, images.readable
    height, width = records["height"], records["width"]
    span = records["high"] - records["low"]
    blank = ok & (records["spread"] < 0.01)
    yield from _report(
        images, np.flatnonzero(blank), "error", "are blank", "They show nothing. Take them out.",
        lambda i: f"grey level {records['mean'][i]:.2f} all over",
    )  # fmt: skip
    tiny = ok & ~blank & (np.minimum(height, width) < 64)
    yield from _report(
        images, np.flatnonzero(tiny), "warning", "are tiny", "So few pixels show no infiltrate. Export them larger.",
        lambda i: f"{width[i]:.0f} × {height[i]:.0f}",
    )  # fmt: skip
    faint = ok & ~blank & (span < _FAINT)
    yield from _report(
        images, np.flatnonzero(faint), "warning", "have next to no contrast",
        "Check how they were exported: the window may be far too wide, or 12 bits may lie in 16.",
        lambda i: f"grey levels {records['low'][i]:.2f} to {records['high'][i]:.2f}",
    )  # fmt: skip
    inside = records["thumbnail"][:, 6:-6, 6:-6]  # a white frame burns nothing out
    white = np.mean(inside >= 254, axis=(1, 2))
    burnt = ok & ~blank & (white > 0.1)
    yield from _report(
        images, np.flatnonzero(burnt), "warning", "are burnt out",
        "A tenth or more of the image is pure white: detail is lost. Export them with another window.",
        lambda i: f"{white[i]:.0%} white",
    )  # fmt: skip
    coloured = ok & (records["colour"] > 0.04)
    yield from _report(
        images, np.flatnonzero(coloured), "warning", "are in colour",
        "A radiograph has none: these are photographs, screenshots or overlays. Look at them.",
        lambda i: f"mean difference between channels {records['colour'][i]:.2f}",
    )  # fmt: skip


def _find_turned(images: Images) -> Iterator[Finding]:
    """Which orientation of a frontal image fits best, upright or turned, as it is or inverted, and does any?"""
    fits = correlate_orientations(images.records["thumbnail"])
    both = np.hstack([fits, -fits])
    best, fit = both.argmax(1), both.max(1)
    visible = images.readable & (images.records["spread"] >= 0.01)
    gain = fit - fits[:, 0]
    other = visible & (fit >= _UNLIKE) & (gain > _TURNED)
    yield from _report(
        images, _sorted(other & (best >= 4), gain), "error", "are inverted: air is bright",
        "Read them right with --invert, or with a column named invert in a table where only some are so. A network "
        "reads an inverted image without complaint, and wrongly.",
    )  # fmt: skip
    yield from _report(
        images, _sorted(other & ((best == 1) | (best == 3)), gain), "warning", "lie on their side",
        "Turn such images upright; the network has seen none like that.",
        lambda i: "turned to the left" if best[i] == 1 else "turned to the right",
    )  # fmt: skip
    yield from _report(
        images, _sorted(other & (best == 2), gain), "warning", "are upside down",
        "Turn such images upright; the network has seen none like that.",
    )  # fmt: skip
    yield from _report(
        images, _sorted(visible & (fit < _UNLIKE), -fit), "warning", "do not look like a frontal chest image",
        "Lateral views, other body parts, photographs or documents? Look at them, and take out what does not belong.",
        lambda i: f"likeness {fit[i]:.2f}",
    )  # fmt: skip


def _find_strange(images: Images) -> Iterator[Finding]:
    """Images far from all others in what a pretrained network sees: photographs, hands, documents."""
    visible = np.flatnonzero(images.readable & (images.records["spread"] >= 0.01))
    if images.features is None or len(visible) < 20:
        return
    features = images.features[visible].astype(np.float64)
    distance = np.log(np.linalg.norm(features - np.median(features, axis=0), axis=1) + 1e-9)
    middle = np.median(distance)
    spread = 1.4826 * np.median(np.abs(distance - middle)) + 1e-9  # of a normal distribution: its standard deviation
    score = np.zeros(len(images.samples))
    score[visible] = (distance - middle) / spread
    yield from _report(
        images, _sorted(score > _STRANGE, score), "warning", "are unlike all others",
        "Other body parts, lateral views, photographs or documents? Look at them, and take out what does not belong.",
        lambda i: f"{score[i]:.1f} standard deviations from the rest",
    )  # fmt: skip


def _find_by_header(images: Images) -> Iterator[Finding]:
    """What DICOM says about itself."""
    tags = [sample.tags for sample in images.samples]
    lateral = [i for i, tag in enumerate(tags) if tag and (tag.view or "").upper() in _LATERAL]
    yield from _report(
        images, np.array(lateral, int), "warning", "show a lateral view", "Take them out, or train them on their own.",
        lambda i: f"view position {getattr(tags[i], 'view', '')}",
    )  # fmt: skip
    several = [i for i, tag in enumerate(tags) if tag and tag.frames > 1]
    yield from _report(
        images, np.array(several, int), "note", "have several frames", "Only the first frame is read.",
        lambda i: f"{getattr(tags[i], 'frames', 1)} frames",
    )  # fmt: skip


def _sorted(chosen: NDArray[np.bool_], score: NDArray[np.float64]) -> NDArray[np.intp]:
    """The chosen images, the highest score first."""
    order: NDArray[np.intp] = np.argsort(-score, kind="stable")
    return order[chosen[order]]


def _report(
    images: Images,
    chosen: NDArray[np.intp],
    severity: Severity,
    what: str,
    advice: str,
    remark: Callable[[int], str] | None = None,
    check: str = "quality",
) -> Iterator[Finding]:
    if len(chosen):
        n = f"{len(chosen)} image{'s' * (len(chosen) > 1)}"
        yield Finding(
            check,
            severity,
            f"{n} {what if len(chosen) > 1 else _singular(what)}",
            advice,
            tuple(images.samples[i].path for i in chosen),
            tuple(remark(int(i)) for i in chosen) if remark else (),
            values={"images": len(chosen), "share": len(chosen) / len(images.samples)},
        )


def _singular(what: str) -> str:
    words = {"are": "is", "have": "has", "lie": "lies", "do": "does", "show": "shows", "their": "its"}
    return " ".join(words.get(word, word) for word in what.split())
