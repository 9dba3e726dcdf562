"""Predictions in a Spark job, by `DataFrame.mapInPandas`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pneumoscope.cluster.worker import Options

# Columns of the result, as Spark writes a schema.
SCHEMA = (
    "id string, path string, label string, probability double, predicted_label string, prediction_set string, "
    "ood_score double, decision string, warnings string, error string, patient string, age double, sex string, "
    "view string, laterality string, date string, accession_number string, study_uid string, series_uid string, "
    "sop_uid string, sha256 string"
)


def predict_udf(
    model: str | Path | None = None, options: Options | None = None
) -> Callable[[Iterator[Any]], Iterator[Any]]:
    """Make a function for `mapInPandas`: data frames with a column `path` in, data frames of predictions out.

    The rows are those of `pneumoscope cluster predict`. Join them by `id` or `path`, because Spark keeps no order. The
    columns `id`, `label`, `patient`, `age`, `sex`, `view`, `invert` and `any_modality` are used if they are there.

    Args:
        model: as for `pneumoscope.load`; with two classes and no groups the result has the columns of `SCHEMA`.
        options: how images are predicted.

    Returns:
        A function that can be sent to other machines, with the model in it.

    Raises:
        ModelError, DownloadError, UsageError, MissingExtraError: as `pneumoscope.load`.
    """
    from pneumoscope.cluster.worker import ListPredictor, Options, conceal_patients, make_job

    job = make_job(model, options or Options())

    def predict(frames: Iterator[Any]) -> Iterator[Any]:
        import pandas

        from pneumoscope.cluster.listing import make_images

        predictor = ListPredictor(job)
        for frame in frames:
            if len(frame):
                images = conceal_patients(make_images(frame.to_dict("records")), job.key)
                yield pandas.DataFrame(list(predictor.run(images)))

    return predict
