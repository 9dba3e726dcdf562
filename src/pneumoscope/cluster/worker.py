"""What one worker does: read listed images, predict them, and give a row for each."""

from __future__ import annotations

import hashlib
import os
import platform
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from pneumoscope import __version__
from pneumoscope.cluster.listing import ListedImage
from pneumoscope.cluster.storage import Reader, is_url
from pneumoscope.datasets.pseudonyms import Pseudonyms, compute_pseudonym, open_key
from pneumoscope.errors import DataError, UsageError
from pneumoscope.images.prefetch import prefetch
from pneumoscope.images.read import ImageBytes
from pneumoscope.inference.features import Extract, read_source
from pneumoscope.inference.formats import Row
from pneumoscope.inference.predictor import Predictor, load
from pneumoscope.models.model_folder import find_model
from pneumoscope.models.references import locate_model

_NEAR = 5  # other images that are looked for where some cannot be reached
_AHEAD = 32  # images that are read and waiting at most
_PAUSE = 1.0  # seconds before a request that failed is sent again


@dataclass(frozen=True)
class Options:
    """How images are predicted; see `pneumoscope.load`.

    Attributes:
        patient_ids: whether to name patients, instead of giving them pseudonyms.
        allow_missing: whether unreachable images get rows with an error even if no image near them can be reached.
    """

    device: str = "auto"
    ood: bool = True
    prevalence: float | None = None
    threshold: float | str | None = None
    alpha: float | None = None
    false_alarms: float | None = None
    refuse_out_of_scope: bool = False
    patient_ids: bool = False
    allow_missing: bool = False


@dataclass(frozen=True)
class Job:
    """All that a worker on another machine needs to predict exactly as this machine does.

    Attributes:
        files: the files of the model folder, content by name.
        options: how images are predicted.
        key: the key of the pseudonyms of patients; None where patients are named.
        version: of pneumoscope.
    """

    files: Mapping[str, bytes]
    options: Options
    key: bytes | None
    version: str = __version__

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the model folder."""
        digest = hashlib.sha256()
        for name, content in sorted(self.files.items()):
            digest.update(f"{name} {len(content)}\n".encode() + content)
        return digest.hexdigest()


def make_job(model: str | Path | None = None, options: Options = Options()) -> Job:
    """Find a model, check that the options suit it, and pack it for other machines.

    Raises:
        ModelError, DownloadError, UsageError, MissingExtraError: as `pneumoscope.load`.
    """
    folder = find_model(locate_model(model))
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    key = None if options.patient_ids else open_key(Pseudonyms().file)
    _load(folder, options)
    return Job(files, options, key)


def _load(folder: str | Path, options: Options) -> Predictor:
    wanted = {name: value for name, value in asdict(options).items() if name not in ("patient_ids", "allow_missing")}
    return load(folder, wanted.pop("device"), **wanted)


def conceal_patients(images: Iterable[ListedImage], key: bytes | None) -> Iterator[ListedImage]:
    """Replace patients by pseudonyms under the key of a job, where it has one, before anything is written."""
    for image in images:
        hidden = compute_pseudonym(key, image.patient) if key is not None and image.patient else image.patient
        yield replace(image, patient=hidden)


class ListPredictor:
    """Predicts listed images, wherever they are; what a list says of patients is from `conceal_patients`.

    Args:
        job: what to predict with.
        witnesses: images that the machine of the command has just listed.

    Raises:
        UsageError: this machine has another version of pneumoscope than the one that made the job.
    """

    def __init__(self, job: Job, witnesses: Sequence[str] = ()) -> None:
        if job.version != __version__:
            raise UsageError(
                f"a worker has pneumoscope {__version__}, and this machine has {job.version}. Install one version "
                "everywhere."
            )
        with tempfile.TemporaryDirectory() as kept:
            for name, content in job.files.items():
                path = Path(kept, name)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
            self.predictor = _load(kept, job.options)
        self._key, self._allow_missing = job.key, job.options.allow_missing
        self._reader = Reader()
        self._witnesses = witnesses

    def run(self, images: Iterable[ListedImage]) -> Iterator[Row]:
        """Yield a row for each image, in order, with an error where there is no prediction.

        Raises:
            DataError: some images cannot be reached, nor can the images near them, so a mount or the access rights are
                probably at fault. Not raised with `allow_missing`.
        """
        images = list(images)
        unreached: set[str] = set()
        extracts = prefetch(lambda image: self._read(image, unreached), images, _AHEAD)
        model, grouped = self.predictor.model, bool(self.predictor.decisions.groups)
        for image, prediction in zip(images, self.predictor.run(extracts), strict=True):
            identity = prediction.identity
            if self._key is not None and identity["patient"] and not image.patient:  # of the file
                identity["patient"] = compute_pseudonym(self._key, identity["patient"])
            row = prediction.to_row(model.labels, grouped=grouped) | {"path": image.path}
            yield {"id": image.id, **row, **identity, "sha256": prediction.sha256 or None}
        if unreached and not self._allow_missing and not self._reaches_others(images, unreached):
            lost = next(each.path for each in images if each.id in unreached)
            raise DataError(
                f"{platform.node()}: {len(unreached)} of {len(images)} images cannot be reached, such as {lost}, and "
                "neither can others near them. Every machine of the cluster must reach them under this path. If they "
                "were deleted, pass `allow_missing=True`."
            )

    def _reaches_others(self, images: Sequence[ListedImage], unreached: AbstractSet[str]) -> bool:
        """Whether each storage that lacks an image is there: others with the most similar paths can be reached."""
        lost = {each.path for each in images if each.id in unreached}
        others = {*self._witnesses, *(each.path for each in images)} - lost
        if not others:
            return len(images) == 1  # nothing can be said of a single image
        for path in {_name_storage(path) or str(Path(path).parent): path for path in lost}.values():
            near = [each for each in others if _name_storage(each) == _name_storage(path)]
            near.sort(key=lambda other: -len(os.path.commonprefix([path, other])))  # noqa: RUF071 - names are alike, too
            if near and not any(map(self._reaches, near[:_NEAR])):
                return False
        return True

    def _reaches(self, path: str) -> bool:
        return self._reader.reaches(path) if is_url(path) else _can_be_read(path)

    def _read(self, image: ListedImage, unreached: set[str]) -> Extract:
        sample, spec = image.to_sample(), self.predictor.model.input
        if not is_url(image.path):
            extract = read_source(sample, spec)
            if extract.error and not _can_be_read(image.path):
                unreached.add(image.id)
            return extract
        try:
            content = self._fetch(image, unreached)
        except DataError as problem:
            return Extract(sample, error=str(problem))
        extract = read_source(ImageBytes(content, image.path, sample.reading), spec)
        extract.source = sample
        return extract

    def _fetch(self, image: ListedImage, unreached: set[str]) -> bytes:
        """Read an image at an address, again if only the request has failed.

        Raises:
            DataError: it cannot be reached, or is too large.
        """
        try:
            return self._reader.read(image.path)
        except DataError:
            if not self._reader.reaches(image.path):
                unreached.add(image.id)
                raise
        time.sleep(_PAUSE)
        return self._reader.read(image.path)


def _can_be_read(path: str) -> bool:
    try:
        with Path(path).open("rb") as file:
            file.read(1)
    except (OSError, ValueError):
        return False
    return True


def _name_storage(path: str) -> str:
    """The bucket or host of an address; empty for a file of this machine."""
    return "/".join(path.split("/", 3)[:3]) if is_url(path) else ""
