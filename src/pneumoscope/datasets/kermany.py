"""The Kermany chest X-rays and what is made of them: how to fetch and verify them, and published subsets."""

from __future__ import annotations

import csv
import json
import logging
import os
import re
import shutil
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Literal

from pneumoscope import config
from pneumoscope.config import Progress, silent
from pneumoscope.datasets.archives import download, hash_archive, hide_secrets, list_images, open_archive, unpack_images
from pneumoscope.datasets.array_archives import read_arrays, write_files
from pneumoscope.datasets.samples import SPLITS, Sample
from pneumoscope.datasets.sources import PNEUMONIAMNIST, Source, list_sources
from pneumoscope.errors import DataError, DownloadError, UsageError
from pneumoscope.files import claim_folder, lock_folder, write_text

_MANIFEST = "SOURCE.json"
_NOTICE = "SOURCE.txt"
SOURCE_FILES = (_MANIFEST, _NOTICE, *SPLITS)
_OTHER_OUT = "Choose another `out`, or replace it with `overwrite=True`."
_WORKSHOP = ".fetch.part"  # `files.claim_folder` takes a folder with nothing but such names in it for an empty one


@dataclass(frozen=True, slots=True)
class Manifest:
    """Content of `SOURCE.json` in a fetched dataset."""

    name: str  # of the dataset
    edition: str
    archive: str  # its name or address
    sha256: str
    verified: Literal["published", "given"] | None  # what the checksum was compared with
    files: dict[str, int]  # size of each image in bytes, by its place `split/LABEL/name`


def fetch(
    source: str | Source,
    out: Path,
    *,
    archive: Path | None = None,
    url: str | None = None,
    sha256: str | None = None,
    overwrite: bool = False,
    progress: Progress = silent,
) -> Path:
    """Download a dataset, check it, and unpack it into `out/{train,val,test}/{LABEL}/`.

    If interrupted at any moment, a second call finishes the work; it also repairs missing and truncated images.

    Args:
        source: the dataset, or its name.
        out: a new folder, an empty one, or one that was fetched into before.
        archive: a local copy of the archive, instead of a download.
        url: another address of the archive.
        sha256: checksum that the archive must have; by default a download must have the published one.
        overwrite: replace what is in `out`.
        progress: called during the download with the bytes that are here and the total.

    Returns:
        `out`.

    Raises:
        UsageError: an argument is not valid, or `out` contains something else, is being written by another process, or
            cannot be written.
        DownloadError: the download failed, or is not the expected file.
        DataError: the archive is damaged, unsafe, or not the whole dataset.
    """
    source = _find_source(source) if isinstance(source, str) else source
    if archive is not None and url is not None:
        raise UsageError("Pass `archive` or `url`, not both.")
    if sha256 is not None and not re.fullmatch(r"[0-9a-f]{64}", sha256 := sha256.strip().lower()):
        raise UsageError(f"{sha256!r} is not a checksum of 64 hexadecimal digits.", "sha256")
    with lock_folder(out):
        _fetch(source, out, archive, url, sha256, overwrite, progress)
    return out


def _fetch(
    source: Source,
    out: Path,
    archive: Path | None,
    url: str | None,
    sha256: str | None,
    overwrite: bool,
    progress: Progress,
) -> None:
    old = None if overwrite else _read_manifest(out, source, sha256)
    missing = [] if old is None else _list_missing(out, old)
    if old is not None and not missing:
        _remove_leftovers(out)
        _log(f"{out}: complete, {len(old.files):,} images of {source.name} ({old.edition}). Nothing to do.")
        return
    if archive is not None and not archive.is_file():
        raise DataError(f"{archive}: no such file. Pass the archive as published.")
    if old is None:
        claim_folder(out, SOURCE_FILES, overwrite)
    _log(f"{source.title}\nLicence: {source.licence}, {source.licence_url}\nCite: {source.citation}")
    if archive is None:
        source = source if url is None else replace(source, url=url)
        _download(source, sha256, out, progress)
    try:
        new = _unpack(source, archive, sha256, out, old, missing)
    except (DataError, DownloadError):
        if archive is None:  # otherwise a second call would use it again
            shutil.rmtree(out / _WORKSHOP, ignore_errors=True)
        raise
    _publish(out, old or new, source)
    _remove_leftovers(out)
    _log(f"{out}: {_describe(new)}")
    if source.origin:
        _log(source.remark, logging.WARNING)


def list_subsets() -> tuple[str, ...]:
    """The names that `select_subset` knows."""
    lists = files("pneumoscope.datasets").joinpath("lists").iterdir()
    return tuple(sorted(entry.name.removesuffix(".csv") for entry in lists if entry.name.endswith(".csv")))


def select_subset(samples: Sequence[Sample], name: str) -> list[Sample]:
    """Pick the images of a published subset and give them its splits.

    Images are matched by class and file name without its suffix, wherever they are: published subsets may have their
    own splits, and copies are often saved in another format.

    Args:
        samples: the labelled samples of the full dataset.
        name: one of `list_subsets()`. `seed-400` are the 400 images of the Kermany data that the baseline recipe was
            published with: 200 for training, 100 for validation and 100 for testing, half of each NORMAL.

    Returns:
        The samples of the subset, in input order.

    Raises:
        DataError: an image is missing, or is there more than once.
        UsageError: no subset has that name.
    """
    if name not in list_subsets():
        raise UsageError(f"No subset is named {name!r}. Known: {', '.join(list_subsets())}.", "subset")
    text = files("pneumoscope.datasets").joinpath("lists", f"{name}.csv").read_text(encoding="utf-8")
    splits = {(row["label"], row["name"]): row["split"] for row in csv.DictReader(text.splitlines())}
    keyed = [(key, sample) for sample in samples if (key := (str(sample.label), sample.path.stem)) in splits]
    copies: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
    for key, sample in keyed:
        copies[key].append(str(sample.path))
    if missing := [f"{label}/{stem}" for label, stem in splits if (label, stem) not in copies]:
        raise DataError(
            f"{len(missing)} of the {len(splits)} images of {name} are missing: {_shorten(missing)}. They are from "
            "the full dataset, including its test split: get it with `pneumoscope data fetch kermany --out FOLDER`."
        )
    if repeated := [_shorten(paths) for paths in copies.values() if len(paths) > 1]:
        raise DataError(
            f"{len(repeated)} images of {name} occur more than once, such as {repeated[0]}. Use one copy of the "
            "dataset."
        )
    return [replace(sample, split=splits[key]) for key, sample in keyed]


def _shorten(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _find_source(name: str) -> Source:
    known = {source.name: source for source in list_sources() if source.url}
    if name not in known:
        raise UsageError(f"No dataset is named {name!r}. Known: {', '.join(known)}.")
    return known[name]


def _download(source: Source, sha256: str | None, out: Path, progress: Progress) -> None:
    path, size = out / _WORKSHOP / source.file, source.size if sha256 in (None, source.sha256) else None
    path.parent.mkdir(exist_ok=True)
    try:
        download(source.url, path, size=size, progress=progress)
    except DownloadError as problem:
        raise DownloadError(f"{problem}\nRun the same command again to resume. Or {_by_hand(source)}") from None


def _unpack(
    source: Source, local: Path | None, sha256: str | None, out: Path, old: Manifest | None, missing: Sequence[str]
) -> Manifest:
    """Check a local or downloaded archive, and unpack its images (the missing ones, if any) into the workshop."""
    _log("Checking the archive")
    path, name = (local, local.name) if local else (out / _WORKSHOP / source.file, hide_secrets(source.url))
    digest, folder = hash_archive(path), out / _WORKSHOP / "images"
    verified = _verify(source, path, digest, sha256, local)
    with open_archive(path) as archive:
        arrays = read_arrays(archive, source.labels, PNEUMONIAMNIST.name) if source.file.endswith(".npz") else {}
        images = {} if arrays else list_images(archive, source.labels)
        sizes = {place: len(content) for place, content in arrays.items()}
        sizes |= {place: member.file_size for place, member in images.items()}
        new = Manifest(source.name, _find_edition(source, sizes, name, verified), name, digest, verified, sizes)
        if old is not None and old.files != new.files:
            raise UsageError(f"{out}: its images ({old.edition}) are not those of {name} ({new.edition}). {_OTHER_OUT}")
        places = missing or list(sizes)
        _log(f"Unpacking {len(places):,} images ({new.edition})")
        shutil.rmtree(folder, ignore_errors=True)
        if arrays:
            write_files(arrays, places, folder)
        else:
            unpack_images(archive, {place: images[place] for place in places}, folder)
    return new


def _by_hand(source: Source) -> str:
    return f"download {source.file} with a browser from {source.homepage}, and pass it as `archive`."


def _verify(
    source: Source, path: Path, sha256: str, given: str | None, local: Path | None
) -> Literal["published", "given"] | None:
    """Compare an archive's checksum with the expected one; for a local archive, there is none by default."""
    found, wanted, kind = sha256, source.sha256, "SHA-256"
    if given is None and wanted is None and source.md5 is not None:
        found, wanted, kind = hash_archive(path, "md5"), source.md5, "MD5"
    expected = given or (None if local else wanted)
    if expected in (None, found):
        return "published" if found == wanted else "given" if expected else None
    name = local.name if local else hide_secrets(source.url)
    message = f"{name}: wrong checksum: {kind} is {found}, expected {expected}."
    if local:
        raise DataError(f"{message} It is a different file, or damaged: get it again, or correct `sha256`.")
    raise DownloadError(
        f"{message} It was changed on the server or in transit, and has been deleted.\nTry again. Or {_by_hand(source)}"
    )


def _find_edition(source: Source, sizes: Mapping[str, int], name: str, verified: str | None) -> str:
    """Find the edition that images belong to, by their numbers and names."""
    counts = Counter(place.rpartition("/")[0] for place in sizes)
    unknown = [place for place in sizes if not re.match(source.names, place.rpartition("/")[2])]
    for edition, expected in source.editions.items():
        if counts == expected and not unknown:
            return edition
    if verified == "published":
        return "as published"
    raise DataError(
        f"{name}: not this dataset: it has {_format_counts(counts)}"
        + (f", and names such as {unknown[0]}, which belong to another version" if unknown else "")
        + "; expected "
        + ", or ".join(f"{_format_counts(expected)} ({edition})" for edition, expected in source.editions.items())
        + ". Get the archive again; or unpack it yourself and use its folder as it is."
    )


def _format_counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{number} {folder}" for folder, number in sorted(counts.items()))


def _read_manifest(out: Path, source: Source, sha256: str | None) -> Manifest | None:
    """Read what a folder already contains; refuse it if it belongs to another dataset or archive."""
    path = out / _MANIFEST
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as problem:
        raise UsageError(f"{path}: cannot be read: {problem}. {_OTHER_OUT}") from None
    if not isinstance(values, dict):
        raise UsageError(f"{path}: does not describe a dataset. {_OTHER_OUT}")
    manifest = config.build(Manifest, values, str(path))
    if manifest.name != source.name or sha256 not in (None, manifest.sha256):
        raise UsageError(
            f"{out}: contains {manifest.name} from an archive with SHA-256 {manifest.sha256}. {_OTHER_OUT}"
        )
    return manifest


def _list_missing(out: Path, manifest: Manifest) -> list[str]:
    """Places of images that are missing or of another size. Unknown images are reported and left alone."""
    present: dict[str, int] = {}
    for folder in {place.rpartition("/")[0] for place in manifest.files}:
        if (out / folder).is_dir():
            with os.scandir(out / folder) as entries:  # thousands of files: pathlib takes ten times as long
                present |= {f"{folder}/{each.name}": each.stat().st_size for each in entries if each.is_file()}
    if unknown := sorted(name for name in present.keys() - manifest.files.keys() if "/." not in name):
        _log(f"{out}: {len(unknown):,} files do not belong to {manifest.name}, such as {unknown[0]}.", logging.WARNING)
    missing = [place for place, size in manifest.files.items() if present.get(place) != size]
    if missing:
        _log(f"{out}: {len(missing):,} of {len(manifest.files):,} images are missing or damaged, such as {missing[0]}.")
    return missing


def _publish(out: Path, manifest: Manifest, source: Source) -> None:
    """Move unpacked images to their places. The manifest goes first: after a crash it tells what is missing."""
    unpacked = out / _WORKSHOP / "images"
    write_text(out / _MANIFEST, json.dumps(asdict(manifest), indent=1) + "\n")
    write_text(
        out / _NOTICE,
        f"{source.title}\n\nSource:  {source.homepage}\nLicence: {source.licence}, {source.licence_url}\n"
        f"Cite:    {source.citation}\n\nFetched: {manifest.archive} ({manifest.edition})\n{_describe(manifest)}\n\n"
        f"{source.remark}\n",
    )
    try:
        for place in manifest.files:
            if (unpacked / place).exists():
                (out / place).parent.mkdir(parents=True, exist_ok=True)
                (unpacked / place).replace(out / place)
    except OSError as problem:
        raise UsageError(f"{out}: cannot be written: {problem.strerror or problem}.") from None


def _remove_leftovers(out: Path) -> None:
    """Remove the temporary files of this call and of earlier ones that were killed."""
    for path in out.glob(".*.part"):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _describe(manifest: Manifest) -> str:
    checksum = {
        "published": "The checksum of the archive is the published one",
        "given": "The checksum of the archive is the given one",
        None: "The archive had no known checksum; its images were recognised by their folders and numbers",
    }[manifest.verified]
    return f"{len(manifest.files):,} images ({manifest.edition}). {checksum}. SHA-256 {manifest.sha256}"


def _log(message: str, level: int = logging.INFO) -> None:
    logging.getLogger("pneumoscope").log(level, "%s", message)
