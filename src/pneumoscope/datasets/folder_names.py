"""What the names of folders and files say: splits, masks, output of programs, files of the system."""

from __future__ import annotations

import os
import re
import unicodedata
from functools import lru_cache
from pathlib import Path

_SPLITS = {
    "train": "train", "training": "train", "test": "test", "testing": "test",
    "val": "val", "valid": "val", "validation": "val", "validate": "val", "dev": "val", "development": "val",
    # Other languages, without accents: German, French, Spanish, Portuguese, Italian.
    "validierung": "val", "entrainement": "train", "apprentissage": "train", "entrenamiento": "train",
    "treinamento": "train", "treino": "train", "addestramento": "train", "allenamento": "train", "prueba": "test",
    "teste": "test", "validacion": "val", "validacao": "val", "validazione": "val",
}  # fmt: skip
_UNCLEAR = {"cv", "eval", "evaluate", "evaluation", "fold", "folds", "holdout", "kfold", "unseen"}
_FILLERS = {
    "archive", "batch", "chest", "cxr", "data", "dataset", "datasets", "dcm", "dicom", "file", "files", "folder",
    "image", "images", "img", "imgs", "jpeg", "jpg", "part", "png", "radiograph", "radiographs", "sample", "samples",
    "set", "sets", "split", "splits", "xray", "xrays",
}  # fmt: skip
_GLUED = re.compile(r"(train|training|test|val|validation|dev)(set|data|dataset|images?|imgs?|split|folder)s?")
_MASKS = {"annotations", "contours", "mask", "masks", "segmentation", "segmentations"}
_DERIVED = {"explanations", "gradcam", "heatmap", "heatmaps", "maps", "overlays", "plots", "saliency"}
_PATIENT = re.compile(r"(?:(?:patient|pat|subject|subj|sub|case|study|pid)[-_ ]?\d+|p\d{2,}|\d{3,})", re.IGNORECASE)
_SYSTEM = {"__macosx", "@eadir", "$recycle.bin", "system volume information", "lost+found", "__pycache__"}
_SYSTEM_FILES = {"thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"}
# Files that together only an output folder of pneumoscope has: of a run, a model, an evaluation, and so on.
_OUTPUTS = (
    ("config.yaml", "samples.csv"), ("model.json",), ("metrics.json", "predictions.csv"), ("explanations.csv",),
    ("audit.json", "audit.html"), ("comparison.json",),
)  # fmt: skip


@lru_cache(1024)  # the same few names for every image
def find_split(name: str) -> str | None:
    """The split that a name clearly means, such as `Training`, `dev`, `test set` or `train_images`; else None."""
    words = _list_words(name)
    splits = {_SPLITS[word] for word in words if word in _SPLITS}
    clear = all(word in _SPLITS or word in _FILLERS for word in words)
    return splits.pop() if clear and len(splits) == 1 else None


def seems_split(name: str) -> bool:
    """Whether a name seems to mean a split, clearly or not, such as `fold1`, `holdout` or `external_test`."""
    words = _list_words(name)
    numbered = bool({"split", "part"} & set(words)) and any(word.isdigit() for word in words)
    return numbered or any(word in _SPLITS or word in _UNCLEAR for word in words)


def names_nothing(name: str) -> bool:
    """Whether a name says nothing of what is in the folder, such as `images`, `dataset` or `images_001`."""
    words = [word for word in _list_words(name) if not word.isdigit()]
    return bool(words) and all(word in _FILLERS for word in words)


def names_patient(name: str) -> bool:
    """Whether a name is like those of patients' folders, such as `patient00001` or `p10000032`."""
    return _PATIENT.fullmatch(name) is not None


def names_masks(name: str) -> bool:
    """Whether a folder with this name holds masks or other annotations of images."""
    return any(word in _MASKS for word in _list_words(name))


def names_pictures(name: str) -> bool:
    """Whether a folder with this name holds pictures made from images, such as heatmaps."""
    return name.casefold() in _DERIVED


def is_output(folder: Path) -> bool:
    """Whether a folder is an output of pneumoscope: a run, a model, an evaluation, an audit, explanations."""

    def has(name: str) -> bool:
        return os.path.isfile(folder / name)  # noqa: PTH113 - pathlib raises where the folder is locked

    return any(all(map(has, names)) for names in _OUTPUTS)


def is_system(name: str) -> bool:
    """Whether a file or folder is hidden, or belongs to the operating system.

    A hidden `.NAME.icloud` stands for an image that was not downloaded.
    """
    return (name.startswith(".") and not name.endswith(".icloud")) or name.casefold() in _SYSTEM | _SYSTEM_FILES


def _list_words(name: str) -> list[str]:
    """The words and numbers of a name in lower case without accents: `TrainImages_2` is train, images, 2."""
    name = "".join(each for each in unicodedata.normalize("NFD", name) if not unicodedata.combining(each))
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
    spaced = re.sub(r"\bx[-_ ]?(?=rays?\b)", "x", spaced.casefold().replace("_", " "))
    words: list[str] = []
    for word in re.findall(r"[^\W\d_]+|\d+", re.sub(r"\bhold[- ]?out\b", "holdout", spaced)):
        glued = _GLUED.fullmatch(word)
        words += glued.groups() if glued else (word,)
    return words
