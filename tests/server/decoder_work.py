"""What decoders do in tests: as the name of a file says. Their processes import it."""

from __future__ import annotations

import os
import signal
import time

from pneumoscope.images.prepare import InputSpec
from pneumoscope.images.read import ImageBytes
from pneumoscope.server.inference.decoding import Decoded, read


def work(image: ImageBytes, picture: bool, spec: InputSpec) -> Decoded:
    """Read an image, but first sleep, end, fail or take memory."""
    kind, _, seconds = image.name.removesuffix(".png").partition("-")
    if kind == "slow":
        time.sleep(float(seconds))
    elif kind == "end":
        os.kill(os.getpid(), signal.SIGKILL)
    elif kind == "fail":
        raise ZeroDivisionError(image.name.upper())
    elif kind == "fill":
        return Decoded(read(image, picture, spec).extract, bytes(8_000_000_000))
    return read(image, picture, spec)
