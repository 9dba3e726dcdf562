"""Every command ends with a result or one of our errors on sets that nobody would collect: blank, tiny, all equal."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

from pneumoscope.auditing.audit import find_faults, measure_samples
from pneumoscope.cli.main import app
from pneumoscope.datasets.reading import read_samples
from pneumoscope.datasets.samples import Sample
from pneumoscope.datasets.splits import require_classes, split_samples
from pneumoscope.errors import DataError, PneumoscopeError
from pneumoscope.training.train import Run

KINDS = ("blank", "equal", "noise", "frame", "cut out", "saturated", "by class", "black, of any size")


@dataclass(frozen=True)
class Odd:
    """A set of images that a check or a formula may not have thought of."""

    kind: str
    shape: tuple[int, int]
    classes: int
    images: int  # of each class
    patients: str  # own, one or none
    splits: bool = False  # whether all three splits are given; else they are drawn


def draw(odd: Odd, label: int, number: int) -> Image.Image:
    """One grey image."""
    height, width = odd.shape
    rng = np.random.default_rng([label, number])
    pixels = rng.integers(0, 256, odd.shape).astype(np.uint8)
    inner = (slice(height // 4, height - height // 4), slice(width // 4, width - width // 4))
    if odd.kind == "blank":
        pixels[:] = 20 * label
    elif odd.kind == "equal":
        pixels = np.random.default_rng(0).integers(0, 256, odd.shape).astype(np.uint8)
    elif odd.kind == "frame":
        framed = np.zeros_like(pixels)
        framed[inner] = pixels[inner]
        pixels = framed
    elif odd.kind == "cut out":
        pixels[inner] = 0
    elif odd.kind == "saturated":
        pixels = np.where(pixels > 127, 255, 0).astype(np.uint8)
    elif odd.kind == "by class":
        pixels = (pixels // 20 + 20 * label).astype(np.uint8)
    elif odd.kind == "black, of any size":
        pixels = np.zeros((height + number, width + label), np.uint8)
    return Image.fromarray(pixels)


def write(odd: Odd, folder: Path) -> Path:
    """Write the set as a folder of classes."""
    count = 0
    for split in ("train", "val", "test") if odd.splits else ("",):
        for label in range(odd.classes):
            name = ("NORMAL", "PNEUMONIA")[label] if odd.classes == 2 else f"CLASS {label}"
            place = folder / split / name
            place.mkdir(parents=True, exist_ok=True)
            for number in range(odd.images):
                count += 1
                stem = {"own": f"phantom{count:04d}_1", "one": f"phantom0001_{count}", "none": f"image{count}"}
                draw(odd, label, number).save(place / f"{stem[odd.patients]}.png")
    return folder


odds = st.builds(
    Odd,
    kind=st.sampled_from(KINDS),
    shape=st.sampled_from([(1, 1), (2, 2), (1, 40), (40, 3), (48, 48)]),
    classes=st.sampled_from([1, 2, 3, 10]),
    images=st.sampled_from([1, 2, 4, 12]),
    patients=st.sampled_from(["own", "one", "none"]),
    splits=st.booleans(),
)
# Without shrinking, which would train for minutes.
few = settings(
    max_examples=4,
    deadline=None,
    derandomize=True,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=[HealthCheck.too_slow],
)


def run_command(*arguments: object) -> bool:
    """Run a command in this process; whether it ended well. Any error but ours is raised, and so is any warning."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is None or (isinstance(result.exception, SystemExit) and result.exit_code == 0):
        return True
    if not isinstance(result.exception, PneumoscopeError):
        raise result.exception
    assert str(result.exception).rstrip().endswith((".", ")")), str(result.exception)  # a sentence
    return False


def audited(odd: Odd, folder: Path) -> list[str]:
    """Titles of the findings of all checks, with features from a generator in place of the network's."""
    samples = read_samples(write(odd, folder))
    images = measure_samples(samples, quick=True)
    grey = images.measured["thumbnail"].reshape(len(samples), -1)[:, ::257].astype(np.float32)
    return [finding.title for finding in find_faults(replace(images, features=grey))]


@pytest.mark.parametrize("kind", KINDS)
def test_every_check_of_the_audit_ends_on_many_images(kind: str, tmp_path: Path) -> None:
    for shape in ((2, 2), (48, 48)):
        audited(Odd(kind, shape, 2, 24, "none"), tmp_path / f"{shape}")


@few
@given(odd=odds)
@example(Odd("noise", (1, 1), 2, 24, "none"))
def test_every_check_of_the_audit_ends(odd: Odd) -> None:
    with tempfile.TemporaryDirectory() as folder:
        assert audited(odd, Path(folder))


def test_images_that_all_look_the_same_to_a_network_are_said_to(tmp_path: Path) -> None:
    titles = audited(Odd("black, of any size", (48, 48), 2, 30, "none"), tmp_path)
    assert "Cannot look for label errors: to a network, all images look the same" in titles


def test_the_audit_of_images_with_a_black_frame_ends_on_the_command_line(tmp_path: Path) -> None:
    data = write(Odd("frame", (48, 48), 2, 12, "none"), tmp_path / "images")
    assert run_command("audit", data, "--out", tmp_path / "audit")


@few
@given(odd=odds)
@example(Odd("equal", (2, 2), 2, 1, "own", splits=True))
@example(Odd("noise", (48, 48), 10, 4, "none"))
def test_a_run_and_all_that_follows_it_end(odd: Odd) -> None:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        data, out = write(odd, folder / "images"), folder / "run"
        short = ("--resamples", 20)
        if not run_command("train", data, "--out", out, "--size", 32, "--epochs", 1, "--no-cache", *short):
            return
        model = ("--model", out)
        assert run_command("evaluate", data, *model, "--split", "all", "--out", folder / "a", "--no-cache", *short)
        assert run_command(
            "evaluate", data, *model, "--split", "all", "--adapt-prior", "--out", folder / "b", "--no-cache", *short
        )
        assert run_command("compare", folder / "a", folder / "b", "--out", folder / "c", *short)
        assert run_command("predict", data, *model, "--out", folder / "predictions.csv")
        images = [sample.path for sample in read_samples(data)][:2]
        assert run_command("explain", *images, *model, "--out", folder / "d")


@few
@given(odd=odds)
def test_a_model_meets_any_images(odd: Odd, run: Run) -> None:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        data = write(odd, folder / "images")
        model = ("--model", run.model)
        known = run_command("evaluate", data, *model, "--out", folder / "a", "--no-cache", "--resamples", 20)
        assert known == (odd.classes == 2)
        if known:
            run_command("compare", folder / "a", folder / "a", "--out", folder / "c", "--resamples", 20)
        run_command("predict", data, *model, "--out", folder / "predictions.csv")


@pytest.mark.parametrize(
    "odd",
    [
        Odd("blank", (2, 2), 1, 1, "one"),
        Odd("equal", (48, 48), 10, 1, "none"),
        Odd("saturated", (1, 40), 3, 4, "own", splits=True),
    ],
    ids=lambda odd: odd.kind,
)
def test_a_model_is_exported_whatever_images_it_is_checked_with(odd: Odd, run: Run, tmp_path: Path) -> None:
    data = write(odd, tmp_path / "images")
    options = ("--model", run.model, "--to", "onnx", "--out", tmp_path / "export")
    if run_command("export", *options, "--data", data):
        assert run_command("predict", data, "--model", tmp_path / "export", "--out", tmp_path / "predictions.csv")
    else:
        assert not (tmp_path / "export" / "model.json").exists()


@settings(max_examples=40, deadline=None)
@given(odd=odds, balanced=st.sampled_from([(), ("val",), ("val", "test")]), seed=st.integers(0, 5))
def test_a_split_is_drawn_or_refused_with_a_reason(odd: Odd, balanced: tuple[str, ...], seed: int) -> None:
    samples = [
        Sample(Path(f"{label}-{i}"), str(label), None if odd.patients == "none" else f"{odd.patients} {label} {i}")
        for label in range(odd.classes)
        for i in range(odd.images)
    ]
    if odd.patients == "one":
        samples = [replace(sample, patient="the only one") for sample in samples]
    if odd.images > 2 and odd.patients != "one":
        require_classes(split_samples(samples, balanced=balanced, seed=seed))
        return
    with pytest.raises(DataError, match="The splits cannot be drawn") as refusal:
        split_samples(samples, balanced=balanced, seed=seed)
    assert ("all of one patient (the only one)" in str(refusal.value)) == (odd.patients == "one" and odd.images > 2)


@pytest.mark.parametrize("options", [(), ("--folds", 2), ("--test-count", 3), ("--balanced", "both"), ("--by-name",)])
def test_splitting_a_set_on_the_command_line_ends(options: tuple[object, ...], tmp_path: Path) -> None:
    for number, odd in enumerate((Odd("noise", (8, 8), 2, 4, "own"), Odd("equal", (1, 1), 2, 6, "none"))):
        data = write(odd, tmp_path / f"{number}")
        out = tmp_path / (f"out-{number}" if "--folds" in options else f"{number}.csv")
        run_command("data", "split", data, "--out", out, *options)
