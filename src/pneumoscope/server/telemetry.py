"""Counters of the running service, for Prometheus."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.registry import Collector

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)


class Telemetry:
    """Counters of one service.

    Attributes:
        images: processed, by decision or `error`.
        shadows: images for the model that does not answer, by what became of them.
        reviews: saved, by whether they agree.
    """

    media_type = "text/plain; version=0.0.4; charset=utf-8"

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        counter = partial(Counter, registry=self._registry)
        histogram = partial(Histogram, registry=self._registry)
        self._requests = counter("pneumoscope_requests", "Requests answered.", ("method", "route", "status"))
        meaning = "Time from the headers of a request to the end of its answer."
        self._seconds = histogram("pneumoscope_request_seconds", meaning, ("route",), buckets=_SECONDS)
        self.images = counter("pneumoscope_images", "Images processed, by decision.", ("decision",))
        self.reviews = counter("pneumoscope_reviews", "Reviews saved.", ("answer",))
        text = "Images for the model that does not answer: kept, dropped because too many waited, or failed."
        self.shadows = counter("pneumoscope_shadow_images", text, ("result",))
        self._batches = histogram("pneumoscope_batch_images", "Images per batch.", buckets=(1, 2, 4, 8, 16, 32, 64))
        self._batch_seconds = histogram(
            "pneumoscope_batch_seconds", "Time to predict a batch, without storing it.", buckets=_SECONDS
        )

    def watch(
        self, images: Callable[[], int], buffered_bytes: Callable[[], int], capacity: int, more: Collector
    ) -> None:
        """Report the images in progress and how many may be, the bytes of uploads and answers in memory, and more."""
        self._registry.register(more)
        text = "How many images may be in progress; others are answered 429."
        Gauge("pneumoscope_images_limit", text, registry=self._registry).set(capacity)
        for name, meaning, value in (
            ("pneumoscope_images_in_progress", "Images waiting or being processed.", images),
            ("pneumoscope_buffered_bytes", "Memory used by uploads and by answers with pictures.", buffered_bytes),
        ):
            Gauge(name, meaning, registry=self._registry).set_function(value)

    def count_request(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count an answered request."""
        method = method if method in ("GET", "HEAD", "POST", "OPTIONS") else "other"
        self._requests.labels(method, route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def count_batch(self, images: int, seconds: float) -> None:
        """Count a batch."""
        self._batches.observe(images)
        self._batch_seconds.observe(seconds)

    def render(self) -> bytes:
        """All counters, as Prometheus reads them."""
        return generate_latest(self._registry)
