"""Options that can have no effect are refused or said by the commands that use a model."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import pytest

from pneumoscope import audit, evaluate, load
from pneumoscope.cli import main as cli
from pneumoscope.errors import UsageError
from pneumoscope.training.train import Run


def typed(line: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> tuple[object, str]:
    monkeypatch.setattr(sys, "argv", ["pneumoscope", *line])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return ended.value.code, " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("predict IMAGE --overwrite", "--overwrite: no effect without --out or --heatmaps."),
        ("predict IMAGE --format table --patient-ids", "--patient-ids: no effect on a table, which has no patients."),
        ("predict IMAGE --path-column file", "--path-column: no effect, because there is no table."),
        ("predict IMAGE --no-ood --false-alarms 0.1", "--false-alarms: no effect without the OOD detector."),
        ("explain IMAGE --out x --path-column file", "--path-column: no effect, because there is no table."),
        ("compare RUN RUN --overwrite", "--overwrite: no effect without --out."),
        ("export --model RUN --out x --invert", "--invert: no effect on the run's own images. Pass --data too"),
        (
            "predict IMAGE --threshold youden",
            "--threshold: must be a number here, found the rule 'youden', which needs labelled images. Train with the "
            "rule, or apply it with `pneumoscope evaluate DATA --threshold RULE",
        ),
        ("predict IMAGE --threshold sensitivity>=0.9", "--threshold: must be a number here, found the rule"),
        ("predict IMAGE --threshold cost=5", "--threshold: must be a number here, found the rule"),
        ("predict IMAGE --threshold nan", "--threshold: nan is not between 0 and 1."),
        (
            "explain IMAGE --out x --threshold youden",
            "These commands have it: train, crossval, tune, adapt, evaluate, predict.",
        ),
    ],
)
def test_an_option_without_effect_is_refused(
    line: str,
    message: str,
    run: Run,
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    image = next((images / "test" / "NORMAL").iterdir())
    words = [{"IMAGE": str(image), "RUN": str(run.folder)}.get(word, word) for word in line.split()]
    if words[0] in ("predict", "explain"):
        words += ["--model", str(run.folder)]
    code, shown = typed(words, monkeypatch, capsys)
    assert (code, message in shown) == (2, True), shown
    assert list(tmp_path.iterdir()) == []


def test_python_refuses_a_rule_where_there_are_no_labels(run: Run) -> None:
    with pytest.raises(UsageError, match="threshold: must be a number here, found the rule 'youden'"):
        load(run.folder, threshold="youden")
    assert load(run.folder, threshold="0.3").threshold == 0.3


def test_options_of_output_without_output_are_said(run: Run, images: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "pneumoscope")
    evaluate(images, run.folder, resamples=20, excel=True, overwrite=True, plot_formats="png")
    audit(images, quick=True, overwrite=True, device="cpu", cache=False)
    assert [each for each in caplog.messages if "no effect" in each] == [
        "`plot_formats` has no effect without `out`.",
        "`excel` has no effect without `out`.",
        "`overwrite` has no effect without `out`.",
        "`overwrite` has no effect without `out`.",
        "`device` has no effect with `quick`, which uses no network.",
    ]
