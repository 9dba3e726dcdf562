"""Decodes uploads in separate processes, so that a hostile file can end one of them, but cannot stop the service.

A decoder in C cannot be stopped within its process. Each process has a memory limit, and each image a time limit.
In all processes but one, an image may use all of its time. The last process gives an image only a few seconds, so that
other images do not wait for slow ones.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from multiprocessing.connection import Connection
from queue import SimpleQueue
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pneumoscope.images.prepare import InputSpec
from pneumoscope.images.read import ImageBytes
from pneumoscope.inference.features import Extract, read_source
from pneumoscope.server.inference.pictures import render_picture
from pneumoscope.server.problems import RequestError, logger, too_busy
from pneumoscope.server.settings import Limits

_PATIENCE = 4.0  # seconds that an image may take in any process
_CONTEXT = multiprocessing.get_context("spawn")  # a fork would copy locks that other threads hold
_STARTING = 60.0  # seconds that a process may take to start, on a machine that is busy
_MEMORY = 1_900_000_000  # bytes that reading and drawing one image may take: see images/limits.py


class Decoded(NamedTuple):
    """An image that is ready for the network."""

    extract: Extract
    picture: bytes | None = None  # a PNG for a browser, if it was asked for


class _Failure(NamedTuple):
    """An unforeseen error, without its message, which could contain a patient's name."""

    name: str
    where: str


class _NotStartedError(Exception):
    """No process that decodes can be started; this is no fault of an image."""


Read: TypeAlias = Callable[[ImageBytes, bool, InputSpec], Decoded]


def read(image: ImageBytes, picture: bool, spec: InputSpec) -> Decoded:
    """Decode an image, and draw it if wanted."""
    extract = read_source(image, spec, pixels=picture)
    drawn = render_picture(extract, image) if extract.pixels is not None else None
    extract.source = ImageBytes(b"", image.name, image.reading)  # the service has the content
    extract.pixels = extract.display = None
    return Decoded(extract, drawn)


class Decoders:
    """Processes that decode, one image at a time each.

    Args:
        spec: the network's input.
        limits: seconds for each image.
        count: how many processes at most; None: as the number of cores suggests. 0: threads of this process.
        work: what they do.
    """

    def __init__(self, spec: InputSpec, limits: Limits, count: int | None = None, work: Read = read) -> None:
        usual = min(4, max(2, (os.cpu_count() or 2) // 2)) + 1
        self._count = usual if count is None else count
        self._limit, self._spec, self._work = limits.decoding, spec, work
        self._threads = ThreadPoolExecutor(self._count or usual, "decode")
        self._idle: SimpleQueue[_Decoder] = SimpleQueue()
        self._decoders = [_Decoder(spec, work) for _ in range(self._count)]
        for each in self._decoders:
            self._idle.put(each)
        self._slow = 0
        self._lock = threading.Lock()
        self._closed = False

    def open(self) -> None:
        """Start the first process, so that the first image does not wait for it; the others start when needed."""
        if self._decoders:
            decoder = self._idle.get()
            try:
                decoder.start()
            except _NotStartedError:
                if not self._closed:
                    logger.error("No process that decodes could be started; the service tries again with each image")
            finally:
                self._idle.put(decoder)

    async def decode(self, image: ImageBytes, picture: bool = False) -> Decoded:
        """Decode an image, and draw it if wanted. A file that cannot be read gives an `Extract` with its error.

        Raises:
            RequestError: 422, it took too much time or memory; 429, other images that take long are being decoded;
                500, an unforeseen error; 503, no process could be started, or the service is stopping.
        """
        decode = self._decode if self._decoders else self._decode_here
        return await asyncio.get_running_loop().run_in_executor(self._threads, decode, image, picture)

    @property
    def occupied(self) -> bool:
        """Whether slow images occupy as many processes as they may."""
        return self._count > 0 and self._slow >= self._count - 1

    def close(self) -> None:
        """End all processes, whatever they do."""
        self._closed = True
        for each in self._decoders:
            each.close()
        self._threads.shutdown(cancel_futures=True)

    def _decode_here(self, image: ImageBytes, picture: bool) -> Decoded:
        return _complete(_try(self._work, image, picture, self._spec), image)

    def _decode(self, image: ImageBytes, picture: bool) -> Decoded:
        decoder = self._idle.get()
        try:
            if self._closed:
                raise EOFError
            decoder.send(image, picture)
            if not decoder.wait(_PATIENCE):
                self._wait_longer(decoder, image)
            found = decoder.receive()
        except _NotStartedError:
            if self._closed:
                raise RequestError(503, "The service is stopping.") from None
            raise RequestError(503, "No process that decodes images could be started.", {"retry-after": "5"}) from None
        except (EOFError, OSError):
            decoder.kill()
            if self._closed:
                raise RequestError(503, "The service is stopping.") from None
            logger.warning("A process that decoded an image has ended; another one is started")
            raise _refuse(image, "its decoding process ended: the file is damaged, or needs too much memory") from None
        except BaseException:
            decoder.kill()  # otherwise the next image could get its answer
            raise
        finally:
            self._idle.put(decoder)
        return _complete(found, image)

    def _wait_longer(self, decoder: _Decoder, image: ImageBytes) -> None:
        with self._lock:
            full = self.occupied
            self._slow += not full
        if full:
            decoder.kill()
            raise too_busy("Other images that take long are being decoded.", 5)
        try:
            if not decoder.wait(self._limit - _PATIENCE):
                decoder.kill()
                raise _refuse(image, f"decoding it takes more than {self._limit:g} seconds")
        finally:
            with self._lock:
                self._slow -= 1


def _refuse(image: ImageBytes, why: str) -> RequestError:
    detail = f"{image.name}: {why}. Save it again, as PNG with 8 or 16 bits."
    return RequestError(422, detail, code="image-costly")


def _complete(found: Decoded | _Failure, image: ImageBytes) -> Decoded:
    if isinstance(found, _Failure):
        logger.error("Internal error: %s\n%s", *found)
        raise RequestError(500, f"Internal error: {found.name}. Please report it.")
    found.extract.source = image
    return found


class _Decoder:
    """A process that decodes; it starts when it is needed, also after its end."""

    def __init__(self, spec: InputSpec, work: Read) -> None:
        self._spec, self._work = spec, work
        self._shared = _CONTEXT.RawArray("f", 3 * spec.size**2)  # the input: through the pipe it takes longer
        self._process: multiprocessing.process.BaseProcess | None = None
        self._connection: Connection | None = None
        self._asked = 0  # the number of the image that is being decoded
        self._lock = threading.Lock()
        self._closed = False

    def start(self) -> None:
        process = self._process
        if process is not None and process.is_alive():
            return
        self.kill()
        try:
            connection, other = _CONTEXT.Pipe()
            self._connection = connection
            process = _CONTEXT.Process(
                target=_run, args=(other, self._shared, self._spec, self._work), name="decoder", daemon=True
            )
            process.start()
            self._process = process
            other.close()
            if self._closed or not connection.poll(_STARTING):
                raise EOFError
            connection.recv()
        except (EOFError, OSError):
            self.kill()  # otherwise its late "ready" would be taken for an answer
            raise _NotStartedError from None

    def send(self, image: ImageBytes, picture: bool) -> None:
        self.start()
        self._asked += 1
        self._pipe.send((self._asked, image, picture))

    def wait(self, seconds: float) -> bool:
        return self._pipe.poll(max(0, seconds))

    def receive(self) -> Decoded | _Failure:
        found: Decoded | _Failure
        number, found = self._pipe.recv()
        if number != self._asked:  # of another image
            raise EOFError
        if isinstance(found, Decoded) and found.extract.error is None:
            found.extract.inputs = _view(self._shared, self._spec).copy()
        return found

    @property
    def _pipe(self) -> Connection:
        if self._connection is None:
            raise EOFError
        return self._connection

    def close(self) -> None:
        self._closed = True  # before `kill`: a process that is started meanwhile is ended by `start`
        self.kill()

    def kill(self) -> None:
        with self._lock:  # `close` is called by another thread
            process, connection = self._process, self._connection
            self._process = self._connection = None
        if process is not None:
            process.kill()
            process.join(5)
        if connection is not None:
            connection.close()


def _view(shared: Any, spec: InputSpec) -> NDArray[np.float32]:
    return np.frombuffer(shared, np.float32).reshape(3, spec.size, spec.size)


def _run(connection: Connection, shared: Any, spec: InputSpec, work: Read) -> None:
    """Decode what arrives, until the service has ended."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal sends it to all; the service decides
    _limit_memory()
    with suppress(EOFError, OSError):
        connection.send((0, None))  # ready
        while True:
            number, image, picture = connection.recv()
            found = _try(work, image, picture, spec)
            if isinstance(found, Decoded) and found.extract.inputs is not None:
                _view(shared, spec)[:] = found.extract.inputs
                found.extract.inputs = None
            connection.send((number, found))


def _try(work: Read, image: ImageBytes, picture: bool, spec: InputSpec) -> Decoded | _Failure:
    try:
        return work(image, picture, spec)
    except Exception as problem:
        return _Failure(type(problem).__name__, "".join(traceback.format_tb(problem.__traceback__)[-4:]))


def _limit_memory() -> None:
    """Limit the memory of this process to what it has now, and what an image may take."""
    try:
        import resource
        from pathlib import Path

        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    except (ImportError, OSError):  # not on Linux: images/limits.py estimates the memory before decoding
        return
    most = pages * resource.getpagesize() + _MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
