"""Public datasets of chest X-rays: their licences, citations and patients, and how images of them are recognised."""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from pneumoscope.datasets.samples import Sample


@dataclass(frozen=True, slots=True)
class Source:
    """A published dataset: what to say of it, and where to fetch it, if `fetch` can."""

    name: str
    title: str
    licence: str
    licence_url: str
    citation: str
    homepage: str  # to download it from with a browser
    population: str = ""  # whom the images show
    ages: tuple[float, float] | None = None  # of the youngest and the oldest patient in years, where known
    views: tuple[str, ...] = ()  # all view positions, where known
    file: str = ""  # name of the archive there
    url: str = ""  # of the archive; empty where `fetch` cannot get it
    size: int | None = None  # of the archive in bytes, if known
    sha256: str | None = None
    md5: str | None = None  # where no SHA-256 is published
    labels: tuple[str, ...] = ()  # class folders
    names: str = ""  # regular expression for the beginning of every image's name
    # for each published version its number of images by `split/LABEL`
    editions: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    origin: str = ""  # name of the dataset whose images these are, changed
    remark: str = "The image files are unchanged; only their folders were rearranged."  # on what `fetch` writes


KERMANY = Source(
    name="kermany",
    title="Labeled Optical Coherence Tomography (OCT) and Chest X-Ray Images for Classification, version 2: "
    "the chest X-rays",
    licence="CC BY 4.0",
    licence_url="https://creativecommons.org/licenses/by/4.0/",
    citation="Kermany D, Zhang K, Goldbaum M. Labeled Optical Coherence Tomography (OCT) and Chest X-Ray Images for "
    "Classification. Mendeley Data, V2, 2018. doi:10.17632/rscbjbr9sj.2. With: Kermany DS et al. Identifying Medical "
    "Diagnoses and Treatable Diseases by Image-Based Deep Learning. Cell 172(5):1122-1131, 2018. "
    "doi:10.1016/j.cell.2018.02.010",
    homepage="https://data.mendeley.com/datasets/rscbjbr9sj/2",
    file="ChestXRay2017.zip",
    url="https://data.mendeley.com/public-files/datasets/rscbjbr9sj/files/f12eaf6d-6023-432f-acc9-80c9d7393433/"
    "file_downloaded",
    # As three independent public projects found them in what they had downloaded from this address.
    size=1_235_512_464,
    sha256="13efc055629733dbab07877f8b3c9f81097840dbcdaa326a8542322c2281ce36",
    labels=("NORMAL", "PNEUMONIA"),
    names=r"(NORMAL2-)?IM-\d|person\d",  # version 3 has other names and other patients
    editions={
        "Mendeley Data": {"train/NORMAL": 1349, "train/PNEUMONIA": 3883, "test/NORMAL": 234, "test/PNEUMONIA": 390},
        "Kaggle": {"train/NORMAL": 1341, "train/PNEUMONIA": 3875, "val/NORMAL": 8, "val/PNEUMONIA": 8,
                   "test/NORMAL": 234, "test/PNEUMONIA": 390},
    },
    population="children of one to five years in one hospital (Guangzhou, China), anterior-posterior images",
    ages=(1, 5),
    views=("AP",),
)  # fmt: skip

_NIH_CITATION = (
    "Wang X, Peng Y, Lu L, Lu Z, Bagheri M, Summers RM. ChestX-ray8: Hospital-scale Chest X-ray Database and "
    "Benchmarks on Weakly-Supervised Classification and Localization of Common Thorax Diseases. CVPR 2017, 2097-2106. "
    "doi:10.1109/CVPR.2017.369"
)

NIH = Source(
    name="nih",
    title="NIH ChestX-ray14",
    licence="free to use, with acknowledgement of the NIH Clinical Center and the citation below",
    licence_url="https://nihcc.app.box.com/v/ChestXray-NIHCC",
    citation=_NIH_CITATION,
    homepage="https://nihcc.app.box.com/v/ChestXray-NIHCC",
    population="patients of one hospital (NIH Clinical Center, Bethesda, USA), most of them adults, "
    "posterior-anterior and bedside anterior-posterior images",
    views=("AP", "PA"),
)

RSNA = Source(
    name="rsna",
    title="RSNA Pneumonia Detection Challenge 2018: images of NIH ChestX-ray14, read by radiologists",
    licence="annotations: commercial and non-commercial use with attribution; images: as those of the NIH",
    licence_url="https://www.rsna.org/rsnai/ai-image-challenge/rsna-pneumonia-detection-challenge-2018",
    citation="Shih G, Wu CC, Halabi SS, et al. Augmenting the National Institutes of Health Chest Radiograph Dataset "
    "with Expert Annotations of Possible Pneumonia. Radiology: Artificial Intelligence 1(1):e180041, 2019. "
    f"doi:10.1148/ryai.2019180041. Images: {_NIH_CITATION}",
    homepage="https://www.rsna.org/rsnai/ai-image-challenge/rsna-pneumonia-detection-challenge-2018",
    population="patients of NIH ChestX-ray14 whose images radiologists read again (a positive label means a lung "
    "opacity suspicious for pneumonia)",
    views=("AP", "PA"),
)

PNEUMONIAMNIST = Source(
    name="pneumoniamnist",
    title="PneumoniaMNIST of MedMNIST v2, 28 x 28 pixels: the Kermany chest X-rays, made small",
    licence="CC BY 4.0",
    licence_url="https://creativecommons.org/licenses/by/4.0/",
    citation="Yang J, Shi R, Wei D, et al. MedMNIST v2: A large-scale lightweight benchmark for 2D and 3D biomedical "
    f"image classification. Scientific Data 10:41, 2023. doi:10.1038/s41597-022-01721-8. Images: {KERMANY.citation}",
    homepage="https://zenodo.org/records/10519652",
    file="pneumoniamnist.npz",
    url="https://zenodo.org/records/10519652/files/pneumoniamnist.npz?download=1",
    md5="28209eda62fecd6e6a2d98b1501bb15f",
    labels=KERMANY.labels,
    names=r"pneumoniamnist_(train|val|test)_\d",
    editions={
        "MedMNIST": {"train/NORMAL": 1214, "train/PNEUMONIA": 3494, "val/NORMAL": 135, "val/PNEUMONIA": 389,
                     "test/NORMAL": 234, "test/PNEUMONIA": 390},
    },
    population=KERMANY.population,
    ages=KERMANY.ages,
    views=KERMANY.views,
    origin=KERMANY.name,
    remark="MedMNIST cropped and reduced the images; here they are PNG files. They are those of the Kermany data: a "
    "model that learned from those, as the pretrained models did, may have seen the same children. Patients are "
    "unknown; val was drawn by image from the same set as train, so both may show the same patients.",
)  # fmt: skip

PNEUMONIAMNIST_224 = replace(
    PNEUMONIAMNIST,
    name="pneumoniamnist_224",
    title="PneumoniaMNIST of MedMNIST+, 224 x 224 pixels: the Kermany chest X-rays, made small",
    file="pneumoniamnist_224.npz",
    url="https://zenodo.org/records/10519652/files/pneumoniamnist_224.npz?download=1",
    md5="d6a3c71de1b945ea11211b03746c1fe1",
)

COLUMN = "source"  # of a table, whose values may name public datasets


def list_sources() -> tuple[Source, ...]:
    """All datasets that are known by name."""
    return KERMANY, NIH, RSNA, PNEUMONIAMNIST, PNEUMONIAMNIST_224


def find_sources(names: Collection[str | None]) -> tuple[Source, ...]:
    """The public datasets of these names; names that are unknown here are left out."""
    return tuple(source for source in list_sources() if source.name in names)


def recognise_sources(samples: Sequence[Sample]) -> tuple[Source, ...]:
    """Find the datasets that samples are from; none if any sample is from elsewhere.

    The column `source` of a table may name them. Without that column, the Kermany data are recognised if all names and
    labels match: viewers export DICOM as `IM-0001-0001` for everybody, so names of the other class are required too.
    """
    if any(COLUMN in sample.metadata for sample in samples):
        names = [find_source_name(sample) for sample in samples]
        return () if None in names else find_sources(set(names))
    fits = all(
        sample.label in KERMANY.labels and sample.tags is None and re.match(KERMANY.names, sample.path.name)
        for sample in samples
    )
    if samples and all(re.match(PNEUMONIAMNIST.names, sample.path.name) for sample in samples):
        return (PNEUMONIAMNIST,)
    virus = any(re.match(r"person\d+_(bacteria|virus)_\d", sample.path.name) for sample in samples)
    return (KERMANY,) if fits and virus else ()


def find_source_name(sample: Sample) -> str | None:
    """The public dataset that the column `source` names, if it is known here; capitals do not matter."""
    named = sample.metadata.get(COLUMN, "").strip().casefold()
    return named if named in {source.name for source in list_sources()} else None


def describe_overlap(sources: Collection[Source], learned: Collection[str]) -> str | None:
    """Say that images may show patients whom a model learned from, under other file names.

    Args:
        sources: of the images.
        learned: names of the datasets that the model learned from.
    """
    for source, other in itertools.product(sources, find_sources(learned)):
        if other.name != source.name and (other.origin or other.name) == (source.origin or source.name):
            return (
                f"These images ({source.name}) and those that the model learned from ({other.name}) are from the same "
                "children in other files, and who is who is unknown: the metrics are probably too optimistic."
            )
    return None
