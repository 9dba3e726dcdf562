"""Sends results to an AE (C-STORE) or a DICOMweb server (STOW-RS), and asks whether they are there."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import quote

from pneumoscope.dicomnet.addresses import Destination, Tls
from pneumoscope.dicomnet.encryption import make_client_context
from pneumoscope.errors import UsageError

if TYPE_CHECKING:
    from pydicom.dataset import Dataset
    from pynetdicom.association import Association

_EXPLICIT, _IMPLICIT = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2"
_FIND = "1.2.840.10008.5.1.4.1.2.2.1"  # Study Root Query/Retrieve - FIND
_COMMITMENT, _COMMITMENT_INSTANCE = "1.2.840.10008.1.20.1", "1.2.840.10008.1.20.1.1"
_DUPLICATE = 0x0111  # PS3.7 C.4: there is such an object
_WARNINGS = range(0xB000, 0xC000)  # stored, but changed
_TIMEOUT = 30.0  # seconds
_ANSWER = 10_000_000  # bytes of an answer over HTTP


class UnreachableError(Exception):
    """The destination cannot be reached, or refuses to talk to us; the results are not the cause."""


class NotOfferedError(UnreachableError):
    """The destination does not support what was asked for."""


@dataclass(frozen=True)
class Item:
    """A result to send: its delivery, its file, and what it is found by."""

    number: int
    path: Path
    sop_class_uid: str
    sop_uid: str
    study_uid: str
    series_uid: str
    syntax: str = ""  # the transfer syntax of its file


class Sender(Protocol):
    """A way to a destination."""

    def send(self, items: Sequence[Item]) -> Iterator[tuple[Item, str | None]]:
        """Send results; return for each None if it was accepted, else why not.

        Raises:
            UnreachableError: the rest could not be sent.
        """

    def find(self, items: Sequence[Item]) -> Iterator[tuple[Item, bool]]:
        """Ask whether results are there.

        Raises:
            UnreachableError: the rest could not be asked.
        """

    def commit(self, items: Sequence[Item], transaction: str) -> None:
        """Ask for storage commitment; the answer comes later.

        Raises:
            UnreachableError: it could not be asked.
        """


def make_sender(destination: Destination, title: str, committed: Callable[[str, list[str], list[str]], None]) -> Sender:
    """Make the sender of a destination.

    Args:
        destination: where to.
        title: our own AE title.
        committed: called with what is reported of storage commitment.

    Raises:
        UsageError: a certificate, a token or a login cannot be read.
    """
    if destination.url:
        return WebSender(destination)
    return DicomSender(destination, title, committed)


class DicomSender:
    """Sends by C-STORE (PS3.4 B), several results over one association."""

    def __init__(
        self, destination: Destination, title: str, committed: Callable[[str, list[str], list[str]], None]
    ) -> None:
        self._destination, self._title, self._committed = destination, title, committed
        secure = destination.secure or destination.tls != Tls()
        self._context = make_client_context(destination.tls) if secure else None

    def send(self, items: Sequence[Item]) -> Iterator[tuple[Item, str | None]]:
        """Send results; see `Sender`."""
        from pynetdicom import _config

        _config.STORE_SEND_CHUNKED_DATASET = True  # the bytes of the file, not decoded
        contexts = [(item.sop_class_uid, syntax) for item in items for syntax in (item.syntax, _EXPLICIT, _IMPLICIT)]
        try:
            with self._associate(contexts) as association:
                for item in items:
                    yield item, self._store(association, item)
        except NotOfferedError as problem:
            for item in items:
                yield item, str(problem)

    def _store(self, association: Association, item: Item) -> str | None:
        accepted = {(str(each.abstract_syntax), str(each.transfer_syntax[0])) for each in association.accepted_contexts}
        if (item.sop_class_uid, item.syntax) in accepted:
            what: Path | Dataset = item.path
        elif (item.sop_class_uid, _EXPLICIT) in accepted or (item.sop_class_uid, _IMPLICIT) in accepted:
            try:
                what = _decompress(item.path)
            except Exception as problem:  # pydicom raises nearly anything
                return f"it accepts no compressed data, and the file cannot be decompressed ({type(problem).__name__})"
        else:
            return f"it does not accept the SOP class {item.sop_class_uid}"
        try:
            answer = association.send_c_store(what)
        except RuntimeError as problem:  # the association has ended
            raise UnreachableError(str(problem)) from None
        if "Status" not in answer:
            raise UnreachableError("no answer to C-STORE")
        status = int(answer.Status)
        if status in (0, _DUPLICATE) or status in _WARNINGS:
            return None
        return f"status 0x{status:04X}"

    def find(self, items: Sequence[Item]) -> Iterator[tuple[Item, bool]]:
        """Ask by C-FIND (PS3.4 C); see `Sender`."""
        from pydicom.dataset import Dataset

        with self._associate([(_FIND, _EXPLICIT), (_FIND, _IMPLICIT)]) as association:
            for item in items:
                query = Dataset()
                query.QueryRetrieveLevel = "IMAGE"
                query.StudyInstanceUID, query.SeriesInstanceUID = item.study_uid, item.series_uid
                query.SOPInstanceUID = item.sop_uid
                found = False
                for status, match in association.send_c_find(query, _FIND):
                    if "Status" not in status:
                        raise UnreachableError("no answer to C-FIND")
                    if int(status.Status) not in (0, 0xFF00, 0xFF01):
                        raise UnreachableError(f"C-FIND is answered with status 0x{int(status.Status):04X}")
                    found = found or (match is not None and str(match.get("SOPInstanceUID", "")) == item.sop_uid)
                yield item, found

    def commit(self, items: Sequence[Item], transaction: str) -> None:
        """Ask by N-ACTION (PS3.4 J.3.2); see `Sender`."""
        from pydicom.dataset import Dataset

        action = Dataset()
        action.TransactionUID, action.ReferencedSOPSequence = transaction, []
        for item in items:
            reference = Dataset()
            reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID = item.sop_class_uid, item.sop_uid
            action.ReferencedSOPSequence.append(reference)
        with self._associate([(_COMMITMENT, _EXPLICIT), (_COMMITMENT, _IMPLICIT)]) as association:
            status, _ = association.send_n_action(action, 1, _COMMITMENT, _COMMITMENT_INSTANCE)
            if "Status" not in status or int(status.Status) != 0:
                raise UnreachableError("storage commitment is refused")

    @contextmanager
    def _associate(self, contexts: Sequence[tuple[str, str]]) -> Iterator[Association]:
        from pynetdicom import evt
        from pynetdicom.ae import ApplicationEntity
        from pynetdicom.presentation import build_context

        from pneumoscope.dicomnet.connections import hasten
        from pneumoscope.dicomnet.receiver import answer_report

        def report(event: Any) -> tuple[int, None]:
            answer_report(event, self._committed)
            return 0, None

        destination = self._destination
        entity = ApplicationEntity(self._title)
        entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = _TIMEOUT
        entity.connection_timeout = 10
        # One presentation context for each transfer syntax, so that the receiver does not choose between them.
        several = [build_context(abstract, [syntax]) for abstract, syntax in dict.fromkeys(contexts)]
        association = entity.associate(
            destination.host,
            destination.port,
            contexts=several,
            ae_title=destination.title,
            tls_args=None if self._context is None else (self._context, destination.host),
            evt_handlers=[(evt.EVT_N_EVENT_REPORT, report), (evt.EVT_CONN_OPEN, hasten)],
        )
        try:
            if not association.is_established:
                if association.rejected_contexts:
                    raise NotOfferedError("it accepts none of the SOP classes that were asked for")
                raise UnreachableError("refuses the association" if association.is_rejected else "cannot be reached")
            yield association
        finally:
            if association.is_established:
                association.release()
            if association.is_alive():
                association.join(5)
            link = association.dul.socket
            if link is not None and link.socket is not None:  # pynetdicom leaves it open where it was not established
                link.socket.close()


def _decompress(path: Path) -> Dataset:
    """A file's object without compression; pynetdicom writes it as the receiver wants it."""
    from pydicom import dcmread

    data = dcmread(path)
    if data.file_meta.TransferSyntaxUID.is_encapsulated:
        data.decompress(generate_instance_uid=False)  # its pixels stay the same, and it is recognised by its UID
    return data


class WebSender:
    """Sends by STOW-RS (PS3.18 10.5), and asks by QIDO-RS (PS3.18 10.6)."""

    def __init__(self, destination: Destination) -> None:
        import urllib3

        self._url = destination.url
        self._headers = {"Authorization": value} if (value := _read_authorization(destination)) else {}
        self._pool = urllib3.PoolManager(
            timeout=urllib3.Timeout(connect=10, read=_TIMEOUT),
            retries=False,  # delivery has its own retries, which outlast the process
            ssl_context=make_client_context(destination.tls) if self._url.startswith("https://") else None,
        )

    def send(self, items: Sequence[Item]) -> Iterator[tuple[Item, str | None]]:
        """Send each result in its own request, so that each has its own answer; see `Sender`."""
        for item in items:
            boundary = secrets.token_hex(16)
            head = f"--{boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode()
            body = b"".join((head, item.path.read_bytes(), f"\r\n--{boundary}--\r\n".encode()))
            content_type = f'multipart/related; type="application/dicom"; boundary={boundary}'
            status, answer = self._request("POST", f"{self._url}/studies", body, content_type)
            yield item, _judge(status, answer, item.sop_uid)

    def find(self, items: Sequence[Item]) -> Iterator[tuple[Item, bool]]:
        """Ask for each result; see `Sender`."""
        for item in items:
            place = f"studies/{quote(item.study_uid)}/series/{quote(item.series_uid)}/instances"
            url = f"{self._url}/{place}?SOPInstanceUID={quote(item.sop_uid)}"
            status, answer = self._request("GET", url)
            if status in (400, 405, 406, 501):
                raise NotOfferedError(f"QIDO-RS is answered with {status}")
            if status not in (200, 204, 404):
                raise UnreachableError(f"QIDO-RS is answered with {status}")
            if status == 200 and not isinstance(answer, list):
                raise NotOfferedError("the answer to QIDO-RS is not what PS3.18 wants")
            found = answer if status == 200 else []
            yield item, any(_list_values(each, "00080018") == [item.sop_uid] for each in found)

    def commit(self, items: Sequence[Item], transaction: str) -> None:  # noqa: ARG002
        """Not available over HTTP; `NodeSettings.check` refuses it."""
        raise UnreachableError("no storage commitment over HTTP")

    def _request(self, method: str, url: str, body: bytes | None = None, content_type: str = "") -> tuple[int, Any]:
        """Status and JSON of an answer; None where it is none."""
        import urllib3

        headers = {**self._headers, "Accept": "application/dicom+json"}
        if content_type:
            headers["Content-Type"] = content_type
        try:
            answer = self._pool.request(method, url, body=body, headers=headers, redirect=False, preload_content=False)
            try:
                content = answer.read(_ANSWER)
            finally:
                answer.close()
        except (urllib3.exceptions.HTTPError, OSError) as problem:
            raise UnreachableError(f"cannot be reached ({type(problem).__name__})") from None
        try:
            return answer.status, json.loads(content)
        except (ValueError, RecursionError):  # the latter for deep nesting
            return answer.status, None


def _judge(status: int, answer: Any, uid: str) -> str | None:
    """None where a result has been accepted, else why not (PS3.18 10.5.3).

    Raises:
        UnreachableError: the answer is not about the result.
    """
    if status in (401, 403, 404, 408, 429) or status >= 500 or 300 <= status < 400:
        raise UnreachableError(f"STOW-RS is answered with {status}")
    if status not in (200, 202, 409):
        return f"status {status}"
    for failed in _list_values(answer, "00081198"):
        reason = next(iter(_list_values(failed, "00081197")), 0)
        if uid in (_list_values(failed, "00081155") or [uid]):
            known = f"0x{reason:04X}" if isinstance(reason, int) else "unknown"
            return None if reason == _DUPLICATE else f"failure reason {known}"
    return "status 409" if status == 409 else None


def _list_values(answer: Any, tag: str) -> list[Any]:
    """Values of an attribute in the JSON of PS3.18 F; none where it is anything else."""
    element = answer.get(tag) if isinstance(answer, dict) else None
    values = element.get("Value") if isinstance(element, dict) else None
    return values if isinstance(values, list) else []


def _read_authorization(destination: Destination) -> str:
    file = destination.token_file or destination.login_file
    if file is None:
        return ""
    try:
        text = file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as problem:
        raise UsageError(
            f"{file} cannot be read: {getattr(problem, 'strerror', None) or problem}.", "destinations"
        ) from None
    if destination.token_file is not None:
        return f"Bearer {text}"
    import base64

    return f"Basic {base64.b64encode(text.encode()).decode()}"
