"""Predictions of any number of images on the machines of a Ray cluster."""

from __future__ import annotations

import importlib
import io
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pneumoscope import __version__, errors
from pneumoscope.cluster import plan
from pneumoscope.cluster.claim import Claim, claim_output
from pneumoscope.cluster.listing import Witnesses, list_images
from pneumoscope.cluster.storage import Storage
from pneumoscope.cluster.worker import Job, ListPredictor, Options, conceal_patients, make_job
from pneumoscope.config import Progress, checked
from pneumoscope.datasets.columns import Naming
from pneumoscope.datasets.pseudonyms import compute_pseudonym
from pneumoscope.errors import DataError, PneumoscopeError, ServiceError
from pneumoscope.files import lock_folder
from pneumoscope.images.read import Reading
from pneumoscope.inference.formats import to_table
from pneumoscope.tasks.engine import check_ray, open_ray
from pneumoscope.tasks.ray_tasks import count_slots
from pneumoscope.text import shorten

_BLOCKS = 10_000  # most pieces of work; Ray keeps a record of each
_REASONS = 5  # most errors that are shown
_ATTEMPTS = 5  # for each part: one whose worker always dies must not be tried for ever


@dataclass(frozen=True)
class Workers:
    """Where and how many processes predict.

    Attributes:
        address: of the Ray cluster, `HOST:PORT` or `auto`; by default `$RAY_ADDRESS`, else one on this machine.
        count: processes at most; by default as many as the cluster has cores for.
        cpus: cores that each process computes with.
        part_size: images that one file of the output holds. If a worker dies, its part is predicted again.
    """

    address: str | None = None
    count: int | None = None
    cpus: int = 1
    part_size: int = 1000


@dataclass(frozen=True)
class ClusterPredictions:
    """What a run on a cluster has done.

    Attributes:
        out: the folder or bucket of the predictions.
        images: number of images with a row, from all runs so far.
        new: how many of them this run predicted.
        failed: how many of the new ones have no prediction.
        reasons: the errors of some of these.
    """

    out: str
    images: int
    new: int = 0
    failed: int = 0
    reasons: tuple[str, ...] = ()


class Attempts:
    """A Ray actor that counts how often each part was begun, because a worker that dies cannot count that."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()

    def add(self, name: str) -> int:
        """Count an attempt, and return how many there have been."""
        self._counts[name] += 1
        return self._counts[name]


class PartPredictor:
    """A Ray actor that predicts whole parts, and writes each as one file."""

    def __init__(self, job: Job, out: Storage, attempts: Any, witnesses: Sequence[str] = ()) -> None:
        self._predictor = ListPredictor(job, witnesses)
        self._out, self._attempts = out, attempts

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, list[Any]]:
        """Predict the parts of a batch. Return the numbers of images and of errors in each, and one error."""
        parts = map(plan.Part, batch["plan"].tolist(), batch["number"].tolist())
        done = [self._predict(part) for part in parts]
        new, failed, reason = zip(*done, strict=True)
        return {"new": list(new), "failed": list(failed), "reason": list(reason)}

    def _predict(self, part: plan.Part) -> tuple[int, int, str]:
        import ray
        from pyarrow import parquet

        if self._out.exists(part.name):  # by this worker before it died, or by another one
            return 0, 0, ""
        images = plan.read_part(self._out, part)
        if ray.get(self._attempts.add.remote(part.name)) > _ATTEMPTS:
            raise DataError(
                f"{part.name}: its worker died {_ATTEMPTS} times. Perhaps memory is short, or one of its {len(images)} "
                f"images, from {images[0].path} to {images[-1].path}, is at fault. Choose a smaller `part_size` and "
                "another `out` to find it."
            )
        rows = list(self._predictor.run(images))
        sink = io.BytesIO()
        parquet.write_table(to_table(rows), sink)
        self._out.write(part.name, sink.getvalue())
        failures = [row["error"] for row in rows if row["error"] is not None]
        return len(rows), len(failures), next(iter(failures), "")


@checked
def predict_on_cluster(
    data: str,
    out: str,
    model: str | Path | None = None,
    options: Options = Options(),
    workers: Workers = Workers(),
    reading: Reading = Reading(),
    naming: Naming = Naming(),
    progress: Progress | None = None,
) -> ClusterPredictions:
    """Predict the images of a folder, a table or a bucket, and write Parquet files.

    An image that cannot be read has a row with its error. To continue an interrupted run, call this again: it
    predicts only images that have no row yet, including those added since. Rows are in no fixed order: join them by
    `id`, `path` or `sha256`.

    Args:
        data: path or address, such as `s3://bucket/folder`; every machine of the cluster must reach the images.
        out: folder that all machines share, or an address.
        model: as for `pneumoscope.load`.
        options: how images are predicted.
        workers: where, and with how many processes.
        reading: how to read images.
        naming: the columns of a table.
        progress: called with the number of images done.

    Raises:
        DataError: there are no images, or they or the output cannot be reached.
        ServiceError: the cluster cannot be used.
        UsageError: the output was begun with another model or other options, or another run writes there.
        MissingExtraError: Ray is not installed, or the package for this kind of address.
    """
    check_ray()
    place = Storage(out if not Storage(out).is_local else str(Path(out).absolute()))
    if not place.is_local:
        with claim_output(place) as claim:
            return _predict(data, place, model, options, workers, (reading, naming), _check_often(claim, progress))
    with lock_folder(Path(place.url)):
        return _predict(data, place, model, options, workers, (reading, naming), progress)


def _check_often(claim: Claim, progress: Progress | None) -> Progress:
    """Progress that also checks that the claim still holds."""

    def report(task: str, done: int, total: int) -> None:
        claim.check()
        if progress is not None:
            progress(task, done, total)

    return report


def _predict(
    data: str,
    out: Storage,
    model: str | Path | None,
    options: Options,
    workers: Workers,
    how: tuple[Reading, Naming],
    progress: Progress | None,
) -> ClusterPredictions:
    job = make_job(model, options)
    about: dict[str, Any] = {"schema": 1, "version": __version__, "model_sha256": job.fingerprint}
    about |= {"options": asdict(options), "reading": asdict(how[0])}
    del about["options"]["allow_missing"]  # a run may be continued with a different value
    about["pseudonym_key"] = None if job.key is None else compute_pseudonym(job.key, "the key itself")
    plan.check_output(out, about)
    witnesses = Witnesses()
    listed = witnesses.watch(list_images(data, *how))
    plan.extend_plan(out, conceal_patients(listed, job.key), workers.part_size, about)
    work = plan.find_work(out)
    found = ClusterPredictions(out.url, work.images)
    if work.missing:
        with open_ray(workers.address) as ray:
            for done in _run(ray, job, out, work.missing, workers, witnesses.paths):
                found = _add(found, **done)
                if progress is not None:
                    progress("Predicting", found.new, max(found.new, len(work.missing) * workers.part_size))
    if left := plan.find_work(out).missing:
        raise DataError(
            f"{out.url}: {len(left)} of {len(work.parts)} parts are missing after the run. All machines of the "
            "cluster must write to the same place: choose a folder that they share, or a bucket."
        )
    return found


def _add(found: ClusterPredictions, new: int, failed: int, reason: str) -> ClusterPredictions:
    reasons = (*found.reasons, reason)[:_REASONS] if reason else found.reasons
    return replace(found, new=found.new + new, failed=found.failed + failed, reasons=reasons)


def _run(
    ray: Any, job: Job, out: Storage, parts: list[plan.Part], workers: Workers, witnesses: Sequence[str]
) -> Iterator[dict[str, Any]]:
    """Predict parts on a cluster, and yield the result of each."""
    gpus = 1 if job.options.device == "cuda" else 0
    data = importlib.import_module("ray.data")
    context = data.DataContext.get_current()
    context.enable_progress_bars = False
    attempts = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(Attempts).remote()
    blocks = min(len(parts), _BLOCKS)
    most = min(workers.count or blocks, count_slots(ray, workers.cpus, gpus), blocks)
    work = data.from_items([asdict(part) for part in parts], override_num_blocks=blocks)
    rows = work.map_batches(
        PartPredictor,
        batch_size=1,
        compute=data.ActorPoolStrategy(min_size=1, max_size=most),
        fn_constructor_args=(job, out, attempts, witnesses),
        num_cpus=workers.cpus,
        num_gpus=gpus or None,
    )
    try:
        yield from rows.iter_rows()
    except Exception as problem:  # Ray raises errors of many kinds
        raise _explain(str(problem)) from None


def _explain(text: str) -> PneumoscopeError:
    """Find our own error in the stack trace of a worker; else make one that says to run the command again."""
    if found := re.search(r"^pneumoscope\.errors\.(\w+): (.*)$", text, re.MULTILINE):
        kind: type[PneumoscopeError] = getattr(errors, found[1])
        return kind(found[2])
    return ServiceError(f"the cluster failed: {shorten(text, 300)}. Run the command again to continue.")
