"""What is counted while the service runs, for Prometheus."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)


class Measures:
    """Counters of one service."""

    media_type = "text/plain; version=0.0.4; charset=utf-8"

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self._requests = Counter(
            "pneumoscope_requests", "Requests answered.", ("method", "route", "status"), registry=registry
        )
        self._seconds = Histogram(
            "pneumoscope_request_seconds", "From a request's head to its answer's end.", ("route",),
            buckets=_SECONDS, registry=registry,
        )  # fmt: skip
        self._images = Counter("pneumoscope_images", "Images read, by decision.", ("decision",), registry=registry)
        self._verdicts = Counter("pneumoscope_verdicts", "Reviewers' verdicts.", ("verdict",), registry=registry)
        self._batches = Histogram(
            "pneumoscope_batch_images", "Images computed together.", buckets=(1, 2, 4, 8, 16, 32, 64), registry=registry
        )
        self._computing = Histogram(
            "pneumoscope_batch_seconds", "To compute a batch.", buckets=_SECONDS, registry=registry
        )

    def watch(self, images: Callable[[], int], held: Callable[[], int]) -> None:
        """Show how many images are under way, and how many bytes are held."""
        Gauge("pneumoscope_images_under_way", "Images being read.", registry=self._registry).set_function(images)
        Gauge(
            "pneumoscope_held_bytes", "Of uploads and of answers with pictures, in memory.", registry=self._registry
        ).set_function(held)

    def count_request(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count a request that has been answered."""
        known = method if method in ("GET", "HEAD", "POST", "OPTIONS") else "other"
        self._requests.labels(known, route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def count_image(self, decision: str) -> None:
        """Count an image that was read, or `error`."""
        self._images.labels(decision).inc()

    def count_verdict(self, verdict: str) -> None:
        """Count a reviewer's verdict."""
        self._verdicts.labels(verdict).inc()

    def count_batch(self, images: int, seconds: float) -> None:
        """Count a batch that was computed."""
        self._batches.observe(images)
        self._computing.observe(seconds)

    def render(self) -> bytes:
        """All of it, as Prometheus reads it."""
        return generate_latest(self._registry)
