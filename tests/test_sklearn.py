"""`RadiographClassifier` in scikit-learn: paths, searches, pipelines, patients, and the checks of scikit-learn."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sklearn
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.exceptions import NotFittedError, SkipTestWarning
from sklearn.model_selection import GridSearchCV, GroupKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils.estimator_checks import check_estimator

import pneumoscope
from pneumoscope.errors import DataError, ImageError, UsageError
from pneumoscope.models.model_folder import load_arrays, load_model
from pneumoscope.sklearn import RadiographClassifier

QUICK: dict[str, Any] = {"size": 64, "epochs": 5}


@pytest.fixture(scope="module")
def files(images: Path) -> list[Path]:
    """The training and validation images of the shared phantoms."""
    return sorted(path for path in images.glob("*/*/*.png") if "test" not in path.parts)


@pytest.fixture(scope="module")
def labels(files: list[Path]) -> list[str]:
    return [path.parent.name for path in files]


@pytest.fixture(scope="module")
def fitted(files: list[Path], labels: list[str]) -> RadiographClassifier:
    """A fitted classifier; tests read it and change nothing."""
    return RadiographClassifier(settings=QUICK).fit(files, labels)


@pytest.fixture
def routing() -> Iterator[None]:
    with sklearn.config_context(enable_metadata_routing=True):
        yield


def test_it_trains_the_head_that_train_trains(
    fitted: RadiographClassifier, images: Path, files: list[Path], tmp_path: Path
) -> None:
    table = tmp_path / "table.csv"
    rows = [(path, path.parent.name, "train") for path in files]
    rows += [(path, path.parent.name, "test") for path in images.glob("test/*/*.png")]
    table.write_text("path,label,split\n" + "".join(f"{','.join(map(str, row))}\n" for row in rows))
    run = pneumoscope.train(table, tmp_path / "run", recipe="head", resamples=20, audit=False, **QUICK)
    arrays = load_arrays(run.model, load_model(run.model))
    np.testing.assert_array_equal(fitted.coef_, arrays["head.weight"])
    np.testing.assert_array_equal(fitted.intercept_, arrays["head.bias"])
    predictions = pneumoscope.load(run.model).predict(files)
    probabilities = np.array([list((each.probabilities or {}).values()) for each in predictions])
    np.testing.assert_allclose(fitted.predict_proba(files), probabilities, rtol=1e-6)
    assert fitted.predict(files).tolist() == [each.predicted_label for each in predictions]


def test_paths_may_be_a_list_an_array_or_a_column(fitted: RadiographClassifier, files: list[Path]) -> None:
    expected = fitted.predict_proba(files)
    assert expected.shape == (len(files), 2)
    np.testing.assert_allclose(expected.sum(axis=1), 1)
    for given in ([str(each) for each in files], np.array(files), np.array(files, dtype=str)[:, None]):
        np.testing.assert_array_equal(fitted.predict_proba(given), expected)
    assert fitted.n_features_in_ == 1
    assert fitted.classes_.tolist() == ["NORMAL", "PNEUMONIA"]


@pytest.mark.parametrize("threshold", ["0", "1"])
def test_a_threshold_at_an_end_gives_finite_decisions_that_agree_with_the_classes(
    threshold: str, files: list[Path], labels: list[str]
) -> None:
    classifier = RadiographClassifier(settings={**QUICK, "threshold": threshold}).fit(files, labels)
    decisions = classifier.decision_function(files)
    assert np.isfinite(decisions).all()
    assert ((decisions > 0) == (classifier.predict(files) == "PNEUMONIA")).all()
    assert (decisions > 0).all() == (threshold == "0")


def test_the_decision_function_agrees_with_the_predicted_classes(
    fitted: RadiographClassifier, files: list[Path]
) -> None:
    positive = fitted.decision_function(files) >= 0
    assert fitted.classes_[positive.astype(int)].tolist() == fitted.predict(files).tolist()


@pytest.mark.parametrize("classes", [2, 3])
def test_labels_may_be_numbers_of_two_or_more_classes(files: list[Path], classes: int) -> None:
    numbers = np.arange(len(files)) % classes + 9  # 9, 10, 11: as text they would be in another order
    classifier = RadiographClassifier(settings=QUICK).fit(files, numbers)
    predicted = classifier.predict(files)
    assert predicted.dtype == numbers.dtype
    assert classifier.classes_.tolist() == [9, 10, 11][:classes]
    assert classifier.predict_proba(files).shape == (len(files), classes)
    if classes > 2:
        best = classifier.decision_function(files).argmax(axis=1)
        assert classifier.classes_[best].tolist() == predicted.tolist()
    assert 0 <= classifier.score(files, numbers) <= 1


def test_it_works_in_cross_validation_searches_and_pipelines(files: list[Path], labels: list[str]) -> None:
    classifier = RadiographClassifier(settings=QUICK)
    assert cross_val_score(classifier, files, labels, cv=3, scoring="roc_auc").shape == (3,)
    pipeline = make_pipeline(FunctionTransformer(), classifier)
    search = GridSearchCV(pipeline, {"radiographclassifier__lr": [1e-3, 1e-2]}, cv=2, error_score="raise")
    search.fit(np.array(files), labels)
    assert search.predict_proba(np.array(files)).shape == (len(files), 2)
    calibrated = CalibratedClassifierCV(classifier, cv=2).fit(files, labels)
    assert calibrated.predict(files).shape == (len(files),)


def test_groups_keep_patients_together(files: list[Path], labels: list[str], routing: None) -> None:
    classifier = RadiographClassifier(settings=QUICK).set_fit_request(groups=True)
    patients = np.arange(len(files)) // 2
    scores = cross_val_score(
        classifier, files, labels, cv=GroupKFold(2), params={"groups": patients}, error_score="raise"
    )
    assert np.isfinite(scores).all()
    search = GridSearchCV(classifier, {"lr": [1e-3]}, cv=GroupKFold(2), error_score="raise")
    assert search.fit(files, labels, groups=patients).best_index_ == 0
    with pytest.raises(DataError, match="all of one patient"):
        classifier.fit(files, labels, groups=labels)
    unknown = [None if i % 2 else float("nan") for i in range(len(files))]
    assert classifier.fit(files, labels, groups=unknown).model_.labels == ("NORMAL", "PNEUMONIA")


def test_a_clone_is_unfitted_and_a_pickle_is_small_and_predicts_the_same(
    fitted: RadiographClassifier, files: list[Path]
) -> None:
    with pytest.raises(NotFittedError):
        clone(fitted).predict(files)
    content = pickle.dumps(fitted)
    assert len(content) < 200_000  # without the backbone
    np.testing.assert_array_equal(pickle.loads(content).predict_proba(files), fitted.predict_proba(files))


def test_equal_seeds_give_equal_classifiers_and_the_seed_is_recorded(files: list[Path], labels: list[str]) -> None:
    drawn = RadiographClassifier(settings=QUICK, random_state=np.random.RandomState(3)).fit(files, labels)
    again = RadiographClassifier(settings=QUICK, random_state=drawn.seed_).fit(files, labels)
    np.testing.assert_array_equal(drawn.coef_, again.coef_)
    other = RadiographClassifier(settings=QUICK, random_state=drawn.seed_ + 1).fit(files, labels)
    assert not np.array_equal(drawn.coef_, other.coef_)


def test_features_are_kept_in_a_file_of_ones_own_or_nowhere(
    fitted: RadiographClassifier, files: list[Path], labels: list[str], tmp_path: Path
) -> None:
    for cache in (tmp_path / "features.sqlite", False):
        classifier = RadiographClassifier(settings=QUICK, cache=cache).fit(files, labels)
        np.testing.assert_array_equal(classifier.coef_, fitted.coef_)
    assert (tmp_path / "features.sqlite").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"recipe": "finetune"}, "^recipe: finetune trains the whole network"),
        ({"recipe": "quick"}, "^recipe: 'quick' does not exist"),
        ({"lr": -1.0}, "lr: must be greater than 0"),
        ({"backbone": "nothing"}, "nothing"),
        ({"settings": {"lr": 0.1}}, "^settings: 'lr' has a parameter of its own"),
        ({"settings": {"path_column": "file"}}, "^settings: 'path_column' has no effect"),
        ({"settings": {"speed": 3}}, "^settings: 'speed' is not a setting. Choose from "),
        ({"settings": {"threshold": "high"}}, "^threshold: "),
    ],
)
def test_parameters_that_are_not_valid_are_refused_by_fit(
    files: list[Path], labels: list[str], parameters: dict[str, Any], said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        RadiographClassifier(**parameters).fit(files, labels)


def test_what_is_no_path_or_no_image_is_refused(
    fitted: RadiographClassifier, files: list[Path], labels: list[str], tmp_path: Path
) -> None:
    classifier = RadiographClassifier(settings=QUICK)
    with pytest.raises(UsageError, match=r"^X: must hold paths of image files, found 0\.0"):
        classifier.fit(np.zeros(4), [0, 1, 0, 1])
    with pytest.raises(UsageError, match=r"^X: must have one column, of paths; found 2"):
        classifier.fit(np.array([files, files]).T, labels)
    with pytest.raises(UsageError, match=r"^y: the only class is A"):
        classifier.fit(files, ["A"] * len(files))
    damaged = tmp_path / "damaged.png"
    damaged.write_bytes(files[0].read_bytes()[:200])
    with pytest.raises(ImageError, match=r"^X\[0\]: .*damaged\.png.* Leave it out of X \(1 of 37 cannot be read\)"):
        classifier.fit([damaged, *files], [labels[0], *labels])
    with pytest.raises(ImageError, match=r"^X\[1\]: .*damaged\.png"):
        fitted.predict([files[0], damaged])
    with pytest.raises(DataError, match="same file"):
        classifier.fit([*files, files[0]], [*labels, "other"])


# The checks of scikit-learn that cannot pass, because `X` holds paths, and what each does.
EXPECTED = {
    "check_fit_score_takes_y": "fits random numbers, to see that `y` is the second argument",
    "check_estimators_overwrite_params": "fits random numbers, to see that parameters stay as they are",
    "check_dont_overwrite_parameters": "takes a row of `X`, which it made 1-D because of our tag",
    "check_estimators_fit_returns_self": "fits random numbers, to see what `fit` returns",
    "check_readonly_memmap_input": "fits random numbers that cannot be written",
    "check_n_features_in_after_fitting": "fits random numbers; `n_features_in_` has a test of ours",
    "check_positive_only_tag_during_fit": "fits negative numbers",
    "check_estimators_dtypes": "fits numbers of several types",
    "check_dtype_object": "fits numbers as objects; an array of `Path` is one of objects, too",
    "check_pipeline_consistency": "fits random numbers; pipelines have a test of ours",
    "check_estimators_nan_inf": "refuses NaN as expected, and then fits random numbers",
    "check_estimator_sparse_array": "makes a sparse array 1-D because of our tag, which SciPy cannot",
    "check_estimators_pickle": "fits random numbers; pickles have a test of ours",
    "check_f_contiguous_array_estimator": "takes a column of `X`, which it made 1-D because of our tag",
    "check_classifier_data_not_an_array": "fits a small array of numbers",
    "check_classifiers_classes": "fits random numbers; labels as text have a test of ours",
    "check_classifiers_train": "fits clusters of numbers and expects an accuracy",
    "check_supervised_y_2d": "fits random numbers with a column of labels",
    "check_decision_proba_consistency": "fits clusters of numbers in two columns",
    "check_methods_sample_order_invariance": "takes a column of `X`, which it made 1-D because of our tag",
    "check_methods_subset_invariance": "takes a column of `X`, which it made 1-D because of our tag",
    "check_fit2d_1sample": "takes a column of `X`, which it made 1-D because of our tag",
    "check_fit2d_1feature": "takes a column of `X`, which it made 1-D because of our tag",
    "check_dict_unchanged": "takes a column of `X`, which it made 1-D because of our tag",
    "check_fit_idempotent": "fits random numbers; equal seeds have a test of ours",
    "check_fit_check_is_fitted": "fits random numbers; what is not fitted is refused in a test of ours",
    "check_n_features_in": "fits random numbers; `n_features_in_` has a test of ours",
    "check_fit2d_predict1d": "expects 1-D arrays to be refused, which we take",
}


@pytest.mark.filterwarnings("ignore")
def test_exactly_those_checks_of_scikit_learn_fail_that_need_numbers() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SkipTestWarning)
        results = check_estimator(
            RadiographClassifier(settings=QUICK), expected_failed_checks=EXPECTED, on_fail=None, on_skip=None
        )
    failed = {each["check_name"]: each["exception"] for each in results if each["status"] in ("failed", "xfail")}
    assert set(failed) == set(EXPECTED), {name: repr(why)[:200] for name, why in failed.items()}
    passed = {each["check_name"] for each in results if each["status"] == "passed"}
    assert len(passed) > 10
