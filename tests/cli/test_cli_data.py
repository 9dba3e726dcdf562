"""`audit`, `data split` and `data fetch` on the command line."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import pneumoscope
from pneumoscope.auditing.findings import Audit, Finding
from pneumoscope.cli import main as cli
from pneumoscope.cli.output import print_audit
from pneumoscope.datasets.phantom_sets import write_phantoms
from pneumoscope.datasets.reading import read_samples
from pneumoscope.datasets.samples import write_samples


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Runner:
    return Runner(capsys, monkeypatch)


class Runner:
    """Runs the command line in this process: exit code, standard output, standard error."""

    def __init__(self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        self._capsys = capsys
        self._patch = monkeypatch
        monkeypatch.setenv("COLUMNS", "80")

    def __call__(self, *words: object) -> tuple[int, str, str]:
        self._patch.setattr(sys, "argv", ["pneumoscope", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        told = self._capsys.readouterr()
        return int(ended.value.code or 0), told.out, told.err


@pytest.fixture
def leaky(images: Path, tmp_path: Path) -> Path:
    """Images of which one is in train and, under another name of the same patient, in test."""
    folder = tmp_path / "leaky"
    shutil.copytree(images, folder, ignore=shutil.ignore_patterns("masks", "truth.csv"))
    image = next((folder / "train" / "NORMAL").iterdir())
    shutil.copy(image, folder / "test" / "NORMAL" / f"{image.stem}0.png")
    return folder


def test_an_audit_prints_the_worst_first_and_ends_as_it_is_told(run: Runner, leaky: Path, tmp_path: Path) -> None:
    code, out, _ = run("audit", leaky, "--quick", "--out", tmp_path / "first")
    assert code == 0
    assert out.index("error  ") < out.index("warning  ")
    assert "One patient is in test and train" in out
    assert max(len(line) for line in out.splitlines() if str(tmp_path) not in line) <= 80
    assert {path.name for path in (tmp_path / "first").iterdir()} == {"audit.html", "audit.json"}
    for level in ("error", "warning"):
        assert run("audit", leaky, "--quick", "--out", tmp_path / level, "--fail-on", level)[0] == 3
    assert run("audit", leaky, "--quick", "--out", tmp_path / "first")[0] == 2
    assert run("audit", leaky, "--quick", "--out", tmp_path / "first", "--overwrite")[0] == 0


def test_a_finding_shows_the_end_of_a_path_however_long(run: Runner, images: Path, tmp_path: Path) -> None:
    samples = []
    for i, sample in enumerate(read_samples(images)):
        place = tmp_path / "a" / "rather-long-name-of-a-folder" / f"patient{i:05}" / "study1"
        place.mkdir(parents=True)
        shutil.copy(sample.path, place / "view1_frontal_of_the_first_examination_of_the_chest.png")
        samples.append(replace(sample, path=place / "view1_frontal_of_the_first_examination_of_the_chest.png"))
    shutil.copy(samples[0].path, samples[1].path)
    (tmp_path / "lists").mkdir()
    write_samples(tmp_path / "lists" / "images.csv", samples)
    code, out, _ = run("audit", tmp_path / "lists" / "images.csv", "--quick", "--out", tmp_path / "audit")
    assert code == 0
    shown = "".join(line.strip() for line in out.splitlines())
    end = "study1/view1_frontal_of_the_first_examination_of_the_chest.png"
    assert all(f"…/rather-long-name-of-a-folder/{name}/{end}" in shown for name in ("patient00000", "patient00001"))
    assert max(len(line) for line in out.splitlines() if str(tmp_path) not in line) <= 80


def test_the_cache_is_used_unless_it_is_switched_off(
    run: Runner, leaky: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PNEUMOSCOPE_CACHE", str(tmp_path / "cache"))
    assert run("audit", leaky, "--quick", "--no-cache", "--out", tmp_path / "a")[0] == 0
    pneumoscope.audit(leaky, quick=True, cache=False)
    assert not (tmp_path / "cache").exists()
    pneumoscope.audit(leaky, quick=True)
    assert (tmp_path / "cache" / "features.sqlite").exists()
    (tmp_path / "file").touch()
    monkeypatch.setenv("PNEUMOSCOPE_CACHE", str(tmp_path / "file"))
    code, _, err = run("audit", leaky, "--quick", "--out", tmp_path / "b")
    assert code == 0
    assert "cannot be opened" in err
    assert "Pass --no-cache, or delete the file. Continuing without it." in err


def test_a_file_name_cannot_control_the_terminal(run: Runner, leaky: Path, tmp_path: Path) -> None:
    (leaky / "train" / "NORMAL" / "a\x1b[31m\nerror: b.png").write_bytes(b"not an image")
    code, out, err = run("audit", leaky, "--quick", "--out", tmp_path / "out")
    assert code == 0
    assert "\x1b" not in out + err
    assert not [line for line in out.splitlines() if line.startswith("error:")]
    assert "\x1b" not in run("predict", leaky / "no\x1b[31m", "--model", tmp_path / "none\x1b[31m")[2]


def test_a_split_is_kept_unless_it_is_drawn_anew_which_mends_leaks(run: Runner, leaky: Path, tmp_path: Path) -> None:
    sizes = ("--test-count", 12, "--val-count", 12)
    assert run("data", "split", leaky, "--redraw", "--out", tmp_path / "new.csv", *sizes)[0] == 0
    assert run("audit", tmp_path / "new.csv", "--quick", "--out", tmp_path / "a", "--fail-on", "error")[0] == 0
    drawn = [sample.split for sample in read_samples(tmp_path / "new.csv")]
    assert [drawn.count(split) for split in ("val", "test")] == [12, 12]
    code, _, err = run("data", "split", leaky, "--out", tmp_path / "kept.csv")
    assert code == 0
    assert "The existing splits are kept (train, val, test); nothing is drawn. To redraw all splits, use" in err
    assert [s.split for s in read_samples(tmp_path / "kept.csv")] == [s.split for s in read_samples(leaky)]


def test_missing_splits_are_drawn_and_val_alone_can_be_drawn_anew(run: Runner, images: Path, tmp_path: Path) -> None:
    folder = tmp_path / "some"
    shutil.copytree(images, folder, ignore=shutil.ignore_patterns("masks", "truth.csv", "val"))
    before = {sample.path for sample in read_samples(folder) if sample.split == "test"}
    code, _, err = run("data", "split", folder, "--out", tmp_path / "some.csv", "--val-count", 6)
    assert code == 0
    assert "The existing splits are kept (test); drawn from train: val." in err
    again = ("data", "split", tmp_path / "some.csv", "--redraw-val", "--out", tmp_path / "val.csv", "--seed", 7)
    assert run(*again, "--val-count", 8)[0] == 0
    first, second = (
        {
            split: {s.path.resolve() for s in read_samples(tmp_path / name) if s.split == split}
            for split in ("val", "test")
        }
        for name in ("some.csv", "val.csv")
    )
    assert second["test"] == first["test"] == {path.resolve() for path in before}
    assert second["val"] != first["val"]
    assert len(second["val"]) == 8


def test_a_tiny_validation_split_is_said_with_the_way_out(run: Runner, tmp_path: Path) -> None:
    for split, count in (("train", 70), ("val", 8), ("test", 30)):
        for label in ("NORMAL", "PNEUMONIA"):
            (tmp_path / "data" / split / label).mkdir(parents=True)
            for number in range(count):
                (tmp_path / "data" / split / label / f"{number}.png").touch()
    code, _, err = run("data", "split", tmp_path / "data", "--by-name", "--out", tmp_path / "kept.csv")
    assert code == 0
    assert "The validation split has only 16 images (8 NORMAL, 8 PNEUMONIA), too few to choose a threshold." in err
    assert "pneumoscope data split DATA --redraw-val" in err
    redrawn = run("data", "split", tmp_path / "data", "--by-name", "--redraw-val", "--out", tmp_path / "new.csv")
    assert redrawn[0] == 0
    assert "too few" not in redrawn[2]
    assert "test 60 (30 NORMAL, 30 PNEUMONIA)" in redrawn[1]


def test_folds_are_files_that_train_reads(run: Runner, images: Path, tmp_path: Path) -> None:
    code, out, _ = run("data", "split", images, "--redraw", "--folds", 3, "--out", tmp_path / "folds")
    assert code == 0
    assert len(out.splitlines()) == 3
    tested = [
        sample.path
        for number in range(3)
        for sample in read_samples(tmp_path / "folds" / f"fold-{number}.csv")
        if sample.split == "test"
    ]
    assert len(tested) == len(set(tested)) == 48
    assert run("data", "split", images, "--folds", 3, "--out", tmp_path / "folds")[0] == 2


@pytest.mark.parametrize(
    "words",
    [
        ("--test-count", 9, "--test-fraction", 0.2),
        ("--val-count", 9, "--val-fraction", 0.2),
        ("--folds", 3, "--test-count", 9),
        ("--folds", 3),  # the data have splits
        ("--folds", 3, "--redraw-val"),
        ("--redraw", "--redraw-val"),
        ("--val-count", 9),  # val is kept
        ("--test-fraction", 0.2),
        ("--balanced", "both"),
        ("--redraw-val", "--test-count", 9),
        ("--subset", "seed-400", "--redraw"),
        ("--subset", "seed-400", "--val-count", 9),
        ("--subset", "seed-400", "--folds", 3),
        ("--test-fraction", 2),
    ],
)
def test_options_that_contradict_each_other_are_refused(
    run: Runner, images: Path, tmp_path: Path, words: tuple[object, ...]
) -> None:
    code, _, err = run("data", "split", images, "--out", tmp_path / "out", *words)
    assert code == 2
    assert "error: --" in err
    assert not (tmp_path / "out").exists()


def test_images_that_cannot_be_compared_are_said(run: Runner, leaky: Path, tmp_path: Path) -> None:
    (leaky / "train" / "NORMAL" / "bad.png").write_bytes(b"not an image")
    split = ("data", "split", leaky, "--redraw", "--out")
    assert "1 images could not be read" in run(*split, tmp_path / "s.csv")[2]
    assert "could not" not in run(*split, tmp_path / "n.csv", "--by-name")[2]


def test_a_data_set_out_of_reach_ends_in_exit_code_5(run: Runner, tmp_path: Path) -> None:
    code, _, err = run("data", "fetch", "kermany", "--out", tmp_path / "out", "--url", "http://127.0.0.1:9/x.zip")
    assert code == 5
    assert "--archive" in err
    assert run("data", "fetch", "nonsense", "--out", tmp_path / "out")[0] == 2


def test_columns_and_classes_are_named_in_every_command_that_reads_a_table(
    run: Runner, images: Path, tmp_path: Path
) -> None:
    samples = read_samples(images)[::6]
    lines = ["where;what;who;usage", *(f"{s.path};{s.label};{s.patient};train" for s in samples)]
    table = tmp_path / "others.csv"
    table.write_text("\n".join(lines), encoding="utf-16")
    columns = ("--path-column", "where", "--label-column", "What", "--patient-column", "who")
    code, _, told = run("data", "split", table, "--out", tmp_path / "s.csv", "--by-name", *columns[:2])
    assert (code, "no column label" in told, "--label-column" in told) == (3, True, True)
    code, _, told = run("data", "split", table, "--out", tmp_path / "s.csv", "--by-name", *columns)
    assert (code, "--split-column='usage'" in told or "--split-column usage" in told) == (3, True)
    named = (*columns, "--split-column", "none", "--map", "PNEUMONIA=P,*=N")
    code, _, told = run("data", "split", table, "--out", tmp_path / "s.csv", "--by-name", "--balanced", "none", *named)
    assert code == 0
    assert "path from where, label from what, patient from who" in told
    assert f"the class P {sum(s.label == 'PNEUMONIA' for s in samples)} images of 'PNEUMONIA'" in told
    assert {s.label for s in read_samples(tmp_path / "s.csv")} == {"P", "N"}
    assert {s.metadata["usage"] for s in read_samples(tmp_path / "s.csv")} == {"train"}
    code, _, told = run("audit", table, "--quick", "--out", tmp_path / "audit", *named)
    assert code == 0
    page = (tmp_path / "audit/audit.html").read_text()
    assert all(words in page for words in ("--path-column where", "--split-column none", "PNEUMONIA=P,*=N"))
    for command in ("evaluate", "export"):
        code, _, told = run(command, *([table] if command == "evaluate" else ["--data", table]), "--out",
                            tmp_path / command, "--path-column", "wehre")  # fmt: skip
        assert (code, "--path-column: " in told, "Did you mean 'where'" in told) == (2, True, True), command
    code, _, told = run("predict", table, "--path-column", "wehre")
    assert (code, "--path-column: " in told) == (2, True)
    config = tmp_path / "c.yaml"
    config.write_text(f"data:\n  path: {table}\n  path_column: wehre\n  map: {{PNEUMONIA: P, '*': N}}\n")
    code, _, told = run("train", "--config", config, "--out", tmp_path / "run")
    assert (code, "--path-column: " in told) == (2, True)


def test_what_is_left_out_is_said_listed_and_compared(run: Runner, images: Path, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    shutil.copytree(images, folder, ignore=shutil.ignore_patterns("masks", "truth.csv"))
    for number in range(8):
        (folder / "train" / "NORMAL" / f"{number}.avif").write_bytes(b"not readable")
        (folder / "train" / "NORMAL" / f"bad{number}.png").write_bytes(b"damaged")
    (folder / "train" / "PNEUMONIA" / "notes.txt").write_text("notes")
    code, out, err = run("audit", folder, "--quick", "--out", tmp_path / "audit")
    assert code == 0
    assert "8 files in an unknown format were left out (8 NORMAL, 8 .avif): train/NORMAL/0.avif" in err
    assert "8 files in an unknown format left out" in out
    assert "The classes lose unequal shares of their files" in out
    findings = json.loads((tmp_path / "audit" / "audit.json").read_text(encoding="utf-8"))["findings"]
    listed = {file.rpartition("/")[2] for finding in findings for file in finding["files"]}
    assert {f"{number}.avif" for number in range(8)} | {"notes.txt"} <= listed
    (unequal,) = (each for each in findings if each["title"].startswith("The classes lose unequal shares"))
    assert unequal["advice"].startswith("16 of 40 NORMAL (40%), 0 of 24 PNEUMONIA (0%).")
    assert unequal["severity"] == "warning"


def test_a_tiny_validation_split_is_a_finding(run: Runner, tmp_path: Path) -> None:
    images = write_phantoms(tmp_path / "phantoms", count=132, size=64)
    kept = [sample for sample in read_samples(images) if sample.split != "val"]
    val = [sample for sample in read_samples(images) if sample.split == "val"]
    small = [sample for label in ("NORMAL", "PNEUMONIA") for sample in [s for s in val if s.label == label][:4]]
    train = [replace(sample, split="train") for sample in val if sample not in small]
    write_samples(tmp_path / "small.csv", kept + small + train)
    _, out, _ = run("audit", tmp_path / "small.csv", "--quick", "--out", tmp_path / "audit")
    assert "The validation split has only 8 images (4 NORMAL, 4 PNEUMONIA)" in " ".join(out.split())


def test_files_of_a_finding_have_no_colon_without_a_remark(capsys: pytest.CaptureFixture[str]) -> None:
    files = (Path("masks/1.png"), Path("masks/2.png"))
    plain = Finding("reading", "note", "2 masks left out", "", files, ("", ""))
    told = Finding("reading", "warning", "2 files left out", "", files, ("damaged", ""))
    print_audit(Audit("data", (told, plain), 4, {}, 2, quick=True, seed=0, fingerprint=""))
    shown = " ".join(capsys.readouterr().out.split())
    assert "masks/1.png, masks/2.png" in shown
    assert "masks/1.png: damaged masks/2.png" in shown
    assert "2.png:" not in shown
