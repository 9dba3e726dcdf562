"""An archive is never trusted: only images of the known structure come out of it, and only into the folder given."""

from __future__ import annotations

import re
import stat
import struct
import tempfile
import tracemalloc
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pneumoscope.datasets.archives import hash_archive, list_images, open_archive, unpack_images
from pneumoscope.errors import DataError, PneumoscopeError, UsageError

LABELS = ("NORMAL", "PNEUMONIA")
IMAGES = {
    "train/NORMAL/IM-0001-0001.jpeg": b"a normal image",
    "train/PNEUMONIA/person1_virus_1.jpeg": b"an image with pneumonia",
    "test/NORMAL/IM-0002-0001.jpeg": b"another normal image",
    "test/PNEUMONIA/person2_bacteria_2.jpeg": b"another with pneumonia",
}


def write_zip(path: Path, members: Mapping[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            entry = zipfile.ZipInfo("x")
            entry.filename, entry.compress_type = name, compression  # as it is; the constructor would clean the name
            archive.writestr(entry, content)
    return path


def below(folder: str, members: Mapping[str, bytes] = IMAGES) -> dict[str, bytes]:
    return {folder + name: content for name, content in members.items()}


def open_and_list(archive: Path) -> None:
    with open_archive(archive) as opened:
        list_images(opened, LABELS)


def unpack(archive: Path, out: Path) -> dict[str, bytes]:
    with open_archive(archive) as opened:
        unpack_images(opened, list_images(opened, LABELS), out)
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*") if path.is_file()}


@pytest.mark.parametrize("folder", ["", "chest_xray/", "./", "CellData/chest_xray/", "any name/of any/folder/"])
def test_images_are_found_by_their_structure_whatever_lies_above(folder: str, tmp_path: Path) -> None:
    assert unpack(write_zip(tmp_path / "any.zip", below(folder)), tmp_path / "out") == IMAGES


def test_copies_within_the_copy_clutter_and_other_images_are_left_out(tmp_path: Path) -> None:
    clutter = {
        **below("chest_xray/chest_xray/"),
        **below("chest_xray/__MACOSX/chest_xray/"),
        **below("__MACOSX/chest_xray/"),
        "chest_xray/train/NORMAL/._IM-0001-0001.jpeg": b"",
        "chest_xray/train/NORMAL/.DS_Store": b"",
        "chest_xray/train/NORMAL/Thumbs.db": b"",
        "chest_xray/train/NORMAL/more/IM-0009-0001.jpeg": b"",
        "chest_xray/train/COVID/x.jpeg": b"",
        "chest_xray/README.md": b"",
        "chest_xray/train/": b"",
        "OCT2017/train/NORMAL/NORMAL-1.jpeg": b"",
        "OCT2017/train/CNV/CNV-1.jpeg": b"",
        "OCT2017/test/NORMAL/NORMAL-2.jpeg": b"",
    }
    assert unpack(write_zip(tmp_path / "a.zip", {**clutter, **below("chest_xray/")}), tmp_path / "out") == IMAGES


def test_two_sets_of_images_are_not_mixed(tmp_path: Path) -> None:
    archive = write_zip(tmp_path / "two.zip", {**below("a/"), **below("b/")})
    with pytest.raises(DataError, match=r"two sets of images, a/ and b/"):
        open_and_list(archive)


UNSAFE = [
    "../x.jpeg",
    "../../train/NORMAL/x.jpeg",
    "train/NORMAL/../../../x.jpeg",
    "/train/NORMAL/x.jpeg",
    "/etc/x.jpeg",
    "train\\NORMAL\\x.jpeg",
    "train/NORMAL/..\\x.jpeg",
    "C:/train/NORMAL/x.jpeg",
    "c:x.jpeg",
    "train/NORMAL/x\0.jpeg",
]
NO_IMAGE = [
    "train/NORMAL/x:y.jpeg",
    "train/NORMAL/nul.jpeg",
    "train/NORMAL/COM1.x.jpeg",
    "train/NORMAL/ x.jpeg",
    "train/NORMAL/x\u202egpj.jpeg",
    "train/NORMAL/\u0130M-1.jpeg",
    f"train/NORMAL/{'x' * 200}.jpeg",
    "train/NORMAL/x\n.jpeg",
]


@pytest.mark.parametrize(
    ("name", "message"),
    [*((name, "points outside") for name in UNSAFE), *((name, "not the name") for name in NO_IMAGE)],
)
def test_a_name_that_points_elsewhere_or_is_unusual_is_refused(name: str, message: str, tmp_path: Path) -> None:
    archive = write_zip(tmp_path / "a.zip", {**IMAGES, name: b"evil"})
    with pytest.raises(DataError, match=message):
        open_and_list(archive)


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFBLK, stat.S_IFSOCK])
def test_links_and_devices_are_refused(kind: int, tmp_path: Path) -> None:
    path = write_zip(tmp_path / "a.zip", IMAGES)
    with zipfile.ZipFile(path, "a") as archive:
        link = zipfile.ZipInfo("train/NORMAL")
        link.create_system, link.external_attr = 3, (kind | 0o777) << 16
        archive.writestr(link, "/etc")
    with pytest.raises(DataError, match=r"'train/NORMAL' is a link or a device"):
        open_and_list(path)


@pytest.mark.parametrize("second", ["train/NORMAL/IM-0001-0001.jpeg", "train/NORMAL/im-0001-0001.JPEG"])
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_names_that_a_file_system_may_take_for_the_same_are_refused(second: str, tmp_path: Path) -> None:
    path = write_zip(tmp_path / "a.zip", IMAGES)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(second, b"another")
    with pytest.raises(DataError, match="twice"):
        open_and_list(path)


def patch_headers(path: Path, name: str, offset: int, value: bytes) -> Path:
    """Overwrite bytes of a member's local and central header; `offset` is that in the local one."""
    content = bytearray(path.read_bytes())
    for mark, length, shift in ((b"PK\3\4", 30, 0), (b"PK\1\2", 46, 2)):
        start = next(
            found.start()
            for found in re.finditer(re.escape(mark), content)
            if content[found.start() + length :].startswith(name.encode())
        )
        content[start + offset + shift : start + offset + shift + len(value)] = value
    path.write_bytes(content)
    return path


FIRST = "train/NORMAL/IM-0001-0001.jpeg"
FLAGS, METHOD, SIZE = 6, 8, 22  # APPNOTE 4.3.7


def flip_content(path: Path) -> Path:
    content = path.read_bytes()
    path.write_bytes(content.replace(b"a normal image", b"A normal image"))
    return path


def cut(path: Path, share: float) -> Path:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    return path


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: patch_headers(path, FIRST, FLAGS, b"\1\0"), "is encrypted"),
        (lambda path: patch_headers(path, FIRST, METHOD, b"\x0e\0"), "is compressed in an unusual way"),
        (lambda path: patch_headers(path, FIRST, SIZE, struct.pack("<I", 65 << 20)), "too many for an image"),
        (lambda path: patch_headers(path, FIRST, SIZE, struct.pack("<I", 100)), "damaged|cut short"),
        (flip_content, f"contains a damaged file, {FIRST} .*CRC"),
        (lambda path: cut(path, 0.5), "It seems truncated"),
        (lambda path: cut(path, 0.99), "It seems truncated"),
        (lambda path: cut(path, 0), "cannot be read as a zip archive.*Use the .zip"),
        (lambda path: path.write_text("<!DOCTYPE html><p>Sign in"), "It is a web page"),
        (lambda path: path.write_bytes(b"\x1f\x8b\x08 a tar.gz"), "Use the .zip as published"),
        (lambda path: write_zip(path, {"OCT2017/train/NORMAL/x.jpeg": b"x"}), r"no folders \{train,test\}"),
        (lambda path: write_zip(path, {"ChestXRay2017.zip": b"x"}), "another archive, ChestXRay2017.zip"),
        (lambda path: write_zip(path, {}), r"no folders"),
        (lambda path: write_zip(path, {**IMAGES, "bomb.bin": bytes(1 << 20)}), "would unpack to 1,048,"),
        (lambda path: write_zip(path, {**IMAGES, "train/NORMAL/b.jpeg": bytes(1 << 20)}), "would unpack to 1,048,"),
    ],
)
def test_a_bad_archive_is_an_error_that_names_the_fault(
    spoil: Callable[[Path], object], message: str, tmp_path: Path
) -> None:
    path = write_zip(tmp_path / "a.zip", IMAGES, zipfile.ZIP_STORED)
    spoil(path)
    with pytest.raises(DataError, match=message) as error:
        unpack(path, tmp_path / "out")
    assert str(path) in str(error.value)


def test_a_member_that_lies_about_its_size_fills_no_memory(tmp_path: Path) -> None:
    bomb = "train/NORMAL/bomb.jpeg"
    path = write_zip(tmp_path / "a.zip", {**IMAGES, bomb: bytes(64 << 20)})
    patch_headers(path, bomb, SIZE, struct.pack("<I", 100))
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match=r"damaged file, train/NORMAL/bomb\.jpeg"):
            unpack(path, tmp_path / "out")
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


def test_an_archive_that_lists_too_many_files_is_not_loaded(tmp_path: Path) -> None:
    entries = (b"PK\1\2" + bytes(24) + struct.pack("<H", 1) + bytes(16) + b"x") * 250_100
    end = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 0xFFFE, 0xFFFE, len(entries), 0, 0)
    path = tmp_path / "a.zip"
    path.write_bytes(entries + end)
    with pytest.raises(DataError, match="lists more than 250,000 files"):
        hash_archive(path)


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    archive = write_zip(tmp_path / "a.zip", IMAGES)
    (tmp_path / "out").write_text("in the way")
    with pytest.raises(UsageError, match="cannot be written"):
        unpack(archive, tmp_path / "out")


PARTS = ["..", ".", "", "train", "NORMAL", "x.jpeg", "..\\x.jpeg", "C:", "\0", "~", "é.jpeg", "CON.jpeg", "//", "/tmp"]
NAMES = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40),
    st.lists(st.sampled_from(PARTS), min_size=1, max_size=7).flatmap(
        lambda parts: st.sampled_from(["/", "\\"]).map(lambda separator: separator.join(parts) or "/")
    ),
)


@pytest.mark.filterwarnings("ignore:Duplicate name")
@settings(deadline=None)
@given(NAMES, st.booleans())
def test_no_name_ever_leads_out_of_the_folder(name: str, absolute: bool) -> None:
    with tempfile.TemporaryDirectory() as base:
        out = Path(base, "1/2/3/4/5/6/7/out")
        archive = write_zip(Path(base, "a.zip"), {**IMAGES, (f"{base}/" if absolute else "") + name: b"evil"})
        try:
            written = unpack(archive, out)
        except PneumoscopeError:
            assert not out.exists()
        else:
            assert written.items() >= IMAGES.items()
            assert all(re.fullmatch(r"(train|val|test)/(NORMAL|PNEUMONIA)/[\w.-]+", name) for name in written)
            assert len(written) <= len(IMAGES) + 1
        assert {path for path in Path(base).rglob("*") if path.is_file() and out not in path.parents} == {archive}
