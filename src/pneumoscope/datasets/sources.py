"""Public data sets by name: where they are, under which licence, and how they come here whole."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from pneumoscope import config
from pneumoscope.datasets.archives import ImageArchive, hash_archive
from pneumoscope.datasets.downloads import Patience, download, show_address
from pneumoscope.datasets.samples import SPLITS, Sample
from pneumoscope.errors import DataError, DownloadError, UsageError
from pneumoscope.files import claim_folder, write_text

_MANIFEST = "SOURCE.json"
_NOTICE = "SOURCE.txt"
SOURCE_FILES = (_MANIFEST, _NOTICE, *SPLITS)
# Outputs leave out what begins with a dot and ends so: see outputs.claim_folder.
_WORKSHOP = ".fetch.part"


@dataclass(frozen=True, slots=True)
class Edition:
    """One way in which a data set is handed out.

    Attributes:
        name: who hands it out.
        counts: images by `split/LABEL`.
    """

    name: str
    counts: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Source:
    """A public data set.

    Attributes:
        name: what it is asked for by.
        title: as published.
        licence: its name.
        licence_url: its text.
        citation: what to cite.
        homepage: where a person downloads it.
        file: the archive's name there.
        url: its address.
        size: bytes, or None where not known.
        sha256: its checksum, or None where not known.
        labels: its class folders.
        names: regular expression that begins every image's name.
        editions: all ways in which it is handed out.
        population: whom its images show.
    """

    name: str
    title: str
    licence: str
    licence_url: str
    citation: str
    homepage: str
    file: str
    url: str
    size: int | None
    sha256: str | None
    labels: tuple[str, ...]
    names: str
    editions: tuple[Edition, ...]
    population: str = ""


def list_sources() -> tuple[Source, ...]:
    """All data sets known by name."""
    return (
        Source(
            name="kermany",
            title="Labeled Optical Coherence Tomography (OCT) and Chest X-Ray Images for Classification, version 2: "
            "the chest X-rays",
            licence="CC BY 4.0",
            licence_url="https://creativecommons.org/licenses/by/4.0/",
            citation="Kermany D, Zhang K, Goldbaum M. Labeled Optical Coherence Tomography (OCT) and Chest X-Ray "
            "Images for Classification. Mendeley Data, V2, 2018. doi:10.17632/rscbjbr9sj.2. With: Kermany DS et al. "
            "Identifying Medical Diagnoses and Treatable Diseases by Image-Based Deep Learning. Cell 172(5):1122-1131, "
            "2018. doi:10.1016/j.cell.2018.02.010",
            homepage="https://data.mendeley.com/datasets/rscbjbr9sj/2",
            file="ChestXRay2017.zip",
            url="https://data.mendeley.com/public-files/datasets/rscbjbr9sj/files/"
            "f12eaf6d-6023-432f-acc9-80c9d7393433/file_downloaded",
            # As three independent public projects found them in what they had downloaded from this address.
            size=1_235_512_464,
            sha256="13efc055629733dbab07877f8b3c9f81097840dbcdaa326a8542322c2281ce36",
            labels=("NORMAL", "PNEUMONIA"),
            names=r"(NORMAL2-)?IM-\d|person\d",  # version 3 names its files otherwise, and its patients
            editions=(
                Edition(
                    "Mendeley Data",
                    {"train/NORMAL": 1349, "train/PNEUMONIA": 3883, "test/NORMAL": 234, "test/PNEUMONIA": 390},
                ),
                Edition(
                    "Kaggle",
                    {
                        "train/NORMAL": 1341,
                        "train/PNEUMONIA": 3875,
                        "val/NORMAL": 8,
                        "val/PNEUMONIA": 8,
                        "test/NORMAL": 234,
                        "test/PNEUMONIA": 390,
                    },
                ),
            ),
            population="children of one to five years in one hospital (Guangzhou, China), anterior-posterior images",
        ),
    )


def find_source(name: str) -> Source:
    """The data set of this name.

    Raises:
        UsageError: there is none.
    """
    known = {source.name: source for source in list_sources()}
    if name not in known:
        raise UsageError(f"{name}: no data set known by that name. Known: {', '.join(known)}.")
    return known[name]


def recognise_source(samples: Sequence[Sample]) -> Source | None:
    """The public data set that samples are from, if all of their names and labels are such as it alone has.

    Viewers export DICOM as `IM-0001-0001` for everybody, so names of the other class have to be there too.
    """
    for source in list_sources():
        fits = all(
            sample.label in source.labels and sample.tags is None and re.match(source.names, sample.path.name)
            for sample in samples
        )
        if fits and any(re.match(r"person\d+_(bacteria|virus)_\d", sample.path.name) for sample in samples):
            return source
    return None


@dataclass(frozen=True, slots=True)
class Manifest:
    """What `SOURCE.json` tells of a fetched data set.

    Attributes:
        name: of the data set.
        edition: who handed it out.
        archive: the archive's name or address.
        sha256: its checksum.
        verified: what that was held against: the `published` one, the `given` one, or nothing.
        files: bytes of each image by its place.
    """

    name: str
    edition: str
    archive: str
    sha256: str
    verified: Literal["published", "given"] | None
    files: dict[str, int]


def fetch(
    source: str | Source,
    out: Path,
    *,
    archive: Path | None = None,
    url: str | None = None,
    sha256: str | None = None,
    overwrite: bool = False,
    patience: Patience | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Bring a public data set into a folder `out/{train,val,test}/{LABEL}/`.

    Interrupted at any moment, even killed, a second call finishes the work. In a folder that is complete it does
    nothing; missing images, or ones of another size, it mends.

    Args:
        source: the data set, or its name.
        out: a new folder, an empty one, or one that was fetched into before.
        archive: a file that the user has already, instead of a download.
        url: another address of it.
        sha256: checksum to hold the archive against; by default a download is held against the published one.
        overwrite: fetch anew what is there already.
        patience: with the server.
        progress: called during the download with the bytes that are here and all bytes, 0 where not known.

    Returns:
        `out`.

    Raises:
        UsageError: no such data set; `out` holds something else or cannot be written.
        DownloadError: out of reach, or not the file that is expected.
        DataError: the archive is damaged, unsafe, or not the whole data set.
    """
    source = find_source(source) if isinstance(source, str) else source
    if archive is not None and url is not None:
        raise UsageError("--archive and --url: give one of them.")
    if sha256 is not None and not re.fullmatch(r"[0-9a-f]{64}", sha256 := sha256.strip().lower()):
        raise UsageError(f"--sha256 {sha256}: 64 hexadecimal digits are needed.")
    old = None if overwrite else _read_manifest(out)
    wrong: list[str] = []
    if old is not None:
        _check_same(old, source, sha256, out)
        wrong = _find_wrong(out, old)
        if not wrong:
            _sweep(out)
            _log(f"{out}: complete, {len(old.files):,} images of {source.name} ({old.edition}). Nothing to do.")
            return out
        _log(f"{out}: {len(wrong):,} of {len(old.files):,} images missing or damaged, such as {wrong[0]}; mending.")
    if archive is not None and not archive.is_file():
        raise DataError(f"{archive}: no such file. Give the archive as published.")
    if old is None:
        claim_folder(out, SOURCE_FILES, overwrite)
    _log(f"{source.title}\nLicence: {source.licence}, {source.licence_url}\nCite: {source.citation}")
    workshop = out / _WORKSHOP
    workshop.mkdir(exist_ok=True)
    address = source.url if url is None else url
    shown = archive.name if archive else show_address(address)
    found = archive or _download(source, address, sha256, workshop, patience, progress)
    try:
        _log("Checking the archive")
        digest = hash_archive(found)
        verified = _verify(source, digest, sha256, archive, shown)
        with ImageArchive(found, source.labels) as images:
            edition = _recognise(source, images, verified)
            new = Manifest(source.name, edition, shown, digest, verified, dict(images.sizes))
            if old is not None and old.files != new.files:
                raise UsageError(
                    f"{out}: holds other images ({old.edition}) than {shown} ({edition}). Choose another --out, "
                    "or allow all of it to go with --overwrite."
                )
            _log(f"Unpacking {len(wrong or new.files):,} images ({edition})")
            staged = workshop / "images"
            shutil.rmtree(staged, ignore_errors=True)
            images.unpack(staged, wrong or new.files)
    except (DataError, DownloadError):
        if archive is None:  # else a second call would find it again
            shutil.rmtree(workshop, ignore_errors=True)
        raise
    _publish(out, staged, old or new, source)
    _sweep(out)
    _log(f"{out}: {_describe(new)}")
    return out


def _download(
    source: Source,
    url: str,
    sha256: str | None,
    workshop: Path,
    patience: Patience | None,
    progress: Callable[[int, int], None] | None,
) -> Path:
    path = workshop / source.file
    size = source.size if sha256 in (None, source.sha256) else None
    try:
        download(url, path, size=size, patience=patience, progress=progress)
    except DownloadError as problem:
        raise DownloadError(
            f"{problem}\nThe same command goes on where this one stopped. Or {_by_hand(source)}"
        ) from None
    return path


def _by_hand(source: Source) -> str:
    return f"download {source.file} with a browser from {source.homepage}, and give it with --archive FILE."


def _verify(
    source: Source, found: str, given: str | None, archive: Path | None, shown: str
) -> Literal["published", "given"] | None:
    """Hold the archive's checksum against what is expected; for the user's own archive, that is nothing by default."""
    if found == source.sha256 and given in (None, found):
        return "published"
    expected = given or (None if archive else source.sha256)
    if expected in (None, found):
        return "given" if expected else None
    what = f"{archive or shown}: checksum wrong: SHA-256 is {found}, expected was {expected}."
    if archive is not None:
        raise DataError(f"{what} It is another file, or damaged: get it again, or correct --sha256.")
    raise DownloadError(
        f"{what} It was changed there or on its way here, and is thrown away.\nTry again. Or {_by_hand(source)}"
    )


def _recognise(source: Source, images: ImageArchive, verified: str | None) -> str:
    """Which edition the images are, by their counts and names."""
    counts = Counter(place.rpartition("/")[0] for place in images.sizes)
    strange = [place for place in images.sizes if not re.match(source.names, place.rpartition("/")[2])]
    for edition in source.editions:
        if counts == edition.counts and not strange:
            return edition.name
    if verified == "published":
        return "as published"
    raise DataError(
        f"{images.path}: not the data set: it has {_count(counts)}"
        + (f", and names such as {strange[0]}, which are another version's" if strange else "")
        + "; expected was "
        + ", or ".join(f"{_count(edition.counts)} ({edition.name})" for edition in source.editions)
        + ". Get the archive again; or unpack it yourself and use its folder as it is."
    )


def _count(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{number} {folder}" for folder, number in sorted(counts.items()))


def _read_manifest(out: Path) -> Manifest | None:
    try:
        values = json.loads((out / _MANIFEST).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as problem:
        raise UsageError(f"{out / _MANIFEST}: cannot be read: {problem}. Fetch anew with --overwrite.") from None
    if not isinstance(values, dict):
        raise UsageError(f"{out / _MANIFEST}: tells nothing of a data set. Fetch anew with --overwrite.")
    return config.build(Manifest, values, f"{out / _MANIFEST}")


def _check_same(old: Manifest, source: Source, sha256: str | None, out: Path) -> None:
    if old.name != source.name or sha256 not in (None, old.sha256):
        raise UsageError(
            f"{out}: holds {old.name} from an archive with SHA-256 {old.sha256}. Choose another --out, or allow it to "
            "go with --overwrite."
        )


def _find_wrong(out: Path, manifest: Manifest) -> list[str]:
    """Places of images that are missing or of another size; images that are nobody's are told of and left alone."""
    found: dict[str, int] = {}
    for folder in {place.rpartition("/")[0] for place in manifest.files}:
        if (out / folder).is_dir():
            with os.scandir(out / folder) as entries:  # thousands of files: pathlib takes ten times as long
                found |= {f"{folder}/{each.name}": each.stat().st_size for each in entries if each.is_file()}
    if strange := sorted(name for name in found.keys() - manifest.files.keys() if "/." not in name):
        _log(f"{out}: {len(strange):,} files in it are not of {manifest.name}, such as {strange[0]}.", logging.WARNING)
    return [place for place, size in manifest.files.items() if found.get(place) != size]


def _publish(out: Path, staged: Path, manifest: Manifest, source: Source) -> None:
    """Move unpacked images to their places. The manifest goes first: after a kill it tells what is missing."""
    write_text(out / _MANIFEST, json.dumps(asdict(manifest), indent=1) + "\n")
    write_text(out / _NOTICE, _write_notice(source, manifest))
    try:
        for split in sorted(staged.iterdir()):
            if not (out / split.name).exists():
                split.rename(out / split.name)
                continue
            for path in sorted(split.glob("*/*")):
                target = out / path.relative_to(staged)
                target.parent.mkdir(exist_ok=True)
                path.replace(target)
    except OSError as problem:
        raise UsageError(f"{out}: cannot be written: {problem.strerror or problem}.") from None


def _sweep(out: Path) -> None:
    """Remove what this call and killed ones before it worked with."""
    for path in out.glob(".*.part"):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _write_notice(source: Source, manifest: Manifest) -> str:
    return (
        f"{source.title}\n\nSource:  {source.homepage}\nLicence: {source.licence}, {source.licence_url}\n"
        f"Cite:    {source.citation}\n\nFetched: {manifest.archive} ({manifest.edition})\n{_describe(manifest)}\n\n"
        "The images' files are unchanged; only their folders were put in order.\n"
    )


def _describe(manifest: Manifest) -> str:
    state = {
        "published": "is the published one",
        "given": "is the one that was given",
        None: "could be held against nothing; the images were recognised by their folders and counts",
    }[manifest.verified]
    images = f"{len(manifest.files):,} images ({manifest.edition})"
    return f"{images}. The archive's checksum {state}. SHA-256 {manifest.sha256}"


def _log(message: str, level: int = logging.INFO) -> None:
    logging.getLogger("pneumoscope").log(level, "%s", message)
