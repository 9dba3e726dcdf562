"""`audit`, `data split` and `data fetch` on the command line."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

import pneumoscope
from pneumoscope.cli import main as cli
from pneumoscope.datasets.reading import read_samples


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


def test_a_split_is_drawn_anew_and_mends_leaks_unless_told_to_keep(run: Runner, leaky: Path, tmp_path: Path) -> None:
    assert run("data", "split", leaky, "--out", tmp_path / "new.csv", "--test-count", 12, "--val-count", 12)[0] == 0
    assert run("audit", tmp_path / "new.csv", "--quick", "--out", tmp_path / "a", "--fail-on", "error")[0] == 0
    drawn = [sample.split for sample in read_samples(tmp_path / "new.csv")]
    assert [drawn.count(split) for split in ("val", "test")] == [12, 12]
    assert run("data", "split", leaky, "--out", tmp_path / "kept.csv", "--keep")[0] == 0
    assert [s.split for s in read_samples(tmp_path / "kept.csv")] == [s.split for s in read_samples(leaky)]


def test_folds_are_files_that_train_reads(run: Runner, images: Path, tmp_path: Path) -> None:
    code, out, _ = run("data", "split", images, "--folds", 3, "--out", tmp_path / "folds")
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
        ("--folds", 3, "--keep"),
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
    assert err.startswith("error: --")
    assert not (tmp_path / "out").exists()


def test_images_that_cannot_be_compared_are_said(run: Runner, leaky: Path, tmp_path: Path) -> None:
    (leaky / "train" / "NORMAL" / "bad.png").write_bytes(b"not an image")
    assert "1 images could not be read" in run("data", "split", leaky, "--out", tmp_path / "s.csv")[2]
    assert "could not" not in run("data", "split", leaky, "--out", tmp_path / "n.csv", "--by-name")[2]


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
    assert f"class P: {sum(s.label == 'PNEUMONIA' for s in samples)} images of 'PNEUMONIA'" in told
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
