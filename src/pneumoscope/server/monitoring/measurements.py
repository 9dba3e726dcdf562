"""The values of the monitoring page for Prometheus."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from pneumoscope.server.messages.monitoring import Comparison, Share
from pneumoscope.server.monitoring.watch import Watch

MIN_SHARE = 50  # images, files or reviews; a share of fewer says little, so none is given
_DRIFT = (
    ("psi", "Population stability index against the validation images; above 0.25 counts as a change."),
    ("psi_by_chance", "What the index stays below 95 times in 100 if nothing has changed."),
    ("ks_distance", "Largest distance from the distribution of the validation images (Kolmogorov-Smirnov)."),
)


@dataclass(frozen=True)
class ModelInfo:
    """A model that answers, or whose answers are kept beside those that are given."""

    name: str
    fingerprint: str
    version: str
    role: str


class Measurements(Collector):
    """Gives the latest summary; values of too few images are absent rather than 0.

    Args:
        watch: has the summary, and whether the service is ready.
        list_models: the models in use.
    """

    def __init__(self, watch: Watch, list_models: Callable[[], list[ModelInfo]]) -> None:
        self._watch, self._list_models = watch, list_models

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Give all values."""
        names = ("name", "fingerprint", "version", "role")
        info = GaugeMetricFamily("pneumoscope_model_info", "1 for each model in use.", labels=names)
        for model in self._list_models():
            info.add_metric([getattr(model, name) for name in names], 1)
        yield info
        if (ready := self._watch.ready) is not None:
            yield GaugeMetricFamily("pneumoscope_ready", "1 if images can be predicted and stored, else 0.", int(ready))
        if (latest := self._watch.latest) is None:
            return
        message = latest.message
        text = "When the monitoring values were last updated, in seconds since 1970."
        yield GaugeMetricFamily("pneumoscope_monitoring_timestamp_seconds", text, latest.at)
        text = "How many days (UTC, today included) the monitoring values cover."
        yield GaugeMetricFamily("pneumoscope_monitoring_days", text, message.days)
        shares = {
            "positive": message.shares.positive,
            "uncertain": message.shares.uncertain,
            "out_of_distribution": message.shares.out_of_distribution,
            "unreadable": message.unreadable,
        }
        yield from _list_shares("pneumoscope_share", "Share of the images, or of the files if unreadable", shares)
        text = "Share of the reviewed images whose latest review agrees, of all and by decision"
        yield from _list_shares("pneumoscope_agreement", text, message.agreement)
        drift = {"probabilities": message.drift, "ood_scores": message.ood_drift}
        yield from _list_drift({name: each for name, each in drift.items() if each is not None})


def _list_shares(name: str, text: str, shares: dict[str, Share]) -> Iterator[GaugeMetricFamily]:
    values = GaugeMetricFamily(name, f"{text}; none if fewer than {MIN_SHARE}.", labels=["of"])
    numbers = GaugeMetricFamily(f"{name}_images", "How many it is a share of.", labels=["of"])
    for kind, share in shares.items():
        numbers.add_metric([kind], share.n)
        if share.value is not None and share.n >= MIN_SHARE:
            values.add_metric([kind], share.value)
    yield values
    yield numbers


def _list_drift(found: dict[str, Comparison]) -> Iterator[GaugeMetricFamily]:
    for field, text in _DRIFT:
        family = GaugeMetricFamily(f"pneumoscope_drift_{field}", text, labels=["of"])
        for kind, drift in found.items():
            if (value := getattr(drift, field)) is not None:
                family.add_metric([kind], value)
        yield family
    family = GaugeMetricFamily("pneumoscope_drift_images", "How many images were compared.", labels=["of"])
    for kind, drift in found.items():
        family.add_metric([kind], drift.images)
    yield family
