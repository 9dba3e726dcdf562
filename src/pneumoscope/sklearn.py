"""`RadiographClassifier`: the recipe `head` as a scikit-learn estimator, over arrays of paths."""

from __future__ import annotations

import functools
import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, Self, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pneumoscope.config import Progress, quote, silent
from pneumoscope.datasets.duplicates import group_identical
from pneumoscope.datasets.reading import make_samples
from pneumoscope.datasets.samples import Sample
from pneumoscope.datasets.splits import split_training
from pneumoscope.decisions.decisions import Decider
from pneumoscope.errors import ImageError, MissingExtraError, ModelError, UsageError
from pneumoscope.images.augment import Augmentation
from pneumoscope.images.read import Reading
from pneumoscope.inference.cache import MEMORY, FeatureCache, open_cache
from pneumoscope.inference.prediction import Prediction, log_warnings
from pneumoscope.inference.predictor import Predictor
from pneumoscope.notebook import notebook_progress
from pneumoscope.training.data import check_classes, extract, prepare_computing, set_up
from pneumoscope.training.folds import Shared
from pneumoscope.training.run_folder import hush
from pneumoscope.training.settings import (
    BACKBONE_ONLY,
    DataSettings,
    NetworkSettings,
    OptimisationSettings,
    RunSettings,
    Settings,
    find_groups,
    resolve_settings,
)
from pneumoscope.training.summaries import describe_model
from pneumoscope.training.train import decide, fit

try:
    from sklearn.base import BaseEstimator, ClassifierMixin
    from sklearn.utils import check_consistent_length, check_random_state, column_or_1d
    from sklearn.utils.multiclass import check_classification_targets
    from sklearn.utils.validation import check_is_fitted, validate_data
except ImportError:
    raise MissingExtraError('RadiographClassifier needs scikit-learn: pip install "pneumoscope[train]".') from None

Floats: TypeAlias = NDArray[np.float64]
Device: TypeAlias = Literal["auto", "cpu", "cuda"]
Paths: TypeAlias = ArrayLike | Sequence[str | Path]

_SLOW = 2.0  # seconds after which a bar appears: hundreds of fits on cached features need none
# Settings that arrays of paths leave open; all others have a parameter of their own, or no effect here.
_OPEN = (
    {each.name for each in (*fields(OptimisationSettings), *fields(Augmentation))}
    | {"calibration", "threshold", "prevalence", "augmented_copies"}
    | {"invert", "any_modality", "val_fraction", "weights", "size", "fit", "device"}
) - {*BACKBONE_ONLY, "lr", "weight_decay", "balance_by", "precision"}


class ArgumentError(UsageError, ValueError):
    """`X` or `y` is not valid; also a ValueError, which scikit-learn expects here."""


class RadiographClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """A scikit-learn classifier that trains a new head on a frozen backbone, as `pneumoscope train` does.

    `X` holds paths of image files: (n,) or (n, 1), as a list, an array, or a column of pandas. Features are computed
    once for each file and kept in the cache that all commands share, so searches and cross-validations take seconds.
    `fit` sets some images aside as validation images and trains the head on those of other patients. The validation
    images decide when training stops, and calibration and threshold are fitted to them. `predict` uses this threshold,
    so the predicted class is not always the most probable one.

    Args:
        backbone: name of the pretrained network; see `pneumoscope backbones`.
        recipe: values that all settings start from: `head` or `baseline`.
        lr: learning rate; by default the recipe's.
        weight_decay: penalty of large weights; by default the recipe's.
        settings: any of the other settings of `pneumoscope train` by name, such as `{"size": 320}`.
        cache: where features are kept: True for the user's cache on disk, False for nowhere, or a file of your own.
        random_state: seed of every random choice; a `RandomState` or None draws one, which `seed_` records.

    Attributes:
        classes_: (C,) the labels, sorted; if there are two, the second is the positive class.
        coef_: float32 (1, D) or (C, D), weights of the head.
        intercept_: float32 (1,) or (C,), its bias.
        model_: what `model.json` says of a model: settings, training, decisions.
        n_features_in_: 1, the column of paths.
        seed_: the seed that was used.
    """

    def __init__(
        self,
        backbone: str = "efficientnet_lite0",
        recipe: str = "head",
        *,
        lr: float | None = None,
        weight_decay: float | None = None,
        settings: Mapping[str, Any] | None = None,
        cache: bool | str | Path = True,
        random_state: Any = 0,
    ) -> None:
        self.backbone = backbone
        self.recipe = recipe
        self.lr = lr
        self.weight_decay = weight_decay
        self.settings = settings
        self.cache = cache
        self.random_state = random_state

    def fit(self, X: Paths, y: ArrayLike, groups: ArrayLike | Sequence[object] | None = None) -> Self:  # noqa: N803
        """Train the head.

        Args:
            X: (n,) or (n, 1) paths of image files.
            y: (n,) labels of two or more classes.
            groups: (n,) patients, whose images stay together in training or in validation; None or NaN where unknown.
                Without it, they come from DICOM headers and file names, as in `pneumoscope.read_samples`. With
                `set_fit_request(groups=True)` and metadata routing, cross-validations pass it on.

        Raises:
            UsageError: a parameter that is not valid, or `X` holds no paths.
            DataError: an image cannot be read, or a class has too few images or patients.
        """
        column, y = validate_data(self, _make_column(X), y, dtype=None)
        check_classification_targets(y)
        check_consistent_length(y, groups)
        self.classes_, targets = np.unique(y, return_inverse=True)
        names = tuple(str(each) for each in self.classes_.tolist())
        if len(names) < 2:
            raise ArgumentError(f"the only class is {names[0]}; at least two classes are needed.", "y")
        paths = _list_paths(column)
        settings = self._resolve(names)
        reading = Reading(settings.data.invert, settings.data.any_modality)
        patients = None if groups is None else [_name_patient(each) for each in column_or_1d(groups).tolist()]
        samples = make_samples(paths, [names[target] for target in targets], patients, reading)
        check_classes(settings, samples)
        samples = split_training(
            samples, val_fraction=settings.data.val_fraction, groups=group_identical(samples),
            seed=settings.run.seed,
        )  # fmt: skip
        self._train(settings, samples, names)
        return self

    def _train(self, settings: Settings, samples: Sequence[Sample], names: tuple[str, ...]) -> None:
        self._shared = _share(settings.network, settings.run.device)
        setup = set_up(settings, samples, names, self._shared.setup)
        with self._open_cache() as cache:
            extracted = extract(setup, cache, _show_if_slow(), self._shared.computing)
            if errors := [f"X[{i}]: {error}" for i, error in enumerate(extracted.images.errors) if error]:
                raise ImageError(f"{errors[0]} Leave it out of X ({len(errors)} of {len(samples)} cannot be read).")
            for note in extracted.notes:
                logging.getLogger("pneumoscope").warning("%s", note)
            trained = fit(setup, extracted, silent)
            with hush():  # of prediction sets and the OOD detector, which are not used here
                decisions = decide(setup, extracted, trained, cache, _show_if_slow())
        self.model_ = describe_model(setup, extracted.images, trained, decisions)
        self.coef_, self.intercept_ = (part.detach().cpu().numpy() for part in trained.head.parameters())
        self.seed_ = settings.run.seed
        self._fitted = settings
        self._decider = Decider(names, decisions.decisions)
        self._fingerprint = self._shared.computing.engine.fingerprint[:64]

    def predict(self, X: Paths) -> NDArray[Any]:  # noqa: N803
        """The classes (n,) of images, by the threshold that was fitted.

        Raises:
            ImageError: an image cannot be read.
        """
        places = [self.model_.labels.index(str(each.predicted_label)) for each in self._predict(X)]
        chosen: NDArray[Any] = self.classes_[places]
        return chosen

    def predict_proba(self, X: Paths) -> Floats:  # noqa: N803
        """Calibrated probabilities (n, C) of images, in the order of `classes_`, for those out of distribution too.

        Raises:
            ImageError: an image cannot be read.
        """
        return np.array([list((each.probabilities or {}).values()) for each in self._predict(X)], np.float64)

    def decision_function(self, X: Paths) -> Floats:  # noqa: N803
        """How far images are beyond the threshold.

        For two classes, (n,): the logit of the probability minus the logit of the threshold. Above 0, `predict` gives
        the second class. For more, (n, C): the logarithm of each class's probability over its threshold. `predict`
        gives the class with the largest value.

        Raises:
            ImageError: an image cannot be read.
        """
        tiny = np.finfo(np.float64).tiny
        logs = np.log(np.maximum(self.predict_proba(X), tiny))
        decisions = self._decider.decisions
        if decisions.threshold is None:
            return np.asarray(logs - np.log(decisions.class_thresholds or 0.5))
        cut = np.clip(decisions.threshold.value, tiny, np.nextafter(1, 0))  # both 0 and 1 are allowed
        return np.asarray(logs[:, 1] - logs[:, 0] - np.log(cut / (1 - cut)))

    def _predict(self, X: Paths) -> list[Prediction]:  # noqa: N803
        check_is_fitted(self)
        data, predictions, progress = self._fitted.data, list[Prediction](), _show_if_slow()
        reading = Reading(data.invert, data.any_modality)
        paths = _list_paths(validate_data(self, _make_column(X), dtype=None, reset=False))
        samples = [Sample(path, reading=reading) for path in paths]
        engine = self._find_shared().computing.engine
        with self._open_cache() as cache:
            predictor = Predictor(self.model_, self.coef_, self.intercept_, engine, self._decider, cache)
            for prediction in predictor.run(samples):
                if prediction.error is not None:
                    raise ImageError(f"X[{len(predictions)}]: {prediction.error}")
                predictions.append(prediction)
                progress("Predicting", len(predictions), len(samples))
        log_warnings(each.warnings for each in predictions)
        return predictions

    def _find_shared(self) -> Shared:
        """The backbone; it is loaded again after unpickling, as pickles do not hold it."""
        if not hasattr(self, "_shared"):
            shared = _share(self._fitted.network, self._fitted.run.device)
            if shared.computing.engine.fingerprint[:64] != self._fingerprint:
                raise ModelError(f"The weights of the backbone {self.backbone} have changed since training. Fit again.")
            self._shared = shared
        return self._shared

    def _resolve(self, names: Sequence[str]) -> Settings:
        """The settings of the parameters, for classes of these names."""
        others = dict(self.settings or {})
        if wrong := [name for name in others if name not in _OPEN]:
            own_parameter = wrong[0] == "seed" or wrong[0] in self.get_params()
            known = "has no effect here" if wrong[0] in find_groups() else "is not a setting"
            why = "has a parameter of its own" if own_parameter else known
            raise UsageError(f"{quote(wrong[0])} {why}. Choose from {', '.join(sorted(_OPEN))}.", "settings")
        own = {name: getattr(self, name) for name in ("backbone", "recipe", "lr", "weight_decay")}
        seed = self.random_state
        if not isinstance(seed, int | np.integer):
            seed = check_random_state(seed).randint(2**31 - 1)
        data = {"path": "X", "audit": False, "positive": names[1] if len(names) == 2 else None}
        settings = resolve_settings({**others, **own, **data, "seed": int(seed)}, {})
        if settings.network.train_backbone:
            raise UsageError(
                f"{self.recipe} trains the whole network. Use head or baseline, or `pneumoscope.cross_validate`.",
                "recipe",
            )
        return settings

    @contextmanager
    def _open_cache(self) -> Iterator[FeatureCache]:
        """The cache that was asked for; without one, features are kept only as long as this is open."""
        own = self.cache if isinstance(self.cache, bool) else Path(self.cache)
        with ExitStack() as stack:
            chosen = stack.enter_context(FeatureCache(own)) if isinstance(own, Path) else own
            opened = stack.enter_context(open_cache(chosen))
            yield opened or stack.enter_context(FeatureCache(MEMORY))

    def __getstate__(self) -> dict[str, Any]:
        """All but the backbone, which its name identifies."""
        state = dict(super().__getstate__())
        state.pop("_shared", None)
        return state

    def __sklearn_tags__(self) -> Any:
        """Say that `X` holds text, in a column or without one."""
        tags = super().__sklearn_tags__()
        tags.input_tags.string = tags.input_tags.one_d_array = True
        return tags


def _share(network: NetworkSettings, device: Device) -> Shared:
    """A backbone, and what computes its features; loaded once for all fits unless it is a file, which may change."""
    return _load(network, device) if network.weights else _load_once(network, device)


def _load(network: NetworkSettings, device: Device) -> Shared:
    settings = Settings(run=RunSettings(device=device), data=DataSettings(path="X"), network=network)
    setup = set_up(settings, [], ())
    return Shared(setup, prepare_computing(setup))


_load_once = functools.lru_cache(maxsize=1)(_load)


def _make_column(X: Paths) -> Paths:  # noqa: N803
    """Paths (n,) as (n, 1); all else as it is."""
    if hasattr(X, "columns"):
        return X
    array = np.asarray(X)
    return array[:, None] if array.ndim == 1 else X


def _list_paths(column: NDArray[Any]) -> list[Path]:
    """The paths in (n, 1) cells."""
    if column.shape[1] != 1:
        raise ArgumentError(f"must have one column, of paths; found {column.shape[1]}.", "X")
    cells = column[:, 0].tolist()
    if wrong := [each for each in cells if not isinstance(each, str | os.PathLike)]:
        raise ArgumentError(f"must hold paths of image files, found {quote(wrong[0])}.", "X")
    return [Path(each) for each in cells]


def _name_patient(value: object) -> str | None:
    """The patient that a group names; None where it is empty or NaN."""
    if value is None or value != value or value == "":
        return None
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _show_if_slow() -> Progress:
    """Progress in a notebook, once a task has taken some time."""
    start = time.monotonic()

    def show(task: str, done: int, total: int) -> None:
        if time.monotonic() - start > _SLOW:
            notebook_progress(task, done, total)

    return show
