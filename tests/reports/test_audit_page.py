"""The audit's page: complete in itself, safe with hostile names, of bounded size, and nothing is left unsaid."""

from __future__ import annotations

import base64
import io
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pneumoscope.auditing.findings import Audit, Finding, Severity
from pneumoscope.datasets.phantoms import draw_phantom
from pneumoscope.datasets.samples import Sample, count_samples
from pneumoscope.images.read import Reading
from pneumoscope.reports.audit_page import CHECKS, LARGEST, OPEN, SHOWN, SIDE, TOTAL, write_audit

EVIL = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>{{ 7 * 7 }} & \u202egnp"
VOID = {"meta", "img", "wbr"}
CELLS = {"dd", "dt", "span", "td", "th"}
Write = Callable[..., "Page"]


class Page(HTMLParser):
    """Collects tags, pictures, headings and text, and fails where elements are not nested."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.html = html
        self.stack: list[str] = []
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self.feed(html)
        self.close()
        assert self.stack == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.stack.append(tag)
        if tag in CELLS:
            self.text += " "

    def handle_endtag(self, tag: str) -> None:
        assert self.stack.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.stack and self.stack[-1] != "style":
            self.text += data

    @property
    def pictures(self) -> list[dict[str, str]]:
        return [attributes for tag, attributes in self.tags if tag == "img"]

    @property
    def words(self) -> str:
        return " ".join(self.text.split())


def audited(findings: Sequence[Finding], samples: Sequence[Sample], **more: object) -> Audit:
    patients = len({sample.patient for sample in samples if sample.patient})
    found = Audit("images", tuple(findings), len(samples), count_samples(samples), patients, False, 7, "0f" * 32)
    return replace(found, **more)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Sample]:
    """40 images; the last cannot be read."""
    folder = tmp_path_factory.mktemp("images")
    drawn = [np.rint(draw_phantom(seed, pneumonia=seed % 2 == 1, size=96).pixels * 255) for seed in range(4)]
    samples = []
    for i in range(40):
        path = folder / f"image{i:02d}.png"
        Image.fromarray(drawn[i % 4].astype(np.uint8)).save(path)
        split, label = ("train", "val", "test")[i % 3], ("NORMAL", "PNEUMONIA")[i % 2]
        samples.append(Sample(path, label, f"patient{i // 2}", split))
    samples[-1].path.write_bytes(samples[-1].path.read_bytes()[:900])
    return samples


@pytest.fixture
def write(images: list[Sample], tmp_path: Path) -> Write:
    def written(findings: Sequence[Finding], samples: Sequence[Sample] | None = None, **more: object) -> Page:
        chosen = images if samples is None else samples
        write_audit(tmp_path / "audit.html", audited(findings, chosen, **more), {s.path: s for s in chosen})
        return Page((tmp_path / "audit.html").read_text(encoding="utf-8"))

    return written


def finding(
    images: Sequence[Sample], severity: Severity = "warning", check: str = "quality", **more: object
) -> Finding:
    made = Finding(check, severity, f"{len(images)} images", "Look at them.", tuple(image.path for image in images))
    return replace(made, **more)  # type: ignore[arg-type]


def test_every_finding_is_there_with_its_advice_values_and_images(write: Write, images: list[Sample]) -> None:
    values = {
        "images": 3, "share": 0.0751, "auroc": 1.0, "p": 0.0004, "worst_case": -0.5, "size": 1234.5,
        "odd": float("nan"),
    }  # fmt: skip
    page = write(
        [
            finding([], "note", "balance", title="Uneven classes", advice="Look at sensitivity."),
            finding(images[:2], "error", "duplicates", title="2 images are identical",
                    remarks=("train/NORMAL", "twin")),
            finding(images[4:5], "warning", "labels", remarks=("labelled NORMAL, model says PNEUMONIA",),
                    values=values),
        ]
    )  # fmt: skip
    for said in (
        "1 error", "1 warning", "1 note", "Results would be wrong.", "Uneven classes", "Look at sensitivity.",
        "2 images are identical", "labelled NORMAL, model says PNEUMONIA", "images 3", "share 7.51%", "AUROC 1.000",
        "p value < 0.001", "worst case −0.500", "size 1,234.5", "odd –", "40 images of 20 patients", "0f" * 32,
        "pneumoscope audit images --out NEW_FOLDER --seed 7", "Not a medical device",
    ):  # fmt: skip
        assert said in page.words, said
    assert page.words.index("2 images are identical") < page.words.index("Uneven classes")
    assert [picture["alt"] for picture in page.pictures] == [f"Image {images[i].path}" for i in (0, 1, 4)]
    assert page.words.count("train/NORMAL") == 1  # though both remark and place say it
    assert "<title>Data audit of images: 1 error, 1 warning, 1 note</title>" in page.html


def test_the_page_asks_for_nothing(write: Write, images: list[Sample]) -> None:
    page = write([finding(images)])
    (policy,) = [a["content"] for tag, a in page.tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert {"default-src 'none'", "img-src data:", "style-src 'unsafe-inline'"} <= set(policy.split("; "))
    assert not {"script", "link", "iframe", "object", "embed", "base", "form", "svg"} & {tag for tag, _ in page.tags}
    for tag, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on") or name in ("srcset", "style", "action")]
        for name in ("src", "href"):
            assert attributes.get(name, "#").startswith(("#", "data:image/webp;base64,")), tag
    assert re.findall(r"url\(|@import|https?:", page.html) == []


def test_links_ids_and_headings_are_in_order(write: Write, images: list[Sample]) -> None:
    page = write([finding(images[:2], groups=(0, 0)), finding(images[:3], "note")])
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    wanted = {a["href"][1:] for _, a in page.tags if "href" in a} | {
        a["aria-labelledby"] for _, a in page.tags if "aria-labelledby" in a
    }
    assert wanted <= set(ids)
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h\d", tag)]
    assert levels.count(1) == 1
    assert all(deeper <= level + 1 for level, deeper in zip([0, *levels], levels, strict=False))
    assert {"header", "main", "nav", "footer"} <= {tag for tag, _ in page.tags}


def test_files_of_one_name_are_told_apart(write: Write, images: list[Sample], tmp_path: Path) -> None:
    paths = [tmp_path / f"patient{i}" / "study1" / "view1_frontal.jpg" for i in (1, 2)]
    samples = [Sample(path, "A") for path in paths]
    page = write([finding(samples), finding(samples[:1])], samples).html.replace("<wbr>", "")
    for i, path in enumerate(paths, start=1):
        assert f'<b title="{path}"><bdi>patient{i}/study1/view1_frontal.jpg</bdi>' in page
    assert f'<b title="{paths[0]}"><bdi>view1_frontal.jpg</bdi>' in page


def test_hostile_names_are_text(write: Write, images: list[Sample], tmp_path: Path) -> None:
    image = tmp_path / f"{EVIL.replace('/', '')}.png"
    shutil.copy(images[0].path, image)
    broken = image.with_name(f"broken{image.name}")
    broken.write_bytes(b"nothing")
    samples = [Sample(image, EVIL, EVIL, None), Sample(broken, EVIL, EVIL, "test")]
    page = write(
        [finding(samples, check=EVIL, title=EVIL, advice=EVIL, remarks=(EVIL, EVIL), groups=(0, 0), values={EVIL: 1})],
        samples,
        data=EVIL,
        fingerprint=EVIL,
    )
    assert "script" not in {tag for tag, _ in page.tags}
    assert "49" not in page.words
    assert [picture["src"][:5] for picture in page.pictures] == ["data:"]
    assert not any("onerror" in attributes for _, attributes in page.tags)
    assert page.pictures[0]["alt"] == f"Image {image}"
    assert page.text.count(EVIL) >= 7


@settings(deadline=None, max_examples=25)
@given(st.text(st.characters(exclude_characters="/\0", codec=None), min_size=1, max_size=60))
def test_any_name_makes_a_page(tmp_path_factory: pytest.TempPathFactory, name: str) -> None:
    path = Path("nowhere", f"{name}.png")
    page = tmp_path_factory.getbasetemp() / "any.html"
    sample = Sample(path, name, name, "test")
    write_audit(page, audited([finding([sample], remarks=(name,))], [sample], data=name), {path: sample})
    parsed = Page(page.read_text(encoding="utf-8"))
    assert parsed.pictures == []
    assert not {"script", "b'"} & {tag for tag, _ in parsed.tags}


def test_a_file_that_cannot_be_read_says_why(write: Write, images: list[Sample], tmp_path: Path) -> None:
    gone = Sample(tmp_path / "gone.png", "NORMAL")
    page = write([finding([images[-1], images[0], gone], "error", "reading")], [*images, gone])
    assert len(page.pictures) == 1
    assert "damaged or truncated" in page.words
    assert "cannot be read: No such file or directory" in page.words
    assert "gone.png" in page.words


def test_an_image_is_shown_as_it_is_read(write: Write, images: list[Sample]) -> None:
    """An inverted image that is read inverted is shown upright in grey, not as the file has it."""

    def shown(sample: Sample) -> float:
        (picture,) = write([finding([sample])], [sample]).pictures
        with Image.open(io.BytesIO(base64.b64decode(picture["src"].partition(",")[2]))) as opened:
            assert opened.format == "WEBP"
            assert max(opened.size) <= SIDE
            return float(np.asarray(opened.convert("L")).mean())

    plain = shown(images[0])
    assert shown(replace(images[0], reading=Reading(invert=True))) == pytest.approx(255 - plain, abs=3)


def test_the_command_repeats_the_audit(write: Write, images: list[Sample]) -> None:
    page = write([], images, data="two words; rm", quick=True, patient_pattern="p.", reading=Reading(invert=True))
    words = "pneumoscope audit 'two words; rm' --out NEW_FOLDER --seed 7 --quick --patient-pattern p. --invert"
    assert words in page.words
    assert "--invert" not in write([], images).words


def test_more_images_than_are_shown_are_counted(write: Write, images: list[Sample]) -> None:
    page = write([finding(images[:39])])
    assert len(page.pictures) == SHOWN
    assert f"{SHOWN - OPEN} more images" in page.words
    assert f"{39 - SHOWN} more images listed in audit.json." in page.words
    exact = write([finding(images[:OPEN])])
    assert len(exact.pictures) == OPEN
    assert "more" not in exact.words.partition("Findings, most serious first")[2].partition("Checks")[0]


def test_groups_stay_together(write: Write, images: list[Sample]) -> None:
    order = images[:39]
    page = write([finding(order, groups=tuple(i % 8 for i in range(39)))])  # seven groups of five, one of four
    shown = [picture["alt"] for picture in page.pictures]
    assert shown == [f"Image {order[i].path}" for group in range(4) for i in range(group, 39, 8)]
    assert "Group 4" in page.words
    assert "Group 5" not in page.words
    assert "19 more images listed" in page.words
    large = write([finding(order, groups=(3,) * 39)])
    assert len(large.pictures) == SHOWN
    assert f"Group 1: {SHOWN} of 39 images" in large.words


def test_the_page_is_of_bounded_size(write: Write, tmp_path: Path) -> None:
    """Noise is what compresses worst; a page full of it is still small enough to send."""
    noise = np.random.default_rng(0).integers(0, 256, (8, 900, 700), np.uint8)
    samples = []
    for i, pixels in enumerate(noise):
        Image.fromarray(pixels).save(tmp_path / f"{i}.png", compress_level=1)
        samples.append(Sample(tmp_path / f"{i}.png", "NORMAL"))
    page = write([finding([samples[i % 8] for i in range(n, n + 60)]) for n in range(40)], samples)
    assert len(page.pictures) == TOTAL
    assert max(len(picture["src"]) for picture in page.pictures) < LARGEST * 4 / 3 + 100
    assert len(page.html) < 6e6
    assert page.words.count("50 more images listed in audit.json.") == 40


def test_far_too_many_findings_show_no_images_but_name_them_all(write: Write, images: list[Sample]) -> None:
    page = write([finding(images[:3], title=f"Finding no. {i}.") for i in range(TOTAL + 1)])
    assert page.pictures == []
    assert all(f"Finding no. {i}." in page.words for i in range(TOTAL + 1))
    assert "3 images listed in audit.json." in page.words


def test_a_clean_data_set_is_told_so_and_what_was_checked(write: Write) -> None:
    page = write([])
    assert "Nothing found" in page.words
    assert all(check.title in page.words and check.looks_for in page.words for check in CHECKS.values())
    assert page.words.count("nothing found") == len(CHECKS) + 1  # and the title
    assert "not part of" not in page.words


def test_a_quick_audit_says_what_it_left_out(write: Write) -> None:
    page = write([], quick=True)
    assert page.words.count("not part of a quick audit") == 1
    assert "Not part of a quick audit: images cropped out of others." in page.words


def test_a_check_that_the_page_does_not_know_is_listed(write: Write, images: list[Sample]) -> None:
    assert "devices" in write([finding(images[:1], check="devices")]).words


@pytest.mark.parametrize(
    ("splits", "said"),
    [
        (("train", "test"), "Class train test all NORMAL 1 1 2 PNEUMONIA 1 1 2 All 2 2 4"),
        ((None, None), "Class images NORMAL 2 PNEUMONIA 2 All 4"),
        (("train", None), "Class train no split all NORMAL 1 1 2 PNEUMONIA 1 1 2 All 2 2 4"),
    ],
)
def test_images_are_counted_by_split_and_class(write: Write, splits: tuple[str | None, ...], said: str) -> None:
    samples = [
        Sample(Path(f"{i}{label}.png"), label, None, split)
        for i, split in enumerate(splits)
        for label in ("NORMAL", "PNEUMONIA")
    ]
    page = write([], samples)
    assert said in page.words
    assert "4 images, patients unknown" in page.words


def test_the_same_audit_gives_the_same_bytes(write: Write, images: list[Sample]) -> None:
    findings = [finding(images, groups=tuple(i // 2 for i in range(40))), finding(images[::-1], "note")]
    assert write(findings).html == write(findings).html
