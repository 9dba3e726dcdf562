"""What reading one image file may cost. Files are checked before they are decoded: a decoder in C cannot be stopped."""

from __future__ import annotations

import io

MAX_PIXELS = 100_000_000  # the largest detectors have about 20 million
MAX_BYTES = 512 * 1024 * 1024
MAX_MEMORY = 1_300_000_000  # bytes to decode an image, the file itself not included
MAX_READS = 500_000  # parts of a raster file that Python takes one by one, such as chunks of a PNG: about a second
MAX_SEGMENTS = 20_000  # of a JPEG or JPEG 2000 stream; large profiles and previews take some hundred


class CostError(ValueError):
    """A file is built so that reading it would take too much time or memory; says what was found."""


class LimitedFile(io.BytesIO):
    """A file in memory that can be read a limited number of times.

    Attributes:
        left: how many times it can still be read.
    """

    left = MAX_READS

    def read(self, size: int | None = -1, /) -> bytes:
        """Read up to `size` bytes.

        Raises:
            CostError: it was read too often.
        """
        self.left -= 1
        if self.left < 0:
            raise CostError("made of too many small parts")
        return super().read(size)
