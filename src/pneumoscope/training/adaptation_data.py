"""The images that a model is adapted to, and what its network computes of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pneumoscope.config import Progress
from pneumoscope.datasets.duplicates import number_components
from pneumoscope.datasets.left_out import describe_unusable
from pneumoscope.datasets.samples import Sample, cluster_by_patient
from pneumoscope.errors import DataError
from pneumoscope.inference.features import Extract, extract_features
from pneumoscope.inference.prediction import SHORT, count_warnings
from pneumoscope.inference.predictor import Predictor
from pneumoscope.text import counted
from pneumoscope.training.adaptation import Local

FOLDS = 5
FEWEST = 5  # images of a class, below which nothing can be learned about it


@dataclass(frozen=True, eq=False)
class Data:
    """Readable images with what the network computes of them."""

    samples: Sequence[Sample]  # N images
    extracts: Sequence[Extract]  # (N,)
    local: Local  # (N,)


def extract(
    predictor: Predictor, samples: Sequence[Sample], progress: Progress
) -> tuple[Data, Data | None, tuple[str, ...]]:
    """Features of the images to adapt to and of those of the test split, and notes on what was left out.

    Raises:
        DataError: too few images or patients are left to adapt to.
    """
    model = predictor.model
    extracts = []
    for extract in extract_features(samples, predictor.engine, model.input, cache=predictor.cache):
        extracts.append(extract)
        progress("Features", len(extracts), len(samples))
    notes = describe_unusable(samples, [each.error for each in extracts])
    known = set(model.data.get("seen", ()))
    tested = {each.sha256 for each, sample in zip(extracts, samples, strict=True) if sample.split == "test"}
    readable = np.array([each.error is None for each in extracts])
    seen = readable & np.array([each.sha256[:SHORT] in known for each in extracts])
    is_test = np.array([sample.split == "test" for sample in samples])
    copies = readable & ~is_test & ~seen & np.array([each.sha256 in tested for each in extracts])
    for left_out, what in ((seen & ~is_test, "the model learned from them"), (copies, "the test split has them, too")):
        if left_out.any():
            notes.append(f"{counted(int(left_out.sum()), 'image')} left out: {what}.")
    notes += count_warnings([each.warnings for each in extracts])
    chosen = readable & ~is_test & ~seen & ~copies
    data = _gather(predictor, samples, extracts, chosen)
    _check_counts(data, model.labels)
    test = _gather(predictor, samples, extracts, readable & is_test) if (readable & is_test).any() else None
    return data, test, tuple(notes)


def _gather(
    predictor: Predictor, samples: Sequence[Sample], extracts: Sequence[Extract], chosen: NDArray[np.bool_]
) -> Data:
    """The chosen images with their features; images of a patient, and identical ones, belong together."""
    places = np.flatnonzero(chosen).tolist()
    some = [extracts[i] for i in places]
    labels = [predictor.model.labels.index(str(samples[i].label)) for i in places]
    patients = cluster_by_patient([predictor.decide(each).patient for each in some], len(some))
    first: dict[object, int] = {}
    pairs = [(first.setdefault(key, i), i) for i, each in enumerate(some) for key in (int(patients[i]), each.sha256)]
    features = [each.features[0] for each in some if each.features is not None]
    intermediate = [each.intermediate for each in some if each.intermediate is not None]
    local = Local(
        np.array(labels, np.int64),
        np.array(features, np.float32),
        np.array(intermediate, np.float32),
        number_components(pairs, len(some)).astype(np.int64),
        groups=tuple(predictor.find_group(each) for each in some),
    )
    return Data([samples[i] for i in places], some, local)


def _check_counts(data: Data, classes: Sequence[str]) -> None:
    """Check that there are images enough of each class, and of patients enough to cross-validate.

    Raises:
        DataError: there are not.
    """
    counts = np.bincount(data.local.labels, minlength=len(classes))
    patients = len(np.unique(data.local.clusters))
    if counts.min() >= FEWEST and patients < FOLDS:
        raise DataError(
            f"The images to adapt to are of {counted(patients, 'patient')}, and at least {FOLDS} are needed, better "
            "20. Add images of others, or check the column of patients and `patient_pattern`."
        )
    if counts.min() >= FEWEST:
        return
    found = ", ".join(f"{count} {name}" for name, count in zip(classes, counts, strict=True))
    raise DataError(
        f"There are {found} to adapt to, and at least {FEWEST} of each class are needed, better 20: images of one "
        "class do not tell how probable another one is. Add images. Where only the classes' shares differ from "
        "training, set `prevalence` when you predict; then nothing needs to be adapted."
    )
