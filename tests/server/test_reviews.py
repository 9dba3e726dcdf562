"""Verdicts become labelled samples, which train and evaluate accept."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest
from rooms import draw, run_thread
from test_memory import make_read

from pneumoscope.server.reviews import export_reviews
from pneumoscope.server.store import Memory, now

if TYPE_CHECKING:
    from pneumoscope.server.settings import Settings
    from pneumoscope.training.train import Run


def pneumoscope(*arguments: object) -> subprocess.CompletedProcess[str]:
    call = [sys.executable, "-m", "pneumoscope", *map(str, arguments)]
    return subprocess.run(call, capture_output=True, text=True, env=os.environ, timeout=200)


@pytest.fixture
def reviewed(settings: Settings, tmp_path: Path) -> tuple[Settings, dict[str, str]]:
    """A room in which 24 images were given their true labels, and these by digest."""
    settings = replace(settings, keep_images=tmp_path / "kept")
    truth = {}
    with run_thread(settings) as url, httpx.Client(base_url=url) as client:
        for seed in range(24):
            answer = client.post("/v1/predictions", files={"files": (f"{seed}.png", draw(seed))})
            (one,) = answer.json()["predictions"]
            label = truth[one["digest"]] = "PNEUMONIA" if seed % 2 else "NORMAL"
            verdict = {"verdict": "agree" if one["decision"] == label else "disagree", "label": label}
            assert client.post(f"/v1/reads/{one['id']}/verdicts", json=verdict).status_code == 201
    return settings, truth


def test_exported_reviews_are_measured_and_trained_on(
    reviewed: tuple[Settings, dict[str, str]], run: Run, tmp_path: Path
) -> None:
    settings, truth = reviewed
    table = tmp_path / "reviews.csv"
    done = pneumoscope(
        "reviews", "export", "--database", settings.database, "--images", settings.keep_images, "--out", table
    )
    assert done.returncode == 0, done.stderr
    rows = list(csv.DictReader(table.read_text(encoding="utf-8").splitlines()))
    assert {row["digest"]: row["label"] for row in rows} == truth
    wrong = sum(row["label"] != row["decision"] for row in rows)
    assert f"{len(truth)} images; the model had decided otherwise on {wrong}." in done.stdout
    measured = pneumoscope("evaluate", table, "--model", run.model, "--out", tmp_path / "measured", "--resamples", 20)
    assert measured.returncode == 0, measured.stderr
    assert "24 images" in measured.stdout
    trained = pneumoscope(
        "train", table, "--out", tmp_path / "run", "--recipe", "head", "--epochs", 2, "--resamples", 20
    )
    assert trained.returncode == 0, trained.stderr
    again = pneumoscope(
        "reviews", "export", "--database", settings.database, "--images", settings.keep_images, "--out", table
    )
    assert again.returncode == 2
    assert "--overwrite" in again.stderr


def test_the_latest_verdict_counts_and_what_is_missing_is_said(
    reviewed: tuple[Settings, dict[str, str]], tmp_path: Path
) -> None:
    settings, truth = reviewed
    assert settings.keep_images is not None
    with run_thread(settings) as url, httpx.Client(base_url=url) as client:
        read = client.get("/v1/reads").json()["reads"][0]
        other = {"NORMAL": "PNEUMONIA", "PNEUMONIA": "NORMAL"}[truth[read["digest"]]]
        verdict = {"verdict": "agree" if read["decision"] == other else "disagree", "label": other}
        client.post(f"/v1/reads/{read['id']}/verdicts", json=verdict)
        new = client.post("/v1/predictions", files={"files": ("new.png", draw(99))}).json()["predictions"][0]
        if new["decision"] not in ("NORMAL", "PNEUMONIA"):
            client.post(f"/v1/reads/{new['id']}/verdicts", json={"verdict": "agree"})
    (settings.keep_images / "empty.png").touch()
    gone = next(
        path for path in settings.keep_images.iterdir() if path.stem not in (read["digest"], new["digest"], "empty")
    )
    gone.unlink()
    table = tmp_path / "reviews.csv"
    done = pneumoscope(
        "reviews", "export", "--database", settings.database, "--images", settings.keep_images, "--out", table
    )
    labels = {row["digest"]: row["label"] for row in csv.DictReader(table.read_text(encoding="utf-8").splitlines())}
    assert labels[read["digest"]] == other
    assert gone.stem not in labels
    assert "1 image has a label, but its file is not there" in done.stderr
    assert "1 image was given several labels; the latest counts" in done.stderr
    assert "1 image could not be opened" in done.stderr


def test_nothing_reviewed_is_said_and_a_database_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    empty = tmp_path / "empty.sqlite"
    call = ("reviews", "export", "--database", empty, "--images", tmp_path, "--out", tmp_path / "a.csv")
    done = pneumoscope(*call)
    assert done.returncode == 2
    assert "no such file" in done.stderr
    assert not empty.exists()
    Memory(str(empty)).close()
    done = pneumoscope(*call)
    assert done.returncode == 3
    assert "no verdict" in done.stderr
    assert not (tmp_path / "a.csv").exists()


def test_a_later_verdict_without_a_class_takes_a_label_back(
    reviewed: tuple[Settings, dict[str, str]], tmp_path: Path
) -> None:
    settings, _ = reviewed
    with Memory(settings.database) as memory:
        read, verdict = memory.list_reviewed()[0]
        memory.add_verdict(replace(verdict, at=now(), agrees=True, label=None))
        done = export_reviews(memory, tmp_path / "reviews.csv", [settings.keep_images or tmp_path])
    assert (done.images, done.unlabelled) == (23, 1)
    assert read.digest not in (tmp_path / "reviews.csv").read_text(encoding="utf-8").replace(f"{read.digest}.png", "")


def test_a_read_of_another_model_is_judged_by_its_own_words(settings: Settings) -> None:
    other = make_read(decision="TUBERCULOSIS", predicted_label="TUBERCULOSIS", fingerprint="another")
    with run_thread(settings) as url:
        with Memory(settings.database) as memory:
            memory.add_reads([other])
        where = f"{url}/v1/reads/{other.id}/verdicts"
        assert httpx.post(where, json={"verdict": "agree"}).json()["label"] == "TUBERCULOSIS"
        assert httpx.post(where, json={"verdict": "disagree"}).status_code == 422
        assert httpx.post(where, json={"verdict": "disagree", "label": "NORMAL"}).json()["label"] == "NORMAL"


def test_words_of_reviewers_are_no_formulas(reviewed: tuple[Settings, dict[str, str]], tmp_path: Path) -> None:
    settings, _ = reviewed
    with Memory(settings.database) as memory:
        _, verdict = memory.list_reviewed()[0]
        memory.add_verdict(replace(verdict, at=now(), note="=HYPERLINK(1)", reviewer="@me"))
        export_reviews(memory, tmp_path / "reviews.csv", [settings.keep_images or tmp_path])
    rows = list(csv.DictReader((tmp_path / "reviews.csv").read_text(encoding="utf-8").splitlines()))
    assert ("'=HYPERLINK(1)", "'@me") in {(row["note"], row["reviewer"]) for row in rows}
