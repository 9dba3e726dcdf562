"""Python functions refuse arguments of a wrong type or value with our own errors, before they do anything."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pneumoscope
from pneumoscope.errors import PneumoscopeError, UsageError
from pneumoscope.training.train import Run

WRONG: dict[str, list[tuple[tuple[Any, ...], dict[str, Any]]]] = {
    "adapt": [
        ((3,), {}), (("data",), {"head": "yes"}), (("data",), {"finetune": 3}), (("data",), {"alpha": "x"}),
        (("data",), {"seed": -1}),
    ],
    "audit": [((3,), {}), ((None,), {}), (("data",), {"seed": -1}), (("data",), {"cache": "yes"})],
    "compare": [((3,), {}), ((["a", 3],), {}), ((["a", "b"],), {"resamples": 0}), ((["a", "b"],), {"seed": "x"})],
    "cross_validate": [
        ((3,), {}), (("data",), {"folds": 1}), (("data",), {"workers": 0}), (("data",), {"ensemble": "yes"}),
    ],
    "draw_phantom": [((-1,), {"pneumonia": True}), (("x",), {"pneumonia": True}), ((0,), {"pneumonia": "yes"})],
    "estimate_metrics": [((3, ["A", "B"]), {}), (([], ["A", 1]), {}), (([], ["A", "B"]), {"resamples": 0})],
    "evaluate": [((b"data",), {}), (("data",), {"model": 3}), (("data",), {"alpha": "x"}), (("data",), {"seed": -1})],
    "evaluate_predictions": [
        ((b"p.csv",), {}), (("p.csv", 3), {}), (("p.csv",), {"scale": "odds"}), (("p.csv",), {"calibrate": "no"}),
        (("p.csv",), {"prevalence": "a"}),
    ],
    "explain": [((None,), {}), (("a.png", 3), {}), (("a.png",), {"method": "zoom"}), (("a.png",), {"label": 1})],
    "export": [((3,), {}), (("out",), {"to": "tflite"}), (("out",), {"naming": {}}), (("out",), {"progress": 1})],
    "grade": [((3, ["a.csv"]), {}), (("t.csv", [3]), {}), (("t.csv", ["a.csv"]), {"resamples": "many"})],
    "load": [
        ((3,), {}), (("run",), {"threshold": "0.5"}), (("run",), {"ood": "no"}), (("run",), {"engine": 3}),
        (("run",), {"alpha": [1]}), (("run",), {"prevalence": "a"}), (("run",), {"refuse_out_of_scope": 1}),
    ],
    "plot": [((3, "out"), {}), (("run", 3), {}), (("run", "out"), {"kind": 3}), (("run", "out"), {"names": ["a"]})],
    "prepare": [((None, pneumoscope.InputSpec()), {}), (([[0.0]], pneumoscope.InputSpec()), {}), ((np.ones(2), 3), {})],
    "pull": [((3, "out"), {}), (("a/b", 3), {}), (("a/b", "out"), {"revision": 3}), (("a/b", "out"), {"overwrite": 3})],
    "push": [((3, "a/b"), {}), (("run", 3), {}), (("run", "a/b"), {"private": "no"}), (("run", "a/b"), {"message": 3})],
    "read_pixels": [((None,), {}), ((3,), {}), (([1],), {}), (("a.png",), {"reading": "inverted"})],
    "read_samples": [((3,), {}), ((None,), {}), ((["data"],), {}), (("data",), {"naming": 3})],
    "split_samples": [((None,), {}), (([1],), {}), (([],), {"seed": -1}), (([],), {"val_fraction": "a"})],
    "summarize": [((3,), {}), ((["a", 3],), {}), ((["a"],), {"by": 3}), ((["a"],), {"overwrite": "no"})],
    "train": [
        ((3,), {}), (("data",), {"overwrite": "no"}), (("data",), {"config": 3}), (("data",), {"cache": 1}),
        (("data",), {"log_to": 3}), (("data",), {"callbacks": [print]}), (("data",), {"licence": "free"}),
        (("data",), {"test": "no"}),
    ],
    "tune": [
        ((3,), {}), (("data",), {"trials": 0}), (("data",), {"folds": 0}), (("data",), {"timeout": -1.0}),
        (("data",), {"space": 3}), (("data",), {"metric": 3}), (("data",), {"test": "no"}),
    ],
    "write_checklist": [((3,), {}), (("run",), {"checklist": ["claim"]}), (("run",), {"overwrite": "no"})],
    "write_dicom_results": [
        ((3, "out"), {}), (("a.dcm", 3), {}), (("a.dcm", "out"), {"kinds": ("pdf",)}), (("a.dcm", "out"), {"unit": ""}),
        (("a.dcm", "out"), {"report_class": "basic"}), (("a.dcm", "out"), {"invert": "no"}),
    ],
    "write_phantoms": [((3,), {}), (("new",), {"count": "x"}), (("new",), {"seed": 1.5}), (("new",), {"size": None})],
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "args", "options"), [(name, *wrong) for name, several in WRONG.items() for wrong in several]
)
def test_a_wrong_argument_is_refused(name: str, args: tuple[Any, ...], options: dict[str, Any]) -> None:
    with pytest.raises(UsageError) as caught:
        getattr(pneumoscope, name)(*args, **options)
    assert caught.value.parameter
    assert re.search("found|there is no", str(caught.value))


def test_every_public_function_has_its_examples() -> None:
    functions = {name for name in pneumoscope.__all__ if name.islower() and name != "__version__"}
    assert functions == set(WRONG)


@pytest.mark.parametrize(
    ("given", "found"),
    [
        (None, "None"),
        (3, "3"),
        ([None], "NoneType"),
        ([3], "int"),
        (np.zeros((4, 4)), "ndarray"),
        (bytearray(3), "int"),
    ],
)
def test_what_is_no_image_is_refused(given: Any, found: str, run: Run) -> None:
    with pytest.raises(UsageError, match=f"^images: .* found {found}"):
        pneumoscope.load(run.model).predict(given)


def test_numbers_of_numpy_are_numbers(run: Run) -> None:
    predictor = pneumoscope.load(run.model, threshold=np.float32(0.25))  # type: ignore[arg-type]
    assert predictor.threshold == 0.25
    assert pneumoscope.draw_phantom(np.int64(3), pneumonia=True).label == "PNEUMONIA"  # type: ignore[arg-type]


def test_a_missing_argument_is_pythons_own_error() -> None:
    with pytest.raises(TypeError, match="missing a required argument: 'pneumonia'"):
        pneumoscope.draw_phantom(1)  # type: ignore[call-arg]
    assert not issubclass(TypeError, PneumoscopeError)


def test_warnings_of_predictions_are_logged(run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from dicom_files import dicom, image

    for name in ("a", "b"):
        (tmp_path / f"{name}.dcm").write_bytes(dicom(image(), ViewPosition="LL"))
    with caplog.at_level(logging.WARNING, "pneumoscope"):
        predictions = pneumoscope.load(run.model).predict(tmp_path)
    said = "outside the intended use: view LL (meant for frontal views)"
    assert [said in each.warnings for each in predictions] == [True, True]
    assert f"2 images have the warning {said!r}." in caplog.messages
