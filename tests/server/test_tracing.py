"""Traces for OpenTelemetry: what is sent to a collector, and what is not."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import httpx
import numpy as np
import pytest
from dicom_files import dicom
from services import draw, run_thread

from pneumoscope.errors import MissingExtraError, UsageError

if TYPE_CHECKING:
    from pneumoscope.server.settings import Settings

SECRETS = ("mueller", "4711", "P-SECRET", "1.2.840")


@contextmanager
def collect() -> Iterator[tuple[str, list[bytes]]]:
    """A collector: its address, and what it was sent."""
    came: list[bytes] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            came.append(body if self.path == "/v1/traces" else b"elsewhere")
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", came
        finally:
            server.shutdown()
            thread.join()


def read_spans(came: list[bytes]) -> list[Any]:
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    requests = [ExportTraceServiceRequest.FromString(body) for body in came]
    return [
        span for each in requests for of in each.resource_spans for scope in of.scope_spans for span in scope.spans
    ]  # fmt: skip


def test_the_steps_of_a_request_are_traced_without_names_and_uids(settings: Settings) -> None:
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="the exporter of OpenTelemetry is missing")
    elements: dict[str, Any] = {
        "StudyInstanceUID": "1.2.840.4711.1",
        "PatientID": "P-SECRET",
        "AccessionNumber": "4711",
    }
    pixels = np.linspace(0, 4000, 64 * 64).astype(np.uint16).reshape(64, 64)
    files = [("files", ("mueller.dcm", dicom(pixels, **elements))), ("files", ("mueller.txt", b"x" * 40))]
    caller = {"traceparent": f"00-{'ab' * 16}-{'cd' * 8}-01", "x-request-id": "mueller"}
    with collect() as (endpoint, came), run_thread(replace(settings, otel_endpoint=endpoint)) as url:
        assert httpx.post(f"{url}/v1/predictions", files=files, headers=caller, timeout=60).status_code == 201
        httpx.get(f"{url}/v1/predictions?study=1.2.840.4711.1")
        httpx.get(f"{url}/v1/predictions/mueller")
        httpx.request("MUELLER", f"{url}/mueller")
        # the service sends the rest when it ends
    spans = read_spans(came)
    by_name: dict[str, list[Any]] = {}
    for span in spans:
        by_name.setdefault(span.name, []).append(span)
    assert set(by_name) == {
        "POST /v1/predictions", "GET /v1/predictions", "GET /v1/predictions/{id}", "other other", "decode", "batch",
        "store",
    }  # fmt: skip
    (upload,) = by_name["POST /v1/predictions"]
    assert (upload.trace_id, upload.parent_span_id) == (b"\xab" * 16, b"\xcd" * 8)
    assert {each.parent_span_id for each in by_name["decode"]} == {upload.span_id}
    for name in ("batch", "store"):
        assert [link.span_id for span in by_name[name] for link in span.links] == [upload.span_id]
    values = {each.key: each.value for each in upload.attributes}
    assert values["http.response.status_code"].int_value == 201
    for secret in SECRETS:
        assert not any(secret.encode().lower() in body.lower() for body in came), secret


def test_its_sdk_is_not_imported_without_an_endpoint(settings: Settings) -> None:
    script = (
        "import sys; from pneumoscope.server import app; from pneumoscope.server.tracing import open_tracing; "
        "open_tracing(None).close(); print('opentelemetry.sdk' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
    with pytest.raises(UsageError, match="not an HTTP address"):
        replace(settings, otel_endpoint="localhost:4318").check()


def test_the_extra_is_named_where_it_is_missing(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with (
        pytest.raises(MissingExtraError, match=r"pneumoscope\[otel\]"),
        run_thread(replace(settings, otel_endpoint="http://127.0.0.1:4318")),
    ):
        pass


def test_a_collector_that_is_away_delays_no_answer(settings: Settings) -> None:
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="the exporter of OpenTelemetry is missing")
    with run_thread(replace(settings, otel_endpoint="http://127.0.0.1:9")) as url:
        files = {"files": ("a.png", draw(1))}
        assert httpx.post(f"{url}/v1/predictions", files=files, timeout=60).status_code == 201
