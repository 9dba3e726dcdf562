"""Tries again what Orthanc could not send, for example while pneumoscope's node was out of reach.

    python3 resubmit.py [http://127.0.0.1:8042]

It needs only Python. Run it every minute, by cron or a systemd timer, on the machine that runs Orthanc. Orthanc's
setting `JobsHistorySize` has to exceed the number of jobs that can fail in between.
"""

from __future__ import annotations

import json
import sys
import urllib.request


def ask(address: str, data: bytes | None = None) -> object:
    with urllib.request.urlopen(urllib.request.Request(address, data), timeout=30) as answer:
        return json.load(answer)


def main() -> None:
    address = (sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8042").rstrip("/")
    jobs = ask(f"{address}/jobs?expand")
    assert isinstance(jobs, list)
    failed = [job["ID"] for job in jobs if (job["Type"], job["State"]) == ("DicomModalityStore", "Failure")]
    for job in failed:
        ask(f"{address}/jobs/{job}/resubmit", b"{}")
    if failed:
        print(f"{len(failed)} failed jobs are tried again")


if __name__ == "__main__":
    main()
