"""One destination's delivery: what it does with archives that confirm late, refuse, or answer with rubbish."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sql
from archives import find_port, run_orthanc
from evidence_cases import write_evidence
from peers import run_http, run_picky, wait_until
from pydicom import dcmread

from pneumoscope.dicomnet.addresses import Destination
from pneumoscope.dicomnet.delivery import Delivery
from pneumoscope.dicomnet.destinations import Item, NotOfferedError, Sender, UnreachableError, make_sender
from pneumoscope.dicomnet.node_settings import Retries
from pneumoscope.dicomnet.queue import Queue
from pneumoscope.dicomnet.rows import Made, Outcome
from pneumoscope.dicomnet.spool import Spool

# pynetdicom leaves the socket open where nothing listens.
pytestmark = [
    pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

AE = Destination(name="archive", host="127.0.0.1", port=1, title="A")
QUICK = Retries(first=0.05, longest=0.1, refusals=3, verify_after=0.01)


@dataclass
class Stub:
    """An archive that does what a test wants of it."""

    sent: list[str] = field(default_factory=list)
    transactions: list[str] = field(default_factory=list)
    on_send: Callable[[Item], str | None] = lambda item: None
    on_find: Callable[[Item], bool] = lambda item: True
    on_commit: Callable[[str, list[str]], None] = lambda transaction, uids: None

    def send(self, items: Sequence[Item]) -> Iterator[tuple[Item, str | None]]:
        for item in items:
            self.sent.append(item.sop_uid)
            yield item, self.on_send(item)

    def find(self, items: Sequence[Item]) -> Iterator[tuple[Item, bool]]:
        for item in items:
            yield item, self.on_find(item)

    def commit(self, items: Sequence[Item], transaction: str) -> None:
        self.transactions.append(transaction)
        self.on_commit(transaction, [item.sop_uid for item in items])


class Post:
    """A spool and a queue with results for one destination."""

    def __init__(self, folder: Path, contents: Sequence[bytes]) -> None:
        self._stack = ExitStack()
        self.spool = Spool(folder / "spool", 0)
        self._stack.enter_context(self.spool.open())
        self._url = str(folder / "node.sqlite")
        self.queue = Queue(self._url, self.spool.node)
        self._stack.callback(self.queue.close)
        self.events: Counter[str] = Counter()
        for number, content in enumerate(contents):
            (folder / "a.dcm").write_bytes(content)
            data = dcmread(folder / "a.dcm")
            name = self.spool.store_result(str(data.SOPInstanceUID), content)
            row = {"key": f"k{number}", "study": f"s{number}", "calling": "X", "received_at": 0.0}
            self.queue.add_images([row])
            (waiting,) = [each for each in self.queue.list_waiting(1, 1, 99) if each.key == f"k{number}"]
            made = Made("seg", str(data.SOPClassUID), str(data.SOPInstanceUID), name)
            self.queue.finish([Outcome(waiting, "answered", results=(made,))], ["archive"], held=False)

    def deliver(self, sender: Sender, destination: Destination = AE, retries: Retries = QUICK) -> Delivery:
        def report(_: str, event: str) -> None:
            self.events[event] += 1

        delivery = Delivery(destination, sender, self.queue, self.spool, retries, report)
        self._stack.callback(delivery.thread.join, 20)
        self._stack.callback(delivery.stop)
        delivery.start()
        return delivery

    @property
    def states(self) -> dict[str, int]:
        return {state: count for (_, state), count in self.queue.count()[1].items()}

    def errors(self) -> set[str]:
        engine = sql.create_engine(f"sqlite:///{self._url}")
        with engine.connect() as connection:
            found = set(connection.scalars(sql.text("SELECT error FROM node_deliveries")))
        engine.dispose()
        return found

    def close(self) -> None:
        self._stack.close()


@pytest.fixture
def post(tmp_path: Path) -> Iterator[Post]:
    post = Post(tmp_path / "post", list(write_evidence().values()))
    yield post
    post.close()


def test_maps_and_compressed_segmentations_are_delivered_and_found(post: Post, tmp_path: Path) -> None:
    with run_orthanc(tmp_path / "orthanc") as archive:
        to = replace(AE, port=archive.dicom_port, title=archive.title, verify="find")
        post.deliver(make_sender(to, "NODE", lambda *_: None), to)
        wait_until(lambda: post.states == {"delivered": 2})
        assert archive.count() == 2


def test_a_result_that_breaks_sending_is_given_up_and_the_others_are_delivered(
    post: Post, caplog: pytest.LogCaptureFixture
) -> None:
    def send(item: Item) -> None:
        if item.sop_uid == stub.sent[0]:
            raise KeyError("SECRET")

    stub = Stub(on_send=send)
    delivery = post.deliver(stub)
    wait_until(lambda: post.states == {"delivered": 1, "failed": 1})
    assert delivery.thread.is_alive()
    assert stub.sent.count(stub.sent[0]) == QUICK.refusals
    assert "KeyError" in caplog.text
    assert "SECRET" not in caplog.text


def test_delivery_goes_on_after_errors_that_nobody_expected(post: Post, caplog: pytest.LogCaptureFixture) -> None:
    problems = [RecursionError("SECRET"), TypeError("SECRET"), AttributeError("SECRET")]

    def find(item: Item) -> bool:
        if problems:
            raise problems.pop()
        return True

    delivery = post.deliver(Stub(on_find=find), replace(AE, verify="find"))
    wait_until(lambda: post.states == {"delivered": 2})
    assert delivery.thread.is_alive()
    assert post.events["error"] == 3
    assert "RecursionError" in caplog.text
    assert "SECRET" not in caplog.text


@pytest.mark.parametrize("verify", ["find", "commitment"])
def test_an_archive_that_cannot_be_asked_still_gets_everything(
    verify: Any, post: Post, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: Any) -> Any:
        raise NotOfferedError("it does not offer this")

    slow = replace(QUICK, first=600.0, longest=600.0, verify_within=0.01, commit_within=0.01)
    stub = Stub(on_find=refuse, on_commit=refuse)
    delivery = post.deliver(stub, replace(AE, verify=verify), slow)
    wait_until(lambda: len(stub.sent) == 2)
    wait_until(lambda: post.errors() == {"not verified: it does not offer this"})
    assert post.states == {"sent": 2}
    assert delivery.unreachable_since is None
    assert post.events["unreachable"] == 0
    assert caplog.text.count("cannot be verified") == 1


def test_an_archive_that_cannot_answer_questions_now_still_gets_what_is_new(post: Post, tmp_path: Path) -> None:
    def refuse(*_: Any) -> Any:
        raise UnreachableError("busy")

    slow = replace(QUICK, first=600.0, longest=600.0)
    stub = Stub(on_find=refuse)
    delivery = post.deliver(stub, replace(AE, verify="find"), slow)
    wait_until(lambda: post.events["unreachable"] == 1)
    engine = sql.create_engine(f"sqlite:///{tmp_path / 'post' / 'node.sqlite'}")
    with engine.begin() as connection:  # as if they were new
        connection.execute(sql.text("UPDATE node_deliveries SET state = 'due', due_at = 0"))
    engine.dispose()
    wait_until(lambda: len(stub.sent) == 4)
    assert delivery.unreachable_since is not None


def test_what_an_archive_does_not_commit_is_sent_again_as_often_as_what_it_refuses(post: Post) -> None:
    stub = Stub(on_commit=lambda transaction, uids: threading.Thread(target=report, args=(transaction, uids)).start())

    def report(transaction: str, uids: list[str]) -> None:
        delivery.confirm_committed(transaction, [], uids)

    delivery = post.deliver(stub, replace(AE, verify="commitment"))
    wait_until(lambda: post.states == {"failed": 2})
    assert Counter(stub.sent) == dict.fromkeys(stub.sent, QUICK.refusals)
    assert post.errors() == {"storage commitment failed"}


def test_a_late_commitment_is_waited_for(post: Post) -> None:
    stub = Stub()
    asked: list[tuple[str, list[str]]] = []
    stub.on_commit = lambda transaction, uids: asked.append((transaction, uids))
    delivery = post.deliver(stub, replace(AE, verify="commitment"), replace(QUICK, verify_within=0.01))
    wait_until(lambda: asked)
    time.sleep(0.5)  # longer than `verify_within`, which is not about commitment
    for transaction, uids in asked.copy():
        delivery.confirm_committed(transaction, uids, [])
    wait_until(lambda: post.states == {"delivered": 2})
    assert len(stub.sent) == 2


def test_the_report_of_an_earlier_transaction_counts_too(post: Post) -> None:
    stub, asked = Stub(), []
    stub.on_commit = lambda transaction, uids: asked.append((transaction, uids))
    delivery = post.deliver(stub, replace(AE, verify="commitment"), replace(QUICK, commit_within=0.2, refusals=99))
    wait_until(lambda: len(asked) >= 3)
    transaction, uids = asked[0]
    assert delivery.confirm_committed(transaction, [], uids)[1] == 0  # what a later one says is not known yet
    assert delivery.confirm_committed(transaction, uids, [])[0] == len(uids)
    assert delivery.confirm_committed("1.2.3", uids, []) == (0, 0)


def test_without_any_report_results_fail_at_last(post: Post) -> None:
    stub = Stub()
    post.deliver(stub, replace(AE, verify="commitment"), replace(QUICK, commit_within=0.1))
    wait_until(lambda: post.states == {"failed": 2})
    assert len(stub.sent) == 2 * QUICK.refusals
    assert len(set(stub.transactions)) == len(stub.transactions)


@contextmanager
def run_web(stow: bytes, qido: bytes) -> Iterator[str]:
    """A DICOMweb server with the same answers to everything."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.answer(stow)

        def do_GET(self) -> None:
            self.answer(qido)

        def answer(self, body: bytes) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    with run_http(Handler) as url:
        yield url


@pytest.mark.parametrize("answer", [b"[" * 200_000, b"{}", b"rubbish", b"\xff", b"1"])
def test_an_answer_that_is_no_answer_verifies_nothing_and_stops_nothing(answer: bytes, post: Post) -> None:
    with run_web(b"{}", answer) as url:
        to = Destination(name="archive", url=url, verify="qido")
        delivery = post.deliver(make_sender(to, "NODE", lambda *_: None), to)
        wait_until(lambda: post.events["unverifiable"] >= 4)
        assert post.states == {"sent": 2}
        assert delivery.thread.is_alive()
        assert (post.events["error"], post.events["sent"]) == (0, 2)


@pytest.mark.parametrize(
    ("sequence", "state"),
    [
        ("[1]", "failed"),
        ("{}", "delivered"),
        ('[{"00081155": 1, "00081197": "x"}]', "failed"),
        ('[{"00081155": {"Value": {}}, "00081197": {"Value": ["x"]}}]', "failed"),
        ('[{"00081197": {"Value": [{}]}}]', "failed"),
        ('[{"00081197": {"Value": [273]}}]', "delivered"),
    ],
)
def test_strange_lists_of_what_was_refused_are_read_as_far_as_they_go(sequence: str, state: str, post: Post) -> None:
    with run_web(f'{{"00081198": {{"Value": {sequence}}}}}'.encode(), b"[]") as url:
        to = Destination(name="archive", url=url)
        post.deliver(make_sender(to, "NODE", lambda *_: None), to)
        wait_until(lambda: post.states == {state: 2})
        assert post.events["error"] == 0


def test_an_archive_without_c_find_gets_everything_and_counts_as_reached(post: Post) -> None:
    port = find_port()
    with run_picky(port, ["1.2.840.10008.5.1.4.1.1.30", "1.2.840.10008.5.1.4.1.1.66.4"]) as received:
        to = replace(AE, port=port, verify="find")
        delivery = post.deliver(make_sender(to, "NODE", lambda *_: None), to)
        wait_until(lambda: post.events["unverifiable"] >= 4)
        assert (len(received), post.states, delivery.unreachable_since) == (2, {"sent": 2}, None)
