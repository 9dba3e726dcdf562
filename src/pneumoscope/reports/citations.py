"""BibTeX of what a run used: datasets, the backbone's paper, libraries and this package."""

from __future__ import annotations

import re

from pneumoscope.datasets.sources import Source, find_sources
from pneumoscope.reports.study import Study

# The paper of each architecture, by the beginning of its timm name.
_ARCHITECTURES = {
    "efficientnet|tf_efficientnet": (
        "tan2019efficientnet", "inproceedings",
        {"author": "Tan, Mingxing and Le, Quoc V.", "booktitle": "International Conference on Machine Learning",
         "title": "{EfficientNet}: Rethinking Model Scaling for Convolutional Neural Networks", "year": "2019"},
    ),
    "resnet": (
        "he2016resnet", "inproceedings",
        {"author": "He, Kaiming and Zhang, Xiangyu and Ren, Shaoqing and Sun, Jian",
         "title": "Deep Residual Learning for Image Recognition",
         "booktitle": "IEEE Conference on Computer Vision and Pattern Recognition", "year": "2016"},
    ),
    "densenet": (
        "huang2017densenet", "inproceedings",
        {"author": "Huang, Gao and Liu, Zhuang and van der Maaten, Laurens and Weinberger, Kilian Q.",
         "title": "Densely Connected Convolutional Networks",
         "booktitle": "IEEE Conference on Computer Vision and Pattern Recognition", "year": "2017"},
    ),
    "convnext_": (
        "liu2022convnext", "inproceedings",
        {"author": "Liu, Zhuang and Mao, Hanzi and Wu, Chao-Yuan and Feichtenhofer, Christoph and Darrell, Trevor and "
                   "Xie, Saining",
         "title": "A {ConvNet} for the 2020s",
         "booktitle": "IEEE/CVF Conference on Computer Vision and Pattern Recognition", "year": "2022"},
    ),
}  # fmt: skip
_LIBRARIES = (
    (
        "paszke2019pytorch", "inproceedings",
        {"author": "Paszke, Adam and Gross, Sam and Massa, Francisco and others",
         "title": "{PyTorch}: An Imperative Style, High-Performance Deep Learning Library",
         "booktitle": "Advances in Neural Information Processing Systems", "volume": "32", "year": "2019"},
    ),
    (
        "wightman2019timm", "misc",
        {"author": "Wightman, Ross", "title": "{PyTorch} Image Models", "year": "2019",
         "doi": "10.5281/zenodo.4414861", "url": "https://github.com/huggingface/pytorch-image-models"},
    ),
)  # fmt: skip


def write_bibtex(study: Study) -> str:
    """BibTeX of what a run used; a dataset's citation is its note."""
    sources = dict.fromkeys(source.name for source in (*study.sources, *study.earlier))
    entries = [_write_entry(_key(source), "misc", _describe_source(source)) for source in find_sources(sources)]
    papers = [entry for pattern, entry in _ARCHITECTURES.items() if re.match(pattern, study.model.architecture)]
    entries += [_write_entry(*entry) for entry in papers]
    if not papers:
        entries.append(f"% Add the paper of the architecture {study.model.architecture}.\n")
    entries += [_write_entry(*entry) for entry in _LIBRARIES]
    own = {
        "author": "{The pneumoscope developers}",
        "title": "pneumoscope: chest radiographs in, a measured classifier out",  # as in CITATION.cff
        "version": study.model.version,
        "note": "Software, Apache-2.0",
    }
    return "\n".join([*entries, _write_entry("pneumoscope", "misc", own)])


def _key(source: Source) -> str:
    return f"{source.name}-dataset"


def _describe_source(source: Source) -> dict[str, str]:
    return {"title": f"{{{source.title}}}", "howpublished": source.homepage, "note": source.citation}


def _write_entry(key: str, kind: str, values: dict[str, str]) -> str:
    lines = "".join(f"  {name} = {{{_escape(value)}}},\n" for name, value in values.items())
    return f"@{kind}{{{key},\n{lines}}}\n"


def _escape(text: str) -> str:
    """Escape what TeX would take for markup; addresses stay, as styles set them verbatim."""
    return text if text.startswith("http") else re.sub(r"([&%#_])", r"\\\1", text)
