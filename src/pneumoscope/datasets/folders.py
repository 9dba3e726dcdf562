"""Finds the images below folders, and the splits and classes that the folders name. Nothing is guessed silently."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeAlias

from pneumoscope.datasets import folder_names, left_out, tables
from pneumoscope.datasets.image_files import (
    find_direct_images,
    identify,
    judge_folder,
    list_files,
    list_folder,
    walk,
)
from pneumoscope.datasets.left_out import MISSING, Dataset, LeftOut
from pneumoscope.datasets.samples import SPLITS, Sample
from pneumoscope.errors import DataError
from pneumoscope.images.read import Reading

_TABLE = "list the images in a table with the columns path, label and split"
_SHOWN = 5  # names in a message
_Place: TypeAlias = tuple[str | None, Path, str]  # split, class folder, class


def read_folder(root: Path, reading: Reading = Reading()) -> Dataset:
    """Read `root/{train,val,test}/CLASS/`, `root/CLASS/{train,val,test}/` or `root/CLASS/`, with deeper folders below.

    Folders of masks, of pictures made from images, of the operating system and of our own output are left out.

    Raises:
        DataError: no class folders, or folders that seem to name splits or nothing at all, and what to do about it.
    """
    if folder_names.is_output(root):
        raise DataError(
            f"{root} is an output of pneumoscope, not a dataset. Give the folder of the images, or the table "
            f"{root / 'samples.csv'} if this is a run."
        )
    inner = _descend(root)
    if inner != root:
        logging.getLogger("pneumoscope").info("Reading %s, the only folder with images in %s.", inner, root)
    places = _find_splits(inner) or _find_classes(inner)
    used = {folder for _, folder, _ in places}
    _require_different(used)
    samples: list[Sample] = []
    left = _leave_out_beside(inner, used)
    others = {inner, *used, *(parent for folder in used for parent in folder.parents)}
    for split, folder, label in places:
        found = walk(folder, others, partial(_require_no_split, split=split, root=inner))
        samples += [Sample(path, label, None, split, reading) for path in found.images]
        left += [replace(file, label=label) for file in found.left_out]
    if not samples:
        names = ", ".join(sorted({label for _, _, label in places}))
        raise DataError(f"{root}: no images in its class folders ({names}).")
    _compare_classes(samples, [(split, label) for split, _, label in places], inner)
    return Dataset(samples, left)


def adopt_splits(samples: Sequence[Sample], table: Path, files: bool = True) -> Dataset:
    """Take the splits that the folders of the files name, for a table that has no column of splits.

    Missing files whose folders name no split are left out if all others' do; without `files`, none need exist.

    Raises:
        DataError: only some files lie in folders that name a split.
    """
    own = [os.path.dirname(sample.path) for sample in samples]  # noqa: PTH120 - `parent` takes long for millions
    parents = {each: Path(os.path.normpath(Path.cwd() / each)) for each in dict.fromkeys(own)}
    common = os.path.commonpath(list(parents.values()))
    below = {each: parent.relative_to(common).parts for each, parent in parents.items()}
    found = {name: [split for part in each if (split := folder_names.find_split(part))] for name, each in below.items()}
    splits = [found[each] for each in own]
    named = {split for each in found.values() for split in each}
    logger = logging.getLogger("pneumoscope")
    parts = {part for each in below.values() for part in each if not folder_names.find_split(part)}
    if unclear := sorted(part for part in parts if folder_names.seems_split(part)):
        logger.warning(
            "%s: the folders %s seem to name splits, but the table has no column of splits. If they are splits, add "
            "a column split.",
            table, _join(unclear),
        )  # fmt: skip
    if not named or (len(named) == 1 and all(splits)):
        return Dataset(samples)
    lost = [
        sample
        for sample, each in zip(samples, splits, strict=True)
        if files and len(each) != 1 and not os.path.isfile(sample.path)  # noqa: PTH113 - no error if locked
    ]
    if lost and len(lost) < len(samples):
        gone = set(map(id, lost))
        rest = adopt_splits([sample for sample in samples if id(sample) not in gone], table)
        if all(sample.split is None for sample in rest.samples):
            return Dataset(samples)
        return replace(rest, left_out=[LeftOut(sample.path, MISSING, sample.label) for sample in lost])
    if odd := next((sample.path for sample, each in zip(samples, splits, strict=True) if len(each) != 1), None):
        raise DataError(
            f"{table} has no column of splits. Some of its files lie in folders that name a split "
            f"({_join(sorted(named))}), but {odd} lies in no such folder, or in several. Add a column split, or pass "
            "`split_column='none'`."
        )
    counts = Counter(each[0] for each in splits)
    logger.info(
        "%s: the splits come from the folders of the files: %s. To ignore them, use `split_column='none'`.",
        table, ", ".join(f"{split} {counts[split]:,}" for split in SPLITS if split in counts),
    )  # fmt: skip
    return Dataset([replace(sample, split=each[0]) for sample, each in zip(samples, splits, strict=True)])


def _find_splits(root: Path) -> list[_Place]:
    """The class folders below split folders as (split, folder, class), or none if no folder with classes is a split.

    Raises:
        DataError: folders whose names are unclear beside them.
    """
    folders = _subfolders(root)
    splits = {folder: split for folder in folders if (split := folder_names.find_split(folder.name))}
    classes = {folder: inner for folder in splits if (inner := _subfolders(_descend(folder)))}
    if not classes:
        return []
    for split in SPLITS:
        if len(same := [folder.name for folder, each in splits.items() if each == split]) > 1:
            raise DataError(
                f"{root}: the folders {_join(same)} all name the split {split}. Merge or rename them, or {_TABLE}."
            )
    names = {folder.name.casefold() for inner in classes.values() for folder in inner}
    for folder in folders:
        if folder not in splits and (folder_names.seems_split(folder.name) or folder.name.casefold() in names):
            raise DataError(
                f"{root} has the folder {folder.name} beside {_join([each.name for each in splits])}; it is unclear "
                f"which split it belongs to. Move it into one of them or elsewhere, or {_TABLE}."
            )
    places: list[_Place] = [(splits[folder], each, each.name) for folder, inner in classes.items() for each in inner]
    _require_class_names(root, places)
    return places


def _find_classes(root: Path) -> list[_Place]:
    """The class folders of a root without splits, or with splits below the classes, as (split, folder, class).

    Raises:
        DataError: there are none, or folders that seem to be splits or patients.
    """
    folders = _subfolders(root)
    flat = [folder for folder in folders if folder_names.find_split(folder.name)]  # without class folders
    unclear = [each.name for each in folders if each not in flat and folder_names.seems_split(each.name)]
    if unclear:
        raise DataError(
            f"{root}: {_join(unclear)} {'seems' if len(unclear) == 1 else 'seem'} to name splits, but it is unclear "
            f"which. Rename them to train, val or test, give one of them alone, or {_TABLE}."
        )
    folders = [folder for folder in folders if folder not in flat]
    if not folders:
        found = f" The folders {_join([each.name for each in flat])} hold images, but no class folders." if flat else ""
        listed = sorted(path.name for path in list_folder(root) if path.suffix.lower() in tables.SUFFIXES)
        hint = f" If {_join(listed)} has their labels, give that table." if listed else ""
        raise DataError(
            f"{root}: no class folders.{found} Expected {root}/CLASS/… or {root}/{{train,val,test}}/CLASS/…, such as "
            f"{root}/train/NORMAL and {root}/train/PNEUMONIA.{hint}"
        )
    below = {folder: _subfolders(folder) for folder in folders}
    split = [f for f, inner in below.items() if inner and all(folder_names.find_split(each.name) for each in inner)]
    if split and len(split) == len(folders) and not flat and not any(find_direct_images(folder) for folder in folders):
        places: list[_Place] = [
            (folder_names.find_split(each.name), each, folder.name) for folder in folders for each in below[folder]
        ]
        return places
    places = [(None, folder, folder.name) for folder in folders]
    inner = [{each.name.casefold() for each in below[folder]} for folder in folders]
    if len(folders) > 1 and {"normal", "pneumonia"} & inner[0] and all(each == inner[0] for each in inner):
        raise DataError(
            f"{root}: the folders {_join([each.name for each in folders])} all hold the folders "
            f"{_join([each.name for each in below[folders[0]]])}, which seem to be the classes. Give one of them, or "
            f"{_TABLE}."
        )
    _require_class_names(root, places)
    if len(folders) == 1 and len(below[folders[0]]) > 1 and not find_direct_images(folders[0]):
        logging.getLogger("pneumoscope").warning(
            "%s has only one class folder, %s, with images in %s. If those are the classes, give %s instead.",
            root, folders[0].name, _join([each.name for each in below[folders[0]]]), folders[0],
        )  # fmt: skip
    return places


def _require_class_names(root: Path, places: Iterable[_Place]) -> None:
    """Refuse class folders that are patients or that name nothing, as in NIH's images_001/images."""
    names = sorted({label for _, _, label in places})
    patients = [name for name in names if folder_names.names_patient(name)]
    nothing = [name for name in names if folder_names.names_nothing(name)]
    for what, wrong in (("look like patients", patients), ("name no class", nothing)):
        if wrong and (len(wrong) == len(names) or wrong is nothing):
            raise DataError(
                f"{root}: the folders {_join(wrong)} {what}. Give the table that comes with the images, or {_TABLE}."
            )


def _compare_classes(samples: Sequence[Sample], places: Iterable[tuple[str | None, str]], root: Path) -> None:
    """Warn of class folders without images, and of splits with different classes."""
    logger = logging.getLogger("pneumoscope")
    used = {str(sample.label) for sample in samples}
    if empty := sorted({label for _, label in places} - used):
        logger.warning("%s: there are no images of %s, so this is not a class.", root, _join(empty))
    by_split: Mapping[str, set[str]] = {
        split: {str(sample.label) for sample in samples if sample.split == split} for split in SPLITS
    }
    if len({frozenset(labels) for labels in by_split.values() if labels}) > 1:
        listed = "; ".join(f"{split} has {', '.join(sorted(labels))}" for split, labels in by_split.items() if labels)
        logger.warning("%s: the splits have different classes: %s.", root, listed)


def _descend(folder: Path) -> Path:
    """Follow folders that only wrap another one, as in `chest_xray/chest_xray/train` or `split/train`."""
    inner = _subfolders(folder)
    if len(inner) != 1 or folder_names.find_split(inner[0].name) or find_direct_images(folder):
        return folder
    below = _subfolders(inner[0])
    same = inner[0].name.casefold() == folder.name.casefold() or folder_names.names_nothing(inner[0].name)
    wraps = same or any(folder_names.find_split(each.name) and _subfolders(each) for each in below)
    return _descend(inner[0]) if wraps and below and not find_direct_images(inner[0]) else folder


def _leave_out_beside(root: Path, used: set[Path]) -> list[LeftOut]:
    """What lies beside the class folders: images in the root or in a split, and folders that are not used."""
    parents = {root, *(parent for folder in used for parent in folder.parents if parent.is_relative_to(root))}
    left = []
    for parent in sorted(parents):
        left += [LeftOut(path, left_out.NO_CLASS) for path in find_direct_images(parent)]
        for path in _list_folders(parent):
            if path not in used | parents:
                flat = folder_names.find_split(path.name) is not None
                reason = judge_folder(path) or (left_out.NO_CLASS if flat else left_out.BESIDE)
                left += [LeftOut(file, reason) for file in list_files(path, reason)]
    return left


def _require_no_split(path: Path, split: str | None, root: Path) -> None:
    """Refuse a folder below a class that seems to name a split, unless it is the split that is known."""
    named = folder_names.find_split(path.name)
    if named not in (None, split) or (split is None and folder_names.seems_split(path.name)):
        raise DataError(
            f"{path}: this folder lies below a class, but seems to name a split. Arrange all images as "
            f"{root}/train/CLASS, {root}/val/CLASS and {root}/test/CLASS, rename the folder, or {_TABLE}."
        )


def _require_different(folders: Iterable[Path]) -> None:
    """Refuse two class folders that links make the same."""
    first: dict[object, Path] = {}
    for folder in sorted(folders):
        if (known := first.setdefault(identify(folder), folder)) != folder:
            raise DataError(f"{folder} and {known} are the same folder, because of a link. Remove one of them.")


def _subfolders(folder: Path) -> list[Path]:
    """The folders in a folder that may hold radiographs."""
    return [path for path in list_folder(folder) if path.is_dir() and judge_folder(path) is None]


def _list_folders(folder: Path) -> list[Path]:
    """All folders in a folder, also hidden ones and those of the system."""
    return sorted(path for path in folder.iterdir() if path.is_dir())


def _join(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_SHOWN])
    return shown if len(names) <= _SHOWN else f"{shown}, … ({len(names):,} in all)"
