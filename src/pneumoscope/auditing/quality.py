"""Image quality: images that are unreadable, blank, inverted, turned, or not frontal radiographs."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from pneumoscope.auditing.findings import Finding, Severity
from pneumoscope.auditing.intake import Images
from pneumoscope.auditing.measurements import list_blocks
from pneumoscope.images.appearance import BURNT, FAINT, TURNED, UNLIKE, correlate_orientations, measure_burnt
from pneumoscope.images.dicom import LATERAL_VIEWS

_OUTLYING = 3.8  # robust standard deviations of the logarithm; real images have 3.5 at most
_COLUMNS = 64  # features whose medians are computed at once: bounds the memory
_MOST = 20.0  # of them that a finding gives


def find_quality_faults(images: Images) -> list[Finding]:
    """Find images that cannot be read, show nothing, or show something other than an upright frontal chest."""
    return [
        finding
        for check in (_find_unreadable, _find_poor, _find_turned, _find_outliers, _find_by_header)
        for finding in check(images)
    ]


def _find_unreadable(images: Images) -> Iterator[Finding]:
    def explain(i: int) -> str:
        return str(images.errors[i]).removeprefix(f"{images.samples[i].path}: ")

    refused = np.array(["any_modality" in (error or "") for error in images.errors], bool)
    yield from _report(
        images, np.flatnonzero(~images.readable & ~refused), "error", "cannot be read",
        "Copy them again from their source, allow them to be read, or remove them. Training leaves them out and "
        "reports it.", explain,
        "reading",
    )  # fmt: skip
    yield from _report(
        images, np.flatnonzero(refused), "error", "are not projection radiographs",
        "Remove them; training leaves them out and reports it. To read them anyway, use `any_modality=True`.", explain,
        "reading",
    )  # fmt: skip


def _find_poor(images: Images) -> Iterator[Finding]:
    """Find images that are blank, tiny, faint, burnt out or coloured."""
    measured, ok = images.measured, images.readable
    height, width = measured["height"], measured["width"]
    span = measured["high"] - measured["low"]
    blank = ok & (measured["spread"] < 0.01)
    yield from _report(
        images, np.flatnonzero(blank), "error", "are blank", "They show nothing. Remove them.",
        lambda i: f"grey level {measured['mean'][i]:.2f} everywhere",
    )  # fmt: skip
    tiny = ok & ~blank & (np.minimum(height, width) < 64)
    yield from _report(
        images, np.flatnonzero(tiny), "warning", "are tiny",
        "They have too few pixels to show an infiltrate. Export them at a larger size.",
        lambda i: f"{width[i]:.0f} × {height[i]:.0f}",
    )  # fmt: skip
    faint = ok & ~blank & (span < FAINT)
    yield from _report(
        images, np.flatnonzero(faint), "warning", "have hardly any contrast",
        "Check how they were exported: the window may be far too wide, or 12-bit values may be stored as 16-bit.",
        lambda i: f"grey levels {measured['low'][i]:.2f} to {measured['high'][i]:.2f}",
    )  # fmt: skip
    white = np.concatenate([measure_burnt(measured["thumbnail"][block]) for block in list_blocks(len(ok))])
    burnt = ok & ~blank & (white > BURNT)
    yield from _report(
        images, np.flatnonzero(burnt), "warning", "are burnt out",
        "At least a tenth of the image is pure white, and its detail is lost. Export them with another window.",
        lambda i: f"{white[i]:.0%} white",
    )  # fmt: skip
    coloured = ok & (measured["colour"] > 0.04)
    yield from _report(
        images, np.flatnonzero(coloured), "warning", "are in colour",
        "Radiographs are grey: these may be photographs, screenshots or overlays. Check them.",
        lambda i: f"mean difference between channels {measured['colour'][i]:.2f}",
    )  # fmt: skip


def _find_turned(images: Images) -> Iterator[Finding]:
    """Find images that fit a turned or inverted frontal image better than an upright one, or fit none."""
    thumbnails = images.measured["thumbnail"]
    fits = np.concatenate([correlate_orientations(thumbnails[block]) for block in list_blocks(len(thumbnails))])
    both = np.hstack([fits, -fits])
    best, fit = both.argmax(1), both.max(1)
    visible = images.readable & (images.measured["spread"] >= 0.01)
    gain = fit - fits[:, 0]
    other = visible & (fit >= UNLIKE) & (gain > TURNED)
    yield from _report(
        images, _sorted(other & (best >= 4), gain), "error", "are inverted: air is bright",
        "If all images are inverted, read them with `invert=True`; if only some are, mark those in a table, in a "
        "column 'invert'. A network gives wrong answers for inverted images, without any error.",
    )  # fmt: skip
    yield from _report(
        images, _sorted(other & ((best == 1) | (best == 3)), gain), "warning", "lie on their side",
        "Turn them upright. A network trained on upright images gives wrong answers for them.",
        lambda i: "turned to the left" if best[i] == 1 else "turned to the right",
    )  # fmt: skip
    yield from _report(
        images, _sorted(other & (best == 2), gain), "warning", "are upside down",
        "Turn them upright. A network trained on upright images gives wrong answers for them.",
    )  # fmt: skip
    yield from _report(
        images, _sorted(visible & (fit < UNLIKE), -fit), "warning", "do not look like a frontal chest image",
        "They may be lateral views, other body parts, photographs or documents. Check them, and remove what does not "
        "belong.",
        lambda i: f"correlation with a frontal image {fit[i]:.2f}",
    )  # fmt: skip


def _find_outliers(images: Images) -> Iterator[Finding]:
    """Find images whose features are far from all others: photographs, hands, documents."""
    visible = np.flatnonzero(images.readable & (images.measured["spread"] >= 0.01))
    if images.features is None or len(visible) < 20:
        return
    features, few = images.features, _COLUMNS
    columns = [slice(start, start + few) for start in range(0, features.shape[1], few)]
    middles = np.concatenate([np.median(features[visible, each].astype(np.float64), axis=0) for each in columns])
    parts = (features[visible[block]].astype(np.float64) for block in list_blocks(len(visible)))
    distance = np.log(np.concatenate([np.linalg.norm(part - middles, axis=1) for part in parts]) + 1e-9)
    middle = np.median(distance)
    spread = 1.4826 * np.median(np.abs(distance - middle)) + 1e-9  # of a normal distribution: its standard deviation
    score = np.zeros(len(images.samples))
    score[visible] = (distance - middle) / spread
    yield from _report(
        images, _sorted(score > _OUTLYING, score), "warning", "are unlike all others",
        "They may be other body parts, lateral views, photographs or documents. Check them, and remove what does not "
        "belong.",
        # Where most images are equal to a network, the deviation is next to nothing, and any number of them possible.
        lambda i: f"{'over ' if score[i] > _MOST else ''}{min(score[i], _MOST):.1f} standard deviations from the rest",
    )  # fmt: skip


def _find_by_header(images: Images) -> Iterator[Finding]:
    """Find lateral views and files with several frames by their DICOM headers."""
    tags = [sample.tags for sample in images.samples]
    lateral = [i for i, tag in enumerate(tags) if tag and (tag.view or "").upper() in LATERAL_VIEWS]
    yield from _report(
        images, np.array(lateral, int), "warning", "show a lateral view", "Remove them, or train on them alone.",
        lambda i: f"view position {getattr(tags[i], 'view', '')}",
    )  # fmt: skip
    several = [i for i, tag in enumerate(tags) if tag and tag.frames > 1]
    yield from _report(
        images, np.array(several, int), "note", "have several frames", "Only the first frame is used.",
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
