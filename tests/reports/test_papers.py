"""What a run gives to a paper: checklists that claim nothing it does not show, methods, flow, Table 1 and figures."""

from __future__ import annotations

import csv
import json
import re
import shutil
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pneumoscope.datasets.phantom_sets import write_phantoms
from pneumoscope.datasets.samples import cluster_by_patient
from pneumoscope.datasets.splits import REDRAW
from pneumoscope.decisions.groups import Group
from pneumoscope.decisions.scope import Scope
from pneumoscope.errors import DataError, UsageError
from pneumoscope.evaluation.curves import roc_band
from pneumoscope.models.lineage import Parent, Step
from pneumoscope.reports.checklist import NAMES, OUTPUTS, list_items, write_checklist
from pneumoscope.reports.citations import write_bibtex
from pneumoscope.reports.facts import FACTS, find_fact
from pneumoscope.reports.methods import write_methods
from pneumoscope.reports.print_figures import plot
from pneumoscope.reports.study import read_study
from pneumoscope.training.train import train

if TYPE_CHECKING:
    from pneumoscope.reports.checklist import Checklist
    from pneumoscope.training.train import Run

SPLIT = {  # items with sub-items; the others are whole
    "claim": "",
    "tripod-ai": "3c 5b 6c 8c 9c 12g 18f 20c 23b 27c",
    "stard": "10b 12b 13b 21b",
}
ADDED = {"1", "3", "6", "7", "11", "12", "13", "14", "15b", "15d", "23", "25", "28", "29", "35", "39", "40a", "40b"}


@pytest.fixture(scope="module")
def paper(run: Run, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Checklist], Path]:
    out = tmp_path_factory.mktemp("paper") / "out"
    return write_checklist(run.folder, ",".join(NAMES), out), out


@pytest.mark.parametrize("name", NAMES)
def test_a_checklist_has_every_official_number_once(name: str) -> None:
    last = {int(each[:-1]): each[-1] for each in SPLIT[name].split()}
    expected = [
        f"{number}{letter}"
        for number in range(1, {"claim": 44, "tripod-ai": 27, "stard": 30}[name] + 1)
        for letter in ("abcdefg"[: "abcdefg".index(last[number]) + 1] if number in last else [""])
    ]
    numbers = [item["number"] for item in list_items(name)]
    assert numbers[: len(expected)] == expected
    rest = numbers[len(expected) :]
    assert len(rest) == len(set(rest))
    assert {each.removeprefix("AI ") for each in rest} == (ADDED if name == "stard" else set())


@pytest.mark.parametrize("name", NAMES)
def test_every_item_is_filled_from_known_facts_or_left_to_the_author(name: str) -> None:
    for item in list_items(name):
        assert set(item) <= {"number", "topic", "facts", "author", "missing"}, item
        assert set(item.get("facts", ())) <= set(FACTS), item
        assert item.get("facts") or item.get("author"), item


def test_what_no_run_can_know_stays_open(paper: tuple[list[Checklist], Path]) -> None:
    claim, tripod, stard = ({item.number: item for item in each.items} for each in paper[0])
    for item in (
        claim["5"],
        claim["11"],
        claim["16"],
        claim["33"],
        claim["44"],
        tripod["17"],
        stard["25"],
        stard["AI 6"],
    ):
        assert item.state == "author", item
        assert item.author


def test_numbers_are_those_of_the_run(paper: tuple[list[Checklist], Path], run: Run) -> None:
    claim = {item.number: item for item in paper[0][0].items}
    auroc = run.evaluation.metrics["auroc"]
    assert f"AUROC {auroc.value:.3f} ({auroc.low:.3f} to {auroc.high:.3f})" in claim["38"].facts[0].text
    assert "metrics.json" in claim["38"].facts[0].place
    test = [row for row in read_table(run.folder / "samples.csv") if row["split"] == "test"]
    assert f"test {len(test)}." in claim["19"].facts[0].text


def test_the_page_and_its_markdown_hold_every_item(paper: tuple[list[Checklist], Path]) -> None:
    checklists, out = paper
    assert sorted(path.name for path in out.iterdir()) == sorted(OUTPUTS)
    page, text = (out / "checklist.html").read_text(), (out / "checklist.md").read_text()
    rows = sum(len(each.items) for each in checklists)
    assert page.count('<td class="number">') == rows == 44 + 52 + 52
    assert len(re.findall(r"^\| (?:AI )?\d+\w? \|", text, re.MULTILINE)) == rows


def test_methods_say_which_epoch_was_kept_and_whether_training_stopped_early(run: Run, tmp_path: Path) -> None:
    folder = copy_run(run, tmp_path)
    history = (folder / "history.csv").read_text().splitlines()
    write_checklist(folder)
    page = (folder / "paper" / "checklist.html").read_text()
    assert f"ran for all of its {len(history) - 1} epochs" in page
    best = read_study(folder).model.training["best"]
    assert f"the weights of epoch {best['epoch']} of that phase" in page
    assert "Adam minimised binary cross-entropy" in page
    rows = [history[0], *(f"head,{i},0.001,0.5,{0.5 if i == 1 else 0.6},0.8" for i in range(1, 7))]
    (folder / "history.csv").write_text("\n".join(rows) + "\n")
    config = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(re.sub(r"epochs: 3\b", "epochs: 50", config))
    write_checklist(folder, overwrite=True)
    page = (folder / "paper" / "checklist.html").read_text()
    assert "stopped early after 6 of at most 50 epochs" in page


def test_exclusions_and_random_splits_reach_the_methods_and_the_flow(tmp_path: Path) -> None:
    images = tmp_path / "images"
    phantoms = write_phantoms(tmp_path / "phantoms", count=48, seed=3, size=64)
    for path in [each for split in ("train", "val", "test") for each in (phantoms / split).glob("*/*.png")]:
        folder = images / path.parent.name
        folder.mkdir(parents=True, exist_ok=True)
        path.rename(folder / path.name)
    label = images / "NORMAL"
    (label / "notes.txt").write_text("not an image")
    (label / "scan.dat").write_bytes(b"\x00" * 64)
    broken = min(label.glob("*.png"))
    broken.write_bytes(broken.read_bytes()[:200])
    run = train(images, tmp_path / "run", recipe="baseline", epochs=1, size=64, resamples=10, cache=False)
    intake = json.loads((run.folder / "intake.json").read_text())
    assert intake["drawn"] == ["test", "val"]
    assert {row["reason"]: row["files"] for row in intake["left_out"]} == {
        "files in an unknown format": 1, "text or table files": 1,
    }  # fmt: skip
    write_checklist(run.folder, "stard")
    page = (run.folder / "paper" / "checklist.html").read_text()
    assert "files in an unknown format (1)" in page
    assert "The test split was drawn at random (seed 0), 25% of each class" in page
    texts = [each.text for each in ET.parse(run.folder / "paper" / "flow.svg").iter("{http://www.w3.org/2000/svg}text")]
    assert "Files found: 50" in texts
    assert "File could not be used: 1" in texts
    decided = sum(int(match[1]) for text in texts if text and (match := re.fullmatch(r"truly \w+: (\d+)", text)))
    assert decided == run.evaluation.n


def test_table_one_counts_ages_sexes_and_what_is_missing(run: Run, tmp_path: Path) -> None:
    folder = copy_run(run, tmp_path)
    lines = (folder / "samples.csv").read_text().splitlines()
    facts = ["40,F,PA", "60,M,", ",,"]
    told = [f"{line},{facts[min(i, 2)]}" for i, line in enumerate(lines[1:])]
    (folder / "samples.csv").write_text("\n".join([f"{lines[0]},age,sex,view", *told]) + "\n")
    write_checklist(folder)
    table = {row["characteristic"]: row for row in read_table(folder / "paper" / "table1.csv")}
    assert table["Age in years: median (range)"]["All"] == "50 (40 to 60)"
    assert table["Sex: female"]["All"].startswith("1 (")
    assert table["View: not known"]["All"].startswith(f"{len(told) - 1} (")
    assert table["Images"]["All"] == str(len(told))


def test_bibtex_names_the_backbone_and_this_package(paper: tuple[list[Checklist], Path]) -> None:
    text = (paper[1] / "references.bib").read_text()
    keys = re.findall(r"^@\w+\{(.+),$", text, re.MULTILINE)
    assert keys == ["tan2019efficientnet", "paszke2019pytorch", "wightman2019timm", "pneumoscope"]
    assert text.count("{") == text.count("}")


def test_a_name_that_is_markup_stays_text(run: Run, tmp_path: Path) -> None:
    folder = copy_run(run, tmp_path)
    metrics = json.loads((folder / "metrics.json").read_text())
    metrics["notes"] = ["<script>alert(1)</script> is bold"]
    (folder / "metrics.json").write_text(json.dumps(metrics))
    write_checklist(folder)
    assert "<script>" not in (folder / "paper" / "checklist.html").read_text()
    assert "<script>" not in (folder / "paper" / "checklist.md").read_text()


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path, run: Run) -> None:
    with pytest.raises(DataError, match=r"config\.yaml.*not a finished run"):
        write_checklist(tmp_path)
    with pytest.raises(UsageError, match="no such checklist: consort"):
        write_checklist(run.folder, "consort", tmp_path / "out")
    folder = copy_run(run, tmp_path)
    (folder / "metrics.json").write_text("{}")
    with pytest.raises(DataError, match="do not fit together"):
        write_checklist(folder)


def test_figures_of_several_runs_embed_their_fonts_and_name_their_metric(run: Run, tmp_path: Path) -> None:
    other = copy_run(run, tmp_path)
    files = plot([run.folder, other], tmp_path / "out", kind="roc,pr,calibration,dca", format="pdf,svg", names="A,B")
    assert [path.name for path in files] == [
        f"{kind}.{form}" for kind in ("roc", "pr", "calibration", "dca") for form in ("pdf", "svg")
    ]
    for path in files:
        if path.suffix == ".pdf":
            assert b"/FontFile2" in path.read_bytes()
        else:
            assert b"<text" not in path.read_bytes()  # drawn as outlines, so that no font is needed


def test_the_legend_gives_auroc_with_its_interval(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from matplotlib.figure import Figure

    legends = []
    monkeypatch.setattr(Figure, "legend", lambda self, **_: legends.append(self.axes[0].get_legend_handles_labels()[1]))
    plot(run.folder, tmp_path / "out", names="ours")
    auroc = run.evaluation.metrics["auroc"]
    assert legends == [[f"ours: AUROC {auroc.value:.3f} ({auroc.low:.3f} to {auroc.high:.3f})"]]


def test_nothing_is_cut_off_at_the_edge_of_a_figure(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from matplotlib.figure import Figure

    figures: dict[int, Figure] = {}
    save = Figure.savefig

    def keep(self: Figure, *args: Any, **options: Any) -> None:
        figures[id(self)] = self
        save(self, *args, **options)

    monkeypatch.setattr(Figure, "savefig", keep)
    plot([run.folder] * 2, tmp_path / "out", kind="roc,pr,calibration,dca", names=f"short,{'a long name ' * 5}")
    for figure in figures.values():
        box = figure.legends[0].get_window_extent()
        assert box.x0 >= 0
        assert box.x1 <= figure.bbox.x1 + 1
        assert box.y0 >= -1
        assert figure.axes[0].get_window_extent().y0 > box.y1
    assert len(figures) == 4


def test_earlier_figures_of_another_kind_are_replaced_only_if_asked(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "out"
    plot(run.folder, out, kind="dca", format="png")
    with pytest.raises(UsageError, match="exists"):
        plot(run.folder, out)
    plot(run.folder, out, overwrite=True)
    assert [path.name for path in out.iterdir()] == ["roc.pdf"]
    (out / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match=r"contains notes\.txt"):
        plot(run.folder, out, overwrite=True)


def test_predictions_of_one_image_in_several_repeats_count_together(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, given = copy_run(run, tmp_path), list[Any]()
    rows = read_table(folder / "predictions.csv")
    with (folder / "predictions.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows({**row, "patient": ""} for row in rows * 2)

    def keep(labels: Any, probabilities: Any, patients: Any, **rest: Any) -> Any:
        given.append(cluster_by_patient(patients, len(labels)))
        return roc_band(labels, probabilities, patients, **rest)

    monkeypatch.setattr("pneumoscope.reports.print_figures.roc_band", keep)
    plot(folder, tmp_path / "out", format="svg")
    assert len(set(given[0])) == len(rows) == len(given[0]) / 2


def test_figures_refuse_what_they_cannot_draw(run: Run, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such kind: auc"):
        plot(run.folder, tmp_path / "out", kind="auc")
    with pytest.raises(UsageError, match="2 names for 1 run"):
        plot(run.folder, tmp_path / "out", names="a,b")
    with pytest.raises(DataError, match=r"metrics\.json is missing"):
        plot(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_run_that_continued_from_a_model_names_it_and_is_still_one_network(run: Run) -> None:
    study = read_study(run.folder)
    step = Step(Parent("first", "ab" * 32, sources=("rsna",)), "train")
    later = replace(study, model=replace(study.model, lineage=(step,)))
    network = write_methods(later)["Network"]
    assert "training continued from the model first (weights abababababab), which had learned from RSNA" in network
    assert "@misc{rsna-dataset," in write_bibtex(later)
    for name in ("single_network", "no_update"):
        assert find_fact(name, later) == find_fact(name, study)
        assert find_fact(name, later)


def test_methods_name_groups_and_the_copies_that_decided(run: Run) -> None:
    study = read_study(run.folder)
    children = Group("children", Scope((0, 17)), slope=2.0, images={"NORMAL": 30, "PNEUMONIA": 40})
    decisions = replace(
        study.decisions, groups=(children,), calibration=replace(study.decisions.calibration, method="platt", images=9)
    )
    written = write_methods(replace(study, decisions=decisions, settings={**study.settings, "augmented_copies": 4}))
    assert (
        "children (patients of 0 to 17 years): probabilities of its own, from 30 NORMAL and 40 PNEUMONIA"
        in written["Decisions"]
    )
    assert "on 9 validation images, of each the image itself or one of its 4 augmented copies" in written["Decisions"]
    assert "with all their augmented copies set the limit of the detector" in written["Decisions"]


def test_software_and_evidence_maps_are_known_without_the_text_of_the_report(run: Run, tmp_path: Path) -> None:
    folder = copy_run(run, tmp_path)
    (folder / "environment.json").write_text(json.dumps({"System": "CP/M", "Threads": "1 <or> 2"}))
    (folder / "report.html").write_text("")
    study = read_study(folder)
    software, maps = find_fact("software", study), find_fact("evidence_maps", study)
    assert software is not None
    assert "System when the run began: CP/M. Threads when the run began: 1 <or> 2." in software.text
    assert software.place == "environment.json; model/model.json: version"
    assert maps is not None
    (folder / "report.html").unlink()
    assert find_fact("evidence_maps", read_study(folder)) is None


@pytest.mark.parametrize("name", ["predictors", "blind_index"])
def test_age_and_view_count_as_predictors_where_they_choose_a_group(run: Run, name: str) -> None:
    study = read_study(run.folder)
    alone, children = find_fact(name, study), Group("children", Scope((0, 17)))
    grouped = find_fact(name, replace(study, decisions=replace(study.decisions, groups=(children,))))
    assert alone is not None
    assert grouped is not None
    said = "Age and view, where a DICOM header or a table gives them, choose the group"
    assert said in grouped.text
    assert said not in alone.text
    assert "only predictor is the image" not in grouped.text
    assert "no clinical information" not in grouped.text


def test_methods_say_which_tests_were_made_and_how_they_were_corrected(run: Run) -> None:
    study = read_study(run.folder)
    assert not study.subgroups
    assert "No test of significance was made." in write_methods(study)["Statistics"]
    n = study.metrics["n"]
    parts = [
        *(make_subgroup("Sex", name, n // 2, sensitivity=0.04, auroc=None) for name in ("female", "male")),
        *(make_subgroup("Age", name, n // 3, specificity=0.5) for name in ("children", "adults", "not known")),
        make_subgroup("View", "PA", n // 2),
    ]
    statistics = write_methods(replace(study, metrics={**study.metrics, "subgroups": parts}))["Statistics"]
    # The two sexes are all images, so that their differences from each other are one.
    assert (
        "Each subgroup (Sex, Age) was compared with all other images: 4 two-sided tests (Sensitivity, Specificity)"
        in statistics
    )
    assert "was corrected by Holm's method for all of these tests" in statistics
    assert "No test" not in statistics


def test_a_fold_of_a_cross_validation_says_nothing_of_how_its_images_were_chosen(run: Run, tmp_path: Path) -> None:
    (tmp_path / "folds").mkdir()
    folder = copy_run(run, tmp_path / "folds")
    assert "Given by the dataset" in write_methods(read_study(folder))["Splits"]
    (tmp_path / "crossval.yaml").write_text("folds: 5\n")
    written = write_methods(read_study(folder))
    assert "Given by the dataset" not in written["Splits"]
    assert "left out before reading" not in written["Data"]


def make_subgroup(kind: str, name: str, n: int, **p_values: float | None) -> dict[str, Any]:
    """A subgroup as metrics.json has it, with these p values of its differences by metric."""
    differences = {
        metric: {"value": 0.1, "low": 0.0, "high": 0.2, "rest": 0.8, "p": p, "adjusted": p}
        for metric, p in p_values.items()
    }
    counts = {"NORMAL": n, "PNEUMONIA": 0}
    return {"kind": kind, "name": name, "n": n, "counts": counts, "metrics": {}, "differences": differences}


def read_table(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


def copy_run(run: Run, folder: Path) -> Path:
    return Path(shutil.copytree(run.folder, folder / "copy"))


def test_what_the_audit_found_is_among_the_limitations_and_no_advice_is(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(run.folder, folder)
    record = json.loads((folder / "resume.json").read_text())
    title = (
        "The sharpness alone predicts the class: AUROC 0.90, by chance up to 0.56 (mean step, median: 0.1 in NORMAL)"
    )
    finding = {"check": "shortcuts", "severity": "warning", "title": title, "advice": "Test it on other images."}
    note = {
        "check": "audit",
        "severity": "note",
        "title": "More findings, with pictures",
        "advice": "pneumoscope audit",
    }
    record["remarks"]["findings"] = [finding, note]
    (folder / "resume.json").write_text(json.dumps(record))
    metrics = json.loads((folder / "metrics.json").read_text())
    metrics["notes"] = [
        "2 patients are in more than one of the given splits (samples.csv and log.txt say which). Re-split with "
        f"{REDRAW}, or ignore this if it is intended.",
        "12 validation images of NORMAL are too few for alpha 0.05: every prediction set includes NORMAL. Use at least "
        "19 images, or a larger alpha.",
        "Prediction sets hold the true label for 62% of the 50 NORMAL images; 90% was promised for images like the "
        "validation images. These images differ: do not rely on probabilities and threshold until they are calibrated.",
    ]
    (folder / "metrics.json").write_text(json.dumps(metrics))
    filled = dict(zip(NAMES, write_checklist(folder, ",".join(NAMES), tmp_path / "out"), strict=True))
    places = (("claim", "40"), ("tripod-ai", "26"), ("tripod-ai", "7"), ("stard", "26"), ("stard", "AI 23"))
    for name, number in places:
        checklist = filled[name]
        said = " ".join(fact.text for item in checklist.items if item.number == number for fact in item.facts)
        assert f"“{title}.”" in said
        assert "More findings" not in said
        if number in ("40", "26"):
            assert "“2 patients are in more than one of the given splits.”" in said
            assert "90% was promised for images like the validation images. These images differ.”" in said
            assert not re.search("Re-split|Use at least|do not|`|Test it", said)
