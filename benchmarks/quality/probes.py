"""What the features of a network tell of adults: logistic regressions on its last map and on its intermediate maps.

Five folds by patient over the adults of sources rsna and nih: each image is scored by a regression on other patients.
With --held-out the regressions are fitted to patients of train_joint.py's training and measured on those of its test,
as a model that it trained needs. They learn opacity against normal; the strength of their penalty comes from folds by
patient within the patients that they are fitted to. The model's own scores are in a row for comparison.

    python benchmarks/quality/probes.py --model pneumonia-lite0
    python benchmarks/quality/probes.py --model all-ages-lite0 --held-out
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator, Sequence

import numpy as np
from adults import rank
from chest_data import assign, read_adults, split_adults
from numpy.typing import NDArray
from protocol import BACKBONE, make_parser, print_table
from sklearn.linear_model import LogisticRegressionCV
from sklearn.model_selection import GroupKFold
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from pneumoscope.datasets.samples import Sample, cluster_by_patient
from pneumoscope.inference.cache import FeatureCache, default_cache_path
from pneumoscope.inference.engines import build_engine
from pneumoscope.inference.features import extract_features
from pneumoscope.inference.predictor import compute_logits, load
from pneumoscope.models.backbones import find_backbone, load_backbone

PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1)  # C of scikit-learn, on standardised features
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--model", default=None, help="model folder, run or name")
    parser.add_argument("--backbone", default=BACKBONE, help="without --model: a backbone by name")
    parser.add_argument("--held-out", action="store_true", help="fit to training patients, measure on test patients")
    parser.add_argument("--other", action="store_true", help="images that are neither count as normal in the fit")
    options = parser.parse_args()
    adults = [each for each in read_adults(options.data) if each.metadata["source"] in ("rsna", "nih")]
    rounds = list(divide(options, adults))
    tested = np.any([test for _, test in rounds], axis=0)
    clusters = cluster_by_patient([each.patient for each in adults], len(adults))
    positive = np.array([each.label == "OPACITY" for each in adults])
    other = np.array([each.label == "OTHER" for each in adults])
    views = np.array([each.metadata["view"] for each in adults])
    rows = []
    for name, values in compute_features(options, adults).items():
        scores = values[:, 0] if values.shape[1] == 1 else np.zeros(len(adults))
        for train, test in rounds if values.shape[1] > 1 else ():
            train = train & (options.other | ~other)
            scores[test] = fit_probe(values[train], positive[train], clusters[train]).decision_function(values[test])
        for view in ("all", "PA", "AP"):
            kept = tested & (views == view if view != "all" else True)
            counts = [int((kept & each).sum()) for each in (positive, ~positive & ~other, other)]
            ranks = [rank(positive[each], scores[each], clusters[each]) for each in (kept & ~other, kept)]
            rows.append([name, view, *map(str, counts), *ranks])
    print_table(("scores", "view", "opacity", "normal", "other", "AUROC, normal", "AUROC, all else"), rows)


def divide(options: Namespace, adults: Sequence[Sample]) -> Iterator[tuple[Bools, Bools]]:
    """Which images a regression is fitted to, and which it scores."""
    for fold in range(1 if options.held_out else 5):
        patients = split_adults(options.data, fold)
        if not options.held_out:
            patients["val"] = set()  # nothing is chosen by them
        splits = np.array([each.split for each in assign(adults, patients)])
        yield splits == "train", splits == "test"


def compute_features(options: Namespace, adults: Sequence[Sample]) -> dict[str, Floats]:
    """The model's own scores (N, 1) if there is one, and both kinds of features (N, D)."""
    with FeatureCache(default_cache_path()) as cache:
        if options.model:
            predictor = load(options.model, cache=cache)
            engine, spec = predictor.engine, predictor.model.input
        else:
            backbone = find_backbone(options.backbone)
            spec = backbone.input
            engine = build_engine(load_backbone(backbone), spec.size)
        extracts = list(extract_features(adults, engine, spec, cache=cache))
    last = np.array([each.features[0] for each in extracts if each.features is not None])
    maps = np.array([each.intermediate for each in extracts if each.intermediate is not None])
    own = {"the model itself": compute_logits(last, predictor.weight, predictor.bias)[:, -1:]} if options.model else {}
    return {**own, "regression on the last map": last, "regression on intermediate maps": maps}


def fit_probe(features: Floats, positive: Bools, clusters: NDArray[np.int64]) -> Pipeline:
    """A logistic regression on standardised features."""
    folds = list(GroupKFold(5, shuffle=True, random_state=0).split(features, positive, clusters))
    probe = LogisticRegressionCV(
        Cs=PENALTIES, cv=folds, scoring="neg_log_loss", max_iter=1000, l1_ratios=(0,), use_legacy_attributes=False
    )
    return make_pipeline(StandardScaler(), probe).fit(features, positive)


if __name__ == "__main__":
    main()
