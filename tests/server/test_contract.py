"""The service keeps to its OpenAPI document, whatever is sent."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

from node_rows import fill_queue

if TYPE_CHECKING:
    from pathlib import Path

    from services import Process


def test_schemathesis_finds_no_fault(service: Process, tmp_path: Path) -> None:
    fill_queue(service.database)
    report = tmp_path / "report.ndjson"
    command = [
        sys.executable, "-m", "schemathesis.cli", "run", f"{service.url}/openapi.json", "--url", service.url,
        "--checks", "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance",
        "--max-examples", "25", "--seed", "1", "--phases", "examples,coverage,fuzzing", "--no-color",
        "--request-timeout", "60", "--report", "ndjson", "--report-ndjson-path", str(report),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, cwd=tmp_path)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    document = json.dumps(report.read_text(encoding="utf-8"))
    for path in ("/v1/predictions", "/reviews", "/v1/monitoring", "/v1/node", "/metrics"):
        assert path in document
