"""What its makers state about a model reaches model.json, card, `models show` and checklists, and stays with it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

import pneumoscope
from pneumoscope.cli import main as cli
from pneumoscope.errors import UsageError
from pneumoscope.models.about import About
from pneumoscope.models.model_folder import load_model
from pneumoscope.reports.checklist import write_checklist
from pneumoscope.training.settings import resolve_settings
from pneumoscope.training.train import Run

STATED: dict[str, Any] = {
    "author": "A. Author, Example Hospital", "licence": "cc-by-4.0", "data_source": "Author A. Our images. 2024.",
    "consent": "Waived by the committee, 17/2024", "funding": "Example Fund, which had no other role",
}  # fmt: skip


@pytest.fixture(scope="module")
def stated(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    options: dict[str, Any] = {"recipe": "head", "epochs": 1, "size": 64, "resamples": 20}
    return pneumoscope.train(images, tmp_path_factory.mktemp("stated") / "run", **options, **STATED)


def test_the_model_its_card_and_its_description_say_what_was_stated(
    stated: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    about = load_model(stated.model).about
    assert about == About(**{**STATED, "licence": "CC-BY-4.0"})
    assert about.spdx == "CC-BY-4.0"
    card = (stated.model / "README.md").read_text()
    assert "- **Licence of this model**: CC-BY-4.0;" in card
    assert card.startswith("---\nlicense: cc-by-4.0\n")  # where Hugging Face looks for it
    assert About(licence="text: ask us").hub_licence == "other"
    for text in (STATED["author"], STATED["data_source"], STATED["consent"], STATED["funding"]):
        assert text in card.replace("\\", "")
    monkeypatch.setattr(sys, "argv", ["pneumoscope", "models", "show", str(stated.folder)])
    with pytest.raises(SystemExit):
        cli.main()
    shown = capsys.readouterr().out
    assert f"author: {STATED['author']}\nlicence: CC-BY-4.0\ndata source: {STATED['data_source']}\n" in shown


def test_what_is_not_stated_is_said_to_be_so(run: Run) -> None:
    assert load_model(run.model).about == About()
    card = (run.model / "README.md").read_text()
    assert "\nlicense:" not in card
    for name in ("Author", "Licence of this model", "Funding"):
        assert f"- **{name}**: not stated" in card
    assert "- **Consent and ethics approval**, as the author states them: not stated" in card


def test_checklists_take_ethics_and_funding_from_the_model(stated: Run, run: Run, tmp_path: Path) -> None:
    items = {}
    for name, each in (("stated", stated), ("not", run)):
        (filled,) = write_checklist(each.folder, "tripod-ai", tmp_path / name)
        items[name] = {item.number: item for item in filled.items}
    assert [items["stated"][number].state for number in ("17", "18a")] == ["run", "run"]
    assert items["stated"]["17"].facts[0].text == f"“{STATED['consent']}”"
    assert STATED["data_source"] in items["stated"]["18e"].facts[-1].text
    assert [(items["not"][number].state, items["not"][number].author) for number in ("17", "18a")] == [
        ("author", "approval and consent"), ("author", "funding"),
    ]  # fmt: skip


def test_statements_stay_with_an_adapted_an_exported_and_a_continued_model(
    stated: Run, images: Path, tmp_path: Path
) -> None:
    about = load_model(stated.model).about
    local = pneumoscope.write_phantoms(tmp_path / "local", count=24, seed=7, size=64)  # that the model has not seen
    adapted = pneumoscope.adapt(local, tmp_path / "adapted", model=stated.folder, resamples=20)
    model = load_model(adapted.model)
    assert (model.about, model.lineage[-1].parent.about) == (about, about)
    assert "for the adaptation images, it is not stated" in (adapted.model / "README.md").read_text()
    exported = pneumoscope.export(tmp_path / "exported", stated.folder, "onnx")
    assert load_model(exported.folder).about == about
    continued = pneumoscope.train(
        images, tmp_path / "continued", init=str(stated.folder), recipe="head", epochs=1, resamples=20
    )
    model = load_model(continued.model)
    assert (model.about, model.lineage[-1].parent.about) == (About(), about)
    assert "its licence: CC-BY-4.0." in (continued.model / "README.md").read_text()


@pytest.mark.parametrize(
    ("stated", "kept"),
    [("apache-2.0 or mit", "Apache-2.0 OR MIT"), ("text: only in our hospital", "text: only in our hospital")],
)
def test_a_licence_is_an_spdx_expression_or_said_to_be_free_text(stated: str, kept: str) -> None:
    about = resolve_settings({"path": "images", "licence": stated}, {}).about
    assert about.licence == kept
    assert (about.spdx is None) == kept.startswith("text:")
    assert about.terms is not None
    assert ("not an SPDX identifier" in about.terms) == kept.startswith("text:")


@pytest.mark.parametrize("wrong", ["CC-BY", "free for all", "text:", "text:  "])
def test_a_licence_that_is_neither_is_refused(wrong: str) -> None:
    with pytest.raises(UsageError, match=r"licence: must be an SPDX identifier such as CC-BY-4\.0 .*, found"):
        resolve_settings({"path": "images", "licence": wrong}, {})
