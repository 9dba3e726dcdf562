"""Receives images by DICOM: C-ECHO and C-STORE (PS3.4 A, B), and reports of storage commitment (PS3.4 J)."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol, cast

from pynetdicom import _config, evt
from pynetdicom.ae import ApplicationEntity
from pynetdicom.events import Event

from pneumoscope import __version__
from pneumoscope.dicomnet.connections import MAX_PDU, start_server
from pneumoscope.dicomnet.encryption import make_server_context
from pneumoscope.dicomnet.spool import Arrival, FullError, Spool, Stored
from pneumoscope.errors import UsageError

if TYPE_CHECKING:
    from pydicom.dataset import Dataset
    from pynetdicom.dimse_primitives import C_STORE

    from pneumoscope.dicomnet.node_settings import NodeSettings

# PS3.7 C
SUCCESS, NO_RESOURCES, PROCESSING_FAILURE, INVALID_OBJECT, CANNOT_UNDERSTAND = 0x0000, 0xA700, 0x0110, 0x0117, 0xC000
_VERIFICATION, _COMMITMENT = "1.2.840.10008.1.1", "1.2.840.10008.1.20.1"
# What `images.dicom` reads: uncompressed, deflated, RLE, JPEG, JPEG-LS, JPEG 2000 and HTJ2K.
SYNTAXES = (
    *("1.2.840.10008.1.2.1", "1.2.840.10008.1.2", "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.2"),
    *(f"1.2.840.10008.1.2.4.{kind}" for kind in (50, 51, 57, 70, 80, 81, 90, 91, 201, 202, 203)),
    "1.2.840.10008.1.2.5",
)
logger = logging.getLogger("pneumoscope.node")


class Watcher(Protocol):
    """What the receiver reports to."""

    def received(self, stored: Stored, arrival: Arrival) -> None:
        """An image is on disk."""

    def refused(self, reason: str) -> None:
        """An image or an association has been refused."""

    def committed(self, transaction: str, stored: Sequence[str], failed: Sequence[str]) -> None:
        """An archive reports which SOP Instance UIDs it has committed, and which not."""


class Receiver:
    """The DICOM listener of a node.

    Args:
        settings: of the node.
        spool: where images go.
        watcher: what is called, in the threads of the associations.
    """

    def __init__(self, settings: NodeSettings, spool: Spool, watcher: Watcher) -> None:
        self._settings, self._spool, self._watcher = settings, spool, watcher
        self.port = 0
        _config.LOG_HANDLER_LEVEL = "none"  # its messages cost time for every PDU
        _config.STORE_RECV_CHUNKED_DATASET = False
        logging.getLogger("pynetdicom").setLevel(logging.CRITICAL)  # errors may quote what was received

    def start(self) -> None:
        """Listen, in threads.

        Raises:
            UsageError: the address, a certificate or a SOP class cannot be used.
        """
        settings, limits = self._settings, self._settings.limits
        entity = ApplicationEntity(settings.title)
        entity.maximum_associations = limits.associations
        entity.maximum_pdu_size = MAX_PDU
        entity.acse_timeout = entity.dimse_timeout = limits.silence
        entity.network_timeout = limits.idle
        entity.require_called_aet = not settings.any_called
        entity.require_calling_aet = list(settings.allowed)
        entity.implementation_version_name = f"PNEUMOSCOPE_{__version__}"[:16]
        entity.add_supported_context(_VERIFICATION)
        for uid in resolve_classes(settings.sop_classes):
            entity.add_supported_context(uid, [*SYNTAXES])
        entity.add_supported_context(_COMMITMENT, scu_role=True, scp_role=True)
        handlers = [
            (evt.EVT_C_ECHO, lambda _: SUCCESS),
            (evt.EVT_C_STORE, self._store),
            (evt.EVT_N_EVENT_REPORT, self._report),
            (evt.EVT_REJECTED, self._reject),
        ]
        try:
            address = (settings.host, settings.port)
            self._server = start_server(entity, address, limits, make_server_context(settings.tls), handlers)
        except (OSError, OverflowError) as problem:
            reason = getattr(problem, "strerror", None) or problem
            raise UsageError(
                f"Cannot listen on {settings.host}, port {settings.port}: {reason}. Choose another `host` or `port`."
            ) from None
        self.port = self._server.server_address[1]
        self.thread = threading.Thread(target=self._server.serve_forever, args=(0.2,), name="dicom", daemon=True)
        self.thread.start()

    @property
    def associations(self) -> int:
        """How many associations are open."""
        return len(self._server.active_associations)

    def stop(self) -> None:
        """Stop accepting, and end open associations; senders have to send again what was not acknowledged."""
        self._server.shutdown()
        for association in self._server.active_associations:
            association.abort()

    def _store(self, event: Event) -> int:
        request = cast("C_STORE", event.request)
        calling = str(event.assoc.requestor.ae_title).strip()
        arrival = Arrival(
            str(request.AffectedSOPClassUID),
            str(request.AffectedSOPInstanceUID),
            event.context.transfer_syntax,
            calling,
        )
        return store(self._spool, arrival, event.encoded_dataset(include_meta=False), self._watcher)

    def _report(self, event: Event) -> tuple[int, None]:
        answer_report(event, self._watcher.committed)
        return SUCCESS, None

    def _reject(self, event: Event) -> None:
        self._watcher.refused("association")
        request = event.assoc.requestor.primitive
        calling, called = (request.calling_ae_title, request.called_ae_title) if request else ("", "")
        logger.warning("association refused: %r calls %r", calling, called)


def store(spool: Spool, arrival: Arrival, data: bytes | memoryview, watcher: Watcher) -> int:
    """Store an image, and give the status to answer with (PS3.4 B.2.3)."""
    try:
        stored = spool.store(arrival, data)
    except FullError:
        watcher.refused("full")
        logger.error("image refused: too little space on the disk of the spool")
        return NO_RESOURCES
    except ValueError:
        watcher.refused("uid")
        return INVALID_OBJECT
    except OSError as problem:
        watcher.refused("error")
        logger.error("image refused: %s", problem.strerror or type(problem).__name__)
        return PROCESSING_FAILURE
    watcher.received(stored, arrival)
    return SUCCESS


def answer_report(event: Event, committed: Callable[[str, list[str], list[str]], None]) -> None:
    """Pass on an N-EVENT-REPORT of storage commitment (PS3.4 J.3.3)."""
    information: Dataset = event.event_information

    def list_uids(keyword: str) -> list[str]:
        return [str(item.get("ReferencedSOPInstanceUID", "")) for item in information.get(keyword) or ()]

    transaction = str(information.get("TransactionUID", ""))
    committed(transaction, list_uids("ReferencedSOPSequence"), list_uids("FailedSOPSequence"))


def resolve_classes(names: Sequence[str]) -> list[str]:
    """UIDs of SOP classes by keyword; UIDs stay.

    Raises:
        UsageError: there is no such keyword.
    """
    from pydicom._uid_dict import UID_dictionary

    known = {entry[4]: uid for uid, entry in UID_dictionary.items() if entry[1] == "SOP Class"}
    found = []
    for name in names:
        if name not in known and not name.replace(".", "").isdigit():
            raise UsageError(
                f"{name}: no SOP class. Give a UID or a keyword of PS3.6, such as ComputedRadiographyImageStorage.",
                "sop_classes",
            )
        found.append(known.get(name, name))
    return found
