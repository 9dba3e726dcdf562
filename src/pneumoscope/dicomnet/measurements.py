"""What the node counts, for Prometheus and for health checks."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import dataclass, field

MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"


@dataclass
class Measurements:
    """Counts since the start of the process; safe to use from several threads."""

    _counts: Counter[tuple[str, tuple[tuple[str, str], ...]]] = field(default_factory=Counter)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def count(self, name: str, number: int = 1, **labels: str) -> None:
        """Count something, by name and labels."""
        with self._lock:
            self._counts[name, tuple(labels.items())] += number

    def render(self, present: dict[str, list[tuple[dict[str, str], float]]]) -> bytes:
        """All counts, and values of this moment by name and labels, as Prometheus reads them."""
        from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

        with self._lock:
            counts = sorted(self._counts.items())
        families: dict[str, Metric] = {}
        for (name, labels), number in counts:
            names = [label for label, _ in labels]
            family = families.setdefault(
                name, CounterMetricFamily(f"pneumoscope_node_{name}", _MEANINGS.get(name, name), labels=names)
            )
            family.add_sample(f"pneumoscope_node_{name}_total", dict(labels), number)
        for name, values in present.items():
            families[name] = GaugeMetricFamily(f"pneumoscope_node_{name}", _MEANINGS.get(name, name))
            for value_labels, value in values:
                families[name].add_sample(f"pneumoscope_node_{name}", value_labels, value)

        class Collector:
            def collect(self) -> list[Metric]:
                return list(families.values())

        registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        registry.register(Collector())
        return generate_latest(registry)


_MEANINGS = {
    "received": "Images received and on disk, by way.",
    "repeats": "Images received again with the same content.",
    "changed": "Images received with other content than before, under the same SOP Instance UID.",
    "refused": "Images and associations refused, by reason.",
    "answered": "Images answered, by decision, or set aside.",
    "deliveries": "What happened to deliveries, by destination.",
    "images": "Images of this spool, by state.",
    "delivering": "Results, by destination and state.",
    "unreachable_seconds": "For how long a destination has been out of reach.",
    "associations": "Associations that are open.",
    "free_bytes": "Space on the disk of the spool.",
}
