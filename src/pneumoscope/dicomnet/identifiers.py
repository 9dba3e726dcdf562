"""UIDs that follow from what they name: the same image, model and settings give the same ones."""

from __future__ import annotations

import json
import uuid

_NAMESPACE = uuid.UUID("5b0f8a60-5f0c-4b3e-9c68-6a1c2e3b7d51")  # of this project's UIDs; chosen once


def derive_uid(*parts: object) -> str:
    """Derive a UID from anything that JSON can express, as a UUID below the root 2.25 (PS3.5 B.2)."""
    return f"2.25.{uuid.uuid5(_NAMESPACE, json.dumps(parts, sort_keys=True)).int}"
