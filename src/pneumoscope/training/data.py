"""The data of a run: read samples, extract features, and extract them again from a trained backbone."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from pneumoscope.auditing.intake import MEASUREMENT, Images, unpack
from pneumoscope.auditing.measurements import FIELDS
from pneumoscope.config import Progress
from pneumoscope.datasets.duplicates import group_identical
from pneumoscope.datasets.left_out import count_left_out, describe_unusable
from pneumoscope.datasets.reading import read_dataset
from pneumoscope.datasets.samples import SPLITS, Sample, find_classes
from pneumoscope.datasets.splits import require_classes, split_samples
from pneumoscope.decisions import scope
from pneumoscope.decisions.groups import read_groups
from pneumoscope.decisions.threshold import fit_by_class
from pneumoscope.errors import DataError, MissingExtraError, UsageError
from pneumoscope.images.augment import Augmentation, augment
from pneumoscope.images.prefetch import prefetch
from pneumoscope.images.prepare import InputSpec
from pneumoscope.images.read import Reading
from pneumoscope.inference.cache import FeatureCache
from pneumoscope.inference.engines import Engine, build_engine
from pneumoscope.inference.features import Extract, Wanted, extract_features, keep_features, read_inputs
from pneumoscope.inference.prediction import count_warnings
from pneumoscope.inference.runtimes import choose_device
from pneumoscope.models.backbones import BackboneSpec, find_backbone, load_backbone, resize_input, try_backbone
from pneumoscope.models.classifier import Backbone
from pneumoscope.models.onnx_graphs import try_graph
from pneumoscope.text import counted, were
from pneumoscope.training.distributed import ALONE, Processes, check_processes
from pneumoscope.training.initial import InitialModel, describe_backbone, load_initial
from pneumoscope.training.settings import Settings

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Setup:
    """What a run trains, and on which data."""

    settings: Settings  # with the positive class, input and device that the data, backbone and machine imply
    samples: Sequence[Sample]  # all images, split
    classes: tuple[str, ...]  # their names
    spec: BackboneSpec  # where the backbone comes from
    backbone: Backbone  # with its pretrained weights; training changes it in place
    input: InputSpec  # what the backbone takes
    device: torch.device  # where it is trained
    drawn: Collection[str] = ()  # splits that the data do not have
    initial: InitialModel | None = None  # the model that the run continues from
    groups: Mapping[Path, str] | None = None  # of each image's file, if groups are drawn equally often
    left_out: Sequence[Mapping[str, str | int]] = ()  # how many files the data leave out, by reason and class
    test: bool = True  # whether test images are read
    processes: Processes = ALONE  # which train together

    @property
    def changes_backbone(self) -> bool:
        """Whether features extracted before training no longer hold after it."""
        return self.settings.network.train_backbone or self.settings.network.half_precision

    def select(self, split: str) -> list[Sample]:
        """The samples of a split."""
        return [sample for sample in self.samples if sample.split == split]


@dataclass(frozen=True)
class Split:
    """The readable images of a split."""

    samples: Sequence[Sample]  # N images
    targets: NDArray[np.int64]  # (N,) class indices
    features: Floats  # float32 (N, V, D), of each image and perhaps of its mirror image or augmented copies
    # float32 (N, W, E), averages of intermediate maps, which the OOD detector uses; of each image and its augmented
    # copies
    intermediate: Floats


@dataclass(frozen=True)
class Extracted:
    """What the pretrained backbone computed and the audit measured for the images."""

    # features of the readable images; each training image has those of its mirror image, too
    splits: Mapping[str, Split]
    images: Images  # content digests, errors and measurements of all images
    engine: Engine  # runs the pretrained backbone
    graph: bytes | None  # the pretrained backbone in ONNX, if it can be written so
    notes: tuple[str, ...]  # which images could not be read


@dataclass(frozen=True)
class Computing:
    """What computes features of the pretrained backbone."""

    engine: Engine
    graph: bytes | None  # the backbone in ONNX, if it can be written so


def prepare_computing(setup: Setup) -> Computing:
    """Make what computes features of the pretrained backbone."""
    graph = try_graph(setup.backbone, setup.input.size) if setup.device.type == "cpu" else None
    return Computing(build_engine(setup.backbone, setup.input.size, setup.device.type, graph), graph)


def read(settings: Settings, like: Setup | None = None, test: bool = True, processes: Processes = ALONE) -> Setup:
    """Read the samples, split them and load the backbone, so that errors show before anything is written.

    Args:
        settings: of the run.
        like: another run, whose training leaves the backbone as it is; this one then shares it.
        test: whether test images are to be read, too.
        processes: which train together.

    Raises:
        UsageError: settings that do not suit the data or the backbone.
        DataError: data that cannot be used.
        DownloadError: the weights cannot be downloaded.
    """
    check_stated(settings)
    samples, drawn, left_out = _read_samples(settings)
    setup = prepare_setup(settings, samples, like)
    check_processes(processes, setup.settings, setup.backbone)
    return replace(setup, drawn=drawn, left_out=left_out, test=test, processes=processes)


def prepare_setup(settings: Settings, samples: Sequence[Sample], like: Setup | None = None) -> Setup:
    """Load the backbone for samples that have been read and split; see `read`."""
    classes, positive = find_classes(samples, settings.data.positive)
    groups = _find_groups(samples, settings)
    settings = replace(settings, data=replace(settings.data, positive=positive))
    return replace(set_up(settings, samples, classes, like), groups=groups)


def set_up(settings: Settings, samples: Sequence[Sample], classes: tuple[str, ...], like: Setup | None = None) -> Setup:
    """Load the backbone for samples that were read, split and checked; see `read`."""
    initial, spec = None, find_backbone(settings.network.backbone)
    if like is not None:
        initial, spec, backbone = like.initial, like.spec, like.backbone
    elif settings.network.init is not None:
        initial, spec, backbone = load_initial(settings.network)
    else:
        backbone = load_backbone(spec, Path(settings.network.weights) if settings.network.weights else None)
        if spec.model is not None and settings.network.weights is None:
            initial = describe_backbone(spec.model)
    input_spec = resize_input(spec, settings.network.size, settings.network.fit)
    if like is None:
        try_backbone(backbone, input_spec.size)
    device = choose_device(settings.run.device)
    resolved = replace(
        settings,
        network=replace(settings.network, backbone=spec.name, size=input_spec.size, fit=input_spec.fit),
        run=replace(settings.run, device="cuda" if device.type == "cuda" else "cpu"),
    )
    return Setup(resolved, samples, classes, spec, backbone.eval(), input_spec, device, initial=initial)


def extract(
    setup: Setup, cache: FeatureCache | None, progress: Progress, computing: Computing | None = None
) -> Extracted:
    """Extract the features of all images with the pretrained backbone; unreadable files are left out and noted.

    Test images are included unless the setup leaves them out: the data's fingerprint covers their content, and
    unreadable files show early.

    Raises:
        DataError: a split lacks a class after unreadable images were left out.
    """
    samples = [sample for sample in setup.samples if setup.test or sample.split != "test"]
    n, processes = len(samples), setup.processes
    computing = computing or prepare_computing(setup)
    engine, graph = computing.engine, computing.graph
    measurement = MEASUREMENT if setup.settings.data.audit else None
    extracts: dict[int, Extract] = {}
    for split in SPLITS:
        places = [i for i in range(n) if samples[i].split == split]
        wanted = Wanted(mirror=split == "train", measurement=measurement)
        sources = [samples[i] for i in processes.share(places)]
        own: list[Extract] = []
        try:
            for extracted in extract_features(sources, engine, setup.input, wanted, cache):
                own.append(extracted)
                progress("Features", len(extracts) + min(len(own) * processes.size, len(places)), n)
        except MissingExtraError as problem:  # no file of this process can be read without a package
            if processes.size == 1:
                raise
            own = [Extract(source, error=str(problem), lacks_extra=True) for source in sources]
        gathered = processes.gather(own)
        if gathered and all(each.lacks_extra for each in gathered):
            raise MissingExtraError(str(gathered[0].error))
        if processes.leads and processes.size > 1:
            keep_features(gathered, engine, setup.input, wanted, cache)
        extracts |= zip(places, gathered, strict=True)
    ordered = [extracts[i] for i in range(n)]
    measured = np.zeros(n, FIELDS)
    for i, each in enumerate(ordered):
        if each.measured is not None:
            measured[i] = unpack(each.measured)
    notes = describe_unusable(samples, [each.error for each in ordered])
    if notes:
        readable = [sample for sample, each in zip(samples, ordered, strict=True) if not each.error]
        used = [split for split in SPLITS if any(sample.split == split for sample in samples)]
        errors = [each.error for each in ordered if each.error]
        if not readable:
            raise DataError(f"None of {counted(n, 'image')} can be read. The first: {errors[0]}")
        labels = {str(sample.label) for sample in samples}  # of all: a class may have no readable image
        require_classes(readable, f"after {were(len(errors), 'unreadable image')} left out", used, labels)
    notes += count_warnings([each.warnings for each in ordered])
    images = Images(samples, [each.sha256 for each in ordered], [each.error for each in ordered], measured)
    return Extracted(_stack_splits(setup, samples, ordered), images, engine, graph, tuple(notes))


def extract_again(
    setup: Setup, splits: Mapping[str, Split], engine: Engine, cache: FeatureCache | None, progress: Progress
) -> dict[str, Split]:
    """Extract the features of training and validation images with the trained backbone.

    With `augmented_copies`, a validation image gets as many copies, at half the geometric amounts of training: training
    is meant to be harder than anything that follows. A training image, from which the OOD detector learns, gets one
    copy at half and one at full amounts.
    """
    copies = setup.settings.decisions.augmented_copies
    full = setup.settings.augmentation.scale_crop(len(splits["train"].samples))
    mild = full.halve_geometry()
    extracted = {}
    for name, augmentations in (("train", [mild, full]), ("val", [mild] * copies)):
        extracted[name] = extract_split(splits[name], engine, setup.input, cache, processes=setup.processes)
        if copies:
            extracted[name] = add_augmented(
                extracted[name], engine, setup.input, augmentations, setup.settings.run.seed, progress, setup.processes
            )
    return extracted


def extract_split(
    split: Split,
    engine: Engine,
    spec: InputSpec,
    cache: FeatureCache | None = None,
    remedy: str = "restore it, and continue with `resume=True`",
    processes: Processes = ALONE,
) -> Split:
    """Extract the features of the same images with another engine; `remedy` is for those that cannot be read.

    Raises:
        DataError: an image can no longer be read.
    """
    own = processes.share(split.samples)
    extracts = processes.gather(list(extract_features(own, engine, spec, cache=cache)))
    if errors := [str(each.error) for each in extracts if each.error]:
        raise DataError(f"{errors[0]} It could be read before: {remedy}.")
    features, intermediate = stack_features(extracts)
    return replace(split, features=features, intermediate=intermediate)


def add_augmented(
    split: Split,
    engine: Engine,
    spec: InputSpec,
    augmentations: Sequence[Augmentation],
    seed: int,
    progress: Progress = lambda *_: None,
    processes: Processes = ALONE,
) -> Split:
    """Add the features of augmented copies of each image, one for each of `augmentations`.

    The seed and the image's place in the split fix its copies.
    """
    places, count = processes.share(range(len(split.samples))), len(augmentations)
    copies = prefetch(  # epochs of training are numbered from 1, so that 0 is free as a seed
        lambda place: _augment(split.samples[place], spec, augmentations, (seed, 0, place)), places
    )
    own: list[tuple[Floats, Floats]] = []  # features (count, D) and intermediate features (count, E) of each image
    while batch := list(islice(copies, max(1, engine.batch_size // count))):
        output = engine.run(np.concatenate(batch))
        own += [
            (output.features[i : i + count], output.intermediate[i : i + count])
            for i in range(0, len(batch) * count, count)
        ]
        progress("Augmented copies", len(own), len(places))
    features, intermediate = map(np.stack, zip(*processes.gather(own), strict=True))
    return replace(
        split,
        features=np.concatenate([split.features[:, :1], features], axis=1),
        intermediate=np.concatenate([split.intermediate[:, :1], intermediate], axis=1),
    )


def read_split_samples(settings: Settings) -> tuple[list[Sample], Collection[str]]:
    """Read the samples as a run reads and splits them, without a backbone; also give the splits that were drawn.

    Raises:
        UsageError, DataError: settings or data that cannot be used.
    """
    check_stated(settings)
    return _read_samples(settings)[:2]


def _read_samples(settings: Settings) -> tuple[list[Sample], Collection[str], list[dict[str, str | int]]]:
    """Read, check and split the samples; also give the splits that were drawn, and counts of what was left out."""
    data = settings.data
    dataset = read_dataset(Path(data.path), data.patient_pattern, Reading(data.invert, data.any_modality), data)
    samples = dataset.samples
    check_classes(settings, samples)
    drawn = {"val", "test"} - {sample.split for sample in samples}
    split = split_samples(
        samples,
        test_fraction=data.test_fraction,
        val_fraction=data.val_fraction,
        groups=group_identical(samples) if drawn else None,
        seed=settings.run.seed,
    )
    return split, drawn, count_left_out(dataset.left_out)


def check_stated(settings: Settings) -> None:
    """Read the files that state the intended use and groups, so that their faults show early.

    Raises:
        UsageError: a file is faulty, or other settings do not suit it.
    """
    scope.state(settings.data.intended_use, scope.Scope())
    if read_groups(settings.decisions.groups) and settings.decisions.calibration == "isotonic":
        raise UsageError("isotonic does not follow the logits of `groups`. Use platt or temperature.", "calibration")


def check_classes(settings: Settings, samples: Sequence[Sample]) -> None:
    """Refuse settings that do not suit the number of classes.

    Raises:
        UsageError, DataError: they do not, or it is unclear what the classes are.
    """
    classes, _ = find_classes(samples, settings.data.positive)
    if len(classes) > 2:
        if settings.decisions.calibration in ("platt", "isotonic"):
            raise UsageError("platt and isotonic need exactly two classes. Use temperature.", "calibration")
        if settings.decisions.prevalence is not None:
            raise UsageError("needs exactly two classes. Leave it out.", "prevalence")
        fit_by_class(settings.decisions.threshold, [1 / len(classes)] * len(classes))  # refuses rules of two classes


def _find_groups(samples: Sequence[Sample], settings: Settings) -> dict[Path, str] | None:
    """The group of each image by the columns that `balance_by` names; cells without a value are a group, too.

    Raises:
        UsageError: the data have no such column, or images are not drawn by class.
    """
    if settings.optimisation.balance_by is None:
        return None
    if settings.optimisation.balance != "sampling":
        raise UsageError("needs `balance='sampling'`.", "balance_by")
    names = [name.strip() for name in settings.optimisation.balance_by.split(",")]
    known = dict.fromkeys(name for sample in samples for name in sample.metadata)
    if "" in names:
        raise UsageError("names no column. Separate the names of columns by commas.", "balance_by")
    if missing := [name for name in names if name not in known]:
        have = f"Its other columns are {', '.join(known)}" if known else "It has no columns besides these"
        raise UsageError(
            f"{settings.data.path}: there is no column {missing[0]!r} besides path, label, patient and split. {have}.",
            "balance_by",
        )
    return {sample.path: "\0".join(sample.metadata.get(name, "") for name in names) for sample in samples}


def _stack_splits(setup: Setup, samples: Sequence[Sample], extracts: Sequence[Extract]) -> dict[str, Split]:
    """Gather the features of each split's readable images."""
    splits = {}
    for split in SPLITS:
        places = [i for i, sample in enumerate(samples) if sample.split == split and not extracts[i].error]
        if places:
            targets = [setup.classes.index(str(samples[i].label)) for i in places]
            own = [samples[i] for i in places]
            splits[split] = Split(own, np.array(targets), *stack_features([extracts[i] for i in places]))
    return splits


def stack_features(extracts: Sequence[Extract]) -> tuple[Floats, Floats]:
    """Features (N, V, D) and intermediate features (N, 1, E) of readable images."""
    features = [each.features for each in extracts if each.features is not None]
    intermediate = [each.intermediate[None] for each in extracts if each.intermediate is not None]
    return np.stack(features), np.stack(intermediate)


def _augment(sample: Sample, spec: InputSpec, augmentations: Sequence[Augmentation], seed: Sequence[int]) -> Floats:
    """Augmented copies of one image, (V, 3, S, S)."""
    rng = np.random.default_rng(seed)
    flips = [rng.random() < each.flip for each in augmentations]
    changes = [partial(augment, augmentation=a, rng=rng, flip=f) for a, f in zip(augmentations, flips, strict=True)]
    return read_inputs(sample, spec, changes)
